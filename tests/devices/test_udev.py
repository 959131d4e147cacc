"""From pyudev's devices to entries, and the real udev of the machine that runs the test."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from accelerd.devices.udev import PciFunction, Pyudev, UdevDevice, entry


@dataclass
class FakeDevice:
    """As much of pyudev.Device as is used."""

    subsystem: str
    sys_name: str
    sys_path: str
    driver: str | None = None
    device_node: str | None = None
    properties: dict[str, str] = field(default_factory=dict)
    parent: FakeDevice | None = None

    @property
    def ancestors(self) -> list[FakeDevice]:
        return [self.parent, *self.parent.ancestors] if self.parent else []

    def find_parent(self, subsystem: str) -> FakeDevice | None:
        return next((device for device in self.ancestors if device.subsystem == subsystem), None)


CARD = FakeDevice(
    "pci", "0000:c1:00.0", "/sys/devices/pci0000:00/0000:c1:00.0", "amdgpu",
    properties={"PCI_ID": "1002:150E", "PCI_CLASS": "38000", "PCI_SLOT_NAME": "0000:c1:00.0",
                "ID_VENDOR_FROM_DATABASE": "AMD", "ID_MODEL_FROM_DATABASE": "Strix"},
)  # fmt: skip
FUNCTION = PciFunction("0000:c1:00.0", "amdgpu", "1002", "150e", 0x38000, Path(CARD.sys_path), ("AMD", "Strix"))


def test_a_render_node_has_the_driver_of_its_card() -> None:
    path = f"{CARD.sys_path}/drm/renderD128"
    device = FakeDevice("drm", "renderD128", path, device_node="/dev/dri/renderD128", parent=CARD)
    assert entry(device) == UdevDevice("drm", "renderD128", "/dev/dri/renderD128", "amdgpu", Path(path), FUNCTION)


def test_a_pci_function_is_its_own() -> None:
    assert entry(CARD).pci == FUNCTION


def test_a_device_of_no_bus_and_one_without_properties() -> None:
    platform = FakeDevice("drm", "renderD128", "/sys/devices/platform/gpu/drm/renderD128")
    assert entry(platform) == UdevDevice("drm", "renderD128", None, None, Path(platform.sys_path))
    bare = entry(FakeDevice("pci", "0000:00:01.0", "/sys/devices/pci0000:00/0000:00:01.0")).pci
    assert bare == PciFunction("0000:00:01.0", None, "", "", 0, Path("/sys/devices/pci0000:00/0000:00:01.0"))


def test_the_real_udev_answers() -> None:
    names = {found.name for found in Pyudev().entries("mem")}
    assert "null" in names
