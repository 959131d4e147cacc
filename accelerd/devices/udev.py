"""The udev database as plain data: the interface between the inventory and libudev.

Imports pyudev lazily, because libudev may be missing and the import takes time. Without it, and for recorded trees,
`SysfsSource` reads the same from files, except for names of the hardware database.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from accelerd.devices.files import lines, names

CLASSES = {"drm": "class/drm", "accel": "class/accel", "pci": "bus/pci/devices"}


class PciFunction(Struct, frozen=True):
    slot: str  # "0000:c1:00.0"
    driver: str | None
    vendor: str  # lower case hex, "1002"
    device: str
    pci_class: int  # 0x030000 is a VGA controller
    path: Path  # below /sys
    names: tuple[str, ...] = ()  # from the hardware database: vendor, model


class UdevDevice(Struct, frozen=True):
    """A device of a subsystem: a render node of drm, a node of accel, or a PCI function."""

    subsystem: str
    name: str  # "renderD128"
    node: str | None
    driver: str | None  # of the nearest parent that has one
    path: Path
    pci: PciFunction | None = None


class UdevSource(Protocol):
    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        """Every device of the subsystem, in no order. OSError or ImportError if udev is not available."""
        ...


class Pyudev:
    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        import pyudev

        context = pyudev.Context()
        return [entry(device) for device in context.list_devices(subsystem=subsystem)]


def entry(device: Any) -> UdevDevice:
    """Converts a pyudev.Device; missing properties are None."""
    parent = device if device.subsystem == "pci" else device.find_parent("pci")
    above = [device, *device.ancestors]
    return UdevDevice(
        subsystem=device.subsystem,
        name=device.sys_name,
        node=device.device_node,
        driver=next((d.driver for d in above if d.driver), None),
        path=Path(device.sys_path),
        pci=function(parent) if parent is not None else None,
    )


def function(device: Any) -> PciFunction:
    """Converts a pyudev.Device of the pci subsystem."""
    properties = device.properties
    vendor, _, product = properties.get("PCI_ID", ":").lower().partition(":")
    known = (properties.get(key) for key in ("ID_VENDOR_FROM_DATABASE", "ID_MODEL_FROM_DATABASE"))
    return PciFunction(
        slot=properties.get("PCI_SLOT_NAME", device.sys_name),
        driver=device.driver,
        vendor=vendor,
        device=product,
        pci_class=int(properties.get("PCI_CLASS", "0"), 16),
        path=Path(device.sys_path),
        names=tuple(name for name in known if name),
    )


class SysfsSource:
    """Devices of the tree below `sys`, with paths below /sys as in udev. Leaves out what it cannot read."""

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
