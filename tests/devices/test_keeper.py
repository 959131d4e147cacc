"""The keeper of levels, its setters and its gauge, over a made-up /sys and buses that are not there."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from accelerd.base.events import EventStream
from accelerd.base.ports import SystemClock
from accelerd.config.machine_settings import PerformanceSettings
from accelerd.config.model import Config, ConfigApplied, ModelSpec
from accelerd.devices.current_devices import DevicesChanged
from accelerd.devices.keeper import LevelKeeper, read_level
from accelerd.devices.level import LevelReading, LevelRules
from accelerd.devices.model import Device
from accelerd.devices.setters import DirectSetter, HelperSetter, LevelSetters, OtherTools
from accelerd.estimate.placing import default_device
from accelerd.helper.gpu import LevelError
from accelerd.policy.clock_boost import ClockBoost
from accelerd.scheduler.events import ModelInUse
from accelerd.system.dbus.client import BusClient, BusError
from tests.helper.world import APU, CARD, Sysfs, glib_worker

__all__ = ["glib_worker"]

GPU = Device("gpu", "Radeon 8060S", driver="amdgpu", slot=APU, apu=True)
QUICK = LevelRules("busy", hold_time=0.0)


class FakeSetter:
    """A setter that notes what it is asked."""

    def __init__(self, kind: str = "fake", why_not: str | None = None) -> None:
        self.kind = kind
        self.why = why_not
        self.error: LevelError | None = None
        self.levels: dict[str, str] = {}
        self.calls: list[str] = []
        self.closed = False

    async def why_not(self, slot: str) -> str | None:
        return self.why

    async def set(self, slot: str, level: str) -> None:
        self.calls.append(f"set {level}")
        if self.error:
            raise self.error
        self.levels[slot] = level

    async def restore(self, slot: str) -> None:
        self.calls.append("restore")
        del self.levels[slot]

    async def holds(self, slot: str) -> bool:
        return slot in self.levels

    async def close(self) -> None:
        self.closed = True


class Sensors:
    def __init__(self) -> None:
        self.reading = LevelReading("auto", temperature=50)
        self.looks = 0
        self.hang = threading.Event()
        self.hang.set()

    def read(self, slot: str) -> LevelReading:
        self.looks += 1
        self.hang.wait(30)
        return self.reading


class Nobody:
    async def suspects(self) -> str:
        return "nobody"


@asynccontextmanager
async def keeping(
    setter: FakeSetter, sensors: Sensors | None = None, rules: LevelRules = QUICK, patience: float = 5.0
) -> AsyncIterator[LevelKeeper]:
    setters = LevelSetters([setter])
    keeper = LevelKeeper(SystemClock(), setters, (sensors or Sensors()).read, Nobody(), lambda slot: rules, patience)
    keeper.watch([GPU])
    task = asyncio.create_task(keeper.run())
    try:
        yield keeper
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await keeper.close()


async def until(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.005)


async def test_it_raises_and_restores() -> None:
    setter = FakeSetter()
    async with keeping(setter) as keeper:
        keeper.begin(APU)
        await until(lambda: setter.levels == {APU: "high"})
        keeper.end(APU)
        await until(lambda: not setter.levels)
    assert setter.closed


async def test_idle_it_reads_nothing_and_has_no_timer() -> None:
    sensors = Sensors()
    async with keeping(FakeSetter(), sensors) as keeper:
        await asyncio.sleep(0)
        await until(lambda: keeper._due == math.inf)
        loop = asyncio.get_running_loop()
        assert not [handle for handle in loop._scheduled if not handle.cancelled() and handle.when() < loop.time() + 9]
        keeper.begin(APU)
        await until(lambda: sensors.looks)
        keeper.end(APU)
        await until(lambda: keeper._due == math.inf)
    assert sensors.looks <= 2


async def test_short_requests_in_a_row_cost_no_order() -> None:
    setter = FakeSetter()
    async with keeping(setter, rules=LevelRules("busy", hold_time=60.0)) as keeper:
        for _ in range(200):
            keeper.begin(APU)
            await asyncio.sleep(0)
            keeper.end(APU)
        await until(lambda: setter.calls)
        for _ in range(200):
            keeper.begin(APU)
            keeper.end(APU)
            assert not keeper._wake.is_set()
        assert setter.calls == ["set high"]


async def test_close_puts_everything_back() -> None:
    setter = FakeSetter()
    async with keeping(setter) as keeper:
        keeper.begin(APU)
        await until(lambda: setter.levels)
    assert setter.calls == ["set high", "restore"]


async def test_a_device_that_vanishes_is_let_go_and_one_that_comes_is_kept() -> None:
    setter = FakeSetter()
    async with keeping(setter) as keeper:
        keeper.begin(APU)
        await until(lambda: setter.levels)
        keeper.watch([])
        await until(lambda: not setter.levels)
        assert keeper.report() == []
        keeper.begin(APU)
        keeper.end(APU)
        keeper.watch([GPU])
        keeper.begin(APU)
        await until(lambda: setter.levels)


async def test_a_reading_that_hangs_holds_up_neither_the_level_nor_the_end() -> None:
    setter, sensors = FakeSetter(), Sensors()
    sensors.hang.clear()
    async with keeping(setter, sensors, patience=0.05) as keeper:
        keeper.begin(APU)
        await until(lambda: setter.levels)
        sensors.hang.set()


async def test_a_failure_is_reported_with_every_reason() -> None:
    setter = FakeSetter(why_not="no helper")
    async with keeping(setter) as keeper:
        keeper.begin(APU)
        await until(lambda: keeper.report()[0]["state"] == "unable")
        assert keeper.report()[0]["reason"] == "no helper"
        setter.why = None
        keeper.configure(lambda slot: QUICK)
        await until(lambda: setter.levels)


# --- setters --------------------------------------------------------------------------------------------------


async def test_the_first_setter_that_can_does_it() -> None:
    first, second = FakeSetter("first", why_not="not there"), FakeSetter("second")
    setters = LevelSetters([first, second])
    assert await setters.set(APU, "high") == "second"
    first.why = None
    assert await setters.set(APU, "high") == "first", "it is there by now"
    assert second.levels == {}, "and the other has let go"
    await setters.restore(APU)
    assert first.levels == {}


async def test_when_one_is_refused_the_next_is_asked() -> None:
    first, second = FakeSetter("first"), FakeSetter("second")
    first.error = LevelError("NotAuthorized", "not you")
    assert await LevelSetters([first, second]).set(APU, "high") == "second"
    second.error = LevelError("Failed", "no")
    with pytest.raises(LevelError, match="not you; no"):
        await LevelSetters([first, second]).set(APU, "high")


async def test_what_lies_with_the_device_is_asked_of_nobody_else() -> None:
    first, second = FakeSetter("first"), FakeSetter("second")
    first.error = LevelError("Owned", "it is at manual")
    with pytest.raises(LevelError, match="it is at manual"):
        await LevelSetters([first, second]).set(APU, "high")
    assert second.calls == []


async def test_without_a_bus_the_helper_is_an_obstacle_and_no_rival_is_seen(tmp_path: Path) -> None:
    bus = BusClient(f"unix:path={tmp_path}/nowhere", "system bus")
    helper, rivals = HelperSetter(bus), OtherTools(bus, tmp_path / "lact.sock")
    assert "is not reachable" in (await helper.why_not(APU) or "")
    with pytest.raises(LevelError, match="does not answer"):
        await helper.set(APU, "high")
    assert not await helper.holds(APU)
    await helper.restore(APU)
    assert await rivals.present() == []
    assert await rivals.suspects() == "an unknown program"
    await helper.close()
    await bus.close()


class NamesOnly:
    """A bus on which only `owner` works."""

    def __init__(self, *owned: str) -> None:
        self.owned = owned

    async def owner(self, name: str) -> str:
        return ":1.1" if name in self.owned else ""


@pytest.mark.parametrize(
    ("owned", "found"),
    [
        (("net.hadess.PowerProfiles",), ["power-profiles-daemon"]),
        (("net.hadess.PowerProfiles", "org.freedesktop.UPower.PowerProfiles"), ["power-profiles-daemon"]),
        (("com.redhat.tuned", "net.hadess.PowerProfiles"), ["tuned"]),
        ((), []),
    ],
)
async def test_rivals_by_their_names(tmp_path: Path, owned: tuple[str, ...], found: list[str]) -> None:
    assert await OtherTools(NamesOnly(*owned), tmp_path / "none").present() == found


async def test_a_helper_that_ended_itself_meanwhile_is_asked_again() -> None:
    answers = [BusError("gone", "org.freedesktop.DBus.Error.NoReply"), (7,)]

    class Bus:
        async def call(self, *arguments: object) -> object:
            answer = answers.pop(0)
            if isinstance(answer, BusError):
                raise answer
            return answer

    helper = HelperSetter(Bus())
    await helper.set(APU, "high")
    assert helper._leases == {APU: 7}


async def test_direct_writes_repairs_and_closes(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "sys")
    sysfs.add()
    direct = DirectSetter(sysfs.path, tmp_path)
    assert await direct.why_not(APU) is None
    assert "no permission to write" in (await direct.why_not(CARD) or "")
    await direct.set(APU, "high")
    assert sysfs.level() == "high"
    after_a_crash = DirectSetter(sysfs.path, tmp_path)
    await after_a_crash.repair()
    assert sysfs.level() == "auto"
    await after_a_crash.close()
    await direct.set(APU, "high")
    await direct.close()
    assert sysfs.level() == "auto"


# --- the gauge ------------------------------------------------------------------------------------------------


def test_everything_is_read(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "sys")
    sysfs.add()
    assert read_level(sysfs.path, APU) == LevelReading("auto", 1755.0, 600, 2900, 97.0, 48.0, 90.0)


def test_a_sleeping_device_is_left_asleep(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "sys")
    (sysfs.add() / "power/runtime_status").write_text("suspended\n")
    assert read_level(sysfs.path, APU) == LevelReading()


def test_garbage_is_not_known(tmp_path: Path) -> None:
    sysfs = Sysfs(tmp_path / "sys")
    device = sysfs.add(apu=False)
    hwmon = device / "hwmon/hwmon3"
    for name, text in {"temp1_input": "-40000", "power1_average": "4294967295000000", "freq1_input": "fast"}.items():
        (hwmon / name).write_text(text)
    (device / "gpu_busy_percent").write_text("65535\n")
    (device / "pp_dpm_sclk").write_bytes(b"S: 19Mhz *\n0: 500Mhz \n1: 31Mhz *\n2: 2219Mhz \n\0\0")
    assert read_level(sysfs.path, APU) == LevelReading("auto", None, 31, 2219, None, None, None)
    assert read_level(sysfs.path, "0000:99:00.0") == LevelReading()


# --- models and devices ---------------------------------------------------------------------------------------

NPU = Device("npu", "NPU", driver="amdxdna", slot="0000:c2:00.1")
BROKEN = Device("gpu", "old", driver="amdgpu", slot="0000:01:00.0", problem="no right to")


def test_the_device_of_a_model() -> None:
    assert default_device(ModelSpec("m"), [NPU, BROKEN, GPU]) == APU
    assert default_device(ModelSpec("m", gpu_layers=0), [GPU]) == "cpu"
    assert default_device(ModelSpec("m"), [NPU, BROKEN]) == "cpu"


async def test_use_that_began_before_the_devices_were_known_counts(tmp_path: Path) -> None:
    setter = FakeSetter()
    sysfs = Sysfs(tmp_path / "sys")
    sysfs.add()
    direct = DirectSetter(sysfs.path, tmp_path)
    keeper = LevelKeeper(SystemClock(), LevelSetters([setter, direct]), Sensors().read, Nobody())
    here: list[Device] = []
    performance = ClockBoost(keeper, direct, lambda: here, lambda name: "", events := EventStream())
    events.publish(ConfigApplied(Config(performance=PerformanceSettings(hold_time=0.0))))
    task = asyncio.create_task(performance.run())
    events.publish(ModelInUse(ModelSpec("m"), True))
    await asyncio.sleep(0)
    here.append(Device("gpu", "Radeon", driver="amdgpu", slot=APU, apu=True))
    events.publish(DevicesChanged((), tuple(here)))
    await until(lambda: setter.levels)
    events.publish(ModelInUse(ModelSpec("m"), False))
    await until(lambda: not setter.levels)
    events.publish(ModelInUse(ModelSpec("m"), True))
    await until(lambda: setter.levels)
    events.publish(DevicesChanged(tuple(here), ()))
    await until(lambda: not setter.levels)
    events.publish(ModelInUse(ModelSpec("m"), False))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await performance.keeper.close()
