"""The paths by which clients of llama.cpp's router and of llama-swap load and unload models, on the control socket.

An adapter like control/http.py: each is an operation of the control API, answered as those programs answer it.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.names import UNLOAD_PREFIX
from accelerd.control.api import ControlApi
from accelerd.scheduler.lifecycle import State
from accelerd.scheduler.record import Snapshot

if TYPE_CHECKING:
    from aiohttp import web  # see control/http.py

# As llama-swap calls them; those that have no process are not listed.
STATES: Final[Mapping[State, str]] = {
    State.STARTING: "starting",
    State.WAKING: "starting",
    State.READY: "ready",
    State.DRAINING: "stopping",
    State.OFFLOADING: "stopping",
    State.STOPPING: "stopping",
    State.KILLING: "stopping",
}


class Named(msgspec.Struct):
    """The body of a request for one model."""

    model: str


class RouterPaths:
    """Answers those of base.names.ROUTER_PATHS. `owner`: of the jobs."""

    def __init__(self, api: ControlApi, owner: str) -> None:
        self._api = api
        self._owner = owner

    async def answer(self, request: web.BaseRequest, path: str) -> web.Response:
        """AccelError."""
        if path == "/running":
            return _json({"running": [self._entry(one) for one in self._running()]})
        if path in ("/models/load", "/models/unload"):
            await self._begin(path.rpartition("/")[2], await request.read())
            return _json({"success": True})
        if path.startswith(UNLOAD_PREFIX):
            await self._unload(unquote(path.removeprefix(UNLOAD_PREFIX)))
            return _ok()
        await asyncio.gather(*(self._unload(one.spec.name) for one in self._running()))
        return _ok() if path == "/unload" else _json({"msg": "ok"})

    async def _begin(self, operation: str, body: bytes) -> None:
        """As llama.cpp's router: the answer does not wait for the end."""
        try:
            name = msgspec.json.decode(body, type=Named).model
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AccelError("bad_request", f"the request is not valid: {error}", param="model") from None
        snapshot = self._api.parts.find(name)
        runs = snapshot.state in STATES
        if runs is (operation == "load"):
            text = "model is already running" if runs else "model is not running"
            raise AccelError("bad_request", text, param="model")
        await self._api.start(operation, {"model": snapshot.spec.name}, self._owner)

    async def _unload(self, name: str) -> None:
        job = await self._api.start("unload", {"model": name}, self._owner)
        await self._api.parts.jobs.wait(job.id)
        if job.error is not None:
            raise job.error

    def _running(self) -> list[Snapshot]:
        every = self._api.parts.scheduler.snapshots()
        return [one for one in every if one.state in STATES and not one.spec.elsewhere]

    def _entry(self, snapshot: Snapshot) -> dict[str, Any]:
        spec = snapshot.spec
        facts = self._api.parts.facts(snapshot)
        plan = facts.plan if facts is not None else None
        return {
            "model": spec.name,
            "state": STATES[snapshot.state],
            "cmd": shlex.join(plan.argv) if plan is not None else "",
            "proxy": str(plan.endpoint) if plan is not None else "",
            "ttl": int(spec.idle_timeout or 0),
            "name": "",
            "description": spec.description,
        }


def _json(answer: Any) -> web.Response:
    from aiohttp import web

    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _ok() -> web.Response:
    from aiohttp import web

    return web.Response(text="OK")
