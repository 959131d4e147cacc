"""The whole daemon with real llama-servers and self-made models: what a user does on the first day."""

from __future__ import annotations

import itertools
import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.daemon.kit import history, kill_engine, marked, rest_of, side_by_side, sse, tokens, whole_stream
from tests.harness import Daemon, DaemonFactory, eventually, first_event, streaming
from tests.models import SHORT_REPLY, make_model

NAMES = "abc"
ENDLESS = {"ignore_eos": True, "max_tokens": 30000}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def tiny(models: Path) -> Path:
    return make_model(models, reply=SHORT_REPLY)


@pytest.fixture(scope="module")
def slow(models: Path) -> Path:
    """Generates for seconds when told to ignore the end."""
    return make_model(models, size_mb=40, ctx=32768)


def toml(llama_server: str, models: dict[str, Path], scheduler: str = "", **settings: object) -> str:
    lines = [f"[scheduler]\n{scheduler}", f'[engines.llama-server]\nbinary = "{llama_server}"']
    defaults = {"context": 1024, "threads": 1, **settings}
    lines += ["[defaults]", *(f"{key} = {json.dumps(value)}" for key, value in defaults.items())]
    lines += [f'[models.{name}]\npath = "{path}"' for name, path in models.items()]
    return "\n".join(lines) + "\n"


def spawned(daemon: Daemon) -> int:
    """How many engines the daemon started."""
    return daemon.output().count("→ starting")


def text_of(daemon: Daemon, model: str) -> str:
    answer = daemon.chat(model)
    assert answer.status == 200, answer.body
    return str(answer.json()["choices"][0]["message"]["content"])


def test_two_models_are_loaded_on_demand_and_the_idle_one_is_put_away(
    daemons: DaemonFactory, llama_server: str, tiny: Path
) -> None:
    daemon = daemons.start(toml(llama_server, {"a": tiny, "b": tiny}, idle_timeout="4s"))
    assert marked(daemon) == []
    assert text_of(daemon, "a") == SHORT_REPLY
    status, events, complete = whole_stream(daemon, "b")
    assert (status, complete, events[-1]) == (200, True, "[DONE]")
    assert "".join(tokens(events)) == SHORT_REPLY
    assert len(tokens(events)) > 3
    pid = daemon.status("b")["pid"]
    assert pid, "it is still loaded"
    eventually(lambda: psutil.Process(pid).exe() == str(Path(llama_server).resolve()), "it is llama-server")
    daemon.wait_state("a", "stopped")
    daemon.wait_state("b", "stopped")
    assert "idle for" in daemon.status("a")["reason"]
    assert marked(daemon) == []
    assert text_of(daemon, "a") == SHORT_REPLY
    assert spawned(daemon) == 3
    assert daemon.stop() == 0


def test_forty_interleaved_requests_on_three_models_with_room_for_one_cost_three_loads(
    daemons: DaemonFactory, llama_server: str, tiny: Path
) -> None:
    settings = {"memory": "900MB", "parallel": 2}
    daemon = daemons.start(toml(llama_server, dict.fromkeys(NAMES, tiny), 'memory = "1GB"\n', **settings))
    order = itertools.islice(itertools.cycle(NAMES), 40)
    with side_by_side() as do:
        asked = [
            (name, do(whole_stream, daemon, name) if n % 2 else do(daemon.chat, name)) for n, name in enumerate(order)
        ]
        for number, (name, request) in enumerate(asked):
            outcome = request.result(60)
            if number % 2:
                status, events, complete = outcome
                assert (status, complete, "".join(tokens(events))) == (200, True, SHORT_REPLY)
            else:
                assert outcome.status == 200
                assert outcome.headers["x-accelerd-model"] == outcome.json()["model"] == name
    assert spawned(daemon) == 3
    for name in NAMES:
        assert text_of(daemon, name) == SHORT_REPLY  # all of them can still be reached


def test_a_client_that_goes_away_frees_the_slot(daemons: DaemonFactory, llama_server: str, slow: Path) -> None:
    daemon = daemons.start(toml(llama_server, {"m": slow}, context=16384))
    with streaming(daemon, "m", **ENDLESS) as response:
        assert first_event(response).startswith(b"data: ")
        assert daemon.status("m")["leases"] == 1
    assert daemon.chat("m", max_tokens=1).status == 200
    assert daemon.status("m")["leases"] == 0


def test_kill_9_while_it_generates_and_while_it_idles(daemons: DaemonFactory, llama_server: str, slow: Path) -> None:
    daemon = daemons.start(toml(llama_server, {"m": slow}, context=16384))
    with streaming(daemon, "m", **ENDLESS) as response:
        assert first_event(response).startswith(b"data: ")
        kill_engine(daemon, "m")
        text, complete = rest_of(response)
    assert not complete
    assert sse(text)[-1]["error"]["code"] == "upstream_failed"
    assert "[DONE]" not in text
    seen = daemon.wait_state("m", "stopped")
    assert "SIGKILL" in seen["error"]["message"]
    assert seen["error"]["tail"]
    assert daemon.chat("m", max_tokens=1).status == 200
    kill_engine(daemon, "m")
    daemon.wait_state("m", "backoff", "stopped")
    assert marked(daemon) == []
    assert daemon.control("POST", "reset?model=m").json() == {"state": "stopped"}
    assert daemon.chat("m", max_tokens=1).status == 200


def test_sigterm_while_it_generates(daemons: DaemonFactory, llama_server: str, slow: Path, tiny: Path) -> None:
    daemon = daemons.start(toml(llama_server, {"m": slow, "t": tiny}, context=16384), server='drain_timeout = "20s"')
    assert text_of(daemon, "t")
    with streaming(daemon, "m", ignore_eos=True, max_tokens=300) as response:
        assert first_event(response).startswith(b"data: ")
        daemon.process.send_signal(signal.SIGTERM)
        text, complete = rest_of(response)
    assert complete
    assert sse(text)[-1] == "[DONE]"
    assert daemon.process.wait(20) == 0
    assert marked(daemon) == []


def test_a_file_that_is_no_model_fails_at_once_with_what_llama_server_said(
    daemons: DaemonFactory, llama_server: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 4096)
    daemon = daemons.start(toml(llama_server, {"m": broken}))
    began = time.monotonic()
    answer = daemon.chat("m")
    assert (answer.status, answer.code) in [(503, "model_backing_off"), (503, "model_failed")]
    assert time.monotonic() - began < 10
    assert any("failed to load model" in line or "error" in line.lower() for line in answer.json()["error"]["tail"])
    assert history(daemon, "m")[0] == "starting"


def test_embeddings(daemons: DaemonFactory, llama_server: str, models: Path) -> None:
    path = make_model(models, kind="embed")
    daemon = daemons.start(toml(llama_server, {"e": path}, embeddings=True, context=512))
    body = {"model": "e", "input": ["one text", "another text"]}
    answer = daemon.send("POST", "/v1/embeddings", body)
    assert answer.status == 200, answer.body
    vectors = [item["embedding"] for item in answer.json()["data"]]
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1]) > 0
    assert answer.headers["x-accelerd-model"] == "e"


def test_reload_keeps_the_stream_of_an_unchanged_model_and_replaces_a_changed_one(
    daemons: DaemonFactory, llama_server: str, slow: Path, tiny: Path
) -> None:
    daemon = daemons.start(toml(llama_server, {"m": slow, "t": tiny}))
    assert text_of(daemon, "t") == SHORT_REPLY
    before = {name: daemon.status(name)["pid"] for name in "mt"}
    with streaming(daemon, "m", ignore_eos=True, max_tokens=300) as response:
        assert first_event(response).startswith(b"data: ")
        before["m"] = daemon.status("m")["pid"]
        daemon.configure(toml(llama_server, {"m": slow, "t": tiny}) + "context = 512\n")
        changes = daemon.control("POST", "reload").json()
        assert (changes["unchanged"], changes["relaunch"]) == (["m"], ["t"])
        text, complete = rest_of(response)
    assert (complete, sse(text)[-1]) == (True, "[DONE]")
    assert text_of(daemon, "t") == SHORT_REPLY
    replaced = daemon.wait_state("t", "ready")
    assert replaced["pid"] != before["t"]
    assert daemon.status("m")["pid"] == before["m"]
    argv = daemon.control("GET", "explain?model=t").json()["argv"]
    assert argv[argv.index("-c") + 1] == "512"
    eventually(lambda: len(marked(daemon)) == 2, "the old one is gone")


def cached(daemon: Daemon, text: str) -> tuple[int, int]:
    """Of the tokens of this prompt, how many came from the cache; and how many there are."""
    answer = daemon.chat("a", messages=[{"role": "user", "content": text}], max_tokens=1)
    assert answer.status == 200, answer.body
    usage = answer.json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_errors_that_requests_cause_cost_nobody_the_cache(
    daemons: DaemonFactory, llama_server: str, tiny: Path
) -> None:
    """Whether the engine calls them its own errors or not: it is not probed in the slot that has somebody's prompt."""
    daemon = daemons.start(toml(llama_server, {"a": tiny}, parallel=1))
    text = "a long story " * 40
    cached(daemon, text)
    before, size = cached(daemon, text)
    assert before > size * 0.9
    for _ in range(4):
        answer = daemon.chat("a", json_schema={"type": "object"}, grammar='root ::= "a"')
        assert answer.status in (400, 500)
    assert cached(daemon, text) == (before, size)
    assert spawned(daemon) == 1
