"""The control API over HTTP: /accelerd/v1 on the unix socket, as docs/control.md describes it.

An adapter: the query string becomes the request of an operation, its answer JSON; a job's events are JSON lines for as
long as the client listens. Never served on a TCP port; the gateway lets nobody but its user in. Holds no operation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

import msgspec

from accelerd.base.errors import AccelError
from accelerd.base.events import DaemonState, DaemonStateChanged
from accelerd.base.names import CONTROL_PREFIX
from accelerd.control import openapi, status
from accelerd.control.api import ControlApi
from accelerd.control.event_feed import KINDS, EventFeed, EventsLost
from accelerd.control.jobs import Job
from accelerd.control.models import Claimed
from accelerd.control.operations import Kind, Operation, parse
from accelerd.control.router_paths import RouterPaths
from accelerd.policy.pins import PinChanged, PinEnd

if TYPE_CHECKING:
    from aiohttp import web  # loaded with the first control request: it is large

OWNER: Final = "the control socket"
METHODS: Final[Mapping[Kind, str]] = {"look": "GET", "action": "POST", "job": "POST", "claim": "POST", "stream": "GET"}
NDJSON: Final = "application/x-ndjson"
OPENAPI: Final = f"{CONTROL_PREFIX}/openapi.json"

Query = dict[str, str]


class ClaimEnded(msgspec.Struct, tag="ended", tag_field="event"):
    """The last event of a claim that ends before its client goes."""

    cause: PinEnd


class HttpControl:
    """Callable as the gateway's control hook: (request, path) → response, or None for paths that are not its own."""

    def __init__(self, api: ControlApi) -> None:
        self._api = api
        self._router_paths = RouterPaths(api, OWNER)

    async def __call__(self, request: web.BaseRequest, path: str) -> web.StreamResponse | None:
        if not path.startswith(CONTROL_PREFIX + "/"):
            return await self._router_paths.answer(request, path)
        operation = self._api.operations.get(path[len(CONTROL_PREFIX) + 1 :])
        if path == OPENAPI and request.method == "GET":
            return _json(openapi.document(self._api.operations, METHODS, NDJSON))
        if operation is None:
            raise AccelError("not_found", f"there is no control route {path[:200]!r}")
        method = METHODS[operation.kind]
        if request.method != method:
            raise AccelError("method_not_allowed", f"{path} takes {method}", allow=method)
        given = parse_qs(request.raw_path.partition("?")[2], keep_blank_values=True)
        query = {key: values[-1] for key, values in given.items()}
        return await self._answer(request, operation, query)

    async def _answer(self, request: web.BaseRequest, operation: Operation, query: Query) -> web.StreamResponse:
        if operation.name == "logs":
            return await self._logs(request, query)
        if operation.kind == "claim":
            return await self._claim(request, operation, query)
        answer = await self._api.call(operation.name, query, OWNER, text=True)
        if operation.kind == "stream":
            return await self._watch(request, answer)
        if operation.kind != "job":
            return _json(answer)
        with self._api.parts.jobs.follow(answer) as events:
            return await (_stream(request, events) if operation.progress else _outcome(answer, events))

    async def _logs(self, request: web.BaseRequest, query: Query) -> web.StreamResponse:
        """Plain text; with follow=1 for as long as the client listens."""
        from aiohttp import web

        wanted = parse(status.LogsRequest, query, text=True)
        if not wanted.follow:
            text = "".join(line + "\n" for line in (await status.logs(self._api.parts, wanted)).lines)
            return web.Response(text=text, content_type="text/plain", charset="utf-8")
        with status.follow(self._api.parts, wanted) as lines:
            response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
            await response.prepare(request)
            async for line in lines:
                await response.write(line.encode() + b"\n")
        return response

    async def _watch(self, request: web.BaseRequest, feed: EventFeed) -> web.StreamResponse:
        """Until the client goes, the daemon shuts down, or the client was too slow."""
        with self._api.parts.events.reader(*KINDS) as published:
            response = await _begin(request)
            async for one in published:
                for event in feed.of(one):
                    await response.write(_line(event))
                if published.dropped:
                    await response.write(_line(EventsLost(published.dropped)))
                    break
                if isinstance(one, DaemonStateChanged) and one.state is DaemonState.DRAINING:
                    break
        return response

    async def _claim(self, request: web.BaseRequest, operation: Operation, query: Query) -> web.StreamResponse:
        """Its first event says that the model is kept; it ends with the response."""
        claimed: Claimed = await self._api.call(operation.name, query, OWNER, text=True)
        try:
            with self._api.parts.events.reader(PinChanged, DaemonStateChanged) as changes:
                response = await _begin(request)
                await response.write(_line(claimed))
                end: PinEnd | None = None
                while end is None:
                    end = _end_of(await anext(changes), claimed.cookie)
                await response.write(_line(ClaimEnded(end)))
            return response
        finally:
            self._api.parts.pins.release(claimed.cookie)


def _end_of(change: PinChanged | DaemonStateChanged, cookie: int) -> PinEnd | None:
    """Why the claim ends."""
    if isinstance(change, DaemonStateChanged):
        return "shutdown" if change.state is DaemonState.DRAINING else None
    return change.end if change.pin.cookie == cookie else None


async def _outcome(job: Job, events: AsyncIterator[Any]) -> web.StreamResponse:
    """The last event, of a job that tells no other. AccelError when it failed."""
    last = [event async for event in events][-1]
    if job.error is not None:
        raise job.error
    return _json(last)


async def _stream(request: web.BaseRequest, events: AsyncIterator[Any]) -> web.StreamResponse:
    response = await _begin(request)
    async for event in events:
        await response.write(_line(event))
    return response


async def _begin(request: web.BaseRequest) -> web.StreamResponse:
    from aiohttp import web

    response = web.StreamResponse(headers={"Content-Type": NDJSON})
    await response.prepare(request)
    return response


def _line(event: Any) -> bytes:
    return msgspec.json.encode(event) + b"\n"


def _json(answer: Any) -> web.Response:
    from aiohttp import web

    return web.Response(body=_line(answer), content_type="application/json")
