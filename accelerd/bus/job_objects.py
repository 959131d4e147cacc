"""Jobs on the bus: one object each, from its start until a minute after its end. Says nothing that Jobs does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from accelerd.base.names import BUS_JOB
from accelerd.bus.manager import Methods
from accelerd.bus.paths import error_name, job_path
from accelerd.control.jobs import Job, Jobs
from accelerd.system.dbus.object_exporter import ObjectExporter
from accelerd.system.dbus.port import Call


class JobObjects:
    """`subject(job)`: the path of what the job is about."""

    def __init__(self, bus: ObjectExporter, jobs: Jobs, methods: Methods, subject: Callable[[Job], str]) -> None:
        self._bus = bus
        self._jobs = jobs
        self._methods = methods
        self._subject = subject

    def show(self, job: Job) -> None:
        """It has begun."""
        values = self._changing(job) | {
            "Id": job.id,
            "Kind": job.kind,
            "Subject": self._subject(job),
            "CreatedMonotonicUSec": usec(job.created),
        }

        async def handler(call: Call) -> tuple[Any, ...]:
            return await self._called(job.id, call)

        self._bus.publish(job_path(job.id), {BUS_JOB: values}, handler)

    def update(self, job: Job) -> None:
        self._bus.update(job_path(job.id), BUS_JOB, self._changing(job))

    def told(self, job: Job, event: Any) -> None:
        """One event of it."""
        text = msgspec.json.encode(event).decode()
        self._bus.signal(job_path(job.id), BUS_JOB, "Event", (text,))

    def remove(self, job: Job) -> None:
        self._bus.remove(job_path(job.id))

    def _changing(self, job: Job) -> dict[str, Any]:
        return {
            "State": job.state,
            "Result": job.result,
            "Progress": job.progress,
            "Phase": job.phase,
            "ErrorName": error_name(job.error) if job.error is not None else "",
            "ErrorMessage": job.error.message if job.error is not None else "",
            "FinishedMonotonicUSec": usec(job.finished),
        }

    async def _called(self, id: int, call: Call) -> tuple[Any, ...]:
        if call.method == "Cancel":
            return await self._methods.perform(call.sender, "Cancel", id)
        job = await self._jobs.wait(id)
        if job.error is not None and job.result in ("failed", "timeout"):
            raise job.error
        return (job.result,)


def usec(seconds: float | None) -> int:
    """Microseconds; 0 for none."""
    return round(seconds * 1e6) if seconds is not None else 0
