"""What exported objects know of the bus. A test fakes `Bus` in a few lines; nothing here knows a D-Bus library.

Everything runs on the event loop's thread and returns at once. Values are plain Python, typed by the XML of their
interface; a variant, also inside a{sv}, is given as `Variant`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from msgspec import Struct


class Variant(NamedTuple):
    """A value with its type, as the values of an a{sv} need it. A plain bool, str, float or list of str needs none: it
    is b, s, d or as. An int always needs one."""

    signature: str
    value: Any


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


class Bus(Protocol):
    """Where objects are exported. What is published before the bus is there, or while it is away, appears with it."""

    def publish(self, path: str, interfaces: Mapping[str, Mapping[str, Any]], handler: Handler) -> None:
        """Export an object: its interfaces, with a value for every property. ValueError: one is missing or of another
        type."""
        ...

    def update(self, path: str, interface: str, changed: Mapping[str, Any], *, quiet: bool = False) -> None:
        """Set properties. Unchanged values are not emitted; with `quiet` nothing is emitted while nobody listens."""
        ...

    def remove(self, path: str) -> None:
        """Withdraw an object. Calls of it that are under way are still answered."""
        ...

    def signal(self, path: str, interface: str, member: str, args: tuple[Any, ...], to: str | None = None) -> None:
        """Emit to everybody, or to one unique name, in order with `update`, `remove` and the replies given before."""
        ...

    def watch(self, sender: str, gone: Callable[[str], None]) -> None:
        """`gone(sender)` is called once, when this unique name has left the bus or the bus has gone."""
        ...

    @property
    def listeners(self) -> int:
        """Clients on the bus that have called anything."""
        ...
