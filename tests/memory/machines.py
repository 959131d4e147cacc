"""Machines for measuring: a /proc and a /sys that a test fills with processes, clients of drivers and devices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from accelerd.base.ports import Roots
from accelerd.devices.model import Device, MemoryPool
from accelerd.devices.observer import DeviceObserver
from accelerd.memory.measure import Meter
from accelerd.memory.model import MemorySnapshot, Pool
from tests.devices.recorded import machine
from tests.devices.test_fdinfo import process
from tests.fakes.clock import FakeClock

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BUS = Path("/sys/devices/pci0000:00")
TOTAL, AVAILABLE = 128 * GIB, 100 * GIB

HALO = Device(
    "gpu", "8060S", "amdgpu", "0000:c4:00.0", apu=True, unified=True, vendor="1002", directory=BUS / "0000:c4:00.0",
    pools=(MemoryPool("vram", GIB), MemoryPool("gtt", 96 * GIB), MemoryPool("unified", 97 * GIB)),
)  # fmt: skip
CARD = Device(
    "gpu", "RX 9070 XT", "amdgpu", "0000:03:00.0", apu=False, vendor="1002", directory=BUS / "0000:03:00.0",
    pools=(MemoryPool("vram", 16 * GIB), MemoryPool("gtt", 64 * GIB)),
)  # fmt: skip
ARC = Device("gpu", "A380", "i915", "0000:05:00.0", apu=False, vendor="8086", directory=BUS / "0000:05:00.0")
TIGER = Device(
    "gpu", "Iris Xe", "xe", "0000:00:02.0", apu=True, unified=True, vendor="8086", directory=BUS / "0000:00:02.0",
)  # fmt: skip
NPU = Device("npu", "RyzenAI-npu5", "amdxdna", "0000:c5:00.1", vendor="1022", directory=BUS / "0000:c5:00.1")
NVIDIA = Device("gpu", "RTX", "nvidia", "0000:01:00.0", vendor="10de", directory=BUS / "0000:01:00.0")
CPU = Device("cpu", "A Processor", pools=(MemoryPool("ram", TOTAL),))


class Machine:
    """Files below a directory, and a Meter that looks at them."""

    def __init__(self, directory: Path, *devices: Device, **settings: int) -> None:
        self.roots: Roots = machine(directory)
        self.clock = FakeClock()
        self.devices = [*devices, CPU]
        self.closed: set[int] = set()  # processes of other users
        self.observer = DeviceObserver(self.roots, self.clock, listdir=self.listdir)
        self.meter = Meter(self.roots, self.clock, self.observer, **settings)
        self.meminfo()
        for device in devices:
            self.power(device, "active")

    def meminfo(self, available: int = AVAILABLE, total: int = TOTAL, **more: int) -> None:
        sizes = {"MemTotal": total, "MemFree": 1 << 10, "MemAvailable": available, **more}
        (self.roots.proc / "meminfo").write_text("".join(f"{key}: {size // KIB} kB\n" for key, size in sizes.items()))

    def listdir(self, path: Path) -> list[str]:
        if path.parent.name.isdecimal() and int(path.parent.name) in self.closed:
            raise PermissionError(13, "not yours")
        return os.listdir(path)

    def close(self, pid: int) -> None:
        """It belongs to another user."""
        self.closed.add(pid)
        (self.roots.proc / str(pid) / "smaps_rollup").unlink()

    def folder(self, device: Device) -> Path:
        assert device.directory is not None
        folder: Path = self.roots.sys / device.directory.relative_to("/sys")
        return folder

    def power(self, device: Device, state: str) -> None:
        self.attribute(device, "power/runtime_status", state)

    def attribute(self, device: Device, name: str, value: object) -> None:
        path = self.folder(device) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    def used(self, device: Device, **sizes: object) -> None:
        """vram=…, gtt=…: what is used of them, as amdgpu says."""
        for pool, size in sizes.items():
            self.attribute(device, f"mem_info_{pool}_used", size)

    def process(
        self,
        pid: int,
        name: str = "llama-server",
        *clients: tuple[str, str],
        anon: int = 0,
        file: int = 0,
        shmem: int = 0,
        locked: int = 0,
        private: float = 1.0,
    ) -> None:
        """A process with open devices. Of its memory the share `private` is its own."""
        if not (self.roots.proc / str(pid)).exists():
            process(self.roots.proc, pid, name, **{f"_{3 + i}": client for i, client in enumerate(clients)})
        self.memory(pid, anon=anon, file=file, shmem=shmem, locked=locked, private=private)

    def memory(
        self, pid: int, *, anon: int = 0, file: int = 0, shmem: int = 0, locked: int = 0, private: float = 1.0
    ) -> None:
        folder = self.roots.proc / str(pid)
        pages = (anon + file + shmem) // 4096
        (folder / "statm").write_text(f"{2 * pages} {pages} {(file + shmem) // 4096} 1 0 1 0\n")
        kinds = {"VmLck": locked, "RssAnon": anon, "RssFile": file, "RssShmem": shmem}
        (folder / "status").write_text("Name:\tx\n" + "".join(f"{k}:\t{v // KIB:8d} kB\n" for k, v in kinds.items()))
        shares = {"Pss_Anon": anon * private, "Pss_File": file * private, "Pss_Shmem": shmem * private}
        lines = {"Rss": anon + file + shmem, "Pss": sum(shares.values()), **shares, "Anonymous": anon, "Locked": locked}
        (folder / "smaps_rollup").write_text(
            "559ce0000000-7ffd00000000 ---p 00000000 00:00 0    [rollup]\n"
            + "".join(f"{key}:{int(size) // KIB:16d} kB\n" for key, size in lines.items())
        )

    def look(self, processes: Mapping[int, list[int]]) -> MemorySnapshot:
        return self.meter.look(self.devices, processes)


def pool(seen: MemorySnapshot, id: str) -> Pool:
    [found] = [one for one in seen.pools if one.id == id]
    return found


def amdgpu(device: Device, client: int, vram: int = 0, gtt: int = 0, cpu: int = 0) -> tuple[str, str]:
    """A descriptor of amdgpu with its fdinfo."""
    sizes = {"vram": vram, "gtt": gtt, "cpu": cpu}
    lines = [f"drm-resident-{region}:\t{size // KIB} KiB" for region, size in sizes.items()]
    lines += [f"drm-memory-{region}: \t{size // KIB} KiB" for region, size in sizes.items()]
    return "/dev/dri/renderD128", told("amdgpu", device, client, *lines)


def told(driver: str, device: Device, client: int, *lines: str) -> str:
    head = ["pos:\t0", "flags:\t02100002", "mnt_id:\t24", "ino:\t1204", f"drm-driver:\t{driver}"]
    return "\n".join([*head, f"drm-client-id:\t{client}", f"drm-pdev:\t{device.slot}", *lines]) + "\n"
