"""Plain Python to D-Bus values and back, by a signature. Pure; PyGObject's own checks say what does not fit.

A variant is given as port.Variant, wherever it stands; see there for what needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gi.repository import GLib

from accelerd.system.dbus.port import Variant


def pack(signature: str, value: Any) -> Any:
    """The value as a GLib.Variant of this type. ValueError when it is of another."""
    try:
        return GLib.Variant(signature, _ready(signature, value))
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot send {value!r:.200} as {signature}: {error}") from None


def unpack(value: Any) -> tuple[Any, ...]:
    """The members of a tuple, in plain Python. Variants inside have lost their types."""
    return tuple(value.unpack())


def _ready(signature: str, value: Any) -> Any:
    """As PyGObject wants it: with GLib.Variant where there is a v; object paths looked at, which GLib ends us for."""
    if signature == "v":
        return _variant(value)
    if signature == "o":
        if not isinstance(value, str) or not GLib.Variant.is_object_path(value):
            raise ValueError("not an object path")
        return value
    if signature == "s" and isinstance(value, str):
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    if len(signature) == 1:
        return value
    if signature.startswith("a{"):
        key, held = _parts(signature[2:-1])
        return {_ready(key, name): _ready(held, item) for name, item in value.items()}
    if signature.startswith("a"):
        if isinstance(value, str):
            raise ValueError("a string is no list")
        return [_ready(signature[1:], item) for item in value]
    parts = list(_parts(signature[1:-1]))
    return tuple(_ready(part, item) for part, item in zip(parts, value, strict=True))


def _variant(value: Any) -> Any:
    if isinstance(value, Variant):
        return GLib.Variant(value.signature, _ready(value.signature, value.value))
    if isinstance(value, bool):
        return GLib.Variant("b", value)
    if isinstance(value, str):
        return GLib.Variant("s", _ready("s", value))
    if isinstance(value, float):
        return GLib.Variant("d", value)
    if isinstance(value, list | tuple):
        return GLib.Variant("as", _ready("as", value))
    raise TypeError(f"{type(value).__name__} needs a Variant with its type")


def _parts(signature: str) -> Iterator[str]:
    """The complete types that follow each other."""
    start = depth = 0
    for at, letter in enumerate(signature):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0 and letter != "a":
            yield signature[start : at + 1]
            start = at + 1
