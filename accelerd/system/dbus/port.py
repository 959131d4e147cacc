"""What passes between exported objects and their callers: nothing here knows a D-Bus library.

Values are plain Python, typed by the XML of their interface; a variant, also inside a{sv}, is given as `Variant`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from msgspec import Struct

from accelerd.base.errors import AccelError


class Variant(NamedTuple):
    """A value with its type, as the values of an a{sv} need it. A plain bool, str, float or list of str needs none: it
    is b, s, d or as. An int always needs one."""

    signature: str
    value: Any


def caller_gone() -> AccelError:
    """The answer to a call that nobody waits for any more."""
    return AccelError("canceled", "the caller has left the bus")


class Call(Struct, frozen=True):
    """One method call. The arguments match the XML; variants in them are unpacked to plain Python."""

    sender: str  # the caller's unique name
    path: str
    interface: str
    method: str
    args: tuple[Any, ...]


Handler = Callable[[Call], Awaitable[tuple[Any, ...]]]
"""Returns the values of the method's out arguments, in order. An AccelError becomes org.accelerd1.Error.*; any other
exception is a bug: it is logged, and the caller gets org.accelerd1.Error.Failed without its text."""
