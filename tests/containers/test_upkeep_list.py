"""What `accelctl toolbox list` is told: builds, images, models, pins."""

from __future__ import annotations

from typing import Any

from accelerd.supervise.homes.containers import images

from .upkeep_world import Upkeep, image
from .world import World

KNOWN = "docker.io/kyuz0/amd-strix-halo-toolboxes:vulkan-radv"


async def described(care: Upkeep) -> dict[str, Any]:
    overview = await care.upkeep.overview()
    [found] = [toolbox for toolbox in overview["toolboxes"] if toolbox["name"] == care.name]
    return dict(found)


async def test_a_toolbox_that_runs(containers: World) -> None:
    image_id = image(containers, "100 (aaa)", "localhost/care-list:1")
    async with Upkeep(containers, "one", "two", image="localhost/care-list:1") as care:
        await care.models.load("two")
        found = await described(care)
        created, container = found.pop("created"), await care.found()
        assert found == {
            "name": care.name, "id": container.id, "running": True, "image": "localhost/care-list:1",
            "image_id": image_id, "newer": None, "build": "100 (aaa)", "build_trouble": None,
            "pinned": None, "known": None,
            "models": [
                {"name": "one", "state": "stopped", "loaded": False}, {"name": "two", "state": "ready", "loaded": True},
            ],
        }  # fmt: skip
        assert created.startswith("20")
        assert created == container.created


async def test_a_build_that_was_put_in_by_hand_is_the_one_that_counts(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-hand:1")
    async with Upkeep(containers, image="localhost/care-hand:1") as care:
        change = "sed -i s/100/101/ /usr/local/bin/llama-server"
        containers.podman("exec", "--user", "root", care.name, "sh", "-c", change)
        assert (await described(care))["build"] == "101 (aaa)"


async def test_a_stopped_toolbox_is_asked_by_its_image_once(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-asleep:1")
    async with Upkeep(containers, image="localhost/care-asleep:1", started=False) as care:
        first = await described(care)
        assert (first["running"], first["build"]) == (False, "100 (aaa)")
        runs = containers.podman(
            "events", "--stream=false", "--filter=event=create", "--filter=image=localhost/care-asleep:1"
        )
        assert (await described(care))["build"] == "100 (aaa)"
        after = containers.podman(
            "events", "--stream=false", "--filter=event=create", "--filter=image=localhost/care-asleep:1"
        )
        assert len(after.splitlines()) == len(runs.splitlines()), "no second container to ask"
        assert not (await care.found()).running


async def test_no_llama_server_and_a_broken_one(containers: World) -> None:
    image(containers, None, "localhost/care-none:1")
    async with Upkeep(containers, image="localhost/care-none:1") as care:
        found = await described(care)
        assert (found["build"], found["build_trouble"]) == (None, None)
        broken = "printf '#!/bin/sh\\necho libvulkan.so.1 is missing >&2; exit 127' >/usr/bin/llama-server"
        script = f"{broken}; chmod 755 /usr/bin/llama-server"
        containers.podman("exec", "--user", "root", care.name, "sh", "-c", script)
        found = await described(care)
        assert found["build"] is None
        assert "libvulkan.so.1 is missing" in found["build_trouble"]


async def test_a_newer_image_that_is_here_already(containers: World) -> None:
    old = image(containers, "100 (aaa)", "localhost/care-newer:1")
    async with Upkeep(containers, image="localhost/care-newer:1") as care:
        new = image(containers, "200 (bbb)", "localhost/care-newer:1")
        found = await described(care)
        assert (found["image_id"], found["newer"]) == (old, new)


async def test_pins_are_shown(containers: World) -> None:
    pinned = image(containers, "100 (aaa)", "localhost/care-pinned:1")
    async with Upkeep(containers, image="localhost/care-pinned:1") as care:
        await care.upkeep.pin(care.name)
        assert (await described(care))["pinned"] == pinned


async def test_known_images_bring_their_note_and_arguments(containers: World) -> None:
    image(containers, "100 (aaa)", KNOWN)
    async with Upkeep(containers, image=KNOWN) as care:
        known = (await described(care))["known"]
        assert (known["tag"], known["args"], known["experimental"]) == ("vulkan-radv", ("-fa", "1", "--no-mmap"), False)
        assert known["note"] == "most stable; best token generation"
        overview = await care.upkeep.overview()
        here = {one["tag"]: one["here"] for one in overview["known"]}
        assert len(here) == len(images.known()) == 11
        assert [tag for tag, there in here.items() if there] == ["vulkan-radv"]
    containers.podman("untag", KNOWN)


async def test_toolboxes_that_models_want_and_that_do_not_exist(containers: World) -> None:
    async with Upkeep(containers, image=containers.image) as care:
        care.models.toolbox = "nobody"
        care.models.lives = {"one": None}
        overview = await care.upkeep.overview()
        missing = [{"name": "nobody", "models": [{"name": "one", "state": "stopped", "loaded": False}]}]
        assert overview["missing"] == missing
        assert care.name in [toolbox["name"] for toolbox in overview["toolboxes"]]
