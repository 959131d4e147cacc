"""One connection to a session bus, for one run of accelctl: calls and signals without a thread, and Ctrl-C at any time.

PyGObject is imported when it connects, so that whoever needs no bus does not wait for it. Waits only in a GLib context
of its own. Knows D-Bus, and nothing of accelerd; must never start a service unless it is told to.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
ERROR: Final = "org.freedesktop.DBus.Error."
TICK_MS: Final = 250  # a signal of the kernel that comes just before the wait is heard after so long
CLOSE_WITHIN: Final = 1.0  # s
ENDLESS: Final = (1 << 31) - 1  # GLib's G_MAXINT: no time limit
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# An answer that never came: who should have given it has gone, or takes too long.
ABSENT: Final = frozenset(ERROR + name for name in ("ServiceUnknown", "NameHasNoOwner"))
LOST: Final = frozenset(ERROR + name for name in ("NoReply", "Disconnected"))
LATE: Final = ERROR + "Timeout"


class LinkError(Exception):
    """`name` is the D-Bus error's."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


@dataclass(frozen=True)
class Signal:
    """One that came."""

    sender: str
    path: str
    interface: str
    member: str
    values: tuple[Any, ...]


class Pending:
    """A call that is under way; `over` when `result` has something to say."""

    def __init__(self, link: Link, then: Callable[[], None] | None) -> None:
        self._link = link
        self._then = then
        self._answer: Any = None

    def arrived(self, source: Any, answer: Any) -> None:
        self._answer = answer
        if self._then is not None:
            self._then()

    @property
    def over(self) -> bool:
        return self._answer is not None

    def result(self) -> tuple[Any, ...]:
        """LinkError."""
        return self._link.finish(self._answer)


def session_address(env: Mapping[str, str]) -> str | None:
    """Where this user's bus listens; None: there is none. Looks at no file but the usual socket."""
    if given := env.get("DBUS_SESSION_BUS_ADDRESS"):
        return given
    usual = Path(env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / "bus"
    return f"unix:path={usual}" if usual.exists() else None


class Link:
    """See the module's text. ImportError from `connect` where PyGObject is missing; LinkError from all else."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._context: Any = None
        self._connection: Any = None
        self._ending = False

    def connect(self, within: float) -> None:
        """At most so many seconds."""
        from gi.repository import Gio, GLib

        self._context = GLib.MainContext.new()
        flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
        answers: list[Any] = []
        stop = Gio.Cancellable.new()
        make = Gio.DBusConnection.new_for_address
        with self._ours():
            make(self._address, flags, None, stop, lambda source, answer: answers.append(answer))
        if not self.wait(lambda: bool(answers), within):
            stop.cancel()
            self.wait(lambda: bool(answers), within)
            raise LinkError(LATE, "the bus does not answer")
        try:
            self._connection = Gio.DBusConnection.new_for_address_finish(answers[0])
        except GLib.Error as error:
            raise LinkError(ERROR + "NoServer", error.message) from None

    def close(self) -> None:
        """Nothing is heard afterwards."""
        from gi.repository import GLib

        connection, self._connection = self._connection, None
        if connection is not None:
            told: list[Any] = []
            handler = connection.connect("closed", lambda *_: told.append(True))
            with self._ours(), suppress(GLib.Error):  # it is closed already
                connection.close_sync(None)
                # What GLib's own thread has still to tell would keep this context, and its descriptor, for ever.
                self.wait(lambda: bool(told), CLOSE_WITHIN)
            connection.disconnect(handler)
        while self._context is not None and self._context.iteration(False):
            continue  # what is left to be told keeps the context
        self._context = None

    @property
    def closed(self) -> bool:
        """Has the bus gone?"""
        return self._connection is None or bool(self._connection.is_closed())

    # --- calls ------------------------------------------------------------------------------------------------

    def call(
        self, name: str, path: str, member: str, signature: str, *values: Any, within: float, start: bool = False
    ) -> tuple[Any, ...]:
        """What `member`, "interface.Method", answers within so many seconds. `start`: may the bus start a service?"""
        pending = self.begin(name, path, member, signature, *values, within=within, start=start)
        self.wait(lambda: pending.over)
        return pending.result()

    def begin(
        self,
        name: str,
        path: str,
        member: str,
        signature: str,
        *values: Any,
        within: float | None = None,
        start: bool = False,
        then: Callable[[], None] | None = None,
    ) -> Pending:
        """The same, without waiting. `within` None: as long as it takes; `then`: done after what came before the answer
        was told, and before what came after it."""
        from gi.repository import Gio, GLib

        if self._connection is None:
            raise LinkError(ERROR + "Disconnected", "there is no connection to the bus")
        interface, _, method = member.rpartition(".")
        flags = Gio.DBusCallFlags.NONE if start else Gio.DBusCallFlags.NO_AUTO_START
        milliseconds = ENDLESS if within is None else max(1, round(within * 1000))
        pending = Pending(self, then)
        with self._ours():
            self._connection.call(
                name, path, interface, method, GLib.Variant(signature, values), None, flags, milliseconds, None,
                pending.arrived,
            )  # fmt: skip
        return pending

    def finish(self, answer: Any) -> tuple[Any, ...]:
        """What an answer of GLib's holds."""
        from gi.repository import Gio, GLib

        try:
            return tuple(self._connection.call_finish(answer).unpack())
        except GLib.Error as error:
            name = Gio.DBusError.get_remote_error(error)
            if name is None:  # GLib's own
                own = {Gio.IOErrorEnum.TIMED_OUT: LATE, Gio.IOErrorEnum.CLOSED: ERROR + "Disconnected"}
                name = next((own[code] for code in own if error.matches(Gio.io_error_quark(), code)), ERROR + "Failed")
            raise LinkError(name, error.message.removeprefix(f"GDBus.Error:{name}: ")) from None

    def get(self, name: str, path: str, interface: str, key: str, within: float) -> Any:
        """A property."""
        return self.call(name, path, f"{PROPERTIES}.Get", "(ss)", interface, key, within=within)[0]

    # --- signals ----------------------------------------------------------------------------------------------

    @contextmanager
    def hearing(
        self, tell: Callable[[Signal], None], sender: str, member: str | None = None, first: str | None = None
    ) -> Iterator[None]:
        """Signals of `sender` are told while something waits. `member` as in `call`, None: all; `first` argument."""
        from gi.repository import Gio

        interface, _, method = (member or "").rpartition(".")

        def heard(connection: Any, sender: str, path: str, interface: str, name: str, values: Any, *_: Any) -> None:
            tell(Signal(sender, path, interface, name, tuple(values.unpack())))

        flags = Gio.DBusSignalFlags.NONE
        with self._ours():
            number = self._connection.signal_subscribe(
                sender, interface or None, method or None, None, first, flags, heard
            )
        try:
            yield
        finally:
            if self._connection is not None:
                self._connection.signal_unsubscribe(number)

    # --- waiting ----------------------------------------------------------------------------------------------

    def wait(self, until: Callable[[], bool], seconds: float | None = None) -> bool:
        """Until that is so; False: it was not, after so many seconds. KeyboardInterrupt when this program shall end."""
        from gi.repository import GLib

        deadline = None if seconds is None else time.monotonic() + seconds
        tick = GLib.timeout_source_new(TICK_MS if seconds is None else min(TICK_MS, max(1, round(seconds * 1000))))
        tick.set_callback(lambda *_: True)
        tick.attach(self._context)
        try:
            with self._endings():
                over = until()
                while not over and not self._ending and (deadline is None or time.monotonic() < deadline):
                    self._context.iteration(True)
                    over = until()
        finally:
            tick.destroy()
        if self._ending:
            raise KeyboardInterrupt
        return over

    @contextmanager
    def _endings(self) -> Iterator[None]:
        """Signals that end a program are noted, not raised: an exception inside a callback of GLib's is lost."""
        self._ending = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._ending = True

        wanted = [n for n in ENDINGS if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)]
        before = {number: signal.signal(number, note) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """What is begun in here is told in this link's context."""
        self._context.push_thread_default()
        try:
            yield
        finally:
            self._context.pop_thread_default()
