"""Device events from udev, sent after its rules have run: the interface between the watch and netlink.

The event loop waits on one descriptor. Must never decide what an event means.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from msgspec import Struct

log = logging.getLogger(__name__)

SUBSYSTEMS = ("drm", "accel", "pci")
AT_ONCE = 64  # events processed per iteration of the loop
MOST_FAILURES = 8  # consecutive failures after which the descriptor is given up


class Uevent(Struct, frozen=True):
    action: str  # add, remove, bind, unbind, change …
    path: str  # below /sys
    node: str | None = None
    wedged: str | None = None  # WEDGED=: how to recover; "none": already recovered


class PyudevMonitor:
    """udev, through pyudev, which may be missing."""

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        """`make()` returns a started pyudev.Monitor."""
        self._make = make or make_monitor
        self._monitor: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failures = 0

    def open(self, heard: Callable[[Uevent], None], lost: Callable[[], None]) -> None:
        """Starts on the running loop; calls `lost` when events were lost. ImportError or OSError if unavailable."""
        self._loop = asyncio.get_running_loop()
        self._monitor = self._make()
        self._loop.add_reader(self._monitor.fileno(), self._ready, heard, lost)

    def close(self) -> None:
        if self._monitor is not None and self._loop is not None:
            self._loop.remove_reader(self._monitor.fileno())
        self._monitor = None  # libudev closes the socket

    def _ready(self, heard: Callable[[Uevent], None], lost: Callable[[], None]) -> None:
        for _ in range(AT_ONCE):
            try:
                device = self._monitor.poll(timeout=0)
            except OSError as error:  # ENOBUFS: more events than the socket holds
                self._failed(error, lost)
                return
            self._failures = 0
            if device is None:
                return
            heard(uevent(device))

    def _failed(self, error: OSError, lost: Callable[[], None]) -> None:
        clear_error(self._monitor.fileno())
        self._failures += 1
        if self._failures >= MOST_FAILURES:
            log.warning("cannot receive device events any more: %s", error)
            self.close()
        lost()


def make_monitor() -> Any:
    """A started pyudev.Monitor for the subsystems of devices."""
    import pyudev

    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    for subsystem in SUBSYSTEMS:
        monitor.filter_by(subsystem)
    monitor.start()
    return monitor


def clear_error(descriptor: int) -> None:
    """Clears the error of an overflowed socket; otherwise the loop would wake up continuously."""
    try:
        with socket.socket(fileno=socket.dup(descriptor)) as copy:
            copy.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except OSError as error:
        log.debug("cannot read the error of the udev socket: %s", error)


def uevent(device: Any) -> Uevent:
    return Uevent(
        action=device.action or "",
        path=device.sys_path,
        node=device.device_node,
        wedged=device.properties.get("WEDGED"),
    )
