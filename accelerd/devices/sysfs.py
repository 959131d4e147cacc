"""The devices of a plain /sys tree, without udev: where libudev is missing, and for trees that were recorded elsewhere.

Gives what `Pyudev` gives, less the names of the hardware database. Must never raise: what it cannot read is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from accelerd.devices.files import lines, names
from accelerd.devices.udev import Entry, PciFunction

CLASSES = {"drm": "class/drm", "accel": "class/accel", "pci": "bus/pci/devices"}


class SysfsSource:
    """Entries of the tree below `sys`, with paths below /sys as udev would tell them."""

    def __init__(self, sys: Path) -> None:
        self._sys = sys.resolve()

    def entries(self, subsystem: str) -> Iterable[Entry]:
        """Every device of the subsystem that is a device: connectors of cards and version files are left out."""
        top = self._sys / CLASSES[subsystem]
        for name in names(top):
            path = (top / name).resolve()
            found = uevent(path)
            if not found or (subsystem != "pci" and "DEVNAME" not in found):
                continue
            pci = self._function(path)
            devname = found.get("DEVNAME")
            yield Entry(
                subsystem=subsystem,
                name=name,
                node=f"/dev/{devname.removeprefix('/dev/')}" if devname else None,
                driver=pci.driver if pci is not None else self._driver(path),
                path=self._as_sys(path),
                pci=pci,
            )

    def _function(self, path: Path) -> PciFunction | None:
        """The PCI function that the path is, or lies below."""
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
