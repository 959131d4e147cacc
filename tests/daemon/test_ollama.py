"""Ollama under a daemon: a server of accelerd's own for one model, with a stand-in for its program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.kit import QUICK, Site, alive
from tests.fakes.fake_ollama import pull
from tests.harness import ROOT, Daemon, DaemonFactory, eventually

OLLAMA = ROOT / "tests" / "fakes" / "fake_ollama.py"
MIB = 1 << 20


def owned(name: str, model: str, log: Path) -> str:
    lines = [
        f'[models."{name}"]',
        'engine = "command"',
        f'binary = "{OLLAMA}"',
        f'model = "{model}"',
        'memory = "1 MiB"',
    ]
    lines += ["parallel = 2", f'[models."{name}".env]', f'OLLAMA_LOG = "{log}"']
    return "\n".join([*lines, f'[models."{name}".command]', 'preset = "ollama"']) + "\n"


def noted(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture(scope="module")
def models(sites: Site) -> Path:
    folder = sites.directory / "ollama-models"
    pull(folder, "qwen3:8b", memory=60 * MIB)
    pull(folder, "bge-m3", capabilities=["embedding"])
    return folder


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site, models: Path) -> Daemon:
    logs = sites.directory
    toml = [
        QUICK,
        owned("own", "qwen3:8b", logs / "own.log"),
        owned("vectors", "bge-m3", logs / "vectors.log"),
        owned("late", "mistral:7b", logs / "late.log"),
    ]
    return factory.start("".join(toml), env={"OLLAMA_MODELS": str(models), "OLLAMA_KEEP_ALIVE": "1s"})


def test_a_server_of_its_own_is_ready_when_the_model_is_loaded_and_ends_with_its_runner(
    daemon: Daemon, sites: Site
) -> None:
    assert daemon.chat("own").json()["model"] == "own"
    env, *requests = noted(sites.directory / "own.log")
    expected = {"KEEP_ALIVE": "-1", "MAX_LOADED_MODELS": "1", "NUM_PARALLEL": "2", "NOPRUNE": "1"}
    assert expected.items() <= env["env"].items()
    asked = [one for one in requests if "body" in one]
    assert asked[0] == {"path": "/api/embed", "body": {"model": "qwen3:8b", "keep_alive": -1}}
    assert asked[-1]["path"] == "/v1/chat/completions"
    assert asked[-1]["body"]["model"] == "qwen3:8b"
    server = psutil.Process(daemon.status("own")["pid"])
    (runner,) = server.children()
    eventually(lambda: (daemon.status("own")["memory_used"] or 0) > 60 * MIB, "the runner's memory counts")
    assert daemon.control("POST", "unload?model=own").status in (200, 202)
    daemon.wait_state("own", "stopped")
    assert not alive(runner.pid)
    assert not alive(server.pid)


def test_one_for_embeddings_is_loaded_by_the_same_probe(daemon: Daemon) -> None:
    answer = daemon.send("POST", "/v1/embeddings", {"model": "vectors", "input": "hi"})
    assert answer.status == 200, answer.body
    assert answer.json()["model"] == "vectors"


def test_its_own_chat_api_is_native(daemon: Daemon, sites: Site) -> None:
    body = {"model": "own", "messages": [{"role": "user", "content": "hi"}], "keep_alive": "3m"}
    answer = daemon.send("POST", "/api/chat", body)
    assert answer.status == 200, answer.body
    assert {json.loads(line)["model"] for line in answer.body.splitlines()} == {"own"}
    asked = noted(sites.directory / "own.log")[-1]
    assert asked == {"path": "/api/chat", "body": {**body, "model": "qwen3:8b"}}


def test_a_model_that_is_not_there_is_named_with_what_to_do_and_works_once_it_is(daemon: Daemon, models: Path) -> None:
    error = daemon.chat("late").json()["error"]
    assert "run: ollama pull mistral:7b" in error["message"]
    assert 'model "mistral:7b" not found' in error["message"]
    pull(models, "mistral:7b")
    eventually(lambda: daemon.chat("late").status == 200, "it is looked for again", within=20)
