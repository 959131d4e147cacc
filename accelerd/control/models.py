"""Loading, unloading, measuring and keeping models.

Owns the jobs of models and the events that they tell. Asks the scheduler, which decides; never touches a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Annotated, Final

import msgspec

from accelerd.base.errors import AccelError
from accelerd.control.jobs import UNKNOWN, Job, while_waiting
from accelerd.control.operations import Request, operation
from accelerd.control.parts import ControlParts
from accelerd.control.tuning_runs import TuneDone, TuneProgress
from accelerd.memory.model import RAM
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import DownloadProgress, Snapshot
from accelerd.supervise.supervisor import InstanceProgress

WAITING: Final = frozenset({"queued", State.STOPPED, State.BACKOFF})  # of a model that somebody waits to be loaded
ALMOST: Final = 0.99  # of a load's progress: everything is there, but it has not said that it is ready
DOTS: Final = 100  # that an older llama.cpp prints on one line while it reads a model; newer ones print nothing


class LoadRequest(Request, frozen=True):
    model: str
    allow_evict: bool = True  # may idle models leave for it?


class UnloadRequest(Request, frozen=True):
    model: str
    force: bool = False  # end its requests instead of waiting for them


class ResetRequest(Request, frozen=True):
    """One of the two."""

    model: str | None = None
    all: bool = False


class TuneRequest(Request, frozen=True):
    model: str
    quick: bool = False  # fewer measurements
    force: bool = False  # although other models work


Cookie = Annotated[int, msgspec.Meta(ge=1, description="a number that pin or hold has answered with")]


class ClaimRequest(Request, frozen=True):
    model: str
    reason: str  # for people
    application_id: str = ""  # of the client's desktop file, without ".desktop"


class UnpinRequest(Request, frozen=True):
    cookie: Cookie


class LoadProgress(msgspec.Struct, tag="progress", tag_field="event"):
    """A load or an unload under way. Seconds and bytes; None: not known."""

    state: str  # of the model, or "queued"
    elapsed: float
    expected: float | None  # what the last load took, while it is loaded
    memory: int | None
    memory_expected: int | None
    progress: float | None  # 0 to 1
    line: str  # the last that the engine printed
    download: DownloadProgress | None = None  # while its files are downloaded


class Ready(msgspec.Struct, tag="ready", tag_field="event"):
    """`memory_used`: bytes in use after the load, in all pools together; None: it cannot be measured."""

    model: str
    elapsed: float
    memory_used: int | None


class Stopped(msgspec.Struct, tag="stopped", tag_field="event"):
    model: str
    elapsed: float


class ModelState(msgspec.Struct):
    """The state that a model has now; "" where all models were meant."""

    state: str


class Claimed(msgspec.Struct, tag="claimed", tag_field="event"):
    """The model is kept, until `unpin` or until the client goes."""

    model: str
    cookie: int


class Released(msgspec.Struct):
    """The model is not kept any more for this client."""

    cookie: int


@operation("job", "load", outcome=Ready, progress=True)
async def load(parts: ControlParts, request: LoadRequest) -> Job:
    """Load a model. Joins a load of it that is under way."""
    name = parts.find(request.model).spec.name

    async def work(job: Job) -> Ready:
        try:
            await _watched(parts, job, name, parts.scheduler.load(name, evict=request.allow_evict))
        except asyncio.CancelledError:
            if job.canceled:
                parts.scheduler.holds.abandon(name, "the load was canceled")
            raise
        elapsed = job.elapsed
        await parts.memory.look()
        return Ready(name, elapsed, parts.scheduler.snapshot(name).memory_used)

    return parts.jobs.start("load", name, work, key=f"load {name}")


@operation("job", "unload", outcome=Stopped, progress=True)
async def unload(parts: ControlParts, request: UnloadRequest) -> Job:
    """Unload a model, and wait until its memory is back. A load of it that is under way ends as superseded."""
    snapshot = parts.find(request.model)
    name = snapshot.spec.name

    async def work(job: Job) -> Stopped:
        await _watched(parts, job, name, parts.scheduler.unload(name, force=request.force))
        if snapshot.spec.elsewhere:
            await parts.remotes.unload(snapshot.spec)
        return Stopped(name, job.elapsed)

    return parts.jobs.start("unload", name, work, key=f"unload {request.force} {name}")


@operation("job", "tune", outcome=TuneDone, progress=True)
async def tune(parts: ControlParts, request: TuneRequest) -> Job:
    """Measure a model in several ways of running it. Writes no configuration."""
    name = parts.find(request.model).spec.name

    async def work(job: Job) -> TuneDone:
        def tell(event: TuneProgress) -> None:
            event.elapsed = job.elapsed
            job.report(phase=event.phase or None)
            job.tell(event)

        run = parts.tuning_runs.run(name, quick=request.quick, force=request.force, tell=tell)
        done: TuneDone = await while_waiting(run, lambda: job.tell(TuneProgress(elapsed=job.elapsed)))
        done.elapsed = job.elapsed
        return done

    return parts.jobs.start("tune", name, work)


@operation("action", "reset")
async def reset(parts: ControlParts, request: ResetRequest) -> ModelState:
    """Forget the failures of a model, or of all models: they may be started again."""
    if request.all == (request.model is not None):
        raise AccelError("bad_request", "give one of the arguments model and all", param="model")
    if request.model is None:
        for snapshot in parts.scheduler.snapshots():
            parts.scheduler.reset(snapshot.spec.name, memory=True)
        return ModelState("")
    name = parts.find(request.model).spec.name
    parts.scheduler.reset(name, memory=True)
    return ModelState(parts.scheduler.snapshot(name).state)


@operation("claim", "pin")
async def pin(parts: ControlParts, request: ClaimRequest, owner: str) -> Claimed:
    """Load a model and keep it loaded until the claim ends."""
    return _claim(parts, request, owner, hold=False)


@operation("claim", "hold")
async def hold(parts: ControlParts, request: ClaimRequest, owner: str) -> Claimed:
    """Keep a model loaded once it is, until the claim ends. Loads nothing."""
    return _claim(parts, request, owner, hold=True)


@operation("action", "unpin")
async def unpin(parts: ControlParts, request: UnpinRequest, owner: str) -> Released:
    """End a claim of this client before the client goes."""
    parts.pins.unpin(request.cookie, owner)
    return Released(request.cookie)


def _claim(parts: ControlParts, request: ClaimRequest, owner: str, *, hold: bool) -> Claimed:
    name = parts.find(request.model).spec.name
    return Claimed(name, parts.pins.pin(name, request.reason, request.application_id, owner, hold=hold))


async def _watched(parts: ControlParts, job: Job, name: str, work: Awaitable[None]) -> None:
    """Do what changes the state of a model, telling its progress."""

    def tell() -> None:
        event = _progress(parts, name, job.elapsed)
        share = event.progress if job.kind == "load" and event.download is None else None
        job.report(progress=share, phase=event.state, waiting=job.kind == "load" and event.state in WAITING)
        job.tell(event)

    await while_waiting(work, tell)


def _progress(parts: ControlParts, name: str, elapsed: float) -> LoadProgress:
    snapshot = parts.scheduler.snapshot(name)
    seen = parts.supervisor.progress(snapshot.instance) if snapshot.instance is not None else None
    share = load_progress(snapshot, seen)
    queued = snapshot.instance is None and snapshot.queue and snapshot.state is not State.DOWNLOADING
    if (under_way := snapshot.download) is not None and under_way.total:
        share = under_way.bytes / under_way.total
    return LoadProgress(
        state="queued" if queued else snapshot.state,
        elapsed=elapsed,
        expected=parts.model_info.load_seconds(snapshot.spec) if snapshot.state is State.STARTING else None,
        memory=loaded_bytes(snapshot, seen) if snapshot.state is State.STARTING else None,
        memory_expected=snapshot.memory - snapshot.need.cache or None,  # the cache fills later
        progress=share if share >= 0 else None,
        line=seen.line if seen else "",
        download=snapshot.download,
    )


def load_progress(snapshot: Snapshot, progress: InstanceProgress | None, before: float = UNKNOWN) -> float:
    """0 to 1, never less than `before`; UNKNOWN while nothing can be said.

    Expected are the bytes of `snapshot.need`. Weights count when they have been read or mapped: a driver may set aside
    all the memory at once, long before anything is in it. What is needed beside the weights counts when it is resident.
    """
    if snapshot.state is State.READY:
        return 1.0
    if snapshot.state is not State.STARTING or snapshot.memory <= snapshot.need.cache:
        return before
    found = _part(snapshot, progress)
    return before if found is None else max(before, min(ALMOST, found))


def _part(snapshot: Snapshot, progress: InstanceProgress | None) -> float | None:
    total = snapshot.memory - snapshot.need.cache  # which fills later
    parts = snapshot.need.parts
    weights = min(total, parts.get("weights", 0) + parts.get("projector", 0)) or total
    resident = loaded_bytes(snapshot, progress)
    taken = progress.taken_in if progress is not None else None
    dots = _dots(progress.line) if progress is not None else 0
    if dots:
        taken = max(taken or 0, weights * dots // DOTS)
    if taken is None:
        return resident / total if resident is not None else None
    return (min(taken, weights) + max(0, (resident or 0) - weights)) / total


def loaded_bytes(snapshot: Snapshot, progress: InstanceProgress | None) -> int | None:
    """Bytes of what is needed that are there, in each pool no more than is needed of it. None: nobody has looked."""
    used = dict(snapshot.used)
    if progress is not None and progress.resident is not None:
        used[RAM] = max(used.get(RAM, 0), progress.resident)
    if not used:
        return None
    return sum(min(used.get(pool, 0), size) for pool, size in snapshot.need.with_cache(0).amounts.items())


def _dots(line: str) -> int:
    """How many dots the line has, if it has nothing else: it prints one for each hundredth, at most."""
    return min(DOTS, len(line)) if line and not line.strip(".") else 0
