"""NVML and amdsmi: with hardware (faked), without hardware, without library."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from accelerd.devices import vendors
from accelerd.devices.model import Device, MemoryPool


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two cards, of which the second falls off the bus when `lost`."""

    NVMLError = NvmlError

    def __init__(self, *, init: str = "", lost: bool = False) -> None:
        self._init = init
        self._lost = lost
        self.open = False

    def nvmlInit(self) -> None:
        if self._init:
            raise NvmlError(self._init)
        self.open = True

    def nvmlShutdown(self) -> None:
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 1 and self._lost:
            raise NvmlError("GPU is lost")
        return index

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=[b"00000000:01:00.0", "00000000:0A:00.0"][handle])

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return [b"RTX 4090", "RTX 3060"][handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=24 << 30, used=handle << 30)


def test_nvidia_reads_every_card_and_closes() -> None:
    nvml = FakeNvml()
    reading = vendors.nvidia(lambda name: nvml)
    assert reading.names == {"0000:01:00.0": "RTX 4090", "0000:0a:00.0": "RTX 3060"}
    assert reading.pools["0000:0a:00.0"] == MemoryPool("vram", 24 << 30, 1 << 30)
    assert reading.reason is None
    assert not nvml.open


def test_nvidia_keeps_what_it_read_before_a_card_was_lost() -> None:
    nvml = FakeNvml(lost=True)
    reading = vendors.nvidia(lambda name: nvml)
    assert list(reading.names) == ["0000:01:00.0"]
    assert reading.reason == "GPU is lost"
    assert not nvml.open


def test_nvidia_without_driver_or_library() -> None:
    assert vendors.nvidia(lambda name: FakeNvml(init="Driver Not Loaded")).reason == "Driver Not Loaded"

    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'pynvml'")

    assert vendors.nvidia(missing).reason == "cannot import pynvml: No module named 'pynvml'"


class FakeAmd:
    def __init__(self, *, broken: bool = False) -> None:
        self._broken = broken
        self.open = False

    def amdsmi_init(self) -> None:
        self.open = True

    def amdsmi_shut_down(self) -> None:
        self.open = False

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["card"]

    def amdsmi_get_gpu_device_bdf(self, handle: str) -> str:
        return "0000:C1:00.0"

    def amdsmi_get_gpu_asic_info(self, handle: str) -> dict[str, str]:
        return {"market_name": "Radeon 8060S"}

    def amdsmi_get_gpu_vram_usage(self, handle: str) -> dict[str, int]:
        if self._broken:
            raise RuntimeError("AMDSMI_STATUS_NOT_SUPPORTED\nmore")
        return {"vram_total": 1024, "vram_used": 455}


def test_amd_counts_in_mebibytes() -> None:
    smi = FakeAmd()
    reading = vendors.amd(lambda name: smi)
    assert reading.names == {"0000:c1:00.0": "Radeon 8060S"}
    assert reading.pools == {"0000:c1:00.0": MemoryPool("vram", 1 << 30, 455 << 20)}
    assert not smi.open


def test_amd_that_cannot_tell_all() -> None:
    reading = vendors.amd(lambda name: FakeAmd(broken=True))
    assert reading.names == {"0000:c1:00.0": "Radeon 8060S"}
    assert reading.reason == "AMDSMI_STATUS_NOT_SUPPORTED"


def test_amd_is_silent_while_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def noisy(name: str) -> Any:
        print("Unable to find libamd_smi.so library")
        raise KeyError("libamd_smi.so")

    assert vendors.amd(noisy).reason == "does not work: 'libamd_smi.so'"
    assert capsys.readouterr().out == ""


def test_the_installed_libraries_never_raise(capsys: pytest.CaptureFixture[str]) -> None:
    """With hardware or without: an answer or a reason, and nothing on stdout."""
    for reading in (vendors.nvidia(importlib.import_module), vendors.amd(importlib.import_module)):
        assert reading.names or reading.reason
    assert capsys.readouterr().out == ""


def test_enrich_prefers_the_kernels_memory_and_the_vendors_names() -> None:
    kernel = (MemoryPool("vram", 1 << 30, 5), MemoryPool("gtt", 2 << 30, 6))
    devices = [
        Device("gpu", "AMD 1002:1586", slot="0000:c1:00.0", pools=kernel),
        Device("gpu", "NVIDIA 10de:2684", slot="0000:01:00.0"),
        Device("cpu", "cpu"),
    ]
    first, second, third = vendors.enrich(
        devices, [vendors.nvidia(lambda name: FakeNvml()), vendors.amd(lambda name: FakeAmd())]
    )
    assert (first.name, first.pools) == ("Radeon 8060S", kernel)
    assert (second.name, second.pools) == ("RTX 4090", (MemoryPool("vram", 24 << 30, 0),))
    assert third == devices[2]
