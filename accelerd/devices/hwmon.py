"""A device's hwmon directory: power, temperatures and clocks with their labels.

Impossible values are refused. An energy counter gives the power between two readings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerd.devices.files import AttributeFiles, UnreadableValue, names

MOST_MICROWATTS = 2_000_000_000
COLDEST, HOTTEST = -50_000, 150_000  # thousandths of °C
MOST_HERTZ = 20_000_000_000
MOST_MICROJOULES = (1 << 63) - 1
MAIN_TEMPERATURES = ("edge", "pkg", "")  # of several, the most general first
WHOLE = ("card", "pkg", "PPT", "")


def directory(device: Path) -> Path | None:
    """The device's hwmon directory, whatever its number."""
    top = device / "hwmon"
    return next((top / name for name in names(top) if name.startswith("hwmon")), None)


def sensors(where: Path, prefix: str, suffix: str, files: AttributeFiles) -> Iterator[tuple[str, Path]]:
    """(label, file) of every `prefixN_suffix`."""
    present = names(where)
    for name in present:
        if name.startswith(prefix) and name.endswith(f"_{suffix}"):
            number = name[len(prefix) : -len(suffix) - 1]
            label = f"{prefix}{number}_label"
            try:
                yield (files.text(where / label) if label in present else ""), where / name
            except UnreadableValue:
                yield "", where / name


def temperatures(where: Path, files: AttributeFiles) -> dict[str, float]:
    """°C by label. UnreadableValue if no sensor can be read."""
    found: dict[str, float] = {}
    trouble = UnreadableValue("no temperature sensor", absent=True)
    for label, path in sensors(where, "temp", "input", files):
        try:
            found[label or path.name.removesuffix("_input")] = files.number(path, COLDEST, HOTTEST) / 1000
        except UnreadableValue as error:
            trouble = error
    if not found:
        raise trouble
    return found


def main_temperature(found: dict[str, float]) -> float:
    """The temperature of the whole chip."""
    return next((found[label] for label in MAIN_TEMPERATURES if label in found), next(iter(found.values())))


def power(where: Path, files: AttributeFiles) -> float:
    """W, from the sensor of the whole device. UnreadableValue."""
    trouble = UnreadableValue("no power sensor", absent=True)
    for suffix in ("average", "input"):
        found = dict(sensors(where, "power", suffix, files))
        for label in (*WHOLE, *found):
            if label in found:
                try:
                    return files.number(found[label], 0, MOST_MICROWATTS) / 1e6
                except UnreadableValue as error:
                    trouble = error
                    break
    raise trouble


def energy(where: Path, files: AttributeFiles) -> float:
    """J since an arbitrary moment, for drivers without a power sensor. UnreadableValue."""
    found = dict(sensors(where, "energy", "input", files))
    for label in (*WHOLE, *found):
        if label in found:
            return files.number(found[label], 0, MOST_MICROJOULES) / 1e6
    raise UnreadableValue("no energy counter", absent=True)


def clocks(where: Path, files: AttributeFiles) -> dict[str, int]:
    """MHz by label ("sclk", "mclk"); unreadable ones are left out."""
    found = {}
    for label, path in sensors(where, "freq", "input", files):
        try:
            found[label] = files.number(path, 0, MOST_HERTZ) // 1_000_000
        except UnreadableValue:
            continue
    return found
