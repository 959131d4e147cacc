"""Engines that end, or do not, after they were ready: the state and the answer that follow."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass

import psutil
import pytest

from tests.daemon.kit import (
    QUICK,
    Site,
    alive,
    history,
    kill_engine,
    marked,
    rest_of,
    side_by_side,
    sse,
    suspend,
    tokens,
    whole_stream,
)
from tests.harness import Daemon, DaemonFactory, eventually, first_event, streaming

SLOW = "slow-token:50"
LONG = {"FAKE_TOKENS": "400"}
# What a process may do so that it is hard to end it all, and what becomes of the load.
FAMILIES = {
    "ignores-sigterm": ("ignore-term", "ready"),
    "wrapper": ("fork-wrapper", "ready"),
    "wrapper-that-exits": ("fork-wrapper-exit", "error"),
    "grandchild-in-its-own-session": ("setsid-grandchild", "ready"),
    "grandchild-holds-the-output": ("hold-stdout", "ready"),
}


@dataclass(frozen=True)
class Kill:
    """One moment for SIGKILL, and what the fault table wants after it."""

    mode: str
    after: str  # state of the model
    pin: bool = False
    stream: bool | None = None  # is a request running, and of which kind?
    moment: str = "ready"  # the model's state when it is killed
    status: int | None = None  # of the answer to that request
    blamed: bool = True  # does the model's error say so?


KILLS = {
    "starting": Kill("slow-load:30", "backoff", moment="starting", stream=False, status=503),
    "ready-idle": Kill("ok", "stopped"),
    "ready-idle-pinned": Kill("ok", "ready", pin=True, blamed=False),
    "ready-streaming": Kill(SLOW, "stopped", stream=True, status=200),
    "ready-not-streaming": Kill(SLOW, "stopped", stream=False, status=502),
    "draining-streaming": Kill(SLOW, "stopped", moment="draining", stream=True, status=200, blamed=False),
    "draining-not-streaming": Kill(SLOW, "stopped", moment="draining", stream=False, status=502, blamed=False),
    "stopping": Kill("ignore-term", "stopped", moment="stopping", blamed=False),
}


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    toml = [QUICK.replace('"50ms"', '"1s"', 1).replace('"200ms"', '"2s"')]
    toml += [
        sites.model(name, kill.mode, LONG, pin=kill.pin, stop_timeout=20, parallel=1) for name, kill in KILLS.items()
    ]
    toml += [sites.model(name, mode, stop_timeout=0.3) for name, (mode, _) in FAMILIES.items()]
    toml += [sites.model("dies", "die-mid-stream"), sites.model("cut", "cut-mid-stream"), sites.model("signalled")]
    return factory.start("".join(toml))


@pytest.mark.parametrize("name", KILLS)
def test_kill_9_of_the_engine_leads_to_what_the_fault_table_names(daemon: Daemon, sites: Site, name: str) -> None:
    kill = KILLS[name]
    if kill.moment != "starting":
        assert daemon.events(f"load?model={name}")[-1]["event"] == "ready"
    with contextlib.ExitStack() as stack:
        do = stack.enter_context(side_by_side())
        request = None
        if kill.stream is not None:
            request = do(whole_stream, daemon, name) if kill.stream else do(daemon.chat, name)
            kind = "spawn" if kill.moment == "starting" else "start"
            eventually(lambda: sites.events(kind, name), "the request is with the engine")
        unload = do(daemon.events, f"unload?model={name}") if kill.moment in ("draining", "stopping") else None
        daemon.wait_state(name, kill.moment)
        pid = kill_engine(daemon, name)
        if request is not None and kill.stream:
            status, events, complete = request.result(20)
            assert (status, complete) == (kill.status, False)
            assert events[-1]["error"]["code"] == "upstream_failed"
            assert "[DONE]" not in events
        elif request is not None:
            answer = request.result(20)
            assert answer.status == kill.status, answer.body
            assert answer.code == ("upstream_failed" if kill.status == 502 else "model_backing_off")
        if unload is not None:
            assert unload.result(20)[-1]["event"] == "stopped"
    seen = eventually(
        lambda: (s := daemon.status(name))["state"] == kill.after and s["pid"] != pid and s, f"{name}: {kill.after}"
    )
    assert (seen["error"] is not None) == kill.blamed, seen["error"]
    if kill.blamed:
        assert "SIGKILL" in seen["error"]["message"]
    assert len(sites.events("start", name)) <= 1  # no prompt was sent a second time
    if kill.pin:
        eventually(lambda: daemon.state(name) == "ready" and sites.spawns(name) == 2, "it comes back by itself")
        assert "backoff" in history(daemon, name)
        return
    assert sites.spawns(name) == 1
    if kill.after == "stopped" and kill.mode == "ok":
        assert daemon.chat(name).status == 200  # the next request starts it again
        assert sites.spawns(name) == 2


@pytest.mark.parametrize("name", ["dies", "cut"])
def test_a_crash_mid_stream_ends_in_an_error_event_and_no_done(daemon: Daemon, sites: Site, name: str) -> None:
    status, events, complete = whole_stream(daemon, name)
    assert (status, complete) == (200, False)
    assert tokens(events) == ["t0 ", "t1 "]
    assert events[-1]["error"]["code"] == "upstream_failed"
    assert "[DONE]" not in events
    assert len(sites.events("start", name)) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_of_a_stopped_model_lives_on(daemon: Daemon, sites: Site, name: str) -> None:
    outcome = daemon.events(f"load?model={name}")[-1]
    assert outcome["event"] == FAMILIES[name][1]
    if outcome["event"] == "error":
        assert "foreground" in outcome["error"]["message"]
    else:
        assert daemon.chat(name).status == 200
        pids = _family(daemon, sites, name)
        assert len(pids) == (1 if name == "ignores-sigterm" else 2)
        assert daemon.events(f"unload?model={name}")[-1]["event"] == "stopped"
        assert daemon.state(name) == "stopped"
        assert [pid for pid in pids if alive(pid)] == []
        if "ignore" in FAMILIES[name][0]:
            assert "killing" in history(daemon, name)
    others = {model["pid"] for model in daemon.status()["models"]}
    assert [p for p in marked(daemon) if p.pid not in others] == []


def _family(daemon: Daemon, sites: Site, name: str) -> set[int]:
    """The pids of a model's processes: its own, those under it, and the bystander that it left."""
    process = psutil.Process(daemon.status(name)["pid"])
    bystanders = {event["pid"] for event in sites.events("bystander") if alive(event["pid"])}
    return {process.pid, *(child.pid for child in process.children(recursive=True)), *bystanders}


def test_no_zombie_is_left(daemon: Daemon) -> None:
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        assert daemon.events("load?model=signalled")[-1]["event"] == "ready"
        psutil.Process(daemon.status("signalled")["pid"]).send_signal(number)
        daemon.wait_state("signalled", "stopped", "backoff")
    assert [p for p in daemon.children() if p.status() == psutil.STATUS_ZOMBIE] == []


def test_health_ok_and_every_answer_500_reloads_once_then_quarantines(daemons: DaemonFactory, site: Site) -> None:
    mode = site.directory / "mode"
    mode.write_text("health-ok-infer-500")
    env = {"FAKE_MODE_FILE": str(mode)}
    daemon = daemons.start(QUICK + site.model("m", "ok", env) + site.model("good"))
    assert daemon.chat("good").status == 200
    for attempt, after in enumerate(("stopped", "failed"), 1):
        for _ in range(3):
            assert daemon.chat("m").status == 500  # relayed as it is
        daemon.wait_state("m", after)
        assert site.spawns("m") == attempt
    seen = daemon.status("m")
    assert "answered health checks but no requests" in seen["error"]["message"]
    assert "quarantined" in seen["reason"]
    refused = daemon.chat("m")
    assert (refused.status, refused.code) == (503, "model_failed")
    assert site.spawns("m") == 2
    mode.write_text("ok")
    daemon.control("POST", "reset?model=m")
    assert daemon.chat("m").status == 200
    assert site.spawns("good") == 1


def test_health_ok_and_every_answer_hangs_reloads_once_then_quarantines(daemons: DaemonFactory, site: Site) -> None:
    mode = site.directory / "mode"
    mode.write_text("infer-hang")
    model = site.model("m", "ok", {"FAKE_MODE_FILE": str(mode)}, parallel=2)
    daemon = daemons.start(QUICK + model, server='stall_timeout = "300ms"', module="tests.daemon.impatient_daemon")
    for attempt, after in enumerate(("stopped", "failed"), 1):
        with side_by_side() as do:
            asked = [do(whole_stream, daemon, "m"), do(daemon.chat, "m")]
            status, events, _ = asked[0].result(20)
            assert status == 504 or events[-1]["error"]["code"] == "upstream_timeout"
            assert asked[1].result(20).status == 504
        assert daemon.chat("m").status == 504
        daemon.wait_state("m", after)
        assert site.spawns() == attempt
    assert "quarantined" in daemon.status("m")["reason"]
    refused = daemon.chat("m")
    assert (refused.status, refused.code) == (503, "model_failed")
    assert marked(daemon) == []


def test_an_engine_that_sends_tokens_is_not_killed(daemons: DaemonFactory, site: Site) -> None:
    mode = site.directory / "mode"
    mode.write_text("slow-token:20")
    env = {"FAKE_MODE_FILE": str(mode), "FAKE_TOKENS": "80"}
    daemon = daemons.start(QUICK + site.model("m", "ok", env, parallel=2))
    with streaming(daemon, "m") as response:
        assert first_event(response).startswith(b"data: ")
        mode.write_text("health-ok-infer-500")
        for _ in range(3):
            assert daemon.chat("m").status == 500
        eventually(lambda: "fails the smallest request" in daemon.output(), "it was probed")
        pid = daemon.status("m")["pid"]
        mode.write_text("ok")
        assert daemon.chat("m").status == 200
        text, complete = rest_of(response)
    assert complete
    assert sse(text)[-1] == "[DONE]"
    assert (daemon.status("m")["pid"], daemon.state("m")) == (pid, "ready")
    assert site.spawns() == 1


def test_requests_at_the_moment_of_the_idle_timeout_never_fail(daemons: DaemonFactory, site: Site) -> None:
    idle = 0.03
    daemon = daemons.start(QUICK + site.model("m", idle_timeout=idle))
    for step in range(12):
        assert daemon.chat("m").status == 200
        time.sleep(idle * (0.5 + step / 10))  # from well before the timeout to well after it
    daemon.wait_state("m", "stopped")
    assert daemon.status("m")["error"] is None
    assert 2 <= site.spawns() <= 12
    assert history(daemon, "m").count("failed") + history(daemon, "m").count("backoff") == 0


@pytest.mark.parametrize("kind", ["plain", "stream"])
@pytest.mark.parametrize("preload", [False, True], ids=["", "preload"])
def test_a_request_that_a_killed_engine_had_not_read_is_answered_by_the_next(
    daemons: DaemonFactory, site: Site, kind: str, preload: bool
) -> None:
    daemon = daemons.start(QUICK + site.model("m", preload=preload, parallel=2))
    assert daemon.chat("m").status == 200
    engine = psutil.Process(daemon.status("m")["pid"])
    suspend(engine)  # it dies before it sees what comes
    with side_by_side() as do:
        stream = kind == "stream"
        asked = [do(whole_stream, daemon, "m") if stream else do(daemon.chat, "m") for _ in range(2)]
        eventually(lambda: daemon.status("m")["leases"] == 2, "it has them")
        engine.kill()
        for one in asked:
            answer = one.result(20)
            if stream:
                status, events, complete = answer
                assert (status, complete, events[-1]) == (200, True, "[DONE]")
            else:
                assert answer.status == 200, answer.body
    assert daemon.status("m")["pid"] != engine.pid
