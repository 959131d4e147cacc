"""llama-server's own paths under a daemon: a client gets what the engine says, and monitors load nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness import Answer, Daemon, DaemonFactory, UnixConnection, eventually, exchange
from tests.models import SHORT_REPLY, make_model
from tests.real.test_gateway import engine_of

GREEDY = {"temperature": 0, "cache_prompt": False}
ASKED: dict[str, dict[str, Any]] = {
    "/completion": {"prompt": "good day", "n_predict": 5, **GREEDY},
    "/infill": {"input_prefix": "good ", "input_suffix": " day", "n_predict": 3, **GREEDY},
    "/embedding": {"content": "good day"},
    "/tokenize": {"content": "good day", "with_pieces": True},
    "/detokenize": {"tokens": [20, 21, 22]},
    "/apply-template": {"messages": [{"role": "user", "content": "good day"}]},
}
MOVES = ("timings", "id_slot", "generation_settings")  # what differs from one answer to the next


@pytest.fixture(scope="module")
def daemon(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("paths")
    model = make_model(directory / "models", reply=SHORT_REPLY, ctx=2048)
    toml = f"[engines.llama-server]\nbinary = {json.dumps(llama_server)}\n[defaults]\nthreads = 1\ncontext = 2048\n"
    extra = json.dumps(["--pooling", "mean", "--metrics"])
    for name, more in (("coder", ""), ("asleep", ""), ("late", ""), ("vectors", "embeddings = true\n")):
        toml += f"[models.{name}]\npath = {json.dumps(str(model))}\nextra_args = {extra}\n{more}"
    with DaemonFactory(directory) as factory:
        daemon = factory.start(toml)
        for name in ("coder", "vectors"):
            assert daemon.control("POST", f"load?model={name}").status == 200
        yield daemon


def direct(daemon: Daemon, path: str, body: Any, model: str = "coder") -> Answer:
    """What the engine itself answers."""
    socket, key = engine_of(daemon, model)
    return exchange(UnixConnection(socket), "POST", path, body, {"Authorization": f"Bearer {key}"})


def settled(answer: Answer) -> Any:
    found = answer.json()
    return {key: value for key, value in found.items() if key not in MOVES} if isinstance(found, dict) else found


@pytest.mark.parametrize("path", ASKED)
def test_answers_are_the_engines_own(daemon: Daemon, path: str) -> None:
    model = "vectors" if path == "/embedding" else "coder"
    here = daemon.send("POST", path, {"model": model, **ASKED[path]})
    there = direct(daemon, path, ASKED[path], model)
    assert (here.status, there.status) == (200, 200)
    assert settled(here) == settled(there)
    assert here.headers["x-accelerd-model"] == model


def test_a_completion_streams_as_the_engine_has_it(daemon: Daemon) -> None:
    body = {"prompt": "good day", "n_predict": 4, "stream": True, **GREEDY}
    here, there = daemon.send("POST", "/completion?model=coder", body), direct(daemon, "/completion", body)
    assert here.headers["content-type"] == there.headers["content-type"] == "text/event-stream"
    texts = [[json.loads(line[6:])["content"] for line in one.body.splitlines() if line] for one in (here, there)]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 1


def test_a_completion_that_is_too_long_is_the_clients_mistake(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/completion", {"model": "coder", "prompt": "good day " * 4000, "n_predict": 1})
    assert (answer.status, answer.code) == (400, "context_length_exceeded")


def test_a_running_engine_is_read_and_none_is_started(daemon: Daemon) -> None:
    props = daemon.send("GET", "/props?model=coder").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert not props["is_sleeping"]
    assert daemon.send("GET", "/slots?model=coder").json()[0]["n_ctx"] == 2048
    assert b"llamacpp:requests_processing 0" in daemon.send("GET", "/metrics?model=coder").body
    assert daemon.send("GET", "/lora-adapters?model=coder").json() == []
    known = daemon.send("GET", "/props?model=asleep").json()
    assert (known["is_sleeping"], known["default_generation_settings"]["n_ctx"]) == (True, 2048)
    assert set(known) <= set(props)
    for path in ("/slots", "/metrics", "/lora-adapters"):
        assert daemon.send("GET", f"{path}?model=asleep").code == "model_unloaded"
    assert daemon.state("asleep") == "stopped"


def test_what_a_monitor_reads_does_not_keep_a_model_loaded(daemon: Daemon) -> None:
    before = eventually(lambda: daemon.status("coder")["idle"], "it idles")
    for path in ("/props", "/slots", "/metrics", "/lora-adapters"):
        assert daemon.send("GET", f"{path}?model=coder").status == 200
    assert daemon.status("coder")["idle"] >= before


def test_the_tokens_of_a_model_that_is_not_loaded_load_it(daemon: Daemon) -> None:
    assert daemon.state("late") == "stopped"
    assert daemon.send("POST", "/tokenize", {"model": "late", "content": "good day"}).json()["tokens"]
    assert daemon.state("late") == "ready"


def test_everything_else_that_the_engine_has_is_below_its_models_name(daemon: Daemon) -> None:
    """As its web page asks for it; not every build has the page itself."""
    there = daemon.send("GET", "/upstream/coder")
    assert (there.status, there.headers["location"]) == (307, "/upstream/coder/")
    assert daemon.send("GET", "/upstream/coder/props", headers={"Authorization": "Bearer none"}).status == 200
    chat = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 3}
    stream = daemon.send("POST", "/upstream/coder/v1/chat/completions", chat)
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert daemon.send("POST", "/upstream/coder/lora-adapters", []).json() == {"success": True}
    assert daemon.send("POST", "/upstream/coder/slots/0?action=erase", {}).status == 501
    eventually(lambda: daemon.status("coder")["leases"] == 0, "released")
