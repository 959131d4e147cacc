"""What an engine hears of programs and files in a container, from real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.ports import SystemClock
from accelerd.config.model import ModelSpec
from accelerd.engines.base import ContainerAccess, ContainerLookup, Endpoint, FixedServer
from accelerd.supervise.homes.choice import container_lookup
from accelerd.supervise.homes.containers import images
from accelerd.supervise.homes.containers.existing_container import ExistingHome
from accelerd.supervise.homes.containers.new_container import RunHome
from accelerd.supervise.homes.containers.podman_docker import ContainerEngine
from accelerd.supervise.homes.home import Home, HomeError

from .test_pull import registry_with
from .world import World


def places(world: World) -> ContainerLookup:
    podman = ContainerEngine("podman", world.tools)
    homes: list[Home] = [
        world.toolbox_home(),
        RunHome(podman, world.roots, SystemClock(), world.table, survives=True),
        ExistingHome(world.roots, SystemClock(), world.tools, [podman], survives=True),
    ]
    return container_lookup({home.kind: home for home in homes})


async def place(world: World, spec: ModelSpec) -> ContainerAccess:
    found = await places(world)(spec)
    assert found is not None
    assert not isinstance(found, FixedServer)
    return found


async def test_a_toolbox_says_what_its_program_is_and_where_files_are(containers: World) -> None:
    spec = ModelSpec("m", home="toolbox", container=containers.toolbox)
    mine = containers.home / "a b'c.gguf"
    mine.write_text("GGUF")
    files = [str(mine), "/etc/os-release", "/usr/lib/not-there"]
    there = await place(containers, spec)
    found = await there.look(spec, "python3", files)
    assert found.program == "/usr/bin/python3"
    assert found.files == {str(mine): str(mine), "/etc/os-release": "/etc/os-release"}
    assert containers.inspect(containers.toolbox)["Id"] in found.build
    assert (await there.look(spec, "python3", [])).build == found.build
    assert (await there.look(spec, "bash", [])).build != found.build
    assert found.settings == {}
    answer = await there.ask(spec, "python3", "--version")
    assert (answer.status, answer.out.split()[0]) == (0, "Python")
    mine.unlink()


async def test_files_of_the_host_that_a_toolbox_has_elsewhere(containers: World) -> None:
    """toolbox shows the host in /run/host; /home and few others are in their own place."""
    spec = ModelSpec("m", home="toolbox", container=containers.toolbox)
    outside = Path("/usr/share/dict-of-the-host")
    found = await (await place(containers, spec)).look(spec, "sh", [str(outside), "/proc/version"])
    assert str(outside) not in found.files
    assert found.files["/proc/version"] == "/proc/version"
    host_only = next(f for f in ("/usr/bin/podman", "/usr/bin/toolbox") if os.access(f, os.R_OK))
    found = await (await place(containers, spec)).look(spec, "sh", [host_only])
    assert found.files[host_only] == f"/run/host{host_only}"


async def test_a_missing_program_is_said(containers: World) -> None:
    spec = ModelSpec("m", home="toolbox", container=containers.toolbox)
    with pytest.raises(AccelError, match=f"cannot find llama-none in toolbox {containers.toolbox}") as caught:
        await (await place(containers, spec)).look(spec, "llama-none", [])
    assert caught.value.fields["cause"] == "no-program"


async def test_a_missing_toolbox_is_said(containers: World) -> None:
    spec = ModelSpec("m", home="toolbox", container="none")
    with pytest.raises(AccelError, match="there is no toolbox called none") as caught:
        await (await place(containers, spec)).look(spec, "sh", [])
    assert caught.value.fields["cause"] == "refused"


async def test_an_image_is_asked_without_a_container_left(containers: World) -> None:
    spec = ModelSpec("m", home="podman", image=containers.image)
    there = await place(containers, spec)
    before = containers.podman("ps", "--all", "--quiet")
    found = await there.look(spec, "python3", ["/models/a.gguf"])
    assert (found.program, found.files) == ("python3", {"/models/a.gguf": "/models/a.gguf"})
    assert found.build.startswith(containers.podman("image", "inspect", "--format", "{{.Id}}", containers.image))
    assert (await there.ask(spec, "python3", "--version")).out.startswith("Python")
    assert containers.podman("ps", "--all", "--quiet") == before


async def test_an_image_that_is_not_here_is_said_before_it_is_pulled(containers: World) -> None:
    spec = ModelSpec("m", home="podman", image="localhost/none:1")
    with pytest.raises(AccelError, match="localhost/none:1 is not here yet"):
        await (await place(containers, spec)).look(spec, "sh", [])


async def test_an_image_that_is_not_here_is_pulled_before_the_plan(containers: World) -> None:
    home = RunHome(
        ContainerEngine("podman", containers.tools), containers.roots, SystemClock(), containers.table, survives=True
    )
    said = bytearray()
    with registry_with(containers, "1") as (_, name):
        containers.podman("rmi", name)
        await home.prepare(ModelSpec("m", home="podman", image=name), said.extend)
        assert said.startswith(f"pulling {name}\n".encode())
        assert containers.podman("image", "exists", name) == ""
        said.clear()
        await home.prepare(ModelSpec("m", home="podman", image=name), said.extend)
        assert said == b"", "what is here is not pulled"
        containers.podman("rmi", name)
    with pytest.raises(HomeError, match=r"cannot pull .*refused"):
        await home.prepare(ModelSpec("m", home="podman", image=name), said.extend)


async def test_an_existing_container_is_an_endpoint(containers: World) -> None:
    name = containers.name("server")
    containers.podman("create", "--name", name, "-p", "127.0.0.1:18080:8080", containers.image, "sleep", "9")
    found = await places(containers)(ModelSpec("m", home="container", container=name))
    assert found == FixedServer(
        Endpoint(port=18080), ("podman", "start", name), f"container {name}", (("127.0.0.1", 18080),)
    )
    assert await places(containers)(ModelSpec("m")) is None


def test_known_images_say_what_models_need(containers: World) -> None:
    assert images.settings("kyuz0/amd-strix-halo-toolboxes:vulkan-radv") == {"flash_attention": "on", "mmap": False}
    assert images.settings("localhost/mine:1") == {}
