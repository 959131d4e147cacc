"""The real daemon where udev tells of a GPU in the processor and an NPU: python -m tests.npu.halo_daemon"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from accelerd.app import Parts
from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.config import check
from accelerd.daemon import Daemon
from accelerd.devices.udev import PciFunction, UdevDevice
from accelerd.system import logs
from accelerd.system.lock import InstanceLock

GPU, NPU = "0000:c1:00.0", "0000:c2:00.1"
FUNCTIONS = (
    PciFunction(GPU, "amdgpu", "1002", "1586", 0x038000, Path("/sys/devices/none", GPU), ("AMD", "Radeon 8060S")),
    PciFunction(NPU, "amdxdna", "1022", "17f0", 0x118000, Path("/sys/devices/none", NPU), ("AMD", "RyzenAI-npu5")),
)


class Udev:
    """Both devices with nodes that anybody may open."""

    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        gpu, npu = FUNCTIONS
        if subsystem == "pci":
            yield from (UdevDevice("pci", one.slot, None, one.driver, one.path, one) for one in FUNCTIONS)
        elif subsystem == "drm":
            yield UdevDevice("drm", "renderD128", "/dev/null", "amdgpu", gpu.path / "drm/renderD128", gpu)
        elif subsystem == "accel":
            yield UdevDevice("accel", "accel0", "/dev/null", "amdxdna", npu.path / "accel/accel0", npu)


async def serve(roots: Roots) -> None:
    config, problems = check(roots.config_file, roots.home)
    assert config is not None, problems
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        await Daemon(Parts(roots, config, source=Udev()), config, problems).run()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(serve(Roots.from_env()))
