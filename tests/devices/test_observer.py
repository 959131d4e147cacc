"""One look at all devices: what belongs to which, NVIDIA through its library, the tree below /sys without udev."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from accelerd.base.ports import Roots
from accelerd.control.devices import device_report
from accelerd.devices import nvml
from accelerd.devices.fdinfo import MemoryHolder
from accelerd.devices.inventory import Inventory, inventory
from accelerd.devices.model import Device, MemoryPool, first_gpu
from accelerd.devices.observer import DeviceObserver, rest
from accelerd.devices.readings import Frequency, Readings
from accelerd.devices.udev import SysfsSource
from tests.devices.recorded import link, machine
from tests.devices.strix_halo import NPU_LOAD, metrics
from tests.devices.test_fdinfo import AMDGPU, process
from tests.fakes.clock import FakeClock

GIB = 1 << 30
SLOT = "0000:c4:00.0"
PLACE = Path("/sys/devices/pci0000:00") / SLOT
APU = Device(
    "gpu", "8060S", "amdgpu", SLOT, apu=True, unified=True, directory=PLACE, vendor="1002",
    pools=(MemoryPool("vram", GIB), MemoryPool("gtt", 96 * GIB), MemoryPool("unified", 97 * GIB)),
)  # fmt: skip
NPU = Device("npu", "npu5", "amdxdna", "0000:c5:00.1", vendor="1022", directory=PLACE.parent / "0000:c5:00.1")
NVIDIA = Device("gpu", "RTX", "nvidia", "0000:01:00.0", vendor="10de", directory=PLACE.parent / "0000:01:00.0")


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    made = machine(tmp_path)
    for device in (APU, NPU, NVIDIA):
        assert device.directory is not None
        power = made.sys / device.directory.relative_to("/sys") / "power"
        power.mkdir(parents=True)
        (power / "runtime_status").write_text("active\n")
    own = made.sys / PLACE.relative_to("/sys")
    (own / "gpu_metrics").write_bytes(metrics())
    (own / "mem_info_vram_used").write_text(f"{GIB}\n")
    (own / "mem_info_gtt_used").write_text(f"{9 * GIB}\n")
    return made


def no_library(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}")


def test_the_npus_load_comes_from_the_gpu_beside_it(roots: Roots) -> None:
    gpu, npu = DeviceObserver(roots, FakeClock()).look([APU, NPU])
    assert (npu.readings.busy, npu.readings.power) == (NPU_LOAD, 1.5)
    (roots.sys / PLACE.relative_to("/sys") / "power/runtime_status").write_text("suspended\n")
    gpu, npu = DeviceObserver(roots, FakeClock()).look([APU, NPU])
    assert (gpu.readings.asleep, npu.readings.busy) == (True, None)
    assert "asleep" in npu.readings.reasons["busy"]


def test_who_holds_the_memory_and_how_much_is_others(roots: Roots) -> None:
    process(roots.proc, 77, "llama-server", _3=("/dev/dri/renderD128", AMDGPU.format(client=1, ns=0)))
    [look] = DeviceObserver(roots, FakeClock()).look([APU])
    ours = (22 << 20) + (544428 << 10)
    assert [(holder.pid, holder.total) for holder in look.holders] == [(77, ours)]
    assert look.others == 10 * GIB - ours
    told = msgspec.to_builtins(device_report(look, {77: "qwen"}, "somebody"))
    assert (told["holders"][0]["model"], told["level_owner"], told["others"]) == ("qwen", "somebody", look.others)
    assert list(told["pools"])[2] == {"name": "unified", "total": 97 * GIB, "used": 10 * GIB}
    assert told["readings"]["pools"] == ()


def test_a_load_that_only_the_clients_tell_is_known_at_the_second_look(roots: Roots) -> None:
    clock = FakeClock()
    observer = DeviceObserver(roots, clock)
    process(roots.proc, 77, "server", _3=("/dev/dri/renderD128", AMDGPU.format(client=1, ns=0)))
    (roots.sys / PLACE.relative_to("/sys") / "gpu_metrics").unlink()
    [look] = observer.look([APU])
    assert (look.readings.busy, list(look.readings.reasons)) == (None, ["busy"])
    clock.advance(2)
    (roots.proc / "77/fdinfo/3").write_text(AMDGPU.format(client=1, ns=500_000_000))
    [look] = observer.look([APU])
    assert (look.readings.busy, look.readings.reasons) == (25, {})


def test_a_device_that_has_gone_is_forgotten(roots: Roots) -> None:
    observer = DeviceObserver(roots, FakeClock())
    observer.look([APU, NPU])
    observer.look([NPU])
    assert list(observer._readers) == [NPU.id]


@pytest.mark.parametrize(("readings", "others"), [
    (Readings(pools=(MemoryPool("vram", 100, 70), MemoryPool("visible vram", 100, 70))), 40),
    (Readings(pools=(MemoryPool("vram", 100, 10),)), 0),
    (Readings(pools=(MemoryPool("vram", 100, None),)), None),
    (Readings(pools=(MemoryPool("unified", 100, 90),)), None),  # the machine's memory: most of it is nobody's GPU's
    (Readings(), None),
])  # fmt: skip
def test_the_rest(readings: Readings, others: int | None) -> None:
    assert rest(readings, [MemoryHolder(1, "x", {"vram": 30, "cpu": 1000})]) == others


# --- NVIDIA ---


class NvmlError(Exception):
    pass


class FakeNvml:
    """One card; functions named in `broken` are not supported by it."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU, NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM = 0, 0, 2

    def __init__(self, *broken: str, driver: bool = True) -> None:
        self._broken = broken
        self._driver = driver
        self.opened, self.open = 0, False

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": "card",
            "nvmlDeviceGetPciInfo": SimpleNamespace(busId=b"00000000:01:00.0"),
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=24 * GIB, used=GIB),
            "nvmlDeviceGetPowerUsage": 250_500, "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=88), "nvmlDeviceGetClockInfo": 2100,
            "nvmlDeviceGetMaxClockInfo": 2600, "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4 | 0x20,
            "nvmlDeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=77, usedGpuMemory=GIB), SimpleNamespace(pid=78, usedGpuMemory=None),
            ],
            "nvmlDeviceGetGraphicsRunningProcesses": [],
        }  # fmt: skip

        def function(*arguments: Any) -> Any:
            if name in self._broken:
                raise NvmlError("Not Supported")
            return answers[name]

        return function

    def nvmlInit(self) -> None:
        self.opened += 1
        if not self._driver:
            raise NvmlError("Driver Not Loaded")
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False


def test_an_nvidia_card(roots: Roots) -> None:
    library = FakeNvml()
    process(roots.proc, 77, "server")
    [look] = DeviceObserver(roots, FakeClock(), lambda name: library).look([NVIDIA])
    assert look.readings == Readings(
        busy=88, clocks={"sclk": Frequency(2100, None, 2600), "mclk": Frequency(2100, None, 2600)}, power=250.5,
        temperature=61, pools=(MemoryPool("vram", 24 * GIB, GIB),), throttling=("power limit", "temperature"),
    )  # fmt: skip
    assert look.holders == (MemoryHolder(77, "server", {"vram": GIB}), MemoryHolder(78, "?", {"vram": 0}))
    assert not library.open


def test_a_card_without_memory_of_its_own_has_the_machines() -> None:
    library = FakeNvml("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPowerUsage")
    cards, reason = nvml.look(["0000:01:00.0"], (128 * GIB, 28 * GIB), lambda name: library)
    seen = cards["0000:01:00.0"].readings
    assert (seen.pools, seen.power, reason) == ((MemoryPool("unified", 128 * GIB, 100 * GIB),), None, None)
    assert seen.reasons == {"memory": "Not Supported", "power": "Not Supported"}


@pytest.mark.parametrize(("importer", "reason"), [
    (no_library, "cannot import pynvml: No module named 'pynvml'"),
    (lambda name: FakeNvml(driver=False), "Driver Not Loaded"),
    (lambda name: FakeNvml("nvmlDeviceGetCount"), "Not Supported"),
])  # fmt: skip
def test_without_the_library_or_its_driver_there_is_a_reason(roots: Roots, importer: Any, reason: str) -> None:
    [look] = DeviceObserver(roots, FakeClock(), importer).look([NVIDIA])
    assert (look.readings.busy, look.readings.reasons["all"]) == (None, reason)


def test_a_sleeping_card_does_not_see_the_library(roots: Roots) -> None:
    library = FakeNvml()
    assert NVIDIA.directory is not None
    (roots.sys / NVIDIA.directory.relative_to("/sys") / "power/runtime_status").write_text("suspended\n")
    [look] = DeviceObserver(roots, FakeClock(), lambda name: library).look([NVIDIA])
    assert (look.readings.asleep, library.opened) == (True, 0)


def test_what_nvidias_driver_tells_in_proc(roots: Roots) -> None:
    where = roots.proc / "driver/nvidia/gpus/0000:01:00.0"
    where.mkdir(parents=True)
    (where / "information").write_text(
        "Model: \t NVIDIA GeForce RTX 4090\nVideo BIOS: \t ??.??\nGPU Firmware: \t 570.86\nDevice Minor: \t 0\n"
    )
    (roots.dev).mkdir(exist_ok=True)
    (roots.dev / "nvidia0").touch()
    function = roots.sys / "devices/pci0000:00/0000:01:00.0"
    (function / "uevent").write_text("DRIVER=nvidia\nPCI_CLASS=30000\nPCI_ID=10DE:2684\nPCI_SLOT_NAME=0000:01:00.0\n")
    link(roots.sys / "bus/pci/devices/0000:01:00.0", function)
    [gpu] = [d for d in inventory(roots, SysfsSource(roots.sys)) if d.kind == "gpu"]
    assert (gpu.name, gpu.node, gpu.apu, gpu.problem) == ("NVIDIA GeForce RTX 4090", "/dev/nvidia0", False, None)
    assert gpu.firmware == {"gsp": "570.86"}


# --- which one is "the GPU" ---


def gpu(slot: str, driver: str | None = "amdgpu", **more: Any) -> Device:
    return Device("gpu", slot, driver, slot, **more)


@pytest.mark.parametrize(("devices", "expected"), [
    ([gpu("0000:c1:00.0", apu=True), gpu("0000:03:00.0", apu=False)], "0000:03:00.0"),
    ([gpu("0000:09:00.0", apu=True), gpu("0000:0f:00.0", apu=False)], "0000:0f:00.0"),  # a tiny one in the processor
    ([gpu("0000:05:00.0"), gpu("0000:03:00.0")], "0000:03:00.0"),
    ([gpu("0000:03:00.0", problem="may not be opened"), gpu("0000:c1:00.0", apu=True)], "0000:c1:00.0"),
    ([gpu("0000:00:01.0", "virtio-pci"), gpu("0000:00:02.0", None), NPU], None),
    ([], None),
])  # fmt: skip
def test_the_first_usable_gpu(devices: list[Device], expected: str | None) -> None:
    found = first_gpu(devices)
    assert (found.id if found else None) == expected


# --- /sys without udev ---


def test_a_tree_without_udev_tells_what_udev_would(tmp_path: Path) -> None:
    roots = machine(tmp_path)
    pci = roots.sys / "devices/pci0000:00/0000:c1:00.0"
    for name, uevent in {
        "": "DRIVER=amdgpu\nPCI_CLASS=38000\nPCI_ID=1002:150E\nPCI_SLOT_NAME=0000:c1:00.0\n",
        "drm/renderD128": "DEVNAME=dri/renderD128\nMAJOR=226\n",
        "drm/card0/card0-eDP-1": "",
    }.items():
        (pci / name).mkdir(parents=True, exist_ok=True)
        (pci / name / "uevent").write_text(uevent)
    platform = roots.sys / "devices/platform/gpu/drm/renderD129"
    platform.mkdir(parents=True)
    (platform / "uevent").write_text("DEVNAME=/dev/dri/renderD129\n")
    (platform.parent.parent / "uevent").write_text("DRIVER=panthor\n")
    link(roots.sys / "class/drm/renderD128", pci / "drm/renderD128")
    link(roots.sys / "class/drm/renderD129", platform)
    link(roots.sys / "class/drm/card0-eDP-1", pci / "drm/card0/card0-eDP-1")
    link(roots.sys / "class/drm/dangling", roots.sys / "nowhere")
    link(roots.sys / "bus/pci/devices/0000:c1:00.0", pci)
    source = SysfsSource(roots.sys)
    first, second = source.entries("drm")
    assert (first.node, first.driver, str(first.path)) == (
        "/dev/dri/renderD128", "amdgpu", "/sys/devices/pci0000:00/0000:c1:00.0/drm/renderD128",
    )  # fmt: skip
    assert first.pci is not None
    assert (first.pci.slot, first.pci.vendor, first.pci.device, first.pci.pci_class) == (
        "0000:c1:00.0", "1002", "150e", 0x38000,
    )  # fmt: skip
    assert (second.node, second.driver, second.pci) == ("/dev/dri/renderD129", "panthor", None)
    assert [entry.name for entry in source.entries("pci")] == ["0000:c1:00.0"]
    assert list(source.entries("accel")) == []


class NoUdev:
    def entries(self, subsystem: str) -> Any:
        raise ImportError("libudev")


def test_where_libudev_is_missing_the_tree_is_read(tmp_path: Path) -> None:
    roots = machine(tmp_path)
    pci = roots.sys / "devices/pci0000:00/0000:c5:00.1"
    pci.mkdir(parents=True)
    (pci / "uevent").write_text("PCI_CLASS=118000\nPCI_ID=1022:17F0\nPCI_SLOT_NAME=0000:c5:00.1\n")
    link(roots.sys / "bus/pci/devices/0000:c5:00.1", pci)
    npu, cpu = Inventory(roots, NoUdev()).scan()
    assert (npu.kind, npu.id, npu.problem, npu.columns) == (
        "npu",
        "0000:c5:00.1",
        "no driver is bound to the device",
        8,
    )
    assert cpu.kind == "cpu"
