"""Variants: further names of a model or a route whose requests are changed before they are sent. Pure data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from accelerd.config import values as toml
from accelerd.config.keys import array, described, each_once, key, named, table

FieldPath = tuple[str, ...]  # ("chat_template_kwargs", "enable_thinking")
Fields = tuple[tuple[FieldPath, bytes], ...]  # with values as JSON
PROTECTED: Final = ("model", "stream")  # by these accelerd itself decides
FIELDS: Final = "a table of request fields such as {temperature = 0.2}, without model and stream"


def _fields(value: Any) -> Fields:
    """ValueError with what completes "expected …"."""
    if not isinstance(value, dict):
        raise ValueError(FIELDS)
    found = tuple((path, msgspec.json.encode(leaf)) for path, leaf in _leaves(value, ()))
    if named := next((path[0] for path, _ in found if path[0] in PROTECTED), None):
        raise ValueError(f"fields without {named}, by which accelerd itself decides")
    return found


def _leaves(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, Any]]:
    if isinstance(value, dict) and value:
        for name, child in value.items():
            parts = tuple(name.split("."))
            if not all(parts):
                raise ValueError('names of fields, with dots between the parts: "chat_template_kwargs.enable_thinking"')
            yield from _leaves(child, (*path, *parts))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("values that JSON has: no nan, no inf")
    elif path:
        yield path, value


def _as_tables(fields: Fields) -> dict[str, Any]:
    return {".".join(path): msgspec.json.decode(value) for path, value in fields}


def _path(value: str) -> FieldPath:
    parts = tuple(value.split("."))
    if not all(parts) or parts[0] in PROTECTED or re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError(
            'the name of a field such as "seed" or "chat_template_kwargs.enable_thinking", not model or stream'
        )
    return parts


@dataclass(frozen=True)
class Variant:
    """One more name of a model or a route: the same process, and other requests.

    First the fields of `remove` are taken away, then those of `default` added where they are missing, then those of
    `set` written.
    """

    name: str
    description: str = key(toml.TextLine, "", "A description for people, on one line.")
    aliases: tuple[str, ...] = key(array(toml.Name), (), "Additional names for clients, as for models.")
    hidden: bool = key(bool, False, "Leave the variant out of GET /v1/models; requests may still name it.")
    set: Fields = key(
        toml.anything(FIELDS, _fields, _as_tables), (), "Fields that requests get, whatever the client has written."
    )
    default: Fields = key(
        toml.anything(FIELDS, _fields, _as_tables), (), "Fields that requests get if the client has not written them."
    )
    remove: tuple[FieldPath, ...] = key(
        described(
            each_once(toml.text('the name of a field such as "seed"', _path), ".".join),
            "",
            extra={"show": lambda paths: [".".join(path) for path in paths]},
        ),
        (),
        'Fields that are taken out of requests, such as "seed" or "chat_template_kwargs.enable_thinking".',
    )
    system: str | None = key(str, None, "A system prompt for chats, messages and responses.")
    system_mode: Literal["before", "instead"] = key(
        Literal["before", "instead"], "before", "Whether it goes before the client's own system prompt or replaces it."
    )
    origins: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)  # where its keys are written


VARIANTS: Final = named(toml.Name, table(Variant))
