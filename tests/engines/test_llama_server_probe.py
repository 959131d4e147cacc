"""A probe costs no client what a slot has cached of its prompt: which slot is asked, or that none is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.engines.http import HttpError, HttpTimeout
from accelerd.engines.llama_server import probe
from accelerd.engines.llama_server.probe import harmless

IDLE: dict[str, Any] = {"is_processing": False, "id_task": 7, "n_prompt_tokens": 6000}
NEW = {"is_processing": False}  # it has had no task
CLEARED = {**IDLE, "n_prompt_tokens": 0}  # decoding has failed there
TINY = {**IDLE, "n_prompt_tokens": 2}  # an earlier probe
OLD = {"is_processing": False, "id_task": 3}  # a build that does not say how much it holds
UNUSED = {"is_processing": False, "id_task": -1}


def busy(done: int) -> dict[str, Any]:
    return {**IDLE, "is_processing": True, "n_prompt_tokens_processed": done, "next_token": [{"n_decoded": done}]}


@asynccontextmanager
async def server(*answers: Sequence[dict[str, Any]], status: int = 200, **more: Any) -> AsyncIterator[LaunchPlan]:
    """Says this of its slots, one answer after the other, the last one again and again."""
    left = [json.dumps([{"id": at, **slot} for at, slot in enumerate(slots)]).encode() for slots in answers]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"GET /slots ")
        assert b"Bearer secret" in head
        body = left.pop(0) if len(left) > 1 else left[0]
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with running:
        endpoint = Endpoint(port=running.sockets[0].getsockname()[1])
        yield LaunchPlan("m", ("llama-server",), {}, endpoint, "secret", (), **more)


@pytest.mark.parametrize("spare", [NEW, CLEARED, TINY, UNUSED])
@pytest.mark.parametrize("thorough", [False, True])
async def test_a_slot_that_holds_nothing_is_asked(spare: dict[str, Any], thorough: bool) -> None:
    async with server([IDLE, busy(1), spare]) as plan:
        found = await harmless(plan, thorough=thorough)
    assert found is not None
    assert json.loads(found.probe_body or b"")["id_slot"] == 2
    assert found.probe_path == plan.probe_path


@pytest.mark.parametrize("slots", [[IDLE], [IDLE, busy(1)], [OLD], [OLD, IDLE]])
async def test_what_is_cached_stays(slots: list[dict[str, Any]]) -> None:
    async with server(slots) as plan:
        assert await harmless(plan, thorough=False) is None
        assert await harmless(plan, thorough=True) is None, "it cannot be put aside"
    async with server(slots, prompt_cache=1 << 30) as plan:
        assert await harmless(plan, thorough=False) is None
        assert await harmless(plan, thorough=True) == plan


async def test_a_build_that_does_not_say_is_asked_as_before() -> None:
    for status in (404, 501, 401):
        async with server([IDLE], status=status) as plan:
            assert await harmless(plan, thorough=False) == plan
    async with server([{"slots": 1, "is_processing": "yes"}]) as plan:
        assert await harmless(plan, thorough=False) == plan


async def test_slots_that_all_work_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "EVERY", 0.001)
    async with server([busy(1), busy(5)], [busy(1), busy(5)], [busy(1), busy(6)]) as plan:
        assert await harmless(plan, thorough=False) is None
    async with server([busy(1), busy(5)]) as plan:
        with pytest.raises(HttpTimeout, match="none of its 2 slots makes progress"):
            await harmless(plan, thorough=False, stalled=0.05)


async def test_an_engine_that_does_not_answer_does_not_work() -> None:
    async with server([IDLE]) as plan:
        pass
    with pytest.raises(HttpError):
        await harmless(plan, thorough=False)
