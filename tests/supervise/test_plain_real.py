"""The real llama-server under the supervisor: what the fake one may have wrong."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.exits import Cause
from accelerd.base.ports import SystemClock
from accelerd.config.model import ModelSpec
from accelerd.supervise.supervisor import ProcessSupervisor
from tests.models import make_model
from tests.real.server import Connection, real_engine
from tests.supervise.bench import Heard, SupervisorBench, alive


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@asynccontextmanager
async def real(bench: SupervisorBench, transport: str = "auto") -> AsyncIterator[tuple[ProcessSupervisor, Heard]]:
    heard = Heard()
    engine = real_engine(bench.roots.cache, transport)
    supervisor = ProcessSupervisor(heard, {"llama-server": engine}, bench.roots, SystemClock())
    try:
        yield supervisor, heard
    finally:
        assert await supervisor.close(10)


def spec(path: Path, **settings: Any) -> ModelSpec:
    return ModelSpec("tiny", path=str(path), **{"context": 1024, "threads": 1, **settings})


@pytest.mark.parametrize("transport", ["unix", "tcp"])
async def test_ready_probed_and_stopped(bench: SupervisorBench, models: Path, transport: str) -> None:
    async with real(bench, transport) as (supervisor, heard):
        supervisor.start(1, spec(make_model(models)))
        await heard.wait("ready", 1)
        supervisor.probe(1)
        assert await heard.wait("probed", 1) is True
        assert supervisor.process_finder()()[1]
        supervisor.stop(1)
        exit = await heard.wait("gone", 1)
    assert (exit.cause, exit.status) == (Cause.STOPPED, 0)


async def test_stop_while_a_stream_runs_does_not_wait_for_it(bench: SupervisorBench, models: Path) -> None:
    """SIGTERM alone lasts as long as the stream's client or the next ping: up to half a minute."""
    async with real(bench) as (supervisor, heard):
        supervisor.start(1, spec(make_model(models), stop_timeout=0.5))
        endpoint, secret = await heard.wait("ready", 1)
        connection = await Connection.open(endpoint)
        body = {"prompt": "on and on", "ignore_eos": True, "max_tokens": 100_000, "stream": True}
        await connection.send("POST", "/v1/completions", secret, body)
        assert (await connection.head())[0] == 200
        supervisor.stop(1)
        async with asyncio.timeout(5):
            exit = await heard.wait("gone", 1)
        connection.writer.close()
        assert exit.cause is Cause.STOPPED


async def test_file_that_is_no_model(bench: SupervisorBench, tmp_path: Path) -> None:
    path = tmp_path / "garbage.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 4096)
    async with real(bench) as (supervisor, heard):
        supervisor.start(1, spec(path))
        exit = await heard.wait("gone", 1)
    assert exit.cause in (Cause.EXITED, Cause.NO_MODEL, Cause.REFUSED)
    assert exit.message


async def test_stop_while_it_loads(bench: SupervisorBench, models: Path) -> None:
    async with real(bench) as (supervisor, heard):
        supervisor.start(1, spec(make_model(models, size_mb=400), mmap=False))
        async with asyncio.timeout(10):
            while (facts := supervisor.facts(1)) is None or facts.pid is None:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        supervisor.stop(1)
        exit = await heard.wait("gone", 1)
        assert heard.of(1) == ["gone"]
        assert not alive(facts.pid)
    assert exit.cause is Cause.STOPPED


async def test_killed_when_ready(bench: SupervisorBench, models: Path) -> None:
    async with real(bench) as (supervisor, heard):
        supervisor.start(1, spec(make_model(models)))
        await heard.wait("ready", 1)
        facts = supervisor.facts(1)
        assert facts is not None
        assert facts.pid is not None
        os.kill(facts.pid, signal.SIGKILL)
        exit = await heard.wait("gone", 1)
    assert (exit.cause, exit.status) == (Cause.SIGNALED, -signal.SIGKILL)
