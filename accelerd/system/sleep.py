"""Whether this machine is about to be suspended, from logind on the system bus. Does not hold it up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from accelerd.system.property_watch import Property, PropertyWatch
from accelerd.system.system_bus import system_bus

LOGIND: Final = Property(
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
    "PreparingForSleep",
    signals=("PrepareForSleep",),
)


def watch_sleep(tell: Callable[[bool], None], env: Mapping[str, str] | None = None) -> PropertyWatch:
    """`tell(asleep)` hears at first and with each change whether a suspend has begun and is not over."""
    return PropertyWatch(system_bus(env), LOGIND, lambda value: tell(value is True))
