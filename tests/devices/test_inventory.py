"""The inventory, over a fake udev source and made-up /sys, /dev and /proc."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from accelerd.base.ports import Roots
from accelerd.devices.host import Host, machine_memory
from accelerd.devices.inventory import Inventory, device_name, inventory
from accelerd.devices.model import Device, DeviceTrouble, MemoryPool
from accelerd.devices.troubles import ACCEL_FIX, GROUPS_FIX
from accelerd.devices.udev import PciFunction, UdevDevice

AMD = PciFunction("0000:c1:00.0", "amdgpu", "1002", "1586", 0x038000, Path("/sys/devices/pci0/c1"))
NPU = PciFunction("0000:c2:00.1", "amdxdna", "1022", "17f0", 0x118000, Path("/sys/devices/pci0/c2"))
INTEL = PciFunction(
    "0000:00:02.0", "i915", "8086", "a780", 0x030000, Path("/sys/devices/pci0/02"), ("Intel", "UHD 770")
)
NVIDIA = PciFunction("0000:01:00.0", "nvidia", "10de", "2684", 0x030000, Path("/sys/devices/pci0/01"))
BMC = PciFunction("0000:05:00.0", "ast", "1a03", "2000", 0x030000, Path("/sys/devices/pci0/05"))


def pci(function: PciFunction) -> UdevDevice:
    return UdevDevice("pci", function.slot, None, function.driver, function.path, function)


def node(subsystem: str, path: str, function: PciFunction) -> UdevDevice:
    name = Path(path).name
    return UdevDevice(subsystem, name, path, function.driver, function.path / subsystem / name, function)


class FakeUdev:
    def __init__(self, *entries: UdevDevice, broken: Exception | None = None) -> None:
        self._entries = entries
        self._broken = broken

    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        if self._broken:
            raise self._broken
        return [entry for entry in self._entries if entry.subsystem == subsystem]


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """A machine with 32 GiB, 20 of them available, and nothing else."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   20971520 kB\n")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: Ryzen AI MAX\n")
    return Roots(
        config_file=tmp_path / "c", runtime=tmp_path / "r", state=tmp_path / "s", cache=tmp_path / "k", home=tmp_path,
        proc=tmp_path / "proc", sys=tmp_path / "sys", dev=tmp_path / "dev",
    )  # fmt: skip


def make(roots: Roots, *nodes: str) -> None:
    for name in nodes:
        path = roots.dev / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def attributes(roots: Roots, function: PciFunction, **values: str) -> None:
    directory = roots.sys / function.path.relative_to("/sys")
    directory.mkdir(parents=True)
    for name, value in values.items():
        (directory / name).write_text(value)


CPU = Device("cpu", "Ryzen AI MAX", pools=(MemoryPool("ram", 32 << 30, 12 << 30),))


def test_gpu_npu_and_processor(roots: Roots) -> None:
    make(roots, "dri/renderD128", "dri/card0", "accel/accel0")
    attributes(
        roots, AMD, mem_info_vram_total="1073741824\n", mem_info_vram_used="477827072\n",
        mem_info_gtt_total="112742891520\n",
    )  # fmt: skip
    attributes(roots, NPU, vbnv="\x1b[1mRyzenAI-npu5   \x1b[0m\n", fw_version="1.1.2.65\n")
    udev = FakeUdev(
        node("drm", "/dev/dri/card0", AMD), node("drm", "/dev/dri/renderD128", AMD), pci(AMD), pci(NPU),
        node("accel", "/dev/accel/accel0", NPU),
    )  # fmt: skip
    gpu, npu, cpu = Inventory(roots, udev, host=lambda roots: Host(runtimes=frozenset({"amdxdna"}))).scan()
    vram, gtt = 1 << 30, 112742891520
    assert gpu == Device(
        "gpu", "AMD Radeon Graphics (Strix Halo)", "amdgpu", "0000:c1:00.0", "/dev/dri/renderD128",
        (MemoryPool("vram", vram, 477827072), MemoryPool("gtt", gtt, None), MemoryPool("unified", vram + gtt, None)),
        vendor="1002", device="1586", apu=True, unified=True, directory=AMD.path,
    )  # fmt: skip
    assert npu == Device(
        "npu", "RyzenAI-npu5", "amdxdna", "0000:c2:00.1", "/dev/accel/accel0", vendor="1022", device="17f0", columns=8,
        firmware={"npu": "1.1.2.65"}, directory=NPU.path,
    )  # fmt: skip
    assert (cpu.kind, cpu.name) == ("cpu", "Ryzen AI MAX")


def test_the_processor_has_the_machines_memory(roots: Roots) -> None:
    [cpu] = inventory(roots, FakeUdev())
    assert cpu == CPU


def test_several_gpus_by_slot_with_names_of_the_hardware_database(roots: Roots) -> None:
    make(roots, "dri/renderD128", "dri/renderD129")
    udev = FakeUdev(node("drm", "/dev/dri/renderD129", AMD), node("drm", "/dev/dri/renderD128", INTEL))
    names = [device.name for device in inventory(roots, udev)]
    assert names == ["UHD 770", "AMD Radeon Graphics (Strix Halo)", "Ryzen AI MAX"]


@pytest.mark.parametrize(("names", "name"), [
    (("Advanced Micro Devices, Inc. [AMD/ATI]", "Navi 31 [Radeon RX 7900 XT/7900 XTX]"),
     "AMD Radeon RX 7900 XT/7900 XTX"),
    (("Intel Corporation", "DG2 [Arc A380]"), "AMD Arc A380"),
    (("Intel",), "Intel"),
    ((), "AMD 1002:744c"),
])  # fmt: skip
def test_names_of_the_hardware_database(names: tuple[str, ...], name: str) -> None:
    assert device_name(PciFunction("0000:03:00.0", None, "1002", "744c", 0x030000, Path("/sys"), names)) == name


def test_a_node_that_this_user_may_not_open(roots: Roots) -> None:
    make(roots, "dri/renderD128")
    asked: list[Path] = []

    def refuse(path: Path) -> bool:
        asked.append(path)
        return False

    device = inventory(roots, FakeUdev(node("drm", "/dev/dri/renderD128", AMD)), refuse)[0]
    assert device.problem == "this user cannot open /dev/dri/renderD128"
    assert device.fix == GROUPS_FIX
    assert "usermod -aG render,video" in GROUPS_FIX
    assert asked == [roots.dev / "dri/renderD128"]


def test_a_node_that_is_missing(roots: Roots) -> None:
    device = inventory(roots, FakeUdev(node("accel", "/dev/accel/accel0", NPU)))[0]
    assert device.problem == "/dev/accel/accel0 does not exist"


def test_cards_without_render_node(roots: Roots) -> None:
    unbound = PciFunction("0000:03:00.0", None, "1002", "744c", 0x030000, Path("/sys/devices/pci0/03"))
    stuck = PciFunction("0000:04:00.0", "amdgpu", "1002", "744c", 0x030000, Path("/sys/devices/pci0/04"))
    sound = PciFunction("0000:01:00.1", "snd_hda_intel", "10de", "22ba", 0x040300, Path("/sys/devices/pci0/01s"))
    found = inventory(roots, FakeUdev(pci(NVIDIA), pci(unbound), pci(stuck), pci(BMC), pci(sound)))
    problems = {device.slot: device.problem for device in found if device.kind == "gpu"}
    assert problems == {
        "0000:01:00.0": None,  # its driver needs no render node
        "0000:03:00.0": "no driver is bound to the device",
        "0000:04:00.0": "the driver amdgpu created no render node",
    }
    assert all(device.fix for device in found if device.problem)


@pytest.mark.parametrize("error", [ImportError("libudev"), OSError("no netlink")])
def test_without_udev_the_processor_is_left(roots: Roots, error: Exception) -> None:
    assert inventory(roots, FakeUdev(broken=error)) == [CPU]


def test_attributes_that_are_no_numbers_are_unknown(roots: Roots) -> None:
    make(roots, "dri/renderD128")
    attributes(roots, AMD, mem_info_vram_total="nonsense", mem_info_gtt_total="0", product_name="")
    device = inventory(roots, FakeUdev(node("drm", "/dev/dri/renderD128", AMD)))[0]
    assert (device.pools, device.name) == ((), "AMD Radeon Graphics (Strix Halo)")


def test_a_machine_without_proc(tmp_path: Path, roots: Roots) -> None:
    (roots.proc / "meminfo").unlink()
    (roots.proc / "cpuinfo").unlink()
    assert machine_memory(roots) is None
    cpu = inventory(roots, FakeUdev())[0]
    assert cpu.pools == ()
    assert cpu.name


def test_json_has_every_field() -> None:
    assert CPU.json() == {
        "kind": "cpu", "id": "cpu", "name": "Ryzen AI MAX", "driver": None, "slot": None, "node": None,
        "problem": None, "fix": None, "pools": ({"name": "ram", "total": 32 << 30, "used": 12 << 30},),
        "vendor": "", "device": "", "gfx": None, "apu": None, "unified": False, "columns": None, "firmware": {},
        "troubles": (), "directory": None,
    }  # fmt: skip


def test_an_npu_for_root_only_needs_a_rule_and_one_for_a_group_the_group(roots: Roots) -> None:
    """Debian 12 has no udev rule for accel: the node belongs to root, whatever groups a user is in."""
    make(roots, "accel/accel0")
    for mode, fix in ((0o600, ACCEL_FIX), (0o660, GROUPS_FIX)):
        (roots.dev / "accel/accel0").chmod(mode)
        [npu] = [d for d in inventory(roots, FakeUdev(node("accel", "/dev/accel/accel0", NPU)), lambda path: False)
                 if d.kind == "npu"]  # fmt: skip
        assert (npu.problem, npu.fix) == ("this user cannot open /dev/accel/accel0", fix)


def test_an_npu_that_the_kernels_command_line_turns_off(roots: Roots) -> None:
    off = PciFunction("0000:c2:00.1", None, "1022", "17f0", 0x118000, NPU.path)
    told = [
        Inventory(roots, FakeUdev(pci(off)), host=lambda roots, line=line: Host(command_line=line, grubby=True)).scan()[
            0
        ]
        for line in (("quiet", "amd_iommu=off"), ("iommu=pt",))
    ]
    assert told[0].problem == "amd_iommu=off on the kernel command line disables the NPU"
    assert told[0].fix == "sudo grubby --update-kernel=ALL --remove-args=amd_iommu=off --args=iommu=pt && reboot"
    assert told[1].problem == "no driver is bound to the device"


def test_an_npu_without_firmware_or_runtime_says_so(roots: Roots) -> None:
    make(roots, "accel/accel0")
    attributes(roots, NPU, vbnv="RyzenAI-npu5\n")
    npu = Inventory(roots, FakeUdev(node("accel", "/dev/accel/accel0", NPU)), host=lambda roots: Host()).scan()[0]
    assert npu.problem is None, "the driver has it"
    assert [trouble.message for trouble in npu.troubles] == [
        "the runtime of the NPU is not installed",
        "the driver reports no firmware version; the firmware may be missing",
    ]
    assert all(trouble.fix for trouble in npu.troubles)


def test_rocm_needs_kfd_too(roots: Roots) -> None:
    make(roots, "dri/renderD128", "kfd")
    topology = roots.sys / "class/kfd/kfd/topology/nodes/1"
    topology.mkdir(parents=True)
    (topology / "properties").write_text("simd_count 80\nlocation_id 49408\ngfx_target_version 110501\ncwsr_size 1\n")
    udev = FakeUdev(node("drm", "/dev/dri/renderD128", AMD))
    gpu = Inventory(roots, udev, lambda path: path.name != "kfd", host=lambda roots: Host()).scan()[0]
    assert gpu.problem is None
    assert gpu.troubles == (DeviceTrouble("this user cannot open /dev/kfd: ROCm does not work", GROUPS_FIX),)
    assert (gpu.name, gpu.gfx) == ("AMD Radeon 8060S Graphics", "gfx1151")


def test_the_driver_is_asked_only_of_a_gpu_that_is_awake(roots: Roots) -> None:
    make(roots, "dri/renderD128")
    udev, asked = FakeUdev(node("drm", "/dev/dri/renderD128", AMD)), []

    def answer(path: Path) -> bool:
        asked.append(path)
        return False

    status = roots.sys / AMD.path.relative_to("/sys") / "power/runtime_status"
    status.parent.mkdir(parents=True)
    for state in ("suspended", "suspending", "resuming", "error"):
        status.write_text(f"{state}\n")
        assert Inventory(roots, udev, ask_driver=answer).scan()[0].apu is True, "its id is known"
    assert asked == []
    status.write_text("active\n")
    assert Inventory(roots, udev, ask_driver=answer).scan()[0].apu is False, "the driver knows best"
    assert asked == [roots.dev / "dri/renderD128"]
