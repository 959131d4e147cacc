"""A device's hwmon directory, which appears and disappears with the driver: power, temperatures, clocks, energy.

Impossible values are refused. Without a directory, or without the sensor, every reading is an absent UnreadableValue.
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


class Hwmon:
    def __init__(self, device: Path, files: AttributeFiles) -> None:
        self._top = device / "hwmon"
        self._files = files

    def temperatures(self) -> dict[str, float]:
        """°C by label."""
        found: dict[str, float] = {}
        trouble = UnreadableValue("no temperature sensor", absent=True)
        for label, path in self._sensors("temp", "input"):
            try:
                found[label or path.name.removesuffix("_input")] = self._files.number(path, COLDEST, HOTTEST) / 1000
            except UnreadableValue as error:
                trouble = error
        if not found:
            raise trouble
        return found

    def power(self) -> float:
        """W, from the sensor of the whole device."""
        trouble = UnreadableValue("no power sensor", absent=True)
        for suffix in ("average", "input"):
            try:
                return self._of_whole("power", suffix, MOST_MICROWATTS)
            except UnreadableValue as error:
                trouble = trouble if error.absent else error
        raise trouble

    def energy(self) -> float:
        """J since an arbitrary moment, for drivers without a power sensor."""
        return self._of_whole("energy", "input", MOST_MICROJOULES)

    def clock(self, label: str) -> float:
        """MHz of "sclk", "mclk"."""
        for found, path in self._sensors("freq", "input"):
            if found == label:
                return float(self._files.number(path, 0, MOST_HERTZ) // 1_000_000)
        raise UnreadableValue(f"no {label} in hwmon", absent=True)

    def _of_whole(self, prefix: str, suffix: str, most: int) -> float:
        found = dict(self._sensors(prefix, suffix))
        for label in (*WHOLE, *found):
            if label in found:
                return self._files.number(found[label], 0, most) / 1e6
        raise UnreadableValue(f"no {prefix} sensor", absent=True)

    def _sensors(self, prefix: str, suffix: str) -> Iterator[tuple[str, Path]]:
        """(label, file) of every `prefixN_suffix`."""
        where = next((self._top / name for name in names(self._top) if name.startswith("hwmon")), None)
        if where is None:
            raise UnreadableValue("no hwmon", absent=True)
        present = names(where)
        for name in present:
            if name.startswith(prefix) and name.endswith(f"_{suffix}"):
                label = f"{name.removesuffix(suffix)}label"
                try:
                    yield (self._files.text(where / label) if label in present else ""), where / name
                except UnreadableValue:
                    yield "", where / name


def main_temperature(found: dict[str, float]) -> float:
    """The temperature of the whole chip."""
    if not found:
        raise UnreadableValue("no temperature sensor", absent=True)
    return next((found[label] for label in MAIN_TEMPERATURES if label in found), next(iter(found.values())))
