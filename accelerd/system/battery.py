"""Whether this machine is to save power: UPower says that it runs on battery, or a person chose to save power.

power-profiles-daemon and tuned-ppd both tell the power profile, under a new name of the service and an old one. Starts
none of them; a machine without them is on mains. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from accelerd.system.dbus.client import system_bus
from accelerd.system.dbus.properties import PropertiesWatch, Property

UPOWER: Final = Property("org.freedesktop.UPower", "/org/freedesktop/UPower", "org.freedesktop.UPower", "OnBattery")
PROFILES: Final = Property(
    "org.freedesktop.UPower.PowerProfiles",
    "/org/freedesktop/UPower/PowerProfiles",
    "org.freedesktop.UPower.PowerProfiles",
    "ActiveProfile",
)
OLD_PROFILES: Final = Property(
    "net.hadess.PowerProfiles", "/net/hadess/PowerProfiles", "net.hadess.PowerProfiles", "ActiveProfile"
)
SAVER: Final = "power-saver"


def why_save(values: tuple[Any, ...]) -> str:
    """Why power is to be saved, from UPower's property and those of the profiles; empty: it is not."""
    on_battery, *profiles = values
    if on_battery is True:
        return "on battery"
    return f"the power profile is {SAVER}" if SAVER in profiles else ""


def watch_battery(tell: Callable[[str], None], env: Mapping[str, str] | None = None) -> PropertiesWatch:
    """`tell(why)` hears at first and with each change why power is to be saved; empty: it is not."""
    known: list[str] = []

    def heard(values: tuple[Any, ...]) -> None:
        why = why_save(values)
        if known != [why]:
            known[:] = [why]
            tell(why)

    return PropertiesWatch(system_bus(env), (UPOWER, PROFILES, OLD_PROFILES), heard)
