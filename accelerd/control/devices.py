"""GET /accelerd/v1/devices: what the devices are and do, and who uses them, as docs/devices.md describes it.

Looks when it is asked to, in a thread, one look at a time: a driver that does not answer holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from accelerd.base.errors import AccelError
from accelerd.control.http import looks
from accelerd.control.npu_usage import use_of
from accelerd.control.operations import Answer, Query
from accelerd.devices.model import Device
from accelerd.devices.observer import DeviceStatus
from accelerd.instances import Facts
from accelerd.scheduler.service import Scheduler

PATIENCE = 5.0  # s for a look


class Watch(Protocol):
    """The current list."""

    def current(self) -> tuple[Device, ...]: ...
    @property
    def degraded(self) -> str | None:
        """Why changes are not noticed."""
        ...

    async def rescan(self) -> None: ...


class Observer(Protocol):
    def look(self, devices: Sequence[Device]) -> list[DeviceStatus]:
        """Blocks."""
        ...


class ModelInfo(Protocol):
    def facts(self, instance: int) -> Facts | None: ...


def nobody(device: str) -> str | None:
    """Who has set a device's performance level: not known."""


class DeviceRoutes:
    """The route and what it needs."""

    def __init__(
        self,
        watch: Watch,
        observer: Observer,
        scheduler: Scheduler,
        insight: ModelInfo,
        owner: Callable[[str], str | None] = nobody,
    ) -> None:
        """`owner(device id)`: who has set its performance level."""
        self._watch = watch
        self._observer = observer
        self._scheduler = scheduler
        self._insight = insight
        self._owner = owner
        self._look: asyncio.Future[list[DeviceStatus]] | None = None
        self.answers: dict[str, Answer] = {"devices": self._devices}
        self.routes = looks(self.answers)

    async def _devices(self, query: Query) -> dict[str, Any]:
        if self._watch.degraded is not None:
            await self._watch.rescan()  # nobody else says when something has changed
        looks = await self._looks()
        models, snapshots = self._models(), self._scheduler.snapshots()
        found: list[dict[str, Any]] = []
        for look in looks:
            use = use_of(look.device, snapshots)
            told = {"npu": use.json()} if use is not None else {}
            found.append(look.json(models, self._owner(look.device.id)) | told)
        return {"devices": found, "degraded": self._watch.degraded}

    async def _looks(self) -> list[DeviceStatus]:
        """A look; who asks while one is under way gets that."""
        if self._look is None:
            self._look = asyncio.ensure_future(asyncio.to_thread(self._observer.look, self._watch.current()))
            self._look.add_done_callback(self._looked)
        try:
            return await asyncio.wait_for(asyncio.shield(self._look), PATIENCE)
        except TimeoutError:
            text = "a driver does not answer; see: sudo dmesg --level=err,warn"
            raise AccelError("internal", f"cannot read the devices: {text}") from None

    def _looked(self, look: asyncio.Future[list[DeviceStatus]]) -> None:
        self._look = None
        if not look.cancelled():
            look.exception()  # whoever asked has it, or has gone

    def _models(self) -> dict[int, str]:
        """Names by pid of the models' processes."""
        found = {}
        for snapshot in self._scheduler.snapshots():
            facts = self._insight.facts(snapshot.instance) if snapshot.instance is not None else None
            if facts is not None and facts.pid is not None:
                found[facts.pid] = snapshot.spec.name
        return found
