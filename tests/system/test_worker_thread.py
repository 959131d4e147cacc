"""Blocking calls in threads that nobody waits for at the end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from accelerd.system.worker_thread import MOST, DaemonThreadExecutor
from tests.harness import PATIENCE

STUCK = """
import asyncio, os, sys, threading
from accelerd.system.worker_thread import DaemonThreadExecutor
if sys.argv[1] == "uvloop":
    from uvloop import run
else:
    from asyncio import run

async def main():
    asyncio.get_running_loop().set_default_executor(DaemonThreadExecutor())
    began = threading.Event()
    def hang():
        began.set()
        os.read(os.pipe()[0], 1)
    stuck = [asyncio.create_task(asyncio.to_thread(hang)) for _ in range(8)]
    await asyncio.to_thread(began.wait)
    print("others are served")
    try:
        async with asyncio.timeout(0.05):
            await stuck[0]
    except TimeoutError:
        print("given up")

run(main())
print("ended")
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_program_ends_whatever_its_threads_hang_in(loop: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK, loop], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.stdout.split("\n"), done.stderr, done.returncode) == (
        ["others are served", "given up", "ended", ""], "", 0,
    )  # fmt: skip


async def test_results_and_errors_arrive_and_threads_are_used_again() -> None:
    executor = DaemonThreadExecutor()
    loop = asyncio.get_running_loop()
    found = set()
    for number in range(20):
        assert await loop.run_in_executor(executor, lambda one: (found.add(threading.get_ident()), one)[1], number) == (
            number
        )
    assert len(found) == 1
    for _ in range(200):
        await asyncio.gather(*(loop.run_in_executor(executor, threading.get_ident) for _ in range(3)))
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("blocking ")]) == 3
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(executor, lambda: 1 // 0)
    with pytest.raises(SystemExit):
        await loop.run_in_executor(executor, sys.exit)
    assert await asyncio.gather(*(loop.run_in_executor(executor, pow, 2, n) for n in range(4 * MOST))) == [
        2**n for n in range(4 * MOST)
    ]
    executor.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("blocking ")]


async def test_what_was_cancelled_before_it_began_is_not_begun() -> None:
    executor, gate = DaemonThreadExecutor(), threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(executor, gate.wait) for _ in range(MOST)]
    begun = threading.Event()
    waiting = executor.submit(begun.set)
    assert waiting.cancel()
    gate.set()
    assert await asyncio.gather(*busy) == [True] * MOST
    assert await loop.run_in_executor(executor, pow, 2, 2) == 4
    assert not begun.is_set()
    executor.shutdown()
