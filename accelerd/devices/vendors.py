"""Names and memory from the vendors' libraries, for `accelctl doctor --devices`: NVIDIA's NVML and AMD's SMI.

Both may be missing or broken: each returns devices or a reason, never raises, and prints nothing (amdsmi prints to
stdout while it is imported). Must not be used on a hot path: NVML wakes GPUs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.nvml import Importer, each_card, first_line, short_slot, string


@dataclass(frozen=True)
class VendorReading:
    """The result of one library: name and pool by PCI slot, or the reason why there is none."""

    library: str
    names: dict[str, str]
    pools: dict[str, MemoryPool]
    reason: str | None = None


def nvidia(importer: Importer = importlib.import_module) -> VendorReading:
    names: dict[str, str] = {}
    pools: dict[str, MemoryPool] = {}

    def visit(nvml: Any, handle: Any, slot: str) -> None:
        names[slot] = string(nvml.nvmlDeviceGetName(handle))
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        pools[slot] = MemoryPool("vram", int(memory.total), int(memory.used))

    reason = each_card(importer, visit)
    return VendorReading("nvml", names, pools, reason)


def amd(importer: Importer = importlib.import_module) -> VendorReading:
    """Every AMD GPU that amdsmi sees. Its sizes are MiB."""
    names: dict[str, str] = {}
    pools: dict[str, MemoryPool] = {}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            smi = importer("amdsmi")
            smi.amdsmi_init()
    except Exception as error:  # KeyError('libamd_smi.so') without the library, AmdSmiException without the driver
        return VendorReading("amdsmi", names, pools, f"does not work: {first_line(error)}")
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
    return VendorReading("amdsmi", names, pools, reason)


def enrich(devices: list[Device], readings: list[VendorReading]) -> list[Device]:
    """The devices with the vendors' names, and with their pools if the kernel reported none."""
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
