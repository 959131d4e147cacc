"""The device that a model is tuned for, and the cores that a processor has."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from accelerd.config.model import ModelSpec
from accelerd.devices.model import Device, DeviceTrouble, MemoryPool, first_gpu
from accelerd.tuning.tuner import device_for, physical_cores
from tests.tuning.machine import CPU, GEFORCE, GIB, RADEON, STRIX_HALO, build

NPU = Device("npu", "RyzenAI-npu5", driver="amdxdna")
VIRTIO = Device("gpu", "1af4 1af4:1050", driver="virtio-pci", slot="0000:00:01.0", node="/dev/dri/renderD129")
VGEM = Device("gpu", "renderD130", driver="vgem", node="/dev/dri/renderD130")
LARGE = replace(RADEON, pools=(MemoryPool("vram", 16 * GIB),))


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([], None),
        ([CPU], CPU),
        ([NPU, CPU], CPU),
        ([STRIX_HALO, NPU, CPU], STRIX_HALO),
        ([STRIX_HALO, RADEON, GEFORCE, CPU], GEFORCE),  # by slot, as nobody tells their sizes
        ([replace(RADEON, problem="no driver"), STRIX_HALO, CPU], STRIX_HALO),
        ([replace(RADEON, troubles=(DeviceTrouble("it has gone", blocks=True),)), CPU], CPU),
        ([CARE := replace(RADEON, troubles=(DeviceTrouble("old firmware"),)), CPU], CARE),
        ([replace(RADEON, apu=None), CPU], replace(RADEON, apu=None)),
        # render nodes that run no model: a virtual machine's, vgem's, and one whose driver nobody knows
        ([VIRTIO, STRIX_HALO, CPU], STRIX_HALO),
        ([VIRTIO, VGEM, RADEON, CPU], RADEON),
        ([replace(VIRTIO, driver=None), CPU], CPU),
        ([replace(RADEON, slot="0000:02:00.0"), LARGE, CPU], LARGE),
    ],
)
def test_the_device(devices: list[Device], expected: Device | None) -> None:
    assert device_for(ModelSpec("m"), build(), devices) == expected
    gpu = first_gpu(devices)
    assert gpu == (expected if expected is not None and expected.kind == "gpu" else None), "one rule for all"


def test_the_gpus_that_a_model_is_set_to_use() -> None:
    devices = [VIRTIO, RADEON, STRIX_HALO, CPU]
    assert device_for(ModelSpec("m", gpus=(STRIX_HALO.id,)), build(), devices) == STRIX_HALO
    assert device_for(ModelSpec("m", gpus=(VIRTIO.id,)), build(), devices) == RADEON, "it computes nothing"


def test_the_processor_where_the_model_or_the_program_wants_it() -> None:
    devices = [STRIX_HALO, CPU]
    assert device_for(ModelSpec("m", gpu_layers=0), build(), devices) == CPU
    assert device_for(ModelSpec("m"), build("cpu"), devices) == CPU
    assert device_for(ModelSpec("m", gpu_layers=3), build(""), devices) == STRIX_HALO


def topology(root: Path, cores: list[str], fast: str | None = None) -> Path:
    """A /sys with these siblings, one entry for each hardware thread."""
    for cpu, siblings in enumerate(cores):
        folder = root / f"devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    if fast:
        (root / "devices/cpu_core").mkdir()
        (root / "devices/cpu_core/cpus").write_text(fast)
    return root


@pytest.mark.parametrize(
    ("cores", "fast", "allowed", "expected"),
    [
        (["0-1", "0-1", "2-3", "2-3"], None, {0, 1, 2, 3}, 2),
        (["0,2", "1,3", "0,2", "1,3"], None, {0, 1, 2, 3}, 2),
        (["0", "1", "2", "3"], None, {0, 1, 2, 3}, 4),
        (["0-1", "0-1", "2-3", "2-3"], None, {1, 2}, 2),
        (["0-1", "0-1", "2-3", "2-3"], None, {3}, 1),
        (["0-1", "0-1", "2", "3"], "0-1", {0, 1, 2, 3}, 1),
        (["0-1", "0-1", "2", "3"], "0-1", {2, 3}, 2),
        ([], None, {0, 1}, 2),
    ],
)
def test_physical_cores(cores: list[str], fast: str | None, allowed: set[int], expected: int, tmp_path: Path) -> None:
    assert physical_cores(topology(tmp_path, cores, fast), allowed) == expected
