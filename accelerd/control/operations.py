"""What can be asked of the daemon in words: looks that answer with JSON, and long operations that tell how they get on.

The control socket and the bus carry the same ones, each in its own way. Knows neither of them, and nothing of models.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

from accelerd.base.errors import AccelError

PROGRESS_EVERY: Final = 0.25  # s

Query = dict[str, str]
Answer = Callable[[Query], Awaitable[dict[str, Any]]]  # AccelError
Event = dict[str, Any]  # "event": "progress", …, and at the end what became of it
Events = AsyncGenerator[Event, None]  # ends with an AccelError where it failed; closing it gives the operation up
Operation = Callable[[Query], Awaitable[Events]]  # AccelError when it cannot even begin


async def watched(
    work: Callable[[], Awaitable[Event]],
    progress: Callable[[float], list[Event]],
    rest: Callable[[float], list[Event]] = lambda elapsed: [],
) -> Events:
    """Do `work` and tell its progress, then its outcome. `rest`: what there is still to tell when it is done."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    task = asyncio.ensure_future(work())
    try:
        while not (await asyncio.wait((task,), timeout=PROGRESS_EVERY))[0]:
            for event in progress(loop.time() - began):
                yield event
        for event in rest(loop.time() - began):
            yield event
        yield {**task.result(), "elapsed": loop.time() - began}
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, AccelError):
            await task


def rescanning(rescan: Callable[[], Awaitable[None]]) -> Operation:
    """Looks at all devices again."""

    async def operation(query: Query) -> Events:
        await rescan()
        return at_once({"event": "rescanned"})

    return operation


async def at_once(outcome: Event) -> Events:
    """An operation that was over before anybody could watch it."""
    yield outcome


def model_of(query: Mapping[str, str]) -> str:
    """AccelError bad_request."""
    try:
        return query["model"]
    except KeyError:
        raise AccelError("bad_request", "the query needs model=NAME", param="model") from None


def flag(query: Mapping[str, str], key: str, default: str = "0") -> bool:
    return query.get(key, default) not in ("0", "")


def number(query: Mapping[str, str], key: str, default: int, digits: int = 9) -> int:
    """AccelError bad_request."""
    text = query.get(key, str(default))
    if not text.isdigit() or len(text) > digits:
        raise AccelError("bad_request", f"{key} must be a number, not {text[:20]!r}", param=key)
    return int(text)
