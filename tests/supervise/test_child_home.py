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
from tests.supervise.house import InstanceContext


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
def kernel(house: InstanceContext, tmp_path: Path) -> MadeUpKernel:
    made = MadeUpKernel(tmp_path / "kernel")
    home = ChildHome(proc=made.proc, sys=made.sys)
    house.options |= {"homes": {"child": home}}
    return made


async def test_oom_kill_is_told_apart_from_a_kill(house: InstanceContext, kernel: MadeUpKernel) -> None:
    kernel.kills(4)  # before our time
    async with house:
        first, second = house.start(name="a"), house.start(name="b")
        await house.ready(first)
        await house.ready(second)
        kernel.kills(5)
        os.kill(house.pid(first), signal.SIGKILL)
        exit = await house.gone(first)
        assert (exit.cause, exit.status) == (Cause.OOM_KILLED, -signal.SIGKILL)
        os.kill(house.pid(second), signal.SIGKILL)  # by a person: the count has not risen
        assert (await house.gone(second)).cause is Cause.SIGNALED


async def test_our_own_kill_is_never_one(house: InstanceContext, kernel: MadeUpKernel) -> None:
    async with house:
        number = house.start("ignore-term", stop_timeout=0.1)
        await house.ready(number)
        kernel.kills(1)
        assert (await house.stopped(number)).cause is Cause.STOPPED


async def test_machine_without_control_groups(house: InstanceContext, tmp_path: Path) -> None:
    house.options |= {"homes": {"child": ChildHome(proc=tmp_path, sys=tmp_path)}}
    async with house:
        number = house.start()
        await house.ready(number)
        os.kill(house.pid(number), signal.SIGKILL)
        assert (await house.gone(number)).cause is Cause.SIGNALED


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


async def test_a_model_goes_before_the_daemon(house: InstanceContext) -> None:
    async with house:
        number = house.start(nice=7, oom_score_adjust=400)
        await house.ready(number)
        pid = house.pid(number)
        assert oom_score(pid) == 400
        assert os.getpriority(os.PRIO_PROCESS, pid) == 7


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


async def test_a_child_may_lock_as_much_memory_as_its_user_may(house: InstanceContext) -> None:
    """An NPU's buffers count as locked, and what a login gives at first is far too little."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 1024, before[1]))
    try:
        async with house:
            number = house.start()
            await house.ready(number)
            assert resource.prlimit(house.pid(number), resource.RLIMIT_MEMLOCK) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, before)
