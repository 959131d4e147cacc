"""The current devices of this machine; publishes changes.

Scans at the start and after events have settled; without events no timer runs. Owns the current list. Must never know
models, and never block on a driver: scans run in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.devices.model import Device, lasting
from accelerd.devices.udev_events import PyudevMonitor, Uevent
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

SETTLE = 0.5  # s from the first event until the scan; adding or removing a GPU causes a dozen events
FIRST_SCAN = 2.0  # s that the start waits for the first scan
GOES = frozenset({"remove", "unbind"})
COMES = frozenset({"add", "bind"})


class DevicesChanged(Struct, frozen=True):
    """Devices came, went, changed or were reset. One that went and came back at once is in `removed` and in `added`."""

    before: tuple[Device, ...]
    after: tuple[Device, ...]
    added: tuple[Device, ...] = ()
    removed: tuple[Device, ...] = ()
    changed: tuple[Device, ...] = ()  # as they are now
    reset: tuple[Device, ...] = ()  # all that was on them is lost
    recovered: tuple[Device, ...] = ()  # were reset and say that they work again; what was on them may be lost

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.reset or self.recovered)


class DeviceWatch:
    """Tracks the devices. All methods run on the event loop."""

    def __init__(
        self,
        scan: Callable[[], Iterable[Device]],
        monitor: PyudevMonitor,
        events: EventStream,
        *,
        settle: float = SETTLE,
        first_scan: float = FIRST_SCAN,
    ) -> None:
        """`scan()` may block; it runs in a thread."""
        self._scan = scan
        self._monitor = monitor
        self._events = events
        self._settle = settle
        self._first_scan = first_scan
        self._devices: tuple[Device, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._gone: dict[str, None] = {}  # ids of devices for which a removal was reported
        self._wedged: dict[str, str] = {}  # id → WEDGED=
        self._closed = False
        self.degraded: str | None = None  # why changes are not detected

    def current(self) -> tuple[Device, ...]:
        return self._devices

    async def start(self) -> None:
        """Scans and starts receiving events. A scan that takes too long is published later, as a change."""
        try:
            self._monitor.open(self._heard, self._schedule)  # of lost events only a scan shows what has happened
        except (ImportError, OSError) as error:
            self.degraded = f"changes of devices are not detected: {error}"
            log.warning("%s", self.degraded)
        self._task = asyncio.create_task(self._look(first=True))
        done, _ = await asyncio.wait((self._task,), timeout=self._first_scan)
        if not done:
            log.warning("the device scan takes too long; accelerd starts without it")

    async def rescan(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._look())
        await asyncio.wait((self._task,))

    async def close(self) -> None:
        """Stops receiving events."""
        self._closed = True
        self._monitor.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    # --- events -----------------------------------------------------------------------------------------------

    def _heard(self, told: Uevent) -> None:
        device = self._device_of(told)
        if told.wedged is not None and device is not None:
            worst = self._wedged.get(device.id, "none")
            self._wedged[device.id] = told.wedged if worst == "none" else worst
        elif told.action in GOES:
            if device is not None and self._is_its_end(told, device):
                self._gone[device.id] = None
        elif told.action not in COMES and (device is None or told.node != device.node or told.node is None):
            return  # for example, a monitor was plugged in
        self._schedule()

    def _device_of(self, told: Uevent) -> Device | None:
        """The known device of an event, by path: a removed device has no other properties."""
        path = Path(told.path)
        own = [d for d in self._devices if d.directory is not None and path.is_relative_to(d.directory)]
        return max(own, key=lambda d: len(d.directory.parts) if d.directory else 0, default=None)

    @staticmethod
    def _is_its_end(told: Uevent, device: Device) -> bool:
        """Was its PCI function or node removed, and not something else below it?"""
        return told.path == str(device.directory) or (told.node is not None and told.node == device.node)

    # --- looking ----------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._settle, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._task is not None:
            self._schedule()  # the running scan may have seen only part of the change
            return
        self._task = asyncio.create_task(self._look())

    async def _look(self, *, first: bool = False) -> None:
        gone, self._gone = self._gone, {}
        wedged, self._wedged = self._wedged, {}
        try:
            found = await asyncio.to_thread(lambda: tuple(self._scan()))
        except Exception:  # a bug; keep the known devices
            log.exception("the device scan failed")
            found = tuple(d for d in self._devices if d.id not in gone)
        finally:
            self._task = None
        diff = compare(self._devices, found, gone, wedged)
        self._devices = found
        if first or not diff:
            return
        tell(diff)
        self._events.publish(diff)


def compare(
    before: tuple[Device, ...],
    after: tuple[Device, ...],
    gone: Iterable[str] = (),
    wedged: dict[str, str] | None = None,
) -> DevicesChanged:
    """Compares by id; the usage of pools is ignored."""
    old, new = {d.id: d for d in before}, {d.id: d for d in after}
    gone, wedged = set(gone), wedged or {}
    removed = tuple(d for d in before if d.id not in new or d.id in gone)
    went = {d.id for d in removed}
    stayed = [d for d in after if d.id in old and d.id not in went]
    return DevicesChanged(
        before=before,
        after=after,
        added=tuple(d for d in after if d.id not in old or d.id in went),
        removed=removed,
        changed=tuple(d for d in stayed if lasting(d) != lasting(old[d.id])),
        reset=tuple(d for d in stayed if wedged.get(d.id, "none") != "none"),
        recovered=tuple(d for d in stayed if wedged.get(d.id) == "none"),
    )


def tell(diff: DevicesChanged) -> None:
    for word, devices, level in (
        ("was removed", diff.removed, logging.WARNING),
        ("was added", diff.added, NOTICE),
        ("has changed", diff.changed, NOTICE),
        ("was reset", diff.reset, logging.WARNING),
        ("was reset and works again", diff.recovered, logging.WARNING),
    ):
        for device in devices:
            event(log, level, f"{device.kind} {device.name} ({device.id}) {word}", message_id=names.MSG_DEVICE)
