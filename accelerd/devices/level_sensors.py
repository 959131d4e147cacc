"""Reads from sysfs what the performance level's rules need to know about an AMD GPU.

Blocking; never wakes a sleeping device. Missing and impossible values are None.
"""

from __future__ import annotations

from pathlib import Path

from accelerd.devices.amdgpu import clock_steps
from accelerd.devices.files import FILES, UnreadableValue, text
from accelerd.devices.level import LevelReading
from accelerd.helper.gpu import ASLEEP, FILE, LevelError, opened


class LevelSensors:
    """Reads devices by their PCI slot."""

    def __init__(self, sys: Path) -> None:
        self._sys = sys

    def read(self, slot: str) -> LevelReading:
        """All current values; empty if the device sleeps or is gone."""
        device = self._sys / "bus/pci/devices" / slot
        if text(device / "power/runtime_status") in ASLEEP:
            return LevelReading()
        hwmon = next(iter(sorted(device.glob("hwmon/hwmon*"))), device / "none")
        steps = clock_steps(text(device / "pp_dpm_sclk") or "")
        power = number(hwmon / "power1_average", 1e-6, 2000)
        return LevelReading(
            level=text(device / FILE),
            clock=number(hwmon / "freq1_input", 1e-6, 10_000),
            lowest=steps.lowest if steps else None,
            highest=steps.highest if steps else None,
            busy=number(device / "gpu_busy_percent", 1.0, 100),
            temperature=number(hwmon / "temp1_input", 1e-3, 200),
            power=power if power is not None else number(hwmon / "power1_input", 1e-6, 2000),
        )

    def is_apu(self, slot: str) -> bool:
        """Is it an integrated GPU with the amdgpu driver?"""
        try:
            with opened(self._sys, slot) as gpu:
                return gpu.is_apu()
        except LevelError:
            return False


def number(path: Path, unit: float, most: float) -> float | None:
    """The number in a file times `unit`, if the result is from 0 to `most`."""
    try:
        return FILES.number(path, 0, round(most / unit)) * unit
    except UnreadableValue:
        return None
