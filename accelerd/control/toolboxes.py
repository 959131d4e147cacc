"""The control routes about toolboxes, as docs/control.md describes them: control.py carries them on the unix socket.

Knows neither podman nor models: asks the upkeep. A refresh whose client goes is given up, and undone without it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from accelerd.base.errors import AccelError
from accelerd.control.http import Routes, doings, looks, streams
from accelerd.control.operations import PROGRESS_EVERY, Answer, Events, Operation, Query, flag


class Job(Protocol):
    """A refresh under way."""

    steps: list[dict[str, Any]]
    task: asyncio.Task[dict[str, Any]]

    def abandon(self) -> None: ...


class Upkeep(Protocol):
    """AccelError from all of them."""

    async def overview(self) -> dict[str, Any]: ...
    async def pin(self, name: str) -> dict[str, Any]: ...
    async def unpin(self, name: str) -> dict[str, Any]: ...
    def refresh(self, name: str, *, force: bool = False) -> Job: ...


class ToolboxRoutes:
    """`routes` are for Control."""

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self.answers: dict[str, Answer] = {"toolboxes": self._list}
        self.operations: dict[str, Operation] = {"toolbox/refresh": self._refresh}
        self.actions: dict[str, Answer] = {"toolbox/pin": self._pin, "toolbox/unpin": self._unpin}
        self.routes: Routes = {**looks(self.answers), **doings(self.actions), **streams(self.operations)}

    async def _list(self, query: Query) -> dict[str, Any]:
        return await self._upkeep.overview()

    async def _pin(self, query: Query) -> dict[str, Any]:
        return await self._upkeep.pin(_name_of(query))

    async def _unpin(self, query: Query) -> dict[str, Any]:
        return await self._upkeep.unpin(_name_of(query))

    async def _refresh(self, query: Query) -> Events:
        return _told(self._upkeep.refresh(_name_of(query), force=flag(query, "force")))


async def _told(job: Job) -> Events:
    """Each step once, the one under way again and again, then how it ended."""
    loop = asyncio.get_running_loop()
    began, told = loop.time(), 0
    try:
        done: set[asyncio.Task[dict[str, Any]]] = set()
        while not done:
            done, _ = await asyncio.wait((job.task,), timeout=PROGRESS_EVERY)
            elapsed = loop.time() - began
            for step in job.steps[told:]:
                yield {"event": "progress", **step, "elapsed": elapsed}
            told = max(len(job.steps) - 1, 0)
        yield {**job.task.result(), "elapsed": loop.time() - began}
    finally:
        job.abandon()


def _name_of(query: Query) -> str:
    try:
        return query["name"]
    except KeyError:
        raise AccelError("bad_request", "the query needs name=TOOLBOX", param="name") from None
