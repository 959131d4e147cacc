"""Amounts of memory as people read them, in the same form wherever the program prints one. Pure.

Only for reading: sizes in a configuration are written and parsed by `accelerd.config.units`.
"""

from __future__ import annotations

from typing import Final

UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_size(count: float | None) -> str:
    """Bytes as "4.7 GiB", "300 MiB", "106 GiB"; None, which is unknown, as "-"."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while abs(value) >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {UNITS[unit]}" if unit == 0 or abs(value) >= 100 else f"{value:.1f} {UNITS[unit]}"
