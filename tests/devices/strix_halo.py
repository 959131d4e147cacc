"""A Strix Halo machine for umockdev, described from what is known of such machines; sizes and places are made up.

`description()` is the text that umockdev loads; its arguments are what tests want to be different. With the GPU and the
NPU apart, so that one of them can come later.
"""

from __future__ import annotations

import struct

GIB = 1 << 30
GPU_SLOT, NPU_SLOT = "0000:c4:00.0", "0000:c5:00.1"
GPU = f"/devices/pci0000:00/0000:00:08.1/{GPU_SLOT}"
NPU = f"/devices/pci0000:00/0000:00:08.2/{NPU_SLOT}"
VRAM, VRAM_USED = 2 * GIB, 700 << 20
GTT, GTT_USED = 96 * GIB, 12 * GIB
NPU_LOAD = 37  # %


def description(**changes: str) -> str:
    """Both devices and the compute topology."""
    return gpu(**changes) + npu() + kfd()


def gpu(card: int = 1, render: int = 128, **changes: str) -> str:
    """The GPU with its nodes; `changes` are attributes of its PCI function."""
    attributes = {
        "vendor": "0x1002", "device": "0x1586", "class": "0x038000", "power_dpm_force_performance_level": "auto",
        "mem_info_vram_total": VRAM, "mem_info_vram_used": VRAM_USED,
        "mem_info_vis_vram_total": VRAM, "mem_info_vis_vram_used": VRAM_USED,
        "mem_info_gtt_total": GTT, "mem_info_gtt_used": GTT_USED,
        "gpu_busy_percent": 12, "pp_dpm_sclk": "0: 600Mhz \n1: 1234Mhz *\n2: 2900Mhz ",
        "pp_dpm_mclk": "0: 400Mhz \n1: 800Mhz \n2: 1000Mhz ", "pp_dpm_fclk": "0: 600Mhz \n1: 2000Mhz ",
        "fw_version/mes_fw_version": "0x00000080", "vbios_version": "113-MADEUP-001",
        "power/runtime_status": "active", **changes,
    }  # fmt: skip
    lines = [
        *device(GPU, "pci", {
            "DRIVER": "amdgpu", "PCI_CLASS": "38000", "PCI_ID": "1002:1586", "PCI_SLOT_NAME": GPU_SLOT,
        }, attributes, driver="amdgpu"),
    ]  # fmt: skip
    lines.insert(-1, f"H: gpu_metrics={metrics().hex().upper()}")
    for name, minor in ((f"card{card}", card), (f"renderD{render}", render)):
        lines += node(f"{GPU}/drm/{name}", "drm", f"dri/{name}", 226, minor, GPU_SLOT)
    lines += device(f"{GPU}/hwmon/hwmon5", "hwmon", {}, {
        "name": "amdgpu", "freq1_input": 1234000000, "freq1_label": "sclk", "power1_average": 23500000,
        "power1_label": "PPT", "temp1_input": 51000, "temp1_label": "edge",
    })  # fmt: skip
    return "\n".join(lines) + "\n"


def npu() -> str:
    lines = [
        *device(NPU, "pci", {
            "DRIVER": "amdxdna", "PCI_CLASS": "118000", "PCI_ID": "1022:17F0", "PCI_SLOT_NAME": NPU_SLOT,
        }, {
            "vendor": "0x1022", "device": "0x17f0", "class": "0x118000", "vbnv": "RyzenAI-npu5   ",
            "fw_version": "1.1.2.65",
        }, driver="amdxdna"),
        *node(f"{NPU}/accel/accel0", "accel", "accel/accel0", 261, 0, NPU_SLOT),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def kfd() -> str:
    bus = int(GPU_SLOT.split(":")[1], 16)
    node = {"simd_count": 80, "simd_per_cu": 2, "gfx_target_version": 110501, "location_id": bus << 8, "domain": 0,
            "drm_render_minor": 128, "cwsr_size": 1, "local_mem_size": 0}  # fmt: skip
    lines = device("/devices/virtual/kfd/kfd", "kfd", {"DEVNAME": "/dev/kfd", "MAJOR": "235", "MINOR": "0"}, {
        "dev": "235:0",
        "topology/nodes/0/properties": "cpu_cores_count 32\nsimd_count 0",
        "topology/nodes/1/properties": "\n".join(f"{key} {value}" for key, value in node.items()),
        "topology/nodes/1/mem_banks/0/properties": f"heap_type 1\nsize_in_bytes {GTT}",
    })  # fmt: skip
    lines.insert(1, "N: kfd")
    return "\n".join(lines) + "\n"


def metrics() -> bytes:
    """gpu_metrics v3.0: an NPU that is busy, memory traffic, nothing else."""
    data = bytearray(b"\xff" * 264)
    struct.pack_into("<HBB", data, 0, 264, 3, 0)
    struct.pack_into("<8H", data, 46, *[NPU_LOAD] * 8)
    struct.pack_into("<2H", data, 94, 40_000, 2_000)
    struct.pack_into("<H", data, 116, 1_500)
    return bytes(data)


def device(
    path: str, subsystem: str, properties: dict[str, str], attributes: dict[str, object], driver: str = ""
) -> list[str]:
    lines = [f"P: {path}", *([f"L: driver=../../../../bus/pci/drivers/{driver}"] if driver else [])]
    lines += [f"E: {key}={value}" for key, value in ({"SUBSYSTEM": subsystem} | properties).items()]
    for key, value in attributes.items():
        text = str(value).replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"A: {key}={text}\\n")
    return [*lines, ""]


def node(path: str, subsystem: str, name: str, major: int, minor: int, slot: str) -> list[str]:
    properties = {"MAJOR": str(major), "MINOR": str(minor), "DEVNAME": f"/dev/{name}", "DEVTYPE": f"{subsystem}_minor"}
    lines = device(path, subsystem, properties, {"dev": f"{major}:{minor}"})
    lines[1:1] = [f"N: {name}", f"L: device=../../../{slot}"]
    return lines
