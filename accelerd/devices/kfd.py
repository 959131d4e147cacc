"""AMD's compute topology below /sys/class/kfd: compute units, target and memory of each GPU.

Text files; reading them wakes no device. Optional: without KFD, or if a container hides nodes (EPERM), these details
are missing.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from accelerd.devices.files import lines, names, size, text


class KfdNode(Struct, frozen=True):
    slot: str  # PCI, "0000:c1:00.0"
    gfx: str | None  # "gfx1151"
    compute_units: int
    banks: tuple[int, ...]  # sizes in bytes; an APU has one, as large as GTT
    saves_waves: bool  # the kernel reports the context save area (cwsr_size)


def nodes(sys: Path) -> dict[str, KfdNode]:
    """The GPUs by PCI slot."""
    top = sys / "class/kfd/kfd/topology/nodes"
    found = {}
    for name in names(top):
        values = properties(top / name / "properties")
        simds = values.get("simd_count", 0)
        if simds <= 0:
            continue  # a processor
        slot = slot_of(values)
        banks = [properties(top / name / "mem_banks" / bank / "properties") for bank in names(top / name / "mem_banks")]
        found[slot] = KfdNode(
            slot=slot,
            gfx=target(values.get("gfx_target_version", 0)),
            compute_units=simds // max(1, values.get("simd_per_cu", 2)),
            banks=tuple(bank["size_in_bytes"] for bank in banks if bank.get("size_in_bytes", 0) > 0),
            saves_waves="cwsr_size" in values,
        )
    return found


def users(sys: Path) -> list[int]:
    """Processes that use the compute driver (ROCm)."""
    return sorted(int(name) for name in names(sys / "class/kfd/kfd/proc") if name.isdecimal())


def held_by(sys: Path, pid: int) -> dict[str, int]:
    """Bytes of device memory that a process has allocated through KFD, by PCI slot. Readable by every user."""
    top = sys / "class/kfd/kfd"
    sizes = {
        name.removeprefix("vram_"): held
        for name in names(top / "proc" / str(pid))
        if name.startswith("vram_") and (held := size(top / "proc" / str(pid) / name)) is not None
    }
    if not sizes:
        return {}
    found = {}
    for name in names(top / "topology/nodes"):
        number = text(top / "topology/nodes" / name / "gpu_id")
        if number in sizes:
            values = properties(top / "topology/nodes" / name / "properties")
            found[slot_of(values)] = sizes[number]
    return found


def properties(path: Path) -> dict[str, int]:
    """The lines of the form `name number`."""
    found = {}
    for line in lines(path):
        name, _, value = line.partition(" ")
        if value.strip().isdecimal():
            found[name] = int(value)
    return found


def target(version: int) -> str | None:
    """110501 → "gfx1151", 90010 → "gfx90a"."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version > 0 else None


def slot_of(values: dict[str, int]) -> str:
    """The PCI slot of a node; its location is bus << 8 | device << 3 | function."""
    domain, location = values.get("domain", 0), values.get("location_id", 0)
    return f"{domain & 0xFFFF:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
