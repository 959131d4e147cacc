"""The a{sv} at the end of many methods: what is not known, or of another type, is refused before anything happens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerd.base.errors import AccelError

WORDS = {bool: "true or false", int: "a number", str: "a text"}


def options(given: Mapping[str, Any], **known: type[Any]) -> dict[str, Any]:
    """Those that were given, checked; `known` in Python's spelling: "allow_evict" is "allow-evict" on the bus."""
    types = {key.replace("_", "-"): wanted for key, wanted in known.items()}
    for key, value in given.items():
        if key not in types:
            have = f"there are {', '.join(sorted(types))}" if types else "there are none yet"
            raise AccelError("bad_request", f"there is no option {key[:60]!r}: {have}", param=key)
        if type(value) is not types[key] or (types[key] is int and value < 0):
            raise AccelError("bad_request", f"the option {key} must be {WORDS[types[key]]}", param=key)
    return dict(given)


def flags(given: Mapping[str, Any], *known: str) -> dict[str, str]:
    """Options that are all true or false, as the words of a query."""
    found = options(given, **dict.fromkeys(known, bool))
    return {key: "1" if value else "0" for key, value in found.items()}
