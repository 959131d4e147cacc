"""Carries looks and operations over HTTP: JSON, and JSON lines for as long as the client listens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from accelerd.base.errors import AccelError
from accelerd.control.operations import Answer, Event, Events, Operation, Query
from accelerd.gateway.control_server import json_response

Route = Callable[[web.BaseRequest, Query], Awaitable[web.StreamResponse]]
Routes = dict[tuple[str, str], Route]


def looks(answers: Mapping[str, Answer]) -> Routes:
    """A GET route for each."""
    return {("GET", f"/{topic}"): look(answer) for topic, answer in answers.items()}


def doings(actions: Mapping[str, Answer]) -> Routes:
    """A POST route for each of what is done at once."""
    return {("POST", f"/{name}"): look(action) for name, action in actions.items()}


def look(answer: Answer) -> Route:
    """Answers with JSON."""

    async def route(request: web.BaseRequest, query: Query) -> web.StreamResponse:
        return json_response(await answer(query))

    return route


def streams(operations: Mapping[str, Operation]) -> Routes:
    """A POST route for each."""
    return {("POST", f"/{name}"): stream(operation) for name, operation in operations.items()}


def stream(operation: Operation) -> Route:
    """Answers with its events, a JSON object a line; gives it up when the client has gone."""

    async def route(request: web.BaseRequest, query: Query) -> web.StreamResponse:
        return await carry(request, await operation(query))

    return route


async def carry(request: web.BaseRequest, events: Events) -> web.StreamResponse:
    """The events, then the error where there was one."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.sleep(0)  # only what has begun can be closed: the client may be gone already
        await response.prepare(request)
        try:
            await response.write(line(await first))
            async for event in events:
                await response.write(line(event))
        except AccelError as error:  # also when a reload takes the model away meanwhile
            await response.write(line({"event": "error", **error.openai()}))
        return response
    finally:
        first.cancel()
        await asyncio.wait((first,))
        await events.aclose()


def line(event: Event) -> bytes:
    return msgspec.json.encode(event) + b"\n"
