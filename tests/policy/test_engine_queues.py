"""The queue inside an engine: read while it has requests, forgotten afterwards, and never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from accelerd.base.events import EventStream
from accelerd.config.model import ModelSpec
from accelerd.engines.base import Endpoint, LaunchPlan
from accelerd.policy.engine_queues import EngineQueues, total
from accelerd.scheduler.events import ModelInUse

METRIC = "vllm:num_requests_waiting"
SPEC = ModelSpec("m", path="/m")


@pytest.mark.parametrize(
    ("text", "waiting"),
    [
        (f'# HELP {METRIC} Number.\n# TYPE {METRIC} gauge\n{METRIC}{{engine="0",model_name="m"}} 3.0\n', 3),
        (f'{METRIC}{{engine="0"}} 2.0\n{METRIC}{{engine="1"}} 5.0 1700000000\n', 7),
        (f"{METRIC} 4\n", 4),
        (f'{METRIC}_by_reason{{reason="capacity"}} 9.0\nvllm:num_requests_running{{engine="0"}} 8.0\n', 0),
        (f'{METRIC}{{a="b"}} NaN\n{METRIC}{{a="c"}} +Inf\n{METRIC}{{a="d"}} x\n{METRIC}{{', 0),
        (f'{METRIC}{{a="}}"}} -1', 0),
        ("", 0),
    ],
)
def test_the_gauge_is_summed_over_its_labels_and_what_is_no_number_is_nothing(text: str, waiting: int) -> None:
    assert total(text.encode(), METRIC) == waiting


class Metrics:
    """A server of metrics, and what it was asked."""

    def __init__(self) -> None:
        self.waiting = 0
        self.status = 200
        self.asked: list[str] = []
        self.answered = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        body = f'{METRIC}{{engine="0"}} {self.waiting}.0\n'.encode()
        writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n" % (self.status, len(body)) + body)
        await writer.drain()
        writer.close()
        self.answered.set()


@asynccontextmanager
async def world(metric: bool = True) -> AsyncIterator[tuple[Metrics, EngineQueues, EventStream]]:
    metrics, events = Metrics(), EventStream()
    server = await asyncio.start_server(metrics.serve, "127.0.0.1", 0)
    async with server:
        endpoint = Endpoint(port=server.sockets[0].getsockname()[1])
        plan = LaunchPlan("m", (), {}, endpoint, "s3cret", (), queue_metric=("/metrics", METRIC) if metric else None)
        yield metrics, EngineQueues(lambda model: plan, events, every=0.001), events
        events.publish(ModelInUse(SPEC, False))


async def until(metrics: Metrics, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            metrics.answered.clear()
            await metrics.answered.wait()


def readers() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("queue of")]


async def test_it_is_read_while_the_model_has_requests_and_forgotten_afterwards() -> None:
    async with world() as (metrics, queues, events):
        metrics.waiting = 5
        assert (queues.waiting("m"), metrics.asked) == (0, [])
        events.publish(ModelInUse(SPEC, True))
        assert readers() == ["queue of m"]
        await until(metrics, lambda: queues.waiting("m") == 5)
        assert metrics.asked[0].startswith("GET /metrics HTTP/1.1\r\n")
        assert "Authorization: Bearer s3cret" in metrics.asked[0]
        metrics.waiting = 2
        await until(metrics, lambda: queues.waiting("m") == 2)
        metrics.status = 500
        await until(metrics, lambda: queues.waiting("m") == 0)
        events.publish(ModelInUse(SPEC, False))
        await asyncio.sleep(0)
        assert (queues.waiting("m"), readers()) == (0, [])


async def test_an_engine_without_such_a_metric_is_not_asked() -> None:
    async with world(metric=False) as (metrics, queues, events):
        events.publish(ModelInUse(SPEC, True))
        assert (queues.waiting("m"), readers(), metrics.asked) == (0, [], [])
