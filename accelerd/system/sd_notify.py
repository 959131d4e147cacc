"""sd_notify, and the systemd watchdog, which is only fed while accelerd works.

NOTIFY_SOCKET and WATCHDOG_* are read once at start and removed from the environment, so that no child process can send
notifications. Must never block the event loop, and never fail because systemd is missing or hangs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import sdnotify

from accelerd.base.ports import Clock, SystemClock

log = logging.getLogger(__name__)

NOTIFY_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
SEND_TIMEOUT: Final = 0.5  # s for one life-cycle message, if the service manager's queue is full
REPEATED: Final = ("STATUS=", "WATCHDOG=")  # sent again soon: not worth blocking the event loop
STATUS_LIMIT: Final = 500  # characters; systemctl shows one line


class SdTransport:
    """sdnotify's connection, with UTF-8 instead of latin-1, a timeout, and descriptors for systemd to keep."""

    def __init__(self, address: str) -> None:
        """`address`: $NOTIFY_SOCKET, which is gone afterwards. OSError if nobody listens on it."""
        os.environ["NOTIFY_SOCKET"] = address  # where sdnotify looks
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # of its socket, if it cannot connect
                self._notifier = sdnotify.SystemdNotifier(debug=True)
        finally:
            del os.environ["NOTIFY_SOCKET"]

    def notify(self, state: str, *descriptors: int) -> None:
        """OSError if the message was not accepted."""
        self._notifier.socket.settimeout(0 if state.startswith(REPEATED) else SEND_TIMEOUT)
        if descriptors:
            socket.send_fds(self._notifier.socket, [state.encode()], descriptors)
        else:
            # sdnotify encodes as latin-1: hand it the UTF-8 bytes as latin-1 characters.
            self._notifier.notify(state.encode().decode("latin-1"))

    def close(self) -> None:
        self._notifier.socket.close()


class Notifier:
    """sd_notify. Without a service manager every call does nothing."""

    def __init__(
        self, transport: SdTransport | None, *, watchdog_interval: float | None = None, clock: Clock | None = None
    ) -> None:
        """`watchdog_interval`: WATCHDOG_USEC in seconds; None: no watchdog."""
        self._transport = transport
        self._clock = clock or SystemClock()
        self._status = ""
        self._failed = False
        self.watchdog_interval = watchdog_interval if transport is not None else None

    @classmethod
    def from_env(cls) -> Notifier:
        """As the environment says; the variables are removed from it."""
        transport: SdTransport | None = None
        interval = _watchdog_interval(os.environ)
        address = os.environ.get("NOTIFY_SOCKET")
        if address:
            try:
                transport = SdTransport(address)
            except OSError as error:
                log.warning("cannot reach the service manager at %s: %s", address, error)
        for name in NOTIFY_VARIABLES:
            os.environ.pop(name, None)
        return cls(transport, watchdog_interval=interval)

    @property
    def active(self) -> bool:
        return self._transport is not None

    def ready(self, status: str | None = None) -> bool:
        """Start-up or reload has ended."""
        return self._send("READY=1", *self._status_line(status))

    def reloading(self) -> bool:
        """A reload begins; `ready` must follow, even if it fails."""
        microseconds = int(self._clock.monotonic() * 1_000_000)
        return self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}")

    def stopping(self, status: str | None = None) -> bool:
        return self._send("STOPPING=1", *self._status_line(status))

    def extend(self, seconds: float) -> bool:
        """The stop may take so long from now on, whatever TimeoutStopSec= says."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def store(self, name: str, *descriptors: int, until_closed: bool = False) -> bool:
        """Keep them open over restarts; the next process gets them like those of a socket unit.

        `until_closed`: but not when the other side has closed. Whether there is room for them only the manager knows.
        """
        poll = () if until_closed else ("FDPOLL=0",)
        return self._send("FDSTORE=1", f"FDNAME={name}", *poll, descriptors=descriptors)

    def remove_stored(self, name: str) -> bool:
        return self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`; sent only if it changed."""
        line = self._status_line(text)
        return self._send(*line) if line else True

    def alive(self) -> bool:
        """Feed the watchdog."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._transport = None

    def _status_line(self, text: str | None) -> tuple[str, ...]:
        if text is None:
            return ()
        line = " ".join(text.split())[:STATUS_LIMIT]  # a newline would start another assignment
        if line == self._status:
            return ()
        self._status = line
        return (f"STATUS={line}",)

    def _send(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        if self._transport is None:
            return False
        try:
            self._transport.notify("\n".join(assignments), *descriptors)
        except OSError as error:
            if not self._failed:  # once: a service manager that hangs must not fill the journal
                log.warning("cannot notify the service manager: %s", error)
            self._failed = True
            self._status = ""  # send it again with the next change
            return False
        self._failed = False
        return True


class Watchdog:
    """Feeds the service manager's watchdog from the event loop while every registered part is alive.

    If the loop hangs or a critical task has ended the watchdog is not fed, and systemd restarts the service. Without a
    watchdog there is no timer.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._parts: dict[str, Callable[[], bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._starving: tuple[str, ...] = ()

    def register(self, name: str, is_alive: Callable[[], bool]) -> None:
        """`is_alive()` is called on the loop before every feeding; it must return at once."""
        self._parts[name] = is_alive

    def start(self) -> None:
        """Feed now, and then at half the interval. Called on the event loop."""
        if self._notifier.watchdog_interval is not None and self._timer is None:
            self._feed()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def running(self) -> bool:
        return self._timer is not None

    def dead(self) -> tuple[str, ...]:
        """The names of the registered parts that are not alive right now."""
        return tuple(name for name, is_alive in self._parts.items() if not _alive(name, is_alive))

    def _feed(self) -> None:
        interval = self._notifier.watchdog_interval
        assert interval is not None
        dead = self.dead()
        if not dead:
            self._notifier.alive()
        elif dead != self._starving:
            log.critical(
                "not alive: %s; the watchdog is not fed, and the service manager restarts accelerd within %g s "
                "unless this changes",
                ", ".join(dead),
                interval,
            )
        self._starving = dead
        self._timer = asyncio.get_running_loop().call_later(interval / 2, self._feed)


def _alive(name: str, is_alive: Callable[[], bool]) -> bool:
    try:
        return bool(is_alive())
    except Exception:
        log.exception("cannot ask %s whether it is alive", name)
        return False


def _watchdog_interval(env: Mapping[str, str]) -> float | None:
    """Seconds from WATCHDOG_USEC if it is meant for this process."""
    pid = env.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None
    text = env.get("WATCHDOG_USEC", "")
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        log.warning("cannot read WATCHDOG_USEC=%r: the watchdog is off", text)
        return None
    return int(text) / 1_000_000
