"""The one control API: every operation that a person, a program or a desktop tool can ask for.

HTTP (control/http.py), D-Bus (bus/) and later the web page are adapters that walk `operations`; none of them holds an
operation of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from accelerd.base.events import DaemonState, DaemonStateChanged
from accelerd.control import (
    daemon,
    downloads,
    event_feed,
    memory,
    memory_release,
    models,
    remotes,
    routes,
    status,
    toolboxes,
)
from accelerd.control.jobs import Job
from accelerd.control.operations import Operation, Request, operations_of, parse
from accelerd.control.parts import ControlParts


class ControlApi:
    """The operations by name."""

    def __init__(self, parts: ControlParts) -> None:
        self.parts = parts
        parts.events.subscribe(DaemonStateChanged, self.on_daemon_state)

    def on_daemon_state(self, changed: DaemonStateChanged) -> None:
        if changed.state is DaemonState.DRAINING:
            downloads.stop(self.parts)

    @cached_property
    def operations(self) -> Mapping[str, Operation]:
        """By name. Made when the first is asked for: the start need not wait for their types to be read."""
        modules = (daemon, downloads, event_feed, memory, memory_release, models, remotes, routes, status, toolboxes)
        return operations_of(self.parts, *modules)

    async def call(self, name: str, given: Mapping[str, Any], owner: str, *, text: bool = False) -> Any:
        """Carry out an operation: its answer, or the Job that does it. `given`, `text`: see `parse`. AccelError."""
        operation = self.operations[name]
        request: Request = parse(operation.request, given, text=text)
        if operation.kind not in ("look", "action"):
            self.parts.accepting()
        return await operation.call(request, owner)

    async def start(self, name: str, given: Mapping[str, Any], owner: str) -> Job:
        """As `call`, of an operation that is a job, for a client that cannot be seen to leave: the job is kept."""
        job: Job = await self.call(name, given, owner)
        job.kept = True
        return job

    async def close(self) -> None:
        """Nothing is done for anybody any more; who waits for a job hears that it was canceled."""
        await self.parts.jobs.close()
        self.parts.pins.close()
