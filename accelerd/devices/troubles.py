"""What a person should know about a device, each with the command that changes it. Pure: judges facts, reads nothing.

The list is what is known to go wrong on real machines; each entry says where the knowledge is from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from accelerd.base.sizes import human_size
from accelerd.devices.host import Host
from accelerd.devices.kfd import KfdNode
from accelerd.devices.model import Device, Trouble

GIB = 1 << 30
PAGE = 4096
GROUPS_FIX = "sudo usermod -aG render,video $USER, then log in again"
ACCEL_RULE = 'SUBSYSTEM=="accel", KERNEL=="accel*", GROUP="render", MODE="0660"'
ACCEL_FIX = (
    f"echo '{ACCEL_RULE}' | sudo tee /etc/udev/rules.d/70-accel.rules"
    " && sudo udevadm control --reload && sudo udevadm trigger --subsystem-match=accel"
)
MEMLOCK_FIX = (
    "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nLimitMEMLOCK=infinity\\n'"
    " | sudo tee /etc/systemd/system/user@.service.d/memlock.conf && sudo systemctl daemon-reload && reboot"
)
FIRMWARE_FIX = "sudo dnf downgrade amd-gpu-firmware-20251111 (Fedora), or install a linux-firmware of 2026, then reboot"
RUNTIME_FIX = {
    "amdxdna": "install FastFlowLM with its XRT runtime: https://github.com/ROCm/FastFlowLM",
    "intel_vpu": "install Intel's NPU driver: https://github.com/intel/linux-npu-driver/releases",
}

GOOD_KERNEL = (6, 18, 4)  # the first whose gfx1151 is stable under ROCm
BAD_MES = 0x83  # in linux-firmware-20251125: gfx1151 hangs
ENOUGH_LOCKED = 64 * GIB  # FastFlowLM locks a whole model
LEFT_FOR_THE_SYSTEM = 8 * GIB
TOO_LITTLE = 0.75  # of what the GPU could have


@dataclass(frozen=True)
class Node:
    """The device node, as the file system shows it."""

    path: str
    exists: bool = True
    openable: bool = True
    mode: int | None = None  # permission bits


def of_node(node: Node, subsystem: str) -> Iterator[Trouble]:
    """Can this user open it?"""
    if not node.exists:
        yield Trouble(f"{node.path} does not exist", "sudo udevadm trigger", blocks=True)
    elif not node.openable:
        # Debian 12 has no rule for accel: root alone may open it, whatever groups a user is in
        for_root_only = subsystem == "accel" and node.mode is not None and node.mode & 0o060 != 0o060
        fix = ACCEL_FIX if for_root_only else GROUPS_FIX
        yield Trouble(f"{node.path} may not be opened by this user", fix, blocks=True)


def of_kfd(node: Node) -> Iterator[Trouble]:
    """ROCm needs /dev/kfd too; Vulkan does not."""
    if node.exists and not node.openable:
        yield Trouble(f"{node.path} may not be opened by this user: no ROCm", GROUPS_FIX)


def of_undriven(device: Device, host: Host) -> Iterator[Trouble]:
    """A device that no driver serves."""
    look = f"sudo dmesg | grep -i -e {device.slot} -e firmware"
    if device.kind == "npu" and device.vendor == "1022" and "amd_iommu=off" in host.command_line:
        return  # said by of_npu, with the cause
    if device.driver is None:
        yield Trouble("no driver is bound to it", look, blocks=True)
    else:
        yield Trouble(f"driver {device.driver} has made no render node", look, blocks=True)


def of_npu(device: Device, host: Host) -> Iterator[Trouble]:
    if device.vendor == "1022" and "amd_iommu=off" in host.command_line:
        fix = host.change_command_line("iommu=pt", remove="amd_iommu=off")
        yield Trouble("amd_iommu=off on the kernel's command line disables the NPU", fix, blocks=True)
    if device.driver is None:
        return
    if device.driver in RUNTIME_FIX and device.driver not in host.runtimes:
        yield Trouble("its runtime is not installed: no model can use it", RUNTIME_FIX[device.driver])
    if device.driver == "amdxdna":
        if not device.firmware:
            fix = "sudo dmesg | grep -i -e amdxdna -e amdnpu"
            yield Trouble("the driver knows no firmware version: its firmware may be missing", fix)
        if host.memlock is not None and host.memlock < ENOUGH_LOCKED:
            yield Trouble(
                f"only {human_size(host.memlock)} of memory may be locked: FastFlowLM cannot load a model", MEMLOCK_FIX
            )


def of_amdgpu(device: Device, kfd: KfdNode | None, host: Host) -> Iterator[Trouble]:
    if device.gfx == "gfx1151":
        stable = kfd is not None and kfd.saves_waves  # also in kernels with the fix taken back to them
        if host.kernel is not None and host.kernel < GOOD_KERNEL and not stable:
            kernel = ".".join(map(str, host.kernel))
            yield Trouble(
                f"kernel {kernel} is known to be unstable with gfx1151 under ROCm",
                "install kernel 6.18.4 or newer: sudo dnf upgrade kernel, or sudo apt full-upgrade, then reboot",
            )
        if number(device.firmware.get("mes")) == BAD_MES:
            yield Trouble("its firmware (MES 0x83, of linux-firmware-20251125) is known to hang gfx1151", FIRMWARE_FIX)
    if device.unified and host.memory is not None:
        yield from of_gtt(device, host)


def of_gtt(device: Device, host: Host) -> Iterator[Trouble]:
    """Is the share of the machine's memory that the GPU may use a sensible one?"""
    assert host.memory is not None
    total = host.memory[0]
    sizes = {pool.name: pool.total for pool in device.pools}
    gtt = sizes.get("gtt", 0)
    wanted = (total - LEFT_FOR_THE_SYSTEM) // GIB * GIB
    if not gtt or wanted <= 0:
        return
    fix = host.change_command_line(f"ttm.pages_limit={wanted // PAGE}")
    if gtt > total:
        message = f"the GPU may take {human_size(gtt)}, but the machine has {human_size(total)}: it can run out"
        yield Trouble(message, fix)
    elif gtt < wanted * TOO_LITTLE and sizes.get("vram", 0) < total:  # else most is carved out: on purpose
        message = f"the GPU may use {human_size(gtt)} of {human_size(total)} of memory (GTT limit)"
        yield Trouble(message, fix)


def number(version: str | None) -> int | None:
    """ "0x00000083" as a number."""
    try:
        return int(version or "", 0)
    except ValueError:
        return None
