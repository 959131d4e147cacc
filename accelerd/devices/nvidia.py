"""What NVIDIA's own driver tells of a card without being asked through its library: its files below /proc.

Reading them wakes nothing. Memory and load need NVML (nvml.py).
"""

from __future__ import annotations

from accelerd.base.ports import Roots
from accelerd.devices.files import lines


def information(roots: Roots, slot: str) -> dict[str, str]:
    """The driver's own lines about a card: "Model", "GPU Firmware", "Video BIOS", "Device Minor"."""
    found = {}
    for line in lines(roots.proc / "driver/nvidia/gpus" / slot / "information"):
        key, _, value = line.partition(":")
        if value.strip() and "?" not in value:  # unknown while it sleeps
            found[key.strip()] = value.strip()
    return found


def node(facts: dict[str, str]) -> str | None:
    minor = facts.get("Device Minor", "")
    return f"/dev/nvidia{minor}" if minor.isdecimal() else None


def firmware(facts: dict[str, str]) -> dict[str, str]:
    return {short: facts[key] for key, short in (("GPU Firmware", "gsp"), ("Video BIOS", "vbios")) if key in facts}
