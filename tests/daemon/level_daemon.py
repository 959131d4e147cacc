"""The real daemon, but that its devices are those of a fake /sys: python -m tests.daemon.level_daemon

TEST_SYSFS names it. What udev would say is read from there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from accelerd.app import Parts
from accelerd.base import names
from accelerd.base.ports import Roots
from accelerd.config import check
from accelerd.daemon import Daemon
from accelerd.devices.udev import PciFunction, UdevDevice
from accelerd.system import logs
from accelerd.system.lock import InstanceLock


class Udev:
    """The PCI devices below a fake /sys; each GPU has a render node that anybody may open."""

    def __init__(self, sys: Path) -> None:
        self._sys = sys

    def entries(self, subsystem: str) -> Iterable[UdevDevice]:
        for number, path in enumerate(sorted((self._sys / "bus/pci/devices").iterdir())):
            driver = (path / "driver").resolve().name
            kind = int((path / "class").read_text(), 16)
            device = (path / "device").read_text().strip().removeprefix("0x")
            function = PciFunction(path.name, driver, "1002", device, kind, path.resolve(), ("AMD", "Radeon"))
            if subsystem == "pci":
                yield UdevDevice("pci", path.name, None, driver, path, function)
            elif subsystem == "drm" and kind >> 16 == 0x03:
                yield UdevDevice("drm", f"renderD{128 + number}", "/dev/null", driver, path, function)


async def serve(roots: Roots) -> None:
    config, problems = check(roots.config_file, roots.home)
    assert config is not None, problems
    with InstanceLock.acquire(roots.runtime / names.LOCK_FILE):
        await Daemon(Parts(roots, config, source=Udev(roots.sys)), config, problems).run()


if __name__ == "__main__":
    logs.configure()
    asyncio.run(serve(replace(Roots.from_env(), sys=Path(os.environ["TEST_SYSFS"]))))
