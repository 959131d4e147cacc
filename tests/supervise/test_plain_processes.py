"""Whatever an engine forks, `gone` means that nothing of it is left."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from accelerd.base import names
from accelerd.base.exits import Cause
from accelerd.base.ports import SystemClock
from accelerd.supervise.homes.child_home import ChildHome, ChildProcess, Spawner
from accelerd.supervise.process.processes import InstanceTag, Process, ProcessTable
from accelerd.supervise.supervisor import ProcessSupervisor
from accelerd.supervise.waiting import SupervisorLimits
from tests.harness import ROOT
from tests.supervise.bench import Heard, SupervisorBench, alive


async def test_many_deaths_at_once_leave_no_zombie(bench: SupervisorBench) -> None:
    before = psutil.Process().children()  # pytest's own, a PAM session's helper for one
    async with bench:
        numbers = [bench.start(name=f"m{i}") for i in range(6)]
        pids = []
        for number in numbers:
            await bench.ready(number)
            pids.append(bench.pid(number))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for number in numbers:
            exit = await bench.gone(number)
            assert (exit.cause, exit.status) == (Cause.SIGNALED, -signal.SIGKILL)
        assert psutil.Process().children() == before  # not even a zombie


async def test_wrapper_that_does_not_forward_the_signal(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("fork-wrapper")
        await bench.ready(number)  # the socket belongs to the wrapper's child: it counts as ours
        server = bench.recorded("ready")[0]["pid"]
        assert server != bench.pid(number)
        exit = await bench.stopped(number)
        assert not alive(server)
    assert exit.cause is Cause.STOPPED


async def test_wrapper_that_exits(bench: SupervisorBench) -> None:
    async with bench:
        exit = await bench.gone(bench.start("fork-wrapper-exit"))
    assert (exit.cause, exit.status) == (Cause.EXITED, 0)
    assert "must stay in the foreground" in exit.message


@pytest.mark.parametrize("ends", ["stop", "crash"])
async def test_grandchild_in_a_session_of_its_own(bench: SupervisorBench, ends: str) -> None:
    async with bench:
        number = bench.start("setsid-grandchild")
        await bench.ready(number)
        await bench.until(lambda: bool(bench.recorded("bystander")))
        stranger = bench.recorded("bystander")[0]["pid"]
        assert os.getsid(stranger) == stranger
        if ends == "stop":
            await bench.stopped(number)
        else:
            os.kill(bench.pid(number), signal.SIGKILL)
            await bench.gone(number)
        assert not alive(stranger)


async def test_grandchild_that_holds_stdout_does_not_delay_the_end(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start("hold-stdout")
        await bench.ready(number)
        await bench.until(lambda: bool(bench.recorded("bystander")))
        os.kill(bench.pid(number), signal.SIGKILL)
        async with asyncio.timeout(2):
            exit = await bench.gone(number)
        assert not alive(bench.recorded("bystander")[0]["pid"])
    assert exit.cause is Cause.SIGNALED


async def test_holder_that_cannot_be_known_as_ours_does_not_delay_the_end(bench: SupervisorBench) -> None:
    """It has left the session and cleaned its environment, and holds the pipe."""
    script = "setsid env -i sleep 60 & echo $! ; wait"
    bench.engine.edit = lambda _, plan: replace(plan, argv=("/bin/sh", "-c", script))
    async with bench:
        number = bench.start()
        ring = bench.supervisor.output("m")
        await bench.until(lambda: bool(ring.lines()))
        stranger = int(ring.lines()[0])
        await bench.until(lambda: alive(stranger) and os.getsid(stranger) == stranger)
        await bench.until(lambda: b"sleep" in Path(f"/proc/{stranger}/cmdline").read_bytes())
        async with asyncio.timeout(2):
            exit = await bench.stopped(number)
        assert exit.cause is Cause.STOPPED
        with suppress(ProcessLookupError):
            os.kill(stranger, signal.SIGKILL)


class Undying(ProcessTable):
    """A process in state D: found again and again, whatever is sent to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = True

    def members(self, tag: InstanceTag, session: int | None) -> list[Process]:
        found = super().members(tag, session)
        return [*found, Process(2**22 - 1, 1, "hung")] if self.stuck else found


async def test_what_cannot_be_killed_is_never_gone(bench: SupervisorBench, caplog: pytest.LogCaptureFixture) -> None:
    bench.options["limits"] = SupervisorLimits(slow_after=0.1, loud_after=0.3)
    table = bench.options["table"] = Undying()
    async with bench:
        number = bench.start()
        await bench.ready(number)
        bench.supervisor.stop(number)
        await bench.heard.wait("killing", number)
        await bench.until(lambda: "cannot end m" in caplog.text)
        assert "hung[" in caplog.text
        assert bench.heard.of(number) == ["ready", "killing"]
        assert bench.supervisor.facts(number) is not None
        table.stuck = False
        exit = await bench.gone(number)
    assert exit.cause is Cause.STOPPED


async def test_close_gives_up_in_time_and_says_so(bench: SupervisorBench, caplog: pytest.LogCaptureFixture) -> None:
    bench.options |= {"table": Undying(), "limits": SupervisorLimits(close_patience=0.2)}
    await bench.__aenter__()
    number = bench.start()
    await bench.ready(number)
    pid = bench.pid(number)
    async with asyncio.timeout(10):
        assert not await bench.supervisor.close(0.1)
    assert not alive(pid)
    assert "giving up" in caplog.text
    assert "gone" not in bench.heard.of(number)
    await bench.supervisor.sweep_leftovers()  # as the next start of the daemon would


def test_only_the_very_process_is_signalled() -> None:
    child = subprocess.Popen(["sleep", "60"], env={names.ENV_INSTANCE: "a34-test", "PATH": os.environ["PATH"]})
    try:
        table = ProcessTable()
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


def test_a_process_that_executes_its_program_is_not_overlooked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has taken the old environment away and not set up the new one yet."""
    tag = InstanceTag("a35-test", "/nowhere")
    (tmp_path / "77").mkdir()

    def show(environment: str, start: int) -> None:
        fields = ["S", "1", *["0"] * 17, "5", *["0"] * 27, str(start), str(start + len(environment)), "0"]
        (tmp_path / "77/stat").write_text(f"77 (sleep) {' '.join(fields)}\n")
        (tmp_path / "77/environ").write_text(environment)

    def moment(seconds: float) -> None:
        show("\0".join(f"{name}={value}" for name, value in tag.environment().items()), 4096)

    show("", 0)
    monkeypatch.setattr("time.sleep", moment)
    assert [process.pid for process in ProcessTable(tmp_path).members(tag, None)] == [77]
    show("", 0)
    assert [process.pid for process in ProcessTable(tmp_path).owned("/nowhere")] == [77]


LOOK = """
import sys, time
from accelerd.supervise.process.processes import ProcessTable
time.sleep = lambda seconds: sys.exit("it waits for one that may not be looked into")
print(ProcessTable().owned("/nowhere"))
"""


def test_what_is_outside_of_its_user_namespace_is_not_waited_for() -> None:
    """As in a toolbox, where all of the user's processes can be seen and none looked into."""
    argv = ["unshare", "--user", "--map-current-user", sys.executable, "-c", LOOK]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


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


async def test_close_stops_all_the_youngest_first(bench: SupervisorBench) -> None:
    spawner = NotingSpawner()
    bench.options["homes"] = {"child": ChildHome(spawner)}
    await bench.__aenter__()
    numbers = [bench.start(name=f"m{i}") for i in range(3)]
    pids = []
    for number in numbers:
        await bench.ready(number)
        pids.append(bench.pid(number))
    assert await bench.supervisor.close(5)
    assert spawner.told == pids[::-1]
    assert [bench.heard.of(number) for number in numbers] == [["ready", "gone"]] * 3
    late = bench.start()
    exit = await bench.gone(late)
    assert exit.cause is Cause.STOPPED


async def test_kill_all_asks_nobody(bench: SupervisorBench) -> None:
    async with bench:
        numbers = [bench.start("ignore-term", stop_timeout=60), bench.start("health-503", name="n", stop_timeout=60)]
        await bench.ready(numbers[0])
        for number in numbers:
            bench.supervisor.stop(number)
        await bench.until(lambda: bool(bench.recorded("term")))
        bench.supervisor.kill_all()
        async with asyncio.timeout(3):
            for number in numbers:
                assert (await bench.gone(number)).cause is Cause.STOPPED


DAEMON = """
import asyncio, sys
from pathlib import Path
from accelerd.base.ports import Roots, SystemClock
from accelerd.supervise.supervisor import ProcessSupervisor
from tests.supervise.bench import FakeEngine, Heard
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


async def test_children_of_a_killed_daemon(bench: SupervisorBench, caplog: pytest.LogCaptureFixture) -> None:
    """PDEATHSIG takes the engine itself; the grandchild that escaped is found by its mark at the next start."""
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(bench.roots.runtime), stdout=asyncio.subprocess.PIPE
    )
    assert daemon.stdout is not None
    engine = int(await daemon.stdout.readline())
    daemon.kill()
    await daemon.wait()
    await bench.until(lambda: not alive(engine))
    left = ProcessTable().owned(str(bench.roots.runtime))
    assert len(left) == 1
    assert list(bench.roots.instances.glob("*.sock"))
    caplog.set_level(logging.WARNING)
    supervisor = ProcessSupervisor(Heard(), {}, bench.roots, SystemClock(), limits=SupervisorLimits(leftover_grace=0.2))
    assert await supervisor.sweep_leftovers() == 1
    assert not alive(left[0].pid)
    said = [record for record in caplog.records if getattr(record, "message_id", None) == names.MSG_LEFTOVER]
    assert ["SIGTERM" in said[0].getMessage(), "SIGKILL" in said[1].getMessage()] == [True, True]
    assert not list(bench.roots.instances.glob("*.sock"))
    assert await supervisor.sweep_leftovers() == 0
