"""Ways to set a GPU's performance level: the root helper, or accelerd itself if a udev rule permits it.

Each setter remembers the previous level and restores it. The setter is selected for each raise. Also names other
programs that set levels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from accelerd.base import names
from accelerd.helper.gpu import FILE, LevelError
from accelerd.helper.leases import LevelLeases
from accelerd.system.dbus.client import BusClient, BusError
from accelerd.system.worker_thread import WorkerThread

log = logging.getLogger(__name__)
T = TypeVar("T")

INSTALL: Final = "packaging/helper install"
JOIN: Final = "sudo usermod -aG accelerd $USER, then log in again"
PATIENCE: Final = 10.0  # s for a write to sysfs
WORTH_A_RETRY: Final = ("org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.ServiceUnknown")
OF_THE_DEVICE: Final = ("Owned", "Refused", "NoDevice", "Unsupported", "Busy")  # another setter would fail, too
LACT_SOCKET: Final = Path("/run/lactd.sock")
# tuned can also own the name of power-profiles-daemon; then only tuned is reported
ON_THE_BUS: Final[Mapping[str, str]] = {
    "com.redhat.tuned": "tuned",
    "org.freedesktop.UPower.PowerProfiles": "power-profiles-daemon",
    "net.hadess.PowerProfiles": "power-profiles-daemon",
}
UNKNOWN_TOOL: Final = "an unknown program"


class HelperSetter:
    """org.accelerd1.Helper on the system bus. Our leases end with our connection to it, however that ends."""

    kind = "the helper"

    def __init__(self, bus: BusClient) -> None:
        self._bus = bus
        self._leases: dict[str, int] = {}

    async def why_not(self, slot: str) -> str | None:
        """Why it cannot be used; None if it can."""
        try:
            if await self._bus.reachable(names.HELPER_NAME):
                return None
        except BusError as error:
            return f"the helper is not reachable: {error.message}"
        return f"the helper is not installed ({INSTALL})"

    async def set(self, slot: str, level: str) -> None:
        """Sets the level, also if it has been changed since. LevelError."""
        self._leases[slot] = (await self._ask("SetLevel", "(ss)", slot, level))[0]

    async def restore(self, slot: str) -> None:
        """Restores the level, unless another program has changed it. LevelError."""
        lease = self._leases.pop(slot, None)
        try:
            if lease is not None:
                await self._ask("ReleaseLevel", "(u)", lease)
        except LevelError as error:
            if error.code != "NoLease":  # it was restarted and has restored everything
                raise

    async def holds(self, slot: str) -> bool:
        """Does it still hold the level that was set?"""
        try:
            if not await self._bus.owner(names.HELPER_NAME):
                return False
            rows = (await self._ask("ListLeases"))[0]
        except (BusError, LevelError):
            return False
        return any(row[:2] == (self._leases.get(slot), slot) for row in rows)

    async def close(self) -> None:
        """Restores all remaining levels."""
        for slot in list(self._leases):
            with suppress(LevelError):  # the end of the connection ends the lease as well
                await self.restore(slot)

    async def _ask(self, method: str, signature: str = "()", *values: Any) -> tuple[Any, ...]:
        for last in (False, True):
            try:
                return await self._bus.call(names.HELPER_NAME, names.HELPER_PATH, method, signature, *values)
            except BusError as error:
                if not last and error.name in WORTH_A_RETRY:  # it was just exiting
                    continue
                code = error.name.removeprefix(names.HELPER_ERROR)
                if code == error.name:
                    raise LevelError("Failed", f"the helper does not answer: {error.message}") from None
                advice = f" ({JOIN})" if code == "NotAuthorized" else ""
                raise LevelError(code, f"the helper refused the request: {error.message}{advice}") from None
        raise AssertionError("unreachable")


class DirectSetter:
    """Writes the file directly, if permitted. After a crash, `repair` of the next daemon restores the levels."""

    kind = "accelerd itself"
    OWNER: Final = "accelerd"

    def __init__(self, sys: Path, runtime: Path) -> None:
        self._sys = sys
        self._levels = LevelLeases(sys, runtime / names.LEVELS_FILE)
        self._thread = WorkerThread("level")
        self._leases: dict[str, int] = {}

    async def why_not(self, slot: str) -> str | None:
        path = self._sys / "bus/pci/devices" / slot / FILE
        return None if os.access(path, os.W_OK) else f"no permission to write {path}"

    async def set(self, slot: str, level: str) -> None:
        self._leases[slot] = await self._do(lambda: self._levels.set(slot, level, self.OWNER))

    async def restore(self, slot: str) -> None:
        lease = self._leases.pop(slot, None)
        if lease is not None:
            await self._do(lambda: self._levels.release(lease, self.OWNER))

    async def holds(self, slot: str) -> bool:
        return slot in self._leases

    async def close(self) -> None:
        if self._leases:
            self._leases.clear()
            await self._do(self._levels.restore_all)
        self._thread.close()

    async def repair(self) -> None:
        """Restores levels that an earlier daemon left."""
        try:
            await self._do(self._levels.repair)
        except LevelError as error:
            log.warning("cannot restore the performance levels that an earlier accelerd set: %s", error)

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await self._thread.call(work, PATIENCE)
        except TimeoutError:
            raise LevelError("Failed", f"the driver has not answered within {PATIENCE:.0f} s") from None


class LevelSetters:
    """Uses the first setter that works."""

    def __init__(self, setters: Sequence[HelperSetter | DirectSetter]) -> None:
        self._setters = setters
        self._holders: dict[str, HelperSetter | DirectSetter] = {}

    async def set(self, slot: str, level: str) -> str:
        """Returns who set the level. LevelError with all reasons if nobody could."""
        reasons = []
        for setter in self._setters:
            why = await setter.why_not(slot)
            if why is None:
                try:
                    await self._hand_over(slot, setter)
                    await setter.set(slot, level)
                    self._holders[slot] = setter
                    return setter.kind
                except LevelError as error:
                    if error.code in OF_THE_DEVICE:
                        raise
                    why = error.message
            reasons.append(why)
        raise LevelError("Unmanaged", "; ".join(reasons))

    async def restore(self, slot: str) -> None:
        setter = self._holders.pop(slot, None)
        if setter is not None:
            await setter.restore(slot)

    async def holds(self, slot: str) -> bool:
        setter = self._holders.get(slot)
        return setter is not None and await setter.holds(slot)

    async def close(self) -> None:
        self._holders.clear()
        for setter in self._setters:
            await setter.close()

    async def _hand_over(self, slot: str, setter: HelperSetter | DirectSetter) -> None:
        if self._holders.get(slot, setter) is not setter:
            await self.restore(slot)


class OtherTools:
    """Other programs that set performance levels."""

    def __init__(self, bus: BusClient, lact: Path = LACT_SOCKET) -> None:
        self._bus = bus
        self._lact = lact

    async def present(self) -> list[str]:
        found: list[str] = []
        try:
            for name, program in ON_THE_BUS.items():
                known = program in found or (program == "power-profiles-daemon" and "tuned" in found)
                if not known and await self._bus.owner(name):
                    found.append(program)
        except BusError:
            found.clear()  # without the bus, none of them runs
        if self._lact.is_socket():
            found.append("LACT")
        return found

    async def suspects(self) -> str:
        found = await self.present()
        return " or ".join(found) or UNKNOWN_TOOL
