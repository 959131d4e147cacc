"""Who has the memory given up, and until when: holds of people, games and sleeps, over restarts and across sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from accelerd.base.events import EventStream
from accelerd.config.machine_settings import MemorySettings
from accelerd.config.model import Config, ConfigApplied
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.model import Device
from accelerd.policy.yielding import Yielding, YieldReason, YieldReport, boot_id, gpu_pools
from accelerd.system.private_files import AtomicFile
from tests.fakes.clock import FakeClock
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401

GPU = "0000:c1:00.0"
CARD = "0000:03:00.0"


@dataclass
class Scheduler:
    """Notes what it is told."""

    clock: FakeClock
    told: list[tuple[Any, ...]] = field(default_factory=list)

    def yield_memory(self, pools: frozenset[str] | None, until: float | None, why: str, *, now: bool) -> None:
        left = until - self.clock.now if until is not None else None
        self.told.append((set(pools) if pools is not None else None, left, why, now))

    def resume(self) -> None:
        self.told.append(("resume",))

    @property
    def last(self) -> tuple[Any, ...]:
        return self.told[-1]


class Source:
    """A watch of games that a test drives."""

    def __init__(self) -> None:
        self.report: Callable[[int], None] = lambda games: None
        self.runs = False
        self.starts = 0

    def __call__(self, report: Callable[[int], None]) -> Source:
        self.report = report
        return self

    def start(self) -> None:
        self.runs, self.starts = True, self.starts + 1

    def close(self) -> None:
        self.runs = False


class World:
    """A Yielding and what is around it; `again()` is the next daemon."""

    def __init__(self, directory: Path, *gpus: str) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.slept = 0.0
        self.gpus = list(gpus)
        self.boot = "a boot"
        self.games = Source()
        self.again()

    def again(self) -> None:
        self.scheduler = Scheduler(self.clock)
        file = AtomicFile(self.directory / "run" / "yield.json")
        self.events = EventStream()
        self.yielding = Yielding(
            self.scheduler, self.clock, lambda: self.slept, self.devices, file, self.boot, self.games, self.events
        )

    def devices(self) -> list[Device]:
        return [Device("gpu", id, "amdgpu", id) for id in self.gpus]

    def yield_on(self, *sources: Literal["gamemode", "sleep"]) -> None:
        self.events.publish(ConfigApplied(Config(memory=MemorySettings(yield_on=sources))))

    async def passes(self, seconds: float) -> None:
        """The clock goes on, and what is due is done."""
        self.clock.advance(seconds)
        self.yielding._expire()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, GPU)


async def test_a_person_asks_and_takes_back(world: World) -> None:
    assert world.yielding.report() is None
    assert not await world.yielding.resume()
    assert world.scheduler.told == []
    await world.yielding.ask()
    assert world.scheduler.told == [({GPU}, None, "accelctl yield", False)]
    why = "accelctl yield"
    assert world.yielding.report() == YieldReport(
        what="the GPU", pools=[GPU], remaining=None, why=why, holds=[YieldReason("person", why, None)]
    )
    assert world.yielding.concerns(GPU)
    assert not world.yielding.concerns("ram")
    assert await world.yielding.resume()
    assert world.scheduler.last == ("resume",)
    assert (world.yielding.report(), world.yielding.concerns(GPU)) == (None, False)
    world.yielding.close()


@pytest.mark.parametrize(
    ("gpus", "everything", "pools", "what"),
    [
        ((), False, None, "all memory"),
        ((GPU,), True, None, "all memory"),
        ((GPU, CARD), False, {GPU, CARD}, "2 GPUs"),
    ],
)
async def test_what_is_given_up(
    tmp_path: Path, gpus: tuple[str, ...], everything: bool, pools: set[str] | None, what: str
) -> None:
    world = World(tmp_path, *gpus)
    await world.yielding.ask(60, everything=everything, now=True)
    assert world.scheduler.last == (pools, 60, "accelctl yield", True)
    assert world.yielding.what == what
    assert world.yielding.concerns("ram") == (pools is None)
    world.yielding.close()


async def test_it_ends_when_its_time_is_over(world: World) -> None:
    await world.yielding.ask(60)
    await world.passes(59)
    assert world.yielding.report() is not None
    await world.passes(1)
    assert world.scheduler.last == ("resume",)
    assert world.yielding.report() is None
    world.yielding.close()


async def test_time_asleep_counts(world: World) -> None:
    await world.yielding.ask(3600)
    world.slept += 3000
    await world.passes(599)
    report = world.yielding.report()
    assert report is not None
    assert report.remaining == 1
    world.slept += 1
    await world.passes(0)
    assert world.yielding.report() is None
    world.yielding.close()


async def test_the_loops_own_timer_ends_it(tmp_path: Path) -> None:
    world = World(tmp_path, GPU)
    ended = asyncio.Event()
    world.scheduler.resume = ended.set  # type: ignore[method-assign]
    await world.yielding.ask(0.01)
    world.clock.advance(0.01)
    await asyncio.wait_for(ended.wait(), 20)


async def test_a_second_wish_replaces_the_first(world: World) -> None:
    await world.yielding.ask(60)
    await world.yielding.ask(7200, everything=True)
    assert world.scheduler.last == (None, 7200, "accelctl yield", False)
    await world.yielding.ask(30)
    assert world.scheduler.last == ({GPU}, 30, "accelctl yield", False)
    world.yielding.close()


async def test_it_lasts_as_long_as_the_last_who_wants_it(world: World) -> None:
    await world.yielding.ask(60)
    world.yielding.games(1)
    assert world.scheduler.last == ({GPU}, None, "accelctl yield; gamemode: 1 game", False)
    world.yielding.games(2)
    assert world.scheduler.last[2] == "accelctl yield; gamemode: 2 games"
    await world.passes(60)
    assert world.scheduler.last == ({GPU}, None, "gamemode: 2 games", False)
    world.yielding.games(0)
    assert world.scheduler.last == ("resume",)
    world.yielding.games(0)
    assert world.scheduler.told.count(("resume",)) == 1
    world.yielding.close()


async def test_a_person_overrules_the_games_that_run(world: World) -> None:
    world.yielding.games(2)
    assert await world.yielding.resume()
    said = len(world.scheduler.told)
    world.yielding.games(1)
    world.yielding.games(2)
    assert len(world.scheduler.told) == said
    world.yielding.games(3)
    assert world.scheduler.last[2] == "gamemode: 3 games"
    world.yielding.games(2)
    assert world.scheduler.last[2] == "gamemode: 2 games"
    await world.yielding.resume()
    world.yielding.games(0)
    world.yielding.games(1)
    assert world.scheduler.last[2] == "gamemode: 1 game", "all of those have ended: this is another"


async def test_a_sleep_takes_the_memory_at_once(world: World) -> None:
    world.yielding.sleeping(False)
    assert world.scheduler.told == []
    world.yielding.sleeping(True)
    assert world.scheduler.last == ({GPU}, None, "the machine is about to be suspended", True)
    world.yielding.sleeping(False)
    assert world.scheduler.last == ("resume",)


async def test_a_gpu_that_comes_is_given_up_too(world: World) -> None:
    world.events.publish(DevicesChanged((), tuple(world.devices())))
    assert world.scheduler.told == []
    await world.yielding.ask()
    world.gpus.append(CARD)
    world.events.publish(DevicesChanged((), tuple(world.devices())))
    assert world.scheduler.last[0] == {GPU, CARD}


async def test_games_are_watched_only_where_they_are_configured(world: World) -> None:
    world.yield_on("sleep")
    assert not world.games.runs
    world.yield_on("gamemode")
    world.yield_on("gamemode", "sleep")
    assert (world.games.runs, world.games.starts) == (True, 1)
    world.games.report(1)
    assert world.scheduler.last[2] == "gamemode: 1 game"
    world.yield_on("sleep")
    assert not world.games.runs
    assert world.scheduler.last == ("resume",), "a source that is not configured holds nothing"
    world.yield_on("gamemode")
    world.yielding.close()
    assert not world.games.runs


# --- over restarts --------------------------------------------------------------------------------------------


async def test_it_survives_a_restart_of_the_daemon(world: World) -> None:
    await world.yielding.ask(3600, everything=True)
    world.yielding.games(1)
    world.yielding.close()
    world.clock.advance(600)
    world.again()
    world.yielding.begin()
    assert world.scheduler.told == [(None, 3000, "accelctl yield", False)], "GameMode speaks for itself"
    await world.yielding.resume()
    world.again()
    world.yielding.begin()
    assert world.scheduler.told == []


async def test_without_an_end_it_survives_too(world: World) -> None:
    await world.yielding.ask()
    world.again()
    world.yielding.begin()
    assert world.scheduler.told == [({GPU}, None, "accelctl yield", False)]


@pytest.mark.parametrize("change", ["boot", "time"])
async def test_it_does_not_survive(world: World, change: str) -> None:
    await world.yielding.ask(3600)
    world.yielding.close()
    if change == "boot":
        world.boot = "another boot"
    else:
        world.clock.advance(3600)
    world.again()
    world.yielding.begin()
    assert world.scheduler.told == []


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"boot": 1}', b"\xff", b"[" * 100_000], ids=range(6))
def test_a_file_that_is_not_ours_is_no_wish(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path, GPU)
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / "yield.json").write_bytes(content)
    world.yielding.begin()
    assert world.scheduler.told == []
    assert ("cannot restore" in caplog.text) == bool(content)


async def test_a_disk_that_is_full_costs_the_memory_of_it_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path, GPU)
    (tmp_path / "run").write_text("no directory")
    await world.yielding.ask()
    assert world.scheduler.last[0] == {GPU}
    assert "will not survive a restart" in caplog.text


# --- machines -------------------------------------------------------------------------------------------------


def test_which_gpus_models_run_on() -> None:
    devices = [
        Device("cpu", "a processor"),
        Device("gpu", "a card", "amdgpu", slot=CARD),
        Device("gpu", "in the processor", "amdgpu", slot=GPU, apu=True),
        Device("gpu", "a server's", "ast", slot="0000:05:00.0"),
        Device("gpu", "broken", "amdgpu", slot="0000:06:00.0", problem="no node"),
        Device("npu", "an NPU", "amdxdna", slot="0000:07:00.0"),
    ]
    assert gpu_pools(devices) == {CARD, GPU}


def test_the_boot(tmp_path: Path) -> None:
    assert boot_id(tmp_path) == ""
    assert boot_id(Path("/proc"))
