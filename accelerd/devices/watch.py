"""The devices of this machine as they are now; publishes when that changes.

One scan at the start, one after events have settled; nothing in between: while nothing happens no timer runs. Owns the
current list. Must never know models, and never stop at a driver that does not answer: scans run in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from accelerd.base import names
from accelerd.base.events import EventStream
from accelerd.devices.model import Device
from accelerd.devices.monitor import Monitor, Uevent
from accelerd.system.records import NOTICE, event

log = logging.getLogger(__name__)

SETTLE = 0.5  # s from the first event until the scan: a GPU that goes or comes is a dozen events
FIRST_SCAN = 2.0  # s that a start waits for it
GOES = frozenset({"remove", "unbind"})
COMES = frozenset({"add", "bind"})


@dataclass(frozen=True)
class DevicesChanged:
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
    """See the module's text. All methods run on the event loop."""

    def __init__(
        self,
        scan: Callable[[], Iterable[Device]],
        monitor: Monitor,
        events: EventStream,
        *,
        settle: float = SETTLE,
        first_scan: float = FIRST_SCAN,
    ) -> None:
        """`scan()` blocks and runs in a thread."""
        self._scan = scan
        self._monitor = monitor
        self._events = events
        self._settle = settle
        self._first_scan = first_scan
        self._devices: tuple[Device, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._gone: dict[str, None] = {}  # ids of devices that events said go
        self._wedged: dict[str, str] = {}  # id → WEDGED=
        self._closed = False
        self.degraded: str | None = None  # why changes are not noticed

    def current(self) -> tuple[Device, ...]:
        """The devices as they are known now."""
        return self._devices

    async def start(self) -> None:
        """Have the list, and hear events from now on. A scan that takes too long is heard of later, as a change."""
        try:
            self._monitor.open(self._heard, self._lost)
        except (ImportError, OSError) as error:
            self.degraded = f"changes of devices are not noticed: {error}"
            log.warning("%s", self.degraded)
        self._task = asyncio.create_task(self._look(first=True))
        done, _ = await asyncio.wait((self._task,), timeout=self._first_scan)
        if not done:
            log.warning("the devices do not answer: accelerd starts without knowing them")

    async def rescan(self) -> None:
        """Look now, whatever the events say."""
        if self._task is None:
            self._task = asyncio.create_task(self._look())
        await asyncio.wait((self._task,))

    async def close(self) -> None:
        """Hear nothing any more."""
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
            return  # a monitor was plugged in; not: the permissions of a node have changed
        self._schedule(self._settle)

    def _lost(self) -> None:
        """Events were lost: only a scan can tell what has happened."""
        self._schedule(self._settle)

    def _device_of(self, told: Uevent) -> Device | None:
        """The known device that an event is about; by path, because what has gone tells no more than that."""
        path = Path(told.path)
        own = [d for d in self._devices if d.directory is not None and path.is_relative_to(d.directory)]
        return max(own, key=lambda d: len(d.directory.parts) if d.directory else 0, default=None)

    @staticmethod
    def _is_its_end(told: Uevent, device: Device) -> bool:
        """Its function or its node has gone; not one of many other things below it."""
        return told.path == str(device.directory) or (told.node is not None and told.node == device.node)

    # --- looking ----------------------------------------------------------------------------------------------

    def _schedule(self, delay: float) -> None:
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._task is not None:
            self._schedule(self._settle)  # one is under way that may have seen only half of it
            return
        self._task = asyncio.create_task(self._look())

    async def _look(self, *, first: bool = False) -> None:
        gone, self._gone = self._gone, {}
        wedged, self._wedged = self._wedged, {}
        try:
            found = tuple(await asyncio.to_thread(self._scan_all))
        except Exception:  # a bug, or a machine beyond belief: what was known stays
            log.exception("cannot look at the devices")
            found = tuple(d for d in self._devices if d.id not in gone)
        finally:
            self._task = None
        diff = compare(self._devices, found, gone, wedged)
        self._devices = found
        if first or not diff:
            return
        tell(diff)
        self._events.publish(diff)

    def _scan_all(self) -> list[Device]:
        return list(self._scan())


def compare(
    before: tuple[Device, ...],
    after: tuple[Device, ...],
    gone: Iterable[str] = (),
    wedged: dict[str, str] | None = None,
) -> DevicesChanged:
    """Identity is the id; how full a pool is makes no change."""
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
        changed=tuple(d for d in stayed if _lasting(d) != _lasting(old[d.id])),
        reset=tuple(d for d in stayed if wedged.get(d.id, "none") != "none"),
        recovered=tuple(d for d in stayed if wedged.get(d.id) == "none"),
    )


def _lasting(device: Device) -> Device:
    return replace(device, pools=tuple(replace(pool, used=None) for pool in device.pools))


def tell(diff: DevicesChanged) -> None:
    """The journal's part."""
    for word, devices, level in (
        ("has gone", diff.removed, logging.WARNING),
        ("is there", diff.added, NOTICE),
        ("has changed", diff.changed, NOTICE),
        ("was reset", diff.reset, logging.WARNING),
        ("was reset and works again", diff.recovered, logging.WARNING),
    ):
        for device in devices:
            event(log, level, f"{device.kind} {device.name} ({device.id}) {word}", message_id=names.MSG_DEVICE)
