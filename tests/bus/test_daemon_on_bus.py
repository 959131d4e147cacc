"""A whole daemon on a private session bus: what a desktop tool does with busctl, while others stream."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from accelerd.base import names
from accelerd.bus.paths import model_path
from tests.bus.live import Live, environment
from tests.daemon.conftest import site
from tests.daemon.kit import QUICK, Site, rest_of, side_by_side, sse, tokens, whole_stream
from tests.harness import DaemonFactory, eventually, streaming
from tests.system.fake_services import private_bus

__all__ = ["site"]

NEW = "hf.co/a.b/new-1:q4"
STREAM = {"FAKE_TOKENS": "40"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("live")
    site = Site(directory)
    toml = [
        QUICK,
        site.model("m", memory=5_000_000, aliases=["gpt"]),
        site.model("other", memory=5_000_000),
        site.model("streams", "slow-token:50", STREAM, memory=5_000_000),
        site.model("slow", "slow-load:60", memory=5_000_000),
        site.model("broken", "exit:9", memory=5_000_000),
    ]
    with private_bus(directory / "bus") as bus, DaemonFactory(directory) as daemons:
        yield Live(daemons.start("".join(toml), env=environment(bus)), bus)


def test_the_tree_is_there_when_the_daemon_says_that_it_is_ready(live: Live) -> None:
    found = live.busctl("tree", "--list", names.BUS_NAME).split()
    for path in (names.BUS_PATH, f"{names.BUS_DEVICES}/cpu", model_path("m"), model_path("streams")):
        assert path in found
    assert live.get(names.BUS_PATH, "State") in ("running", "degraded")
    assert live.get(names.BUS_PATH, "Endpoints") == [live.daemon.url]
    assert live.get(names.BUS_PATH, "ConfigGeneration") >= 1


def test_introspection_reads_like_a_manual(live: Live) -> None:
    for path, words in (
        (names.BUS_PATH, (".LoadModel", ".DegradedReasons", ".JobRemoved")),
        (model_path("m"), (".GetOutput", ".StateReason")),
        (f"{names.BUS_DEVICES}/cpu", (".Rescan", ".MemoryTotal")),
    ):
        text = live.busctl("introspect", names.BUS_NAME, path)
        assert all(word in text for word in words), text


def test_a_model_is_loaded_while_another_client_streams(live: Live) -> None:
    with side_by_side() as do:
        stream = do(whole_stream, live.daemon, "streams")
        live.wait_state("streams", "ready")
        job = live.load("gpt")
        assert live.wait(job) == "done"
        assert (live.model("m", "State"), live.model("m", "Job")) == ("ready", "/")
        assert live.model("m", "Pid") == live.daemon.status("m")["pid"]
        status, events, complete = stream.result()
    assert (status, complete, len(tokens(events))) == (200, True, 40)
    assert live.wait(live.call("UnloadModel", "ssa{sv}", "m", "drain", "0")) == "done"
    assert live.model("m", "State") == "stopped"


def test_the_job_is_there_at_once_while_the_model_loads(live: Live) -> None:
    job = live.load("slow")
    assert live.get(job, "Result") == ""
    assert live.load("slow") == job
    live.wait_state("slow", "starting")
    assert live.model("slow", "Job") == job
    live.busctl("call", names.BUS_NAME, job, names.BUS_JOB, "Cancel")
    assert live.wait(job) == "canceled"
    live.wait_state("slow", "stopped")


def test_a_load_that_fails_answers_wait_with_its_error(live: Live) -> None:
    job = live.load("broken")
    assert "status 9" in live.refusal("Wait", path=job)
    assert live.get(job, "Result") == "failed"
    assert live.get(job, "ErrorName").startswith("org.accelerd1.Error.")
    assert live.model("broken", "LastError")[0] == "exited"


def test_both_doors_answer_the_same(live: Live) -> None:
    for topic, arguments in (("fit", {"model": "m"}), ("memory/learned", {}), ("status", {})):
        words = [word for pair in arguments.items() for word in pair]
        told = json.loads(live.call("Query", "sa{ss}", topic, str(len(arguments)), *words))
        query = "&".join(f"{key}={value}" for key, value in arguments.items())
        asked = live.daemon.control("GET", f"{topic}?{query}").json()
        assert told.keys() == asked.keys()
        if topic != "status":
            assert told == asked


def test_a_pin_ends_with_the_client_that_has_it(live: Live) -> None:
    """busctl leaves the bus as soon as it has its answer."""
    cookie = live.call("PinModel", "sssa{sv}", "other", "a demo", "org.example.App", "0")
    assert cookie > 0
    eventually(lambda: live.get(names.BUS_PATH, "Pins") == [], "the pin is released")
    assert "pin" in live.refusal("Unpin", "u", str(cookie))
    assert "a demo" in live.daemon.output()


def test_a_reload_shows_new_models_and_tells_what_is_wrong(
    live: Live, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = live.daemon.config.read_text()
    site = Site(tmp_path_factory.mktemp("more"))
    live.daemon.config.write_text(before + site.model(NEW))
    assert live.wait(live.call("Reload", "a{sv}", "0")) == "done"
    eventually(lambda: live.get(names.BUS_PATH, "ConfigGeneration") == 2, "the configuration counts")
    assert live.get(names.BUS_PATH, "ConfigInUse") is True
    assert live.model(NEW, "State") == "stopped"
    live.daemon.config.write_text(before + "[models.bad]\npath = 5\n")
    [problem] = live.call("CheckConfig")
    assert problem["key"]["data"] == "models.bad.path"
    assert "models.bad.path" in live.refusal("Wait", path=live.call("Reload", "a{sv}", "0"))
    eventually(lambda: live.get(names.BUS_PATH, "ConfigInUse") is False, "what is on disk is not in use")
    live.daemon.config.write_text(before)
    assert live.wait(live.call("Reload", "a{sv}", "0")) == "done"
    assert model_path(NEW) not in live.busctl("tree", "--list", names.BUS_NAME).split()


# --- the bus itself ---


def test_the_bus_dies_under_streams_and_none_breaks(site: Site, daemons: DaemonFactory) -> None:
    with private_bus(site.directory / "bus") as bus:
        toml = QUICK + site.model("m", "slow-token:50", STREAM, memory=5_000_000, parallel=4)
        live = Live(daemons.start(toml, env=environment(bus)), bus)
        assert live.wait(live.load("m")) == "done"
        with side_by_side() as do, streaming(live.daemon, "m") as response:
            others = [do(whole_stream, live.daemon, "m") for _ in range(3)]
            first = response.read1(200)
            bus.stop()
            eventually(lambda: "session bus" in (live.daemon.status()["degraded"] or ""), "the loss is told")
            text, complete = rest_of(response)
            assert complete
            assert len(tokens(sse(first.decode() + text))) == 40
            for stream in others:
                status, events, whole = stream.result()
                assert (status, whole, len(tokens(events))) == (200, True, 40)
        assert live.daemon.chat("m").status == 200
        bus.start()
        eventually(live.is_there, "the name is back")
        assert live.model("m", "State") == "ready"
        assert live.wait(live.call("UnloadModel", "ssa{sv}", "m", "drain", "0")) == "done"
        eventually(lambda: "session bus" not in (live.daemon.status()["degraded"] or ""), "all is well again")


def test_a_bus_that_comes_later_is_found(site: Site, daemons: DaemonFactory) -> None:
    with private_bus(site.directory / "bus") as bus:
        bus.stop()
        live = Live(daemons.start(QUICK + site.model("m"), env=environment(bus)), bus)
        assert "session bus" in live.daemon.status()["degraded"]
        assert live.daemon.chat("m").status == 200
        bus.start()
        eventually(live.is_there, "the name is there")
        assert live.model("m", "State") == "ready"


def test_a_second_daemon_has_no_desk_and_says_so(site: Site, daemons: DaemonFactory) -> None:
    with private_bus(site.directory / "bus") as bus:
        first = Live(daemons.start(QUICK + site.model("a"), env=environment(bus)), bus)
        second = daemons.start(QUICK + site.model("b"), env=environment(bus))
        assert "another program has the name" in second.status()["degraded"]
        assert second.chat("b").status == 200
        assert first.model("a", "State") == "stopped"
        assert model_path("b") not in first.busctl("tree", "--list", names.BUS_NAME).split()


def test_without_a_bus_nothing_is_said_of_one(site: Site, daemons: DaemonFactory) -> None:
    daemon = daemons.start(QUICK + site.model("m"))
    assert "bus" not in (daemon.status()["degraded"] or "")
    assert daemon.chat("m").status == 200


def test_who_waits_when_the_daemon_is_stopped_has_an_answer(site: Site, daemons: DaemonFactory) -> None:
    with private_bus(site.directory / "bus") as bus:
        live = Live(daemons.start(QUICK + site.model("m", "slow-load:60"), env=environment(bus)), bus)
        job = live.load("m")
        live.wait_state("m", "starting")
        with side_by_side() as do:
            waiting = do(live.refusal, "Wait", path=job)
            eventually(lambda: live.get(job, "State") == "running", "the job runs")
            assert live.daemon.stop() == 0
            assert "shutting down" in waiting.result() or "about to end" in waiting.result()
