"""A gateway on a table: real listeners, real scheduler, processes that are "started" at once, an engine that does what
the test says. Everything in the test's own loop; `on_both_loops` runs a test on asyncio's loop and on uvloop's.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import uvloop

from accelerd.base.events import EventStream
from accelerd.base.exits import Cause, Exit
from accelerd.base.ports import SystemClock
from accelerd.config.model import ModelSpec, Route, SchedulerSettings, ServerSettings
from accelerd.engines.base import Dialect, Endpoint, Task, Traits
from accelerd.gateway.connection import ClientConnection
from accelerd.gateway.gateway import Gateway
from accelerd.gateway.listeners import Listeners
from accelerd.memory.model import Forecast, MemoryRequirement, in_ram
from accelerd.scheduler.placement import SharedLimits
from accelerd.scheduler.service import Scheduler
from accelerd.system.activation import Passed
from tests.gateway.client import Client, chat

SECRET = "the-instance-secret"
ALL: frozenset[Task] = frozenset(get_args(Task))
NO_LIMITS = SharedLimits(None, "no limit", None)
PATIENCE = 10.0  # s


@dataclass
class Asked:
    """One request that the engine got, and what became of it."""

    head: bytes
    body: bytes
    connection: int  # which of its connections
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # accelerd closed the connection

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


Script = Callable[[Asked], Awaitable[None]]


class Engine:
    """An HTTP server on a unix socket. `script` answers a request with raw bytes; it may close the writer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script: Script = self.ok
        self.requests: list[Asked] = []
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self._arrived = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Engine:
        self._server = await asyncio.start_unix_server(self._converse, str(self.path), limit=1 << 16)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self.open):
            writer.transport.abort()
        await until(lambda: not self.open, "the engine's connections closed")
        await asyncio.sleep(0)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self.open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = sum(int(h[15:]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length:"))
                asked = Asked(head, await reader.readexactly(length), number, writer)
                self.requests.append(asked)
                self._arrived.set()
                script = asyncio.ensure_future(self.script(asked))
                gone = asyncio.ensure_future(self._watch(reader))
                await asyncio.wait((script, gone), return_when=asyncio.FIRST_COMPLETED)
                closed = gone.done()
                script.cancel()
                gone.cancel()
                failure, _ = await asyncio.gather(script, gone, return_exceptions=True)
                if closed or isinstance(failure, ConnectionError):
                    asked.gone.set()
                    return
                if isinstance(failure, Exception):
                    raise failure
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open.discard(writer)
            writer.close()

    @staticmethod
    async def _watch(reader: asyncio.StreamReader) -> None:
        """Until the other side closes; does not touch what it sends."""
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0.002)

    async def asked(self, count: int = 1) -> Asked:
        """The `count`th request, as soon as it is there."""
        await until(lambda: len(self.requests) >= count, f"request {count}")
        return self.requests[count - 1]

    # --- scripts ---

    async def ok(self, asked: Asked) -> None:
        asked.writer.write(plain(b'{"object":"chat.completion","choices":[]}'))

    def says(self, *pieces: bytes | float, close: bool = False) -> None:
        """Answer everything from now on with these bytes; a number is a pause in seconds."""

        async def script(asked: Asked) -> None:
            for piece in pieces:
                if isinstance(piece, bytes):
                    asked.writer.write(piece)
                    await asked.writer.drain()
                else:
                    await asyncio.sleep(piece)
            if close:
                asked.writer.close()

        self.script = script

    async def never(self, asked: Asked) -> None:
        await asyncio.Event().wait()


def plain(body: bytes, status: int = 200, kind: str = "application/json", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def token(text: str, **more: Any) -> bytes:
    event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
    return chunk(b"data: " + msgspec.json.encode(event) + b"\n\n")


ONE_BYTE = Forecast((in_ram(1, "test"),))
DONE = chunk(b"data: [DONE]\n\n") + LAST_CHUNK


class Instances:
    """A supervisor whose instances are ready as soon as `hold` is not set."""

    def __init__(self, scheduler: Scheduler, endpoint: Endpoint) -> None:
        self._scheduler = scheduler
        self._endpoint = endpoint
        self._waiting: list[int] = []
        self.hold = False
        self.probes = 0

    def start(self, instance: int, spec: ModelSpec, devices: Sequence[str] = ()) -> None:
        self._waiting.append(instance)
        asyncio.get_running_loop().call_soon(self._ready)

    def _ready(self) -> None:
        while self._waiting and not self.hold:
            self._scheduler.instance_ready(self._waiting.pop(0), self._endpoint, SECRET)

    def let_go(self) -> None:
        self.hold = False
        self._ready()

    def fail(self, message: str) -> None:
        """Whatever starts, ends."""
        self._scheduler.instance_gone(self._waiting.pop(0), Exit(Cause.EXITED, message, 1, ("the last line",)))

    def stop(self, instance: int, reason: Cause = Cause.STOPPED) -> None:
        if instance in self._waiting:
            self._waiting.remove(instance)
        asyncio.get_running_loop().call_soon(self._scheduler.instance_gone, instance, Exit(reason, "stopped"))

    def probe(self, instance: int, *, thorough: bool = False) -> None:
        self.probes += 1
        asyncio.get_running_loop().call_soon(self._scheduler.instance_probed, instance, True)


def configure(
    gateway: Gateway,
    settings: ServerSettings,
    keys: tuple[bytes, ...],
    models: Sequence[ModelSpec],
    routes: Sequence[Route],
) -> None:
    gateway.configure(settings, keys)
    gateway.router.configure(models, routes, settings.default_model, settings.default_fallbacks)


@dataclass
class Bench:
    port: int
    unix: Path
    engine: Engine
    gateway: Gateway
    scheduler: Scheduler
    instances: Instances
    listeners: Listeners
    engines: dict[str, Any]
    models: Sequence[ModelSpec]
    routes: Sequence[Route]

    def configure(self, settings: ServerSettings, keys: tuple[bytes, ...]) -> None:
        """Other settings for the same models."""
        configure(self.gateway, settings, keys, self.models, self.routes)

    async def client(self, receive_buffer: int | None = None, *, primed: bool = False) -> Client:
        """`primed`: its first request is behind it, and a connection to the engine can be used again."""
        client = await Client.open(self.port, receive_buffer)
        if primed:
            engine = self.engine
            script, engine.script = engine.script, engine.ok
            assert (await client.ask(body=chat())).status == 200
            engine.script = script
            engine.requests.clear()
            await self.settled()
        return client

    @property
    def connections(self) -> list[ClientConnection]:
        """Of clients on the TCP port."""
        return list(self.listeners._public.connections)

    def leases(self, model: str = "m") -> int:
        return self.scheduler.snapshot(model).leases

    async def settled(self) -> None:
        """No request runs or waits any more."""
        await until(lambda: not self.scheduler.busy() and not self.scheduler.queued, "all leases released")


@dataclass
class Speaker:
    """An engine as the gateway sees it: how it speaks, and what each model can be asked for."""

    dialect: Dialect = field(default_factory=Dialect)
    says: Traits = field(default_factory=lambda: Traits(ALL))
    of: dict[str, Traits] = field(default_factory=dict)  # by model, where it is another

    def traits(self, spec: ModelSpec) -> Traits:
        return self.of.get(spec.name, self.says)


async def never(unit: str) -> bool:
    raise AssertionError(f"{unit} is to be released")


class Needless:
    """What models need, and whether their memory is back, where memory does not count."""

    def raise_requirement(self, spec: ModelSpec, need: MemoryRequirement) -> None: ...
    def record_peak(self, spec: ModelSpec, need: MemoryRequirement, peak: Mapping[str, int]) -> None: ...
    def estimate_anew(self, spec: ModelSpec) -> Forecast:
        return ONE_BYTE

    def suggest_smaller(self, spec: ModelSpec, room: Mapping[str, int]) -> str:
        return ""

    def device(self, spec: ModelSpec) -> str:
        return "cpu"

    def watch(self, instance: int, model: str, held: Mapping[str, int], changed: object) -> None: ...


@asynccontextmanager
async def bench(
    directory: Path,
    settings: ServerSettings | None = None,
    *,
    models: list[ModelSpec] | None = None,
    keys: tuple[bytes, ...] = (),
    scheduling: SchedulerSettings | None = None,
    assembles: bool = False,
    limits: SharedLimits = NO_LIMITS,
    others: Mapping[str, Speaker] | None = None,
    routes: Sequence[Route] = (),
    queued: Sequence[tuple[socket.socket, bytes]] = (),
) -> AsyncIterator[Bench]:
    """`assembles`: plain answers are asked as streams of models with several slots. `queued`: see Passed.

    `others`: engines beside llama-server, by name.
    """
    settings, scheduling = settings or ServerSettings(), scheduling or SchedulerSettings()
    models = models or [ModelSpec("m", path="/m.gguf", parallel=4)]
    clock = SystemClock()
    scheduler = Scheduler(clock, scheduling, limits, events := EventStream())
    engines: dict[str, Any] = {"llama-server": Speaker(Dialect(streams_notice_disconnect=assembles)), **(others or {})}
    gateway = Gateway(clock, scheduler, engines, events)
    configure(gateway, settings, keys, models, routes)
    async with Engine(directory / "e.sock") as engine:
        instances = Instances(scheduler, Endpoint(unix=str(engine.path)))
        needless: Any = Needless()
        scheduler.attach(instances, needless, lambda: False, needless)
        stays = [replace(m, idle_timeout=None) if m.idle_timeout == ModelSpec("").idle_timeout else m for m in models]
        scheduler.configure([(m, ONE_BYTE) for m in stays], scheduling, limits)
        tcp, local = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        local.bind(str(directory / "a.sock"))
        local.listen()
        passed = Passed([("bench.socket", tcp)], [("bench.socket", local)], list(queued))
        listeners = Listeners(gateway, settings, passed, directory / "a.sock", never, lambda address, sock: "")
        await listeners.open()
        try:
            port, unix = tcp.getsockname()[1], directory / "a.sock"
            yield Bench(port, unix, engine, gateway, scheduler, instances, listeners, engines, models, routes)
        finally:
            listeners.stop_accepting()
            await listeners.close()
            scheduler.shutdown()
            await scheduler.stop_all()
            gateway.close()
            scheduler.close()
            await asyncio.sleep(0)


async def until(condition: Callable[[], Any], what: str, within: float = PATIENCE) -> None:
    try:
        async with asyncio.timeout(within):
            while not condition():  # noqa: ASYNC110 (what is waited for knows no events)
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not in {within} s: {what}") from None


fresh_and_reused = pytest.mark.parametrize("primed", [False, True], ids=["fresh", "reused"])  # connection to the engine


def on_both_loops(test: Callable[..., Any]) -> Callable[..., Any]:
    """Run an `async def` test on asyncio's own event loop and on uvloop's, which the daemon uses where it can."""
    signature = inspect.signature(test)
    loop = inspect.Parameter("loop", inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(test)
    def run(*args: Any, loop: str, **more: Any) -> None:
        if loop == "asyncio":
            asyncio.run(test(*args, **more))
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(test(*args, **more))

    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), loop])  # type: ignore[attr-defined]
    return pytest.mark.parametrize("loop", ["asyncio", "uvloop"])(run)
