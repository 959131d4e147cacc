"""What a desktop's services say of the machine: whether power is to be saved, and how many games run.

Starts none of the services: a machine without them is on mains and runs no games. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from accelerd.system.dbus.client import BusClient
from accelerd.system.dbus.properties import PropertyWatch, WatchedProperty

UPOWER: Final = WatchedProperty(
    "org.freedesktop.UPower", "/org/freedesktop/UPower", "org.freedesktop.UPower", "OnBattery"
)
# power-profiles-daemon and tuned-ppd both tell the profile, under a newer name of the service and an older one
PROFILES: Final = WatchedProperty(
    "org.freedesktop.UPower.PowerProfiles",
    "/org/freedesktop/UPower/PowerProfiles",
    "org.freedesktop.UPower.PowerProfiles",
    "ActiveProfile",
)
OLD_PROFILES: Final = WatchedProperty(
    "net.hadess.PowerProfiles", "/net/hadess/PowerProfiles", "net.hadess.PowerProfiles", "ActiveProfile"
)
SAVER: Final = "power-saver"
GAMEMODE: Final = WatchedProperty(
    "com.feralinteractive.GameMode",
    "/com/feralinteractive/GameMode",
    "com.feralinteractive.GameMode",
    "ClientCount",
    signals=("GameRegistered", "GameUnregistered"),
)


def why_save(values: tuple[Any, ...]) -> str:
    """Why power is to be saved, from UPower's property and those of the profiles; empty: it is not."""
    on_battery, *profiles = values
    if on_battery is True:
        return "on battery"
    return f"the power profile is {SAVER}" if SAVER in profiles else ""


def watch_battery(bus: BusClient, changed: Callable[[str], None]) -> PropertyWatch:
    """`changed(why)` is called at first and with every change: why power is to be saved; empty: it is not.

    `bus`: the system bus.
    """
    known: list[str] = []

    def heard(values: tuple[Any, ...]) -> None:
        why = why_save(values)
        if known != [why]:
            known[:] = [why]
            changed(why)

    return PropertyWatch(bus, (UPOWER, PROFILES, OLD_PROFILES), heard)


def watch_games(bus: BusClient, changed: Callable[[int], None]) -> PropertyWatch:
    """`changed(games)` is called at first and with every change: the games that Feral's GameMode knows of.

    `bus`: the session bus.
    """

    def heard(values: tuple[Any, ...]) -> None:
        changed(max(0, values[0]) if isinstance(values[0], int) else 0)

    return PropertyWatch(bus, (GAMEMODE,), heard)
