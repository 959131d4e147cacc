"""What is used of every pool, by models and by strangers: on machines of all kinds, of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.observer import DeviceObserver
from accelerd.memory.measure import Meter
from accelerd.memory.model import RAM, ForeignUser, MemorySnapshot, Pool
from tests.devices.test_observer import FakeNvml
from tests.memory.machines import (
    ARC,
    AVAILABLE,
    CARD,
    CPU,
    GIB,
    HALO,
    MIB,
    NPU,
    NVIDIA,
    TIGER,
    TOTAL,
    Machine,
    amdgpu,
    pool,
    told,
)

USED = TOTAL - AVAILABLE
RESERVE = 8 * GIB


def test_a_shared_gpu_counts_what_is_in_main_memory_once(tmp_path: Path) -> None:
    m = Machine(tmp_path, HALO)
    m.used(HALO, vram=700 * MIB, gtt=20 * GIB)
    m.process(10, "llama-server", amdgpu(HALO, 1, vram=200 * MIB, gtt=15 * GIB), anon=GIB, file=15 * GIB)
    m.process(20, "game", amdgpu(HALO, 2, vram=300 * MIB, gtt=4 * GIB), anon=2 * GIB)
    seen = m.look({1: [10]})
    assert pool(seen, HALO.id) == Pool(
        HALO.id, "8060S", 97 * GIB, 256 * MIB, (700 + 20 * 1024 - 200 - 15 * 1024) * MIB, backed_by=RAM, own=GIB
    )
    # The weights are mapped, so the kernel calls them available; what the GPU has in main memory it does not.
    assert pool(seen, RAM) == Pool(RAM, "main memory", TOTAL, RESERVE, USED - GIB - 15 * GIB)
    assert seen.used == {1: {HALO.id: 200 * MIB + 15 * GIB, RAM: 16 * GIB}}
    assert seen.foreign == (
        ForeignUser(HALO.id, 20, "game", 4 * GIB + 300 * MIB),
        ForeignUser(RAM, 20, "game", 2 * GIB),
    )
    assert seen.at == m.clock.now


def test_a_card_has_its_own_memory_and_its_gtt_is_main_memory(tmp_path: Path) -> None:
    m = Machine(tmp_path, CARD, gpu_reserve=GIB, reserve=5 * GIB)
    m.used(CARD, vram=9 * GIB, gtt=3 * GIB)
    m.process(10, "llama-server", amdgpu(CARD, 1, vram=8 * GIB, gtt=2 * GIB, cpu=GIB), anon=GIB)
    seen = m.look({1: [10]})
    assert pool(seen, CARD.id) == Pool(CARD.id, "RX 9070 XT", 16 * GIB, GIB, GIB)
    assert pool(seen, RAM) == Pool(RAM, "main memory", TOTAL, 5 * GIB, USED - 4 * GIB)
    assert seen.used == {1: {CARD.id: 8 * GIB, RAM: 4 * GIB}}


def test_locked_weights_are_no_strangers(tmp_path: Path) -> None:
    """Locked pages of a file cannot be dropped: the kernel does not call them available."""
    m = Machine(tmp_path)
    m.process(10, anon=GIB, file=12 * GIB, shmem=GIB, locked=11 * GIB)
    seen = m.look({1: [10]})
    assert (seen.used, pool(seen, RAM).foreign) == ({1: {RAM: 14 * GIB}}, USED - 13 * GIB)


def test_caches_that_shrink_when_needed_are_no_use(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    m.meminfo(GPUReclaim=GIB)
    kstat = m.roots.proc / "spl/kstat/zfs"
    kstat.mkdir(parents=True)
    (kstat / "arcstats").write_text(
        f"13 1 0x01 123 33456 1 2\nname  type data\nc_min  4 {GIB}\nsize   4    {11 * GIB}\nc_max 4 {64 * GIB}\n"
    )
    assert pool(m.look({}), RAM).foreign == USED - 11 * GIB


def test_a_client_counts_once_and_for_the_model_that_has_it_open(tmp_path: Path) -> None:
    m = Machine(tmp_path, HALO)
    m.used(HALO, vram=0, gtt=10 * GIB)
    one, two = amdgpu(HALO, 1, gtt=6 * GIB), amdgpu(HALO, 2, gtt=GIB)
    m.process(5, "display", one)  # it had opened the device for its client, and kept it
    m.process(10, "wrapper", one, one)
    m.process(11, "llama-server", one, two)
    m.process(12, "llama-server", two)
    seen = m.look({1: [10, 11], 2: [12]})
    assert seen.used == {1: {HALO.id: 7 * GIB, RAM: 0}, 2: {RAM: 0}}
    assert pool(seen, HALO.id).foreign == 3 * GIB
    assert seen.foreign == ()


def test_who_cannot_be_read_is_the_rest(tmp_path: Path) -> None:
    """Of another user's process neither descriptors nor shares can be had; what is used is used all the same."""
    m = Machine(tmp_path, CARD)
    m.used(CARD, vram=9 * GIB, gtt=0)
    m.process(10, "llama-server", amdgpu(CARD, 1, vram=4 * GIB))
    m.process(20, "ollama", amdgpu(CARD, 2, vram=5 * GIB), anon=3 * GIB)
    m.close(20)
    seen = m.look({1: [10]})
    assert pool(seen, CARD.id).foreign == 5 * GIB
    assert seen.foreign == (ForeignUser(RAM, 20, "ollama", 3 * GIB),)


def test_what_amds_compute_driver_tells_of_a_process_that_may_not_be_looked_into(tmp_path: Path) -> None:
    m = Machine(tmp_path, HALO)
    m.used(HALO, vram=0, gtt=30 * GIB)
    kfd = m.roots.sys / "class/kfd/kfd"
    for name, number, location in (("0", "0", 0), ("1", "59419", 0xC400)):
        (kfd / "topology/nodes" / name).mkdir(parents=True)
        (kfd / "topology/nodes" / name / "gpu_id").write_text(f"{number}\n")
        (kfd / "topology/nodes" / name / "properties").write_text(f"simd_count 80\nlocation_id {location}\ndomain 0\n")
    (kfd / "proc/10").mkdir(parents=True)
    (kfd / "proc/10/vram_59419").write_text(f"{20 * GIB}\n")
    m.process(10, "vllm", anon=GIB, file=GIB)
    assert m.look({1: [10]}).used == {1: {RAM: 2 * GIB}}, "only of a process that is closed to us"
    m.close(10)
    seen = m.look({1: [10]})
    assert seen.used == {1: {HALO.id: 20 * GIB, RAM: 2 * GIB}}
    assert pool(seen, HALO.id).foreign == 10 * GIB
    assert pool(seen, RAM).foreign == USED - GIB - 19 * GIB, "more than the GPU has for itself lies in main memory"


def test_an_integrated_gpu_of_intel_lies_in_main_memory(tmp_path: Path) -> None:
    m = Machine(tmp_path, TIGER)
    ours = told("xe", TIGER, 1, "drm-total-system:\t1 GiB", "drm-resident-gtt:\t3 GiB", "drm-total-stolen:\t4 MiB")
    theirs = told("xe", TIGER, 2, "drm-resident-gtt:\t2 GiB", "drm-total-cycles-rcs:\t5")
    m.process(10, "llama-server", ("/dev/dri/renderD128", ours), anon=GIB)
    m.process(20, "browser", ("/dev/dri/renderD128", theirs))
    seen = m.look({1: [10]})
    assert pool(seen, TIGER.id) == Pool(TIGER.id, "Iris Xe", TOTAL, 256 * MIB, 2 * GIB, backed_by=RAM, own=0)
    assert seen.used == {1: {TIGER.id: 4 * GIB, RAM: GIB}}
    assert pool(seen, RAM).foreign == USED - 5 * GIB


def test_a_driver_that_tells_no_sizes_makes_no_pool(tmp_path: Path) -> None:
    m = Machine(tmp_path, ARC, replace(NPU, driver=None, slot="0000:00:0b.0"))
    i915 = told(
        "i915", ARC, 7, "drm-resident-system0:\t64 MiB", "drm-resident-local0:\t2 GiB", "drm-total-local0:\t9 GiB"
    )
    m.process(10, "llama-server", ("/dev/dri/renderD129", i915), anon=GIB)
    seen = m.look({1: [10]})
    assert [one.id for one in seen.pools] == [RAM, "0000:00:0b.0"]
    assert m.meter.untold == {ARC.id: "the driver i915 does not report memory sizes"}
    assert seen.used == {1: {RAM: GIB}}


def test_nodes_that_run_no_model_are_not_missed(tmp_path: Path) -> None:
    m = Machine(tmp_path, ARC)
    virtual = Device("gpu", "1af4:1050", driver="virtio-pci", slot="0000:00:01.0")
    m.meter.look([ARC, virtual, Device("gpu", "renderD130", driver="vgem")], {})
    assert list(m.meter.untold) == [ARC.id]


@pytest.mark.parametrize("driver", ["amdxdna_accel_driver", "amdxdna"])
def test_an_npu_has_no_memory_of_its_own(tmp_path: Path, driver: str) -> None:
    m = Machine(tmp_path, NPU)
    lines = ["drm-total-memory:\t3072 MiB", "drm-shared-memory:\t4096 KiB", "drm-active-memory:\t1 GiB",
             "amdxdna-heap-alloc:\t65536 KiB", f"drm-engine-{driver}:\t5 ns"]  # fmt: skip
    m.process(10, "flm", ("/dev/accel/accel0", told(driver, NPU, 1, *lines)), anon=GIB)
    m.process(20, "other", ("/dev/accel/accel0", told(driver, NPU, 2, "drm-total-memory:\t512 MiB")))
    seen = m.look({1: [10]})
    assert pool(seen, NPU.id) == Pool(NPU.id, "RyzenAI-npu5", TOTAL, 0, 512 * MIB, backed_by=RAM, own=0)
    assert seen.used == {1: {NPU.id: 3 * GIB, RAM: GIB}}
    assert pool(seen, RAM).foreign == USED - 4 * GIB
    assert seen.foreign == (ForeignUser(NPU.id, 20, "other", 512 * MIB),)


def test_a_gtt_that_is_larger_than_the_machine_is_capped(tmp_path: Path) -> None:
    m = Machine(tmp_path, replace(HALO, pools=(MemoryPool("vram", GIB), MemoryPool("gtt", 200 * GIB))))
    assert pool(m.look({}), HALO.id).capacity == TOTAL + GIB


def test_a_gpu_that_is_bound_again_with_another_carve_out_just_shows(tmp_path: Path) -> None:
    m = Machine(tmp_path, HALO)
    m.used(HALO, vram=GIB, gtt=GIB)
    assert (pool(m.look({}), HALO.id).own, pool(m.look({}), HALO.id).foreign) == (GIB, 2 * GIB)
    m.devices = [replace(HALO, pools=(MemoryPool("vram", 64 * GIB), MemoryPool("gtt", 32 * GIB))), CPU]
    m.used(HALO, vram=5 * GIB)
    now = pool(m.look({}), HALO.id)
    assert (now.own, now.capacity, now.foreign) == (64 * GIB, 96 * GIB, 6 * GIB)
    m.devices = [CPU]
    assert [one.id for one in m.look({}).pools] == [RAM]


def test_a_sleeping_device_is_nobodys_and_not_touched(tmp_path: Path) -> None:
    m = Machine(tmp_path, CARD)
    m.used(CARD, vram=GIB, gtt=0)
    assert pool(m.look({}), CARD.id).foreign == GIB
    m.power(CARD, "suspended")
    (m.folder(CARD) / "mem_info_vram_used").unlink()
    (m.folder(CARD) / "mem_info_vram_used").mkdir()  # reading it would fail
    asleep = pool(m.look({}), CARD.id)
    assert (asleep.capacity, asleep.foreign) == (16 * GIB, 0)


@pytest.mark.parametrize("nonsense", [
    18446744073709000000, -4096, "", "N/A", "\0\0", 1 << 62, 17 * GIB,
])  # fmt: skip
def test_nonsense_from_a_driver_is_no_figure(tmp_path: Path, nonsense: object) -> None:
    """rocm-smi has shown 16 EiB in use: a counter that went below nothing."""
    m = Machine(tmp_path, CARD)
    m.used(CARD, vram=nonsense, gtt=nonsense)
    m.process(10, "llama-server", amdgpu(CARD, 1, vram=4 * GIB))
    m.process(20, "game", amdgpu(CARD, 2, vram=3 * GIB))
    m.process(30, "liar", ("/dev/dri/renderD128", told("amdgpu", CARD, 3, f"drm-memory-vram:\t{(1 << 64) - 5} KiB")))
    seen = m.look({1: [10], 3: [30]})
    assert pool(seen, CARD.id).foreign == 3 * GIB, "what is seen of others, where the whole is not told"
    assert seen.used == {1: {CARD.id: 4 * GIB, RAM: 0}, 3: {RAM: 0}}


def test_a_process_that_claims_more_than_there_is(tmp_path: Path) -> None:
    m = Machine(tmp_path, CARD)
    m.used(CARD, vram=GIB, gtt=0)
    m.process(10, "llama-server", amdgpu(CARD, 1, vram=500 * GIB, gtt=500 * GIB), anon=GIB)
    seen = m.look({1: [10]})
    assert seen.used == {1: {CARD.id: 16 * GIB, RAM: TOTAL}}
    assert (pool(seen, CARD.id).foreign, pool(seen, RAM).foreign) == (0, 0)


def test_without_meminfo_there_is_no_main_memory_to_lie_in(tmp_path: Path) -> None:
    m = Machine(tmp_path, HALO, NPU)
    (m.roots.proc / "meminfo").write_text("MemTotal: lots\n")
    m.used(HALO, vram=0, gtt=GIB)
    [gpu] = m.look({}).pools
    assert (gpu.id, gpu.capacity, gpu.backed_by) == (HALO.id, 97 * GIB, None)
    assert NPU.id in m.meter.untold


def test_an_instance_of_which_no_process_is_left_uses_nothing(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    assert m.look({1: [], 2: [4711]}).used == {1: {}, 2: {}}


# --- who is looked for, and when --------------------------------------------------------------------------------


def test_strangers_are_looked_for_only_when_it_is_worth_it(tmp_path: Path) -> None:
    m = Machine(tmp_path, CARD)
    m.used(CARD, vram=2 * GIB, gtt=0)
    m.process(10, "llama-server", amdgpu(CARD, 1, vram=GIB))
    m.process(20, "first", amdgpu(CARD, 2, vram=GIB))

    def names() -> list[str]:
        return [one.process for one in m.look({1: [10]}).foreign]

    assert names() == ["first"]
    m.process(21, "second", amdgpu(CARD, 3, vram=10 * MIB))
    m.used(CARD, vram=2 * GIB + 10 * MIB)
    m.clock.advance(2)
    assert names() == ["first"], "too little for so soon"
    m.clock.advance(3)
    assert names() == ["first", "second"], "five seconds have passed"
    m.process(22, "third", amdgpu(CARD, 4, vram=2 * GIB))
    m.used(CARD, vram=4 * GIB + 10 * MIB)
    assert names() == ["first", "second"], "not twice in a moment"
    m.clock.advance(1)
    assert names() == ["third", "first", "second"], "much has come"
    m.process(23, "fourth", amdgpu(CARD, 5, vram=3 * GIB))
    seen = m.look({1: [10], 2: []})
    assert seen.foreign[0].process == "fourth", "a model came"
    assert pool(seen, CARD.id).foreign == 3 * GIB + 10 * MIB, "the figure never waits"


def test_at_most_twenty_are_named_the_largest_first(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    for i in range(30):
        m.process(100 + i, f"p{i}", anon=(250 + i) * MIB)
    seen = m.look({1: [129]})
    assert [one.process for one in seen.foreign] == [f"p{i}" for i in range(28, 8, -1)]
    m.process(90, "new", anon=GIB)
    m.clock.advance(9)
    assert "new" not in [one.process for one in m.look({1: [129]}).foreign]
    m.clock.advance(1)
    assert m.look({1: [129]}).foreign[0] == ForeignUser(RAM, 90, "new", GIB)


# --- NVIDIA -----------------------------------------------------------------------------------------------------


class Library(FakeNvml):
    """One card of 24 GiB with given processes."""

    def __init__(self, used: object, *processes: tuple[int, int | None], drawing: tuple[tuple[int, int], ...] = ()):
        super().__init__()
        self.used, self.processes, self.drawing = used, processes, drawing

    def nvmlDeviceGetMemoryInfo(self, card: object) -> Any:
        return SimpleNamespace(total=24 * GIB, used=self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, card: object) -> Any:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: object) -> Any:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.drawing]


def nvidia(m: Machine, library: FakeNvml, device: Device = NVIDIA) -> Meter:
    m.devices = [device, CPU]
    m.power(device, "active")
    m.meter = Meter(m.roots, m.clock, DeviceObserver(m.roots, m.clock, lambda name: library))
    return m.meter


def test_nvidia_tells_its_processes_through_its_library(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    library = Library(11 * GIB, (10, 6 * GIB), (20, GIB), drawing=((11, 2 * GIB), (10, 5 * GIB)))
    nvidia(m, library)
    for pid in (10, 11, 20):
        m.process(pid, f"p{pid}")
    seen = m.look({1: [10, 11]})
    assert pool(seen, NVIDIA.id) == Pool(NVIDIA.id, "RTX", 24 * GIB, 256 * MIB, 3 * GIB)
    assert seen.used == {1: {NVIDIA.id: 8 * GIB, RAM: 0}}, "Vulkan's programs draw"
    assert seen.foreign == (ForeignUser(NVIDIA.id, 20, "p20", GIB),)
    m.look({1: [10, 11]})
    assert library.opened == 1, "not again within a second"
    m.clock.advance(1)
    m.look({1: [10, 11]})
    assert (library.opened, library.open) == (2, False)


@pytest.mark.parametrize("unknown", [None, (1 << 64) - 1])
def test_what_nvidia_does_not_tell_is_what_came_with_the_model(tmp_path: Path, unknown: int | None) -> None:
    m = Machine(tmp_path)
    library = Library(2 * GIB)
    nvidia(m, library)
    m.process(10)
    m.process(11)
    assert pool(m.look({1: [10]}), NVIDIA.id).foreign == 2 * GIB
    library.processes, library.used = ((10, unknown), (11, 3 * GIB)), 9 * GIB
    m.clock.advance(1)
    seen = m.look({1: [10], 2: [11]})
    assert seen.used == {1: {NVIDIA.id: 4 * GIB, RAM: 0}, 2: {NVIDIA.id: 3 * GIB, RAM: 0}}
    assert pool(seen, NVIDIA.id).foreign == 2 * GIB


@pytest.mark.parametrize("used", [-1, (1 << 64) - 4096, 25 * GIB])
def test_nonsense_from_nvidia(tmp_path: Path, used: int) -> None:
    m = Machine(tmp_path)
    nvidia(m, Library(used, (20, 3 * GIB)))
    m.process(20, "game")
    assert pool(m.look({}), NVIDIA.id).foreign == 3 * GIB


def test_a_sleeping_nvidia_card_keeps_its_size(tmp_path: Path) -> None:
    m = Machine(tmp_path)
    library = Library(GIB)
    meter = nvidia(m, library)
    m.power(NVIDIA, "suspended")
    assert [one.id for one in m.look({}).pools] == [RAM]
    assert "sleeps" in meter.untold[NVIDIA.id]
    m.power(NVIDIA, "active")
    assert pool(m.look({}), NVIDIA.id).foreign == GIB
    m.power(NVIDIA, "suspended")
    m.clock.advance(5)
    asleep = pool(m.look({}), NVIDIA.id)
    assert (asleep.capacity, asleep.foreign, library.opened) == (24 * GIB, 0, 1)


def test_a_card_that_shares_the_machines_memory(tmp_path: Path) -> None:
    """GB10: the library says "not supported" for memory, but knows its processes."""
    m = Machine(tmp_path)
    library = FakeNvml("nvmlDeviceGetMemoryInfo")
    nvidia(m, library)
    m.process(77, anon=GIB)
    seen = m.look({1: [77]})
    assert pool(seen, NVIDIA.id) == Pool(NVIDIA.id, "RTX", TOTAL, 256 * MIB, 0, backed_by=RAM, own=0)
    assert seen.used == {1: {NVIDIA.id: GIB, RAM: GIB}}
    assert pool(seen, RAM).foreign == USED - 2 * GIB


def test_a_look_has_no_more_than_the_ledger_can_bear(tmp_path: Path) -> None:
    m = Machine(tmp_path, HALO, CARD, TIGER, NPU, ARC)
    seen: MemorySnapshot = m.look({})
    assert len({one.id for one in seen.pools}) == len(seen.pools) == 5
    assert all(0 <= one.foreign <= one.capacity for one in seen.pools)
    assert seen.stall is None
