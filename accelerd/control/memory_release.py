"""Having models leave memory when a client asks for it: `evict` for a while, `yield` until `resume`.

Asks the scheduler for room and the Yielding for a yield; which models leave is the scheduler's choice. Tells who leaves
and who still works. A yield goes on when the client that asked for it has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Annotated, Final, Protocol

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.sizes import human_size
from accelerd.control.jobs import Job, Jobs
from accelerd.control.models import PROGRESS_EVERY
from accelerd.control.operations import NoArguments, Operation, Request, operation
from accelerd.devices.model import Device, first_gpu
from accelerd.memory.model import RAM
from accelerd.policy.yielding import YieldReport
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import LEAVING, State
from accelerd.scheduler.record import Snapshot
from accelerd.scheduler.service import Scheduler

WHY: Final = "a client asked for the memory"
ALL: Final = 1 << 62  # bytes
LONGEST: Final = 366 * 86400.0  # s

Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1, description="a number of bytes")]
Seconds = Annotated[
    float, msgspec.Meta(gt=0, le=LONGEST, description="a number of seconds, more than 0 and at most a year")
]


class EvictRequest(Request, frozen=True):
    bytes: Size = 0  # 0: all that idle models have
    device: str = ""  # an id; "": the first GPU, or main memory where there is none
    busy: bool = False  # may models that work leave, when their requests are finished?


class YieldRequest(Request, frozen=True, rename={"seconds": "for", "everything": "all"}):
    seconds: Seconds | None = None  # None: until `resume`
    now: bool = False  # requests are ended at once
    everything: bool = False  # main memory too


class LeavingModel(msgspec.Struct):
    model: str
    state: str
    leases: int


class LeaveProgress(msgspec.Struct, tag="progress", tag_field="event"):
    """The models that have still to leave."""

    elapsed: float
    models: list[LeavingModel]


class ModelSize(msgspec.Struct):
    model: str
    size: int


class PoolSize(msgspec.Struct):
    pool: str
    label: str
    size: int


class Evicted(msgspec.Struct, tag="evicted", tag_field="event"):
    """The models that have left a pool, and what they had of it."""

    pool: str
    models: list[ModelSize]
    elapsed: float


class Yielded(YieldReport, tag="yielded", tag_field="event", kw_only=True):
    """What was yielded. `stuck`: models whose processes cannot be ended."""

    freed: list[PoolSize]
    models: list[ModelSize]
    stuck: list[str]
    elapsed: float


class Resumed(msgspec.Struct, tag="resumed", tag_field="event", kw_only=True):
    """The memory is the models' again. `back`: those that are loaded again without being asked for."""

    resumed: bool = True  # False: nothing was given up
    what: str | None = None
    why: str | None = None
    back: list[str] = []
    elapsed: float = 0.0


class MemoryYielding(Protocol):
    """Who wants the memory."""

    async def ask(self, seconds: float | None = None, *, everything: bool = False, now: bool = False) -> None: ...
    async def resume(self) -> bool: ...
    @property
    def what(self) -> str:
        """What is given up, or would be: for people."""
        ...

    def concerns(self, pool: str) -> bool:
        """Is this pool given up?"""
        ...

    def report(self) -> YieldReport | None:
        """None while nothing is given up."""
        ...


class MemoryReleaseOperations:
    """What clients want models to give up."""

    def __init__(
        self, scheduler: Scheduler, yielding: MemoryYielding, devices: Callable[[], tuple[Device, ...]], jobs: Jobs
    ) -> None:
        self._scheduler = scheduler
        self._yielding = yielding
        self._devices = devices
        self._jobs = jobs

    def operations(self) -> list[Operation]:
        return [
            operation("job", "evict", self.evict, outcome=Evicted, progress=True),
            operation("job", "yield", self.yield_memory, outcome=Yielded | Resumed, progress=True),
            operation("job", "resume", self.resume, outcome=Resumed),
        ]

    # --- evict ------------------------------------------------------------------------------------------------

    async def evict(self, request: EvictRequest) -> Job:
        """Unload models of a pool of memory, the largest first. Refused as a whole or not at all."""
        pool = self._pool(request.device)
        there = sum(self._gain(snapshot, pool, busy=request.busy) for snapshot in self._scheduler.snapshots())
        if request.bytes > there:
            who = "models that may leave" if request.busy else "idle models that may leave"
            text = f"cannot free {human_size(request.bytes)}: the {who} have {human_size(there)} of it together"
            raise AccelError("does_not_fit", text)

        async def work(job: Job) -> Evicted:
            before = {snapshot.spec.name for snapshot in self._leaving()}
            self._scheduler.memory.make_room(pool, request.bytes or ALL, WHY, busy=request.busy)
            chosen = {snapshot.spec.name: _in_pool(snapshot, pool) for snapshot in self._leaving()}
            chosen = {name: held for name, held in chosen.items() if held or name not in before}
            while models := [s for s in self._leaving() if s.spec.name in chosen]:
                if all(map(_stuck, models)):
                    names = ", ".join(s.spec.name for s in models)
                    raise AccelError("model_stuck", f"a process of {names} cannot be ended; see: accelctl status")
                await _tell(job, models)
            return Evicted(pool, [ModelSize(name, size) for name, size in chosen.items()], job.elapsed)

        return self._jobs.start("evict", request.device, work)

    def _leaving(self) -> list[Snapshot]:
        return [snapshot for snapshot in self._scheduler.snapshots() if snapshot.state in LEAVING]

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
        return self._scheduler.memory.ledger().counted(snapshot.used or snapshot.held, pool)

    # --- yield and resume -------------------------------------------------------------------------------------

    async def yield_memory(self, request: YieldRequest) -> Job:
        """Give up the memory of the GPUs, or all memory, to other programs until `resume`."""

        async def work(job: Job) -> Yielded | Resumed:
            before = {s.spec.name: _sizes(s) for s in self._scheduler.snapshots() if s.held}
            await self._yielding.ask(request.seconds, everything=request.everything, now=request.now)
            concerned = {name: held for name, all in before.items() if (held := self._concerned(all))}
            while self._yielding.report() is not None:
                models = self._holding(concerned)
                if all(map(_stuck, models)):
                    break
                await _tell(job, models)
            return self._outcome(concerned, job)

        return self._jobs.start("yield", "", work)

    async def resume(self, request: NoArguments) -> Job:
        """End every yield, whoever asked for it."""

        async def work(job: Job) -> Resumed:
            report = self._yielding.report()
            back = [snapshot.spec.name for snapshot in self._scheduler.snapshots() if snapshot.displaced]
            resumed = await self._yielding.resume()
            what, why = (report.what, report.why) if report is not None else (None, None)
            return Resumed(resumed=resumed, what=what, why=why, back=back, elapsed=job.elapsed)

        return self._jobs.start("resume", "", work, cancellable=False)

    def _outcome(self, before: dict[str, dict[str, int]], job: Job) -> Yielded | Resumed:
        report = self._yielding.report()
        if report is None:  # somebody wanted the models back meanwhile, or the time is over
            return Resumed(elapsed=job.elapsed)
        models = self._holding(before)
        stays = {s.spec.name: self._concerned(_sizes(s)) for s in models}
        freed: dict[str, int] = {}
        for name, held in before.items():
            for pool, size in held.items():
                freed[pool] = freed.get(pool, 0) + max(0, size - stays.get(name, {}).get(pool, 0))
        pools = self._scheduler.memory.ledger().pools
        return Yielded(
            **msgspec.structs.asdict(report),
            freed=[PoolSize(id, pools[id].label if id in pools else id, size) for id, size in freed.items()],
            models=[ModelSize(name, sum(held.values())) for name, held in before.items()],
            stuck=[s.spec.name for s in models],
            elapsed=job.elapsed,
        )

    def _holding(self, names: Iterable[str]) -> list[Snapshot]:
        """Those of these models that still hold some of the memory."""
        wanted = set(names)
        return [s for s in self._scheduler.snapshots() if s.spec.name in wanted and self._concerned(_sizes(s))]

    def _concerned(self, held: dict[str, int]) -> dict[str, int]:
        """What lies in pools that are given up. A model only in main memory holds none of a GPU."""
        return {pool: size for pool, size in held.items() if size > 0 and self._yielding.concerns(pool)}


async def _tell(job: Job, models: Iterable[Snapshot]) -> None:
    """Who has still to leave; then wait a little."""
    job.report(phase="leaving")
    job.tell(LeaveProgress(job.elapsed, [LeavingModel(s.spec.name, s.state, s.leases) for s in models]))
    await asyncio.sleep(PROGRESS_EVERY)


def _sizes(snapshot: Snapshot) -> dict[str, int]:
    """What it takes, by pool: as it was seen, else as it was reserved."""
    return {pool: snapshot.used.get(pool) or size for pool, size in snapshot.held.items()}


def _in_pool(snapshot: Snapshot, pool: str) -> int:
    return snapshot.used.get(pool) or snapshot.held.get(pool, 0)


def _stuck(snapshot: Snapshot) -> bool:
    """Its end is not expected any more."""
    return snapshot.state is State.KILLING and snapshot.since > STUCK_AFTER
