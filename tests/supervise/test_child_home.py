"""What the home `child` adds to a child process: weights, and OOM kills told apart (with a made-up cgroup)."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from accelerd.base.cgroup import Cgroup, cgroup_of, find_cgroup
from accelerd.base.exits import Cause
from accelerd.supervise.homes.child_home import ChildHome
from tests.supervise.bench import SupervisorBench


class MadeUpKernel:
    """/proc/self/cgroup and the control group that it names."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.sys = folder / "proc", folder / "sys"
        self.group = self.sys / "fs/cgroup/user.slice/accelerd.service"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self/cgroup").write_text("1:name=systemd:/x\n0::/user.slice/accelerd.service\n")
        self.group.mkdir(parents=True)
        (self.group / "cgroup.procs").write_text("1\n")
        self.kills(0)

    def kills(self, count: int) -> None:
        (self.group / "memory.events").write_text(f"low 0\nhigh 3\nmax 9\noom 5\noom_kill {count}\noom_group_kill 0\n")


@pytest.fixture
def kernel(bench: SupervisorBench, tmp_path: Path) -> MadeUpKernel:
    made = MadeUpKernel(tmp_path / "kernel")
    home = ChildHome(proc=made.proc, sys=made.sys)
    bench.options |= {"homes": {"child": home}}
    return made


async def test_oom_kill_is_told_apart_from_a_kill(bench: SupervisorBench, kernel: MadeUpKernel) -> None:
    kernel.kills(4)  # before our time
    async with bench:
        first, second = bench.start(name="a"), bench.start(name="b")
        await bench.ready(first)
        await bench.ready(second)
        kernel.kills(5)
        os.kill(bench.pid(first), signal.SIGKILL)
        exit = await bench.gone(first)
        assert (exit.cause, exit.status) == (Cause.OOM_KILLED, -signal.SIGKILL)
        os.kill(bench.pid(second), signal.SIGKILL)  # by a person: the count has not risen
        assert (await bench.gone(second)).cause is Cause.SIGNALED


async def test_our_own_kill_is_never_one(bench: SupervisorBench, kernel: MadeUpKernel) -> None:
    async with bench:
        number = bench.start("ignore-term", stop_timeout=0.1)
        await bench.ready(number)
        kernel.kills(1)
        assert (await bench.stopped(number)).cause is Cause.STOPPED


async def test_machine_without_control_groups(bench: SupervisorBench, tmp_path: Path) -> None:
    bench.options |= {"homes": {"child": ChildHome(proc=tmp_path, sys=tmp_path)}}
    async with bench:
        number = bench.start()
        await bench.ready(number)
        os.kill(bench.pid(number), signal.SIGKILL)
        assert (await bench.gone(number)).cause is Cause.SIGNALED


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_a_model_goes_before_the_daemon(bench: SupervisorBench) -> None:
    async with bench:
        number = bench.start(nice=19, oom_score_adjust=400)
        await bench.ready(number)
        pid = bench.pid(number)
        assert oom_score(pid) == 400
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19  # the tests themselves may be nice


def test_what_a_control_group_tells(tmp_path: Path) -> None:
    kernel = MadeUpKernel(tmp_path)
    group = cgroup_of(kernel.proc, kernel.sys, "self")
    assert group is not None
    assert group.folder == kernel.group
    assert group.populated() is None
    (kernel.group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert group.populated() is True
    assert group.kill() is True
    assert (kernel.group / "cgroup.kill").read_text() == "1"
    assert Cgroup(tmp_path / "gone").populated() is False
    assert Cgroup(tmp_path / "gone").kill() is True
    assert cgroup_of(kernel.proc, kernel.sys, 12345) is None
    assert find_cgroup(kernel.sys, "") is None
    assert find_cgroup(kernel.sys, "/elsewhere") is None


async def test_a_child_may_lock_as_much_memory_as_its_user_may(bench: SupervisorBench) -> None:
    """An NPU's buffers count as locked, and what a login gives at first is far too little."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 1024, before[1]))
    try:
        async with bench:
            number = bench.start()
            await bench.ready(number)
            assert resource.prlimit(bench.pid(number), resource.RLIMIT_MEMLOCK) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
