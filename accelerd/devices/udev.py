"""The udev database as plain data: the interface between the inventory and libudev.

Imports pyudev lazily, because libudev may be missing and the import takes time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct


class PciFunction(Struct, frozen=True):
    """The PCI function behind a device."""

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
    """libudev, through pyudev."""

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
    names = (properties.get(key) for key in ("ID_VENDOR_FROM_DATABASE", "ID_MODEL_FROM_DATABASE"))
    return PciFunction(
        slot=properties.get("PCI_SLOT_NAME", device.sys_name),
        driver=device.driver,
        vendor=vendor,
        device=product,
        pci_class=int(properties.get("PCI_CLASS", "0"), 16),
        path=Path(device.sys_path),
        names=tuple(name for name in names if name),
    )
