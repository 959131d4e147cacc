"""What is told of jobs, and canceling them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from accelerd.control.jobs import UNKNOWN, Job, Jobs
from accelerd.control.operations import Operation, Request, operation

JobId = Annotated[int, msgspec.Meta(ge=1, description="the number of a job")]


class JobRequest(Request, frozen=True):
    id: JobId
    wait: bool = False  # answer when it is over


class JobReference(Request, frozen=True):
    id: JobId


class JobStatus(msgspec.Struct):
    """A job. Times are seconds of CLOCK_MONOTONIC; None: not known, or not yet."""

    id: int
    kind: str  # the operation's name
    subject: str  # the name of a model or toolbox, the id of a device, or ""
    state: str  # "waiting", "running", "done"
    result: str  # "", "done", "failed", "canceled", "timeout", "superseded"
    progress: float | None  # 0 to 1
    phase: str
    error: dict[str, Any] | None
    created: float
    finished: float | None
    last: Any  # its last event


class JobList(msgspec.Struct):
    """Those under way and those that ended in the last minute, the oldest first."""

    jobs: list[JobStatus]


def job_status(job: Job) -> JobStatus:
    return JobStatus(
        id=job.id,
        kind=job.kind,
        subject=job.subject,
        state=job.state,
        result=job.result,
        progress=job.progress if job.progress != UNKNOWN else None,
        phase=job.phase,
        error=job.error.openai()["error"] if job.error is not None else None,
        created=job.created,
        finished=job.finished,
        last=job.last,
    )


class JobOperations:
    """Looks at jobs, and cancels them."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def operations(self) -> list[Operation]:
        return [
            operation("look", "jobs", self.jobs),
            operation("look", "job", self.job),
            operation("action", "job/cancel", self.cancel),
        ]

    async def jobs(self) -> JobList:
        """The jobs under way, and those that ended in the last minute."""
        return JobList([job_status(job) for job in self._jobs.all()])

    async def job(self, request: JobRequest) -> JobStatus:
        """One job; with `wait`, when it is over."""
        job = await self._jobs.wait(request.id) if request.wait else self._jobs.find(request.id)
        return job_status(job)

    async def cancel(self, request: JobReference) -> JobStatus:
        """Cancel a job, for everybody who follows it."""
        self._jobs.cancel(request.id)
        return job_status(self._jobs.find(request.id))
