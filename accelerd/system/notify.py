"""What accelerd tells the service manager (sd_notify) and the watchdog that is fed only while accelerd truly works.

Owns NOTIFY_SOCKET and WATCHDOG_*: read once at start and taken out of the environment, so that no child can speak in
the daemon's name. Must never block the event loop and never fail because systemd is missing or wedged.
"""

from __future__ import annotations

import asyncio
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import sdnotify

from accelerd.base.ports import Clock, SystemClock

log = logging.getLogger(__name__)

NOTIFY_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
PATIENCE: Final = 0.5  # seconds that one life-cycle message may wait for a service manager with a full queue
REPEATED: Final = ("STATUS=", "WATCHDOG=")  # said again soon: not worth a wait, which would stop the whole event loop
STATUS_LIMIT: Final = 500  # characters; systemctl shows one line


class Transport(Protocol):
    """Where messages go: sdnotify's connection, or a list in a test."""

    def notify(self, state: str) -> None:
        """Raises OSError if the message was not taken."""
        ...


class SdTransport:
    """sdnotify's connection, with UTF-8 text and a bounded wait instead of latin-1 and an endless one."""

    def __init__(self) -> None:
        """Connect to $NOTIFY_SOCKET; raises OSError if nobody listens there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # sdnotify drops its socket unclosed when connect fails
            self._notifier = sdnotify.SystemdNotifier(debug=True)

    def notify(self, state: str) -> None:
        self._notifier.socket.settimeout(0 if state.startswith(REPEATED) else PATIENCE)
        # sdnotify encodes as latin-1: hand it the UTF-8 bytes as latin-1 characters.
        self._notifier.notify(state.encode().decode("latin-1"))

    def close(self) -> None:
        self._notifier.socket.close()


class Notifier:
    """sd_notify for one daemon. Without a service manager every call is accepted and does nothing."""

    def __init__(
        self, transport: Transport | None, *, watchdog_interval: float | None = None, clock: Clock | None = None
    ) -> None:
        """`watchdog_interval`: seconds within which the service manager wants a sign of life; None: it does not."""
        self._transport = transport
        self._clock = clock or SystemClock()
        self._status = ""
        self._failed = False
        self.watchdog_interval = watchdog_interval if transport is not None else None

    @classmethod
    def from_env(cls) -> Notifier:
        """The notifier that the process environment asks for; the variables are removed from it."""
        transport: SdTransport | None = None
        interval = _watchdog_interval(os.environ)
        address = os.environ.get("NOTIFY_SOCKET")
        if address:
            try:
                transport = SdTransport()
            except OSError as error:
                log.warning("cannot reach the service manager at %s: %s", address, error)
        for name in NOTIFY_VARIABLES:
            os.environ.pop(name, None)
        return cls(transport, watchdog_interval=interval)

    @property
    def active(self) -> bool:
        """Is anybody listening?"""
        return self._transport is not None

    def ready(self, status: str | None = None) -> bool:
        """Start-up or reload is done; requests are answered."""
        return self._send("READY=1", *self._status_line(status))

    def reloading(self) -> bool:
        """A reload begins; `ready` must follow, also after a failed one."""
        microseconds = int(self._clock.monotonic() * 1_000_000)
        return self._send("RELOADING=1", f"MONOTONIC_USEC={microseconds}")

    def stopping(self, status: str | None = None) -> bool:
        """Shutdown begins."""
        return self._send("STOPPING=1", *self._status_line(status))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`; sent only when it changed."""
        line = self._status_line(text)
        return self._send(*line) if line else True

    def extend_timeout(self, seconds: float) -> bool:
        """Ask for `seconds` from now on for the start, reload or stop that is going on."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(1, int(seconds * 1_000_000))}")

    def alive(self) -> bool:
        """One sign of life for the watchdog."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        """Nothing is sent any more."""
        if isinstance(self._transport, SdTransport):
            self._transport.close()
        self._transport = None

    def _status_line(self, text: str | None) -> tuple[str, ...]:
        if text is None:
            return ()
        line = " ".join(text.split())[:STATUS_LIMIT]  # a newline would begin another assignment
        if line == self._status:
            return ()
        self._status = line
        return (f"STATUS={line}",)

    def _send(self, *assignments: str) -> bool:
        if self._transport is None:
            return False
        try:
            self._transport.notify("\n".join(assignments))
        except OSError as error:
            if not self._failed:  # once: a wedged service manager must not fill the journal
                log.warning("cannot notify the service manager: %s", error)
            self._failed = True
            self._status = ""  # whatever was lost is said again with the next change
            return False
        self._failed = False
        return True


class Watchdog:
    """Feeds the service manager's watchdog from the event loop while every registered part is alive.

    A hung loop feeds nothing, a dead critical task feeds nothing: systemd then restarts the service. Without a watchdog
    there is no timer at all.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._parts: dict[str, Callable[[], bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._starving: tuple[str, ...] = ()

    def register(self, name: str, is_alive: Callable[[], bool]) -> None:
        """`is_alive` is asked on the loop at every feeding; it must return at once."""
        self._parts[name] = is_alive

    def start(self) -> None:
        """Feed now and then at half the interval. Call on the event loop."""
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
                "no sign of life from %s: the watchdog is not fed, the service manager restarts accelerd "
                "within %g s unless it recovers",
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
