"""Plain Python to D-Bus values, by a signature. A variant is given as port.Variant, wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from gi.repository import GLib

from accelerd.system.dbus.port import Variant

# A file may claim sizes that no type can carry: whoever is told of one is told of as much as can be.
MOST: Final = {"u": (1 << 32) - 1, "t": (1 << 64) - 1}


def pack(signature: str, value: Any) -> Any:
    """The value as a GLib.Variant of this type. ValueError when it is of another type."""
    try:
        return GLib.Variant(signature, _prepare(signature, value))
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError) as error:
        raise ValueError(f"cannot send {value!r:.200} as {signature}: {error}") from None


def dictionary(values: Mapping[str, Any]) -> Any:
    entries = [
        GLib.Variant.new_dict_entry(GLib.Variant.new_string(name), GLib.Variant.new_variant(value))
        for name, value in values.items()
    ]
    return GLib.Variant.new_array(GLib.VariantType("{sv}"), entries)


def _prepare(signature: str, value: Any) -> Any:
    """As PyGObject takes it: GLib.Variant in the place of a v; object paths checked, since GLib aborts on a bad one."""
    if signature == "v":
        return _variant(value)
    if signature == "o":
        if not isinstance(value, str) or not GLib.Variant.is_object_path(value):
            raise ValueError("not an object path")
        return value
    if signature == "s" and isinstance(value, str):
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    if signature in MOST and isinstance(value, int):
        return min(value, MOST[signature])
    if len(signature) == 1:
        return value
    if signature.startswith("a{"):
        key, held = _types(signature[2:-1])
        return {_prepare(key, name): _prepare(held, item) for name, item in value.items()}
    if signature.startswith("a"):
        if isinstance(value, str):
            raise ValueError("a string is not a list")
        return [_prepare(signature[1:], item) for item in value]
    types = list(_types(signature[1:-1]))
    return tuple(_prepare(one, item) for one, item in zip(types, value, strict=True))


def _variant(value: Any) -> Any:
    if isinstance(value, GLib.Variant):
        return value
    if isinstance(value, Variant):
        return GLib.Variant(value.signature, _prepare(value.signature, value.value))
    if isinstance(value, bool):
        return GLib.Variant("b", value)
    if isinstance(value, str):
        return GLib.Variant("s", _prepare("s", value))
    if isinstance(value, float):
        return GLib.Variant("d", value)
    if isinstance(value, list | tuple):
        return GLib.Variant("as", _prepare("as", value))
    raise TypeError(f"{type(value).__name__} needs a Variant with its type")


def _types(signature: str) -> Iterator[str]:
    """The complete types of a sequence of them."""
    start = depth = 0
    for at, letter in enumerate(signature):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0 and letter != "a":
            yield signature[start : at + 1]
            start = at + 1
