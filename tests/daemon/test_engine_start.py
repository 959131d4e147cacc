"""Engines that do not start as they should: what waits is answered at once, with the reason, and nothing is left."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.kit import QUICK, Site, history, kill_engine, marked, side_by_side
from tests.harness import Daemon, DaemonFactory, eventually

FIRST_DELAY = 0.05  # s, see QUICK
PATIENCE = 1.2  # s: start_timeout, long enough for an interpreter to start on a busy machine
SLOW = "slow-load:30,chatter:20"
HANGING = {
    "never-listens": "never-listen",
    "loads-for-ever": "health-503",
}
UNTRUSTED = {
    "foreign-ok": "answers to any key",
    "wrong-key": "refuses the key",
}


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    toml = [
        QUICK,
        sites.model("good"),
        sites.model("missing").replace("fake_server.py", "no_such_server"),
        sites.model("exits", "exit:7"),
        sites.model("exits-with-0", "exit:0"),
        sites.model("crowd", SLOW),
        *(sites.model(name, mode, start_timeout=PATIENCE) for name, mode in HANGING.items()),
        sites.model("slow-but-sure", f"slow-load:{PATIENCE * 1.5},chatter:50", start_timeout=PATIENCE),
        *(sites.model(name, name) for name in UNTRUSTED),
    ]
    return factory.start("".join(toml))


def error_of(daemon: Daemon, model: str) -> dict[str, Any]:
    answer = daemon.chat(model)
    assert answer.status == 503, answer.body
    return dict(answer.json()["error"])


def test_a_missing_program_is_named_with_what_to_do(daemon: Daemon) -> None:
    error = error_of(daemon, "missing")
    assert error["code"] == "model_failed"
    assert "no_such_server" in error["message"]
    assert "install llama.cpp" in error["message"]
    seen = daemon.status("missing")
    assert (seen["state"], seen["pid"]) == ("failed", None)
    assert "no_such_server" in seen["error"]["message"]
    since = seen["since"]
    later = eventually(lambda: (s := daemon.status("missing"))["since"] > since + 0.3 and s, "some time has passed")
    assert later["state"] == "failed"  # nobody asks, nothing loops


def test_a_program_that_is_not_executable_works_once_it_is(daemons: DaemonFactory, site: Site) -> None:
    program = site.directory / "server"
    program.write_text("#!/bin/sh\n")
    model = site.model("m").replace("tests/fakes/fake_server.py", "nothing")
    model = "\n".join(f'binary = "{program}"' if line.startswith("binary") else line for line in model.splitlines())
    daemon = daemons.start(QUICK + model + "\n")
    error = error_of(daemon, "m")
    assert error["code"] == "model_failed"
    assert f"{program}: it is not executable" in error["message"]
    assert daemon.state("m") == "failed"
    program.unlink()
    program.symlink_to(Path(__file__).parents[1] / "fakes" / "fake_server.py")
    eventually(lambda: daemon.chat("m").status == 200, "the program is there now")


def test_exits_before_listening_fails_the_waiting_request_at_once(daemon: Daemon, sites: Site) -> None:
    assert daemon.chat("good").status == 200  # what the program can do is known from here on
    error = error_of(daemon, "exits")
    answered = time.monotonic()
    exited = sites.events("exit", "exits")[0]
    assert answered - exited["t"] < 1.0
    assert "exited with status 7" in error["message"]
    assert "before it was ready: main: exiting due to mode exit:7" in error["message"]
    assert any("exiting due to mode exit:7" in line for line in error["tail"])
    assert len(error["tail"]) <= 20


def test_an_exit_with_0_before_listening_is_a_failure_too(daemon: Daemon) -> None:
    error = error_of(daemon, "exits-with-0")
    assert "exited with status 0" in error["message"]
    assert "before it was ready" in error["message"]
    assert daemon.state("exits-with-0") in ("backoff", "stopped")


def test_a_crash_while_loading_gives_all_who_wait_the_same_error(daemon: Daemon, sites: Site) -> None:
    with side_by_side() as do:
        waiting = [do(daemon.chat, "crowd") for _ in range(20)]
        eventually(lambda: daemon.status("crowd")["queue"] == 20 and sites.spawns("crowd"), "all wait")
        held = daemon.control("GET", "status").json()["scheduler"]["memory_used"]
        kill_engine(daemon, "crowd")
        answers = [request.result(20) for request in waiting]
    assert {a.status for a in answers} == {503}
    assert len({a.body for a in answers}) == 1
    assert "SIGKILL" in answers[0].json()["error"]["message"]
    assert answers[0].headers["retry-after"]
    assert sites.spawns("crowd") == 1
    after = daemon.control("GET", "status").json()["scheduler"]
    assert held - after["memory_used"] >= daemon.status("crowd")["memory"]
    assert after["queue"] == 0


def test_a_hanging_load_ends_at_its_deadline_and_progress_extends_it(daemon: Daemon, sites: Site) -> None:
    with side_by_side() as do:
        slow = do(daemon.chat, "slow-but-sure")
        errors = {name: do(error_of, daemon, name) for name in HANGING}
        for name, asked in errors.items():
            error = asked.result(20)
            assert time.monotonic() - sites.events("spawn", name)[0]["t"] >= PATIENCE
            assert "start_timeout" in error["message"]
            assert f"no progress for {PATIENCE:g} s" in error["message"]
            assert any("fake server" in line for line in error["tail"])
            assert daemon.status(name)["pid"] is None
        assert slow.result(20).status == 200
    assert daemon.status("slow-but-sure")["load_seconds"] > PATIENCE * 1.5


@pytest.mark.parametrize("name", UNTRUSTED)
def test_a_server_whose_key_is_not_ours_never_becomes_ready(daemon: Daemon, sites: Site, name: str) -> None:
    error = error_of(daemon, name)
    assert UNTRUSTED[name] in error["message"]
    assert daemon.state(name) == "failed"
    assert "ready" not in history(daemon, name)
    assert sites.events("start", name) == []  # no prompt went to it


def test_nothing_of_all_these_starts_is_left(daemon: Daemon) -> None:
    alive = {daemon.status(name)["pid"] for name in ("good", "slow-but-sure")}
    eventually(lambda: {p.pid for p in marked(daemon)} <= alive, "only good engines live")
    assert [p for p in daemon.children() if p.status() == "zombie"] == []


def test_a_crash_loop_backs_off_and_ends_in_failed_until_reset(daemons: DaemonFactory, site: Site) -> None:
    limits = "max_failures = 4\n"
    daemon = daemons.start(QUICK + limits + site.model("m", "exit:1", pin=True) + site.model("other"))
    failed = daemon.wait_state("m", "failed")
    starts = [event["t"] for event in site.events("spawn", "m")]
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert len(starts) == 4
    assert all(gap >= FIRST_DELAY * 2**number for number, gap in enumerate(gaps)), gaps
    assert failed["retry_in"] is None
    error = error_of(daemon, "m")
    assert error["code"] == "model_failed"
    assert "accelctl load m" in error["message"]
    assert site.spawns("m") == 4  # asking does not start it again
    assert daemon.chat("other").status == 200
    assert daemon.control("POST", "reset?model=m").json() == {"state": "stopped"}
    assert error_of(daemon, "m")["code"] in ("model_backing_off", "model_failed")
    assert site.spawns("m") >= 5


def test_a_taken_port_is_answered_with_another_and_finally_with_an_error(daemons: DaemonFactory, site: Site) -> None:
    transport = '[engines.llama-server]\ntransport = "tcp"\n'
    daemon = daemons.start(QUICK + transport + site.model("taken", "bind-fail") + site.model("good"))
    error = error_of(daemon, "taken")
    assert any("couldn't bind HTTP server socket" in line for line in error["tail"])
    argvs = [event["argv"] for event in site.events("spawn", "taken")]
    ports = [argv[argv.index("--port") + 1] for argv in argvs]
    assert len(ports) == 4
    assert len(set(ports)) > 1
    assert daemon.state("taken") in ("backoff", "stopped")
    assert daemon.chat("good").status == 200


def test_stop_during_start_answers_both_and_leaves_nothing(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", SLOW))
    with side_by_side() as do:
        asked, loads = do(daemon.chat, "m"), do(daemon.events, "load?model=m")
        eventually(lambda: daemon.status("m")["queue"] == 2 and site.spawns(), "both wait")
        stopped = daemon.events("unload?model=m")
        assert stopped[-1]["event"] == "stopped"
        assert asked.result(20).code == "model_unloaded"
        assert loads.result(20)[-1]["error"]["code"] == "model_unloaded"
    seen = daemon.status("m")
    assert (seen["state"], seen["error"], seen["queue"]) == ("stopped", None, 0)
    assert marked(daemon) == []
    assert site.spawns() == 1


def test_start_during_stop_waits_and_then_starts_once(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "ignore-term", stop_timeout=0.5))
    assert daemon.chat("m").status == 200
    with side_by_side() as do:
        unload = do(daemon.events, "unload?model=m")
        daemon.wait_state("m", "stopping", "killing")
        answers = [do(daemon.chat, "m") for _ in range(3)]
        assert [a.result(20).status for a in answers] == [200] * 3
        assert unload.result(20)[-1]["event"] == "stopped"
    assert site.spawns() == 2


def test_load_and_unload_twice_are_no_errors(daemons: DaemonFactory, site: Site) -> None:
    daemon = daemons.start(QUICK + site.model("m", "slow-load:0.2"))
    with side_by_side() as do:
        for action, last in (("load", "ready"), ("unload", "stopped")):
            both = [do(daemon.events, f"{action}?model=m") for _ in range(2)]
            assert [one.result(20)[-1]["event"] for one in both] == [last, last]
            assert daemon.events(f"{action}?model=m")[-1]["event"] == last
    assert site.spawns() == 1
    assert marked(daemon) == []
