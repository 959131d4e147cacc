"""Whatever becomes of the couriers: what is stopped in a toolbox is gone, and the toolbox still runs."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from accelerd.supervise.homes.containers.commands import CommandResult
from accelerd.supervise.homes.home import HomeError

from .world import PATIENCE, Life, World, find, parent, reap

COURIERS = {
    "toolbox-term": ("toolbox", signal.SIGTERM),
    "toolbox-kill": ("toolbox", signal.SIGKILL),
    "group-term": ("group", signal.SIGTERM),
    "group-kill": ("group", signal.SIGKILL),
    "podman-term": ("podman", signal.SIGTERM),
    "podman-kill": ("podman", signal.SIGKILL),
    "conmon-kill": ("conmon", signal.SIGKILL),
    "shell-kill": ("shell", signal.SIGKILL),
}


def disturb(life: Life, who: str, number: int) -> None:
    """Signal one of the processes between us and the program."""
    word = life.launch.tag.instance
    toolbox = find("toolbox", "run", word)[0]
    if who == "group":
        os.killpg(os.getpgid(toolbox), number)
        return
    pid = {
        "toolbox": lambda: toolbox,
        "podman": lambda: find("podman", "exec", word)[0],
        "shell": lambda: parent(life.main.pid),
        "conmon": lambda: parent(parent(life.main.pid)),
    }[who]()
    os.kill(pid, number)


@pytest.mark.parametrize("mode", ["", "ignore-term"])
@pytest.mark.parametrize("cli", ["none", *COURIERS])
async def test_gone_whatever_becomes_of_the_couriers(containers: World, cli: str, mode: str) -> None:
    life = await Life(containers, containers.toolbox_home(), containers.launch(mode)).start()
    await life.ready()
    pid = life.main.pid
    assert find("python3", life.launch.tag.instance) == [pid]
    if cli != "none":
        disturb(life, *COURIERS[cli])
        if cli.startswith("toolbox"):
            await life.until(lambda: not find("toolbox", "run", life.launch.tag.instance))
    assert not life.main.exited.is_set()  # a courier's end is not the program's
    ended = await life.stop(grace=0.3 if mode else 5.0)
    known = cli != "shell-kill"
    assert ended == ((-9 if mode else 0) if known else None)
    assert containers.inspect(containers.toolbox)["State"]["Running"]
    assert find("toolbox", "run", life.launch.tag.instance) == []


async def test_conmon_forwards_a_term_and_that_is_an_end(containers: World) -> None:
    life = await Life(containers, containers.toolbox_home(), containers.launch()).start()
    await life.ready()
    disturb(life, "conmon", signal.SIGTERM)
    await life.until(life.ended.is_set)
    assert await life.gone() == 0


@pytest.mark.parametrize("how", ["init-kill", "stop"])
async def test_gone_when_the_toolbox_itself_ends(containers: World, how: str) -> None:
    """The program shares the host's processes and survives its container."""
    name = containers.new_toolbox()
    life = await Life(containers, containers.toolbox_home(), containers.launch("ignore-term", container=name)).start()
    await life.ready()
    if how == "stop":
        await asyncio.to_thread(containers.podman, "stop", "--time", "1", name, check=False)
    else:
        os.kill(containers.inspect(name)["State"]["Pid"], signal.SIGKILL)
        await life.until(lambda: not containers.inspect(name)["State"]["Running"])
    life.main.signal(signal.SIGTERM)
    life.main.kill_group()
    await life.until(life.main.exited.is_set)
    await life.main.release()
    assert life.members() == []


@pytest.mark.parametrize("mode", ["fork-wrapper", "fork-wrapper-exit", "setsid-grandchild", "hold-stdout"])
async def test_everything_it_forked_goes(containers: World, mode: str) -> None:
    life = await Life(containers, containers.toolbox_home(), containers.launch(mode)).start()
    if mode != "fork-wrapper-exit":
        await life.ready()
    await life.stop(grace=0.5)
    assert containers.inspect(containers.toolbox)["State"]["Running"]


ASKED = "touch {there}; while [ -e {there} ]; do sleep 0.05; done"


@pytest.mark.parametrize("how", ["too long", "cancelled", "toolbox", "podman"])
async def test_a_command_that_does_not_end_leaves_nothing(containers: World, how: str) -> None:
    """podman keeps the exec session of a command that is killed, and the program inside runs on."""
    home, there = containers.toolbox_home(), containers.home / f"asked-{how.replace(' ', '-')}"
    asked = ASKED.format(there=there)
    task = asyncio.create_task(
        home.inside(containers.toolbox, "sh", "-c", asked, within=PATIENCE if how != "too long" else 0.5)
    )
    if how != "too long":
        async with asyncio.timeout(PATIENCE):
            while not there.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    if how == "cancelled":
        task.cancel()
    elif how != "too long":
        for pid in find(how, asked):
            os.kill(pid, signal.SIGKILL)
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert isinstance(outcome, {"too long": HomeError, "cancelled": asyncio.CancelledError}.get(how, CommandResult))
    await reap()
    assert find("sh", asked) == []
    assert containers.inspect(containers.toolbox)["ExecIDs"] == []


async def test_a_command_says_how_it_ended(containers: World) -> None:
    home = containers.toolbox_home()
    done = await home.inside(containers.toolbox, "sh", "-c", "echo out; echo err >&2; exit 7", within=PATIENCE)
    assert (done.status, done.out, done.err) == (7, "out\n", "err\n")
    missing = await home.inside(containers.toolbox, "/no/such program", within=PATIENCE)
    assert missing.status != 0
    assert "/no/such program: no such program" in missing.why()
