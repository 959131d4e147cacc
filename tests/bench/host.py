"""What the machine offers for a quiet measurement: three cores to pin to, a better priority where that is permitted.

Must never change anything but the benchmark's own processes.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NICE = -10


@dataclass(frozen=True)
class Cores:
    """One CPU each for the upstream, the load generator and the contender; None: nobody is pinned."""

    upstream: int | None = None
    load: int | None = None
    contender: int | None = None

    def __str__(self) -> str:
        if self.contender is None:
            return "not pinned (fewer than 3 cores): everybody shares, read only large differences"
        return (
            f"pinned: upstream core {self.upstream}, load core {self.load}, direct/nginx/accelerd core {self.contender}"
        )

    def all(self) -> tuple[int, ...]:
        return tuple(core for core in (self.upstream, self.load, self.contender) if core is not None)


def choose_cores() -> Cores:
    """Three CPUs that share no physical core, from those we may use."""
    chosen: list[int] = []
    taken: set[str] = set()
    for cpu in sorted(os.sched_getaffinity(0)):
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:  # a container without /sys: take every CPU for a core of its own
            siblings = str(cpu)
        if siblings not in taken:
            taken.add(siblings)
            chosen.append(cpu)
    return Cores(*chosen[:3]) if len(chosen) >= 3 else Cores()


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What this thread starts meanwhile runs on that core."""
    before = os.sched_getaffinity(0)
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        yield
    finally:
        os.sched_setaffinity(0, before)


def move(pid: int, core: int | None) -> None:
    """Pin a process that somebody else started."""
    if core is not None:
        os.sched_setaffinity(pid, {core})


def favour(pid: int) -> bool:
    """Raise a process above ordinary ones, with its autogroup where the kernel has them; False: not permitted."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, NICE)
    except PermissionError:
        return False
    # With autogroups, nice only counts inside one session: the session's group needs it too.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(NICE))
    return True


def busy_seconds(cores: tuple[int, ...]) -> float:
    """CPU time that these cores spent on anybody since boot."""
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
            total += user + nice + system + irq + softirq + steal
    return total / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str]:
    """The machine and the moment, for the head of the report."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
