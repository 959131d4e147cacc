"""What the objects say and do, on a bus that is a list: the order of what is told, jobs that are joined, refusals."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from accelerd.base.errors import AccelError
from accelerd.base.exits import Cause, Exit
from accelerd.base.names import BUS_MANAGER, BUS_MODEL, BUS_PATH
from accelerd.bus.paths import device_path, model_path
from accelerd.config.model import ModelSpec
from accelerd.config.problems import Problem
from accelerd.control import downloads
from accelerd.control.jobs import UNFINISHED_MOST
from accelerd.control.operations import ModelRequest
from accelerd.control.status import model as one_model
from accelerd.memory.model import Forecast, in_ram
from accelerd.scheduler.lifecycle import State
from tests.bus.desk_world import GIB, GPU, LIMITS, SETTINGS, World, configure, desk_of, model, until
from tests.bus.fake_bus import methods
from tests.settled import pytest_pyfunc_call, settled  # noqa: F401

M = model_path("m")


async def refused(code: str, call: Any) -> AccelError:
    with pytest.raises(AccelError) as caught:
        await call
    assert caught.value.code == code
    return caught.value


async def test_everything_there_is_has_an_object() -> None:
    async with desk_of(model("m", aliases=("gpt",)), model("Ü/2")) as world:
        assert {path for path in world.bus.values if path != BUS_PATH} == {
            M, model_path("Ü/2"), device_path("cpu"), device_path(GPU.id),
        }  # fmt: skip
        assert world.shown("m")["Aliases"] == ["gpt"]
        assert world.bus.values[BUS_PATH]["NModels"] == 2
        assert await world.manager("GetModel", "gpt") == M
        assert await world.manager("GetDevice", GPU.id) == device_path(GPU.id)
        await refused("model_not_found", world.manager("GetModel", "nobody"))
        await refused("device_not_found", world.manager("GetDevice", "nothing"))


async def test_models_come_and_go_with_the_configuration() -> None:
    async with desk_of(model("m")) as world:
        configure(world, model("n"))
        await until(lambda: model_path("n") in world.bus.values)
        assert M not in world.bus.values
        assert world.bus.values[BUS_PATH]["NModels"] == 1


async def test_a_device_comes_and_goes() -> None:
    async with desk_of(model("m")) as world:
        world.devices = world.devices[:1]
        world.desk.changed()
        await until(lambda: device_path(GPU.id) not in world.bus.values)
        world.devices = (*world.devices, GPU)
        world.desk.changed()
        await until(lambda: device_path(GPU.id) in world.bus.values)


# --- jobs and their order ---


async def test_a_job_is_told_before_its_model_and_its_end_last() -> None:
    async with desk_of(model("m")) as world:
        job = await world.manager("LoadModel", "m", {})
        await until(lambda: world.started)
        await until(lambda: world.shown("m")["State"] == "starting")
        assert world.shown("m")["Job"] == job
        world.ready("m")
        assert await world.bus.call(job, "Wait") == "done"
        result = world.bus.place(lambda one: one[:2] == ("changed", job) and one[2].get("Result") == "done")
        state = world.bus.place(lambda one: one[:2] == ("changed", M) and one[2].get("State") == "ready")
        removed = world.bus.place(lambda one: one[0] == "JobRemoved")
        assert result < state < removed
        assert world.bus.told[removed][2] == (1, job, M, "done")
        assert world.shown("m")["Job"] == "/"
        assert world.bus.values[job]["Progress"] == 1.0


async def test_a_load_that_fails_is_told_in_the_same_order_and_wait_says_why() -> None:
    async with desk_of(model("m")) as world:
        job = await world.manager("LoadModel", "m", {})
        await until(lambda: world.started)
        world.gone("m", Exit(Cause.NO_MODEL, "the file is missing"))
        await refused("model_failed", world.bus.call(job, "Wait"))
        shown = world.bus.values[job]
        assert (shown["Result"], shown["ErrorName"]) == ("failed", "org.accelerd1.Error.ModelFailed")
        assert "the file is missing" in shown["ErrorMessage"]
        result = world.bus.place(lambda one: one[:2] == ("changed", job) and one[2].get("Result") == "failed")
        state = world.bus.place(lambda one: one[:2] == ("changed", M) and one[2].get("State") == "failed")
        assert result < state < world.bus.place(lambda one: one[0] == "JobRemoved")
        assert world.shown("m")["LastError"] == ("no-model", "the file is missing")
        events = [json.loads(one[2][0]) for one in world.bus.told if one[:2] == ("Event", job)]
        assert events[-1]["event"] == "error"
        await world.manager("ResetFailed", "")
        await until(lambda: world.shown("m")["State"] == "stopped")


async def test_who_joins_a_load_has_the_same_job() -> None:
    async with desk_of(model("m", aliases=("gpt",))) as world:
        first = await world.manager("LoadModel", "m", {})
        assert await world.manager("LoadModel", "gpt", {"allow-evict": True}, sender=":1.2") == first
        assert await world.bus.call(M, "Load", {}) == first
        await until(lambda: world.started)
        world.ready("m")
        waits = [asyncio.create_task(world.bus.call(first, "Wait")) for _ in range(3)]
        assert await asyncio.gather(*waits) == ["done"] * 3
        again = await world.manager("LoadModel", "m", {})
        assert again != first
        assert await world.bus.call(again, "Wait") == "done"
        assert len(world.started) == 1


async def test_an_unload_ends_a_load_as_superseded() -> None:
    async with desk_of(model("m")) as world:
        load = await world.manager("LoadModel", "m", {})
        await until(lambda: world.started)
        unload = await world.bus.call(M, "Unload", "now", {})
        assert await world.bus.call(load, "Wait") == "superseded"
        await until(lambda: world.stopped)
        world.gone("m")
        assert await world.bus.call(unload, "Wait") == "done"
        assert world.shown("m")["State"] == "stopped"


async def test_a_load_that_is_cancelled_stops_unless_requests_wait_for_it() -> None:
    async with desk_of(model("m"), model("n")) as world:
        alone, shared = await world.manager("LoadModel", "m", {}), await world.manager("LoadModel", "n", {})
        await until(lambda: len(world.started) == 2)
        request = asyncio.create_task(world.scheduler.wait("n"))
        await asyncio.sleep(0)
        for job in (alone, shared):
            await world.bus.call(job, "Cancel")
            assert await world.bus.call(job, "Wait") == "canceled"
        assert world.stopped == [dict(world.started)["m"]]
        world.ready("n")
        world.scheduler.release(await request, True)
        world.gone("m")


async def test_progress_of_a_load_is_what_is_resident() -> None:
    async with desk_of(model("m")) as world:
        job = await world.manager("LoadModel", "m", {})
        await until(lambda: world.bus.values[job]["Progress"] > 0)
        assert world.bus.values[job]["Progress"] == 0.25
        assert world.bus.values[job]["Phase"] == "starting"
        world.ready("m")
        await world.bus.call(job, "Wait")


async def test_a_reload_tells_what_changed_and_cannot_be_ended_early() -> None:
    async with desk_of(model("m")) as world:
        world.reloads = [{"added": ["n"]}, AccelError("config_invalid", "cannot use the configuration")]
        job = await world.manager("Reload", {})
        assert await world.bus.call(job, "Wait") == "done"
        [event] = [json.loads(one[2][0]) for one in world.bus.told if one[:2] == ("Event", job)]
        assert (event["event"], event["added"], event["removed"]) == ("reloaded", ["n"], [])
        bad = await world.manager("Reload", {})
        await refused("config_invalid", world.bus.call(bad, "Wait"))
        await world.bus.call(bad, "Cancel")  # over already: nothing happens
        world.reloads = [{}]
        under_way = await world.manager("Reload", {})
        await refused("not_supported", world.bus.call(under_way, "Cancel"))
        assert await world.bus.call(under_way, "Wait") == "done"


async def test_rescan_yield_and_resume_are_jobs() -> None:
    async with desk_of(model("m")) as world:
        rescan = await world.bus.call(device_path(GPU.id), "Rescan", {})
        assert await world.bus.call(rescan, "Wait") == "done"
        given = await world.manager("YieldMemory", {"for-usec": 60_000_000, "now": True})
        assert await world.bus.call(given, "Wait") == "done"
        await until(lambda: world.bus.values[BUS_PATH]["Yield"])
        assert world.bus.values[BUS_PATH]["Yield"]["devices"].value == [device_path(GPU.id)]
        back = await world.manager("Resume", {})
        assert await world.bus.call(back, "Wait") == "done"
        await until(lambda: world.bus.values[BUS_PATH]["Yield"] == {})


# --- eviction ---


async def test_evict_takes_what_is_idle_and_refuses_as_a_whole() -> None:
    async with desk_of(model("m"), model("kept", pin=True)) as world:
        await world.loaded("m", "kept")
        world.used(m=2 * GIB, kept=GIB)
        error = await refused("does_not_fit", world.manager("Evict", 3 * GIB, device_path("cpu"), {}))
        assert "2.0 GiB" in error.message
        assert not world.stopped
        await refused("device_not_found", world.manager("Evict", 1, device_path("none"), {}))
        job = await world.manager("Evict", GIB, device_path("cpu"), {})
        await until(lambda: world.stopped)
        world.gone("m")
        assert await world.bus.call(job, "Wait") == "done"
        [last] = [json.loads(one[2][0]) for one in world.bus.told if one[:2] == ("Event", job)][-1:]
        assert last["models"] == [{"model": "m", "size": 2 * GIB}]
        assert world.scheduler.snapshot("kept").state is State.READY


# --- arguments ---


@pytest.mark.parametrize(("method", "args"), [
    ("LoadModel", ("m", {"allow-evict": 1})),
    ("LoadModel", ("m", {"allow_evict": True})),
    ("UnloadModel", ("m", "kill", {})),
    ("UnloadModel", ("m", "now", {"force": True})),
    ("Evict", (0, "/", {"busy": "yes"})),
    ("YieldMemory", ({"for-usec": 0},)),
    ("YieldMemory", ({"for-usec": True},)),
    ("YieldMemory", ({"for-usec": 1 << 63},)),
    ("YieldMemory", ({"for": 5},)),
    ("Resume", ({"x": 1},)),
    ("Reload", ({"x": 1},)),
    ("Tune", ("m", {"quick": 1})),
    ("RefreshToolbox", ("box", {"x": True})),
    ("PinModel", ("m", "because", "", {"x": True})),
    ("PinModel", ("m", " ", "", {})),
    ("PinModel", ("m", "two\nlines", "", {})),
    ("HoldModel", ("m", "because", "no application!", {})),
    ("Query", ("explain", {})),
    ("Query", ("explain", {"model": "m", "x": "y"})),
    ("Query", ("logs", {"model": "m", "lines": "-1"})),
])  # fmt: skip
async def test_what_is_wrong_is_refused_and_nothing_has_happened(method: str, args: tuple[Any, ...]) -> None:
    async with desk_of(model("m")) as world:
        await refused("bad_request", world.manager(method, *args))
        assert not world.started
        assert not world.given
        assert world.api.parts.jobs.all() == []
        assert world.api.parts.pins.all() == []


async def test_every_method_of_the_manager_is_there() -> None:
    """With no arguments each fails because they are missing, and for nothing else."""
    async with desk_of(model("m")) as world:
        for method in methods(BUS_MANAGER) - {"CheckConfig"}:
            with pytest.raises((TypeError, IndexError)):
                await world.manager(method)
        for method in methods(BUS_MODEL) - {"ResetFailed"}:
            with pytest.raises((TypeError, IndexError)):
                await world.bus.call(M, method)


async def test_names_that_nobody_has() -> None:
    async with desk_of(model("m")) as world:
        for method, args in (
            ("LoadModel", ("no", {})), ("UnloadModel", ("no", "now", {})), ("Tune", ("no", {})),
            ("PinModel", ("no", "why", "", {})), ("HoldModel", ("no", "why", "", {})), ("ResetFailed", ("no",)),
            ("ForgetMemory", ("no",)), ("Query", ("fit", {"model": "no"})),
        ):  # fmt: skip
            await refused("model_not_found", world.manager(method, *args))
        await refused("not_found", world.manager("Query", "secrets", {}))
        assert world.api.parts.jobs.all() == []


async def test_a_download_is_a_job_of_the_model_whose_files_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(downloads, "Download", lambda *args, **settings: SimpleNamespace(run=never))
    spec = ModelSpec(name="m", model="tiny/hello:Q4_K_M")
    async with desk_of(model("other")) as world:
        missing = Forecast((in_ram(GIB, "test"),), missing=True)
        world.scheduler.configure([(spec, missing)], SETTINGS, LIMITS)
        load = await world.manager("LoadModel", "m", {})
        await until(lambda: model_path("m") in world.bus.values and world.shown("m")["State"] == "downloading")
        job = await world.manager("Download", "hf:tiny/hello:Q4_K_M", {})
        assert await world.manager("Download", "tiny/hello:Q4_K_M", {}) == job
        assert world.bus.values[job]["Subject"] == model_path("m")
        await until(lambda: world.shown("m")["Job"] == job)
        another = await world.manager("Download", "tiny/other", {})
        assert world.bus.values[another]["Subject"] == "/"
        await world.bus.call(job, "Cancel")
        assert await world.bus.call(job, "Wait") == "canceled"
        await until(lambda: world.shown("m")["Job"] == load)
        for option in ({"force": True}, {"source": "x"}):
            await refused("bad_request", world.manager("Download", "tiny/hello", option))


# --- looks ---


async def test_query_answers_what_the_control_socket_does() -> None:
    async with desk_of(model("m")) as world:
        status = json.loads(await world.manager("Query", "status", {}))
        assert [one["name"] for one in status["models"]] == ["m"]
        logs = json.loads(await world.manager("Query", "logs", {"model": "m", "lines": "2"}))
        assert logs == {"model": "m", "lines": ["two", "three"]}
        assert json.loads(await world.manager("Query", "fit", {"model": "m"}))["placement"]["fits"] is True
        assert json.loads(await world.manager("Query", "memory/learned", {})) == {"learned": []}
        assert await world.bus.call(M, "GetOutput", 1) == ["three"]
        assert await world.bus.call(M, "GetOutput", 0) == ["one", "two", "three"]
        await refused("bad_request", world.bus.call(M, "GetOutput", 10_001))
        assert await world.manager("ForgetMemory", "") == 3


async def test_problems_of_the_configuration_have_the_keys_that_are_known() -> None:
    async with desk_of(model("m")) as world:
        world.wrong = [
            Problem("accelerd.toml", 3, "models.m.path", "is missing"),
            Problem("accelerd.toml", None, "", "no"),
        ]
        [first, second] = await world.manager("CheckConfig")
        assert (first["severity"], first["line"].value, first["key"]) == ("error", 3, "models.m.path")
        assert second.keys() == {"severity", "message", "file", "key"}


async def test_a_flood_of_loads_is_refused_beyond_a_number() -> None:
    async with desk_of(*(model(f"m{number}") for number in range(UNFINISHED_MOST + 1))) as world:
        for number in range(UNFINISHED_MOST):
            await world.manager("LoadModel", f"m{number}", {})
        for _ in range(10):
            await world.manager("LoadModel", "m0", {})  # joins
        await refused("queue_full", world.manager("LoadModel", f"m{UNFINISHED_MOST}", {}))
        assert world.bus.values[BUS_PATH]["NJobs"] == 0, "told when there is time for it"
        await until(lambda: world.bus.values[BUS_PATH]["NJobs"] == UNFINISHED_MOST)


# --- pins ---


async def test_pins_of_a_client_that_vanishes_are_released() -> None:
    async with desk_of(model("m")) as world:
        cookie = await world.manager("PinModel", "m", "a demo", "org.example.App", {})
        held = await world.manager("HoldModel", "m", "writing", "", {}, sender=":1.2")
        await until(lambda: len(world.bus.values[BUS_PATH]["Pins"]) == 2)
        assert world.bus.values[BUS_PATH]["Pins"][0] == (cookie, M, "pin", "a demo", "org.example.App")
        await until(lambda: world.shown("m")["Pinned"] and world.shown("m")["Held"])
        await refused("pin_not_found", world.manager("Unpin", held))
        world.bus.watched[":1.1"](":1.1")
        await until(lambda: not world.shown("m")["Pinned"])
        assert world.shown("m")["Held"]
        await world.manager("Release", held, sender=":1.2")
        await until(lambda: world.bus.values[BUS_PATH]["Pins"] == [])
        released = [one for one in world.bus.told if one[0] == "PinReleased"]
        assert released == [("PinReleased", BUS_PATH, (held, "released"), ":1.2")], "nobody is told who has gone"


# --- throttled, silent, idle ---


async def busy(world: World) -> None:
    """A request comes, and goes."""
    lease = world.scheduler.acquire("m")
    assert lease is not None
    world.scheduler.release(lease, True)


async def test_what_requests_change_is_told_once_a_second_at_most() -> None:
    async with desk_of(model("m")) as world:
        await world.loaded("m")
        await until(lambda: world.shown("m")["State"] == "ready")
        before = len(world.bus.told)
        for _ in range(100):
            await busy(world)
            await asyncio.sleep(0)
        assert [one for one in world.bus.told[before:] if "InFlight" in str(one)] == []
        lease = world.scheduler.acquire("m")
        assert lease is not None
        await until(lambda: world.shown("m")["InFlight"] == 1, every=0.01)
        assert world.bus.changes(M, "InFlight") == [1]
        await until(lambda: world.looks > 0, every=0.01)  # at devices: somebody listens and a model is loaded
        world.scheduler.release(lease, True)


async def test_nobody_listens_nobody_is_told_but_what_is_read_is_true() -> None:
    async with desk_of(model("m")) as world:
        world.bus.listeners = 0
        await world.loaded("m")
        world.used(m=3 * GIB)
        await until(lambda: world.shown("m")["MemoryUsed"] == 3 * GIB, every=0.01)
        assert world.bus.changes(M, "MemoryUsed") == []
        assert world.looks == 0


async def test_status_and_bus_say_the_same_of_what_a_model_uses() -> None:
    async with desk_of(model("m")) as world:
        await world.loaded("m")
        world.used(m=GIB, of_gpu=3 * GIB)
        await until(lambda: world.shown("m")["MemoryUsed"] == 4 * GIB, every=0.01)
        assert (await one_model(world.api.parts, ModelRequest("m"))).memory_used == 4 * GIB, "also what it has of a GPU"


async def test_while_nothing_happens_nothing_is_armed() -> None:
    async with desk_of(model("m")) as world:
        tree = world.desk.tree
        assert tree is not None
        await until(lambda: tree.idle, every=0.01)
        told = len(world.bus.told)
        await asyncio.sleep(0)
        assert len(world.bus.told) == told


# --- the daemon ---


async def test_the_daemon_says_how_it_is() -> None:
    async with desk_of(model("m")) as world:
        own = world.bus.values[BUS_PATH]
        assert (own["State"], own["DegradedReasons"]) == ("running", [])
        world.lacks = ["memory cannot be measured"]
        world.desk.changed()
        await until(lambda: own["State"] == "degraded")
        assert own["DegradedReasons"] == ["memory cannot be measured"]
        world.state = "draining"
        world.desk.changed()
        await until(lambda: own["State"] == "draining")
        await refused("shutting_down", world.manager("LoadModel", "m", {}))
        await refused("shutting_down", world.manager("PinModel", "m", "why", "", {}))


async def test_who_waits_when_the_daemon_ends_hears_that_the_job_was_cancelled() -> None:
    async with desk_of(model("m")) as world:
        job = await world.manager("LoadModel", "m", {})
        waiting = asyncio.create_task(world.bus.call(job, "Wait"))
        await until(lambda: world.started)
        await world.desk.close()
        assert await waiting == "canceled"
        assert world.bus.told[-1] == ("closed",)


async def test_without_a_bus_there_is_nothing_to_do() -> None:
    async with desk_of(model("m"), begin=False) as world:
        await asyncio.gather(world.scheduler.unload("m"))
        assert world.bus.told == []
