"""What a person is told about a device: each trouble when it is there, and not when it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from accelerd.devices import troubles
from accelerd.devices.amdgpu import ask_driver, is_apu
from accelerd.devices.host import Host, lock_limit, read_host, version
from accelerd.devices.kfd import KfdNode, slot_of, target
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.udev import PciFunction
from tests.devices.recorded import machine

GIB = 1 << 30
HALO = Device(
    "gpu", "8060S", "amdgpu", "0000:c1:00.0", vendor="1002", device="1586", gfx="gfx1151", apu=True, unified=True,
    pools=(MemoryPool("vram", GIB, 0), MemoryPool("gtt", 100 * GIB, 0)), firmware={"mes": "0x00000080"},
)  # fmt: skip
GOOD = Host(kernel=(6, 18, 4), memory=(125 * GIB, 100 * GIB), grubby=True)
OLD_NODE = KfdNode("0000:c1:00.0", "gfx1151", 40, (), saves_waves=False)
FUNCTION = PciFunction("0000:c1:00.0", "amdgpu", "1002", "744c", 0x030000, Path("/sys"))


def of_halo(device: Device = HALO, host: Host = GOOD, node: KfdNode | None = OLD_NODE) -> list[str]:
    found = list(troubles.of_amdgpu(device, node, host))
    assert all(trouble.fix for trouble in found)
    return [trouble.message for trouble in found]


def test_a_good_one_has_none() -> None:
    assert of_halo() == []


@pytest.mark.parametrize("kernel", [(6, 17, 0), (6, 18, 3), (5, 15, 0)])
def test_old_kernels_are_bad_for_gfx1151_unless_the_fix_was_taken_back(kernel: tuple[int, int, int]) -> None:
    host = replace(GOOD, kernel=kernel)
    [message] = of_halo(host=host)
    assert message.startswith("kernel " + ".".join(map(str, kernel)))
    assert of_halo(host=host, node=replace(OLD_NODE, saves_waves=True)) == []
    assert of_halo(replace(HALO, gfx="gfx1150"), host=host) == []


def test_the_firmware_of_november_2025() -> None:
    assert ["linux-firmware-20251125" in m for m in of_halo(replace(HALO, firmware={"mes": "0x00000083"}))] == [True]
    assert of_halo(replace(HALO, firmware={"mes": "unknown"})) == []


def test_a_small_gtt_on_a_unified_machine_and_what_to_set() -> None:
    small = replace(HALO, pools=(MemoryPool("vram", GIB, 0), MemoryPool("gtt", 62 * GIB, 0)))
    [trouble] = troubles.of_amdgpu(small, OLD_NODE, GOOD)
    assert trouble.message == "the GPU can use only 62.0 GiB of 125 GiB main memory (GTT limit)"
    pages = 117 * GIB // 4096
    assert trouble.fix == f"sudo grubby --update-kernel=ALL --args=ttm.pages_limit={pages} && reboot"
    carved = replace(HALO, pools=(MemoryPool("vram", 96 * GIB, 0), MemoryPool("gtt", 15 * GIB, 0)))
    assert of_halo(carved, replace(GOOD, memory=(30 * GIB, GIB))) == [], "a carve-out is meant that way"


def test_a_gtt_beyond_the_machines_memory() -> None:
    [message] = of_halo(host=replace(GOOD, memory=(64 * GIB, GIB)))
    assert message == "the GPU can use 100 GiB, more than the 64.0 GiB of main memory"


def test_the_command_line_without_grubby() -> None:
    host = Host()
    assert host.change_command_line("a=1") == (
        "sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&a=1 /' /etc/default/grub && sudo update-grub && reboot"
    )
    assert "s/amd_iommu=off/iommu=pt/" in host.change_command_line("iommu=pt", remove="amd_iommu=off")


@pytest.mark.parametrize(("limit", "words"), [
    (8 << 20, "only 8.0 MiB"), (16 * GIB, "only 16.0 GiB"), (None, ""), (128 * GIB, ""),
])  # fmt: skip
def test_the_lock_limit_for_fastflowlm(limit: int | None, words: str) -> None:
    npu = Device("npu", "n", "amdxdna", vendor="1022", device="17f0", firmware={"npu": "1.1.2.65"})
    found = list(troubles.of_npu(npu, Host(memlock=limit, runtimes=frozenset({"amdxdna"}))))
    assert [t.message.endswith(words) and t.fix == troubles.MEMLOCK_FIX for t in found] == ([True] if words else [])


def test_facts_of_a_machine(tmp_path: Path) -> None:
    limits = (
        "Limit Soft Limit Hard Limit Units\nMax locked memory         4096                 8388608             bytes \n"
    )
    roots = machine(tmp_path, **{"self/limits": limits, "cmdline": "quiet amd_iommu=off"})
    (tmp_path / "libxrt_coreutil.so.2").touch()
    host = read_host(roots, which={"grubby": "/usr/sbin/grubby"}.get, libraries=(str(tmp_path),))
    assert host == Host(
        (6, 18, 9), ("quiet", "amd_iommu=off"), (32 * GIB, 20 * GIB), 8388608, True, frozenset({"amdxdna"}),
    )  # fmt: skip
    (roots.proc / "self/limits").write_text("Max locked memory   unlimited   unlimited   bytes")
    assert lock_limit(roots) is None


@pytest.mark.parametrize(("release", "expected"), [
    ("6.18.4-200.fc43.x86_64", (6, 18, 4)), ("7.0", (7, 0, 0)), ("6.1.0-42-amd64", (6, 1, 0)), ("odd", None),
])  # fmt: skip
def test_kernel_versions(release: str, expected: tuple[int, int, int] | None) -> None:
    assert version(release) == expected


@pytest.mark.parametrize(("number", "name"), [
    (110501, "gfx1151"), (90010, "gfx90a"), (120001, "gfx1201"), (100303, "gfx1033"), (0, None),
])  # fmt: skip
def test_gfx_targets(number: int, name: str | None) -> None:
    assert target(number) == name


@pytest.mark.parametrize(("location", "slot"), [
    (49664, "0000:c2:00.0"), (49408, "0000:c1:00.0"), (25600, "0000:64:00.0"), (0xC001, "0000:c0:00.1"),
])  # fmt: skip
def test_slots_of_the_topology(location: int, slot: str) -> None:
    assert slot_of({"location_id": location}) == slot


def test_who_is_asked_whether_it_is_an_apu(tmp_path: Path) -> None:
    """The driver, the topology, the list of ids, what a card has; and never by a large GTT alone."""
    (tmp_path / "mem_info_gtt_total").write_text("1000\n")
    (tmp_path / "mem_info_vram_total").write_text("10\n")
    listed = replace(FUNCTION, device="1586")
    assert is_apu(FUNCTION, tmp_path, None, None) is None
    assert is_apu(listed, tmp_path, None, None) is True
    assert is_apu(listed, tmp_path, None, False) is False
    assert is_apu(FUNCTION, tmp_path, replace(OLD_NODE, banks=(1000,)), None) is True
    assert is_apu(FUNCTION, tmp_path, replace(OLD_NODE, banks=(10,)), None) is None
    (tmp_path / "hwmon/hwmon3").mkdir(parents=True)
    (tmp_path / "gpu_busy_percent").write_text("0\n")
    assert is_apu(FUNCTION, tmp_path, None, None) is True, "no power limit, no load of its memory"
    (tmp_path / "hwmon/hwmon3/power1_cap").write_text("1\n")
    assert is_apu(FUNCTION, tmp_path, None, None) is False


def test_a_node_that_is_no_gpu_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert ask_driver(tmp_path / "file") is None
    assert ask_driver(tmp_path / "missing") is None
