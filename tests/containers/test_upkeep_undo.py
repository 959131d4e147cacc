"""A refresh that fails, is given up, or whose daemon dies: the old toolbox is back as it was, and so are its models."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from accelerd.base.errors import AccelError
from accelerd.supervise.homes.containers.refresh import ToolboxRefresh

from .upkeep_world import BROKEN, DeadEngine, Died, Session, Upkeep, image
from .world import World


async def failed(care: Upkeep, *, force: bool = False) -> AccelError:
    with pytest.raises(AccelError) as caught:
        await care.refresh(force=force)
    return caught.value


async def as_it_was(care: Upkeep, old: str, began: str) -> None:
    found = await care.found()
    assert (found.id, care.began()) == (old, began), "the old one was never stopped"
    assert care.containers() == [care.name]
    assert care.kit.record.begun is None


async def test_a_new_image_without_a_llama_server_costs_nobody_anything(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-without:1")
    async with Upkeep(containers, "one", image="localhost/care-without:1") as care:
        pids, old, began = await care.load(), await care.found(), care.began()
        image(containers, None, "localhost/care-without:1")
        error = await failed(care)
        assert error.code == "toolbox_failed"
        assert "there is no llama-server in the new one; the old one holds 100 (aaa)" in error.message
        assert "the old one is in place as before" in error.message
        assert care.models.pid("one") == pids["one"]
        assert care.models.calls == []
        await as_it_was(care, old.id, began)


async def test_a_model_that_does_not_start_in_the_new_one_brings_the_old_one_back(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-broken:1")
    async with Upkeep(containers, "one", "two", image="localhost/care-broken:1") as care:
        pids, old, began = await care.load(), await care.found(), care.began()
        image(containers, "200 (bbb)", "localhost/care-broken:1", starts=False)
        error = await failed(care)
        assert error.code == "toolbox_failed"
        assert "cannot load one: it ended" in error.message
        assert "the old one is in place as before" in error.message
        assert error.fields["tail"] == [BROKEN]
        assert care.models.calls == [("unload", "one"), ("load", "one"), ("load", "one")]
        assert await care.models.answers("one")
        assert care.models.pid("two") == pids["two"], "it was never touched"
        await as_it_was(care, old.id, began)
        assert care.models.pid("one") in care.kit.sessions.pids(old)


async def test_models_that_have_moved_already_move_back(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-second:1")
    async with Upkeep(containers, "one", "two", image="localhost/care-second:1") as care:
        await care.load()
        old, began = await care.found(), care.began()
        image(containers, "200 (bbb)", "localhost/care-second:1")
        care.models.failing["two"] = AccelError("model_failed", "cannot load two", tail=["last words"])
        error = await failed(care)
        assert error.fields["tail"] == ["last words"]
        assert "two is not loaded again: cannot load two" in error.message
        assert care.models.calls == [
            ("unload", "one"), ("load", "one"), ("unload", "two"), ("load", "two"),
            ("unload", "one"), ("load", "one"), ("load", "two"),
        ]  # fmt: skip
        await as_it_was(care, old.id, began)
        assert care.models.pid("one") in care.kit.sessions.pids(old)


async def test_a_model_that_a_person_takes_away_meanwhile_is_no_fault(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-away:1")
    async with Upkeep(containers, "one", image="localhost/care-away:1") as care:
        await care.load()
        image(containers, "200 (bbb)", "localhost/care-away:1")
        care.models.failing["one"] = AccelError("model_not_found", "there is no model one")
        assert (await care.refresh())["build"] == "200 (bbb)"


async def test_a_refresh_that_is_given_up_while_a_model_drains_is_undone(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-given-up:1")
    async with Upkeep(containers, "one", "two", image="localhost/care-given-up:1") as care:
        pids, old, began = await care.load(), await care.found(), care.began()
        image(containers, "200 (bbb)", "localhost/care-given-up:1")
        care.models.hold["two"] = asyncio.Event()
        job = care.upkeep.refresh(care.name)
        while ("unload", "two") not in care.models.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        job.abandon()
        job.abandon()  # the connection's end is told once, the daemon's end once more
        with pytest.raises(AccelError, match="given up"):
            await job.task
        assert care.models.pid("two") == pids["two"]
        await as_it_was(care, old.id, began)
        assert care.models.pid("one") in care.kit.sessions.pids(old)
        del care.models.hold["two"]
        assert (await care.refresh())["build"] == "200 (bbb)"


async def test_the_end_of_the_daemon_undoes_it_and_loads_nothing(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-end:1")
    async with Upkeep(containers, "one", "two", image="localhost/care-end:1") as care:
        await care.load()
        old, began = await care.found(), care.began()
        image(containers, "200 (bbb)", "localhost/care-end:1")
        care.models.hold["two"] = asyncio.Event()
        job = care.upkeep.refresh(care.name)
        while ("unload", "two") not in care.models.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await care.upkeep.close()
        assert job.task.done()
        assert care.models.calls == [("unload", "one"), ("load", "one"), ("unload", "two"), ("unload", "one")]
        await as_it_was(care, old.id, began)
        with pytest.raises(AccelError) as caught:
            care.upkeep.refresh(care.name)
        assert caught.value.code == "shutting_down"


async def test_a_disk_that_is_full_prevents_it_before_anything_is_done(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-full:1")
    async with Upkeep(containers, "one", image="localhost/care-full:1") as care:
        pids, old, began = await care.load(), await care.found(), care.began()
        image(containers, "200 (bbb)", "localhost/care-full:1")
        care.record.mkdir()  # what cannot be replaced by a file
        error = await failed(care)
        assert (error.code, "cannot write" in error.message) == ("toolbox_failed", True)
        assert "nothing was changed" in error.message
        care.record.rmdir()
        await as_it_was(care, old.id, began)
        assert care.models.pid("one") == pids["one"]


# --- the daemon dies ------------------------------------------------------------------------------------------

# where it dies, what is on disk then, does the next daemon find the new one worth keeping?
DEATHS = {
    "when-the-trial-is-made": ("start", 1, True, "trial", False),
    "when-the-trial-runs": ("start", 1, False, "trial", False),
    "when-the-trial-is-gone": ("rm", 1, False, "trial", False),
    "when-the-old-one-has-given-its-name": ("rename", 1, False, "swap", False),
    "when-the-new-one-is-made": ("start", 2, True, "swap", False),
    "when-the-new-one-runs": ("start", 2, False, "swap", False),
    "when-the-old-one-is-to-be-stopped": ("stop", 1, True, "proved", True),
    "when-the-old-one-is-to-be-removed": ("rm", 2, True, "proved", True),
}


@pytest.mark.parametrize("death", DEATHS)
async def test_what_a_daemon_leaves_that_dies_in_the_middle_the_next_one_repairs(
    containers: World, death: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    verb, nth, before, stage, keeps = DEATHS[death]
    tag = f"localhost/care-{death}:1"
    image(containers, "100 (aaa)", tag)
    async with Upkeep(containers, "one", image=tag) as care:
        await care.load()
        old, began = await care.found(), care.began()
        new_image = image(containers, "200 (bbb)", tag)
        kit = care.new_kit(DeadEngine(care.kit, verb, nth, before=before))
        with pytest.raises(Died):
            await ToolboxRefresh(kit, care.name, force=False, say=lambda *_, **__: None).run()
        begun = json.loads(care.record.read_text())["begun"]
        assert (begun["name"], begun["old"], begun.get("stage", "trial")) == (care.name, old.id, stage)

        upkeep = await care.again()
        await upkeep.repair()
        assert care.containers() == [care.name]
        assert care.kit.record.begun is None
        assert json.loads(care.record.read_text())["begun"] is None
        assert f"a refresh of toolbox {care.name} was interrupted" in caplog.text
        assert await care.models.answers("one")
        found = await care.found()
        assert care.models.pid("one") in care.kit.sessions.pids(found)
        if keeps:
            assert found.image_id == new_image
            assert "the new one is in place" in caplog.text
        else:
            assert "the old one is in place as before" in caplog.text
            await as_it_was(care, old.id, began)
            assert (await care.refresh())["build"] == "200 (bbb)"


async def test_the_next_refresh_repairs_what_the_start_of_the_daemon_could_not(containers: World) -> None:
    tag = "localhost/care-later:1"
    image(containers, "100 (aaa)", tag)
    async with Upkeep(containers, "one", image=tag) as care:
        await care.load()
        image(containers, "200 (bbb)", tag)
        kit = care.new_kit(DeadEngine(care.kit, "rename"))
        with pytest.raises(Died):
            await ToolboxRefresh(kit, care.name, force=False, say=lambda *_, **__: None).run()
        assert care.containers() == [f"{care.name}-old"]
        blocker = f"{care.name}"
        containers.podman("create", "--name", blocker, containers.image, "true")
        containers.podman("create", "--name", f"{care.name}-new", containers.image, "true")
        upkeep = await care.again()
        last = await upkeep.refresh(care.name).task
        assert last["build"] == "200 (bbb)"
        assert care.containers() == [care.name]
        assert await care.models.answers("one")


async def test_models_are_not_loaded_again_after_the_machine_was_started_anew(containers: World) -> None:
    tag = "localhost/care-boot:1"
    image(containers, "100 (aaa)", tag)
    async with Upkeep(containers, "one", image=tag) as care:
        await care.load()
        image(containers, "200 (bbb)", tag)
        kit = care.new_kit(DeadEngine(care.kit, "rename"))
        with pytest.raises(Died):
            await ToolboxRefresh(kit, care.name, force=False, say=lambda *_, **__: None).run()
        begun = json.loads(care.record.read_text())
        assert begun["begun"]["loaded"] == ["one"]
        begun["begun"]["boot"] = "another"
        care.record.write_text(json.dumps(begun))
        await care.models.end()
        await (await care.again()).repair()
        assert care.models.calls == []
        assert care.containers() == [care.name]


async def test_a_person_who_entered_the_new_one_before_it_failed_is_not_thrown_out(containers: World) -> None:
    image(containers, "100 (aaa)", "localhost/care-entered:1")
    async with Upkeep(containers, "one", image="localhost/care-entered:1") as care:
        await care.load()
        old, began = await care.found(), care.began()
        image(containers, "200 (bbb)", "localhost/care-entered:1")
        care.models.hold["one"] = asyncio.Event()
        job = care.upkeep.refresh(care.name)
        while not care.models.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        with Session(care.name) as session:  # the name means the new one now
            job.abandon()
            with pytest.raises(AccelError):
                await job.task
            found = await care.found()
            assert (found.id, care.began()) == (old.id, began)
            assert session.lives()
            assert care.containers() == [care.name, f"{care.name}-new"]
            session.leave()
        await (await care.again()).repair()
        await as_it_was(care, old.id, began)
