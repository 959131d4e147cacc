"""What the machine lacks for FastFlowLM according to `flm validate --json`, and how to fix it. Pure.

The engine uses it before it starts a server, and `accelctl doctor` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct

from accelerd.base.decoding import whole_number
from accelerd.base.sizes import human_size

MIB: Final = 1 << 20
ENOUGH_LOCKED: Final = 100 * MIB  # bytes that must be lockable at least
OVERHEAD: Final = 512 * MIB  # in addition to a model
IOMMU_FIX: Final = "remove amd_iommu=off from the kernel command line and reboot (iommu=pt is fine)"
MEMLOCK_FIX: Final = (
    "printf '[Manager]\\nDefaultLimitMEMLOCK=infinity\\n' | sudo tee /etc/systemd/user.conf.d/memlock.conf, "
    "a line '* - memlock unlimited' in /etc/security/limits.d, then log in again"
)


class NpuTrouble(Struct, frozen=True):
    """A reason why the NPU does not work."""

    topic: str  # "kernel", "driver", "device", "firmware", "columns", "memlock"
    message: str  # one clause
    fix: str


def troubles(report: Mapping[str, Any], *, command_line: str = "", lockable: int | None = 0) -> list[NpuTrouble]:
    """What is wrong, the most fundamental first; empty if the NPU is ready.

    `command_line`: the kernel's; `lockable`: bytes that this user can lock, None: unlimited.
    """
    if report.get("ready") is True:
        return []
    found: list[NpuTrouble] = []
    driver = str(report.get("drm_version") or "")
    if report.get("kernel_ok") is False and not driver:  # up to 0.9.45; newer ones look at the driver only
        text = f"the kernel {report.get('kernel', '')} is too old for FastFlowLM, which needs 6.17 (7.0 is better)"
        return [NpuTrouble("kernel", " ".join(text.split()), "install a newer kernel and reboot")]
    if report.get("amd_device_found") is False:
        if "amd_iommu=off" in command_line.split():
            return [NpuTrouble("device", "amd_iommu=off disables the NPU", IOMMU_FIX)]
        text = "FastFlowLM finds no AMD NPU in /dev/accel that it can open"
        return [
            NpuTrouble("device", text, "load the driver amdxdna; run: sudo usermod -aG render $USER, then log in again")
        ]
    if report.get("kernel_ok") is False or report.get("npu_driver_ok") is False:
        text = f"the driver amdxdna {driver} is too old for FastFlowLM, which needs 0.6"
        found.append(NpuTrouble("driver", text, "install a newer kernel or the DKMS package of amdxdna, and reboot"))
    for device in _devices(report):
        version = _firmware(device)
        where = str(device.get("device", "the NPU"))
        if device.get("fw_ok") is False:
            text = f"the firmware of {where} is {version}; FastFlowLM needs 1.1.0.0"
            found.append(NpuTrouble("firmware", text, "install a newer linux-firmware (amdnpu/17f0_11) and reboot"))
        columns = device.get("cols")
        if isinstance(columns, int) and columns < 8:
            text = f"{where} has {columns} columns; FastFlowLM needs an NPU with 8 (Strix or newer)"
            found.append(NpuTrouble("columns", text, "use another engine for this model"))
    if report.get("memlock_ok") is False and lockable is not None and lockable < ENOUGH_LOCKED:
        text = f"the memory lock limit is {_limit(report.get('memlock_limit'))}; FastFlowLM needs the size of the model"
        found.append(NpuTrouble("memlock", text, MEMLOCK_FIX))
    return found


def devices(report: Mapping[str, Any]) -> list[str]:
    """The NPUs that it reports: "/dev/accel/accel0, 8 columns, firmware 1.1.2.64", and what newer ones call them."""
    platform = report.get("npu_platform")
    called = f", {platform}" if isinstance(platform, str) and platform else ""
    return [
        f"{device.get('device')}, {device.get('cols', '?')} columns, firmware {_firmware(device)}{called}"
        for device in _devices(report)
    ]


def _firmware(device: Mapping[str, Any]) -> str:
    return ".".join(str(device.get(f"fw_{part}", "?")) for part in ("major", "minor", "patch", "build"))


def _devices(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = report.get("devices")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _limit(limit: object) -> str:
    number = whole_number(str(limit))
    return "too little" if number is None else human_size(number)
