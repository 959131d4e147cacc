"""gpu_metrics of every version, and pp_dpm files as real cards have them."""

from __future__ import annotations

import struct

import pytest

from accelerd.devices import gpu_metrics
from accelerd.devices.amdgpu import ClockSteps, clock_steps


def table(version: tuple[int, int], size: int, *fields: tuple[str, int, int]) -> bytes:
    """A file in which only these fields are known: (struct's letter, offset, value)."""
    data = bytearray(b"\xff" * size)
    struct.pack_into("<HBB", data, 0, size, *version)
    for kind, at, value in fields:
        struct.pack_into(f"<{kind}", data, at, value)
    return bytes(data)


@pytest.mark.parametrize(("data", "expected"), [
    (table((1, 0), 80, ("H", 16, 44), ("H", 28, 97), ("H", 34, 250), ("H", 54, 2400)),
     {"temperature": 44, "busy": 97, "power": 250, "sclk": 2400}),
    (table((1, 1), 96, ("H", 4, 44), ("H", 6, 60), ("H", 16, 97), ("H", 22, 250), ("H", 58, 1249)),
     {"temperature": 44, "temperature_hotspot": 60, "busy": 97, "power": 250, "mclk": 1249}),
    (table((1, 3), 120, ("H", 54, 2300), ("Q", 112, 1 << 33)), {"sclk": 2300, "throttle": 1 << 33}),
    (table((1, 5), 280, ("H", 4, 55), ("H", 10, 600), ("H", 12, 80)),
     {"temperature_hotspot": 55, "power": 600, "busy": 80}),
    (table((2, 0), 120, ("H", 16, 4512), ("H", 80, 1900)), {"temperature": 45.12, "sclk": 1900}),
    (table((2, 1), 120, ("H", 4, 2500), ("H", 40, 3401), ("H", 76, 800), ("H", 82, 1600)),
     {"temperature": 25, "sclk": 800, "fclk": 1600}),
    (table((2, 3), 152, ("Q", 120, 3)), {"throttle": 3}),
    (table((2, 4), 168, ("H", 40, 15250)), {"power": 15.25}),
    (table((3, 0), 264, ("H", 42, 88), ("H", 46, 10), ("H", 48, 20), ("I", 112, 87_000), ("H", 186, 1000)),
     {"busy": 88, "npu_column_0": 10, "npu_column_1": 20, "power": 87, "mclk": 1000}),
])  # fmt: skip
def test_versions(data: bytes, expected: dict[str, float]) -> None:
    assert gpu_metrics.decode(data) == expected


@pytest.mark.parametrize(
    "data", [b"", b"\x08", b"\x08\x01\x03", table((9, 9), 264), table((3, 0), 4), table((3, 1), 264)]
)
def test_what_is_not_known_gives_nothing(data: bytes) -> None:
    assert gpu_metrics.decode(data) == {}


def test_a_file_that_is_shorter_than_it_says_and_one_that_is_longer() -> None:
    whole = table((3, 0), 264, ("H", 42, 88), ("I", 252, 5))
    assert gpu_metrics.decode(whole[:100]) == {"busy": 88}
    assert gpu_metrics.decode(whole + b"\0" * 100) == {"busy": 88, "held_thm_soc": 5}


@pytest.mark.parametrize("value", gpu_metrics.NOT_THERE.items())
def test_all_ones_are_no_value(value: tuple[str, int]) -> None:
    kind, ones = value
    fields = [(f.kind, f.at, ones) for f in gpu_metrics.V3_0.values() if f.kind == kind]
    names = {name for name, f in gpu_metrics.V3_0.items() if f.kind == kind}
    assert not names & set(gpu_metrics.decode(table((3, 0), 264, *fields)))


def test_every_field_lies_inside_the_smallest_file_of_its_version() -> None:
    smallest = {(1, 0): 80, (1, 1): 96, (1, 3): 120, (2, 0): 120, (2, 1): 120, (2, 2): 128, (2, 4): 168, (3, 0): 264}
    for version, size in smallest.items():
        for name, field in gpu_metrics.TABLES[version].items():
            assert field.at + struct.calcsize(field.kind) <= size, (version, name)


def test_what_holds_the_clocks_down() -> None:
    assert gpu_metrics.throttling({"throttle": 1 << 0 | 1 << 20 | 1 << 33 | 1 << 46}, None) == (
        "power limit", "current limit", "temperature", "overheat signal (PROCHOT)",
    )  # fmt: skip
    assert gpu_metrics.throttling({"held_spl": 5}, None) == ()
    assert gpu_metrics.throttling({"held_spl": 5}, {"held_spl": 4}) == ("power limit",)


def test_the_npus_load_is_the_mean_of_its_columns() -> None:
    assert gpu_metrics.npu_load({"npu_column_0": 10, "npu_column_1": 30, "npu_column_2": 60_000}) == 20
    assert gpu_metrics.npu_load({}) is None


@pytest.mark.parametrize(("text", "steps"), [
    ("0: 600Mhz \n1: 966Mhz *\n2: 2900Mhz \n", ClockSteps(600, 2900, 966)),
    ("0: 400Mhz \n1: 800Mhz \n2: 1000Mhz \n", ClockSteps(400, 1000, None)),  # no star
    ("0: 800Mhz *\n1: 800Mhz *\n2: 1605Mhz \n", ClockSteps(800, 1605, 800)),  # two that agree
    ("0: 800Mhz *\n1: 900Mhz *\n", ClockSteps(800, 900, None)),  # two that do not
    ("S: 19Mhz *\n0: 615Mhz\n1: 1000Mhz\n", ClockSteps(615, 1000, 19)),  # a clock that sleeps
    ("0: 2900Mhz \n1: 1100Mhz \n2: 2900Mhz *\n", ClockSteps(1100, 2900, 2900)),  # at the level "high"
    ("0: 500Mhz\n\0\0\0", ClockSteps(500, 500, None)),
    ("\n", None), ("", None), ("nonsense", None), ("S: 19Mhz *", None), ("0: -5Mhz *", None),
])  # fmt: skip
def test_steps_of_a_clock(text: str, steps: ClockSteps | None) -> None:
    assert clock_steps(text) == steps
