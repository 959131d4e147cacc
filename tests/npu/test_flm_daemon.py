"""A whole accelerd with flm on its PATH: from the request to the answer, and what happens when the model fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.kit import QUICK, Site, marked, rest_of, side_by_side, sse, whole_stream
from tests.harness import Daemon, DaemonFactory, eventually, streaming
from tests.npu.kit import FlmOnPath, flm_model

NAME = "npu/qwen3-4b"


@pytest.fixture
def flm(tmp_path: Path) -> FlmOnPath:
    return FlmOnPath(tmp_path).pulled("qwen3:4b")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def started(daemons: DaemonFactory, flm: FlmOnPath, toml: str = "", **settings: Any) -> Daemon:
    return daemons.start(QUICK + (toml or flm_model(**settings)), env={"PATH": flm.path})


def load(daemon: Daemon, name: str = NAME) -> dict[str, Any]:
    return daemon.events(f"load?model={name}")[-1]


def test_a_request_loads_a_model_on_the_npu_and_is_answered(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = started(daemons, flm)
    answer = daemon.chat(NAME)
    assert answer.status == 200, answer.body
    assert answer.headers["x-accelerd-model"] == NAME
    assert answer.json()["choices"][0]["message"]["content"].startswith("The NPU says")
    assert daemon.state(NAME) == "ready"
    assert "access-control-allow-origin" not in answer.headers, "it lets every web page read its answers"
    status, events, complete = whole_stream(daemon, NAME)
    assert (status, complete) == (200, True)
    assert events[-1] == "[DONE]"


def test_B_a_request_never_makes_the_server_change_its_model(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    """It loads what a request names, and llama3.2:1b where it knows no such name."""
    daemon = started(daemons, flm, aliases=["small"])
    for name in (NAME, "small", NAME):
        assert daemon.chat(name).status == 200
    assert [record["switch"] for record in flm.noted("switch")] == [["model-faker", "qwen3:4b"]]


def test_B_it_is_ready_only_when_it_has_answered_and_it_is_asked_without_a_key(
    daemons: DaemonFactory, flm: FlmOnPath
) -> None:
    daemon = started(daemons, flm)
    assert load(daemon)["event"] == "ready"
    (asked,) = flm.noted("post")
    assert (asked["post"], asked["model"]) == ("/v1/chat/completions", "qwen3:4b")
    assert {record["get"] for record in flm.noted("get")} == {"/api/version"}
    assert not any(record["authorization"] for record in (asked, *flm.noted("get")))


def test_B_its_standard_input_is_closed(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    """It reads orders there."""
    load(started(daemons, flm))
    assert {record["stdin"] for record in flm.noted("argv")} == {"null"}
    assert flm.noted("told") == []


def test_B_FLM655_a_server_that_stays_up_without_its_model_is_ended_and_said_so(
    daemons: DaemonFactory, flm: FlmOnPath
) -> None:
    flm.set(broken=["qwen3:4b"])
    daemon = started(daemons, flm)
    answer = daemon.chat(NAME)
    assert answer.status == 503, answer.body
    error = answer.json()["error"]
    assert f"up, but without its model ({NAME})" in error["message"]
    assert "Failed to load qwen3:4b model!" in error["message"]
    assert any("CREATE_HWCTX" in line for line in error["tail"])
    assert flm.noted("serving"), "it was up"
    eventually(lambda: daemon.state(NAME) != "ready" and not engines(daemon), "no server is left")
    flm.set(broken=[])
    eventually(lambda: daemon.chat(NAME).status == 200, "it is tried again")


def engines(daemon: Daemon) -> list[psutil.Process]:
    return [process for process in marked(daemon) if process.pid != daemon.process.pid]


def test_B_a_load_that_ends_in_a_segmentation_fault_is_no_riddle(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.set(crash=["qwen3:4b"])
    daemon = started(daemons, flm)
    error = load(daemon)
    assert error["event"] == "error"
    assert "SIGSEGV" in json.dumps(error)


def test_B_a_server_that_the_firmware_takes_down_comes_again_with_the_next_request(
    daemons: DaemonFactory, flm: FlmOnPath
) -> None:
    flm.set(crash_on="kernel panic")
    daemon = started(daemons, flm)
    assert daemon.chat(NAME).status == 200
    broken = daemon.chat(NAME, messages=[{"role": "user", "content": "kernel panic"}])
    assert broken.status == 502
    eventually(lambda: daemon.state(NAME) != "ready", "its end is noticed")
    assert daemon.chat(NAME).status == 200
    assert len(flm.served()) == 2


def test_B_a_slow_first_token_is_no_refusal_and_is_asked_for_once(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.set(first_token_seconds=2.5)  # longer than one look at a server's health may take
    daemon = started(daemons, flm)
    assert load(daemon)["event"] == "ready"
    assert len(flm.noted("post")) == 1, "a second question would stand in its queue behind the first"


def test_a_server_that_never_answers_is_ended_by_start_timeout(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.set(first_token_seconds=3600)
    daemon = started(daemons, flm, start_timeout="1s")
    error = load(daemon)
    assert error["event"] == "error"
    assert "start_timeout" in json.dumps(error)
    eventually(lambda: not engines(daemon), "no server is left")


def test_B_more_clients_than_its_queue_takes_are_all_answered(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    """One NPU, one queue of one place, ten connections: accelerd waits in front of it."""
    daemon = started(daemons, flm, extra_args=["--q-len", "1"])
    assert load(daemon)["event"] == "ready"
    with side_by_side() as do:
        answers = [each.result() for each in [do(daemon.chat, NAME, max_tokens=2) for _ in range(24)]]
    assert {answer.status for answer in answers} == {200}


def test_B_its_queue_is_its_own_and_a_503_of_it_reaches_nobody(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.set(token_seconds=0.02)
    daemon = started(daemons, flm, concurrency=8, extra_args=["--q-len", "1"])
    assert load(daemon)["event"] == "ready"
    with side_by_side() as do:
        answers = [each.result() for each in [do(daemon.chat, NAME, max_tokens=2) for _ in range(8)]]
    assert {answer.status for answer in answers} == {200}


def test_a_client_that_goes_frees_the_npu(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = started(daemons, flm)
    assert load(daemon)["event"] == "ready"
    flm.set(token_seconds=3600)
    with streaming(daemon, NAME) as response:
        assert response.readline()
    eventually(lambda: flm.noted("cancelled"), "the server has noticed")
    flm.set(token_seconds=0)
    assert daemon.chat(NAME).status == 200


def test_B_what_people_ask_is_printed_by_the_server_and_kept_by_nobody(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = started(daemons, flm)
    assert daemon.chat(NAME, messages=[{"role": "user", "content": "open sesame"}]).status == 200
    kept = daemon.control("GET", f"logs?model={NAME}").body.decode()
    assert "Starting server on port" in kept, "what it says of itself while it loads is kept"
    assert daemon.stop() == 0
    assert "sesame" not in kept + daemon.output()


@pytest.mark.parametrize(
    ("tag", "path", "switch"),
    [
        ("whisper-v3:turbo", "/v1/audio/transcriptions", "--asr"),
        ("embed-gemma:300m", "/v1/embeddings", "--embed"),
    ],
)
def test_what_hears_and_what_makes_embeddings_is_proven_by_doing_it(
    daemons: DaemonFactory, flm: FlmOnPath, tag: str, path: str, switch: str
) -> None:
    flm.pulled(tag)
    daemon = started(daemons, flm, name="npu/m", model=tag)
    assert load(daemon, "npu/m")["event"] == "ready"
    assert [record["post"] for record in flm.noted("post")] == [path]
    ((*_,),) = flm.served()
    assert switch in flm.served()[0]
    assert tag not in flm.served()[0]


def test_a_whisper_that_fails_ends_by_itself(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    flm.pulled("whisper-v3:turbo").set(broken=["whisper-v3:turbo"])
    daemon = started(daemons, flm, name="npu/m", model="whisper-v3:turbo")
    error = load(daemon, "npu/m")
    assert "exited with status 1" in json.dumps(error)


def test_B_a_port_of_somebody_else_is_never_used(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    """Not its own default, whatever its environment says, and never one port twice at a time."""
    flm.pulled("llama3.2:1b")
    toml = flm_model() + flm_model("npu/llama", "llama3.2:1b")
    daemon = daemons.start(QUICK + toml, env={"PATH": flm.path, "FLM_SERVE_PORT": "52625"})
    for name in (NAME, "npu/llama"):
        assert load(daemon, name)["event"] == "ready"
    ports = [record["serving"] for record in flm.noted("serving")]
    assert len(set(ports)) == 2
    assert 52625 not in ports


def test_a_model_on_the_npu_and_one_beside_it_stream_at_once_and_neither_minds_the_other(
    daemons: DaemonFactory, flm: FlmOnPath, site: Site
) -> None:
    daemon = started(daemons, flm, flm_model() + site.model("big"))
    assert load(daemon)["event"] == "ready"
    assert load(daemon, "big")["event"] == "ready"
    flm.set(token_seconds=0.05, tokens=40)
    with streaming(daemon, NAME) as slow:
        assert slow.readline(), "it has begun"
        status, events, complete = whole_stream(daemon, "big")
        assert (status, complete, events[-1]) == (200, True, "[DONE]")
        assert daemon.events("unload?model=big")[-1]["event"] == "stopped"
        text, complete = rest_of(slow)
    assert complete
    assert sse(text)[-1] == "[DONE]"
    assert (daemon.state(NAME), daemon.state("big")) == ("ready", "stopped")


def test_explain_says_what_a_context_becomes(daemons: DaemonFactory, flm: FlmOnPath) -> None:
    daemon = started(daemons, flm, context=10000)
    said = json.dumps(daemon.control("GET", f"explain?model={NAME}").json())
    assert "FastFlowLM rounds it to 16384" in said
    assert "every user of this machine can use it" in said


def test_a_model_that_is_not_here_is_refused_with_the_command_that_fetches_it(
    daemons: DaemonFactory, flm: FlmOnPath
) -> None:
    daemon = started(daemons, flm, name="npu/m", model="qwen3:8b")
    answer = daemon.chat("npu/m")
    assert answer.status == 503
    assert "flm pull qwen3:8b" in answer.json()["error"]["message"]
    assert flm.served() == []
