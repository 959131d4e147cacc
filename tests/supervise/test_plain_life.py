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
from accelerd.engines.base import Dialect, LaunchPlan
from accelerd.engines.http import request
from accelerd.supervise.homes.child_home import ChildHome, ChildProcess, Spawner
from tests.supervise.bench import SupervisorBench, alive


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_ready_then_stopped(bench: SupervisorBench, tcp: bool) -> None:
    bench.engine.tcp = tcp
    async with bench:
        number = bench.start()
        endpoint, secret = await bench.heard.wait("ready", number)
        assert (endpoint, secret) == (bench.engine.plans[0].endpoint, bench.engine.plans[0].secret)
        pid = bench.pid(number)
        assert os.getsid(pid) == pid
        exit = await bench.stopped(number)
        assert (exit.cause, exit.status) == (Cause.STOPPED, 0)
        assert not alive(pid)
        assert bench.recorded("term")


async def test_the_line_that_the_check_of_the_key_causes_is_not_shown(bench: SupervisorBench) -> None:
    bench.engine.dialect = Dialect(key_refused="unauthorized: Invalid API Key")
    async with bench:
        number = bench.start("key-words,chatter:20,slow-load:0.1")
        endpoint, _ = await bench.heard.wait("ready", number)
        for _ in range(2):
            assert (await request(endpoint, "/v1/models", within=5, bearer="of a stranger"))[0] == 401
        await bench.stopped(number)
        said = [line for line in bench.supervisor.output("m").lines() if "Invalid API Key" in line]
        assert len(said) == 2, "those of the stranger"


def test_the_same_on_the_loop_that_the_daemon_uses(bench: SupervisorBench) -> None:
    before = {child.pid for child in psutil.Process().children()}  # pytest's own, a PAM session's helper for one

    async def scenario() -> None:
        async with bench:
            numbers = [bench.start("hold-stdout", name=f"m{i}") for i in range(4)]
            for number in numbers:
                await bench.ready(number)
            os.kill(bench.pid(numbers[0]), signal.SIGKILL)
            assert (await bench.gone(numbers[0])).cause is Cause.SIGNALED
            assert (await bench.stopped(numbers[1])).cause is Cause.STOPPED
            bench.supervisor.probe(numbers[2])
            assert await bench.heard.wait("probed", numbers[2]) is True
            left = {child.pid for child in psutil.Process().children()} - before
            assert left == {bench.pid(number) for number in numbers[2:]}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_child_has_exactly_the_planned_environment_and_the_marks(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start()
        await bench.ready(number)
        child = psutil.Process(bench.pid(number))
        given = child.environ()
        assert given.pop(names.ENV_INSTANCE)
        assert given.pop(names.ENV_OWNER) == str(bench.roots.runtime)
        assert given == bench.engine.plans[0].env
        assert child.cwd() == str(bench.roots.home)
        assert os.readlink(f"/proc/{child.pid}/fd/0") == "/dev/null"
        assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert {int(fd) for fd in os.listdir(f"/proc/{child.pid}/fd")} >= {0, 1, 2}
        assert os.readlink(f"/proc/{child.pid}/fd/1") == os.readlink(f"/proc/{child.pid}/fd/2")


@pytest.mark.parametrize("program", ["/no/such/llama-server", "no-such-llama-server"])
async def test_missing_program(bench: SupervisorBench, program: str) -> None:
    bench.engine.edit = lambda _, plan: replace(plan, argv=(program,))
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.NO_PROGRAM
    assert program in exit.message


async def test_program_not_executable(bench: SupervisorBench, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    bench.engine.edit = lambda _, plan: replace(plan, argv=(str(program),))
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.NO_PROGRAM
    assert "not executable" in exit.message


async def test_program_of_a_missing_interpreter(bench: SupervisorBench, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/no/such/interpreter\n")
    program.chmod(0o755)
    bench.engine.edit = lambda _, plan: replace(plan, argv=(str(program),))
    async with bench:
        exit = await bench.gone(bench.start())
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
async def test_spawn_fails_for_want_of_something(bench: SupervisorBench, number: int) -> None:
    bench.options["homes"] = {"child": ChildHome(StarvedSpawner(number))}
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.cause is Cause.SPAWN_FAILED
    assert exit.cause not in PERMANENT
    assert errno.errorcode[number] in exit.message


@pytest.mark.parametrize(
    ("detail", "cause"),
    [("no-program", Cause.NO_PROGRAM), ("no-model", Cause.NO_MODEL), ("refused", Cause.REFUSED)],
)
async def test_plan_that_cannot_be_made(bench: SupervisorBench, detail: str, cause: Cause) -> None:
    def refuse(_: int, plan: LaunchPlan) -> LaunchPlan:
        raise AccelError("model_failed", "cannot do that: try this", cause=detail)

    bench.engine.edit = refuse
    async with bench:
        exit = await bench.gone(bench.start())
    assert (exit.cause, exit.message) == (cause, "cannot do that: try this")


async def test_exits_before_listening(bench: SupervisorBench) -> None:
    async with bench:
        began = time.monotonic()
        exit = await bench.gone(bench.start("exit:7"))
        assert time.monotonic() - began < 18  # and not after start_timeout
    assert (exit.cause, exit.status) == (Cause.EXITED, 7)
    assert "exited with status 7 after" in exit.message
    assert exit.tail[-1] == "E main: exiting due to mode exit:7"


async def test_unknown_flag_and_only_the_last_twenty_lines(bench: SupervisorBench) -> None:
    script = 'i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo "line $i"; done; exit 3'
    bench.engine.edit = lambda _, plan: replace(plan, argv=("/bin/sh", "-c", script))
    async with bench:
        exit = await bench.gone(bench.start())
    assert exit.status == 3
    assert exit.tail == tuple(f"line {i}" for i in range(31, 51))


async def test_exits_with_0_while_loading(bench: SupervisorBench) -> None:
    async with bench:
        exit = await bench.gone(bench.start("exit:0"))
    assert (exit.cause, exit.status) == (Cause.EXITED, 0)


async def test_killed_while_loading_is_signaled(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("health-503")
        await bench.until(lambda: bool(bench.recorded("spawn")))
        os.kill(bench.pid(number), signal.SIGKILL)
        exit = await bench.gone(number)
    assert (exit.cause, exit.status) == (Cause.SIGNALED, -signal.SIGKILL)
    assert "SIGKILL" in exit.message


async def test_exit_when_ready_is_told(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("exit-late:1:4")
        await bench.heard.wait("ready", number)
        exit = await bench.gone(number)
        assert bench.heard.of(number) == ["ready", "gone"]
    assert (exit.cause, exit.status) == (Cause.EXITED, 4)


async def test_exit_code_of_an_asked_stop_is_no_failure(bench: SupervisorBench) -> None:
    script = 'trap "exit 9" TERM; touch "$0"; while :; do sleep 0.01; done'
    flag = bench.roots.home / "trapped"
    bench.engine.edit = lambda _, plan: replace(plan, argv=("/bin/sh", "-c", script, str(flag)))
    async with bench:
        number = bench.start()
        await bench.until(flag.exists)
        exit = await bench.stopped(number)
    assert (exit.cause, exit.status) == (Cause.STOPPED, 9)


async def test_crash_between_the_order_to_stop_and_its_signal(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start()
        await bench.ready(number)
        os.kill(bench.pid(number), signal.SIGKILL)
        exit = await bench.stopped(number)
    assert exit.cause is Cause.STOPPED


async def test_never_listens(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("never-listen", start_timeout=0.3)
        exit = await bench.gone(number)
    assert exit.cause is Cause.LOAD_TIMEOUT
    assert "no progress for 0.3 s" in exit.message
    assert "I main: fake server" in exit.tail


async def test_a_plan_that_is_never_ready(bench: SupervisorBench) -> None:
    """An engine's program or files may not answer; the time for the start is the time for its plan, too."""
    async with bench:
        bench.engine.gate = asyncio.Event()
        exit = await bench.gone(bench.start("ok", start_timeout=0.2))
        assert exit.cause is Cause.LOAD_TIMEOUT
        assert exit.message == (
            "cannot tell how to start m within 0.2 s (start_timeout): its program or its files do not answer"
        )
        bench.engine.gate.set()
        await bench.ready(bench.start("ok"))


@pytest.mark.parametrize("sign", ["chatter:50", f"grow:{4 << 20}"])
async def test_observed_progress_extends_the_deadline(bench: SupervisorBench, sign: str) -> None:
    async with bench:
        number = bench.start(f"slow-load:1.5,{sign}", start_timeout=0.6)
        await bench.ready(number)
        progress = bench.supervisor.progress(number)
        assert progress is not None
        assert progress.resident is not None
        assert progress.resident > 1 << 20
        assert progress.line == "I main: model loaded"


async def test_hard_cap_ends_even_a_busy_load(bench: SupervisorBench) -> None:
    async with bench:
        began = time.monotonic()
        exit = await bench.gone(bench.start("health-503,chatter:20", start_timeout=0.15))
        assert time.monotonic() - began >= 1.5
    assert exit.cause is Cause.LOAD_TIMEOUT
    assert "all the time" in exit.message


async def test_health_is_503_for_ever(bench: SupervisorBench) -> None:
    async with bench:
        exit = await bench.gone(bench.start("health-503", start_timeout=0.4))
    assert exit.cause is Cause.LOAD_TIMEOUT


async def test_sigterm_ignored(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("ignore-term", stop_timeout=0.2)
        await bench.ready(number)
        began = time.monotonic()
        exit = await bench.stopped(number)
        assert time.monotonic() - began >= 0.2
        assert bench.heard.of(number) == ["ready", "killing", "gone"]
    assert (exit.cause, exit.status) == (Cause.STOPPED, -signal.SIGKILL)


async def test_stop_while_it_loads(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("health-503")
        await bench.until(lambda: bool(bench.recorded("spawn")))
        exit = await bench.stopped(number)
        assert bench.heard.of(number) == ["gone"]
        assert len(bench.recorded("spawn")) == 1
    assert exit.cause is Cause.STOPPED


async def test_stop_while_the_plan_is_made(bench: SupervisorBench) -> None:
    bench.engine.gate = asyncio.Event()
    async with bench:
        number = bench.start()
        await asyncio.sleep(0)
        exit = await bench.stopped(number)
    assert exit.cause is Cause.STOPPED
    assert bench.engine.plans == []


async def test_stop_at_once(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start()
        exit = await bench.stopped(number)
        assert bench.heard.of(number) == ["gone"]
    assert exit.cause is Cause.STOPPED
    assert bench.recorded("spawn") == []


async def test_stop_at_any_moment_of_a_start(bench: SupervisorBench) -> None:
    async with bench:
        for step in range(12):
            number = bench.start()
            await asyncio.sleep(step * 0.012)
            exit = await bench.stopped(number)
            assert exit.cause is Cause.STOPPED


async def test_stop_and_start_twice(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start()
        bench.supervisor.start(number, ModelSpec("m", engine="fake"))
        await bench.ready(number)
        bench.supervisor.stop(number)
        bench.supervisor.stop(number, Cause.UNHEALTHY)
        exit = await bench.gone(number)
        bench.supervisor.stop(number)
        assert exit.cause is Cause.STOPPED
        assert len(bench.engine.plans) == 1
