"""Names and memory from the vendors' libraries, for `accelctl doctor --devices`: NVIDIA's NVML and AMD's SMI.

Both may be missing, broken or without hardware; each answers with devices or with a reason, never with an exception and
never with a line on stdout (amdsmi prints there while it is imported). Must not be used on a hot path: NVML wakes GPUs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from accelerd.devices.model import Device, MemoryPool

Importer = Callable[[str], Any]


@dataclass(frozen=True)
class Reading:
    """What one library knows: name and pool by PCI slot, or why it knows nothing."""

    library: str
    names: dict[str, str]
    pools: dict[str, MemoryPool]
    reason: str | None = None


def nvidia(importer: Importer = importlib.import_module) -> Reading:
    """Every NVIDIA GPU that NVML sees."""
    names: dict[str, str] = {}
    pools: dict[str, MemoryPool] = {}
    try:
        nvml = importer("pynvml")
    except Exception as error:
        return Reading("nvml", names, pools, f"cannot import pynvml: {first_line(error)}")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Reading("nvml", names, pools, first_line(error))
    reason = None
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            slot = short_slot(text(nvml.nvmlDeviceGetPciInfo(handle).busId))
            names[slot] = text(nvml.nvmlDeviceGetName(handle))
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            pools[slot] = MemoryPool("vram", int(memory.total), int(memory.used))
    except nvml.NVMLError as error:
        reason = first_line(error)
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return Reading("nvml", names, pools, reason)


def amd(importer: Importer = importlib.import_module) -> Reading:
    """Every AMD GPU that amdsmi sees. Its sizes are MiB."""
    names: dict[str, str] = {}
    pools: dict[str, MemoryPool] = {}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            smi = importer("amdsmi")
            smi.amdsmi_init()
    except Exception as error:  # KeyError('libamd_smi.so') without the library, AmdSmiException without the driver
        return Reading("amdsmi", names, pools, f"cannot be used: {first_line(error)}")
    reason = None
    try:
        for handle in smi.amdsmi_get_processor_handles():
            slot = short_slot(smi.amdsmi_get_gpu_device_bdf(handle))
            names[slot] = str(smi.amdsmi_get_gpu_asic_info(handle).get("market_name") or "")
            usage = smi.amdsmi_get_gpu_vram_usage(handle)
            pools[slot] = MemoryPool("vram", int(usage["vram_total"]) << 20, int(usage["vram_used"]) << 20)
    except Exception as error:
        reason = first_line(error)
    finally:
        with contextlib.suppress(Exception):
            smi.amdsmi_shut_down()
    return Reading("amdsmi", names, pools, reason)


def enrich(devices: list[Device], readings: list[Reading]) -> list[Device]:
    """The devices with the vendors' names, and with their pools where the kernel did not tell any."""
    result = []
    for device in devices:
        for reading in readings:
            slot = device.slot or ""
            if reading.names.get(slot):
                device = replace(device, name=reading.names[slot])
            if not device.pools and slot in reading.pools:
                device = replace(device, pools=(reading.pools[slot],))
        result.append(device)
    return result


def short_slot(bus: str) -> str:
    """ "00000000:01:00.0" (NVML's domain has eight digits) as "0000:01:00.0"."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]:0>4}:{rest}"


def text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
