"""How many games Feral's GameMode knows of, from its service on the session bus. Never starts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from accelerd.system.dbus.properties import Property, PropertyWatch, session_bus

GAMEMODE: Final = Property(
    "com.feralinteractive.GameMode",
    "/com/feralinteractive/GameMode",
    "com.feralinteractive.GameMode",
    "ClientCount",
    signals=("GameRegistered", "GameUnregistered"),
)


def watch_games(tell: Callable[[int], None], env: Mapping[str, str] | None = None) -> PropertyWatch:
    """`tell(games)` hears the number at first and whenever it changes; 0 while there is no GameMode."""

    def heard(count: Any) -> None:
        tell(max(0, count) if isinstance(count, int) else 0)

    return PropertyWatch(session_bus(env), GAMEMODE, heard)
