"""Memory that was freed goes back to the system."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from accelerd.system import allocator
from accelerd.system.allocator import ARENAS, MUCH, FreedMemory

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


# Threads that hold memory at once, each of the heap that glibc gives it; then how many heaps there are.
SCRIPT = """
import ctypes, sys, tempfile, threading
from accelerd.system.allocator import share_heaps
if "shared" in sys.argv:
    share_heaps()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(8)
def hold():
    libc.malloc(1 << 10)
    together.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(file.read().count(b"<heap "))
"""


@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_heaps(shared: bool) -> None:
    argv = [sys.executable, "-c", SCRIPT, *(["shared"] if shared else [])]
    heaps = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert (heaps <= ARENAS) is shared
