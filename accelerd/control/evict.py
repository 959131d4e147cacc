"""Has models leave a pool of memory when somebody asks for it, and tells who leaves. Refused as a whole or not at all.

Asks the scheduler for room; who leaves is its choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from accelerd.base.errors import AccelError
from accelerd.base.sizes import human_size
from accelerd.control.operations import PROGRESS_EVERY, Event, Events, Operation, Query, flag, number
from accelerd.devices.model import Device, first_gpu
from accelerd.memory.ledger import Ledger
from accelerd.memory.model import RAM
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import LEAVING, State
from accelerd.scheduler.record import Snapshot

WHY: Final = "somebody asked for the memory"
ALL: Final = 1 << 62  # bytes


class Models(Protocol):
    """The scheduler, as far as this room asks it."""

    def snapshots(self) -> list[Snapshot]: ...
    def ledger(self) -> Ledger: ...
    def make_room(self, pool: str, size: int, why: str, *, busy: bool) -> int:
        """Have models leave; bytes that will come back."""
        ...


class Evicting:
    """`operations` has "evict": `bytes` (0: all there is), `device` (an id; else the first GPU), `busy`."""

    def __init__(self, models: Models, devices: Callable[[], tuple[Device, ...]]) -> None:
        self._models = models
        self._devices = devices
        self.operations: dict[str, Operation] = {"evict": self._evict}

    async def _evict(self, query: Query) -> Events:
        size, busy, pool = self.check(query)
        before = {snapshot.spec.name for snapshot in self._models.snapshots() if snapshot.state in LEAVING}
        self._models.make_room(pool, size or ALL, WHY, busy=busy)
        chosen = {s.spec.name: _bytes(s, pool) for s in self._models.snapshots() if s.state in LEAVING}
        return self._leaving(pool, {name: held for name, held in chosen.items() if held or name not in before})

    def check(self, query: Query) -> tuple[int, bool, str]:
        """What is asked for. AccelError device_not_found, does_not_fit; nothing has happened then."""
        size, busy = number(query, "bytes", 0, digits=19), flag(query, "busy")
        pool = self._pool(query.get("device", ""))
        there = sum(self._gain(snapshot, pool, busy=busy) for snapshot in self._models.snapshots())
        if size > there:
            who = "models that may leave" if busy else "idle models that may leave"
            raise AccelError(
                "does_not_fit", f"cannot free {human_size(size)}: the {who} have {human_size(there)} of it together"
            )
        return size, busy, pool

    def _pool(self, device: str) -> str:
        devices = self._devices()
        found = first_gpu(devices) if not device else next((d for d in devices if d.id == device), None)
        if found is None and device:
            raise AccelError("device_not_found", f"there is no device {device[:60]!r}", param="device")
        return RAM if found is None or found.kind == "cpu" else found.id

    def _gain(self, snapshot: Snapshot, pool: str, *, busy: bool) -> int:
        """Bytes of the pool that come back when it leaves; 0: it stays."""
        working = snapshot.leases or snapshot.queue
        leaves = snapshot.state is State.READY and not snapshot.unevictable and (busy or not working)
        if not leaves and snapshot.state not in LEAVING:
            return 0
        return self._models.ledger().counted(snapshot.used or snapshot.held, pool)

    async def _leaving(self, pool: str, chosen: dict[str, int]) -> Events:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while models := [s for s in self._models.snapshots() if s.spec.name in chosen and s.state in LEAVING]:
            if all(s.state is State.KILLING and s.since > STUCK_AFTER for s in models):
                names = ", ".join(s.spec.name for s in models)
                raise AccelError("model_stuck", f"a process of {names} cannot be ended; see: accelctl status")
            told = [{"model": s.spec.name, "state": s.state, "leases": s.leases} for s in models]
            yield {"event": "progress", "elapsed": loop.time() - began, "models": told}
            await asyncio.sleep(PROGRESS_EVERY)
        freed: list[Event] = [{"model": name, "size": size} for name, size in chosen.items()]
        yield {"event": "evicted", "pool": pool, "models": freed, "elapsed": loop.time() - began}


def _bytes(snapshot: Snapshot, pool: str) -> int:
    """What it takes of the pool: as it was seen, else as it was reserved."""
    return snapshot.used.get(pool) or snapshot.held.get(pool, 0)
