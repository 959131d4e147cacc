"""The ordinary life of an instance, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from accelerd.base import names
from accelerd.base.errors import AccelError
from accelerd.base.exits import PERMANENT, Cause
from accelerd.config.model import ModelSpec
from accelerd.engines.base import LaunchPlan
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.process.spawn import ChildProcess, Spawner
from tests.supervise.house import InstanceContext, alive


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_ready_then_stopped(house: InstanceContext, tcp: bool) -> None:
    house.engine.tcp = tcp
    async with house:
        number = house.start()
        endpoint, secret = await house.heard.wait("ready", number)
        assert (endpoint, secret) == (house.engine.plans[0].endpoint, house.engine.plans[0].secret)
        pid = house.pid(number)
        assert os.getsid(pid) == pid
        exit = await house.stopped(number)
        assert (exit.cause, exit.status) == (Cause.STOPPED, 0)
        assert not alive(pid)
        assert house.recorded("term")


def test_the_same_on_the_loop_that_the_daemon_uses(house: InstanceContext) -> None:
    before = {child.pid for child in psutil.Process().children()}  # pytest's own, a PAM session's helper for one

    async def scenario() -> None:
        async with house:
            numbers = [house.start("hold-stdout", name=f"m{i}") for i in range(4)]
            for number in numbers:
                await house.ready(number)
            os.kill(house.pid(numbers[0]), signal.SIGKILL)
            assert (await house.gone(numbers[0])).cause is Cause.SIGNALED
            assert (await house.stopped(numbers[1])).cause is Cause.STOPPED
            house.supervisor.probe(numbers[2])
            assert await house.heard.wait("probed", numbers[2]) is True
            left = {child.pid for child in psutil.Process().children()} - before
            assert left == {house.pid(number) for number in numbers[2:]}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_child_has_exactly_the_planned_environment_and_the_marks(house: InstanceContext) -> None:
    async with house:
        number = house.start()
        await house.ready(number)
        child = psutil.Process(house.pid(number))
        given = child.environ()
        assert given.pop(names.ENV_INSTANCE)
        assert given.pop(names.ENV_OWNER) == str(house.roots.runtime)
        assert given == house.engine.plans[0].env
        assert child.cwd() == str(house.roots.home)
        assert os.readlink(f"/proc/{child.pid}/fd/0") == "/dev/null"
        assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert {int(fd) for fd in os.listdir(f"/proc/{child.pid}/fd")} >= {0, 1, 2}
        assert os.readlink(f"/proc/{child.pid}/fd/1") == os.readlink(f"/proc/{child.pid}/fd/2")


@pytest.mark.parametrize("program", ["/no/such/llama-server", "no-such-llama-server"])
async def test_missing_program(house: InstanceContext, program: str) -> None:
    house.engine.edit = lambda _, plan: replace(plan, argv=(program,))
    async with house:
        exit = await house.gone(house.start())
    assert exit.cause is Cause.NO_PROGRAM
    assert program in exit.message


async def test_program_not_executable(house: InstanceContext, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    house.engine.edit = lambda _, plan: replace(plan, argv=(str(program),))
    async with house:
        exit = await house.gone(house.start())
    assert exit.cause is Cause.NO_PROGRAM
    assert "not executable" in exit.message


async def test_program_of_a_missing_interpreter(house: InstanceContext, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    house.engine.edit = lambda _, plan: replace(plan, argv=(str(program),))
    async with house:
        exit = await house.gone(house.start())
    assert exit.cause is Cause.NO_PROGRAM
    assert "No such file" in exit.message


class StarvedSpawner(Spawner):
    """fork fails."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def spawn(self, argv: Sequence[str], env: Mapping[str, str], *rest: Any) -> ChildProcess:
        raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
async def test_spawn_fails_for_want_of_something(house: InstanceContext, number: int) -> None:
    house.options["homes"] = {"child": ChildHome(StarvedSpawner(number))}
    async with house:
        exit = await house.gone(house.start())
    assert exit.cause is Cause.SPAWN_FAILED
    assert exit.cause not in PERMANENT
    assert errno.errorcode[number] in exit.message


@pytest.mark.parametrize(
    ("detail", "cause"),
    [("no-program", Cause.NO_PROGRAM), ("no-model", Cause.NO_MODEL), ("refused", Cause.REFUSED)],
)
async def test_plan_that_cannot_be_made(house: InstanceContext, detail: str, cause: Cause) -> None:
    def refuse(_: int, plan: LaunchPlan) -> LaunchPlan:
        raise AccelError("model_failed", "cannot do that: try this", cause=detail)

    house.engine.edit = refuse
    async with house:
        exit = await house.gone(house.start())
    assert (exit.cause, exit.message) == (cause, "cannot do that: try this")


async def test_exits_before_listening(house: InstanceContext) -> None:
    async with house:
        began = time.monotonic()
        exit = await house.gone(house.start("exit:7"))
        assert time.monotonic() - began < 5  # and not after start_timeout
    assert (exit.cause, exit.status) == (Cause.EXITED, 7)
    assert "exited with status 7 after" in exit.message
    assert exit.tail[-1] == "E main: exiting due to mode exit:7"


async def test_unknown_flag_and_only_the_last_twenty_lines(house: InstanceContext) -> None:
    script = 'i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo "line $i"; done; exit 3'
    house.engine.edit = lambda _, plan: replace(plan, argv=("/bin/sh", "-c", script))
    async with house:
        exit = await house.gone(house.start())
    assert exit.status == 3
    assert exit.tail == tuple(f"line {i}" for i in range(31, 51))


async def test_exits_with_0_while_loading(house: InstanceContext) -> None:
    async with house:
        exit = await house.gone(house.start("exit:0"))
    assert (exit.cause, exit.status) == (Cause.EXITED, 0)


async def test_killed_while_loading_is_signaled(house: InstanceContext) -> None:
    async with house:
        number = house.start("health-503")
        await house.until(lambda: bool(house.recorded("spawn")))
        os.kill(house.pid(number), signal.SIGKILL)
        exit = await house.gone(number)
    assert (exit.cause, exit.status) == (Cause.SIGNALED, -signal.SIGKILL)
    assert "SIGKILL" in exit.message


async def test_exit_when_ready_is_told(house: InstanceContext) -> None:
    async with house:
        number = house.start("exit-late:1:4")
        await house.heard.wait("ready", number)
        exit = await house.gone(number)
        assert house.heard.of(number) == ["ready", "gone"]
    assert (exit.cause, exit.status) == (Cause.EXITED, 4)


async def test_exit_code_of_an_asked_stop_is_no_failure(house: InstanceContext) -> None:
    script = 'trap "exit 9" TERM; touch "$0"; while :; do sleep 0.01; done'
    flag = house.roots.home / "trapped"
    house.engine.edit = lambda _, plan: replace(plan, argv=("/bin/sh", "-c", script, str(flag)))
    async with house:
        number = house.start()
        await house.until(flag.exists)
        exit = await house.stopped(number)
    assert (exit.cause, exit.status) == (Cause.STOPPED, 9)


async def test_crash_between_the_order_to_stop_and_its_signal(house: InstanceContext) -> None:
    async with house:
        number = house.start()
        await house.ready(number)
        os.kill(house.pid(number), signal.SIGKILL)
        exit = await house.stopped(number)
    assert exit.cause is Cause.STOPPED


async def test_never_listens(house: InstanceContext) -> None:
    async with house:
        number = house.start("never-listen", start_timeout=0.3)
        exit = await house.gone(number)
    assert exit.cause is Cause.LOAD_TIMEOUT
    assert "no progress for 0.3 s" in exit.message
    assert "I main: fake server" in exit.tail


@pytest.mark.parametrize("sign", ["chatter:50", f"grow:{4 << 20}"])
async def test_observed_progress_extends_the_deadline(house: InstanceContext, sign: str) -> None:
    async with house:
        number = house.start(f"slow-load:1.5,{sign}", start_timeout=0.6)
        await house.ready(number)
        progress = house.supervisor.progress(number)
        assert progress is not None
        assert progress.resident is not None
        assert progress.resident > 1 << 20
        assert progress.line == "I main: model loaded"


async def test_hard_cap_ends_even_a_busy_load(house: InstanceContext) -> None:
    async with house:
        began = time.monotonic()
        exit = await house.gone(house.start("health-503,chatter:20", start_timeout=0.15))
        assert time.monotonic() - began >= 1.5
    assert exit.cause is Cause.LOAD_TIMEOUT
    assert "all the time" in exit.message


async def test_health_is_503_for_ever(house: InstanceContext) -> None:
    async with house:
        exit = await house.gone(house.start("health-503", start_timeout=0.4))
    assert exit.cause is Cause.LOAD_TIMEOUT


async def test_sigterm_ignored(house: InstanceContext) -> None:
    async with house:
        number = house.start("ignore-term", stop_timeout=0.2)
        await house.ready(number)
        began = time.monotonic()
        exit = await house.stopped(number)
        assert time.monotonic() - began >= 0.2
        assert house.heard.of(number) == ["ready", "killing", "gone"]
    assert (exit.cause, exit.status) == (Cause.STOPPED, -signal.SIGKILL)


async def test_stop_while_it_loads(house: InstanceContext) -> None:
    async with house:
        number = house.start("health-503")
        await house.until(lambda: bool(house.recorded("spawn")))
        exit = await house.stopped(number)
        assert house.heard.of(number) == ["gone"]
        assert len(house.recorded("spawn")) == 1
    assert exit.cause is Cause.STOPPED


async def test_stop_while_the_plan_is_made(house: InstanceContext) -> None:
    house.engine.gate = asyncio.Event()
    async with house:
        number = house.start()
        await asyncio.sleep(0)
        exit = await house.stopped(number)
    assert exit.cause is Cause.STOPPED
    assert house.engine.plans == []


async def test_stop_at_once(house: InstanceContext) -> None:
    async with house:
        number = house.start()
        exit = await house.stopped(number)
        assert house.heard.of(number) == ["gone"]
    assert exit.cause is Cause.STOPPED
    assert house.recorded("spawn") == []


async def test_stop_at_any_moment_of_a_start(house: InstanceContext) -> None:
    async with house:
        for step in range(12):
            number = house.start()
            await asyncio.sleep(step * 0.012)
            exit = await house.stopped(number)
            assert exit.cause is Cause.STOPPED


async def test_stop_and_start_twice(house: InstanceContext) -> None:
    async with house:
        number = house.start()
        house.supervisor.start(number, ModelSpec("m", engine="fake"))
        await house.ready(number)
        house.supervisor.stop(number)
        house.supervisor.stop(number, Cause.UNHEALTHY)
        exit = await house.gone(number)
        house.supervisor.stop(number)
        assert exit.cause is Cause.STOPPED
        assert len(house.engine.plans) == 1
