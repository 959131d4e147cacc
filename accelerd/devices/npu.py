"""What amdxdna and ivpu tell of an NPU, and which NPUs there are that no driver has taken.

Reads files only: the driver's own questions would wake it.
"""

from __future__ import annotations

import re
from pathlib import Path

from accelerd.devices.files import text
from accelerd.devices.udev import PciFunction

AMD, INTEL = "1022", "8086"
# PCI ids of NPUs: vendor, device → columns of the array where that is what they are made of
KNOWN: dict[tuple[str, str], int | None] = {
    (AMD, "1502"): 5,  # Phoenix, Hawk Point
    (AMD, "17f0"): 8,  # Strix Point, Strix Halo, Krackan
    (INTEL, "7d1d"): None,  # Meteor Lake
    (INTEL, "ad1d"): None,  # Arrow Lake
    (INTEL, "643e"): None,  # Lunar Lake
    (INTEL, "b03e"): None,  # Panther Lake
}
NAMES = {AMD: "AMD Ryzen AI NPU", INTEL: "Intel NPU"}
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def is_npu(function: PciFunction) -> bool:
    return (function.vendor, function.device) in KNOWN


def columns(function: PciFunction) -> int | None:
    return KNOWN.get((function.vendor, function.device))


def name(function: PciFunction, directory: Path | None) -> str | None:
    """ "RyzenAI-npu5" as amdxdna has it, padded and coloured at times; else what such a thing is called."""
    own = ESCAPES.sub("", text(directory / "vbnv") or "").strip() if directory is not None else ""
    return own or (function.names[-1] if function.names else NAMES.get(function.vendor))


def firmware(directory: Path) -> dict[str, str]:
    version = text(directory / "fw_version")
    return {"npu": version} if version else {}
