"""What the objects know of the bus: a Protocol that a test fakes with a few lines. Pure; knows no D-Bus library.

Everything runs on the event loop's thread and returns at once. Values are plain Python, typed by the XML in
interfaces/; a variant, also inside a{sv}, is given as `Variant`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Variant(NamedTuple):
    """A value that carries its type, as the values of an a{sv} must. A plain bool, str, float, or list of str needs
    none: b, s, d, as. An int always needs one."""

    signature: str
    value: Any


@dataclass(frozen=True)
class Call:
    """One method call. Variants in `args` are unpacked to plain Python, the arguments are checked against the XML."""

    sender: str  # the caller's unique name
    path: str
    interface: str
    method: str
    args: tuple[Any, ...]


Handler = Callable[[Call], Awaitable[tuple[Any, ...]]]
"""Answers with the values of the method's out arguments, in order. AccelError becomes org.accelerd1.Error.*; anything
else is a bug: org.accelerd1.Error.Failed without a word of it, and a record in the journal."""


class Bus(Protocol):
    """See the module's text. What is published before `start`, or while the bus is away, goes out when it is there."""

    def publish(self, path: str, interfaces: Mapping[str, Mapping[str, Any]], handler: Handler) -> None:
        """An object: its interfaces, a value for every property. ValueError: one is missing or of another type."""
        ...

    def update(self, path: str, interface: str, changed: Mapping[str, Any], *, quiet: bool = False) -> None:
        """Properties have these values now; what is not another value is not told. `quiet`: while nobody listens they
        are only there to be read."""
        ...

    def remove(self, path: str) -> None:
        """The object has gone. Calls of it that are under way are still answered."""
        ...

    def signal(self, path: str, interface: str, member: str, args: tuple[Any, ...], to: str | None = None) -> None:
        """To everybody, or to one unique name. In order with `update`, `remove` and the replies given before it."""
        ...

    def watch(self, sender: str, gone: Callable[[str], None]) -> None:
        """`gone(sender)` is called once, when this unique name has left the bus, or the bus has died."""
        ...

    @property
    def listeners(self) -> int:
        """Clients that have called anything and are still there. 0: figures that change often need not be told."""
        ...
