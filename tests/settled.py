"""A test that leaves something behind fails: a task, child, zombie, descriptor, thread or unseen exception.

For a conftest.py: `from tests.settled import pytest_pyfunc_call, settled  # noqa: F401`. The fixture is autouse and
looks at what the test itself began: things of module and session fixtures were there before. It covers every loop that
the test makes through the event loop policy (asyncio.run, asyncio.Runner); the hook runs `async def` tests.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psutil
import pytest
import uvloop

uvloop.new_event_loop().close()  # libuv keeps one pipe for the life of the process: not to be any test's fault

PATIENCE = 5.0  # s for what is just on its way out: a thread that ends, a socket that the kernel closes


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    """Run an `async def` test in a loop of its own."""
    function: Callable[..., Coroutine[Any, Any, object]] = pyfuncitem.obj
    if not inspect.iscoroutinefunction(function):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(function).parameters}
    asyncio.run(function(**arguments))
    return True


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Fails a test that leaves something behind."""
    complaints: list[str] = []
    descriptors, children, threads = _descriptors(), _children(), set(threading.enumerate())
    asyncio.set_event_loop_policy(_WatchedPolicy(complaints))
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(None)
    gc.collect()  # an exception that nobody looked at is told when its task is freed
    deadline = time.monotonic() + PATIENCE
    while left := _left_behind(descriptors, children, threads):
        if time.monotonic() > deadline:
            complaints += left
            break
        time.sleep(0.01)
    if complaints:
        pytest.fail("left behind: " + "; ".join(complaints), pytrace=False)


def _left_behind(descriptors: dict[int, str], children: dict[int, str], threads: set[threading.Thread]) -> list[str]:
    new = [
        f"descriptor {fd} ({target})"
        for fd, target in _descriptors().items()
        if descriptors.get(fd) != target and not target.startswith("/dev/urandom")
    ]
    new += [f"child {pid} ({what})" for pid, what in _children().items() if _is_new(what, children.get(pid))]
    new += [f"thread {thread.name}" for thread in threading.enumerate() if thread not in threads]
    return new


def _is_new(child: str, before: str | None) -> bool:
    """A zombie is the fault of the test in which it died, and of no later one."""
    return before is None or (child == "zombie" and before != "zombie")


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listdir itself had open
    return found


def _children() -> dict[int, str]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return {}
    found = {}
    for child in psutil.Process().children():
        try:
            zombie = child.status() == psutil.STATUS_ZOMBIE
            found[child.pid] = "zombie" if zombie else " ".join(child.cmdline())
        except psutil.NoSuchProcess:
            continue
    return found


class _WatchedLoop(asyncio.SelectorEventLoop):
    """Notes which tasks are still there when the main coroutine has ended, and what nobody caught."""

    def __init__(self, complaints: list[str]) -> None:
        super().__init__()
        self._complaints = complaints
        self._main_ended = False
        self.set_exception_handler(self._uncaught)

    def run_until_complete(self, future: Any) -> Any:
        main, self._main_ended = not self._main_ended, True  # later calls only cancel what is left
        try:
            return super().run_until_complete(future)
        finally:
            if main and sys.exc_info()[0] is None:
                self._complaints += [f"task {task!r}" for task in asyncio.all_tasks(self) if not task.done()]

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._complaints.append(f"{context['message']}: {context.get('exception')!r}")


class _WatchedPolicy(asyncio.DefaultEventLoopPolicy):
    def __init__(self, complaints: list[str]) -> None:
        super().__init__()
        self._complaints = complaints

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _WatchedLoop(self._complaints)
