"""A machine with little main memory, for a real accelerd and real models: python -m tests.real.small_machine

Its /proc is the real one but for `meminfo`, which the test keeps at $TEST_MEMINFO: what is in use is what the daemon's
models and the test's own ballast really hold (SmallMemory), and nothing else on the machine disturbs it. Where a real
kernel would have programs wait for memory, because hardly any is free, a thread gives the daemon the kernel's signal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType

from accelerd import app
from accelerd.base.ports import Roots
from accelerd.daemon import serve
from accelerd.memory.psi import StallTrigger
from accelerd.system import logs
from tests.harness import Daemon

KIB = 1 << 10
MIB = 1 << 20
REFRESH = 0.02  # s
SCARCE = 0.05  # of all memory: with less than this free, programs wait for it
WINDOW = 2.0  # s between two signals of the kernel


class Proc(type(Path())):  # type: ignore[misc]
    """/proc, with a memory of its own."""

    def __truediv__(self, key: str | os.PathLike[str]) -> Path:
        return Path(os.environ["TEST_MEMINFO"]) if key == "meminfo" else Path(self) / key


def resident(pid: int) -> tuple[int, int]:
    """Bytes of main memory that a process has, shared pages by its part of them: all, and what is of no file. (0, 0)
    when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    told = {line.split()[0]: int(line.split()[1]) * KIB for line in text.splitlines()[1:]}
    return told.get("Pss:", 0), told.get("Pss_Anon:", 0) + told.get("Pss_Shmem:", 0)


class SmallMemory:
    """Keeps `path` as the kernel keeps /proc/meminfo: `total` bytes, used by the daemon's models and a stranger alone.

    Pages of files count as available, as the kernel counts them.
    """

    def __init__(self, path: Path, total: int) -> None:
        self.path, self.total = path, total
        self.daemon: Daemon | None = None
        self._strangers: tuple[subprocess.Popen[bytes], ...] = ()
        self.most = 0  # bytes that models held together, at any look
        self._over = threading.Event()
        self._write(0)
        self._thread = threading.Thread(target=self._keep)

    def __enter__(self) -> SmallMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.take_back()

    def take(self, size: int) -> None:
        """A stranger's process takes memory, more than others have already; it has touched all when this returns."""
        code = "import sys; b = bytearray(int(sys.argv[1])); b[::4096] = b'x' * len(b[::4096]); print(1, flush=True)"
        command = [sys.executable, "-c", f"{code}; sys.stdin.read()", str(size)]
        stranger = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._strangers = (*self._strangers, stranger)
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == b"1\n"

    def press(self, left: int) -> None:
        """A stranger takes all memory that is free but `left` bytes; none comes where no more is free."""
        if (more := self.free() - left) > 0:
            self.take(more)

    def take_back(self) -> None:
        """All strangers end."""
        strangers, self._strangers = self._strangers, ()
        for stranger in strangers:
            stranger.communicate()

    def models(self) -> tuple[int, int]:
        """Bytes that all models of the daemon hold now, and what of that is of no file."""
        sizes = [resident(pid) for pid in engines(self.daemon)] if self.daemon is not None else []
        return sum(size for size, _ in sizes), sum(firm for _, firm in sizes)

    def free(self) -> int:
        """Bytes that nobody uses now."""
        return self.total - self.models()[1] - self._taken()

    def _taken(self) -> int:
        return sum(resident(stranger.pid)[1] for stranger in self._strangers)

    def _keep(self) -> None:
        while not self._over.wait(REFRESH):
            held, firm = self.models()
            self.most = max(self.most, held)
            self._write(firm + self._taken())

    def _write(self, used: int) -> None:
        new = self.path.with_suffix(".new")
        available = max(0, self.total - used)
        new.write_text(f"MemTotal: {self.total // KIB} kB\nMemAvailable: {available // KIB} kB\n")
        new.replace(self.path)


def engines(daemon: Daemon) -> Iterable[int]:
    """Processes of the daemon's models."""
    children = Path(f"/proc/{daemon.process.pid}/task")
    for task in children.iterdir() if children.exists() else ():
        try:
            yield from map(int, (task / "children").read_text().split())
        except OSError:
            continue


def small_trigger(file: Path) -> int:
    """As `stall.set_trigger`, for this machine: urgent data is EPOLLPRI, too."""
    kernel, daemon = socket.socketpair()

    def watch() -> None:
        while True:
            told = dict(line.split(":") for line in Path(os.environ["TEST_MEMINFO"]).read_text().splitlines())
            total, free = (int(told[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
            if free < total * SCARCE:
                kernel.send(b"!", socket.MSG_OOB)
                time.sleep(WINDOW)
            time.sleep(REFRESH)

    threading.Thread(target=watch, daemon=True).start()
    return daemon.detach()


if __name__ == "__main__":
    app.StallTrigger = partial(StallTrigger, trigger=small_trigger)  # type: ignore[misc, assignment]
    logs.configure(None)
    logging.captureWarnings(True)
    asyncio.run(serve(replace(Roots.from_env(), proc=Proc("/proc"))))
