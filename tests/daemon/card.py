"""A Radeon with memory of its own, as the kernel tells of it: its files in /sys, and those of its users in /proc.

Who uses it says so in a folder: a file with the name of its process, in it bytes. Main memory is that of the test, too.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

SLOT = "0000:03:00.0"
GIB = 1 << 30
EVERY = 0.02  # s


class Card(threading.Thread):
    """Keeps the files until it is closed."""

    def __init__(self, directory: Path, *, vram: int = 24, ram: int = 64) -> None:
        """Sizes in GiB."""
        super().__init__(name="card", daemon=True)
        self.proc, self.sys, self.told = directory / "proc", directory / "sys", directory / "told"
        self._ending = threading.Event()
        for folder in (self.proc / "pressure", self.told):
            folder.mkdir(parents=True)
        self.main_memory(ram)
        put(self.proc / "pressure/memory", "".join(f"{k} avg10=0.00 avg60=0.00 avg300=0.00 total=0\n" for k in STALLS))
        self._device = device = self.sys / "bus/pci/devices" / SLOT
        driver = self.sys / "bus/pci/drivers/amdgpu"
        for folder in (device, driver):
            folder.mkdir(parents=True)
        (device / "driver").symlink_to(driver)
        files = {"vendor": "0x1002", "device": "0x744c", "class": "0x030000", "mem_info_vram_total": vram * GIB,
                 "mem_info_vram_used": 0, "mem_info_gtt_total": 16 * GIB, "mem_info_gtt_used": 0}  # fmt: skip
        for name, value in files.items():
            put(device / name, f"{value}\n")
        self.start()

    def main_memory(self, gib: int, free: int | None = None) -> None:
        left = gib - 4 if free is None else free
        sizes = {"MemTotal": gib, "MemFree": left, "MemAvailable": left}
        put(self.proc / "meminfo", "".join(f"{name}: {size << 20} kB\n" for name, size in sizes.items()))

    def run(self) -> None:
        shown: dict[str, int] = {}
        while not self._ending.wait(EVERY):
            there = {path.name: int(path.read_text()) for path in self.told.glob("[0-9]*") if self._lives(path)}
            if there != shown:
                for pid, size in there.items():
                    self._show(pid, size)
                put(self._device / "mem_info_vram_used", f"{sum(there.values())}\n")
                for pid in shown.keys() - there.keys():
                    shutil.rmtree(self.proc / pid, ignore_errors=True)
                shown = there

    def close(self) -> None:
        self._ending.set()
        self.join()

    def _lives(self, path: Path) -> bool:
        if Path("/proc", path.name).exists():
            return True
        path.unlink(missing_ok=True)
        return False

    def _show(self, pid: str, size: int) -> None:
        """The process as it is, with the card open."""
        shown = self.proc / pid
        if not shown.exists():
            new = self.proc / f"{pid}.new"
            shutil.rmtree(new, ignore_errors=True)
            (new / "fd").mkdir(parents=True)
            (new / "fdinfo").mkdir()
            (new / "fd/99").symlink_to("/dev/dri/renderD128")
            for name in ("comm", "cmdline", "stat", "statm", "status", "smaps_rollup", "cgroup", "io"):
                (new / name).symlink_to(f"/proc/{pid}/{name}")
            new.rename(shown)
        put(
            shown / "fdinfo/99",
            f"pos:\t0\nflags:\t02100002\ndrm-driver:\tamdgpu\ndrm-client-id:\t{pid}\ndrm-pdev:\t{SLOT}\n"
            f"drm-memory-vram:\t{size // 1024} KiB\ndrm-memory-gtt:\t0 KiB\ndrm-memory-cpu:\t0 KiB\n",
        )


STALLS = ("some", "full")


def put(path: Path, text: str) -> None:
    """In one step."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)
