"""What the level's rules need to know of an AMD GPU, from files of sysfs. Blocking; never wakes a sleeping device.

What a device does not say, or says beyond all reason, is None.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from accelerd.devices.level import Reading
from accelerd.helper.gpu import ASLEEP, FILE, LevelError, opened

_CLOCK: Final = re.compile(r"^(\d+):\s*(\d+)Mhz", re.MULTILINE)


class Gauge:
    """Reads devices by their PCI slot."""

    def __init__(self, sys: Path) -> None:
        self._sys = sys

    def read(self, slot: str) -> Reading:
        """All that can be read now; of a device that sleeps or is gone nothing."""
        device = self._sys / "bus/pci/devices" / slot
        if text(device / "power/runtime_status") in ASLEEP:
            return Reading()
        hwmon = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "none")
        clocks = [int(mhz) for _, mhz in _CLOCK.findall(text(device / "pp_dpm_sclk") or "")]
        power = number(hwmon / "power1_average", 1e-6, 2000)
        return Reading(
            level=text(device / FILE) or None,
            clock=number(hwmon / "freq1_input", 1e-6, 10_000),
            lowest=clocks[0] if clocks else None,
            highest=clocks[-1] if clocks else None,
            busy=number(device / "gpu_busy_percent", 1.0, 100),
            temperature=number(hwmon / "temp1_input", 1e-3, 200),
            power=power if power is not None else number(hwmon / "power1_input", 1e-6, 2000),
        )

    def is_apu(self, slot: str) -> bool:
        """Is it a GPU of amdgpu that is part of the processor?"""
        try:
            with opened(self._sys, slot) as gpu:
                return gpu.is_apu()
        except LevelError:
            return False


def text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return None


def number(path: Path, unit: float, most: float) -> float | None:
    """A number from 0 to `most`, in units of the file's times `unit`."""
    try:
        value = int(text(path) or "") * unit
    except ValueError:
        return None
    return value if 0 <= value <= most else None
