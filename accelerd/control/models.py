"""Loading, unloading, measuring and keeping models.

Owns the jobs of models and the events that they tell. Asks the scheduler, which decides; never touches a process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

import msgspec

from accelerd.base.errors import AccelError
from accelerd.control.jobs import Job, Jobs
from accelerd.control.load_progress import load_progress
from accelerd.control.model_info import ModelNames
from accelerd.control.operations import Operation, Request, operation
from accelerd.control.status import Processes
from accelerd.control.tuning_runs import TuneDone, TuneProgress, TuningRuns
from accelerd.policy.pins import Pins
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.service import Scheduler

PROGRESS_EVERY: Final = 0.25  # s between two progress events
WAITING: Final = frozenset({"queued", State.STOPPED, State.BACKOFF})  # of a model that somebody waits to be loaded


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


class Ready(msgspec.Struct, tag="ready", tag_field="event"):
    model: str
    elapsed: float


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


class ModelOperations:
    """What clients want done with models."""

    def __init__(
        self,
        scheduler: Scheduler,
        names: ModelNames,
        processes: Processes,
        jobs: Jobs,
        pins: Pins,
        tuning: TuningRuns,
        accepting: Callable[[], None],
    ) -> None:
        """`accepting()`: AccelError while the daemon ends."""
        self._scheduler = scheduler
        self._names = names
        self._processes = processes
        self._jobs = jobs
        self._pins = pins
        self._tuning = tuning
        self._accepting = accepting

    def operations(self) -> list[Operation]:
        return [
            operation("job", "load", self.load, outcome=Ready, progress=True),
            operation("job", "unload", self.unload, outcome=Stopped, progress=True),
            operation("job", "tune", self.tune, outcome=TuneDone, progress=True),
            operation("action", "reset", self.reset),
            operation("claim", "pin", self.pin),
            operation("claim", "hold", self.hold),
            operation("action", "unpin", self.unpin),
        ]

    async def load(self, request: LoadRequest) -> Job:
        """Load a model. Joins a load of it that is under way."""
        name = self._names.find(request.model).spec.name

        async def work(job: Job) -> Ready:
            try:
                await self._watched(job, name, self._scheduler.load(name, evict=request.allow_evict))
            except asyncio.CancelledError:
                if job.canceled:
                    self._scheduler.holds.abandon(name, "the load was canceled")
                raise
            return Ready(name, job.elapsed)

        return self._jobs.start("load", name, work, key=f"load {name}")

    async def unload(self, request: UnloadRequest) -> Job:
        """Unload a model, and wait until its memory is back. A load of it that is under way ends as superseded."""
        name = self._names.find(request.model).spec.name

        async def work(job: Job) -> Stopped:
            await self._watched(job, name, self._scheduler.unload(name, force=request.force))
            return Stopped(name, job.elapsed)

        return self._jobs.start("unload", name, work, key=f"unload {request.force} {name}")

    async def tune(self, request: TuneRequest) -> Job:
        """Measure a model in several ways of running it. Writes no configuration."""
        name = self._names.find(request.model).spec.name

        async def work(job: Job) -> TuneDone:
            def tell(event: TuneProgress) -> None:
                event.elapsed = job.elapsed
                job.report(phase=event.phase or None)
                job.tell(event)

            run = self._tuning.run(name, quick=request.quick, force=request.force, tell=tell)
            done: TuneDone = await while_waiting(run, lambda: job.tell(TuneProgress(elapsed=job.elapsed)))
            done.elapsed = job.elapsed
            return done

        return self._jobs.start("tune", name, work)

    async def reset(self, request: ResetRequest) -> ModelState:
        """Forget the failures of a model, or of all models: they may be started again."""
        if request.all == (request.model is not None):
            raise AccelError("bad_request", "give one of the arguments model and all", param="model")
        if request.model is None:
            for snapshot in self._scheduler.snapshots():
                self._scheduler.reset(snapshot.spec.name, memory=True)
            return ModelState("")
        name = self._names.find(request.model).spec.name
        self._scheduler.reset(name, memory=True)
        return ModelState(self._scheduler.snapshot(name).state)

    async def pin(self, request: ClaimRequest, owner: str) -> Claimed:
        """Load a model and keep it loaded until the claim ends."""
        return self._claim(request, owner, hold=False)

    async def hold(self, request: ClaimRequest, owner: str) -> Claimed:
        """Keep a model loaded once it is, until the claim ends. Loads nothing."""
        return self._claim(request, owner, hold=True)

    async def unpin(self, request: UnpinRequest, owner: str) -> Released:
        """End a claim of this client before the client goes."""
        self._pins.unpin(request.cookie, owner)
        return Released(request.cookie)

    def _claim(self, request: ClaimRequest, owner: str, *, hold: bool) -> Claimed:
        self._accepting()
        name = self._names.find(request.model).spec.name
        return Claimed(name, self._pins.pin(name, request.reason, request.application_id, owner, hold=hold))

    async def _watched(self, job: Job, name: str, work: Awaitable[None]) -> None:
        """Do what changes the state of a model, telling its progress."""

        def tell() -> None:
            event = self._progress(name, job.elapsed)
            share = event.progress if job.kind == "load" else None
            job.report(progress=share, phase=event.state, waiting=job.kind == "load" and event.state in WAITING)
            job.tell(event)

        await while_waiting(work, tell)

    def _progress(self, name: str, elapsed: float) -> LoadProgress:
        snapshot = self._scheduler.snapshot(name)
        seen = self._processes.progress(snapshot.instance) if snapshot.instance is not None else None
        share = load_progress(snapshot, seen)
        return LoadProgress(
            state="queued" if snapshot.instance is None and snapshot.queue else snapshot.state,
            elapsed=elapsed,
            expected=self._processes.load_seconds(snapshot.spec) if snapshot.state is State.STARTING else None,
            memory=seen.resident if seen else None,
            memory_expected=snapshot.memory or None,
            progress=share if share >= 0 else None,
            line=seen.line if seen else "",
        )


async def while_waiting(work: Awaitable[Any], tell: Callable[[], None]) -> Any:
    """What `work` gives; `tell` is called every PROGRESS_EVERY seconds until then. `work` is canceled with this."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait((task,), timeout=PROGRESS_EVERY))[0]:
            tell()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # of what nobody waits for any more
