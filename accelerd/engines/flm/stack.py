"""What FastFlowLM needs of a machine, as `flm validate --json` judges it, in words that say what to do. Pure.

The engine asks before it starts a server, and `accelctl doctor` when a person asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from accelerd.base.sizes import human_size

MIB: Final = 1 << 20
ENOUGH_LOCKED: Final = 100 * MIB  # bytes that must be lockable for anything at all
OVERHEAD: Final = 512 * MIB  # beside a model
IOMMU_FIX: Final = "remove amd_iommu=off from the kernel's command line and restart (iommu=pt does no harm)"
MEMLOCK_FIX: Final = (
    "printf '[Manager]\\nDefaultLimitMEMLOCK=infinity\\n' | sudo tee /etc/systemd/user.conf.d/memlock.conf, "
    "a line '* - memlock unlimited' in /etc/security/limits.d, then log in again"
)


@dataclass(frozen=True)
class Trouble:
    """One thing that keeps the NPU from working."""

    topic: str  # "kernel", "driver", "device", "firmware", "columns", "memlock"
    message: str  # one clause
    fix: str


def troubles(report: Mapping[str, Any], *, command_line: str = "", lockable: int | None = 0) -> list[Trouble]:
    """What is wrong, the most basic first; nothing: it is ready.

    `command_line`: the kernel's; `lockable`: bytes that this user may lock if he asks for it, None: all.
    """
    if report.get("ready") is True:
        return []
    return list(_wrong(report, command_line.split(), lockable))


def _wrong(report: Mapping[str, Any], options: list[str], lockable: int | None) -> list[Trouble]:
    found: list[Trouble] = []
    driver = str(report.get("drm_version") or "")
    if report.get("kernel_ok") is False and not driver:
        text = f"the kernel {report.get('kernel', '')} is too old for FastFlowLM: 6.17 is needed, 7.0 is better"
        return [Trouble("kernel", " ".join(text.split()), "install a newer kernel and restart")]
    if report.get("amd_device_found") is False:
        if "amd_iommu=off" in options:
            return [Trouble("device", "amd_iommu=off turns the NPU off", IOMMU_FIX)]
        text = "FastFlowLM finds no AMD NPU that it may open below /dev/accel"
        return [Trouble("device", text, "load amdxdna, and: sudo usermod -aG render $USER, then log in again")]
    if report.get("kernel_ok") is False:
        text = f"the driver amdxdna {driver} is too old for FastFlowLM: 0.6 is needed"
        found.append(Trouble("driver", text, "install a newer kernel, or amdxdna by dkms, and restart"))
    for device in _devices(report):
        version = ".".join(str(device.get(f"fw_{part}", "?")) for part in ("major", "minor", "patch", "build"))
        where = str(device.get("device", "the NPU"))
        if device.get("fw_ok") is False:
            text = f"the firmware of {where} is {version}, 1.1.0.0 is needed"
            found.append(Trouble("firmware", text, "install a newer linux-firmware (amdnpu/17f0_11) and restart"))
        columns = device.get("cols")
        if isinstance(columns, int) and columns < 8:
            text = f"{where} has {columns} columns: FastFlowLM needs an NPU with 8, of Strix or newer"
            found.append(Trouble("columns", text, "use an engine that needs no NPU for this model"))
    if report.get("memlock_ok") is False and lockable is not None and lockable < ENOUGH_LOCKED:
        text = (
            f"this user may lock {_limit(report.get('memlock_limit'))} of memory, FastFlowLM needs as much as its model"
        )
        found.append(Trouble("memlock", text, MEMLOCK_FIX))
    return found


def devices(report: Mapping[str, Any]) -> list[str]:
    """The NPUs it sees: "/dev/accel/accel0, 8 columns, firmware 1.1.2.64"."""
    lines = []
    for device in _devices(report):
        version = ".".join(str(device.get(f"fw_{part}", "?")) for part in ("major", "minor", "patch", "build"))
        lines.append(f"{device.get('device')}, {device.get('cols', '?')} columns, firmware {version}")
    return lines


def _devices(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = report.get("devices")
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def _limit(limit: object) -> str:
    text = str(limit)
    return human_size(int(text)) if text.isdigit() else "too little"
