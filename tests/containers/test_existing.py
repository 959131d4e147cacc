"""Containers that are there already, started and stopped but never changed; and distroboxes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from accelerd.base.ports import SystemClock
from accelerd.engines.base import Endpoint
from accelerd.supervise.homes.containers.commands import CommandRunner
from accelerd.supervise.homes.containers.existing_container import ExistingHome
from accelerd.supervise.homes.containers.podman_docker import ContainerEngine
from accelerd.supervise.homes.containers.toolbox import DistroboxHome
from accelerd.supervise.homes.home import HomeError

from .standins import install
from .world import Life, World, find, read, reap


def create(world: World, program: str, *options: str) -> str:
    name = world.name("server")
    world.podman("create", "--init", "--name", name, *options, world.image, "sh", "-c", program)
    return name


@pytest.fixture(params=["podman", "docker"])
def make(request: pytest.FixtureRequest, containers: World, tmp_path: Path) -> Callable[[], ExistingHome]:
    def home() -> ExistingHome:
        tools = containers.tools
        if request.param == "docker":
            path = f"{install(tmp_path / 'bin', 'docker')}:{os.environ['PATH']}"
            tools = CommandRunner({**os.environ, "PATH": path})
        engines = [ContainerEngine(request.param, tools)]
        return ExistingHome(containers.roots, SystemClock(), tools, engines, survives=True)

    return home


async def test_started_stopped_and_still_there(containers: World, make: Callable[[], ExistingHome]) -> None:
    name = create(containers, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done")
    life = await Life(containers, make(), containers.launch(container=name)).start()
    await life.until(lambda: b"up" in life.output)
    assert await life.stop() == 0
    assert "bye" in life.text
    found = containers.inspect(name)
    assert (found["State"]["Running"], found["ExecIDs"]) == (False, [])


async def test_ignoring_sigterm_does_not_help(containers: World, make: Callable[[], ExistingHome]) -> None:
    name = create(containers, "trap '' TERM; echo up; while :; do sleep 0.1; done")
    life = await Life(containers, make(), containers.launch(container=name)).start()
    await life.until(lambda: b"up" in life.output)
    await life.stop(grace=0.3)
    assert not containers.inspect(name)["State"]["Running"]


async def test_a_restart_policy_does_not_bring_it_back(containers: World, make: Callable[[], ExistingHome]) -> None:
    name = create(containers, "echo up; while :; do sleep 0.1; done", "--restart=always")
    life = await Life(containers, make(), containers.launch(container=name)).start()
    await life.until(lambda: b"up" in life.output)
    await life.stop()
    assert not containers.inspect(name)["State"]["Running"]


async def test_its_own_end_is_seen(containers: World, make: Callable[[], ExistingHome]) -> None:
    name = create(containers, "sleep 0.5; echo over; exit 4")
    life = await Life(containers, make(), containers.launch(container=name)).start()
    await life.ended.wait()
    assert await life.gone() == 4


async def test_a_running_one_is_taken_and_taken_over(containers: World, make: Callable[[], ExistingHome]) -> None:
    name = create(containers, "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    containers.podman("start", name)
    pid = containers.inspect(name)["State"]["Pid"]
    life = await Life(containers, make(), containers.launch(container=name)).start()
    assert life.main.pid == pid
    life.main.let_go()
    await reap()
    second = Life(containers, make(), life.launch)
    assert await second.adopt() is not None
    assert second.main.pid == pid
    assert await second.stop() == 0


async def test_where_it_listens(containers: World, make: Callable[[], ExistingHome]) -> None:
    one = create(containers, "true", "--publish", "127.0.0.1:18123:8080")
    found = await make().program_place(containers.launch(container=one).spec)
    assert (found.endpoint, found.command[1:]) == (Endpoint(port=18123), ("start", one))
    none = create(containers, "true")
    with pytest.raises(HomeError, match="publishes no port on this machine"):
        await make().program_place(containers.launch(container=none).spec)


async def test_who_has_its_port_is_said(containers: World, make: Callable[[], ExistingHome]) -> None:
    port = "127.0.0.1:18124:8080"
    other = create(containers, "sleep 60", "--publish", port)
    name = create(containers, "sleep 60", "--publish", port)
    containers.podman("start", other)
    with pytest.raises(HomeError, match=rf"container {other} has its port already.*: \w+ stop {other}"):
        await Life(containers, make(), containers.launch(container=name)).start()
    containers.podman("rm", "--force", "--time", "0", other, name)


async def test_a_missing_one_is_said(containers: World, make: Callable[[], ExistingHome]) -> None:
    with pytest.raises(HomeError, match="there is no container not-there"):
        await Life(containers, make(), containers.launch(container="not-there")).start()


@pytest.mark.parametrize("mode", ["", "ignore-term"])
async def test_a_distrobox_is_entered_like_a_toolbox(containers: World, tmp_path: Path, mode: str) -> None:
    path = f"{install(tmp_path / 'bin', 'distrobox')}:{os.environ['PATH']}"
    tools = CommandRunner({**os.environ, "PATH": path, "A_SECRET": "sesame"})
    home = DistroboxHome(containers.roots, SystemClock(), containers.table, tools, survives=True)
    life = await Life(containers, home, containers.launch(mode)).start()
    await life.ready()
    couriers = find("podman", "exec", life.launch.tag.instance)
    assert couriers
    assert not any("sesame" in read(f"/proc/{pid}/cmdline") for pid in couriers)  # distrobox shows its environment
    assert await life.stop(grace=0.3 if mode else 5.0) == (-signal.SIGKILL if mode else 0)
    assert containers.inspect(containers.toolbox)["State"]["Running"]
    assert containers.inspect(containers.toolbox)["ExecIDs"] == []
