"""Makes jobs of long operations: the events that the control socket streams become the job's.

Owns nothing: the jobs are those of accelerd.control.jobs, the operations were given. Same key while one is under way:
that job.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from accelerd.base.errors import AccelError
from accelerd.control.jobs import Job, Jobs
from accelerd.control.operations import Operation, Query

WAITING: Final = frozenset({"queued", "stopped", "backoff"})  # states of a model that somebody waits to be loaded


class Launcher:
    """See the module's text."""

    def __init__(
        self,
        jobs: Jobs,
        operations: Mapping[str, Operation],
        draining: Callable[[], bool],
        given_up: Callable[[Job], None],
    ) -> None:
        """`draining()`: is the daemon about to end; `given_up(job)` hears of one that was cancelled in its work."""
        self.jobs = jobs
        self._operations = operations
        self._draining = draining
        self._given_up = given_up

    def start(self, kind: str, subject: str, name: str, query: Query, key: str | None = None) -> Job:
        """A job that carries out the operation of that name. AccelError when no more jobs can be begun."""
        self.refuse_when_draining()
        operation = self._operations[name]

        async def work(job: Job) -> None:
            try:
                async with contextlib.aclosing(await operation(query)) as events:
                    async for event in events:
                        _report(job, event)
                        job.tell(event)
            except AccelError as error:
                job.tell({"event": "error", **error.openai()})
                raise
            except asyncio.CancelledError:
                self._given_up(job)
                raise

        return self.jobs.start(kind, subject, work, key=key)

    def refuse_when_draining(self) -> None:
        if self._draining():
            raise AccelError("shutting_down", "accelerd is about to end", retry_after=5)


def _report(job: Job, event: Mapping[str, Any]) -> None:
    """What of the event is for everybody who watches the job."""
    if event.get("event") != "progress":
        return
    phase = event.get("state") or event.get("step") or event.get("phase")
    share = event.get("progress") if job.kind == "load" else None
    job.report(progress=share, phase=phase, waiting=job.kind == "load" and phase in WAITING)
