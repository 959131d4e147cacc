"""Readings of devices whose files are busy, gone, empty or full of nonsense; and of devices that sleep."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.ports import Roots
from accelerd.devices.drivers import DeviceReader
from accelerd.devices.files import TRIES, AttributeFiles, UnreadableValue
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.readings import KEEP, Frequency
from tests.devices.recorded import machine
from tests.devices.strix_halo import metrics
from tests.fakes.clock import FakeClock

GIB = 1 << 30
PLACE = Path("/sys/devices/pci0000:00/0000:c1:00.0")
APU = Device(
    "gpu", "8060S", "amdgpu", "0000:c1:00.0", "/dev/dri/renderD128", vendor="1002", device="1586", apu=True,
    unified=True, directory=PLACE,
    pools=(MemoryPool("vram", GIB), MemoryPool("gtt", 96 * GIB), MemoryPool("unified", 97 * GIB)),
)  # fmt: skip


class Bench:
    """A device's directory, and a driver that can be told to fail."""

    def __init__(self, roots: Roots, device: Device = APU) -> None:
        self.directory = roots.sys / PLACE.relative_to("/sys")
        self.directory.mkdir(parents=True)
        self.clock = FakeClock()
        self.trouble: dict[str, list[int]] = {}  # name of a file → errors it gives, one a read
        self.opened: list[str] = []
        self.paused: list[float] = []
        self.reader = DeviceReader(device, roots, self.clock, AttributeFiles(self._read, self.paused.append))
        self.look = self.reader.read

    def _read(self, path: Path) -> bytes:
        self.opened.append(path.name)
        if self.trouble.get(path.name):
            raise OSError(self.trouble[path.name].pop(0), "no")
        return path.read_bytes()

    def write(self, **files: str | bytes) -> None:
        for name, content in files.items():
            path = self.directory / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(machine(tmp_path))
    made.write(
        gpu_busy_percent="12", power_dpm_force_performance_level="auto", power__runtime_status="active",
        mem_info_vram_used=str(GIB // 2), mem_info_gtt_used=str(9 * GIB),
        pp_dpm_sclk="0: 600Mhz \n1: 1100Mhz *\n2: 2900Mhz ", hwmon__hwmon3__name="amdgpu",
        hwmon__hwmon3__power1_average="23500000", hwmon__hwmon3__power1_label="PPT",
        hwmon__hwmon3__temp1_input="51000", hwmon__hwmon3__temp1_label="edge",
    )  # fmt: skip
    return made


def test_a_look(bench: Bench) -> None:
    seen = bench.look()
    assert (seen.busy, seen.power, seen.temperature, seen.level) == (12, 23.5, 51, "auto")
    assert seen.clocks == {"sclk": Frequency(1100, 600, 2900)}
    assert {pool.name: pool.used for pool in seen.pools} == {
        "vram": GIB // 2, "gtt": 9 * GIB, "unified": 9 * GIB + GIB // 2,
    }  # fmt: skip
    assert (seen.stale, seen.reasons, seen.asleep) == ({}, {}, False)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN, errno.EIO])
def test_a_file_that_is_busy_for_a_moment_is_asked_again(bench: Bench, number: int) -> None:
    bench.trouble["gpu_busy_percent"] = [number] * (TRIES - 1)
    seen = bench.look()
    assert (seen.busy, seen.stale, len(bench.paused)) == (12, {}, TRIES - 1)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EIO, errno.ENODEV, errno.EPERM, errno.ETIMEDOUT])
def test_what_cannot_be_read_is_the_last_value_marked_stale_and_then_unknown(bench: Bench, number: int) -> None:
    bench.look()
    bench.clock.advance(3)
    bench.trouble["gpu_busy_percent"] = [number] * 100
    seen = bench.look()
    assert (seen.busy, seen.stale) == (12, {"busy": 3})
    assert seen.reasons["busy"].startswith("gpu_busy_percent: ")
    assert seen.power == 23.5, "the others are read"
    bench.clock.advance(KEEP)
    seen = bench.look()
    assert (seen.busy, seen.stale) == (None, {})
    assert bench.opened.count("gpu_busy_percent") <= 1 + 2 * TRIES, "bounded"
    bench.trouble.clear()
    assert (bench.look().busy, bench.look().reasons) == (12, {})


def test_nothing_was_ever_read(bench: Bench) -> None:
    bench.trouble["gpu_busy_percent"] = [errno.EIO] * 100
    seen = bench.look()
    assert (seen.busy, seen.stale, list(seen.reasons)) == (None, {}, ["busy"])


def test_an_empty_file(bench: Bench) -> None:
    bench.look()
    bench.write(power_dpm_force_performance_level="", pp_dpm_sclk="")
    seen = bench.look()
    assert (seen.level, seen.clocks["sclk"].highest) == ("auto", 2900)
    assert {"level", "sclk steps"} <= set(seen.stale)


def test_a_device_that_vanishes_while_it_is_read(bench: Bench) -> None:
    import shutil

    shutil.rmtree(bench.directory)
    seen = bench.look()
    assert (seen.busy, seen.power, seen.clocks, seen.level) == (None, None, {}, None)


@pytest.mark.parametrize("value", ["-3", "101", "4294967295", "12 %", "0x0c", "nan", "", "9" * 5000])
def test_a_load_that_cannot_be_is_refused(bench: Bench, value: str) -> None:
    bench.look()
    bench.write(gpu_busy_percent=value)
    seen = bench.look()
    assert (seen.busy, list(seen.stale)) == (12, ["busy"])


@pytest.mark.parametrize(("file", "value", "field"), [
    ("hwmon__hwmon3__temp1_input", "-273150", "temperatures"),
    ("hwmon__hwmon3__temp1_input", "4000000", "temperatures"),
    ("hwmon__hwmon3__power1_average", "-1", "power"), ("hwmon__hwmon3__power1_average", "99999999999", "power"),
    ("mem_info_vram_used", "-5", "memory vram"), ("mem_info_vram_used", str(2 * GIB), "memory vram"),
    ("mem_info_gtt_used", "18446744073709551615", "memory gtt"),
    ("power_dpm_force_performance_level", "high\x07;rm", "level"), ("pp_dpm_sclk", "0: 99999999Mhz *", "sclk steps"),
])  # fmt: skip
def test_garbage_in_any_file(bench: Bench, file: str, value: str, field: str) -> None:
    good = bench.look()
    bench.write(**{file: value})
    seen = bench.look()
    assert field in seen.stale
    assert seen.reasons[field]
    assert (seen.power, seen.temperature, seen.pools, seen.level) == (good.power, 51, good.pools, good.level)


def test_bytes_that_are_no_text_and_metrics_that_are_cut_off(bench: Bench) -> None:
    bench.write(gpu_busy_percent=b"\xff\xfe\x00", gpu_metrics=metrics()[:3])
    seen = bench.look()
    assert seen.busy is None
    assert set(seen.reasons) == {"busy", "gpu_metrics"}


def test_a_sleeping_gpu_is_left_alone(bench: Bench) -> None:
    bench.look()
    for state in ("suspended", "suspending"):
        bench.write(power__runtime_status=state)
        bench.opened.clear()
        seen = bench.look()
        assert bench.opened == ["runtime_status"], "everything else could wake it"
        assert (seen.asleep, seen.busy, seen.level) == (True, None, None)
        assert [(pool.name, pool.used) for pool in seen.pools] == [("vram", None), ("gtt", None), ("unified", None)]
    bench.write(power__runtime_status="active")
    assert bench.look().busy == 12


def test_metrics_stand_in_for_what_has_no_file(bench: Bench) -> None:
    for name in ("gpu_busy_percent", "hwmon/hwmon3/power1_average"):
        (bench.directory / name).unlink()
    data = bytearray(metrics())
    data[42:44] = (55).to_bytes(2, "little")
    data[112:116] = (17_250).to_bytes(4, "little")
    data[182:184] = (1962).to_bytes(2, "little")
    bench.write(gpu_metrics=bytes(data), pp_dpm_fclk="0: 600Mhz \n1: 2000Mhz ")
    seen = bench.look()
    assert (seen.busy, seen.power) == (55, 17.25)
    assert seen.clocks["fclk"] == Frequency(1962, 600, 2000), "no step has a star"
    assert (seen.npu_busy, seen.npu_power) == (37, 1.5)
    assert (seen.dram_read, seen.dram_write) == (40e9, 2e9)


def test_throttling_is_seen_between_two_looks(bench: Bench) -> None:
    data = bytearray(metrics())

    def held(thm_gfx: int, fppt: int) -> tuple[str, ...]:
        data[248:252], data[236:240] = thm_gfx.to_bytes(4, "little"), fppt.to_bytes(4, "little")
        bench.write(gpu_metrics=bytes(data))
        return bench.look().throttling

    assert held(500, 7) == ()
    assert held(500, 7) == ()
    assert held(600, 9) == ("power limit", "temperature")
    assert held(600, 9) == ()


# --- other drivers ---


def of(tmp_path: Path, driver: str, kind: Any = "gpu", **files: str) -> Bench:
    bench = Bench(machine(tmp_path), Device(kind, "x", driver, "0000:c1:00.0", directory=PLACE, vendor="8086"))
    bench.write(**files)
    return bench


def test_xe_tells_energy_which_becomes_power(tmp_path: Path) -> None:
    bench = of(
        tmp_path, "xe", hwmon__hwmon2__energy1_input="1000000", hwmon__hwmon2__energy1_label="card",
        tile0__gt0__freq0__act_freq="1450", tile0__gt0__freq0__rpn_freq="300", tile0__gt0__freq0__max_freq="2850",
        tile0__gt0__freq0__throttle__reason_thermal="1", tile0__gt0__freq0__throttle__reason_pl1="0",
    )  # fmt: skip
    seen = bench.look()
    assert (seen.power, seen.clocks["sclk"], seen.throttling) == (None, Frequency(1450, 300, 2850), ("thermal",))
    bench.clock.advance(2)
    bench.write(hwmon__hwmon2__energy1_input="61000000")
    assert bench.look().power == 30
    bench.clock.advance(1)
    bench.write(hwmon__hwmon2__energy1_input="5")
    assert bench.look().power is None, "the counter began anew"


def test_i915_has_its_clocks_below_its_card(tmp_path: Path) -> None:
    bench = of(
        tmp_path, "i915", drm__card1__gt__gt0__rps_act_freq_mhz="600", drm__card1__gt__gt0__rps_RPn_freq_mhz="300",
        drm__card1__gt__gt0__rps_max_freq_mhz="2450", drm__card1__gt__gt0__throttle_reason_pl2="1",
        drm__card1__gt__gt0__throttle_reason_status="1",
    )  # fmt: skip
    seen = bench.look()
    assert (seen.clocks["sclk"], seen.throttling) == (Frequency(600, 300, 2450), ("pl2",))


def test_ivpu_counts_its_work(tmp_path: Path) -> None:
    bench = of(
        tmp_path, "intel_vpu", "npu", npu_busy_time_us="1000000", npu_current_frequency_mhz="1400",
        npu_max_frequency_mhz="1900", npu_memory_utilization=str(GIB),
    )  # fmt: skip
    assert bench.look().busy is None
    bench.clock.advance(4)
    bench.write(npu_busy_time_us="2000000")
    seen = bench.look()
    assert (seen.busy, seen.clocks["npuclk"]) == (25, Frequency(1400, None, 1900))
    assert seen.pools == (MemoryPool("ram", GIB, GIB),)


def test_a_driver_that_nobody_knows(tmp_path: Path) -> None:
    assert of(tmp_path, "virtio-pci").look().reasons == {"all": "the driver virtio-pci is not supported"}


def test_the_processors_memory(tmp_path: Path) -> None:
    roots = machine(tmp_path)
    seen = DeviceReader(Device("cpu", "cpu"), roots, FakeClock()).read()
    assert seen.pools == (MemoryPool("ram", 32 * GIB, 12 * GIB),)


def test_files_say_why(tmp_path: Path) -> None:
    files = AttributeFiles(pause=lambda seconds: None)
    with pytest.raises(UnreadableValue, match="missing: No such file") as missing:
        files.text(tmp_path / "missing")
    assert missing.value.absent
    (tmp_path / "padded").write_bytes(b"OD_SCLK:\n0: 600Mhz\n\0\0\0")
    assert files.text(tmp_path / "padded") == "OD_SCLK:\n0: 600Mhz"
