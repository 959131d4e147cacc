"""Properties of the machine that matter for devices: kernel, command line, memory, lock limit, NPU runtimes.

Read from files for every inventory; starts no programs. Knows how this distribution changes the kernel command line,
because a fix must be a command.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from msgspec import Struct

from accelerd.base.ports import Roots
from accelerd.devices.files import lines, text
from accelerd.devices.model import MemoryPool

LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/xilinx/xrt/lib", "/usr/lib/x86_64-linux-gnu")
RUNTIMES = {  # driver of an NPU → a program or library through which models reach it
    "amdxdna": (("flm",), ("libxrt_coreutil.so.2",)),
    "intel_vpu": ((), ("libze_intel_vpu.so.1", "libze_intel_npu.so.1")),
}

Which = Callable[[str], str | None]


class Host(Struct, frozen=True):
    """Properties of the machine that matter for devices."""

    kernel: tuple[int, int, int] | None = None
    command_line: tuple[str, ...] = ()
    memory: tuple[int, int] | None = None  # bytes: total, available
    memlock: int | None = None  # bytes that a process may lock; None: no limit, or not known
    grubby: bool = False  # Fedora's tool to change the kernel command line is installed
    runtimes: frozenset[str] = frozenset()  # drivers of NPUs whose runtime is installed

    def change_command_line(self, add: str, remove: str = "") -> str:
        """The command that adds and removes options of the kernel command line and reboots."""
        if self.grubby:
            old = f" --remove-args={remove}" if remove else ""
            return f"sudo grubby --update-kernel=ALL{old} --args={add} && reboot"
        edit = f"s/{remove}/{add}/" if remove else f's/^GRUB_CMDLINE_LINUX="/&{add} /'
        return f"sudo sed -i '{edit}' /etc/default/grub && sudo update-grub && reboot"


def read_host(roots: Roots, which: Which = shutil.which, libraries: Iterable[str] = LIBRARIES) -> Host:
    """The properties of this machine; unreadable ones are None."""
    libraries = list(libraries)
    return Host(
        kernel=version(text(roots.proc / "sys/kernel/osrelease") or ""),
        command_line=tuple((text(roots.proc / "cmdline") or "").split()),
        memory=machine_memory(roots),
        memlock=lock_limit(roots),
        grubby=which("grubby") is not None,
        runtimes=frozenset(
            driver
            for driver, (programs, files) in RUNTIMES.items()
            if any(which(name) for name in programs)
            or any((Path(directory) / name).exists() for directory in libraries for name in files)
        ),
    )


def version(release: str) -> tuple[int, int, int] | None:
    """ "6.18.4-200.fc43.x86_64" as (6, 18, 4)."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def lock_limit(roots: Roots) -> int | None:
    """The hard limit on locked memory of this process and its children."""
    for line in lines(roots.proc / "self/limits"):
        if line.startswith("Max locked memory"):
            hard = line.split()[-2]
            return int(hard) if hard.isdecimal() else None
    return None


def meminfo(roots: Roots) -> dict[str, int]:
    """The sizes in /proc/meminfo, in bytes; empty if it cannot be read."""
    return sizes(roots.proc / "meminfo")


def sizes(path: Path) -> dict[str, int]:
    """A file of lines "Key: 5 kB", in bytes; empty if it cannot be read."""
    found = {}
    for line in lines(path):
        key, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdecimal():
            found[key] = int(words[0]) * 1024
    return found


def machine_memory(roots: Roots) -> tuple[int, int] | None:
    """Total and available bytes of main memory; None if unknown."""
    told = meminfo(roots)
    return (told["MemTotal"], told["MemAvailable"]) if "MemTotal" in told and "MemAvailable" in told else None


def memory_pool(name: str, memory: tuple[int, int] | None) -> tuple[MemoryPool, ...]:
    """Main memory, total and available bytes, as the pool of a device that uses it; none if unknown."""
    return (MemoryPool(name, memory[0], memory[0] - memory[1]),) if memory is not None else ()


def processor_name(roots: Roots) -> str:
    """The product name of the processor, else its architecture."""
    for line in lines(roots.proc / "cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip() or platform.machine()
    return platform.machine()
