"""The door before a real llama-server: Anthropic's messages, OpenAI's responses, routes, what it is not asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Daemon, DaemonFactory, streaming
from tests.models import SHORT_REPLY, make_model

HELLO = [{"role": "user", "content": "good day"}]


@pytest.fixture(scope="module")
def daemon(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("gate")
    model = make_model(directory / "models", reply=SHORT_REPLY, ctx=4096)
    toml = f"[engines.llama-server]\nbinary = {json.dumps(llama_server)}\n[defaults]\nthreads = 1\ncontext = 4096\n"
    for name in ("one", "two"):
        toml += f"[models.{name}]\npath = {json.dumps(str(model))}\n"
    toml += '[routes.assistant]\nmodels = ["one", "two"]\n'
    with DaemonFactory(directory) as factory:
        daemon = factory.start(toml)
        assert daemon.chat("one").status == 200
        yield daemon


def message(model: str = "one", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "messages": HELLO, **more}


def test_it_answers_anthropics_messages(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/v1/messages", message(), headers={"anthropic-version": "2023-06-01"})
    assert answer.status == 200, answer.body
    said = answer.json()
    assert said["type"] == "message"
    assert said["content"][-1]["text"] == SHORT_REPLY
    assert answer.headers["x-accelerd-model"] == "one"


def test_it_streams_anthropics_events(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/v1/messages", message(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line[7:].decode() for line in answer.body.split(b"\n") if line.startswith(b"event: ")]
    assert events[0] == "message_start"
    assert events[-1] == "message_stop"
    assert b"text_delta" in answer.body


def test_it_counts_tokens(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/v1/messages/count_tokens", {"model": "one", "messages": HELLO})
    assert answer.status == 200, answer.body
    assert answer.json()["input_tokens"] > 0


def test_it_answers_responses(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/v1/responses", {"model": "one", "input": "good day"})
    assert answer.status == 200, answer.body
    said = answer.json()
    assert said["object"] == "response"
    assert SHORT_REPLY in json.dumps(said["output"])


def test_errors_of_messages_have_anthropics_shape(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/v1/messages", message("nobody"))
    assert answer.status == 404
    assert answer.json()["error"]["type"] == "not_found_error"
    assert answer.json()["type"] == "error"


def test_it_is_not_loaded_for_what_it_cannot_do(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/v1/embeddings", {"model": "two", "input": "x"})
    assert answer.code == "not_supported_by_model"
    assert "embeddings = true" in answer.json()["error"]["message"]


def test_what_it_can_do_is_listed(daemon: Daemon) -> None:
    listed = {m["id"]: m for m in daemon.send("GET", "/v1/models").json()["data"]}
    assert {"chat", "messages", "responses", "tools"} <= set(listed["one"]["capabilities"])
    assert listed["one"]["aliases"] == ["local/one"]
    assert listed["assistant"]["routes"] == ["one", "two"]


def test_a_route_and_a_prefix_are_answered(daemon: Daemon) -> None:
    for name in ("assistant", "local/one"):
        answer = daemon.chat(name)
        assert answer.status == 200, answer.body
        assert answer.headers["x-accelerd-model"] == "one"


def test_a_route_says_where_a_request_would_go(daemon: Daemon) -> None:
    idle = daemon.control("GET", "explain?model=assistant").json()
    assert (idle["route"], idle["answers"]) == ("assistant", "one")
    assert [m["model"] for m in idle["models"]] == ["one", "two"]
    with streaming(daemon, "one", ignore_eos=True, max_tokens=4000):
        busy = daemon.control("GET", "explain?model=assistant").json()
        assert "no free slot" in busy["models"][0]["why"]
        assert "requests of one" in busy["models"][1]["why"], "both run on the processor"
        assert not any(m["free"] for m in busy["models"])
    assert daemon.control("POST", "load?model=assistant").code == "bad_request"
    assert daemon.control("GET", "explain?model=local/one").json()["model"] == "one"


def test_a_reload_changes_routes(daemon: Daemon) -> None:
    before = daemon.config.read_text()
    try:
        daemon.config.write_text(before.replace('models = ["one", "two"]', 'models = ["two"]'))
        assert daemon.control("POST", "reload").status == 200
        assert daemon.control("GET", "explain?model=assistant").json()["answers"] == "two"
    finally:
        daemon.config.write_text(before)
        assert daemon.control("POST", "reload").status == 200
