"""The devices of a /sys tree without udev: if libudev is missing, and for recorded trees.

Returns the same as `Pyudev`, except for names of the hardware database. Never raises: unreadable devices are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from accelerd.devices.files import lines, names
from accelerd.devices.udev import PciFunction, UdevDevice

CLASSES = {"drm": "class/drm", "accel": "class/accel", "pci": "bus/pci/devices"}


class SysfsSource:
    """Devices of the tree below `sys`, with paths below /sys as in udev."""

    def __init__(self, sys: Path) -> None:
        self._sys = sys.resolve()

    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        """All devices of the subsystem; no connectors of cards and no version files."""
        top = self._sys / CLASSES[subsystem]
        for name in names(top):
            path = (top / name).resolve()
            found = uevent(path)
            if not found or (subsystem != "pci" and "DEVNAME" not in found):
                continue
            pci = self._function(path)
            devname = found.get("DEVNAME")
            yield UdevDevice(
                subsystem=subsystem,
                name=name,
                node=f"/dev/{devname.removeprefix('/dev/')}" if devname else None,
                driver=pci.driver if pci is not None else self._driver(path),
                path=self._as_sys(path),
                pci=pci,
            )

    def _function(self, path: Path) -> PciFunction | None:
        """The PCI function at or above the path."""
        for directory in (path, *path.parents):
            if directory == self._sys:
                return None
            found = uevent(directory)
            if "PCI_SLOT_NAME" in found:
                vendor, _, product = found.get("PCI_ID", ":").lower().partition(":")
                try:
                    pci_class = int(found.get("PCI_CLASS", "0"), 16)
                except ValueError:
                    pci_class = 0
                slot = found["PCI_SLOT_NAME"]
                return PciFunction(slot, found.get("DRIVER"), vendor, product, pci_class, self._as_sys(directory))
        return None

    def _driver(self, path: Path) -> str | None:
        for directory in (path, *path.parents):
            if directory == self._sys:
                break
            if driver := uevent(directory).get("DRIVER"):
                return driver
        return None

    def _as_sys(self, path: Path) -> Path:
        return Path("/sys") / os.path.relpath(path, self._sys)


def uevent(directory: Path) -> dict[str, str]:
    """The KEY=VALUE lines of a device's uevent file."""
    return dict(line.split("=", 1) for line in lines(directory / "uevent") if "=" in line)
