"""Jobs: long operations that several clients may follow, join and cancel.

Owns the list of jobs and their tasks. What a job does is the work it was given; every change is published as an event.
A job ends exactly once; how it ended stays readable for a minute. Must never know an adapter or a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final, Literal

from msgspec import Struct, field

from accelerd.base.errors import AccelError
from accelerd.base.events import EventStream
from accelerd.base.ports import Clock

log = logging.getLogger(__name__)

UNFINISHED_MOST: Final = 256  # jobs under way, of all clients together
KEPT_MOST: Final = (
    256  # finished ones that are still shown, 12 KB each: past it the oldest go before their minute is over
)
LINGER = 60.0  # s that a finished job can still be asked how it ended
UNKNOWN: Final = -1.0  # of `progress`
PROGRESS_EVERY: Final = 0.25  # s between two progress events

State = Literal["waiting", "running", "done"]
Result = Literal["", "done", "failed", "canceled", "timeout", "superseded"]

# How a job ended that did not do what it was for; "failed" for every other error.
RESULTS: Final[dict[str, Result]] = {
    "queue_timeout": "timeout",
    "request_timeout": "timeout",
    "upstream_timeout": "timeout",
    "model_unloaded": "superseded",  # somebody wanted the opposite, later
}


class JobFailed(Struct, tag="error", tag_field="event"):
    """The last event of a job that did not do what it was for. `error` as in every error response."""

    error: dict[str, Any]


class Job(Struct, eq=False, kw_only=True):
    """One operation. Its work alone calls `report` and `tell`; everybody else reads. Times: monotonic seconds."""

    id: int
    kind: str
    subject: str  # the name of a model, device or toolbox, or ""
    key: str | None  # what may join it
    created: float
    cancellable: bool
    clock: Clock
    events: EventStream
    state: State = "waiting"
    result: Result = ""
    progress: float = UNKNOWN  # 0 to 1, never less than it was; -1: not known
    phase: str = ""  # a word for programs
    error: AccelError | None = None
    finished: float | None = None
    last: Any = None  # the last event that was told
    canceled: bool = False  # a client asked for its end
    kept: bool = False  # somebody wants it who cannot be seen to leave
    followers: list[asyncio.Queue[Any]] = []
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.kind} {self.subject!r} {self.result or self.state}>"

    def report(self, *, progress: float | None = None, phase: str | None = None, waiting: bool = False) -> None:
        """How far it is. `waiting`: for its turn, for room, for somebody. Said after its end it changes nothing.

        `progress` below what was said before, or that is no number, is left out: it never goes back.
        """
        if self.finished is not None:
            return
        before = (self.state, self.progress, self.phase)
        self.state = "waiting" if waiting else "running"
        if progress is not None and not math.isnan(progress):
            self.progress = max(self.progress, min(1.0, progress)) if progress >= 0 else self.progress
        self.phase = self.phase if phase is None else phase
        if (self.state, self.progress, self.phase) != before:
            self.events.publish(JobChanged(self))

    @property
    def elapsed(self) -> float:
        """Seconds since it was created."""
        return self.clock.monotonic() - self.created

    def tell(self, event: Any) -> None:
        """One event of it, for whoever follows: a Struct that JSON can hold, without prompts or secrets."""
        if self.finished is None:
            self.last = event
            for queue in self.followers:
                queue.put_nowait(event)
            self.events.publish(JobTold(self, event))


Work = Callable[[Job], Awaitable[Any]]
"""Does the work, and returns the last event or None."""


class JobChanged(Struct, frozen=True):
    """A job is new, is further than it was, or has ended."""

    job: Job


class JobTold(Struct, frozen=True):
    """A job has told an event."""

    job: Job
    event: Any


class JobForgotten(Struct, frozen=True):
    """A job is no longer shown. Published once for each."""

    job: Job


class Jobs:
    """All jobs of this daemon. Every method runs on the event loop's thread and, but for `wait`, returns at once."""

    def __init__(self, clock: Clock, events: EventStream) -> None:
        """A new job is published before `start` returns, and its end before anybody who waits for it hears of it."""
        self._events = events
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[int, Job] = {}  # in the order of their ids
        self._keys: dict[str, Job] = {}  # of unfinished jobs that can be joined
        self._tasks: dict[int, asyncio.Task[None]] = {}  # of unfinished jobs
        self._ending: set[int] = set()  # of them, those that were told to end
        self._finished: dict[int, None] = {}  # in the order of their ends
        self._timer: asyncio.TimerHandle | None = None
        self._next = 1
        self._closing = False

    # --- doing ------------------------------------------------------------------------------------------------

    def start(self, kind: str, subject: str, work: Work, *, key: str | None = None, cancellable: bool = True) -> Job:
        """A job that does `work`; or, where one with this `key` is under way, that one. AccelError queue_full.

        One that was cancelled, and is not over yet, is not joined but waited for. One that is not `cancellable` is
        carried out whatever becomes of its clients.
        """
        same = self._keys.get(key) if key is not None else None
        if same is not None and same.id not in self._ending:
            return same
        if self._closing:
            raise AccelError("shutting_down", "accelerd is shutting down", retry_after=5)
        if len(self._tasks) >= UNFINISHED_MOST:
            text = f"{len(self._tasks)} jobs are under way already; wait for some of them, or cancel some"
            raise AccelError("queue_full", text, retry_after=5)
        job = Job(
            id=self._next,
            kind=kind,
            subject=subject,
            key=key,
            created=self._clock.monotonic(),
            cancellable=cancellable,
            clock=self._clock,
            events=self._events,
        )
        self._next += 1
        self._jobs[job.id] = job
        if key is not None:
            self._keys[key] = job
        task = self._loop.create_task(self._run(job, work, same), name=f"job {job.id} {kind}")
        self._tasks[job.id] = task
        # A task that is cancelled before its first step runs nothing of its coroutine.
        task.add_done_callback(lambda _: self._finish(job, "canceled"))
        self._events.publish(JobChanged(job))
        return job

    def cancel(self, id: int) -> None:
        """End a job, for everybody who follows it; it is over when its work has let go. Nothing if it was over.

        AccelError job_not_found, not_supported.
        """
        job = self.find(id)
        if job.finished is None:
            if not job.cancellable:
                raise AccelError("not_supported", f"a {job.kind} cannot be canceled")
            job.canceled = True
            self._end(job)

    @contextlib.contextmanager
    def follow(self, job: Job) -> Iterator[AsyncIterator[Any]]:
        """The events that the job tells from now on, its last one included.

        A job that nobody else follows or keeps is ended when its last follower leaves, if it can be.
        """
        queue: asyncio.Queue[Any] = asyncio.Queue()
        job.followers.append(queue)
        try:
            yield _events(job, queue)
        finally:
            job.followers.remove(queue)
            if job.finished is None and job.cancellable and not job.followers and not job.kept:
                self._end(job)

    def _end(self, job: Job) -> None:
        self._ending.add(job.id)
        self._tasks[job.id].cancel()

    async def wait(self, id: int) -> Job:
        """The job, when it is over. Whoever gives up waiting leaves it alone. AccelError job_not_found."""
        job = self.find(id)
        await job.over.wait()
        return job

    async def close(self) -> None:
        """Cancel what is under way, wait for it, forget all. No job can be started from now on."""
        self._closing = True
        while self._tasks:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await asyncio.sleep(0)  # their callbacks
        for id in list(self._jobs):
            self._forget(id)
        if self._timer is not None:
            self._timer.cancel()

    # --- reading ----------------------------------------------------------------------------------------------

    def find(self, id: int) -> Job:
        """AccelError job_not_found: there never was such a job, or it has been over for too long."""
        try:
            return self._jobs[id]
        except KeyError:
            raise AccelError("job_not_found", f"there is no job {id}; finished ones go after a minute") from None

    def all(self) -> list[Job]:
        """Those under way and those whose end is still shown, the oldest first."""
        return list(self._jobs.values())

    # --- ends -------------------------------------------------------------------------------------------------

    async def _run(self, job: Job, work: Work, after: Job | None) -> None:
        try:
            if after is not None:
                await after.over.wait()
            job.report()
            outcome = await work(job)
            if outcome is not None:
                job.tell(outcome)
        except asyncio.CancelledError:
            self._finish(job, "canceled")
        except AccelError as error:
            self._finish(job, RESULTS.get(error.code, "failed"), error.bare())
        except TimeoutError:
            text = f"{job.kind} {job.subject}".rstrip() + " took too long"
            self._finish(job, "timeout", AccelError("request_timeout", text))
        except Exception:
            log.exception("job %d (%s %s) ended by a mistake in accelerd", job.id, job.kind, job.subject)
            text = f"cannot {job.kind} {job.subject}".rstrip() + ": a mistake in accelerd; its journal says more"
            self._finish(job, "failed", AccelError("internal", text))
        else:
            self._finish(job, "done")

    def _finish(self, job: Job, result: Result, error: AccelError | None = None) -> None:
        if job.finished is not None:
            return
        del self._tasks[job.id]
        self._ending.discard(job.id)
        if job.key is not None and self._keys.get(job.key) is job:
            del self._keys[job.key]
        job.progress = 1.0 if result == "done" else job.progress
        if result != "done":
            why = error or AccelError("canceled", f"the {job.kind} was canceled")
            job.tell(JobFailed(why.openai()["error"]))
        job.state, job.result, job.error = "done", result, error
        job.finished = self._clock.monotonic()
        self._finished[job.id] = None
        for queue in job.followers:
            queue.put_nowait(None)
        self._events.publish(JobChanged(job))
        job.over.set()
        while len(self._finished) > KEPT_MOST:
            self._forget(next(iter(self._finished)))
        if self._timer is None:
            self._rearm()

    def sweep(self) -> None:
        """Forget what has been over for long enough. Called by a timer of its own; harmless at any time."""
        due = self._clock.monotonic() - LINGER
        for id in list(self._finished):
            ended = self._jobs[id].finished
            if ended is None or ended > due:
                break
            self._forget(id)
        if self._timer is not None:
            self._timer.cancel()
        self._rearm()

    def _forget(self, id: int) -> None:
        job = self._jobs.pop(id)
        self._finished.pop(id, None)
        self._events.publish(JobForgotten(job))

    def _rearm(self) -> None:
        oldest = next((self._jobs[id].finished for id in self._finished), None)
        self._timer = None
        if oldest is not None:
            self._timer = self._loop.call_later(max(0.0, oldest + LINGER - self._clock.monotonic()), self.sweep)


async def _events(job: Job, queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    """Until the job has ended."""
    while job.finished is None or not queue.empty():
        event = await queue.get()
        if event is None:
            return
        yield event


async def while_waiting(work: Awaitable[Any], tell: Callable[[], None], every: float = PROGRESS_EVERY) -> Any:
    """What `work` gives; `tell` is called every so many seconds until then. `work` is canceled with this."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait((task,), timeout=every))[0]:
            tell()
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled():
                task.exception()  # of what nobody waits for any more
