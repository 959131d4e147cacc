"""org.accelerd1 as clients see it that are not Python: the tree, introspection, properties, methods, errors, order."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from gi.repository import Gio

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.bus.service import DIRECTORY, interfaces
from accelerd.system.dbus.port import Call, Variant
from tests.bus.world import (
    JOB,
    MODEL,
    BusService,
    Client,
    SessionBus,
    blank,
    busctl,
    call,
    monitor,
    on_bus,
    refusal,
    run,
    until,
)
from tests.harness import PATIENCE
from tests.system.fake_services import Bus

PATHS = {
    names.BUS_MANAGER: names.BUS_PATH,
    names.BUS_MODEL: MODEL,
    names.BUS_DEVICE: f"{names.BUS_DEVICES}/cpu",
    names.BUS_JOB: JOB,
}
ARGUMENTS = {"s": ["text"], "u": ["5"], "t": ["5"], "o": ["/"], "a{sv}": ["1", "key", "b", "true"], "a{ss}": ["0"]}
PLAIN = {"s": "text", "u": 5, "t": 5, "o": "/", "a{sv}": {"key": True}, "a{ss}": {}}
UNKNOWN = ("org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.UnknownObject")
INVALID = "org.freedesktop.DBus.Error.InvalidArgs"


async def test_busctl_shows_the_whole_tree(broker: Bus) -> None:
    async with on_bus(broker, BusService()):
        found = (await busctl(broker, "tree", "--list", names.BUS_NAME)).split()
    for path in (*PATHS.values(), names.BUS_MODELS, names.BUS_DEVICES, names.BUS_JOBS):
        assert path in found


@pytest.mark.parametrize("interface", PATHS)
async def test_the_live_introspection_is_the_xml(broker: Bus, interface: str) -> None:
    async with on_bus(broker, BusService()):
        answer = await busctl(
            broker, "--json=short", "call", names.BUS_NAME, PATHS[interface],
            "org.freedesktop.DBus.Introspectable", "Introspect",
        )  # fmt: skip
    live = ElementTree.fromstring(json.loads(answer)["data"][0])
    [found] = [one for one in live.findall("interface") if one.get("name") == interface]
    shipped = ElementTree.parse(DIRECTORY / f"{interface}.xml").getroot().find("interface")
    assert shipped is not None
    assert shape(found) == shape(shipped)


def shape(element: ElementTree.Element) -> Any:
    """Without comments and space; members in order of kind and name, arguments as they stand."""
    members = [shape(child) for child in element]
    if element.tag == "interface":
        members.sort()
    return element.tag, element.get("name", ""), sorted(element.attrib.items()), members


async def test_every_method_with_right_arguments(broker: Bus) -> None:
    desk = BusService()
    async with on_bus(broker, desk):
        for name, path in PATHS.items():
            for method in interfaces()[name].info.methods:
                types = [argument.signature for argument in method.in_args]
                words = ["".join(types), *[word for one in types for word in ARGUMENTS[one]]] if types else []
                await call(broker, path, name, method.name, *words)
                heard = desk.calls[-1]
                assert (heard.path, heard.interface, heard.method) == (path, name, method.name)
                assert heard.args == tuple(PLAIN[one] for one in types)
                assert heard.sender.startswith(":")


async def test_every_method_with_wrong_arguments_calls_nobody(broker: Bus) -> None:
    desk = BusService()
    async with on_bus(broker, desk):
        for name, path in PATHS.items():
            for method in interfaces()[name].info.methods:
                status, _, err = await run(
                    "busctl", f"--address={broker.address}", "call", names.BUS_NAME, path, name, method.name, "d", "1.5"
                )
                assert status != 0
                assert "does not match expected type" in err
        assert (await refusal(broker, MODEL, f"{names.BUS_MODEL}.Nope"))[
            0
        ] == "org.freedesktop.DBus.Error.UnknownMethod"
        assert (await refusal(broker, "/org/accelerd1/models/none", f"{names.BUS_MODEL}.ResetFailed"))[0] in (
            "org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.UnknownObject",
        )  # fmt: skip
        got = await refusal(broker, MODEL, "org.freedesktop.DBus.Properties.Get", names.BUS_MODEL, "Nope")
        assert got[0] == INVALID
        got = await refusal(broker, MODEL, "org.freedesktop.DBus.Properties.Set", names.BUS_MODEL, "State", "<'ready'>")
        assert got[0] in (INVALID, "org.freedesktop.DBus.Error.PropertyReadOnly")
        assert await busctl(broker, "get-property", names.BUS_NAME, MODEL, names.BUS_MODEL, "State") == 's "stopped"\n'
    assert desk.calls == []


async def test_errors_have_names_and_no_traceback(broker: Bus, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(asked: Call) -> tuple[Any, ...]:
        if asked.method == "Load":
            raise AccelError("model_not_found", "there is no model 'x'; see accelctl models")
        if asked.method == "GetOutput":
            return ("not a list",)
        raise KeyError("a secret")

    async with on_bus(broker, refuse):
        name, text = await refusal(broker, MODEL, f"{names.BUS_MODEL}.Load", "{}")
        assert (name, text) == ("org.accelerd1.Error.NoSuchModel", "there is no model 'x'; see accelctl models")
        with caplog.at_level(logging.CRITICAL, "accelerd"):
            for method, arguments in (("ResetFailed", ()), ("GetOutput", ("5",))):
                name, text = await refusal(broker, MODEL, f"{names.BUS_MODEL}.{method}", *arguments)
                assert name == "org.accelerd1.Error.Failed"
                assert "secret" not in text
                assert "Error" not in text


async def test_objects_and_properties(broker: Bus) -> None:
    async with on_bus(broker, BusService()) as bus:
        bus.update(MODEL, names.BUS_MODEL, {"MemoryPools": {"ram": 5 << 30}, "LastError": ("exited", "it\0 ended")})
        options = {"what": "the GPU", "devices": Variant("ao", [MODEL]), "until-monotonic-usec": Variant("t", 5)}
        bus.update(names.BUS_PATH, names.BUS_MANAGER, {"Yield": options, "Pins": [(1, MODEL, "pin", "why", "")]})
        text = await busctl(
            broker, "--json=short", "call", names.BUS_NAME, names.BUS_PATH,
            "org.freedesktop.DBus.ObjectManager", "GetManagedObjects",
        )  # fmt: skip
        [objects] = json.loads(text)["data"]
        assert sorted(objects) == sorted(path for path in PATHS.values() if path != names.BUS_PATH)
        model = objects[MODEL][names.BUS_MODEL]
        assert set(model) == set(interfaces()[names.BUS_MODEL].properties)
        assert model["MemoryPools"]["data"] == {"ram": 5 << 30}
        text = await busctl(
            broker, "--json=short", "get-property", names.BUS_NAME, names.BUS_PATH, names.BUS_MANAGER, "Yield"
        )
        assert json.loads(text)["data"]["devices"]["data"] == [MODEL]
        shown = await busctl(broker, "introspect", names.BUS_NAME, MODEL)
        assert "emits-change" in shown
        assert '"qwen3-8b"' in shown


async def test_signals_and_replies_come_in_the_order_they_were_given(broker: Bus) -> None:
    async with on_bus(broker, BusService()) as bus, monitor(broker) as ear:

        async def finish(asked: Call) -> tuple[Any, ...]:
            bus.update(JOB, names.BUS_JOB, {"State": "done", "Result": "done"})
            bus.update(MODEL, names.BUS_MODEL, {"State": "ready", "Pinned": False})
            bus.update(MODEL, names.BUS_MODEL, {"State": "ready"})
            bus.signal(JOB, names.BUS_JOB, "Event", ('{"event": "ready"}',))
            bus.signal(names.BUS_PATH, names.BUS_MANAGER, "JobRemoved", (17, JOB, MODEL, "done"))
            bus.signal(names.BUS_PATH, names.BUS_MANAGER, "PinReleased", (3, "released"), to=asked.sender)
            bus.remove(JOB)
            return ("done",)

        bus.publish(JOB, {names.BUS_JOB: blank(names.BUS_JOB, Id=17, Kind="load")}, finish)
        assert await call(broker, JOB, names.BUS_JOB, "Wait") == 's "done"'
        heard = await ear.until(lambda m: m["type"] == "method_return" and m["payload"]["data"] == ["done"])
    end = [m for m in heard if m.get("sender") == heard[-1].get("sender")][-7:]
    assert [m.get("member", m["type"]) for m in end] == [
        "PropertiesChanged", "PropertiesChanged", "Event", "JobRemoved", "PinReleased", "InterfacesRemoved",
        "method_return",
    ]  # fmt: skip
    assert sorted(end[0]["payload"]["data"][1]) == ["Result", "State"]
    assert list(end[1]["payload"]["data"][1]) == ["State"], "what is the same is not told"
    assert end[4]["destination"] == end[6]["destination"]
    assert end[5]["payload"]["data"] == [JOB, [names.BUS_JOB]]


async def test_properties_are_read_while_the_loop_hangs(broker: Bus) -> None:
    """The program's loop stands still; whoever looks at properties does not notice."""
    command = ["busctl", f"--address={broker.address}", "get-property", names.BUS_NAME, MODEL, names.BUS_MODEL, "Name"]
    async with on_bus(broker, BusService()):
        hung = subprocess.run(command, capture_output=True, timeout=PATIENCE)  # noqa: ASYNC221  (it is the point)
    assert hung.stdout == b's "qwen3-8b"\n'


async def test_wrong_values_are_refused_where_they_are_given(broker: Bus) -> None:
    async with on_bus(broker, BusService()) as bus:
        with pytest.raises(ValueError, match="MemoryUsed"):
            bus.publish(MODEL, {names.BUS_MODEL: {"Name": "x"}}, BusService())
        for changed in ({"InFlight": "many"}, {"InFlight": -1}, {"Device": "cpu"}, {"Nope": 1}, {"Name": "other"}):
            with pytest.raises(ValueError, match="cannot"):
                bus.update(MODEL, names.BUS_MODEL, changed)
        with pytest.raises(ValueError, match="cannot send"):
            bus.update(names.BUS_PATH, names.BUS_MANAGER, {"Yield": {"until": 5}})
        with pytest.raises(ValueError, match="cannot send"):
            bus.signal(JOB, names.BUS_JOB, "Event", (5,))


async def test_sizes_that_no_type_can_carry_hide_nothing(broker: Bus) -> None:
    """A model's file may claim them; what else there is of it, and of others, is shown."""
    async with on_bus(broker, BusService()) as bus:
        bus.update(MODEL, names.BUS_MODEL, {"MemoryUsed": 1 << 80, "InFlight": 1 << 33})
        get = (broker, "get-property", names.BUS_NAME, MODEL, names.BUS_MODEL)
        assert await busctl(*get, "MemoryUsed") == f"t {(1 << 64) - 1}\n"
        assert await busctl(*get, "InFlight") == f"u {(1 << 32) - 1}\n"
        bus.publish(f"{MODEL}2", {names.BUS_MODEL: blank(names.BUS_MODEL, MemoryUsed=1 << 99)}, BusService())
        assert f"{MODEL}2" in await busctl(broker, "tree", "--list", names.BUS_NAME)


async def test_listeners_are_counted(broker: Bus) -> None:
    async with on_bus(broker, BusService()) as bus:
        assert bus.listeners == 0
        async with monitor(broker):
            assert bus.listeners == 0, "who only listens is not known"
        await busctl(broker, "get-property", names.BUS_NAME, MODEL, names.BUS_MODEL, "State")
        await until(lambda: bus.listeners == 0, "a client that has gone is not counted")


async def test_an_idle_bus_wakes_nobody(broker: Bus, client: Client) -> None:
    """While there is nothing to tell a whole second goes by in which no thread of the bus does anything."""

    def woken() -> dict[str, int]:
        found = {}
        [ours] = [str(thread.native_id) for thread in threading.enumerate() if thread.name == "D-Bus"]
        for status in Path("/proc/self/task").glob("*/status"):
            text = status.read_text()
            name = text.partition("Name:")[2].split("\n")[0].strip()
            if name in ("gdbus", "gmain") or status.parent.name == ours:
                found[f"{name} {status.parent.name}"] = int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
        return found

    async with on_bus(broker, BusService()) as bus:
        assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == ()
        bus.update(MODEL, names.BUS_MODEL, {"State": "ready"})
        before: dict[str, int] = {}
        async with asyncio.timeout(PATIENCE):  # what was done just now may take a moment to settle
            while (now := woken()) != before:
                before = now
                await asyncio.sleep(1)
        assert len(before) >= 2, "GLib's and ours"


async def test_without_pygobject_there_is_only_a_reason(monkeypatch: pytest.MonkeyPatch, broker: Bus) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gi.repository.GLib", None)
    bus = SessionBus(broker.address)
    bus.publish(names.BUS_PATH, {names.BUS_MANAGER: {}}, BusService())
    bus.update(names.BUS_PATH, names.BUS_MANAGER, {"State": "running"})
    bus.signal(JOB, names.BUS_JOB, "Event", ("{}",))
    bus.remove(names.BUS_PATH)
    assert "is missing" in (await bus.start() or "")
    await bus.close()


async def test_objects_are_registered_with_what_glib_has_since_2_84(
    monkeypatch: pytest.MonkeyPatch, broker: Bus, client: Client
) -> None:
    """An older GLib has the function under the name that is deprecated since."""
    registered: list[str] = []
    kept: dict[str, Any] = {}
    of_gio = Gio.DBusConnection
    kept["deprecated"] = of_gio.register_object

    def since_2_84(connection: Any, path: str, *arguments: Any) -> int:
        registered.append(path)
        return int(kept["deprecated"](connection, path, *arguments))

    def deprecated(*_: Any) -> int:
        raise AssertionError("register_object is deprecated")

    monkeypatch.setattr(of_gio, "register_object_with_closures2", since_2_84, raising=False)
    monkeypatch.setattr(of_gio, "register_object", deprecated)
    async with on_bus(broker, BusService()):
        assert set(registered) == set(PATHS.values())
        assert await client.ask(MODEL, names.BUS_MODEL, "ResetFailed") == ()
        get = ("org.freedesktop.DBus.Properties", "Get", "(ss)", names.BUS_MODEL, "Name")
        assert await client.ask(MODEL, *get) == ("qwen3-8b",)


async def test_what_is_quiet_is_told_to_listeners_only_and_read_by_all(broker: Bus) -> None:
    async with on_bus(broker, BusService()) as bus, monitor(broker) as heard:
        bus.update(MODEL, names.BUS_MODEL, {"InFlight": 1}, quiet=True)
        bus.update(MODEL, names.BUS_MODEL, {"State": "ready"})
        first = await heard.until(lambda one: one.get("member") == "PropertiesChanged")
        assert "InFlight" not in json.dumps(first[-1])
        found = await busctl(broker, "get-property", names.BUS_NAME, MODEL, names.BUS_MODEL, "InFlight")
        assert found.split() == ["u", "1"]
