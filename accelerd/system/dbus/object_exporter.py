"""Objects exported on a bus, on the side of the event loop: values go out, method calls come in.

Never waits for the bus. While the bus is away, or another program has the name, `degraded` says so; everything
published is on the next connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.system.dbus.client import BusClient, BusError
from accelerd.system.dbus.port import Call, Handler, caller_gone
from accelerd.system.dbus.thread import finished, import_gi, tell
from accelerd.system.records import NOTICE, event

if TYPE_CHECKING:
    from accelerd.system.dbus.glib_export import InterfaceInfo

log = logging.getLogger(__name__)

CLOSE_TIMEOUT: Final = 2.0  # s


class ObjectExporter:
    """The objects of one name on one bus. On the loop's thread; all but `start` and `close` return at once."""

    def __init__(
        self,
        bus: BusClient,
        name: str,
        root: str,
        interfaces: Callable[[], Mapping[str, InterfaceInfo]],
        changed: Callable[[], None] = lambda: None,
        cancelled_with_caller: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        """`name`: a well-known name to own; `root`: the path of the ObjectManager; `interfaces()` by name, called once
        PyGObject is there; `changed()`: `degraded` differs, after `start`; `cancelled_with_caller`: (interface, method)
        of calls that end when their caller leaves the bus.
        """
        self._bus = bus
        self._name = name
        self._root = root
        self._read_interfaces = interfaces
        self._changed = changed
        self._cancelled_with_caller = cancelled_with_caller
        self._degraded: str | None = None
        self._handlers: dict[str, Handler] = {}
        self._values: dict[str, dict[str, dict[str, Any]]] = {}  # path → interface → property → its GLib.Variant
        self._callers: set[str] = set()
        self._watches: dict[str, list[Callable[[str], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued: dict[str, deque[tuple[Call, Callable[[Any], None]]]] = {}  # by caller; who comes next is first
        self._starter: asyncio.Task[None] | None = None
        self._waiting: dict[str, set[asyncio.Task[None]]] = {}  # caller → its calls of `cancelled_with_caller`
        self._settled = asyncio.Event()
        self._began = self._started = self._closed = False
        self._server: _Server | None = None

    @property
    def degraded(self) -> str | None:
        """Why the objects are not on the bus under their name."""
        return self._degraded

    @property
    def listeners(self) -> int:
        """Clients on the bus that have called anything."""
        return len(self._callers)

    async def start(self) -> str | None:
        """Connect. Returned: why there is no bus; then it goes on trying."""
        server = self._begin()
        if server is not None:
            try:
                await self._bus.ready()
            except BusError as error:
                self._degraded = f"cannot reach the {self._bus.bus}: {error.message}"
            else:
                self._bus.attach(server)
                try:
                    await asyncio.wait_for(self._settled.wait(), self._bus.connect_timeout * 2)
                except TimeoutError:
                    self._degraded = f"cannot reach the {self._bus.bus}: it does not answer"
        self._started = True
        if self._degraded is not None:
            event(log, logging.WARNING, f"{self._degraded}; accelerd runs without it", message_id=names.MSG_BUS)
        return self._degraded

    async def close(self) -> None:
        """Refuse the calls that wait for an answer and leave the name. Every watched client counts as gone."""
        self._closed = True
        for caller in list(self._queued):
            self._refuse_queued(caller, _shutting_down())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        server, self._server = self._server, None
        if server is not None and self._started:
            await finished(server.close, CLOSE_TIMEOUT)
        for caller in list(self._callers):
            self._forget(caller)

    def _begin(self) -> _Server | None:
        """Import PyGObject with the first use."""
        if not self._began:
            self._began = True
            try:
                import_gi()
            except (ImportError, ValueError) as error:
                missing = getattr(error, "name", None) or str(error)
                self._degraded = f"no {self._bus.bus}: {missing} is missing (packages python3-gi and python3-pydbus)"
            else:
                self._server = _Server(self, self._bus, self._name, self._root, self._read_interfaces())
        return self._server

    # --- what goes out ----------------------------------------------------------------------------------------

    def publish(self, path: str, interfaces: Mapping[str, Mapping[str, Any]], handler: Handler) -> None:
        """Export an object: its interfaces, with a value for every property. ValueError: one is missing or of another
        type."""
        server = self._begin()
        if server is None:
            return
        packed = {name: server.pack_properties(name, values, new=True) for name, values in interfaces.items()}
        self._handlers[path] = handler
        self._values[path] = packed
        given = {name: dict(values) for name, values in packed.items()}
        server.do(partial(server.objects.publish, path, given))

    def update(self, path: str, interface: str, changed: Mapping[str, Any], *, quiet: bool = False) -> None:
        """Set properties. Unchanged values are not emitted; with `quiet` nothing is emitted while nobody listens."""
        server = self._server
        if server is None:
            return
        values = self._values[path][interface]
        packed = server.pack_properties(interface, changed, new=False)
        news = {name: value for name, value in packed.items() if not value.equal(values[name])}
        if news:
            values.update(news)
            silent = quiet and not self._callers
            server.do(partial(server.objects.update, path, interface, news, silent=silent))

    def remove(self, path: str) -> None:
        """Withdraw an object. Calls of it that are under way are still answered."""
        server = self._server
        if server is not None:
            del self._handlers[path], self._values[path]
            server.do(partial(server.objects.remove, path))

    def signal(self, path: str, interface: str, member: str, args: tuple[Any, ...], to: str | None = None) -> None:
        """Emit to everybody, or to one unique name, in order with `update`, `remove` and the replies given before."""
        server = self._server
        if server is not None:
            body = server.pack(server.interfaces[interface].signals[member], args)
            server.do(partial(server.objects.signal, path, interface, member, body, to))

    def watch(self, sender: str, gone: Callable[[str], None]) -> None:
        """`gone(sender)` is called once, when this unique name has left the bus or the bus has gone."""
        if sender in self._callers:
            self._watches.setdefault(sender, []).append(gone)
        else:
            asyncio.get_running_loop().call_soon(gone, sender)

    # --- what comes in, from the GLib thread by way of `tell` ---------------------------------------------------

    def on_state(self, trouble: str | None) -> None:
        """The bus is away, or another program has the name; None: all is well."""
        before, self._degraded = self._degraded, trouble
        self._settled.set()
        if not self._started or trouble == before:
            return
        if trouble is None:
            event(log, NOTICE, f"the {self._bus.bus} is back", message_id=names.MSG_BUS)
        elif before is None:
            event(log, logging.WARNING, f"{trouble}; trying again", message_id=names.MSG_BUS)
        self._changed()

    def on_caller(self, sender: str) -> None:
        self._callers.add(sender)

    def on_caller_gone(self, sender: str) -> None:
        """It has left the bus, or the bus has gone."""
        if not self._closed:
            self._forget(sender)

    def on_call(self, call: Call, answer: Callable[[Any], None]) -> None:
        """`answer` must be called once, with a packed reply or an AccelError."""
        if self._closed:
            answer(_shutting_down())
            return
        self._queued.setdefault(call.sender, deque()).append((call, answer))
        if self._starter is None:
            self._starter = asyncio.get_running_loop().create_task(self._start_calls())

    async def _start_calls(self) -> None:
        """One in each round of the loop, the callers in turns: nobody's many calls keep others waiting."""
        while self._queued:
            sender = next(iter(self._queued))
            calls = self._queued.pop(sender)
            self._start(*calls.popleft())
            if calls:
                self._queued[sender] = calls
            await asyncio.sleep(0)
        self._starter = None

    def _refuse_queued(self, sender: str, error: AccelError) -> None:
        for _, answer in self._queued.pop(sender, ()):
            answer(error)

    def _start(self, call: Call, answer: Callable[[Any], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(call, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if (call.interface, call.method) in self._cancelled_with_caller:
            waiting = self._waiting.setdefault(call.sender, set())
            waiting.add(task)
            task.add_done_callback(waiting.discard)

    async def _handle(self, call: Call, answer: Callable[[Any], None]) -> None:
        server = self._server
        try:
            handler = self._handlers.get(call.path)
            if handler is None or server is None:
                raise AccelError("not_found", f"{call.path} is gone")
            answer(server.pack(server.interfaces[call.interface].replies[call.method], await handler(call)))
        except AccelError as error:
            answer(error)
        except asyncio.CancelledError:
            answer(_shutting_down())
            raise
        except Exception:
            from accelerd.system.dbus.glib_export import BUG

            text = f"a call of {call.interface}.{call.method} failed"
            event(log, logging.ERROR, text, message_id=names.MSG_BUG, exc_info=True)
            answer(AccelError("internal", BUG))

    def _forget(self, sender: str) -> None:
        self._callers.discard(sender)
        self._refuse_queued(sender, caller_gone())
        for task in self._waiting.pop(sender, ()):
            task.cancel()
        for gone in self._watches.pop(sender, ()):
            gone(sender)


class _Server:
    """The exporter's side in the GLib thread: an Attachment of callers, objects and, last, the name."""

    def __init__(
        self, exporter: ObjectExporter, bus: BusClient, name: str, root: str, interfaces: Mapping[str, InterfaceInfo]
    ) -> None:
        from accelerd.system.dbus.glib_export import ExportedObjects, Replies
        from accelerd.system.dbus.peers import Callers, OwnedName
        from accelerd.system.dbus.values import pack

        self._exporter = exporter
        self._bus = bus
        self.pack = pack
        self.interfaces = interfaces
        self._loop = asyncio.get_running_loop()
        self.do = bus.thread.do
        later = bus.thread.later
        self._callers = Callers(self._tell(exporter.on_caller), self._tell(exporter.on_caller_gone))
        self._replies = Replies(later)
        self.objects = ExportedObjects(root, interfaces, self._on_call, self._callers, self._replies, later)
        self._owned = OwnedName(name, self._tell(exporter.on_state), bus.connect_timeout)

    # --- on the loop ------------------------------------------------------------------------------------------

    def close(self, closed: Callable[[], None]) -> None:
        """Give up the name, then withdraw the objects. `closed()` is called in the GLib thread."""

        def released() -> None:
            self._bus.detach(self)
            self.do(closed)

        self.do(partial(self._owned.release, released))

    def pack_properties(self, interface: str, values: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
        """ValueError: of a new object not every property has a value; of another there is one that never changes."""
        known = self.interfaces[interface].properties
        changing = {name for name, one in known.items() if one.emits != "const"}
        wrong = values.keys() ^ known.keys() if new else values.keys() - changing
        if wrong:
            raise ValueError(
                f"cannot {'begin with' if new else 'change'} these properties of {interface}: {sorted(wrong)}"
            )
        return {name: self.pack(known[name].signature, value) for name, value in values.items()}

    # --- in the GLib thread -----------------------------------------------------------------------------------

    def attach(self, bus: Any) -> None:
        self._callers.attach(bus)
        self.objects.attach(bus)
        self._owned.attach(bus)  # last, so that no call comes too early

    def detach(self) -> None:
        self._owned.detach()
        self.objects.detach()
        self._callers.detach()

    def unreachable(self, reason: str) -> None:
        self._tell(self._exporter.on_state)(f"cannot reach the {self._bus.bus}: {reason}")

    def _tell(self, function: Callable[..., None]) -> Callable[..., None]:
        return partial(tell, self._loop, function)

    def _on_call(self, sender: str, path: str, interface: str, method: str, arguments: Any, invocation: Any) -> None:
        def reply(outcome: Any) -> None:
            self._callers.end(sender)
            if isinstance(outcome, AccelError):
                self._replies.refuse(invocation, outcome)
            else:
                self._replies.give(invocation, outcome)

        def answer(outcome: Any) -> None:
            self.do(partial(reply, outcome))

        call = Call(sender, path, interface, method, tuple(arguments.unpack()))
        self._tell(self._exporter.on_call)(call, answer)


def _shutting_down() -> AccelError:
    return AccelError("shutting_down", "accelerd is shutting down")
