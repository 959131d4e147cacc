"""When a server without keys, which is well without a model too, counts as ready."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from accelerd.base.exits import Cause
from accelerd.base.ports import SystemClock
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.supervise.process.output import REDACTED_BYTES, OutputRedactor
from accelerd.supervise.process.processes import ListenerOwner
from accelerd.supervise.ready import READY, Outcome, wait_ready

ANSWER = {"choices": [{"message": {"content": "x"}}]}
REFUSAL = {"error": "Failed to load qwen3:4b model!"}


class Script:
    """A server that is always well and answers the tiny requests one after the other, the last one for ever."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.heads: list[bytes] = []
        self.tasks: list[asyncio.Task[None]] = []

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):  # who only looks who listens asks nothing
            await self._answer(await reader.readuntil(b"\r\n\r\n"), writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        self.heads.append(head)
        code, body = 200, b"{}"
        if head.startswith(b"POST"):
            self.asked += 1
            code, said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            body = json.dumps(said).encode()
        writer.write(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (code, len(body), body))
        await writer.drain()


@asynccontextmanager
async def waiting(
    script: Script, owner: ListenerOwner = ListenerOwner.OURS, **plan: Any
) -> AsyncIterator[asyncio.Task[Outcome]]:
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    made = LaunchPlan(
        model="npu/m", argv=("flm",), env={}, endpoint=Endpoint(port=server.sockets[0].getsockname()[1]), secret="",
        flags=(), health_path="/api/version", keyed=False, **{"prove": True, **plan},
    )  # fmt: skip

    async def owned(port: int) -> ListenerOwner:
        return owner

    async def ours(pid: int) -> bool:
        return True

    task = asyncio.create_task(wait_ready(made, SystemClock(), owned, ours))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.close()
        await asyncio.gather(*script.tasks)
        await server.wait_closed()


async def test_it_is_ready_when_it_has_answered_and_no_key_was_sent() -> None:
    script = Script((200, ANSWER))
    async with waiting(script) as outcome:
        assert await outcome == READY
    assert script.asked == 1
    assert not any(b"authorization" in head.lower() for head in script.heads)


@pytest.mark.parametrize("answer", [(200, REFUSAL), (500, REFUSAL), (404, {"error": "Not Found"}), (200, None)])
async def test_B_FLM655_a_server_that_is_well_and_refuses_is_without_its_model(answer: tuple[int, Any]) -> None:
    """It says 200 when it means no, and null when it has nothing."""
    script = Script(answer)
    async with waiting(script) as outcome:
        found = await outcome
    assert found.cause is Cause.WITHOUT_MODEL
    assert script.asked == 3
    if answer[1] == REFUSAL:
        assert "Failed to load qwen3:4b model!" in found.message


async def test_a_refusal_or_two_may_be_a_model_that_loads() -> None:
    async with waiting(Script((200, REFUSAL), (200, REFUSAL), (200, ANSWER))) as outcome:
        assert await outcome == READY


async def test_B_a_full_queue_is_no_refusal() -> None:
    script = Script(*[(503, {"error": "NPU is in use and request queue is full (limit: 10)."})] * 5, (200, ANSWER))
    async with waiting(script) as outcome:
        assert await outcome == READY
    assert script.asked == 6


async def test_what_is_not_ours_is_asked_nothing() -> None:
    script = Script((200, ANSWER))
    async with waiting(script, ListenerOwner.FOREIGN) as outcome:
        assert (await outcome).cause is Cause.PORT_UNAVAILABLE
    assert script.asked == 0
    assert script.heads == []


async def test_without_the_wish_for_a_proof_nothing_is_asked_of_the_model() -> None:
    script = Script((200, ANSWER))
    async with waiting(script, prove=False) as outcome:
        assert await outcome == READY
    assert script.asked == 0


def test_only_harmless_lines_get_through() -> None:
    discreet = OutputRedactor(r"\[(?:ERROR|Linux)\]")
    assert discreet(b"open sesame\n[ERR") == b""
    assert discreet(b"OR] no\nsecret [ERROR]\n[Linux]") == b"[ERROR] no\n"
    assert discreet(b" x\n") == b"[Linux] x\n"
    assert discreet(b"[ERROR]" + b"x" * REDACTED_BYTES) == b""
    assert discreet(b"rest of it\n[ERROR] again\n") == b"[ERROR] again\n"
