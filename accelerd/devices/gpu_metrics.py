"""amdgpu's binary `gpu_metrics`, decoded by tables: v1.0 to v1.8 of cards, v2.x and v3.0 of APUs.

A table lists the offset, type and divisor of each number; all ones mean that the chip does not have the sensor. Pure. A
version without a table, or a file that is too short, gives nothing. Layouts: the kernel's
drivers/gpu/drm/amd/include/kgd_pp_interface.h.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple


class Field(NamedTuple):
    at: int
    kind: str  # struct's letter: H 16, I 32, Q 64 bits
    divisor: float = 1


Table = dict[str, Field]
NOT_THERE: Final = {"H": 0xFFFF, "I": 0xFFFFFFFF, "Q": 0xFFFFFFFFFFFFFFFF}

V1_0: Table = {
    "temperature": Field(16, "H"), "temperature_hotspot": Field(18, "H"), "temperature_mem": Field(20, "H"),
    "busy": Field(28, "H"), "power": Field(34, "H"),
    "sclk": Field(54, "H"), "socclk": Field(56, "H"), "mclk": Field(58, "H"),
}  # fmt: skip
V1_1: Table = {
    "temperature": Field(4, "H"), "temperature_hotspot": Field(6, "H"), "temperature_mem": Field(8, "H"),
    "busy": Field(16, "H"), "power": Field(22, "H"),
    "sclk": Field(54, "H"), "socclk": Field(56, "H"), "mclk": Field(58, "H"),
}  # fmt: skip
V1_3: Table = {**V1_1, "throttle": Field(112, "Q")}
V1_4: Table = {
    "temperature_hotspot": Field(4, "H"), "temperature_mem": Field(6, "H"), "power": Field(10, "H"),
    "busy": Field(12, "H"),
}  # fmt: skip
# An APU's socket power has no agreed unit before v2.4 (W on some, mW on others): it is left to hwmon.
V2_0: Table = {
    "temperature": Field(16, "H", 100),
    "sclk": Field(80, "H"), "socclk": Field(82, "H"), "mclk": Field(84, "H"), "fclk": Field(86, "H"),
}  # fmt: skip
V2_1: Table = {
    "temperature": Field(4, "H", 100),
    "sclk": Field(76, "H"), "socclk": Field(78, "H"), "mclk": Field(80, "H"), "fclk": Field(82, "H"),
}  # fmt: skip
V2_2: Table = {**V2_1, "throttle": Field(120, "Q")}
V2_4: Table = {**V2_2, "power": Field(40, "H", 1000)}
V3_0: Table = {
    "temperature": Field(4, "H", 100), "temperature_soc": Field(6, "H", 100), "busy": Field(42, "H"),
    **{f"npu_column_{column}": Field(46 + 2 * column, "H") for column in range(8)},
    "dram_reads": Field(94, "H"), "dram_writes": Field(96, "H"),  # MB/s
    "npu_reads": Field(98, "H"), "npu_writes": Field(100, "H"),
    "power": Field(112, "I", 1000), "npu_power": Field(116, "H", 1000),
    "sclk": Field(174, "H"), "socclk": Field(176, "H"), "npuclk": Field(180, "H"), "fclk": Field(182, "H"),
    "mclk": Field(186, "H"),
    "held_prochot": Field(228, "I"), "held_spl": Field(232, "I"), "held_fppt": Field(236, "I"),
    "held_sppt": Field(240, "I"), "held_thm_core": Field(244, "I"), "held_thm_gfx": Field(248, "I"),
    "held_thm_soc": Field(252, "I"),
}  # fmt: skip

TABLES: Final[dict[tuple[int, int], Table]] = {
    (1, 0): V1_0, (1, 1): V1_1, (1, 2): V1_1, (1, 3): V1_3,
    (1, 4): V1_4, (1, 5): V1_4, (1, 6): V1_4, (1, 7): V1_4, (1, 8): V1_4,
    (2, 0): V2_0, (2, 1): V2_1, (2, 2): V2_2, (2, 3): V2_2, (2, 4): V2_4,
    (3, 0): V3_0,
}  # fmt: skip

# SMU_THROTTLER_* bits, the same for every chip
THROTTLERS: Final = {
    **dict.fromkeys(range(8), "power limit"),
    **dict.fromkeys(range(16, 24), "current limit"),
    **dict.fromkeys(range(32, 44), "temperature"),
    **dict.fromkeys((44, 45, 46, 47), "overheat signal (PROCHOT)"),
    **dict.fromkeys((56, 57), "firmware limit"),
}
# v3.0 counts how long each limit reduced the clocks
HELD: Final = {
    "held_prochot": "overheat signal (PROCHOT)", "held_spl": "power limit", "held_fppt": "power limit",
    "held_sppt": "power limit", "held_thm_core": "temperature", "held_thm_gfx": "temperature",
    "held_thm_soc": "temperature",
}  # fmt: skip


def version(data: bytes) -> tuple[int, int] | None:
    """Format and content revision."""
    return (data[2], data[3]) if len(data) >= 4 else None


def decode(data: bytes) -> dict[str, float]:
    """The values of the file in W, °C, MHz, % and MB/s; `throttle` and `held_…` unchanged."""
    table = TABLES.get(version(data) or (0, 0))
    if table is None:
        return {}
    (claimed,) = struct.unpack_from("<H", data)
    size = min(claimed, len(data))
    found: dict[str, float] = {}
    for name, field in table.items():
        if field.at + struct.calcsize(field.kind) > size:
            continue
        (value,) = struct.unpack_from(f"<{field.kind}", data, field.at)
        if value != NOT_THERE[field.kind]:
            found[name] = value / field.divisor if field.divisor != 1 else value
    return found


def throttling(now: dict[str, float], before: dict[str, float] | None) -> tuple[str, ...]:
    """What limits the clocks: status bits if the chip has them, and counters that increased since `before`."""
    bits = int(now.get("throttle", 0))
    reasons = {reason: None for bit, reason in THROTTLERS.items() if bits >> bit & 1}
    for name, reason in HELD.items():
        if before is not None and name in now and name in before and now[name] > before[name]:
            reasons[reason] = None
    return tuple(reasons)


def npu_load(metrics: dict[str, float]) -> float | None:
    """The load of the NPU in the same processor, in %: the mean of its columns."""
    columns = [value for name, value in metrics.items() if name.startswith("npu_column_") and value <= 100]
    return sum(columns) / len(columns) if columns else None
