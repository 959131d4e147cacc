"""A private session bus with accelerd's transport on it, and clients that are not Python: busctl and gdbus.

The objects are of the shipped interfaces, their values made up; what they do is a handler of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from gi.repository import Gio, GLib

from accelerd.base import names
from accelerd.bus.paths import job_path, model_path
from accelerd.bus.service import CANCELLED_WITH_CALLER, interfaces
from accelerd.system.dbus.client import CONNECT_TIMEOUT, BusClient
from accelerd.system.dbus.object_exporter import ObjectExporter
from accelerd.system.dbus.port import Call
from tests.harness import PATIENCE
from tests.system.fake_services import Bus

MODEL = model_path("qwen3-8b")
JOB = job_path(17)
BLANK: dict[str, Any] = {
    "s": "",
    "b": False,
    "u": 0,
    "t": 0,
    "d": 0.0,
    "o": "/",
    "a{sv}": {},
    "a{st}": {},
    "(ss)": ("", ""),
}
ANSWERS: dict[str, Any] = {"s": "text", "u": 7, "o": JOB, "as": ["one", "two"], "aa{sv}": [{"message": "wrong"}]}


def blank(interface: str, **given: Any) -> dict[str, Any]:
    """A value for every property."""
    properties = interfaces()[interface].properties
    return {name: given.get(name, BLANK.get(one.signature, [])) for name, one in properties.items()}


class BusService:
    """Answers every method with something of the right type, and notes the calls."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def __call__(self, call: Call) -> tuple[Any, ...]:
        self.calls.append(call)
        reply = interfaces()[call.interface].replies[call.method][1:-1]
        return (ANSWERS[reply],) if reply else ()


def furnish(bus: ObjectExporter, handler: Callable[[Call], Any]) -> None:
    """One object of each kind."""
    bus.publish(
        names.BUS_PATH, {names.BUS_MANAGER: blank(names.BUS_MANAGER, Version="0.6.0", State="running")}, handler
    )
    bus.publish(MODEL, {names.BUS_MODEL: blank(names.BUS_MODEL, Name="qwen3-8b", State="stopped")}, handler)
    device = f"{names.BUS_DEVICES}/cpu"
    bus.publish(device, {names.BUS_DEVICE: blank(names.BUS_DEVICE, Id="cpu", Kind="cpu", Name="a processor")}, handler)
    bus.publish(JOB, {names.BUS_JOB: blank(names.BUS_JOB, Id=17, Kind="load", State="running", Progress=-1.0)}, handler)


class SessionBus(ObjectExporter):
    """The transport, with a connection of its own."""

    def __init__(
        self, address: str, changed: Callable[[], None] = lambda: None, connect_timeout: float = CONNECT_TIMEOUT
    ) -> None:
        self.client = BusClient(address, connect_timeout=connect_timeout)
        super().__init__(self.client, names.BUS_NAME, names.BUS_PATH, interfaces, changed, CANCELLED_WITH_CALLER)

    async def close(self) -> None:
        await super().close()
        await self.client.close()


@contextlib.asynccontextmanager
async def on_bus(broker: Bus, handler: Callable[[Call], Any]) -> AsyncIterator[SessionBus]:
    """The transport, furnished and named."""
    bus = SessionBus(broker.address)
    furnish(bus, handler)
    try:
        assert await bus.start() is None
        yield bus
    finally:
        await bus.close()


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait on the loop until it is true."""
    async with asyncio.timeout(PATIENCE):
        while not (value := condition()):  # noqa: ASYNC110  (what changes it is in another process)
            await asyncio.sleep(0.005)
    assert value, what
    return value


async def run(*command: str) -> tuple[int, str, str]:
    """A client: its exit status, stdout and stderr."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(child.communicate(), PATIENCE)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def busctl(broker: Bus, *arguments: str) -> str:
    """What it prints; it must succeed."""
    status, out, err = await run("busctl", f"--address={broker.address}", *arguments)
    assert status == 0, err
    return out


async def call(broker: Bus, path: str, interface: str, method: str, *arguments: str) -> str:
    """The answer, as busctl writes it."""
    return (await busctl(broker, "call", names.BUS_NAME, path, interface, method, *arguments)).strip()


async def refusal(broker: Bus, path: str, method: str, *arguments: str) -> tuple[str, str]:
    """The name and the text of the error that the method, with its interface in front, is answered with."""
    status, out, err = await run(
        "gdbus", "call", "--address", broker.address, "--dest", names.BUS_NAME, "--object-path", path,
        "--method", method, *arguments,
    )  # fmt: skip
    assert status != 0, out
    _, _, rest = err.partition("GDBus.Error:")
    name, _, text = rest.partition(": ")
    return name, text.strip()


class Client:
    """A program with a connection of its own, for what busctl cannot do: many calls at once, and leaving meanwhile."""

    def __init__(self, address: str) -> None:
        kind = Gio.DBusConnectionFlags
        flags = kind.AUTHENTICATION_CLIENT | kind.MESSAGE_BUS_CONNECTION
        self._connection: Any = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
        self.name: str = self._connection.get_unique_name()

    def send(self, path: str, interface: str, method: str, signature: str = "()", *values: Any) -> None:
        """A call whose answer nobody looks at."""
        message = Gio.DBusMessage.new_method_call(names.BUS_NAME, path, interface, method)
        message.set_body(GLib.Variant(signature, values))
        self._connection.send_message(message, Gio.DBusSendMessageFlags.NONE)

    def subscribe(self, heard: Callable[..., None]) -> None:
        """To all signals of accelerd."""
        none = Gio.DBusSignalFlags.NONE
        self._connection.signal_subscribe(names.BUS_NAME, None, None, None, None, none, heard)

    async def ask(self, *words: Any) -> Any:
        """Its answer, or the name of the error."""
        return await asyncio.to_thread(self.ask_now, *words)

    def ask_now(self, *words: Any) -> Any:
        """The same, and nothing else goes on meanwhile."""
        try:
            return self.answer(*words).unpack()
        except GLib.Error as error:
            return Gio.DBusError.get_remote_error(error)

    def answer(self, path: str, interface: str, method: str, signature: str = "()", *values: Any) -> Any:
        """As GLib has it."""
        arguments, none, limit = GLib.Variant(signature, values), Gio.DBusCallFlags.NONE, int(PATIENCE * 1000)
        return self._connection.call_sync(names.BUS_NAME, path, interface, method, arguments, None, none, limit, None)

    def leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.close_sync(None)
        while GLib.MainContext.default().iteration(False):  # what GLib would tell of its end keeps the connection
            continue


class Monitor:
    """busctl monitor: every message as the broker passes it on, in its order."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def until(self, last: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """The messages up to the one that is wanted."""
        found = []
        assert self._child.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while True:
                line = await self._child.stdout.readline()
                assert line, "busctl monitor has ended"
                if line.startswith(b"{"):
                    found.append(json.loads(line))
                    if last(found[-1]):
                        return found


@contextlib.asynccontextmanager
async def monitor(broker: Bus) -> AsyncIterator[Monitor]:
    """One that hears everything from now on."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        "busctl", f"--address={broker.address}", "--json=short", "monitor", stdout=pipe, stderr=pipe, limit=1 << 22
    )
    try:
        assert child.stdout is not None
        first = asyncio.ensure_future(child.stdout.readline())
        async with asyncio.timeout(PATIENCE):
            while not first.done():  # not every busctl says when it begins
                await busctl(broker, "call", "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId")
                await asyncio.wait((first,), timeout=0.05)
        yield Monitor(child)
    finally:
        child.kill()
        await child.communicate()
