"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from accelerd.system import allocator
from accelerd.system.allocator import MUCH, FreedMemory

HELD = """
import accelerd.system.allocator as allocator
def rss():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024
before = rss()
kept, large = [], []
for _ in range(1000):
    large.append(bytearray(100_000))
    kept.append(bytearray(2_000))
full = rss()
large.clear()
freed = rss()
allocator.return_memory()
print(full - before, freed - before, rss() - before)
"""


def test_what_lies_between_small_things_goes_back() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    full, freed, returned = map(int, done.stdout.split())
    assert full > 80
    assert freed > 80, "glibc keeps it by itself"
    assert returned < 20


def test_it_is_given_back_once_much_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "PAUSE", 0.0)

    async def scenario() -> list[int]:
        returned = []
        done = asyncio.Event()

        def give_back() -> None:
            returned.append(total)
            done.set()

        monkeypatch.setattr(allocator, "return_memory", give_back)
        freed, total = FreedMemory(asyncio.get_running_loop()), 0
        for size in (MUCH // 2, MUCH // 4, MUCH // 4, 5 * MUCH):
            total += size
            freed.add(size)
        await done.wait()
        freed.add(MUCH // 2)
        freed.close()
        return returned

    assert asyncio.run(scenario()) == [6 * MUCH]
