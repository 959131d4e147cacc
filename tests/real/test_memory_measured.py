"""What the real llama-server uses is what a look says, before, while and after it works."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from accelerd.base.events import EventStream
from accelerd.base.ports import Roots, SystemClock
from accelerd.config.model import ModelSpec
from accelerd.devices.inventory import inventory
from accelerd.devices.observer import DeviceObserver
from accelerd.memory.measure import Meter
from accelerd.memory.model import RAM, MemorySnapshot
from accelerd.memory.resident import shared
from accelerd.memory.watch import MemoryWatch
from accelerd.supervise.supervisor import ProcessSupervisor
from tests.models import make_model
from tests.real.server import Connection, real_engine
from tests.supervise.bench import Heard

MB = 10**6
PROC = Path("/proc")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def roots(tmp_path: Path) -> Iterator[Roots]:
    with tempfile.TemporaryDirectory(prefix="acc-") as runtime:
        yield Roots(tmp_path / "c.toml", Path(runtime), tmp_path, tmp_path, home=tmp_path)


class Scene:
    """A supervisor with the real engine, and a watch that looks at what it runs."""

    def __init__(self, roots: Roots) -> None:
        self.heard = Heard()
        clock = SystemClock()
        self.supervisor = ProcessSupervisor(self.heard, {"llama-server": real_engine(roots.cache)}, roots, clock)
        devices = inventory(roots)
        self.told: list[MemorySnapshot] = []
        self._news = asyncio.Event()
        meter = Meter(roots, clock, DeviceObserver(roots, clock))
        events = EventStream()
        self.watch = MemoryWatch(
            meter, lambda: devices, self.supervisor.process_finder, events, clock, working=lambda: True
        )
        events.subscribe(MemorySnapshot, self._hear)

    def _hear(self, seen: MemorySnapshot) -> None:
        self.told.append(seen)
        self._news.set()

    async def until_told(self, instance: int, least: int) -> None:
        """The watch, by itself, says that the instance uses so much."""
        async with asyncio.timeout(20):
            while not self.told or self.told[-1].used.get(instance, {}).get(RAM, 0) < least:
                self._news.clear()
                await self._news.wait()

    def own_share(self, instance: int) -> int:
        facts = self.supervisor.facts(instance)
        assert facts is not None
        assert facts.pid is not None
        share = shared(PROC, facts.pid)
        assert share is not None
        return share.total

    async def one_look(self, instance: int) -> int:
        """The bytes that one look says, which is within 5 % of what the kernel says of the process."""
        before = self.own_share(instance)
        seen = await self.watch.look()
        after = self.own_share(instance)
        used = seen.used[instance][RAM]
        assert 0.95 * min(before, after) <= used <= 1.05 * max(before, after)
        return used


@asynccontextmanager
async def scene(roots: Roots) -> AsyncIterator[Scene]:
    made = Scene(roots)
    made.watch.start()
    try:
        yield made
    finally:
        await made.watch.close()
        assert await made.supervisor.close(10)


@pytest.mark.parametrize(("size", "mmap"), [(50, True), (200, True), (200, False), (1000, True)])
async def test_a_look_follows_the_process(roots: Roots, models: Path, size: int, mmap: bool) -> None:
    path = make_model(models, size_mb=size, ctx=4096)
    async with scene(roots) as s:
        s.supervisor.start(1, ModelSpec("m", path=str(path), context=4096, threads=2, mmap=mmap))
        assert s.watch.want()
        endpoint, secret = await s.heard.wait("ready", 1)
        await s.until_told(1, int(0.9 * size * MB))
        loaded = await s.one_look(1)
        connection = await Connection.open(endpoint)
        body = {"prompt": "a " * 256, "ignore_eos": True, "max_tokens": 8}
        assert (await connection.request("POST", "/v1/completions", secret, body)).status == 200
        await connection.close()
        assert await s.one_look(1) > loaded, "its cache has been touched"
        s.supervisor.stop(1)
        await s.heard.wait("gone", 1)
        assert (await s.watch.look()).used == {}
