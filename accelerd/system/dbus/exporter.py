"""org.accelerd1 on the session bus, as the event loop sees it: objects go out, calls come in.

Mirrors what it is given and decides nothing. Never waits for the bus; a bus that is not there, comes back, or has given
the name to another is a reason in `degraded`, and everything published is on the next connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.system.dbus.answers import BUG
from accelerd.system.dbus.port import Bus, Call, Handler, Variant
from accelerd.system.dbus.properties import session_bus
from accelerd.system.records import NOTICE, event

if TYPE_CHECKING:
    from accelerd.system.dbus.answers import Answers
    from accelerd.system.dbus.callers import Callers
    from accelerd.system.dbus.connection import BusConnection
    from accelerd.system.dbus.export import Exports
    from accelerd.system.dbus.thread import GLibThread

__all__ = ["Bus", "Call", "Handler", "SessionBus", "Variant"]

log = logging.getLogger(__name__)

PATIENCE: Final = 5.0  # s for the bus to answer
WAITS: Final = frozenset({(names.BUS_JOB, "Wait")})  # nobody wants their answer when the caller has gone


class SessionBus:
    """The Bus of port.py. All methods on the loop's thread."""

    def __init__(
        self,
        address: str,
        name: str = names.BUS_NAME,
        changed: Callable[[], None] = lambda: None,
        patience: float = PATIENCE,
    ) -> None:
        """`changed()`: `degraded` is another, after `start`; `patience`: seconds for the bus to answer."""
        self._address = address
        self._name = name
        self._changed = changed
        self._patience = patience
        self._trouble: str | None = None
        self._handlers: dict[str, Handler] = {}
        self._values: dict[str, dict[str, dict[str, Any]]] = {}  # path → interface → property → its GLib.Variant
        self._callers: set[str] = set()
        self._watches: dict[str, list[Callable[[str], None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, set[asyncio.Task[None]]] = {}  # caller → its calls of WAITS
        self._settled: asyncio.Future[None] | None = None
        self._started = self._closed = False
        self._kit: _Kit | None = None
        try:
            self._kit = _Kit(address, name, self, patience)
        except (ImportError, ValueError) as error:  # ValueError: of gi, about a version
            missing = getattr(error, "name", None) or str(error)
            self._trouble = f"there is no session bus: {missing} is missing (packages python3-gi and python3-pydbus)"

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None, changed: Callable[[], None] = lambda: None) -> SessionBus:
        """The bus of this user."""
        return cls(session_bus(env), changed=changed)

    @property
    def degraded(self) -> str | None:
        """Why there is nobody at the name, as of now."""
        return self._trouble

    @property
    def listeners(self) -> int:
        """Clients that have called anything and are still there."""
        return len(self._callers)

    async def start(self) -> str | None:
        """Connect. Why there is no bus, None: connected and named. Tries go on."""
        if self._kit is not None:
            self._settled = asyncio.get_running_loop().create_future()
            self._kit.thread.start()
            self._kit.thread.do(self._kit.line.connect)
            try:
                await asyncio.wait_for(self._settled, self._patience + 1)
            except TimeoutError:
                self._trouble = "cannot reach the session bus: it does not answer"
        self._started = True
        if self._trouble is not None:
            event(log, logging.WARNING, f"{self._trouble}; accelerd runs without it", message_id=names.MSG_BUS)
        return self._trouble

    async def close(self) -> None:
        """Refuse what still waits for an answer, and leave the bus. Whoever is watched has gone."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        kit, self._kit = self._kit, None
        if kit is not None and self._settled is not None:
            over = asyncio.get_running_loop().create_future()

            def closed() -> None:
                kit.thread.tell(_settle, over)
                kit.thread.quit()

            kit.thread.do(partial(kit.line.close, closed))
            await asyncio.wait((over,), timeout=self._patience)
            kit.thread.join()
        for caller in list(self._callers):
            self._left(caller)

    # --- what goes out ----------------------------------------------------------------------------------------

    def publish(self, path: str, interfaces: Mapping[str, Mapping[str, Any]], handler: Handler) -> None:
        """An object: its interfaces, a value for every property. ValueError: one is missing or of another type."""
        if self._kit is None:
            return
        packed = {name: self._kit.pack_all(name, values) for name, values in interfaces.items()}
        self._handlers[path] = handler
        self._values[path] = packed
        given = {name: dict(values) for name, values in packed.items()}
        self._kit.thread.do(partial(self._kit.exports.publish, path, given))

    def update(self, path: str, interface: str, changed: Mapping[str, Any], *, quiet: bool = False) -> None:
        """Properties have these values now; what is not another value is not told. `quiet`: nor if nobody listens."""
        if self._kit is None:
            return
        values = self._values[path][interface]
        packed = self._kit.pack_some(interface, changed)
        news = {name: value for name, value in packed.items() if not value.equal(values[name])}
        if news:
            values.update(news)
            silent = quiet and not self._callers
            self._kit.thread.do(partial(self._kit.exports.update, path, interface, news, silent=silent))

    def remove(self, path: str) -> None:
        """The object has gone. Calls of it that are under way are still answered."""
        if self._kit is None:
            return
        del self._handlers[path], self._values[path]
        self._kit.thread.do(partial(self._kit.exports.remove, path))

    def signal(self, path: str, interface: str, member: str, args: tuple[Any, ...], to: str | None = None) -> None:
        """To everybody, or to one unique name. In order with `update`, `remove` and the replies given before it."""
        if self._kit is None:
            return
        body = self._kit.pack_signal(interface, member, args)
        self._kit.thread.do(partial(self._kit.exports.signal, path, interface, member, body, to))

    def watch(self, sender: str, gone: Callable[[str], None]) -> None:
        """`gone(sender)` is called once, when this unique name has left the bus, or the bus has died."""
        if sender in self._callers:
            self._watches.setdefault(sender, []).append(gone)
        else:
            asyncio.get_running_loop().call_soon(gone, sender)

    # --- what comes in; called by the GLib thread's `tell` ------------------------------------------------------

    def told(self, trouble: str | None) -> None:
        """How it stands with the bus."""
        before, self._trouble = self._trouble, trouble
        if self._settled is not None:
            _settle(self._settled)
        if not self._started or trouble == before:
            return
        if trouble is None:
            event(log, NOTICE, "the session bus is back", message_id=names.MSG_BUS)
        elif before is None:
            event(log, logging.WARNING, f"{trouble}; trying again", message_id=names.MSG_BUS)
        self._changed()

    def came(self, sender: str) -> None:
        self._callers.add(sender)

    def left(self, sender: str) -> None:
        """Also when the bus has died."""
        if not self._closed:
            self._left(sender)

    def arrived(self, call: Call, answer: Callable[[Any], None]) -> None:
        """`answer` is owed one of: a packed reply, an AccelError."""
        if self._closed:
            answer(_draining())
            return
        task = asyncio.get_running_loop().create_task(self._handle(call, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if (call.interface, call.method) in WAITS:
            waiting = self._waiting.setdefault(call.sender, set())
            waiting.add(task)
            task.add_done_callback(waiting.discard)

    async def _handle(self, call: Call, answer: Callable[[Any], None]) -> None:
        kit = self._kit
        try:
            handler = self._handlers.get(call.path)
            if handler is None or kit is None:
                raise AccelError("not_found", f"{call.path} has just gone")
            answer(kit.pack_reply(call, await handler(call)))
        except AccelError as error:
            answer(error)
        except asyncio.CancelledError:
            answer(_draining())
            raise
        except Exception:
            text = f"a call of {call.interface}.{call.method} failed"
            event(log, logging.ERROR, text, message_id=names.MSG_BUG, exc_info=True)
            answer(AccelError("internal", BUG))

    def _left(self, sender: str) -> None:
        self._callers.discard(sender)
        for task in self._waiting.pop(sender, ()):
            task.cancel()
        for gone in self._watches.pop(sender, ()):
            gone(sender)


class _Kit:
    """All that needs PyGObject: the constructor raises ImportError where it, or pydbus, is missing."""

    def __init__(self, address: str, name: str, bus: SessionBus, patience: float) -> None:
        from accelerd.system.dbus.answers import Answers
        from accelerd.system.dbus.callers import Callers
        from accelerd.system.dbus.connection import BusConnection
        from accelerd.system.dbus.export import Exports
        from accelerd.system.dbus.thread import GLibThread
        from accelerd.system.dbus.values import pack, unpack
        from accelerd.system.dbus.xml import interfaces

        self._pack = pack
        self._unpack = unpack
        self._interfaces = interfaces()
        self._bus = bus
        self.thread: GLibThread = GLibThread("session bus")
        tell = self.thread.tell
        self.callers: Callers = Callers(partial(tell, bus.came), partial(tell, bus.left))
        self.answers: Answers = Answers(self.thread.later)
        self.exports: Exports = Exports(self._called, self.callers, self.answers, self.thread.later)
        told, milliseconds = partial(tell, bus.told), round(patience * 1000)
        self.line: BusConnection = BusConnection(
            self.thread, address, name, self.exports, self.callers, told, milliseconds
        )

    def pack_all(self, interface: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """A value for every property. ValueError."""
        known = self._interfaces[interface].properties
        if known.keys() != values.keys():
            raise ValueError(f"not the properties of {interface}: {sorted(known.keys() ^ values.keys())}")
        return {name: self._pack(known[name].signature, value) for name, value in values.items()}

    def pack_some(self, interface: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """ValueError for one that is not there, or that never changes."""
        known = self._interfaces[interface].properties
        wrong = [name for name in values if name not in known or known[name].emits == "const"]
        if wrong:
            raise ValueError(f"cannot change {wrong} of {interface}")
        return {name: self._pack(known[name].signature, value) for name, value in values.items()}

    def pack_signal(self, interface: str, member: str, args: tuple[Any, ...]) -> Any:
        return self._pack(self._interfaces[interface].signals[member], args)

    def pack_reply(self, call: Call, values: tuple[Any, ...]) -> Any:
        return self._pack(self._interfaces[call.interface].replies[call.method], values)

    def _called(self, sender: str, path: str, interface: str, method: str, arguments: Any, invocation: Any) -> None:
        """In the GLib thread."""

        def reply(outcome: Any) -> None:
            self.callers.end(sender)
            if isinstance(outcome, AccelError):
                self.answers.refuse(invocation, outcome)
            else:
                self.answers.give(invocation, outcome)

        def answer(outcome: Any) -> None:
            self.thread.do(partial(reply, outcome))

        call = Call(sender, path, interface, method, self._unpack(arguments))
        self.thread.tell(self._bus.arrived, call, answer)


def _draining() -> AccelError:
    return AccelError("shutting_down", "accelerd is about to end")


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
