"""Whatever an engine forks, `gone` means that nothing of it is left."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from accelerd.base import names
from accelerd.base.exits import Cause
from accelerd.base.ports import SystemClock
from accelerd.supervise.homes.child_home import ChildHome
from accelerd.supervise.process.processes import InstanceTag, Process, ProcTable
from accelerd.supervise.process.spawn import ChildProcess, Spawner
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.supervise.waiting import SupervisorSettings
from tests.supervise.house import Heard, InstanceContext, alive


async def test_many_deaths_at_once_leave_no_zombie(house: InstanceContext) -> None:
    before = psutil.Process().children()  # pytest's own, a PAM session's helper for one
    async with house:
        numbers = [house.start(name=f"m{i}") for i in range(6)]
        pids = []
        for number in numbers:
            await house.ready(number)
            pids.append(house.pid(number))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for number in numbers:
            exit = await house.gone(number)
            assert (exit.cause, exit.status) == (Cause.SIGNALED, -signal.SIGKILL)
        assert psutil.Process().children() == before  # not even a zombie


async def test_wrapper_that_does_not_forward_the_signal(house: InstanceContext) -> None:
    async with house:
        number = house.start("fork-wrapper")
        await house.ready(number)  # the socket belongs to the wrapper's child: it counts as ours
        server = house.recorded("ready")[0]["pid"]
        assert server != house.pid(number)
        exit = await house.stopped(number)
        assert not alive(server)
    assert exit.cause is Cause.STOPPED


async def test_wrapper_that_exits(house: InstanceContext) -> None:
    async with house:
        exit = await house.gone(house.start("fork-wrapper-exit"))
    assert (exit.cause, exit.status) == (Cause.EXITED, 0)
    assert "must stay in the foreground" in exit.message


@pytest.mark.parametrize("ends", ["stop", "crash"])
async def test_grandchild_in_a_session_of_its_own(house: InstanceContext, ends: str) -> None:
    async with house:
        number = house.start("setsid-grandchild")
        await house.ready(number)
        await house.until(lambda: bool(house.recorded("bystander")))
        stranger = house.recorded("bystander")[0]["pid"]
        assert os.getsid(stranger) == stranger
        if ends == "stop":
            await house.stopped(number)
        else:
            os.kill(house.pid(number), signal.SIGKILL)
            await house.gone(number)
        assert not alive(stranger)


async def test_grandchild_that_holds_stdout_does_not_delay_the_end(house: InstanceContext) -> None:
    async with house:
        number = house.start("hold-stdout")
        await house.ready(number)
        await house.until(lambda: bool(house.recorded("bystander")))
        os.kill(house.pid(number), signal.SIGKILL)
        async with asyncio.timeout(2):
            exit = await house.gone(number)
        assert not alive(house.recorded("bystander")[0]["pid"])
    assert exit.cause is Cause.SIGNALED


async def test_holder_that_cannot_be_known_as_ours_does_not_delay_the_end(house: InstanceContext) -> None:
    """It has left the session and cleaned its environment, and holds the pipe."""
    script = "setsid env -i sleep 60 & echo $! ; wait"
    house.engine.edit = lambda _, plan: replace(plan, argv=("/bin/sh", "-c", script))
    async with house:
        number = house.start()
        ring = house.supervisor.output("m")
        await house.until(lambda: bool(ring.lines()))
        stranger = int(ring.lines()[0])
        await house.until(lambda: alive(stranger) and os.getsid(stranger) == stranger)
        await house.until(lambda: b"sleep" in Path(f"/proc/{stranger}/cmdline").read_bytes())
        async with asyncio.timeout(2):
            exit = await house.stopped(number)
        assert exit.cause is Cause.STOPPED
        os.kill(stranger, signal.SIGKILL)


class Undying(ProcTable):
    """A process in state D: found again and again, whatever is sent to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = True

    def members(self, tag: InstanceTag, session: int | None) -> list[Process]:
        found = super().members(tag, session)
        return [*found, Process(2**22 - 1, 1, "hung")] if self.stuck else found


async def test_what_cannot_be_killed_is_never_gone(house: InstanceContext, caplog: pytest.LogCaptureFixture) -> None:
    house.options["limits"] = SupervisorSettings(slow_after=0.1, loud_after=0.3)
    table = house.options["table"] = Undying()
    async with house:
        number = house.start()
        await house.ready(number)
        house.supervisor.stop(number)
        await house.heard.wait("killing", number)
        await house.until(lambda: "cannot end m" in caplog.text)
        assert "hung[" in caplog.text
        assert house.heard.of(number) == ["ready", "killing"]
        assert house.supervisor.facts(number) is not None
        table.stuck = False
        exit = await house.gone(number)
    assert exit.cause is Cause.STOPPED


async def test_close_gives_up_in_time_and_says_so(house: InstanceContext, caplog: pytest.LogCaptureFixture) -> None:
    house.options |= {"table": Undying(), "limits": SupervisorSettings(close_patience=0.2)}
    await house.__aenter__()
    number = house.start()
    await house.ready(number)
    pid = house.pid(number)
    async with asyncio.timeout(10):
        assert not await house.supervisor.close(0.1)
    assert not alive(pid)
    assert "given up" in caplog.text
    assert "gone" not in house.heard.of(number)
    await house.supervisor.sweep_leftovers()  # as the next start of the daemon would


def test_only_the_very_process_is_signalled() -> None:
    child = subprocess.Popen(["sleep", "60"], env={names.ENV_INSTANCE: "a34-test", "PATH": os.environ["PATH"]})
    try:
        table = ProcTable()
        found = table.members(InstanceTag("a34-test", "/nowhere"), None)
        assert [process.pid for process in found] == [child.pid]
        later = Process(child.pid, found[0].started + 1, found[0].name)  # as if the pid had been reused
        assert not table.signal(later, signal.SIGKILL)
        assert child.poll() is None
        assert table.signal(found[0], signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
    assert not table.signal(found[0], signal.SIGKILL)


class NotingSpawner(Spawner):
    """Notes in which order children are told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[int] = []

    def spawn(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        on_output: Callable[[bytes], None],
        on_exit: Callable[[], None],
    ) -> ChildProcess:
        child = super().spawn(argv, env, cwd, on_output, on_exit)
        send = child.signal

        def noting(number: int) -> None:
            self.told.append(child.pid)
            send(number)

        child.signal = noting  # type: ignore[method-assign]
        return child


async def test_close_stops_all_the_youngest_first(house: InstanceContext) -> None:
    spawner = NotingSpawner()
    house.options["homes"] = {"child": ChildHome(spawner)}
    await house.__aenter__()
    numbers = [house.start(name=f"m{i}") for i in range(3)]
    pids = []
    for number in numbers:
        await house.ready(number)
        pids.append(house.pid(number))
    assert await house.supervisor.close(5)
    assert spawner.told == pids[::-1]
    assert [house.heard.of(number) for number in numbers] == [["ready", "gone"]] * 3
    late = house.start()
    exit = await house.gone(late)
    assert exit.cause is Cause.STOPPED


async def test_kill_all_asks_nobody(house: InstanceContext) -> None:
    async with house:
        numbers = [house.start("ignore-term", stop_timeout=60), house.start("health-503", name="n", stop_timeout=60)]
        await house.ready(numbers[0])
        for number in numbers:
            house.supervisor.stop(number)
        await house.until(lambda: bool(house.recorded("term")))
        house.supervisor.kill_all()
        async with asyncio.timeout(3):
            for number in numbers:
                assert (await house.gone(number)).cause is Cause.STOPPED


DAEMON = """
import asyncio, sys
from pathlib import Path
from accelerd.ports import Roots, SystemClock
from accelerd.supervise.child_home import ChildHome
from accelerd.supervise.waiting import Limits
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.supervise.spawn import Child, Spawner
from tests.supervise.house import FakeEngine, Heard
from accelerd.config.model import ModelSpec

async def main(runtime):
    roots = Roots(runtime, runtime, runtime, runtime, home=runtime)
    heard = Heard()
    supervisor = ProcessSupervisor(heard, {"fake": FakeEngine(roots.instances)}, roots, SystemClock())
    supervisor.start(1, ModelSpec("m", engine="fake", env=(("FAKE_MODE", "setsid-grandchild"),)))
    await heard.wait("ready", 1)
    print(supervisor.facts(1).pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_children_of_a_killed_daemon(house: InstanceContext, caplog: pytest.LogCaptureFixture) -> None:
    """PDEATHSIG takes the engine itself; the grandchild that escaped is found by its mark at the next start."""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(house.roots.runtime), stdout=asyncio.subprocess.PIPE
    )
    assert daemon.stdout is not None
    engine = int(await daemon.stdout.readline())
    daemon.kill()
    await daemon.wait()
    await house.until(lambda: not alive(engine))
    left = ProcTable().owned(str(house.roots.runtime))
    assert len(left) == 1
    assert list(house.roots.instances.glob("*.sock"))
    caplog.set_level(logging.WARNING)
    supervisor = ProcessSupervisor(
        Heard(), {}, house.roots, SystemClock(), limits=SupervisorSettings(leftover_grace=0.2)
    )
    assert await supervisor.sweep_leftovers() == 1
    assert not alive(left[0].pid)
    said = [record for record in caplog.records if getattr(record, "message_id", None) == names.MSG_LEFTOVER]
    assert ["SIGTERM" in said[0].getMessage(), "SIGKILL" in said[1].getMessage()] == [True, True]
    assert not list(house.roots.instances.glob("*.sock"))
    assert await supervisor.sweep_leftovers() == 0
