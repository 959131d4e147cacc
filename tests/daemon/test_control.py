"""Every route of docs/control.md on a real daemon's socket, with right and with wrong arguments."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import psutil
import pytest

from accelerd import __version__
from tests.daemon.kit import QUICK, Site, side_by_side
from tests.harness import ROOT, Daemon, DaemonFactory, UnixConnection, command_line, eventually

DOC = (ROOT / "docs" / "control.md").read_text()
TOKEN = "hf-token-that-nobody-may-see"
MEMORY = 5_000_000


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    env = {"HF_TOKEN": TOKEN}
    toml = [
        QUICK.replace("[scheduler]", '[scheduler]\nmemory = "4GB"'),
        sites.model("m", "ok", env, aliases=["gpt", "claude-*"], memory=MEMORY, context=4096, parallel=2),
        sites.model("loader", "chatter:20,slow-load:1.3", aliases=["slow"], memory=MEMORY),
        sites.model("other", idle_timeout="never", extra_args=["--metrics"]),
        sites.model("broken", "exit:9"),
        sites.model("huge", memory="8GB"),
        sites.model("slow-stream", "slow-token:20", {"FAKE_TOKENS": "30"}),
        sites.model("stubborn", "ignore-term", stop_timeout=0.3),
        sites.model("talker", "slow-load:60,chatter:20"),
    ]
    return factory.start("".join(toml))


# --- wrong arguments ---


@pytest.mark.parametrize("action", ["load", "unload", "reset"])
@pytest.mark.parametrize(("query", "status", "code"), [
    ("", 400, "bad_request"), ("?model=nobody", 404, "model_not_found"), ("?model=", 404, "model_not_found"),
    ("?model=..%2f..%2fetc", 404, "model_not_found"),
])  # fmt: skip
def test_an_action_needs_a_model_that_there_is(daemon: Daemon, action: str, query: str, status: int, code: str) -> None:
    answer = daemon.control("POST", action + query)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize("route", ["logs", "explain"])
def test_a_look_needs_a_model_that_there_is(daemon: Daemon, route: str) -> None:
    assert (daemon.control("GET", route).status, daemon.control("GET", route).code) == (400, "bad_request")
    missing = daemon.control("GET", f"{route}?model=nobody")
    assert (missing.status, missing.code) == (404, "model_not_found")


@pytest.mark.parametrize("lines", ["x", "-1", "1.5", "9" * 40, "%00"])
def test_the_number_of_lines_is_a_number(daemon: Daemon, lines: str) -> None:
    answer = daemon.control("GET", f"logs?model=m&lines={lines}")
    assert (answer.status, answer.code) == (400, "bad_request")
    assert answer.json()["error"]["param"] == "lines"


@pytest.mark.parametrize(("method", "route"), [
    ("POST", "status"), ("GET", "load?model=m"), ("GET", "unload?model=m"), ("DELETE", "reset?model=m"),
    ("POST", "logs?model=m"), ("POST", "explain?model=m"), ("GET", "reload"),
])  # fmt: skip
def test_each_route_takes_its_method_alone(daemon: Daemon, method: str, route: str) -> None:
    answer = daemon.control(method, route)
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert daemon.state("m") == "stopped"


def test_the_routes_exist_on_the_socket_only(daemon: Daemon) -> None:
    documented = re.findall(r"`(GET|POST) (/accelerd/v1/[\w/]+)", DOC)
    assert documented
    for method, path in documented:
        beyond = daemon.send(method, f"{path}?model=nobody")
        assert (beyond.status, beyond.code) == (404, "not_found"), path
        there = daemon.control(method, f"{path}?nonsense=1")
        assert (there.status, there.code) == (400, "bad_request"), path
    unknown = daemon.control("GET", "nothing")
    assert (unknown.status, unknown.code) == (404, "not_found")
    models = daemon.control("GET", "/v1/models").json()["data"]
    assert [m["id"] for m in models] == [m["name"] for m in daemon.status()["models"]]


# --- status ---


def test_status_has_every_documented_key(daemon: Daemon) -> None:
    documented = json.loads(re.search(r"```json\n(.*?)```", DOC, re.DOTALL).group(1))  # type: ignore[union-attr]
    seen = daemon.status()
    assert set(documented) <= set(seen)
    assert set(documented["scheduler"]) == set(seen["scheduler"])
    for model in seen["models"]:
        assert set(documented["models"][0]) == set(model)
    assert (seen["version"], seen["pid"], seen["state"]) == (__version__, daemon.process.pid, "running")
    assert seen["listen"] == [f"127.0.0.1:{daemon.port}"]
    assert [Path(file).name for file in seen["config"]["files"]] == ["accelerd.toml"]
    assert seen["scheduler"]["memory_limit"] == 4_000_000_000
    assert seen["uptime"] > 0


def test_status_follows_a_model_through_its_life(daemon: Daemon) -> None:
    daemon.events("unload?model=slow-stream")
    idle = daemon.status("slow-stream")
    assert (idle["state"], idle["pid"], idle["idle"], idle["memory_used"], idle["leases"]) == (
        "stopped", None, None, None, 0,
    )  # fmt: skip
    daemon.events("load?model=slow-stream")
    eventually(lambda: daemon.status("slow-stream")["memory_used"], "it is measured")
    with side_by_side() as do:
        running = do(daemon.chat, "slow-stream")
        busy = eventually(lambda: (s := daemon.status("slow-stream"))["leases"] and s, "a request runs")
        assert (busy["state"], busy["idle"], busy["reason"][:6]) == ("ready", None, "loaded")
        assert busy["pid"] in [child.pid for child in daemon.children()]
        assert busy["memory_used"] > 1 << 20
        assert running.result(20).status == 200
    rest = eventually(lambda: (s := daemon.status("slow-stream"))["idle"] is not None and s, "it is idle")
    assert rest["leases"] == 0
    line = daemon.status()["status"]
    assert re.match(r"\d of 8 models loaded: ", line)
    assert "slow-stream" in line
    assert daemon.events("unload?model=slow-stream")[-1]["event"] == "stopped"


# --- load and unload ---


def test_load_tells_progress_and_knows_the_second_time_how_long_it_takes(daemon: Daemon) -> None:
    first = daemon.events("load?model=loader")
    progress = [e for e in first if e["event"] == "progress"]
    assert first[-1]["event"] == "ready"
    assert first[-1]["elapsed"] > 1.2
    assert len(progress) >= 2
    assert progress[0]["state"] in ("queued", "starting"), "it may wait for its forecast"
    progress = [e for e in progress if e["state"] != "queued"]
    assert {e["state"] for e in progress} == {"starting"}
    assert [e["elapsed"] for e in progress] == sorted(e["elapsed"] for e in progress)
    assert {e["expected"] for e in progress} == {None}
    assert {e["memory_expected"] for e in progress} == {MEMORY}
    assert any("s to go" in e["line"] for e in progress)
    assert progress[-1]["memory"] > 1 << 20
    assert 0 < progress[-1]["progress"] < 1, "of what is needed some was read, and it is not ready"
    took = daemon.status("loader")["load_seconds"]
    assert took > 1.2
    at_once = pytest.approx(0, abs=1.0)
    [ready] = daemon.events("load?model=loader")
    assert ready.pop("memory_used") > 1 << 20
    assert ready == {"event": "ready", "model": "loader", "elapsed": at_once}
    assert daemon.events("unload?model=slow")[-1]["event"] == "stopped"  # an alias is as good
    second = [e for e in daemon.events("load?model=slow") if e["event"] == "progress" and e["state"] != "queued"]
    assert {e["expected"] for e in second} == {took}
    assert daemon.events("unload?model=loader")[-1]["event"] == "stopped"
    assert daemon.events("unload?model=loader") == [{"event": "stopped", "model": "loader", "elapsed": at_once}]


def test_a_failed_load_ends_in_an_error_event(daemon: Daemon) -> None:
    last = daemon.events("load?model=broken")[-1]
    assert last["event"] == "error"
    assert last["error"]["code"] == "model_backing_off"
    assert "exited with status 9" in last["error"]["message"]
    assert last["error"]["tail"]
    shown = daemon.status("broken")["error"]
    assert shown["message"] in last["error"]["message"]
    assert shown["tail"] == last["error"]["tail"]
    hopeless = daemon.events("load?model=huge")[-1]
    assert hopeless["error"]["code"] == "does_not_fit"
    assert "3.7 GiB are there in all (scheduler.memory)" in hopeless["error"]["message"]


def test_unload_waits_for_requests_and_force_does_not(daemon: Daemon, sites: Site) -> None:
    for force, status in (("", 200), ("&force=0", 200), ("&force=1", 503)):
        before = len(sites.events("start", "slow-stream"))
        with side_by_side() as do:
            running = do(daemon.chat, "slow-stream")
            eventually(lambda before=before: len(sites.events("start", "slow-stream")) > before, "it runs")
            events = daemon.events(f"unload?model=slow-stream{force}")
            assert events[-1]["event"] == "stopped"
            assert {e["state"] for e in events[:-1]} <= {"draining", "stopping"}
            assert running.result(20).status == status
        assert daemon.state("slow-stream") == "stopped"


def test_unload_shows_that_it_has_to_kill(daemon: Daemon) -> None:
    assert daemon.events("load?model=stubborn")[-1]["event"] == "ready"
    events = daemon.events("unload?model=stubborn")
    assert events[-1]["event"] == "stopped"
    assert "stopping" in {e.get("state") for e in events}
    assert events[-1]["elapsed"] >= 0.3


def test_reset_forgets_failures(daemon: Daemon) -> None:
    daemon.events("load?model=broken")
    assert daemon.control("POST", "reset?model=broken").json() == {"state": "stopped"}
    assert daemon.status("broken")["error"] is None
    assert daemon.control("POST", "reset?model=m").json() == {"state": "stopped"}


def test_a_client_that_goes_during_a_load_leaves_nothing_and_the_load_goes_on(daemon: Daemon) -> None:
    process = psutil.Process(daemon.process.pid)
    reader = UnixConnection(daemon.control_socket)
    reader.request("POST", "/accelerd/v1/load?model=talker")
    assert b'"progress"' in reader.getresponse().readline()
    descriptors = process.num_fds()
    reader.close()
    eventually(lambda: process.num_fds() < descriptors, "its connection is closed")
    eventually(lambda: daemon.status("talker")["queue"] == 0, "its place is free")
    assert daemon.state("talker") == "starting"
    assert daemon.events("unload?model=talker")[-1]["event"] == "stopped"


# --- logs ---


def test_logs_are_the_last_lines_that_the_engine_printed(daemon: Daemon) -> None:
    assert daemon.events("load?model=other")[-1]["event"] == "ready"
    answer = daemon.control("GET", "logs?model=other")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.body.decode().splitlines()
    assert lines[0] == "I main: fake server"
    assert lines[-1] == "I main: model loaded"
    assert daemon.control("GET", "logs?model=other&lines=1").body == b"I main: model loaded\n"
    assert daemon.control("GET", "logs?model=other&lines=0").body == b""
    assert daemon.control("GET", "logs?model=huge").body == b""  # it never ran


def test_logs_follow_over_a_restart_until_the_reader_goes(daemon: Daemon) -> None:
    process = psutil.Process(daemon.process.pid)
    assert daemon.events("load?model=other")[-1]["event"] == "ready"
    before = process.num_fds()
    readers = []
    for _ in range(5):
        reader = UnixConnection(daemon.control_socket)
        reader.request("GET", "/accelerd/v1/logs?model=other&lines=1&follow=1")
        response = reader.getresponse()
        assert response.readline() == b"I main: model loaded\n"
        readers.append((reader, response))
    assert daemon.events("unload?model=other")[-1]["event"] == "stopped"
    assert daemon.events("load?model=other")[-1]["event"] == "ready"
    for reader, response in readers:
        assert response.readline() == b"I main: cleaning up before exit...\n"
        assert response.readline() == b"I main: fake server\n"
        response.close()
        reader.close()
    eventually(lambda: process.num_fds() <= before, "no reader is left")


# --- explain ---


def test_explain_shows_the_command_and_where_each_part_comes_from(daemon: Daemon, sites: Site) -> None:
    assert daemon.events("load?model=m")[-1]["event"] == "ready"
    shown = daemon.control("GET", "explain?model=gpt").json()
    started = sites.events("spawn", "m")[-1]
    assert shown["argv"][1:] == started["argv"]
    assert (shown["model"], shown["state"]) == ("m", "ready")
    flags = {flag["text"]: flag for flag in shown["flags"]}
    line = daemon.config.read_text().splitlines().index("context = 4096") + 1
    context = next(flag for text, flag in flags.items() if text.startswith(("-c ", "--ctx-size ")))
    assert f"accelerd.toml:{line}" in context["source"]
    assert all(flag["source"] and flag["reason"] for flag in shown["flags"])
    words = " ".join(flags)
    assert [part for part in shown["argv"][1:] if part not in words] == []  # no part without its reason
    assert shown["placement"]["memory"] == MEMORY
    assert shown["placement"]["fits"] is True
    assert [step["to"] for step in shown["history"]][-2:] == ["starting", "ready"]
    assert all(step["ago"] >= 0 for step in shown["history"])
    assert daemon.events("unload?model=m")[-1]["event"] == "stopped"


def test_explain_takes_a_name_that_only_matches_a_pattern_and_no_advice_is_a_pattern(daemon: Daemon) -> None:
    assert daemon.control("GET", "explain?model=claude-5").json()["model"] == "m"
    refused = daemon.events("load?model=claude-5")[-1]["error"]
    assert (refused["code"], "*" in refused["message"]) == ("model_not_found", False)


def test_explain_says_how_a_model_would_start_and_why_it_would_not(daemon: Daemon) -> None:
    would = daemon.control("GET", "explain?model=broken").json()
    assert "--alias" in would["argv"]
    huge = daemon.control("GET", "explain?model=huge").json()
    assert huge["placement"]["fits"] is False
    assert "it needs 7.5 GiB" in huge["placement"]["reason"]


def test_no_secret_is_shown_anywhere(daemon: Daemon, sites: Site) -> None:
    assert daemon.events("load?model=m")[-1]["event"] == "ready"
    assert daemon.chat("m").status == 200
    process = psutil.Process(daemon.status("m")["pid"])
    secret = process.environ()["LLAMA_API_KEY"]
    assert len(secret) >= 32
    assert process.environ()["HF_TOKEN"] == TOKEN
    everything = "\n".join(
        [
            daemon.control("GET", route).body.decode()
            for route in ("status", "explain?model=m", "model?model=m", "logs?model=m&lines=1000", "memory", "jobs")
        ]
        + [daemon.send("GET", path).body.decode() for path in ("/v1/models", "/v1/models/m", "/health")]
        + [daemon.output(), daemon.chat("m").body.decode(), json.dumps(sites.events("spawn"))]
        + [" ".join(command_line(child)) for child in daemon.children()]
    )
    assert "HF_TOKEN" in everything  # that it is set may be known
    assert secret not in everything
    assert TOKEN not in everything
    assert daemon.events("unload?model=m")[-1]["event"] == "stopped"


def test_a_long_query_and_a_body_do_no_harm(daemon: Daemon) -> None:
    assert daemon.control("POST", f"load?model={'x' * 5000}").code in ("model_not_found", "bad_request")
    assert daemon.control("POST", "reset?model=m", b"{}" * 1000).json() == {"state": "stopped"}
    with socket.socket(socket.AF_UNIX) as raw:
        raw.connect(str(daemon.control_socket))
        raw.sendall(b"GET /accelerd/v1/status HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 200")  # its directory is the guard, not the name
