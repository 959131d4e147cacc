"""Known problems of devices on real machines, each with the command that fixes it. Pure: reads nothing."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from accelerd.base.sizes import human_size
from accelerd.devices.host import Host
from accelerd.devices.kfd import KfdNode
from accelerd.devices.model import Device, DeviceTrouble

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

GOOD_KERNEL = (6, 18, 4)  # the first kernel on which gfx1151 is stable with ROCm
BAD_MES = 0x83  # in linux-firmware-20251125; makes gfx1151 hang
ENOUGH_LOCKED = 64 * GIB  # FastFlowLM locks the whole model
LEFT_FOR_THE_SYSTEM = 8 * GIB
TOO_LITTLE = 0.75  # of the possible GTT limit


class DeviceNode(Struct, frozen=True):
    path: str
    exists: bool = True
    openable: bool = True
    mode: int | None = None  # permission bits


def of_node(node: DeviceNode, subsystem: str) -> Iterator[DeviceTrouble]:
    """Can this user open it?"""
    if not node.exists:
        yield DeviceTrouble(f"{node.path} does not exist", "sudo udevadm trigger", blocks=True)
    elif not node.openable:
        # Debian 12 has no udev rule for accel: only root can open the node, whatever groups a user is in
        for_root_only = subsystem == "accel" and node.mode is not None and node.mode & 0o060 != 0o060
        fix = ACCEL_FIX if for_root_only else GROUPS_FIX
        yield DeviceTrouble(f"this user cannot open {node.path}", fix, blocks=True)


def of_kfd(node: DeviceNode) -> Iterator[DeviceTrouble]:
    """ROCm also needs /dev/kfd; Vulkan does not."""
    if node.exists and not node.openable:
        yield DeviceTrouble(f"this user cannot open {node.path}: ROCm does not work", GROUPS_FIX)


def of_undriven(device: Device, host: Host) -> Iterator[DeviceTrouble]:
    """A device without a working driver."""
    look = f"sudo dmesg | grep -i -e {device.slot} -e firmware"
    if device.kind == "npu" and device.vendor == "1022" and "amd_iommu=off" in host.command_line:
        return  # reported by of_npu with the cause
    if device.driver is None:
        yield DeviceTrouble("no driver is bound to the device", look, blocks=True)
    else:
        yield DeviceTrouble(f"the driver {device.driver} created no render node", look, blocks=True)


def of_npu(device: Device, host: Host) -> Iterator[DeviceTrouble]:
    if device.vendor == "1022" and "amd_iommu=off" in host.command_line:
        fix = host.change_command_line("iommu=pt", remove="amd_iommu=off")
        yield DeviceTrouble("amd_iommu=off on the kernel command line disables the NPU", fix, blocks=True)
    if device.driver is None:
        return
    if device.driver in RUNTIME_FIX and device.driver not in host.runtimes:
        yield DeviceTrouble("the runtime of the NPU is not installed", RUNTIME_FIX[device.driver])
    if device.driver == "amdxdna":
        if not device.firmware:
            fix = "sudo dmesg | grep -i -e amdxdna -e amdnpu"
            yield DeviceTrouble("the driver reports no firmware version; the firmware may be missing", fix)
        if host.memlock is not None and host.memlock < ENOUGH_LOCKED:
            yield DeviceTrouble(
                f"FastFlowLM cannot load a model: the memory lock limit is only {human_size(host.memlock)}", MEMLOCK_FIX
            )


def of_amdgpu(device: Device, kfd: KfdNode | None, host: Host) -> Iterator[DeviceTrouble]:
    if device.gfx == "gfx1151":
        stable = kfd is not None and kfd.saves_waves  # also in older kernels with the fix
        if host.kernel is not None and host.kernel < GOOD_KERNEL and not stable:
            kernel = ".".join(map(str, host.kernel))
            yield DeviceTrouble(
                f"kernel {kernel} is unstable with ROCm on gfx1151",
                "install kernel 6.18.4 or newer: sudo dnf upgrade kernel, or sudo apt full-upgrade, then reboot",
            )
        if number(device.firmware.get("mes")) == BAD_MES:
            yield DeviceTrouble("the firmware (MES 0x83 from linux-firmware-20251125) makes gfx1151 hang", FIRMWARE_FIX)
    if device.unified and host.memory is not None:
        yield from of_gtt(device, host)


def of_gtt(device: Device, host: Host) -> Iterator[DeviceTrouble]:
    """Is the GTT limit, the main memory that the GPU can use, reasonable?"""
    assert host.memory is not None
    total = host.memory[0]
    sizes = {pool.name: pool.total for pool in device.pools}
    gtt = sizes.get("gtt", 0)
    wanted = (total - LEFT_FOR_THE_SYSTEM) // GIB * GIB
    if not gtt or wanted <= 0:
        return
    fix = host.change_command_line(f"ttm.pages_limit={wanted // PAGE}")
    if gtt > total:
        message = f"the GPU can use {human_size(gtt)}, more than the {human_size(total)} of main memory"
        yield DeviceTrouble(message, fix)
    elif gtt < wanted * TOO_LITTLE and sizes.get("vram", 0) < total:  # else VRAM is large on purpose
        message = f"the GPU can use only {human_size(gtt)} of {human_size(total)} main memory (GTT limit)"
        yield DeviceTrouble(message, fix)


def number(version: str | None) -> int | None:
    """ "0x00000083" as a number."""
    try:
        return int(version or "", 0)
    except ValueError:
        return None
