"""org.accelerd1 as a test double: the answers of a FakeDaemon, given over a bus as accelerd/bus/interfaces has it.

What is asked lands in the daemon's `requests` in the words of the control socket, so that one test can hold both ways
to the same. As a program it plays a machine: `python -m tests.cli.fake_bus ADDRESS RUNTIME_DIRECTORY [PACE]`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerd.bus
from accelerd.base import names
from accelerd.base.errors import BUS_NAMES
from accelerd.bus.paths import job_path, model_path

from .fake_daemon import FakeDaemon, Reply, Request, error

XML = Path(accelerd.bus.__file__).parent / "interfaces"
PROPERTIES = "org.freedesktop.DBus.Properties"
MANAGER_OF_OBJECTS = "org.freedesktop.DBus.ObjectManager"
AT_ONCE = ("model_not_found", "shutting_down", "queue_full", "bad_request")  # refused before there is a job
OBJECT_MANAGER_XML = f"""<node><interface name="{MANAGER_OF_OBJECTS}">
  <method name="GetManagedObjects"><arg type="a{{oa{{sa{{sv}}}}}}" direction="out"/></method>
  <signal name="InterfacesAdded"><arg type="o"/><arg type="a{{sa{{sv}}}}"/></signal>
  <signal name="InterfacesRemoved"><arg type="o"/><arg type="as"/></signal>
</interface></node>"""
PLAIN = {"s": "", "o": "/", "b": False, "u": 0, "t": 0, "d": 0.0, "(ss)": ("", "")}

Query = dict[str, str]
JOBS: dict[str, tuple[str, Callable[..., Query]]] = {
    "LoadModel": ("load", lambda name, options: {"model": name}),
    "UnloadModel": ("unload", lambda name, mode, options: {"model": name} | ({"force": "1"} if mode == "now" else {})),
    "YieldMemory": ("yield", lambda options: _span(options) | _flags(options)),
    "Resume": ("resume", lambda options: {}),
    "Reload": ("reload", lambda options: {}),
    "Tune": ("tune", lambda name, options: {"model": name} | _flags(options)),
    "RefreshToolbox": ("toolbox/refresh", lambda name, options: {"name": name} | _flags(options)),
}


def _span(options: dict[str, Any]) -> Query:
    return {"for": str(options["for-usec"] / 1e6)} if "for-usec" in options else {}


def _flags(options: dict[str, Any]) -> Query:
    return {key: "1" for key, value in options.items() if value is True}


class FakeBus:
    """Serves until closed. `properties` is what the objects say, by path and interface."""

    def __init__(self, daemon: FakeDaemon, address: str, runtime: Path, ends_with_the_bus: bool = False) -> None:
        self.daemon = daemon
        self.properties: dict[str, dict[str, dict[str, Any]]] = {}
        self.canceled: list[str] = []
        self.joins = False  # does a load join the one before?
        self.awake = threading.Event()  # cleared: no property is answered
        self.awake.set()
        self._address = address
        self._runtime = runtime
        self._ends_with_the_bus = ends_with_the_bus
        self._ids = itertools.count(1)
        self._waiting: dict[str, list[Any]] = {}
        self._ends: dict[str, tuple[str, str]] = {}  # of finished jobs: an error's name and text, both empty: none
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._registered: list[int] = []
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="fake bus")

    @contextlib.contextmanager
    def serve(self) -> Iterator[FakeBus]:
        self._thread.start()
        assert self._ready.wait(20)
        try:
            yield self
        finally:
            self.vanish()

    def vanish(self) -> None:
        """Leave the bus, as a daemon does that dies."""
        from gi.repository import GLib

        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            source = GLib.idle_source_new()
            source.set_callback(lambda *_: self._loop.quit())
            source.attach(self._context)
            self._thread.join()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    @property
    def dead(self) -> bool:
        """Has the bus gone?"""
        return bool(self._bus.is_closed())

    @property
    def _ending(self) -> bool:
        """Nothing that is told arrives any more."""
        return self._stop.is_set() or self.dead

    # --- what tests do ----------------------------------------------------------------------------------------

    def publish(self, path: str, interface: str, **values: Any) -> None:
        """An object; what is not given is not set."""
        info = self._infos[interface]
        found = {p.name: PLAIN.get(p.signature, []) for p in info.properties} | values
        if interface not in self.properties.get(path, {}):
            self._register(path, info)
        self.properties.setdefault(path, {})[interface] = found
        added = {interface: self._variants(interface, found)}
        self.emit(names.BUS_PATH, f"{MANAGER_OF_OBJECTS}.InterfacesAdded", "(oa{sa{sv}})", path, added)

    def model(self, name: str, **values: Any) -> None:
        self.publish(model_path(name), names.BUS_MODEL, **{"Name": name, "State": "stopped", **values})

    def change(self, path: str, interface: str, **values: Any) -> None:
        self.properties[path][interface] |= values
        changed = self._variants(interface, values)
        self.emit(path, f"{PROPERTIES}.PropertiesChanged", "(sa{sv}as)", interface, changed, [])

    def remove(self, path: str) -> None:
        interfaces = list(self.properties.pop(path))
        self.emit(names.BUS_PATH, f"{MANAGER_OF_OBJECTS}.InterfacesRemoved", "(oas)", path, interfaces)

    def emit(self, path: str, member: str, signature: str, *values: Any) -> None:
        from gi.repository import GLib

        interface, _, name = member.rpartition(".")
        try:
            self._bus.emit_signal(None, path, interface, name, GLib.Variant(signature, values))
        except GLib.Error:
            if not self._ending:
                raise

    # --- the thread of the bus --------------------------------------------------------------------------------

    def _run(self) -> None:
        from gi.repository import Gio, GLib

        # GLib's default context: PyGObject 3.42 never frees an invocation, which would keep one of our own for ever.
        self._context = GLib.MainContext.default()
        self._loop = GLib.MainLoop.new(self._context, False)
        flags = Gio.DBusConnectionFlags
        self._bus = Gio.DBusConnection.new_for_address_sync(
            self._address, flags.AUTHENTICATION_CLIENT | flags.MESSAGE_BUS_CONNECTION, None, None
        )
        self._bus.set_exit_on_close(self._ends_with_the_bus)
        texts = [file.read_text() for file in sorted(XML.glob("*.xml"))] + [OBJECT_MANAGER_XML]
        nodes = [Gio.DBusNodeInfo.new_for_xml(text) for text in texts]
        self._infos = {interface.name: interface for node in nodes for interface in node.interfaces}
        self._register(names.BUS_PATH, self._infos[MANAGER_OF_OBJECTS])
        self.publish(
            names.BUS_PATH,
            names.BUS_MANAGER,
            State="running",
            Version="0",
            RuntimeDirectory=str(self._runtime),
            Yield={},
        )
        arguments = GLib.Variant("(su)", (names.BUS_NAME, 4))
        bus = "org.freedesktop.DBus"
        taken = self._bus.call_sync(bus, "/" + bus.replace(".", "/"), bus, "RequestName", arguments, None, 0, -1, None)
        assert taken.unpack() == (1,)
        self._ready.set()
        self._loop.run()
        for number in self._registered:
            self._bus.unregister_object(number)
        with contextlib.suppress(GLib.Error):  # the bus has gone first
            self._bus.close_sync(None)
        self._bus.get_stream().close(None)  # an invocation that is never freed keeps the connection
        while self._context.iteration(False):
            continue

    def _register(self, path: str, info: Any) -> None:
        self._registered.append(self._bus.register_object(path, info, self._called, self._asked, None))

    def _asked(self, bus: Any, sender: str, path: str, interface: str, name: str) -> Any:
        self.awake.wait(20)
        return self._variants(interface, {name: self.properties[path][interface][name]})[name]

    def _variants(self, interface: str, values: dict[str, Any]) -> dict[str, Any]:
        from gi.repository import GLib

        signatures = {p.name: p.signature for p in self._infos[interface].properties}
        return {name: GLib.Variant(signatures[name], value) for name, value in values.items()}

    def _called(self, bus: Any, sender: str, path: str, interface: str, method: str, values: Any, call: Any) -> None:
        """In a thread of its own: an answer of a test may take its time."""
        thread = threading.Thread(target=self._answer, args=(path, method, tuple(values.unpack()), call))
        self._threads.append(thread)
        thread.start()

    # --- the threads of the calls -----------------------------------------------------------------------------

    def _answer(self, path: str, method: str, values: tuple[Any, ...], call: Any) -> None:
        if method == "Wait":
            self._wait(path, call)
        elif method == "Cancel":
            self.canceled.append(path)
            self._return(call, None)
        elif method == "GetManagedObjects":
            found = {
                path: {interface: self._variants(interface, values) for interface, values in interfaces.items()}
                for path, interfaces in self.properties.items()
                if path != names.BUS_PATH
            }
            self._return(call, "(a{oa{sa{sv}}})", found)
        elif method in JOBS:
            route, query = JOBS[method]
            self._job(route, query(*values), call)
        else:
            self._at_once(method, values, call)

    def _at_once(self, method: str, values: tuple[Any, ...], call: Any) -> None:
        if method == "GetModel":
            self._return(call, "(o)", model_path(values[0]))
            return
        http, route, query = {
            "Query": lambda: ("GET", *values),
            "ResetFailed": lambda: ("POST", "reset", {"model": values[0]}),
            "ForgetMemory": lambda: ("POST", "memory/forget", {"model": values[0]} if values[0] else {"all": "1"}),
            "PinToolbox": lambda: ("POST", "toolbox/pin", {"name": values[0]}),
            "UnpinToolbox": lambda: ("POST", "toolbox/unpin", {"name": values[0]}),
        }[method]()
        reply = self._reply(http, route, query)
        if reply.status != 200:
            self._refuse(call, reply)
        elif reply.cut:
            self._die()
        elif method == "Query":
            chunks = None if reply.chunks is None else b"".join(reply.chunks).decode()
            logs = chunks is not None and route == "logs"
            text = json.dumps({"lines": chunks.splitlines()}) if logs and chunks is not None else chunks
            self._return(call, "(s)", json.dumps(reply.json) if text is None else text)
        elif method == "ResetFailed":
            self.model(values[0], State=reply.json["state"])
            self._return(call, None)
        elif method == "ForgetMemory":
            self._return(call, "(u)", reply.json["forgotten"])
        else:
            self._return(call, "(s)", reply.json["pinned"] or reply.json.get("was") or "")

    def _job(self, route: str, query: Query, call: Any) -> None:
        reply = self._reply("POST", route, query)
        if reply.status != 200 and reply.json["error"]["code"] in AT_ONCE:
            self._refuse(call, reply)
            return
        number = next(self._ids)
        path = job_path(number)
        with self._lock:
            self._waiting[path] = []
        if self.joins:
            self._register(path, self._infos[names.BUS_JOB])
            self.properties[path] = {names.BUS_JOB: {}}
        else:
            self.publish(path, names.BUS_JOB, Id=number, Kind=route, State="running", Progress=-1.0)
        self._return(call, "(o)", path)
        lines = [] if reply.chunks is None else reply.chunks
        if reply.json is not None:
            outcome = {"event": "error", **reply.json} if reply.status != 200 else {"event": "done", **reply.json}
            lines = [json.dumps(outcome).encode()]
        last: dict[str, Any] = {}
        with contextlib.closing(iter_closing(lines)) as each:
            for line in each:
                if path in self.canceled or self._stop.is_set():
                    break
                last = json.loads(line)
                self.emit(path, f"{names.BUS_JOB}.Event", "(s)", line.decode().strip())
        if (
            reply.chunks != []
            and last.get("event", "progress") == "progress"
            and not self._stop.is_set()
            and path not in self.canceled
        ):
            self._die()  # it ended in the middle
            return
        fault = last.get("error") or {}
        self._end(path, names.BUS_ERROR + BUS_NAMES.get(fault["code"], "Failed") if fault else "", fault.get("message"))

    def _end(self, path: str, name: str, text: str | None) -> None:
        with self._lock:
            self._ends[path] = (name, text or "")
            waiting = self._waiting.pop(path)
        for call in waiting:
            self._wait(path, call)

    def _wait(self, path: str, call: Any) -> None:
        with self._lock:
            if path in self._waiting:
                self._waiting[path].append(call)
                return
        name, text = self._ends[path]
        if name:
            call.return_dbus_error(name, text)
        else:
            self._return(call, "(s)", "canceled" if path in self.canceled else "done")

    def _reply(self, http: str, route: str, query: Query) -> Reply:
        self.daemon.requests.append(Request(http, route, dict(query), b"", "bus"))
        answer = self.daemon.answers.get(f"{http} {route}", error(404, "not_found", f"no route {route}"))
        return answer if isinstance(answer, Reply) else answer(dict(query), b"")

    def _refuse(self, call: Any, reply: Reply) -> None:
        fault = reply.json["error"]
        call.return_dbus_error(names.BUS_ERROR + BUS_NAMES[fault["code"]], fault["message"])

    def _return(self, call: Any, signature: str | None, *values: Any) -> None:
        from gi.repository import GLib

        call.return_value(GLib.Variant(signature, values) if signature else None)

    def _die(self) -> None:
        from gi.repository import GLib

        try:
            self._bus.flush_sync(None)
        except GLib.Error:
            if not self._ending:
                raise
        threading.Thread(target=self.vanish).start()


def iter_closing(lines: Any) -> Iterator[bytes]:
    """A generator of its own, so that it can be closed: closing it closes one that it reads from."""
    yield from lines


if __name__ == "__main__":
    import sys

    from .fake_daemon import machine

    runtime = Path(sys.argv[2])
    fleet = machine(runtime / names.CONTROL_SOCKET, float(sys.argv[3]) if len(sys.argv) > 3 else 0.2)
    with fleet.serve(), FakeBus(fleet, sys.argv[1], runtime, ends_with_the_bus=True).serve():
        threading.Event().wait()
