"""Numbers, times and text from outside as a person reads them. Pure functions, no terminal, no clock."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def span(seconds: float | None) -> str:
    """Seconds as "12 ms", "0.4 s", "12 s", "3 min", "1 h 33 min", "2 d 4 h"; unknown is "-"."""
    if seconds is None:
        return "-"
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def count(number: int, noun: str, plural: str = "") -> str:
    """ "1 model", "2 models"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def errors_in(problems: Sequence[Mapping[str, Any]]) -> int:
    """How many of a configuration's problems are not just warnings."""
    return sum(problem.get("severity") != "warning" for problem in problems)


def printable(text: str) -> str:
    """Text of an engine or a file with control characters escaped; tabs become spaces."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c == "\t" else escape(c) for c in text)


def escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def width(text: str) -> int:
    """Columns that the text takes in a terminal."""
    if text.isascii():
        return len(text)
    wide = ("W", "F")
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in wide else 1 for c in text)


def clip(text: str, columns: int) -> str:
    """The text cut to so many columns, with "…" where something is missing."""
    if width(text) <= columns:
        return text
    kept = ""
    for char in text:
        if width(kept + char) > columns - 1:
            break
        kept += char
    return kept + "…"


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known name that was probably meant."""
    from difflib import get_close_matches  # slow to import, and rarely needed

    by_lower = {item.lower(): item for item in known}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    if found:
        return by_lower[found[0]]
    parts = [item for lower, item in by_lower.items() if name.lower() in lower]
    return parts[0] if len(parts) == 1 else None


def curl_with_key(path: str, header: str = "Authorization: Bearer ") -> str:
    """The begin of a command that sends the first key of a file. The key is on no command line."""
    return f"sed -n '/^[^#]/{{s/^/{header}/p;q}}' {shlex.quote(path)} | curl -H @-"
