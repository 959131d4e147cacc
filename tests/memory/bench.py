"""What looking at memory costs on this machine, in CPU time of this process.

    python -m tests.memory.bench [PROCESSES] [DESCRIPTORS of each] [MiB that the "model" maps]

Makes so many processes that sleep, one of them with memory of its own, and takes the mean of several looks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from accelerd.base.ports import Roots, SystemClock
from accelerd.devices import fdinfo
from accelerd.devices.inventory import inventory
from accelerd.devices.observer import DeviceObserver
from accelerd.memory.measure import Meter
from accelerd.memory.resident import largest, shared
from accelerd.supervise.process.processes import InstanceTag, ProcessGroups, ProcessIdentity

SLEEPER = """
import mmap, os, sys
keep = [os.open("/dev/null", os.O_RDONLY) for _ in range(int(sys.argv[1]))]
size = int(sys.argv[2]) << 20
if size:
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, size, 4096):
        pages[at] = 1
print("ready", flush=True)
sys.stdin.read()
"""


def milliseconds(work: Callable[[], object], times: int = 20) -> float:
    """CPU time of one call."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1000


def sleeper(descriptors: int, mebibytes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-S", "-E", "-c", SLEEPER, str(descriptors), str(mebibytes)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main(processes: int = 300, descriptors: int = 30, mebibytes: int = 1024) -> None:
    there = sum(name.isdecimal() for name in os.listdir("/proc"))
    made = [sleeper(descriptors, 0) for _ in range(max(0, processes - there - 1))]
    made.append(sleeper(descriptors, mebibytes))
    try:
        for process in made:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        measure(made[-1].pid, mebibytes)
    finally:
        for process in made:
            process.kill()
            process.communicate()


def measure(model: int, mebibytes: int) -> None:
    proc, roots, clock = Path("/proc"), Roots.from_env(), SystemClock()
    groups, origins = ProcessGroups(proc), {1: ProcessIdentity(InstanceTag("none", "none"), None, model)}
    devices = inventory(roots)
    observer = DeviceObserver(roots, clock)
    meter = Meter(roots, clock, observer)
    ours = groups.look(origins)
    assert ours == {1: [model]}
    walk = milliseconds(lambda: groups.look(origins))
    look = milliseconds(lambda: meter.look(devices, ours))
    around = milliseconds(lambda: observer.strangers(devices, ours[1]))
    everybody = milliseconds(lambda: largest(roots))
    share = milliseconds(lambda: shared(proc, model))
    clients = len(fdinfo.scan(proc).clients)
    there = sum(name.isdecimal() for name in os.listdir("/proc"))
    print(f"{there} processes, {clients} clients of devices, {len(devices)} devices, a model of {mebibytes} MiB")
    for what, cost, every in (
        ("whose process is whose", walk, "at every look"),
        ("a look", look, "at every look"),
        ("strangers on the devices", around, "every 5 s, 1 s at the least"),
        ("strangers in main memory", everybody, "every 10 s"),
        ("the model's share (PSS)", share, "every 5 s, less often the longer it takes"),
    ):
        print(f"{cost:8.2f} ms  {what:28} {every}")
    second = walk + look + around / 5 + everybody / 10 + min(share / 5, 10.0)
    print(f"{second / 10:8.2f} %   of one core at one look a second, {(second + 3 * (walk + look)) / 10:.2f} % at four")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
