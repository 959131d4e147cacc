"""The inventory: one snapshot of the devices that could run a model. Asks udev once, reads a few small files of /sys.

Must never open a device node (that wakes a sleeping GPU) and never raise for what a machine lacks: a device that cannot
be used is listed with the reason and the command that helps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.udev import Entry, PciFunction, Pyudev, UdevSource
from accelerd.ports import Roots

VENDORS = {"1002": "AMD", "10de": "NVIDIA", "8086": "Intel"}
DISPLAY_CLASS = 0x03
GROUPS_FIX = "sudo usermod -aG render,video $USER, then log in again"

Access = Callable[[Path], bool]


def may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK)


def inventory(roots: Roots, source: UdevSource | None = None, access: Access = may_open) -> list[Device]:
    """Gpus by PCI slot, npus, then the processor. When udev cannot be asked only the processor is known."""
    source = source or Pyudev()
    try:
        entries = [e for subsystem in ("drm", "accel", "pci") for e in source.entries(subsystem)]
    except (ImportError, OSError):
        entries = []
    render = [e for e in entries if e.subsystem == "drm" and e.name.startswith("renderD")]
    accel = [e for e in entries if e.subsystem == "accel" and e.node]
    gpus = [from_node("gpu", e, roots, access) for e in render]
    gpus += [without_node(f) for f in undriven(entries, {d.slot for d in gpus})]
    npus = [from_node("npu", e, roots, access) for e in accel]
    by_place = sorted(gpus, key=place), sorted(npus, key=place)
    return [*by_place[0], *by_place[1], processor(roots)]


def place(device: Device) -> tuple[str, str]:
    return device.slot or "~", device.node or "~"


def from_node(kind: str, entry: Entry, roots: Roots, access: Access) -> Device:
    """A device that has a node under /dev."""
    node = roots.dev / Path(entry.node or "").relative_to("/dev") if entry.node else None
    problem = fix = None
    if node is None or not node.exists():
        problem, fix = f"{entry.node or entry.name} does not exist", "sudo udevadm trigger"
    elif not access(node):
        problem, fix = f"{entry.node} may not be opened by this user", GROUPS_FIX
    directory = below_sys(entry.pci.path if entry.pci else entry.path / "device", roots)
    return Device(
        kind="npu" if kind == "npu" else "gpu",
        name=device_name(entry.pci, directory, entry.name),
        driver=entry.driver,
        slot=entry.pci.slot if entry.pci else None,
        node=entry.node,
        pools=amdgpu_pools(directory) if entry.driver == "amdgpu" else (),
        problem=problem,
        fix=fix,
    )


def undriven(entries: Iterable[Entry], known: set[str | None]) -> list[PciFunction]:
    """Display controllers of vendors that make GPUs, without a render node. A server's little VGA chip is not meant."""
    functions = [e.pci for e in entries if e.subsystem == "pci" and e.pci is not None]
    return [f for f in functions if f.pci_class >> 16 == DISPLAY_CLASS and f.vendor in VENDORS and f.slot not in known]


def without_node(function: PciFunction) -> Device:
    if function.driver:
        # NVIDIA's own driver serves computing through /dev/nvidia*, and makes a render node only with modeset
        problem = None if function.driver == "nvidia" else f"driver {function.driver} has made no render node"
    else:
        problem = "no driver is bound to it"
    fix = f"sudo dmesg | grep -i -e {function.slot} -e firmware" if problem else None
    name = device_name(function, None, function.slot)
    return Device("gpu", name, driver=function.driver, slot=function.slot, problem=problem, fix=fix)


def device_name(function: PciFunction | None, directory: Path | None, fallback: str) -> str:
    """The name that is printed on the box, or the ids."""
    for attribute in ("product_name", "vbnv"):  # amdgpu's and amdxdna's own
        text = read(directory / attribute) if directory else None
        if text:
            return text
    if function is None:
        return fallback
    if function.names:
        return function.names[-1]
    return f"{VENDORS.get(function.vendor, function.vendor)} {function.vendor}:{function.device}".strip()


def amdgpu_pools(directory: Path) -> tuple[MemoryPool, ...]:
    """VRAM and GTT as amdgpu counts them; on an APU both are system memory."""
    pools = []
    for name in ("vram", "gtt"):
        total = read_int(directory / f"mem_info_{name}_total")
        if total:
            pools.append(MemoryPool(name, total, read_int(directory / f"mem_info_{name}_used")))
    return tuple(pools)


def processor(roots: Roots) -> Device:
    """The processor with the machine's memory."""
    model = next(
        (line.partition(":")[2].strip() for line in lines(roots.proc / "cpuinfo") if line.startswith("model name")), ""
    )
    memory = machine_memory(roots)
    pools = (MemoryPool("ram", memory[0], memory[0] - memory[1]),) if memory else ()
    return Device("cpu", model or os.uname().machine, pools=pools)


def machine_memory(roots: Roots) -> tuple[int, int] | None:
    """Total and available bytes of the machine; None where /proc does not say."""
    found = {}
    for line in lines(roots.proc / "meminfo"):
        key, _, value = line.partition(":")
        if key in ("MemTotal", "MemAvailable"):
            found[key] = int(value.split()[0]) * 1024
    return (found["MemTotal"], found["MemAvailable"]) if len(found) == 2 else None


def below_sys(path: Path, roots: Roots) -> Path:
    """A path below /sys as it is below the given root."""
    return roots.sys / path.relative_to("/sys") if path.is_relative_to("/sys") else path


def lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def read(path: Path) -> str | None:
    """An attribute of /sys, stripped; None when it is not there or cannot be read now (EBUSY, EIO while asleep)."""
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    text = read(path)
    return int(text) if text and text.isdecimal() else None
