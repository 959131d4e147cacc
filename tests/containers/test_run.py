"""Containers of accelerd's own, by podman and by docker: made for one start, gone after it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accelerd.base.ports import SystemClock
from accelerd.supervise.homes.containers.commands import CommandRunner
from accelerd.supervise.homes.containers.new_container import RunHome, container_name, groups
from accelerd.supervise.homes.containers.podman_docker import LABEL_INSTANCE, LABEL_OWNER, ContainerEngine
from accelerd.supervise.homes.home import HomeError, LaunchRequest

from .standins import install
from .world import PATIENCE, Life, World, find, read, reap


@pytest.fixture(params=["podman", "docker"])
def make(request: pytest.FixtureRequest, containers: World, tmp_path: Path) -> Callable[[], RunHome]:
    def home() -> RunHome:
        path = os.environ["PATH"]
        if request.param == "docker":
            path = f"{install(tmp_path / 'bin', 'docker')}:{path}"
        engine = ContainerEngine(request.param, CommandRunner({**os.environ, "PATH": path}))
        return RunHome(engine, containers.roots, SystemClock(), containers.table, survives=True)

    return home


def launch(world: World, mode: str = "", **settings: Any) -> LaunchRequest:
    settings = {"container": None, "image": world.image, "mounts": (f"{world.fakes}:{world.fakes}:ro",)} | settings
    return world.launch(mode, **settings)


def exists(world: World, life: Life) -> bool:
    return container_name(life.launch.spec.name) in world.podman("ps", "--all", "--format", "{{.Names}}").split()


async def test_it_serves_and_is_gone_after(containers: World, make: Callable[[], RunHome]) -> None:
    life = await Life(containers, make(), launch(containers)).start()
    await life.ready()
    assert read(f"/proc/{life.main.pid}/comm") == "python3\n"
    found = containers.inspect(container_name(life.launch.spec.name))
    assert found["Config"]["Labels"][LABEL_INSTANCE] == life.launch.tag.instance
    assert found["State"]["Pid"] != life.main.pid  # that is the init
    assert await life.stop() == 0
    assert not exists(containers, life)
    assert "listening on unix://" in life.text
    assert "cleaning up before exit" in life.text


async def test_files_are_seen_where_they_are_also_through_the_links_of_a_download(
    containers: World, make: Callable[[], RunHome]
) -> None:
    """As a hub's cache has them: a snapshot is a link to a blob beside it, and the cache itself may be one, too."""
    real, cache = containers.home / "disk", containers.home / "hub"
    (real / "blobs").mkdir(parents=True)
    (real / "snapshots/main").mkdir(parents=True)
    (real / "blobs/abc").write_text("the weights\n")
    (real / "snapshots/main/a b.gguf").symlink_to("../../blobs/abc")
    cache.symlink_to(real)
    try:
        file = str(cache / "snapshots/main/a b.gguf")
        script = 'cat "$0"; touch "$XDG_CACHE_HOME/kept" && echo home is "$HOME"; sleep 60'
        order = launch(containers, argv=("sh", "-c", script, file))
        life = await Life(containers, make(), replace(order, files=(file,), env={**order.env, "HOME": "/host"})).start()
        await life.until(lambda: "home is" in life.text)
        assert life.text.startswith("the weights\n")
        assert "/host" not in life.text
        assert (containers.roots.cache / "containers/kept").exists()
        await life.stop()
    finally:
        cache.unlink()
        shutil.rmtree(real)


async def test_ignoring_sigterm_does_not_help(containers: World, make: Callable[[], RunHome]) -> None:
    life = await Life(containers, make(), launch(containers, "ignore-term")).start()
    await life.ready()
    assert await life.stop(grace=0.2) == -signal.SIGKILL
    assert not exists(containers, life)


@pytest.mark.parametrize("code", [0, 3, 127])
async def test_exit_statuses_are_exact(containers: World, make: Callable[[], RunHome], code: int) -> None:
    argv = ("sh", "-c", f"echo over; sleep 0.2; exit {code}")
    life = await Life(containers, make(), launch(containers, argv=argv)).start()
    await life.ended.wait()
    assert await life.gone() == code
    assert "over" in life.text


async def test_a_missing_program_is_said(containers: World, make: Callable[[], RunHome]) -> None:
    life = await Life(containers, make(), launch(containers, argv=("llama-not-there",))).start()
    await life.ended.wait()
    assert await life.gone() not in (0, None)
    assert "No such file" in (life.main.unexecuted(life.text.splitlines()[-1]) or ""), life.text
    assert not exists(containers, life)


async def test_somebody_elses_container_is_left_alone(containers: World, make: Callable[[], RunHome]) -> None:
    theirs = launch(containers)
    name = container_name(theirs.spec.name)
    containers.podman("run", "--detach", "--name", name, containers.image, "sleep", "1000")
    try:
        with pytest.raises(HomeError, match=f"{name} already that accelerd did not make"):
            await Life(containers, make(), theirs).start()
        assert containers.inspect(name)["State"]["Running"]
    finally:
        containers.podman("rm", "--force", "--time", "0", name)


async def test_secrets_are_on_no_command_line(containers: World, make: Callable[[], RunHome]) -> None:
    life = await Life(containers, make(), launch(containers)).start()
    await life.ready()
    environ = read(f"/proc/{life.main.pid}/environ").split("\0")
    key = f"secret-{life.launch.tag.instance}"
    assert f"LLAMA_API_KEY={key}" in environ
    assert not any(entry.startswith("PATH=/nowhere") for entry in environ)
    assert find("conmon", key) == []
    assert find("podman", key) == []
    assert not any(f.suffix == ".env" for f in containers.roots.instances.iterdir())
    await life.stop()


async def test_a_value_of_two_lines_is_refused(containers: World, make: Callable[[], RunHome]) -> None:
    with pytest.raises(HomeError, match="cannot hand A to a container: its value has more than one line"):
        await Life(containers, make(), launch(containers, env=(("A", "1\n2"),))).start()


async def test_the_next_daemon_takes_it_over(containers: World, make: Callable[[], RunHome]) -> None:
    first = await Life(containers, make(), launch(containers)).start()
    await first.ready()
    first.main.let_go()
    await reap()
    second = Life(containers, make(), first.launch)
    assert await second.adopt() is not None
    assert second.main.pid == first.main.pid
    await second.ready()
    assert await second.stop() == 0
    assert "cleaning up before exit" in second.text
    assert not exists(containers, second)


async def test_what_has_ended_meanwhile_is_not_taken_over(containers: World, make: Callable[[], RunHome]) -> None:
    first = await Life(containers, make(), launch(containers)).start()
    await first.ready()
    first.main.let_go()
    os.kill(first.main.pid, signal.SIGKILL)
    await first.until(lambda: not containers.inspect(container_name(first.launch.spec.name))["State"]["Running"])
    second = Life(containers, make(), first.launch)
    assert await second.adopt() is None
    assert not exists(containers, second)
    second.nothing_left()
    await reap()


async def test_tidy_removes_what_is_ours(containers: World, make: Callable[[], RunHome]) -> None:
    mine = launch(containers)
    label = f"{LABEL_OWNER}={mine.tag.owner}"
    spared = ("--label", f"{LABEL_INSTANCE}=kept")
    containers.podman("run", "--detach", "--name", "left", "--label", label, containers.image, "sleep", "1000")
    containers.podman("run", "--detach", "--name", "kept", "--label", label, *spared, containers.image, "sleep", "1000")
    assert await make().tidy(mine.tag.owner, {"kept"}) == 1
    assert await make().tidy(mine.tag.owner, {"kept"}) == 0
    containers.podman("rm", "--force", "--time", "0", "kept")
    assert "left" not in containers.podman("ps", "--all", "--format", "{{.Names}}").split()
    assert containers.inspect(containers.toolbox)["State"]["Running"]


async def test_it_asks_the_image(containers: World, make: Callable[[], RunHome]) -> None:
    done = await make().ask(launch(containers).spec, "python3", "--version")
    assert (done.status, done.out.split()[0]) == (0, "Python")


@pytest.mark.parametrize("how", ["too long", "cancelled"])
async def test_a_question_that_is_not_answered_leaves_no_container(
    containers: World, make: Callable[[], RunHome], how: str
) -> None:
    """The program goes on when the command that started it is killed."""
    within = 1.5 if how == "too long" else PATIENCE
    asking = asyncio.create_task(make().ask(launch(containers).spec, "sleep", "1111", within=within))
    if how == "cancelled":
        async with asyncio.timeout(PATIENCE):
            while not find("sleep", "1111"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        asking.cancel()
    (outcome,) = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(outcome, HomeError if how == "too long" else asyncio.CancelledError)
    assert find("sleep", "1111") == []
    assert "accelerd-ask-" not in containers.podman("ps", "--all", "--format", "{{.Names}}")


@pytest.mark.parametrize("entrypoint", [True, False])
async def test_an_image_that_is_a_server_gets_arguments_only(
    containers: World, make: Callable[[], RunHome], entrypoint: bool
) -> None:
    image = "localhost/server:1"
    change = 'ENTRYPOINT ["/usr/bin/printf", "%s|"]' if entrypoint else "CMD []"
    name = containers.name("c")
    containers.podman("create", "--name", name, containers.image)
    await asyncio.to_thread(containers.podman, "commit", "--quiet", "--change", change, name, image)
    containers.podman("rm", name)
    life = await Life(containers, make(), launch(containers, argv=("echo", "a", "b"), image=image)).start()
    await life.ended.wait()
    assert await life.gone() == 0
    assert life.text.strip() == ("a|b|" if entrypoint else "a b")


def test_no_two_models_have_one_container(containers: World) -> None:
    """What stands for a character that podman does not allow must not be another model's name."""
    assert container_name("qwen3-8b_Q4.K-M") == "accelerd-qwen3-8b_Q4.K-M"
    names = ["org/m:8b", "org-m-8b", "org:m/8b", "org m@8b", "模型", "型模", "x" * 300, "x" * 301]
    made = {container_name(name) for name in names}
    assert len(made) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", name) for name in made)


def test_groups_of_devices(containers: World) -> None:
    assert groups("podman", [Path("/dev/dri")]) == ["--group-add=keep-groups"]
    found = groups("docker", [Path("/dev"), Path("/dev/not-there")])
    assert {int(one.removeprefix("--group-add=")) for one in found} == {
        node.stat().st_gid for node in Path("/dev").iterdir() if node.is_char_device() and node.stat().st_gid
    }
