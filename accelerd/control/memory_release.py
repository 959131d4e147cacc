"""Having models leave memory when a client asks for it: `evict` for a while, `yield` until `resume`.

Asks the scheduler for room and the Yielding for a yield; which models leave is the scheduler's choice. Tells who leaves
and who still works. A yield goes on when the client that asked for it has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.sizes import human_size
from accelerd.control.jobs import PROGRESS_EVERY, Job
from accelerd.control.operations import NoArguments, Request, operation
from accelerd.control.parts import ControlParts
from accelerd.devices.model import first_gpu
from accelerd.memory.model import RAM
from accelerd.policy.yielding import YieldReport
from accelerd.scheduler.exit_handling import STUCK_AFTER
from accelerd.scheduler.lifecycle import LEAVING, State
from accelerd.scheduler.record import Snapshot

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


@operation("job", "evict", outcome=Evicted, progress=True)
async def evict(parts: ControlParts, request: EvictRequest) -> Job:
    """Unload models of a pool of memory, the largest first. Refused as a whole or not at all."""
    pool = _pool(parts, request.device)
    there = sum(_gain(parts, snapshot, pool, busy=request.busy) for snapshot in parts.scheduler.snapshots())
    if request.bytes > there:
        who = "models that may leave" if request.busy else "idle models that may leave"
        text = f"cannot free {human_size(request.bytes)}: the {who} have {human_size(there)} of it together"
        raise AccelError("does_not_fit", text)

    async def work(job: Job) -> Evicted:
        before = {snapshot.spec.name for snapshot in _leaving(parts)}
        parts.scheduler.memory.make_room(pool, request.bytes or ALL, WHY, busy=request.busy)
        chosen = {snapshot.spec.name: _in_pool(snapshot, pool) for snapshot in _leaving(parts)}
        chosen = {name: held for name, held in chosen.items() if held or name not in before}
        while models := [s for s in _leaving(parts) if s.spec.name in chosen]:
            if all(map(_stuck, models)):
                names = ", ".join(s.spec.name for s in models)
                raise AccelError("model_stuck", f"a process of {names} cannot be ended; see: accelctl status")
            await _tell(job, models)
        return Evicted(pool, [ModelSize(name, size) for name, size in chosen.items()], job.elapsed)

    return parts.jobs.start("evict", request.device, work)


def _leaving(parts: ControlParts) -> list[Snapshot]:
    return [snapshot for snapshot in parts.scheduler.snapshots() if snapshot.state in LEAVING]


def _pool(parts: ControlParts, device: str) -> str:
    devices = parts.devices.current()
    found = first_gpu(devices) if not device else next((d for d in devices if d.id == device), None)
    if found is None and device:
        raise AccelError("device_not_found", f"there is no device {device[:60]!r}", param="device")
    return RAM if found is None or found.kind == "cpu" else found.id


def _gain(parts: ControlParts, snapshot: Snapshot, pool: str, *, busy: bool) -> int:
    """Bytes of the pool that come back when it leaves; 0: it stays."""
    working = snapshot.leases or snapshot.queue
    leaves = snapshot.state in (State.READY, State.ASLEEP) and not snapshot.unevictable and (busy or not working)
    if not leaves and snapshot.state not in LEAVING:
        return 0
    return parts.scheduler.memory.ledger().counted(snapshot.used or snapshot.held, pool)


@operation("job", "yield", outcome=Yielded | Resumed, progress=True)
async def yield_memory(parts: ControlParts, request: YieldRequest) -> Job:
    """Give up the memory of the GPUs, or all memory, to other programs until `resume`."""

    async def work(job: Job) -> Yielded | Resumed:
        before = {s.spec.name: _sizes(s) for s in parts.scheduler.snapshots() if s.held}
        await parts.yielding.ask(request.seconds, everything=request.everything, now=request.now)
        concerned = {name: held for name, all in before.items() if (held := _concerned(parts, all))}
        while parts.yielding.report() is not None:
            models = _holding(parts, concerned)
            if all(map(_stuck, models)):
                break
            await _tell(job, models)
        return _outcome(parts, concerned, job)

    return parts.jobs.start("yield", "", work)


@operation("job", "resume", outcome=Resumed)
async def resume(parts: ControlParts, request: NoArguments) -> Job:
    """End every yield, whoever asked for it."""

    async def work(job: Job) -> Resumed:
        report = parts.yielding.report()
        back = [snapshot.spec.name for snapshot in parts.scheduler.snapshots() if snapshot.displaced]
        resumed = await parts.yielding.resume()
        what, why = (report.what, report.why) if report is not None else (None, None)
        return Resumed(resumed=resumed, what=what, why=why, back=back, elapsed=job.elapsed)

    return parts.jobs.start("resume", "", work, cancellable=False)


def _outcome(parts: ControlParts, before: dict[str, dict[str, int]], job: Job) -> Yielded | Resumed:
    report = parts.yielding.report()
    if report is None:  # somebody wanted the models back meanwhile, or the time is over
        return Resumed(elapsed=job.elapsed)
    models = _holding(parts, before)
    stays = {s.spec.name: _concerned(parts, _sizes(s)) for s in models}
    freed: dict[str, int] = {}
    for name, held in before.items():
        for pool, size in held.items():
            freed[pool] = freed.get(pool, 0) + max(0, size - stays.get(name, {}).get(pool, 0))
    pools = parts.scheduler.memory.ledger().pools
    return Yielded(
        **msgspec.structs.asdict(report),
        freed=[PoolSize(id, pools[id].label if id in pools else id, size) for id, size in freed.items()],
        models=[ModelSize(name, sum(held.values())) for name, held in before.items()],
        stuck=[s.spec.name for s in models],
        elapsed=job.elapsed,
    )


def _holding(parts: ControlParts, names: Iterable[str]) -> list[Snapshot]:
    """Those of these models that still hold some of the memory."""
    wanted = set(names)
    return [s for s in parts.scheduler.snapshots() if s.spec.name in wanted and _concerned(parts, _sizes(s))]


def _concerned(parts: ControlParts, held: dict[str, int]) -> dict[str, int]:
    """What lies in pools that are given up. A model only in main memory holds none of a GPU."""
    return {pool: size for pool, size in held.items() if size > 0 and parts.yielding.concerns(pool)}


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
