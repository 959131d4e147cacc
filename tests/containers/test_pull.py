"""Pulling images: what podman draws is read as bytes and lines; refreshes that pull, from a registry on loopback."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from accelerd.base.errors import AccelError
from accelerd.supervise.homes.containers.podman_docker import ContainerEngine, Pulled, PullScreen, progress_lines, pull
from accelerd.supervise.homes.home import HomeError
from tests.fakes.clock import FakeClock

from .registry import Registry
from .upkeep_world import Upkeep, image
from .world import PATIENCE, World, find

MIB = 1 << 20


def screen(*texts: str) -> PullScreen:
    found = PullScreen()
    for text in texts:
        found.feed(text.encode())
    found.end()
    return found


def test_bars_are_read_as_bytes_of_all_layers() -> None:
    seen = screen(
        "Trying to pull docker.io/team/tool:1...\r\n",
        "Copying blob 2efd1c12f74a [=>-----] 1.5MiB / 48.5MiB\r\n\x1b[1A\x1b[J",
        "Copying blob 2efd1c12f74a [==>----] 3.0MiB / 48.5MiB | 12.0 MiB/s\r\n",
        "Copying blob 0123456789ab [----] 0.0b / 2.0GiB\r\n\x1b[2A\x1b[J",
        "Copying blob 2efd1c12f74a [=======] 48.5MiB / 48.5MiB\r\nCopying blob 0123456789ab 512.0MiB / 2.0GiB\r\n",
    )
    assert seen.state == Pulled(int(560.5 * MIB), int((48.5 + 2048) * MIB), "Trying to pull docker.io/team/tool:1...")


def test_a_layer_that_is_done_counts_whole() -> None:
    seen = screen("Copying blob 2efd1c12f74a [=>-] 1.0MiB / 8.0MiB\r\n", "Copying blob 2efd1c12f74a done  \r\n")
    assert (seen.state.done, seen.state.total) == (8 * MIB, 8 * MIB)
    assert screen("Copying blob 2efd1c12f74a skipped: already exists\r\n").state == Pulled(0, 0, "")


def test_a_podman_that_draws_nothing_gives_its_lines() -> None:
    seen = screen("Trying to pull a...\n", "Copying blob sha256:2efd1c12f74a\n", "Storing sig", "natures\nabc")
    assert seen.state == Pulled(0, 0, "abc")
    assert seen.lines == ["Trying to pull a...", "Storing signatures", "abc"]


def test_text_that_only_looks_like_numbers_harms_nobody() -> None:
    assert screen("Copying blob 2efd1c12f74a 1.2.3MiB / ..GiB\r\n").state.total == 0
    assert len(screen(*(f"line {n}\n" for n in range(100))).lines) == 12


@contextmanager
def registry_with(world: World, version: str) -> Iterator[tuple[Registry, str]]:
    """A registry with an image, which is here too, and its name there."""
    registry = Registry(world.home / f"layout-{secrets.token_hex(4)}")
    push(world, registry, version)
    conf = world.home / ".config/containers/registries.conf"
    with registry.serve() as address:
        conf.write_text(f'[[registry]]\nlocation = "{address}"\ninsecure = true\n')
        name = f"{address}/team/tool:latest"
        world.podman("pull", "--quiet", name)
        try:
            yield registry, name
        finally:
            conf.unlink()


def push(world: World, registry: Registry, version: str) -> str:
    """The newest version of the tag; its id."""
    tag = f"localhost/pushed-{secrets.token_hex(4)}:1"
    found = image(world, version, tag)
    world.podman("push", "--quiet", tag, f"oci:{registry.folder}:latest")
    world.podman("untag", tag)
    return found


def push_heavy(world: World, registry: Registry) -> str:
    """The same with a layer of 4 MB that this machine does not have; the image's id."""
    maker = world.name("heavy")
    fill = "head -c 4000000 /dev/urandom >/heavy"
    world.podman("run", "--name", maker, "--network=none", world.image, "sh", "-c", fill)
    made = world.podman("commit", "--quiet", maker)
    world.podman("rm", maker)
    world.podman("push", "--quiet", made, f"oci:{registry.folder}:latest")
    world.podman("rmi", made)
    return made


async def test_a_refresh_pulls_and_tells_its_steps(containers: World) -> None:
    with registry_with(containers, "100 (aaa)") as (registry, name):
        async with Upkeep(containers, "one", image=name) as care:
            await care.load()
            assert (await care.refresh())["event"] == "current"
            new = push(containers, registry, "200 (bbb)")
            job = care.upkeep.refresh(care.name)
            last = await job.task
            assert (last["event"], last["image_id"], last["build"]) == ("refreshed", new, "200 (bbb)")
            assert [(step["step"], step["model"]) for step in job.steps] == [
                ("pull", None), ("try", None), ("swap", None), ("drain", "one"), ("load", "one"), ("remove", None),
            ]  # fmt: skip
            assert job.steps[0]["line"]
            assert await care.models.answers("one")


async def test_bytes_are_counted_while_they_come(containers: World) -> None:
    with registry_with(containers, "100 (aaa)") as (registry, name):
        wanted = push_heavy(containers, registry)
        registry.gate.clear()
        seen: list[Pulled] = []
        engine = ContainerEngine("podman", containers.tools)
        task = asyncio.create_task(pull(engine, name, seen.append))
        async with asyncio.timeout(PATIENCE):
            while not any(0 < one.done < one.total for one in seen):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not task.done()
        registry.gate.set()
        await task
        assert seen[-1].done == seen[-1].total > 3_900_000
        assert [one.done for one in seen] == sorted(one.done for one in seen)
        found = await engine.image(name)
        assert found is not None
        assert found["Id"] == wanted


async def test_a_pull_that_fails_says_podmans_last_word(containers: World) -> None:
    with registry_with(containers, "100 (aaa)") as (_, name):
        missing = name.replace(":latest", ":gone")
        with pytest.raises(HomeError, match=f"cannot pull {missing}: .*manifest unknown"):
            await pull(ContainerEngine("podman", containers.tools), missing, lambda _: None)


async def test_a_registry_without_the_image_leaves_everything_as_it_is(containers: World) -> None:
    with registry_with(containers, "100 (aaa)") as (registry, name):
        async with Upkeep(containers, "one", image=name) as care:
            pids, began = await care.load(), care.began()
            (registry.folder / "index.json").write_text('{"manifests": []}')
            with pytest.raises(AccelError) as caught:
                await care.refresh()
            assert caught.value.code == "toolbox_failed"
            assert f"cannot pull {name}" in caught.value.message
            assert "nothing was changed" in caught.value.message
            assert (care.models.pid("one"), care.began()) == (pids["one"], began)


async def test_a_pull_that_is_given_up_ends_podman(containers: World) -> None:
    with registry_with(containers, "100 (aaa)") as (registry, name):
        async with Upkeep(containers, "one", image=name) as care:
            pids, began = await care.load(), care.began()
            push_heavy(containers, registry)
            registry.gate.clear()
            job = care.upkeep.refresh(care.name)
            async with asyncio.timeout(PATIENCE):
                while not (job.steps and job.steps[0]["total"]):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert find("podman", "pull", name)
            job.abandon()
            with pytest.raises(AccelError, match="given up"):
                await job.task
            assert find("podman", "pull", name) == []
            assert (care.models.pid("one"), care.began()) == (pids["one"], began)
            assert not care.record.exists()


def test_how_far_it_is_as_lines() -> None:
    clock, said = FakeClock(), bytearray()
    show = progress_lines(said.extend, clock)
    show(Pulled(0, 0, "Trying to pull"))
    clock.advance(1.0)
    show(Pulled(0, 0, "Trying to pull"))
    show(Pulled(MIB, 9 * MIB, ""))
    clock.advance(1.0)
    show(Pulled(2 * MIB, 9 * MIB, ""))
    assert said == b"pulling: Trying to pull\npulling: 2.0 MiB of 9.0 MiB\n"
