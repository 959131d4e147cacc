"""How a key of accelerd.toml is declared: once, as a field of a settings class in model.py.

`key` attaches the TOML type, range and description to a dataclass field and its default. `table` turns such a class
into the msgspec struct that validation (walk.py), the JSON Schema and the documentation read. Knows no particular key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field, fields
from types import GenericAlias
from typing import Annotated, Any, Final, Literal, TypeVar, cast

import msgspec
from msgspec import Meta, Struct

T = TypeVar("T")

_TOML: Final = "toml"  # in a field's metadata: (key, type of its value in the file)
_PLACE: Final = "place"  # … : "anywhere" or "model", see key()
_LIVE: Final = "live"


def about(description: str, **limits: Any) -> Meta:
    """A key's description for editors and documentation, and its range."""
    return Meta(description=description, **limits)


def described(toml: Any, description: str, **limits: Any) -> Any:
    """The type `toml` with a description and a range."""
    return Annotated[toml, about(description, **limits)]


def array(toml: Any) -> Any:
    return GenericAlias(list, (toml,))


class Once(Struct, frozen=True):
    """An array whose elements have names, of which each may stand there once."""

    name: Callable[[Any], str]  # of an element, in the program's unit
    severity: Literal["error", "warning"]  # warning: all but the first are left out


def each_once(toml: Any, name: Callable[[Any], str] = str, severity: Literal["error", "warning"] = "warning") -> Any:
    """The type of such an array."""
    return Annotated[array(toml), Meta(extra={"once": Once(name, severity)})]


def named(names: Any, toml: Any) -> Any:
    """The type of a table with free keys."""
    return GenericAlias(dict, (names, toml))


def key(
    toml: Any,
    default: T,
    description: str,
    *,
    name: str | None = None,
    model_only: bool = False,
    live: bool = False,
    repr: bool = True,
    **limits: Any,
) -> T:
    """A setting: `toml` is the type of its value in the file, `default` the built-in value in the program's unit.

    `name` is the key, if it differs from the field. `model_only` keys are not allowed in [defaults] and profiles. A
    change of a `live` key does not need a new process. `limits` are msgspec's (ge, gt, le).
    """
    schema = {}
    if default and isinstance(default, bool | int | float | str | tuple):
        schema["default"] = in_toml(_formatter(toml), default)
    metadata = {
        _TOML: (name, described(toml, description, extra_json_schema=schema or None, **limits)),
        _PLACE: "model" if model_only else "anywhere",
        _LIVE: live,
    }
    if isinstance(default, dict):
        return cast(T, field(default_factory=lambda: dict(default), metadata=metadata))
    return field(default=default, metadata=metadata, repr=repr)


def in_toml(show: Any, value: Any) -> Any:
    """A value in the program's unit as it is written in TOML: 600.0 is "10m"."""
    if show is not None:
        return show(value)
    return list(value) if isinstance(value, tuple) else value


def _formatter(toml: Any) -> Any:
    for meta in getattr(toml, "__metadata__", ()):
        if "show" in (meta.extra or {}):
            return meta.extra["show"]
    return None


def launch_fields(settings: type[Any]) -> tuple[str, ...]:
    """The fields that a running process depends on: all that are not `live`."""
    return tuple(each.name for each in fields(settings) if not each.metadata.get(_LIVE, False))


def table(
    settings: type[Any],
    name: str = "",
    *,
    model_only: bool | None = None,
    more: tuple[tuple[str, Any], ...] = (),
    bases: tuple[type[Struct], ...] | None = None,
) -> Any:
    """The struct of a table in the file, with the keys that the settings class declares and `more` of them.

    `model_only` selects the keys of one kind; None takes all.
    """

    def keys() -> Iterator[tuple[str, Any]]:
        for each in fields(settings):
            if _TOML in each.metadata and (model_only is None or (each.metadata[_PLACE] == "model") == model_only):
                name, type_ = each.metadata[_TOML]
                yield name or each.name, type_

    name = name or f"{settings.__name__.removesuffix('Settings')}Table"
    return msgspec.defstruct(name, [*keys(), *more], namespace={"__doc__": settings.__doc__}, bases=bases)
