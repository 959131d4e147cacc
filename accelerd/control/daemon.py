"""The daemon as a whole: its configuration, its devices, its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from accelerd.base.errors import AccelError
from accelerd.config.problems import Problem
from accelerd.control.devices import DeviceReport, device_report, use_of
from accelerd.control.jobs import UNKNOWN, Job
from accelerd.control.operations import NoArguments, Request, operation
from accelerd.control.parts import ControlParts

JobId = Annotated[int, msgspec.Meta(ge=1, description="the number of a job")]


class DevicesRequest(Request, frozen=True):
    device: str = ""  # an id; "": all devices


class JobRequest(Request, frozen=True):
    id: JobId
    wait: bool = False  # answer when it is over


class JobReference(Request, frozen=True):
    id: JobId


class Reloaded(msgspec.Struct, tag="reloaded", tag_field="event"):
    """Names of models by what became of them; `settings`: keys outside models that changed."""

    added: list[str] = []
    removed: list[str] = []
    relaunch: list[str] = []
    updated: list[str] = []
    unchanged: list[str] = []
    settings: list[str] = []
    elapsed: float = 0.0


class ConfigCheck(msgspec.Struct):
    """What is wrong with the configuration as it is on disk. Empty: nothing."""

    problems: Sequence[Problem]


class Devices(msgspec.Struct):
    devices: list[DeviceReport]
    degraded: str | None  # why changes of devices are not noticed


class Rescanned(msgspec.Struct, tag="rescanned", tag_field="event"):
    elapsed: float


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


@operation("job", "reload", outcome=Reloaded)
async def reload(parts: ControlParts, request: NoArguments) -> Job:
    """Read the configuration again and apply it, as a whole or not at all."""

    async def work(job: Job) -> Reloaded:
        return Reloaded(**await parts.daemon.reload(), elapsed=job.elapsed)

    return parts.jobs.start("reload", "", work, cancellable=False)


@operation("look", "config/check")
async def check_config(parts: ControlParts) -> ConfigCheck:
    """Check the configuration on disk, without applying it."""
    return ConfigCheck(await parts.daemon.problems())


@operation("look", "devices")
async def devices(parts: ControlParts, request: DevicesRequest) -> Devices:
    """The devices, what they do and who uses them, from a fresh look."""
    if parts.devices.degraded is not None:
        await parts.devices.rescan()  # nobody else says when something has changed
    looks = [look for look in await parts.device_looks.look() if request.device in ("", look.device.id)]
    if request.device and not looks:
        raise AccelError("device_not_found", f"there is no device {request.device[:60]!r}", param="device")
    snapshots, models = parts.scheduler.snapshots(), {}
    for snapshot in snapshots:
        facts = parts.facts(snapshot)
        if facts is not None and facts.pid is not None:
            models[facts.pid] = snapshot.spec.name
    found = [
        device_report(look, models, parts.level_owner(look.device.id), use_of(look.device, snapshots)) for look in looks
    ]
    return Devices(found, parts.devices.degraded)


@operation("job", "rescan", outcome=Rescanned)
async def rescan(parts: ControlParts, request: NoArguments) -> Job:
    """Look for devices again."""

    async def work(job: Job) -> Rescanned:
        await parts.devices.rescan()
        return Rescanned(job.elapsed)

    return parts.jobs.start("rescan", "", work, key="rescan", cancellable=False)


@operation("look", "jobs")
async def jobs(parts: ControlParts) -> JobList:
    """The jobs under way, and those that ended in the last minute."""
    return JobList([job_status(job) for job in parts.jobs.all()])


@operation("look", "job")
async def job(parts: ControlParts, request: JobRequest) -> JobStatus:
    """One job; with `wait`, when it is over."""
    return job_status(await parts.jobs.wait(request.id) if request.wait else parts.jobs.find(request.id))


@operation("action", "job/cancel")
async def cancel_job(parts: ControlParts, request: JobReference) -> JobStatus:
    """Cancel a job, for everybody who follows it."""
    parts.jobs.cancel(request.id)
    return job_status(parts.jobs.find(request.id))


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
