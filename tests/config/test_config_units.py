"""Durations, sizes and addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelerd.config import units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (30, 30), (0.5, 0.5), ("90", 90), ("500ms", 0.5), ("10m", 600), ("10 min", 600), ("1h30m", 5400),
        ("1h 30m", 5400), ("2d", 172800), ("1.5h", 5400), ("0.1s", 0.1), (0, 0), ("0s", 0), (" 5s ", 5), ("3sec", 3),
    ],
)  # fmt: skip
def test_durations(text: int | float | str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "10 x", "10m10m", "1m 2min", "m", "-5s", -1, "1h30", "1e3", "٣s", float("nan"), float("inf"), 10**30,
     "99999999999999d", "ten", "1h,30m", "0x10"],
)  # fmt: skip
def test_durations_refused(text: int | float | str) -> None:
    with pytest.raises(ValueError, match="a duration"):
        units.parse_duration(text)


@given(st.integers(0, 10**11))
def test_durations_of_whole_milliseconds_round_trip(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@given(st.floats(1e-6, 1e6))
def test_every_duration_stays_close_when_written_and_read(seconds: float) -> None:
    seconds = round(seconds, 9)
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096), ("100", 100), ("100B", 100), ("500M", 500 << 20), ("500MiB", 500 << 20), ("500MB", 500_000_000),
        ("12GiB", 12 << 30), ("12 gib", 12 << 30), ("12G", 12 << 30), ("12GB", 12_000_000_000), ("1.5G", 3 << 29),
        ("2T", 2 << 40), ("64K", 65536), ("64kb", 64_000), ("0", 0),
    ],
)  # fmt: skip
def test_sizes(text: int | str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "12GG", "12iB", "-1", -1, "1e9", "12 Gibi", "9999P", 1 << 70, "٣G", "a lot"])
def test_sizes_refused(text: int | str) -> None:
    with pytest.raises(ValueError, match="a size"):
        units.parse_size(text)


@given(st.integers(0, 1 << 60))
def test_every_size_round_trips(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:4000", "127.0.0.1:4000", True),
        ("127.8.0.1:1", "127.8.0.1:1", True),
        ("[::1]:4000", "[::1]:4000", True),
        ("[0:0::1]:65535", "[::1]:65535", True),
        ("LOCALHOST:80", "localhost:80", True),
        ("0.0.0.0:4000", "0.0.0.0:4000", False),
        ("[::]:4000", "[::]:4000", False),
        ("192.168.1.2:4000", "192.168.1.2:4000", False),
        ("[fd00::2]:4000", "[fd00::2]:4000", False),
    ],
)
def test_addresses(text: str, address: str, loopback: bool) -> None:
    assert units.parse_address(text) == address
    assert units.is_loopback(address) is loopback


@pytest.mark.parametrize(
    "text",
    ["", "4000", ":4000", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "::1:4000", "[127.0.0.1]:4000", "*:4000",
     "box.local:4000", "127.0.0.1:4000\n[::1]:1", "http://127.0.0.1:4000", "[::1]", "127.0.0.1:٣"],
)  # fmt: skip
def test_addresses_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an address"):
        units.parse_address(text)
