"""How much programs wait for memory: the kernel's pressure stall information (PSI), read, and heard of as it happens.

Owns the trigger at the kernel; decides nothing about it. Where PSI is not there, or this user may set no trigger,
memory is looked at by the clock alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from accelerd.base.cgroup import cgroup_of
from accelerd.base.ports import Roots
from accelerd.devices.files import lines
from accelerd.memory.model import Stall

log = logging.getLogger(__name__)

# 150 ms in which some program waited, of 2 s; without privileges the kernel takes only whole multiples of 2 s.
TRIGGER: Final = b"some 150000 2000000\0"
FILE: Final = "memory.pressure"  # in a control group


def read_stall(proc: Path) -> Stall | None:
    """The last 10 s; None where the kernel does not tell (built without PSI, or started with psi=0)."""
    found: dict[str, float] = {}
    for line in lines(proc / "pressure/memory"):
        kind, *values = line.split()
        value = next((word.removeprefix("avg10=") for word in values if word.startswith("avg10=")), "")
        try:
            share = float(value)
        except ValueError:
            continue
        if kind in ("some", "full") and 0 <= share <= 100:
            found[kind] = share
    return Stall(found["some"], found.get("full", 0.0)) if "some" in found else None


def pressure_files(roots: Roots) -> list[Path]:
    """Where a trigger may be set: for the whole machine, else for the largest control group around this process."""
    own = cgroup_of(roots.proc, roots.sys, "self")
    around = [folder / FILE for folder in (own.folder, *own.folder.parents)] if own is not None else []
    return [roots.proc / "pressure/memory", *reversed([file for file in around if file.exists()])]


def set_trigger(file: Path) -> int:
    """A file descriptor that has EPOLLPRI whenever programs wait for memory. OSError: there is none."""
    fd = os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with select.epoll() as probe:
            probe.register(fd, 0)  # refuses what is no file of the kernel
        os.write(fd, TRIGGER)
    except OSError:
        os.close(fd)
        raise
    return fd


class StallTrigger:
    """Calls back, at most every 2 s, while programs wait for memory. Costs nothing while none does."""

    def __init__(self, files: Sequence[Path], trigger: Callable[[Path], int] = set_trigger) -> None:
        self._files = files
        self._trigger = trigger
        self._fd = -1
        self._epoll: select.epoll | None = None
        self._heard: Callable[[], None] | None = None

    def start(self, heard: Callable[[], None]) -> bool:
        """Call `heard` from the running loop. False: the kernel takes no trigger."""
        for file in self._files:
            with contextlib.suppress(OSError):
                self._fd = self._trigger(file)
                break
        else:
            log.info("the kernel reports no memory pressure to this user: memory is measured by the clock alone")
            return False
        self._heard = heard
        # The loop listens for readable descriptors only: an epoll descriptor is readable when something it watches is.
        self._epoll = select.epoll()
        self._epoll.register(self._fd, select.EPOLLPRI | select.EPOLLET)
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)
        return True

    def close(self) -> None:
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            os.close(self._fd)
            self._epoll = None

    def _ready(self) -> None:
        assert self._epoll is not None
        assert self._heard is not None
        events = self._epoll.poll(0)
        if any(mask & (select.EPOLLERR | select.EPOLLHUP) for _, mask in events):  # the control group has gone
            self.close()
        elif events:
            self._heard()
