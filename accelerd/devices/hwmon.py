"""A device's hwmon directory: power, temperatures and clocks with their labels, as most GPU drivers have them.

Values that a sensor cannot have are refused. An energy counter becomes power between two looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accelerd.devices.files import Files, Unreadable, names

MOST_MICROWATTS = 2_000_000_000
COLDEST, HOTTEST = -50_000, 150_000  # thousandths of °C
MOST_HERTZ = 20_000_000_000
MOST_MICROJOULES = (1 << 63) - 1
MAIN_TEMPERATURES = ("edge", "pkg", "")  # of several, the one that people mean
WHOLE = ("card", "pkg", "PPT", "")


def directory(device: Path) -> Path | None:
    """The device's own hwmon directory; its number means nothing."""
    top = device / "hwmon"
    return next((top / name for name in names(top) if name.startswith("hwmon")), None)


def sensors(where: Path, prefix: str, suffix: str, files: Files) -> Iterator[tuple[str, Path]]:
    """(label, file) of every `prefixN_suffix`."""
    present = names(where)
    for name in present:
        if name.startswith(prefix) and name.endswith(f"_{suffix}"):
            number = name[len(prefix) : -len(suffix) - 1]
            label = f"{prefix}{number}_label"
            try:
                yield (files.text(where / label) if label in present else ""), where / name
            except Unreadable:
                yield "", where / name


def temperatures(where: Path, files: Files) -> dict[str, float]:
    """°C by label. Unreadable when there are sensors and none can be read."""
    found: dict[str, float] = {}
    trouble = Unreadable("no temperature sensor", absent=True)
    for label, path in sensors(where, "temp", "input", files):
        try:
            found[label or path.name.removesuffix("_input")] = files.number(path, COLDEST, HOTTEST) / 1000
        except Unreadable as error:
            trouble = error
    if not found:
        raise trouble
    return found


def main_temperature(found: dict[str, float]) -> float:
    """Of the chip as a whole."""
    return next((found[label] for label in MAIN_TEMPERATURES if label in found), next(iter(found.values())))


def power(where: Path, files: Files) -> float:
    """W, from the sensor of the whole. Unreadable."""
    trouble = Unreadable("no power sensor", absent=True)
    for suffix in ("average", "input"):
        found = dict(sensors(where, "power", suffix, files))
        for label in (*WHOLE, *found):
            if label in found:
                try:
                    return files.number(found[label], 0, MOST_MICROWATTS) / 1e6
                except Unreadable as error:
                    trouble = error
                    break
    raise trouble


def energy(where: Path, files: Files) -> float:
    """J since whenever, for drivers that have no power sensor. Unreadable."""
    found = dict(sensors(where, "energy", "input", files))
    for label in (*WHOLE, *found):
        if label in found:
            return files.number(found[label], 0, MOST_MICROJOULES) / 1e6
    raise Unreadable("no energy counter", absent=True)


def clocks(where: Path, files: Files) -> dict[str, int]:
    """MHz by label ("sclk", "mclk"); what cannot be read is left out."""
    found = {}
    for label, path in sensors(where, "freq", "input", files):
        try:
            found[label] = files.number(path, 0, MOST_HERTZ) // 1_000_000
        except Unreadable:
            continue
    return found
