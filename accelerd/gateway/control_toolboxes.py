"""The control routes about toolboxes, as docs/control.md describes them: control.py carries them on the unix socket.

Knows neither podman nor models: asks the upkeep. A refresh whose client goes is given up, and undone without it.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import msgspec
from aiohttp import web

from accelerd.errors import AccelError
from accelerd.gateway.control import PROGRESS_EVERY, Query, Route
from accelerd.gateway.responses import json_response


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
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", "/toolboxes"): self._list,
            ("POST", "/toolbox/refresh"): self._refresh,
            ("POST", "/toolbox/pin"): self._pin,
            ("POST", "/toolbox/unpin"): self._unpin,
        }

    async def _list(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        return json_response(await self._upkeep.overview())

    async def _pin(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        return json_response(await self._upkeep.pin(_name_of(query)))

    async def _unpin(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        return json_response(await self._upkeep.unpin(_name_of(query)))

    async def _refresh(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        """Each step once, the one under way again and again, then how it ended: a JSON object a line."""
        job = self._upkeep.refresh(_name_of(query), force=query.get("force", "0") not in ("0", ""))
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        loop = asyncio.get_running_loop()
        began, told = loop.time(), 0
        try:
            await response.prepare(request)
            done: set[asyncio.Task[dict[str, Any]]] = set()
            while not done:
                done, _ = await asyncio.wait((job.task,), timeout=PROGRESS_EVERY)
                elapsed = loop.time() - began
                for step in job.steps[told:]:
                    await response.write(_line({"event": "progress", **step, "elapsed": elapsed}))
                told = max(len(job.steps) - 1, 0)
            try:
                last = {**job.task.result(), "elapsed": loop.time() - began}
            except AccelError as error:
                last = {"event": "error", **error.openai()}
            await response.write(_line(last))
        finally:
            job.abandon()
        return response


def _name_of(query: Query) -> str:
    try:
        return query["name"]
    except KeyError:
        raise AccelError("bad_request", "the query needs name=TOOLBOX", param="name") from None


def _line(event: dict[str, Any]) -> bytes:
    return msgspec.json.encode(event) + b"\n"
