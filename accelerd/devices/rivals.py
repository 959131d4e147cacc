"""Who else on this machine sets performance levels: named when a level is not what we have set. Starts nobody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from accelerd.system.dbus.client import BusClient, BusError

LACT_SOCKET: Final = Path("/run/lactd.sock")
# tuned comes with a part that answers for power-profiles-daemon: then it is tuned
ON_THE_BUS: Final[Mapping[str, str]] = {
    "com.redhat.tuned": "tuned",
    "org.freedesktop.UPower.PowerProfiles": "power-profiles-daemon",
    "net.hadess.PowerProfiles": "power-profiles-daemon",
}
NOBODY: Final = "somebody, who is not known,"


class Rivals:
    """See the module's text."""

    def __init__(self, bus: BusClient, lact: Path = LACT_SOCKET) -> None:
        self._bus = bus
        self._lact = lact

    async def present(self) -> list[str]:
        """Those that run now."""
        found: list[str] = []
        try:
            for name, program in ON_THE_BUS.items():
                known = program in found or (program == "power-profiles-daemon" and "tuned" in found)
                if not known and await self._bus.has_owner(name):
                    found.append(program)
        except BusError:
            found.clear()  # without the bus none of them runs
        if self._lact.is_socket():
            found.append("LACT")
        return found

    async def suspects(self) -> str:
        """The subject of a sentence about who has set a level."""
        found = await self.present()
        return f"{' or '.join(found)}, which runs here," if found else NOBODY
