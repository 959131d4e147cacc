"""Parses and formats durations, sizes and addresses.

Owns the grammar of "1h30m", "12GiB" and "127.0.0.1:4000". Pure: no I/O, no clock, imports nothing of the program.
Parsers raise ValueError with a text that completes "expected …"; the caller adds file, line and key.
"""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from typing import Final

DURATION: Final = 'a duration: a number of seconds, or text such as "500ms", "10m", "1h30m"'
SIZE: Final = (
    'a size: a number of bytes, or text such as "500M", "12GiB" '
    "(K, M, G, T and KiB, MiB… are powers of 1024; KB, MB… of 1000)"
)
ADDRESS: Final = 'an address "HOST:PORT" such as "127.0.0.1:4000" or "[::1]:4000", port 1 to 65535'

_LONGEST: Final = 100 * 365 * 86400  # seconds; longer durations are typing mistakes
_LARGEST: Final = 1 << 60  # bytes, one exbibyte

_SECONDS: Final = {
    "ms": Decimal("0.001"), "s": Decimal(1), "sec": Decimal(1), "m": Decimal(60), "min": Decimal(60),
    "h": Decimal(3600), "d": Decimal(86400),
}  # fmt: skip
_NUMBER: Final = r"[0-9]{1,19}(?:\.[0-9]{1,9})?"
_PART: Final = re.compile(rf"\s*({_NUMBER})\s*(ms|sec|s|min|m|h|d)", re.ASCII)
_BARE: Final = re.compile(_NUMBER)
_SIZE: Final = re.compile(rf"({_NUMBER})\s*([KMGTP]?)(iB|B|)", re.ASCII | re.IGNORECASE)
_POWER: Final = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_ADDRESS: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):([0-9]{1,5})", re.ASCII)


def parse_duration(value: int | float | str) -> float:
    """Seconds, not negative. A number counts seconds; units of a string may each appear once."""
    if isinstance(value, str):
        seconds = float(_duration_text(value.strip()))
    elif value != value or abs(value) > _LONGEST:
        raise ValueError(DURATION)
    else:
        seconds = float(value)
    if not 0 <= seconds <= _LONGEST:
        raise ValueError(f"{DURATION}, not negative and below 100 years")
    return seconds


def _duration_text(text: str) -> Decimal:
    if _BARE.fullmatch(text):
        return Decimal(text)
    total, at, seen = Decimal(0), 0, set()
    while at < len(text):
        part = _PART.match(text, at)
        if part is None or _SECONDS[part[2]] in seen:
            raise ValueError(DURATION)
        seen.add(_SECONDS[part[2]])
        total += Decimal(part[1]) * _SECONDS[part[2]]
        at = part.end()
    if not seen:
        raise ValueError(DURATION)
    return total


def format_duration(seconds: float) -> str:
    """The shortest exact text, "1h30m"; `parse_duration` gives the same number back."""
    if seconds == 0:
        return "0s"
    milliseconds = Decimal(repr(seconds)) * 1000
    if milliseconds != int(milliseconds):
        return f"{Decimal(repr(seconds)):f}s"
    rest, out = int(milliseconds), ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, rest = divmod(rest, size)
        if count:
            out += f"{count}{unit}"
    return out


def parse_size(value: int | str) -> int:
    """Bytes, not negative. A number counts bytes; fractions of a byte are truncated."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(SIZE)
        prefix, suffix = match[2].upper(), match[3].lower()
        base = 1000 if prefix and suffix == "b" else 1024
        if suffix == "ib" and not prefix:
            raise ValueError(SIZE)
        value = int(Decimal(match[1]) * base ** _POWER[prefix])
    if not 0 <= value <= _LARGEST:
        raise ValueError(f"{SIZE}, not negative and at most 1024PiB")
    return value


def format_size(size: int) -> str:
    """The largest binary unit that is exact, "12GiB"; `parse_size` gives the same number back."""
    for prefix in "PTGMK":
        unit = 1024 ** _POWER[prefix]
        if size and size % unit == 0:
            return f"{size // unit}{prefix}iB"
    return f"{size}B"


def parse_address(value: str) -> str:
    """A listening address in one spelling: "127.0.0.1:4000", "[::1]:4000" or "localhost:4000"."""
    host, port = split_address(value)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(value: str) -> tuple[str, int]:
    """Host without brackets, and port. Names other than localhost are refused, because DNS can change them."""
    match = _ADDRESS.fullmatch(value.strip())
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise ValueError(ADDRESS)
    host = (match[1] or match[2]).lower()
    if host == "localhost":
        return host, int(match[3])
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        hint = ' ("0.0.0.0" and "[::]" mean all)' if host == "*" else ""
        raise ValueError(f"{ADDRESS}; HOST is an IP address or localhost{hint}") from error
    if (address.version == 6) != bool(match[1]):
        raise ValueError(ADDRESS)
    return str(address), int(match[3])


def is_loopback(value: str) -> bool:
    """Is the address reachable only from this machine?"""
    host, _ = split_address(value)
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
