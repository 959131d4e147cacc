"""The fixture that looks for what a test leaves behind does find it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFTEST = "from tests.settled import pytest_pyfunc_call, settled\n"
TESTS = """
import asyncio, os, subprocess, threading

KEPT = []

async def test_task():
    KEPT.append(asyncio.create_task(asyncio.sleep(60)))

def test_task_under_run():
    asyncio.run(test_task())

def test_child():
    KEPT.append(subprocess.Popen(["sleep", "60"]))

def test_zombie():
    KEPT[-1].kill()
    os.waitid(os.P_PID, KEPT[-1].pid, os.WEXITED | os.WNOWAIT)

def test_child_is_reaped():
    KEPT.pop().wait()

def test_descriptor():
    KEPT.append(os.open("/dev/null", os.O_RDONLY))

def test_thread():
    ended = threading.Event()
    KEPT.append(ended)
    threading.Thread(target=ended.wait).start()

def test_thread_ends():
    KEPT.pop().set()

async def test_unseen_exception():
    async def broken():
        raise ValueError("nobody looks")
    task = asyncio.create_task(broken())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

async def test_good():
    await asyncio.sleep(0)
"""


def test_what_is_left_behind_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rEp", "-p", "no:cacheprovider", "-p", "no:randomly", str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    lines = run.stdout.splitlines()
    errors = {line.split("::")[1].split(" ")[0]: line for line in lines if line.startswith("ERROR ")}
    assert set(errors) == {
        "test_task", "test_task_under_run", "test_child", "test_zombie", "test_descriptor", "test_thread",
        "test_unseen_exception",
    }, run.stdout  # fmt: skip
    assert "nobody looks" in run.stdout
    assert "zombie" in errors["test_zombie"]
