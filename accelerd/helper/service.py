"""org.accelerd1.Helper on the system bus: checks who calls and whether polkit allows it, then changes the lease.

A lease ends with ReleaseLevel, with its caller's connection, or with the helper. Without leases the helper exits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gi.repository import Gio, GLib

from accelerd.base import names
from accelerd.helper.gpu import LevelError, check_arguments
from accelerd.helper.leases import LevelLeases

log = logging.getLogger(__name__)

RETRY_SECONDS = 5  # between attempts to restore a level
MOST_CALLS = 64  # waiting for polkit at the same time
BUS = "org.freedesktop.DBus"
POLKIT = "org.freedesktop.PolicyKit1"
CALL_TIMEOUT = 10_000  # ms
INTERFACE = f"""
<node><interface name="{names.HELPER_NAME}">
  <method name="SetLevel">
    <arg name="slot" type="s" direction="in"/><arg name="level" type="s" direction="in"/>
    <arg name="lease" type="u" direction="out"/>
  </method>
  <method name="ReleaseLevel"><arg name="lease" type="u" direction="in"/></method>
  <method name="ListLeases">
    <!-- lease, slot, level, level before, uid and pid of the holder -->
    <arg name="leases" type="a(usssuu)" direction="out"/>
  </method>
</interface></node>
"""


class HelperService:
    def __init__(
        self,
        connection: Gio.DBusConnection,
        leases: LevelLeases,
        limit: RateLimit,
        *,
        idle: int,
        end: Callable[[], None],
    ) -> None:
        """`end()` is called after `idle` seconds without leases."""
        self._connection = connection
        self._leases = leases
        self._limit = limit
        self._idle = idle
        self._end = end
        self._callers = HelperCallers(connection, self._caller_gone)
        self._calls: dict[str, int] = {}  # sender → calls in progress
        self._flooding: set[int] = set()
        self._idle_timer = self._retry_timer = 0

    def begin(self) -> None:
        """Serve. The caller requests the name afterwards, so that no call comes too early."""
        interface = Gio.DBusNodeInfo.new_for_xml(INTERFACE).interfaces[0]
        # register_object is deprecated since GLib 2.84, where this came
        register = getattr(self._connection, "register_object_with_closures2", None) or self._connection.register_object
        register(names.HELPER_PATH, interface, self._on_call, None, None)
        self._after()

    # --- calls ------------------------------------------------------------------------------------------------

    def _on_call(
        self, connection: Any, sender: str, path: str, interface: str, method: str, arguments: Any, call: Any
    ) -> None:
        values = arguments.unpack()
        if method == "SetLevel":
            self._on_set(sender, values[0], values[1], call)
        elif method == "ReleaseLevel":
            self._answer(call, lambda: self._release(sender, values[0]))
        else:
            self._answer(call, self._list)
        self._after()

    def _on_set(self, sender: str, slot: str, level: str, call: Any) -> None:
        if sum(self._calls.values()) >= MOST_CALLS:
            refuse(call, LevelError("RateLimited", "too many calls are in progress; try again later"))
            return
        self._calls[sender] = self._calls.get(sender, 0) + 1
        self._callers.watch(sender)

        def identified(uid: int | None, pid: int) -> None:
            try:
                known = self._check(uid, slot, level)
            except LevelError as error:
                self._done(sender, call, error)
            else:
                self._callers.authorize(sender, lambda allowed: decided(known, pid, allowed))

        def decided(uid: int, pid: int, allowed: bool) -> None:
            if allowed and self._callers.is_watched(sender):
                self._done(sender, call, lambda: self._set(sender, slot, level, uid, pid))
                return
            log.warning("uid %d (pid %d) may not set %s to %s", uid, pid, slot, level)
            text = f"polkit denies {names.HELPER_ACTION}; members of the group accelerd are allowed"
            self._done(sender, call, LevelError("NotAuthorized", text))

        self._callers.identify(sender, identified)

    def _check(self, uid: int | None, slot: str, level: str) -> int:
        if uid is None:
            raise LevelError("NotAuthorized", "the bus does not know your uid")
        if not self._limit.take(uid):
            if uid not in self._flooding:
                log.warning("uid %d calls too often and is refused until it calls less often", uid)
                self._flooding.add(uid)
            raise LevelError("RateLimited", "too many calls; at most one per second is allowed")
        self._flooding.discard(uid)
        check_arguments(slot, level)
        return uid

    def _set(self, sender: str, slot: str, level: str, uid: int, pid: int) -> Any:
        try:
            number = self._leases.set(slot, level, sender, uid, pid)
        except LevelError as error:
            log.warning("uid %d (pid %d) asked for %s at %s: %s", uid, pid, slot, level, error)
            raise
        log.info("uid %d (pid %d) has %s at %s", uid, pid, slot, level)
        return GLib.Variant("(u)", (number,))

    def _release(self, sender: str, number: int) -> None:
        self._leases.release(number, sender)
        self._tidy(sender)

    def _list(self) -> Any:
        rows = [
            (lease.number, lease.slot, held.level, held.before, lease.uid, lease.pid)
            for lease, held in self._leases.all()
        ]
        return GLib.Variant("(a(usssuu))", (rows,))

    # --- after calls ------------------------------------------------------------------------------------------

    def _done(self, sender: str, call: Any, outcome: LevelError | Callable[[], Any]) -> None:
        if isinstance(outcome, LevelError):
            refuse(call, outcome)
        else:
            self._answer(call, outcome)
        self._calls[sender] -= 1
        if not self._calls[sender]:
            del self._calls[sender]
        self._tidy(sender)
        self._after()

    def _answer(self, call: Any, work: Callable[[], Any]) -> None:
        try:
            call.return_value(work())
        except LevelError as error:
            refuse(call, error)
        except Exception as error:  # every call must be answered
            log.exception("internal error")
            refuse(call, LevelError("Failed", f"internal error: {type(error).__name__}"))

    def _caller_gone(self, sender: str) -> None:
        for lease in self._leases.forget(sender):
            log.info("uid %d (pid %d) has left the bus; its lease of %s ends", lease.uid, lease.pid, lease.slot)
        self._after()

    def _tidy(self, sender: str) -> None:
        holds = any(lease.owner == sender for lease, _ in self._leases.all())
        if not holds and sender not in self._calls:
            self._callers.unwatch(sender)

    def _after(self) -> None:
        """Start the timer that is needed now: to exit without leases, or to try again to restore a level."""
        if self._idle_timer:
            GLib.source_remove(self._idle_timer)
            self._idle_timer = 0
        if self._leases.unrestored:
            if not self._retry_timer:
                self._retry_timer = GLib.timeout_add_seconds(RETRY_SECONDS, self._retry)
        elif not self._leases.all() and not self._calls:
            self._idle_timer = GLib.timeout_add_seconds(self._idle, self._idle_over)

    def _retry(self) -> bool:
        self._retry_timer = 0
        self._leases.retry()
        self._after()
        return bool(GLib.SOURCE_REMOVE)

    def _idle_over(self) -> bool:
        self._idle_timer = 0
        self._end()
        return bool(GLib.SOURCE_REMOVE)


def refuse(call: Any, error: LevelError) -> None:
    call.return_dbus_error(names.HELPER_ERROR + error.code, error.message)


class HelperCallers:
    """Who calls: their identity, polkit's decision about them, and when they leave.

    Asks asynchronously; every callback is called exactly once, even if there is no answer.
    """

    def __init__(self, connection: Gio.DBusConnection, gone: Callable[[str], None]) -> None:
        """`gone(sender)`: a watched caller has left the bus."""
        self._connection = connection
        self._gone = gone
        self._watches: dict[str, int] = {}

    def watch(self, sender: str) -> None:
        """Report when it leaves, also if it has left already."""
        if sender not in self._watches:
            self._watches[sender] = Gio.bus_watch_name_on_connection(
                self._connection, sender, Gio.BusNameWatcherFlags.NONE, None, lambda _, name: self._vanished(name)
            )

    def unwatch(self, sender: str) -> None:
        watch = self._watches.pop(sender, None)
        if watch is not None:
            Gio.bus_unwatch_name(watch)

    def is_watched(self, sender: str) -> bool:
        """Is it still on the bus, as far as known?"""
        return sender in self._watches

    def identify(self, sender: str, done: Callable[[int | None, int], None]) -> None:
        """`done(uid, pid)`; without a uid if it is not known."""

        def answered(answer: Any) -> None:
            known = answer[0] if answer else {}
            uid = known.get("UnixUserID")
            done(uid if isinstance(uid, int) else None, int(known.get("ProcessID", 0)))

        arguments = GLib.Variant("(s)", (sender,))
        self._ask(BUS, "/org/freedesktop/DBus", BUS, "GetConnectionCredentials", arguments, answered)

    def authorize(self, sender: str, done: Callable[[bool], None]) -> None:
        """`done(allowed)`, by polkit, without a password prompt; not allowed if polkit does not answer."""
        subject = ("system-bus-name", {"name": GLib.Variant("s", sender)})
        arguments = GLib.Variant("((sa{sv})sa{ss}us)", (subject, names.HELPER_ACTION, {}, 0, ""))
        self._ask(
            POLKIT,
            "/org/freedesktop/PolicyKit1/Authority",
            f"{POLKIT}.Authority",
            "CheckAuthorization",
            arguments,
            lambda answer: done(bool(answer and answer[0][0])),
        )

    def _vanished(self, sender: str) -> None:
        self.unwatch(sender)
        self._gone(sender)

    def _ask(
        self, name: str, path: str, interface: str, method: str, arguments: Any, done: Callable[[Any], None]
    ) -> None:
        def finished(connection: Any, result: Any) -> None:
            try:
                answer = connection.call_finish(result).unpack()
            except GLib.Error:
                answer = None
            done(answer)

        flags = Gio.DBusCallFlags.NONE
        self._connection.call(name, path, interface, method, arguments, None, flags, CALL_TIMEOUT, None, finished)


class RateLimit:
    """`burst` calls at once, then `rate` per second, for each uid."""

    def __init__(self, clock: Callable[[], float], burst: int = 8, rate: float = 1.0) -> None:
        self._clock = clock
        self._burst = burst
        self._rate = rate
        self._buckets: dict[int, tuple[float, float]] = {}  # uid → tokens, and when there were so many

    def take(self, uid: int) -> bool:
        now = self._clock()
        tokens, then = self._buckets.get(uid, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1
        self._buckets[uid] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > 256:  # forget those that are full again
            full = self._burst / self._rate
            self._buckets = {who: seen for who, seen in self._buckets.items() if now - seen[1] < full}
        return allowed
