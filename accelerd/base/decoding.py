"""JSON and numbers that others wrote: engines, servers, tools, files of an earlier run. What is wrong is one error."""

from __future__ import annotations

from types import UnionType
from typing import Any, Final, TypeVar, overload

import msgspec

T = TypeVar("T")
LONGEST_NUMBER: Final = 18  # digits: int() refuses very many


@overload
def from_json(data: bytes | str, type: UnionType | None = None) -> Any: ...
@overload
def from_json(data: bytes | str, type: type[T]) -> T: ...
def from_json(data: bytes | str, type: Any = None) -> Any:
    """The value. msgspec.DecodeError, which is a ValueError, also where it is nested too deeply or is not UTF-8."""
    try:
        return msgspec.json.decode(data, type=Any if type is None else type)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except UnicodeError as error:
        raise msgspec.DecodeError(str(error)) from None


def whole_number(text: str) -> int | None:
    """The number that the text is; None: it is none, or too long. ("²".isdigit() is true, and int() refuses it.)"""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= LONGEST_NUMBER else None
