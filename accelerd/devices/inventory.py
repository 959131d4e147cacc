"""The inventory: a snapshot of the devices that could run a model. Queries udev once and reads small files.

Never wakes a device and never raises: a device that cannot be used is listed with the reason and the command that fixes
it. Without libudev, reads the tree below /sys.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from accelerd.base.ports import Roots
from accelerd.devices import amdgpu, troubles
from accelerd.devices.files import lines, text
from accelerd.devices.host import Host, memory_pool, processor_name, read_host
from accelerd.devices.kfd import KfdNode
from accelerd.devices.kfd import nodes as kfd_nodes
from accelerd.devices.model import Device, DeviceTrouble
from accelerd.devices.troubles import DeviceNode
from accelerd.devices.udev import PciFunction, Pyudev, SysfsSource, UdevDevice, UdevSource

VENDORS = {"1002": "AMD", "1022": "AMD", "10de": "NVIDIA", "8086": "Intel"}
DISPLAY_CLASS = 0x03
INTEL_DRIVERS = frozenset({"i915", "xe"})
# PCI ids of NPUs: vendor, device → number of columns of an AMD NPU
NPUS: dict[tuple[str, str], int | None] = {
    ("1022", "1502"): 5,  # Phoenix, Hawk Point
    ("1022", "17f0"): 8,  # Strix Point, Strix Halo, Krackan
    ("8086", "7d1d"): None,  # Meteor Lake
    ("8086", "ad1d"): None,  # Arrow Lake
    ("8086", "643e"): None,  # Lunar Lake
    ("8086", "b03e"): None,  # Panther Lake
}
NPU_NAMES = {"1022": "AMD Ryzen AI NPU", "8086": "Intel NPU"}
NVIDIA_FIRMWARE = {"GPU Firmware": "gsp", "Video BIOS": "vbios"}
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")

Access = Callable[[Path], bool]


def may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def inventory(roots: Roots, source: UdevSource | None = None, access: Access = may_open) -> list[Device]:
    """GPUs by PCI slot, NPUs, then the processor."""
    return Inventory(roots, source, access).scan()


class Inventory:
    def __init__(
        self,
        roots: Roots,
        source: UdevSource | None = None,
        access: Access = may_open,
        *,
        host: Callable[[Roots], Host] = read_host,
        ask_driver: amdgpu.AskDriver = amdgpu.ask_driver,
    ) -> None:
        self._roots = roots
        self._source = source
        self._access = access
        self._read_host = host
        self._ask_driver = ask_driver

    def scan(self) -> list[Device]:
        """The current devices. Blocks for some milliseconds."""
        entries = self._entries()
        host = self._read_host(self._roots)
        kfd = kfd_nodes(self._roots.sys)
        render = [e for e in entries if e.subsystem == "drm" and e.name.startswith("renderD")]
        accel = [e for e in entries if e.subsystem == "accel" and e.node]
        functions = [e.pci for e in entries if e.subsystem == "pci" and e.pci is not None]
        gpus = [self._gpu(e, e.pci, kfd, host) for e in render]
        gpus += [self._gpu(None, f, kfd, host) for f in undriven(functions, {d.slot for d in gpus})]
        npus = [self._npu(e, e.pci, host) for e in accel]
        known = {d.slot for d in npus}
        npus += [self._npu(None, f, host) for f in functions if is_npu(f) and f.slot not in known]
        return [*sorted(gpus, key=place), *sorted(npus, key=place), self._processor(host)]

    def _entries(self) -> list[UdevDevice]:
        subsystems = ("drm", "accel", "pci")
        source = self._source or Pyudev()
        try:
            return [e for subsystem in subsystems for e in source.entries(subsystem)]
        except (ImportError, OSError):  # libudev is missing or does not work
            plain = SysfsSource(self._roots.sys)
            return [e for subsystem in subsystems for e in plain.entries(subsystem)]

    # --- kinds ------------------------------------------------------------------------------------------------

    def _gpu(
        self, entry: UdevDevice | None, function: PciFunction | None, kfd: dict[str, KfdNode], host: Host
    ) -> Device:
        """A GPU with a render node, or a PCI function without one."""
        device = self._bare("gpu", entry, function)
        directory = self._directory(device)
        found: list[DeviceTrouble] = []
        compute = None
        if device.driver == "amdgpu" and function is not None and directory is not None:
            compute = kfd.get(function.slot)
            device = amdgpu.described(device, function, directory, compute, self._asked(device))
            found += troubles.of_amdgpu(device, compute, host)
        elif device.driver == "amdgpu" and directory is not None:  # not on a PCI bus
            device = replace(device, pools=amdgpu.pools(directory, unified=False))
        elif device.driver in INTEL_DRIVERS and function is not None:
            own = on_root_bus(function)  # the drivers do not report the memory of a card
            device = replace(device, apu=own, unified=own, pools=memory_pool("unified", host.memory) if own else ())
        elif device.driver == "nvidia" and function is not None:
            facts = nvidia_information(self._roots, function.slot)
            minor = facts.get("Device Minor", "")
            device = replace(
                device,
                name=facts.get("Model") or device.name,
                node=f"/dev/nvidia{minor}" if minor.isdecimal() else device.node,
                apu=False,
                firmware={short: facts[key] for key, short in NVIDIA_FIRMWARE.items() if key in facts},
            )
        if entry is not None:
            found = [*troubles.of_node(self._node(entry.node or f"/dev/dri/{entry.name}"), "drm"), *found]
            if compute is not None:
                found += troubles.of_kfd(self._node("/dev/kfd"))
        elif device.driver != "nvidia":
            # NVIDIA's driver uses /dev/nvidia* for computing and creates a render node only with modeset
            found = [*troubles.of_undriven(device, host), *found]
        elif device.node is not None:
            found += troubles.of_node(self._node(device.node), "drm")
        return with_troubles(device, found)

    def _npu(self, entry: UdevDevice | None, function: PciFunction | None, host: Host) -> Device:
        device = self._bare("npu", entry, function)
        directory = self._directory(device)
        if function is not None:
            version = text(directory / "fw_version") if directory is not None else None
            device = replace(
                device,
                name=npu_name(function, directory) or device.name,
                columns=NPUS.get((function.vendor, function.device)),
                firmware={"npu": version} if version else {},
            )
        if entry is not None:
            found = list(troubles.of_node(self._node(entry.node or f"/dev/accel/{entry.name}"), "accel"))
        else:
            found = list(troubles.of_undriven(device, host))
        return with_troubles(device, [*found, *troubles.of_npu(device, host)])

    def _processor(self, host: Host) -> Device:
        return Device("cpu", processor_name(self._roots), pools=memory_pool("ram", host.memory))

    # --- parts ------------------------------------------------------------------------------------------------

    @staticmethod
    def _bare(kind: Literal["gpu", "npu"], entry: UdevDevice | None, function: PciFunction | None) -> Device:
        if function is None:
            assert entry is not None
            return Device(kind, entry.name, entry.driver, node=entry.node, directory=entry.path.parent.parent)
        return Device(
            kind,
            device_name(function),
            entry.driver if entry is not None else function.driver,
            function.slot,
            entry.node if entry is not None else None,
            vendor=function.vendor,
            device=function.device,
            directory=function.path,
        )

    def _directory(self, device: Device) -> Path | None:
        return below_sys(device.directory, self._roots) if device.directory is not None else None

    def _node(self, path: str) -> DeviceNode:
        real = self._roots.dev / Path(path).relative_to("/dev")
        try:
            mode = stat.S_IMODE(real.stat().st_mode)
        except FileNotFoundError:
            return DeviceNode(path, exists=False, openable=False)
        except OSError:
            mode = None
        return DeviceNode(path, openable=self._access(real), mode=mode)

    def _asked(self, device: Device) -> bool | None:
        """Does the amdgpu driver call it an APU? Asked only while the device is awake."""
        directory = self._directory(device)
        if device.node is None or directory is None or text(directory / "power/runtime_status") != "active":
            return None
        node = self._roots.dev / Path(device.node).relative_to("/dev")
        return self._ask_driver(node) if self._access(node) else None


def place(device: Device) -> tuple[str, str]:
    return device.slot or "~", device.node or "~"


def undriven(functions: Iterable[PciFunction], known: set[str | None]) -> list[PciFunction]:
    """Display controllers of GPU vendors without a render node; not the VGA chip of a server."""
    return [f for f in functions if f.pci_class >> 16 == DISPLAY_CLASS and f.vendor in VENDORS and f.slot not in known]


def with_troubles(device: Device, found: Iterable[DeviceTrouble]) -> Device:
    """The device with its troubles; the first blocking one becomes its `problem`."""
    everything = tuple(found)
    first = next((trouble for trouble in everything if trouble.blocks), None)
    if first is not None:
        device = replace(device, problem=first.message, fix=first.fix)
    return replace(device, troubles=tuple(trouble for trouble in everything if trouble is not first))


def device_name(function: PciFunction) -> str:
    """The name in the hardware database ("Navi 31 [Radeon RX 7900 XTX]": the part in brackets), or the ids."""
    vendor = VENDORS.get(function.vendor, function.vendor)
    if function.names:
        chip, _, sold = function.names[-1].partition("[")
        return f"{vendor} {sold.rstrip('] ')}" if sold else chip
    return f"{vendor} {function.vendor}:{function.device}"


def below_sys(path: Path, roots: Roots) -> Path:
    """A path below /sys, moved below the given root."""
    return roots.sys / path.relative_to("/sys") if path.is_relative_to("/sys") else path


# --- NPUs: amdxdna and ivpu ---


def is_npu(function: PciFunction) -> bool:
    return (function.vendor, function.device) in NPUS


def npu_name(function: PciFunction, directory: Path | None) -> str | None:
    """amdxdna's own name ("RyzenAI-npu5", sometimes padded and coloured), else a general one."""
    own = ESCAPES.sub("", text(directory / "vbnv") or "").strip() if directory is not None else ""
    return own or (function.names[-1] if function.names else NPU_NAMES.get(function.vendor))


# --- Intel GPUs ---


def on_root_bus(function: PciFunction) -> bool:
    """Is an Intel GPU integrated? Integrated ones are on the root bus, cards behind a port."""
    return function.slot.split(":")[:2] == ["0000", "00"]


# --- NVIDIA's driver: its files in /proc, which wake nothing; memory and load come from nvml.py ---


def nvidia_information(roots: Roots, slot: str) -> dict[str, str]:
    """What the driver says about a card: "Model", "GPU Firmware", "Video BIOS", "Device Minor"."""
    found = {}
    for line in lines(roots.proc / "driver/nvidia/gpus" / slot / "information"):
        key, _, value = line.partition(":")
        if value.strip() and "?" not in value:  # unknown while the card sleeps
            found[key.strip()] = value.strip()
    return found
