"""Pulling an image, watched: podman draws bars for a terminal, and here they are read as bytes and lines.

Starts nothing but `podman pull`. A podman that draws otherwise is still pulled with, only without numbers.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import struct
import termios
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from accelerd.base.ports import Clock
from accelerd.base.sizes import human_size
from accelerd.supervise.homes.containers.podman_docker import PULL_PATIENCE, ContainerEngine
from accelerd.supervise.homes.home import HomeError

COLUMNS: Final = 160  # of the terminal that podman sees: wide enough for its bars and their numbers
_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BLOB: Final = re.compile(r"blob (?:sha256:)?([0-9a-f]{8,12})")
_AMOUNT: Final = re.compile(r"([\d.]+) ?([KMGT]?)i?B / ([\d.]+) ?([KMGT]?)i?B")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
LINES: Final = 12  # kept for an error


class Pulled(Struct, frozen=True):
    """How far it is: bytes of all layers that have begun, and what podman said last."""

    done: int
    total: int
    line: str


class PullScreen:
    """Reads what podman writes to its terminal."""

    def __init__(self) -> None:
        self._rest = ""
        self._layers: dict[str, tuple[int, int]] = {}
        self.lines: list[str] = []  # other than bars, the newest last

    def feed(self, data: bytes) -> None:
        *whole, self._rest = re.split(r"[\r\n]+", self._rest + data.decode(errors="replace"))
        for text in whole:
            self._take(_ESCAPE.sub("", text).strip())

    def end(self) -> None:
        """The last line may have no end."""
        self.feed(b"\n")

    def _take(self, line: str) -> None:
        layer = _BLOB.search(line)
        amount = _AMOUNT.search(line)
        if layer and amount:
            done, unit, total, of = amount.groups()
            self._layers[layer[1]] = (_bytes(done, unit), _bytes(total, of))
        elif layer and layer[1] in self._layers:  # "done", or "skipped: already exists"
            total_bytes = self._layers[layer[1]][1]
            self._layers[layer[1]] = (total_bytes, total_bytes)
        elif line and not layer and (not self.lines or self.lines[-1] != line):
            self.lines = [*self.lines, line][-LINES:]

    @property
    def state(self) -> Pulled:
        done, total = (sum(amounts[i] for amounts in self._layers.values()) for i in (0, 1))
        return Pulled(done, total, self.lines[-1] if self.lines else "")


def progress_lines(on_output: Callable[[bytes], None], clock: Clock) -> Callable[[Pulled], None]:
    """For `pull`: how far it is, as a line of output a second."""
    shown = clock.monotonic()

    def show(pulled: Pulled) -> None:
        nonlocal shown
        if clock.monotonic() - shown >= 1.0:
            shown = clock.monotonic()
            far = f"{human_size(pulled.done)} of {human_size(pulled.total)}" if pulled.total else pulled.line
            on_output(f"pulling: {far}\n".encode())

    return show


def _bytes(number: str, unit: str) -> int:
    try:
        return int(float(number) * _UNITS[unit])
    except ValueError:
        return 0  # "1.2.3" is no number, and no reason to fail a pull


async def pull(engine: ContainerEngine, image: str, show: Callable[[Pulled], None]) -> None:
    """Have the newest image of that name. HomeError with podman's last word. Killed when cancelled."""
    loop, screen = asyncio.get_running_loop(), PullScreen()
    ours, its = os.openpty()

    def read() -> None:
        while True:
            try:
                data = os.read(ours, 4096)
            except BlockingIOError:
                return
            except OSError:  # nobody has the other end any more
                loop.remove_reader(ours)
                return
            screen.feed(data)
            show(screen.state)

    try:
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 50, COLUMNS, 0, 0))
        os.set_blocking(ours, False)
        loop.add_reader(ours, read)
        done = await engine.call("pull", image, within=PULL_PATIENCE, check=False, output=its)
        read()
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(its)
    screen.end()
    if done.status != 0:
        why = screen.lines[-1].removeprefix("Error: ") if screen.lines else f"podman ended with status {done.status}"
        raise HomeError(f"cannot pull {image}: {why}")
