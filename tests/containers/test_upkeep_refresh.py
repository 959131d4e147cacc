"""A refresh of a toolbox: a newer image, the models moved one by one, the old one gone; and what is refused."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from accelerd.base.errors import AccelError
from accelerd.supervise.homes.containers.process_tree import ContainerSessions

from .upkeep_world import Session, Upkeep, first_name, image
from .world import World, parent, read


async def test_models_move_one_by_one_to_the_new_toolbox(containers: World) -> None:
    old_image = image(containers, "100 (aaa)", "localhost/care-move:1")
    async with Upkeep(containers, "one", "two", "asleep", image="localhost/care-move:1") as care:
        pids = await care.load()
        await care.models.unload("asleep")
        care.models.calls.clear()
        old = await care.found()
        new_image = image(containers, "200 (bbb)", "localhost/care-move:1")
        last = await care.refresh()
        assert last == {
            "event": "refreshed", "toolbox": care.name, "image": "localhost/care-move:1", "image_id": new_image,
            "old_image_id": old_image, "build": "200 (bbb)", "old_build": "100 (aaa)", "models": ["one", "two"],
            "notes": [],
        }  # fmt: skip
        assert care.models.calls == [("unload", "one"), ("load", "one"), ("unload", "two"), ("load", "two")]
        new = await care.found()
        assert (new.image_id, new.running) == (new_image, True)
        assert new.id != old.id
        assert care.containers() == [care.name]
        assert first_name(care) == care.name
        inside = care.kit.sessions.pids(new)
        for model in pids:
            if model != "asleep":
                assert await care.models.answers(model)
                assert care.models.pid(model) in inside
        assert await care.kit.user_sessions(new) == []
        assert care.kit.record.begun is None


async def test_the_same_image_changes_nothing(containers: World) -> None:
    same = image(containers, "100 (aaa)", "localhost/care-same:1")
    async with Upkeep(containers, "one", image="localhost/care-same:1") as care:
        pids, began = await care.load(), care.began()
        last = await care.refresh()
        assert last == {"event": "current", "toolbox": care.name, "image": "localhost/care-same:1", "image_id": same}
        assert care.models.calls == []
        assert (care.models.pid("one"), care.began()) == (pids["one"], began)
        assert not care.record.exists()


async def test_force_makes_it_anew_from_the_same_image(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-force:1")
    async with Upkeep(containers, image="localhost/care-force:1") as care:
        old = await care.found()
        containers.podman("exec", "--user", "root", care.name, "touch", "/usr/local/by-hand")
        last = await care.refresh(force=True)
        assert (last["event"], last["build"], last["image_id"]) == ("refreshed", "100 (aaa)", last["old_image_id"])
        assert (await care.found()).id != old.id
        assert care.inside("sh", "-c", "ls /usr/local/by-hand 2>&1 || echo gone").endswith("gone")


async def test_a_toolbox_that_is_stopped_is_stopped_after_it(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-stopped:1")
    async with Upkeep(containers, "one", image="localhost/care-stopped:1", started=False) as care:
        image(containers, "200 (bbb)", "localhost/care-stopped:1")
        last = await care.refresh()
        assert (last["old_build"], last["build"], last["models"]) == ("100 (aaa)", "200 (bbb)", [])
        assert not (await care.found()).running
        await care.models.load("one")
        assert await care.models.answers("one")


async def test_toolboxes_without_a_llama_server_are_refreshed_too(containers: World) -> None:
    image(containers, None, "localhost/care-none:1")
    async with Upkeep(containers, image="localhost/care-none:1") as care:
        containers.podman("tag", containers.image, "localhost/care-none:1")
        last = await care.refresh()
        assert (last["event"], last["build"], last["old_build"]) == ("refreshed", None, None)


async def test_a_start_during_the_swap_waits_and_finds_the_new_one(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-start:1")
    async with Upkeep(containers, "one", image="localhost/care-start:1") as care:
        new_image = image(containers, "200 (bbb)", "localhost/care-start:1")
        job = care.upkeep.refresh(care.name)
        while not any(step["step"] == "swap" for step in job.steps):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await care.models.load("one")  # the name may stand for nothing just now
        assert (await job.task)["event"] == "refreshed"
        new = await care.found()
        assert new.image_id == new_image
        assert care.models.pid("one") in care.kit.sessions.pids(new)


# --- refused --------------------------------------------------------------------------------------------------


async def refused(care: Upkeep, code: str, *words: str, force: bool = False) -> AccelError:
    """Nothing changes."""
    old, before = await care.found(), care.containers()
    with pytest.raises(AccelError) as caught:
        await care.refresh(force=force)
    assert caught.value.code == code
    for word in words:
        assert word in caught.value.message
    assert (await care.found()).id == old.id
    assert care.containers() == before
    assert care.kit.record.begun is None
    return caught.value


async def test_a_pinned_toolbox_is_refused_until_it_is_unpinned(containers: World) -> None:
    old = image(containers, "100 (aaa)", "localhost/care-pin:1")
    async with Upkeep(containers, image="localhost/care-pin:1") as care:
        pinned = await care.upkeep.pin(care.name)
        assert pinned == {"toolbox": care.name, "image": "localhost/care-pin:1", "pinned": old}
        assert care.pins.flushed == 1
        image(containers, "200 (bbb)", "localhost/care-pin:1")
        for force in (False, True):
            await refused(care, "toolbox_pinned", f"accelctl toolbox unpin {care.name}", old[:12], force=force)
        assert await care.upkeep.unpin(care.name) == {"toolbox": care.name, "was": old, "pinned": None}
        assert (await care.refresh())["event"] == "refreshed"
        assert (await care.upkeep.unpin(care.name))["was"] is None


async def test_a_pin_that_cannot_be_written_is_an_error(containers: World) -> None:
    image(containers, None, "localhost/care-none:1")
    async with Upkeep(containers, image="localhost/care-none:1") as care:
        care.pins.degraded = "cannot write state.json: no space left on device"
        with pytest.raises(AccelError, match="no space left") as caught:
            await care.upkeep.pin(care.name)
        assert caught.value.code == "toolbox_failed"


async def test_what_is_no_toolbox_is_not_found(containers: World) -> None:
    other = containers.name("other")
    empty = containers.home / "empty.tar"
    empty.write_bytes(bytes(10240))
    containers.podman("import", str(empty), "localhost/plain:1")
    containers.podman("create", "--name", other, "localhost/plain:1", "true")
    async with Upkeep(containers, image=containers.image) as care:
        container_id = (await care.found()).id
        for name in ("nobody", other, "-a", "a b", "../x", "", container_id[:12]):
            for work in (care.upkeep.pin(name), care.upkeep.unpin(name)):
                with pytest.raises(AccelError) as caught:
                    await work
                assert caught.value.code == "toolbox_not_found"
            with pytest.raises(AccelError) as caught:
                await care.upkeep.refresh(name).task
            assert caught.value.code == "toolbox_not_found"


async def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(containers: World) -> None:
    async with Upkeep(containers, image=containers.image) as care:
        containers.podman("rename", care.name, "vulkan-radv")
        with pytest.raises(AccelError, match="did you mean vulkan-radv"):
            await care.upkeep.pin("vulkan-radv2")
        containers.podman("rename", "vulkan-radv", care.name)


async def test_names_that_somebody_else_uses_are_left_alone(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-names:1")
    async with Upkeep(containers, image="localhost/care-names:1") as care:
        image(containers, "200 (bbb)", "localhost/care-names:1")
        for name in (f"{care.name}-new", f"{care.name}-old"):
            containers.podman("create", "--name", name, containers.image, "true")
            await refused(care, "toolbox_busy", f"there is a container {name}", "rename or remove it")
            containers.podman("rm", name)


async def test_one_refresh_at_a_time(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-one:1")
    async with Upkeep(containers, image="localhost/care-one:1") as care:
        job = care.upkeep.refresh(care.name)
        with pytest.raises(AccelError) as caught:
            care.upkeep.refresh("another")
        assert (caught.value.code, care.name in caught.value.message) == ("toolbox_busy", True)
        await job.task


async def test_an_image_that_has_no_name_is_not_refreshed(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-nameless:1")
    async with Upkeep(containers, image="localhost/care-nameless:1") as care:
        containers.podman("untag", "localhost/care-nameless:1")
        await refused(
            care, "toolbox_failed", "there is no image localhost/care-nameless:1 any more", "nothing was changed"
        )


# --- people ---------------------------------------------------------------------------------------------------


async def test_a_toolbox_with_a_shell_open_is_not_touched(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-shell:1")
    async with Upkeep(containers, "one", image="localhost/care-shell:1") as care:
        pids, began = await care.load(), care.began()
        image(containers, "200 (bbb)", "localhost/care-shell:1")
        with Session(care.name) as session:
            error = await refused(care, "toolbox_busy", "sh (pid ", "is inside", "--force")
            assert len(error.fields["inside"]) == 1
            assert session.lives()
            assert care.models.pid("one") == pids["one"]
            assert care.began() == began
        assert (await care.refresh())["event"] == "refreshed"  # our own model was never a reason to refuse


async def test_force_keeps_the_old_one_until_its_last_person_has_left(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-forced:1")
    async with Upkeep(containers, "one", image="localhost/care-forced:1") as care:
        await care.load()
        old, began = await care.found(), care.began()
        new_image = image(containers, "200 (bbb)", "localhost/care-forced:1")
        record = f"{care.name}-old"
        with Session(care.name) as session:
            last = await care.refresh(force=True)
            assert last["event"] == "refreshed"
            [note] = last["notes"]
            assert record in note
            assert "sh (pid " in note
            assert session.lives()
            assert care.containers() == [care.name, record]
            still = containers.inspect(record)
            assert (still["Id"], still["State"]["StartedAt"]) == (old.id, began)
            assert (await care.found()).image_id == new_image
            assert care.kit.record.begun is None
            await refused(care, "toolbox_busy", f"there is a container {record}", "is inside", force=True)
            assert session.lives()
            session.leave()
        await (await care.again()).repair()  # as each start of the daemon does
        assert care.containers() == [care.name]
        assert await care.models.answers("one")


async def test_who_is_inside_is_seen_without_the_conmon_that_brought_them(containers: World) -> None:
    async with Upkeep(containers, image=containers.image) as care:
        sessions = ContainerSessions(containers.roots.proc, str(containers.roots.runtime))
        found = await care.found()
        assert sessions.user_sessions(found) == []
        containers.podman("exec", "--detach", care.name, "sleep", "1000")
        while [one.name for one in sessions.user_sessions(found)] != ["sleep"]:  # noqa: ASYNC110 (crun becomes it)
            await asyncio.sleep(0.01)
        [visitor] = sessions.user_sessions(found)
        assert str(visitor) == f"sleep (pid {visitor.pid})"
        conmon = parent(visitor.pid)
        assert read(f"/proc/{conmon}/comm").strip() == "conmon"
        os.kill(conmon, signal.SIGKILL)
        while parent(visitor.pid) == conmon:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert sessions.user_sessions(found) == [visitor]
        os.kill(visitor.pid, signal.SIGKILL)


async def test_models_of_another_accelerd_are_people(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-others:1")
    async with Upkeep(containers, "one", image="localhost/care-others:1") as care:
        await care.load()
        found = await care.found()
        assert await care.kit.user_sessions(found) == []
        [visitor] = ContainerSessions(containers.roots.proc, "/run/user/0/accelerd").user_sessions(found)
        assert visitor.pid == parent(care.models.pid("one"))
