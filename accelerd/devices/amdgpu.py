"""AMD cards and APUs: name, target, firmware, memory, and whether the memory is main memory.

Reads files. Queries the driver only whether the GPU is an APU, through the render node and only while the GPU is awake.
Must never wake a GPU, and never conclude anything from a large GTT.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from accelerd.devices.files import names, size, text
from accelerd.devices.kfd import KfdNode
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.udev import PciFunction

# from libdrm's amdgpu_drm.h: the device information, and the flag for an APU
INFO_REQUEST = 0x40206445  # DRM_IOCTL_AMDGPU_INFO
DEV_INFO = 0x16
FLAGS_AT = 136  # of ids_flags in struct drm_amdgpu_info_device
FUSION = 1

# Strix Halo: the number of compute units determines the name
STRIX_HALO = ("1002", "1586")
STRIX_HALO_NAMES = {40: "8060S", 32: "8050S", 16: "8040S"}

# Strix Halo, Strix Point, Krackan, Phoenix, Phoenix 2, Hawk Point, Raphael, Granite Ridge, Rembrandt, Van Gogh …
APU_IDS = {
    "1586", "150e", "1114", "15bf", "15c8", "1900", "1901", "164e", "13c0", "1681", "163f", "1435", "1638", "1636",
    "164c", "15e7", "1506", "15d8", "15dd",
}  # fmt: skip

POOL_FILES = {"vram": "vram", "visible vram": "vis_vram", "gtt": "gtt"}  # mem_info_…_total, mem_info_…_used

DPM_LINE = re.compile(r"^(\d+|S):\s*(\d+)\s*[Mm][Hh][Zz]\s*(\*)?")  # a step of pp_dpm_*
MOST_MHZ = 20_000

AskDriver = Callable[[Path], bool | None]


def described(
    device: Device, function: PciFunction, directory: Path, kfd: KfdNode | None, asked: bool | None
) -> Device:
    """The device with what its driver says. `asked`: whether the driver calls it an APU; None if unknown."""
    apu = is_apu(function, directory, kfd, asked)
    return replace(
        device,
        name=text(directory / "product_name") or halo_name(function, kfd) or device.name,
        gfx=kfd.gfx if kfd is not None else None,
        apu=apu,
        unified=apu is True,
        pools=pools(directory, unified=apu is True),
        firmware=firmware(directory),
    )


def halo_name(function: PciFunction, kfd: KfdNode | None) -> str | None:
    if (function.vendor, function.device) != STRIX_HALO:
        return None
    model = STRIX_HALO_NAMES.get(kfd.compute_units) if kfd is not None else None
    return f"AMD Radeon {model} Graphics" if model else "AMD Radeon Graphics (Strix Halo)"


def is_apu(function: PciFunction, directory: Path, kfd: KfdNode | None, asked: bool | None) -> bool | None:
    """Is it integrated into the processor? Uses the most reliable available source; None if there is none.

    A GTT much larger than VRAM proves nothing: on a Strix Halo with 96 GB of VRAM it is the other way round.
    """
    if asked is not None:
        return asked
    gtt = size(directory / "mem_info_gtt_total")
    if kfd is not None and gtt and kfd.banks == (gtt,):
        return True
    if function.vendor == "1002" and function.device in APU_IDS:
        return True
    monitors = [directory / "hwmon" / name for name in names(directory / "hwmon")]
    if (directory / "mem_busy_percent").exists() or any((m / "power1_cap").exists() for m in monitors):
        return False
    return True if monitors and (directory / "gpu_busy_percent").exists() else None


def pools(directory: Path, *, unified: bool) -> tuple[MemoryPool, ...]:
    """VRAM, the part of it that the CPU can access, and GTT; on an APU also VRAM plus GTT, which a model can use."""
    found = {}
    for name, key in POOL_FILES.items():
        total = size(directory / f"mem_info_{key}_total")
        if total:
            used = size(directory / f"mem_info_{key}_used")
            found[name] = MemoryPool(name, total, used if used is not None and used <= total else None)
    if unified and "gtt" in found:
        parts = [found[name] for name in ("vram", "gtt") if name in found]
        known = [part.used for part in parts if part.used is not None]
        used = sum(known) if len(known) == len(parts) else None
        found["unified"] = MemoryPool("unified", sum(part.total for part in parts), used)
    return tuple(found.values())


def firmware(directory: Path) -> dict[str, str]:
    """Versions as the driver reports them: {"mes": "0x00000080", "vbios": "113-STRXLGEN-001"}."""
    found = {}
    for name in names(directory / "fw_version"):
        value = text(directory / "fw_version" / name)
        if value:
            found[name.removesuffix("_fw_version")] = value
    vbios = text(directory / "vbios_version")
    return found | ({"vbios": vbios} if vbios else {})


def ask_driver(node: Path) -> bool | None:
    """Does amdgpu call it an APU? None if it does not answer. Opens the node: only for a GPU that is awake."""
    answer = ctypes.create_string_buffer(FLAGS_AT + 8)
    request = struct.pack("=QII16x", ctypes.addressof(answer), len(answer), DEV_INFO)
    try:
        descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.ioctl(descriptor, INFO_REQUEST, request)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    (flags,) = struct.unpack_from("=Q", answer.raw, FLAGS_AT)
    return bool(flags & FUSION)


class ClockSteps(Struct, frozen=True):
    lowest: int
    highest: int
    now: int | None  # None: no star, or several that differ


def clock_steps(text: str) -> ClockSteps | None:
    """Parses a pp_dpm_* file; None if it contains no clock.

    Real files have none, one or two stars, trailing blanks, NULs, empty lines, and on newer cards a line "S:" for a
    sleeping clock.
    """
    steps, stars = [], set()
    for line in text.replace("\0", "").splitlines():
        found = DPM_LINE.match(line.strip())
        if found is None or int(found[2]) > MOST_MHZ:
            continue
        if found[3]:
            stars.add(int(found[2]))
        if found[1] != "S":
            steps.append(int(found[2]))
    if not steps:
        return None
    return ClockSteps(min(steps), max(steps), stars.pop() if len(stars) == 1 else None)
