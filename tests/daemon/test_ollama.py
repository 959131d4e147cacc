"""Ollama under a daemon: a server of accelerd's own for one model, and one that runs already, whose models can be asked
for by name. A stand-in takes the place of its program."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon.kit import QUICK, Site, alive
from tests.daemon.test_remote import accelctl
from tests.fakes.fake_ollama import pull, remove
from tests.harness import ROOT, Daemon, DaemonFactory, eventually
from tests.ports import free_port

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


# --- one that runs already ------------------------------------------------------------------------------------------


class Box:
    """An Ollama that somebody else has started."""

    def __init__(self, folder: Path, *, old: bool = False) -> None:
        folder.mkdir()
        self.models, self.log = folder / "models", folder / "log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        base = {"PATH": os.environ["PATH"], "OLLAMA_HOST": f"127.0.0.1:{self.port}", "OLLAMA_MODELS": str(self.models)}
        self.env = {**base, "OLLAMA_LOG": str(self.log), **({"OLLAMA_OLD": "1"} if old else {})}

    def __enter__(self) -> Box:
        self.process = subprocess.Popen([OLLAMA, "serve"], env=self.env, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def asked(self, path: str) -> list[Any]:
        return [one.get("body") for one in noted(self.log) if one.get("path") == path]

    def loaded(self) -> list[str]:
        with urllib.request.urlopen(f"{self.url}/api/ps") as answer:
            return [one["name"] for one in json.load(answer)["models"]]


@pytest.fixture(scope="module")
def box(sites: Site) -> Iterator[Box]:
    one = Box(sites.directory / "box")
    pull(one.models, "qwen3:8b", size=5_225_388_164, context=40960)
    pull(one.models, "bge-m3", capabilities=["embedding"])
    pull(one.models, "here", capabilities=["completion", "vision"])
    pull(one.models, "brief:1b")
    with one:
        yield one


def remote(name: str, url: str, **settings: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"url": url, "api": "ollama", **settings}.items()]
    return "\n".join([f"[remotes.{name}]", *lines, ""])


@pytest.fixture(scope="module")
def beside(factory: DaemonFactory, sites: Site, box: Box) -> Daemon:
    toml = [QUICK, sites.model("here"), sites.model("mine", aliases=["gpt-*"]), remote("box", box.url)]
    ours = '[models.{}]\nengine = "remote"\nremote = "box"\nmodel = "{}"\n'
    toml += [ours.format("short", "bge-m3"), ours.format("brief", "brief:1b") + 'idle_timeout = "200ms"\n']
    return factory.start("".join(toml))


def listed(daemon: Daemon) -> dict[str, Any]:
    return {one["id"]: one for one in daemon.send("GET", "/v1/models").json()["data"]}


def known(daemon: Daemon, name: str) -> dict[str, Any]:
    """The entry of a model, as soon as it is there."""
    found: dict[str, Any] = eventually(lambda: listed(daemon).get(name), f"{name} is listed")
    return found


def test_nothing_is_loaded_there_for_a_list(daemons: DaemonFactory, tmp_path: Path) -> None:
    quiet = Box(tmp_path / "quiet")
    pull(quiet.models, "qwen3:8b")
    with quiet:
        daemon = daemons.start(QUICK + remote("quiet", quiet.url))
        known(daemon, "quiet/qwen3:8b")
        assert daemon.control("GET", "remotes").json()["remotes"][0]["reachable"]
        assert daemon.state("quiet/qwen3:8b") == "ready"
        assert not quiet.loaded()
    assert {one["path"] for one in noted(quiet.log) if "path" in one} == {"/api/tags", "/api/ps"}


def test_what_it_has_is_listed(beside: Daemon) -> None:
    entry = known(beside, "box/qwen3:8b")
    assert (entry["aliases"], entry["engine"], entry["device"]) == (["qwen3:8b"], "remote", "remote")
    assert (entry["size"], entry["context_length"]) == (5_225_388_164, 40960)
    assert {"chat", "tools", "messages"} <= set(entry["capabilities"])
    names = listed(beside)
    assert names["box/here:latest"]["aliases"] == ["here:latest"]
    assert "box/bge-m3:latest" not in names  # a model of the configuration stands for it
    assert names["short"]["aliases"] == ["box/bge-m3", "bge-m3"]
    tags = {one["name"]: one for one in beside.send("GET", "/api/tags").json()["models"]}
    assert tags["box/qwen3:8b"]["size"] == 5_225_388_164


@pytest.mark.parametrize(
    ("name", "model", "there"),
    [
        ("box/qwen3:8b", "box/qwen3:8b", "qwen3:8b"),
        ("qwen3:8b", "box/qwen3:8b", "qwen3:8b"),
        ("box/here", "box/here:latest", "here:latest"),
        ("here:latest", "box/here:latest", "here:latest"),
    ],
)
def test_each_of_its_names_is_answered_by_it(beside: Daemon, box: Box, name: str, model: str, there: str) -> None:
    known(beside, model)
    answer = beside.chat(name)
    assert answer.status == 200, answer.body
    assert (answer.json()["model"], answer.headers["x-accelerd-model"]) == (name, model)
    sent = box.asked("/v1/chat/completions")[-1]
    assert sent["model"] == there
    assert "keep_alive" not in sent


def test_a_configured_name_is_never_its(beside: Daemon, box: Box) -> None:
    known(beside, "box/here:latest")
    before = len(box.asked("/v1/chat/completions"))
    assert beside.chat("here").headers["x-accelerd-model"] == "here"
    pull(box.models, "gpt-oss:20b")
    beside.control("GET", "remotes")
    assert beside.chat("gpt-oss:20b").headers["x-accelerd-model"] == "mine"
    assert len(box.asked("/v1/chat/completions")) == before
    assert beside.chat("box/gpt-oss:20b").headers["x-accelerd-model"] == "box/gpt-oss:20b"


def test_a_request_without_a_model_means_none_of_its(daemons: DaemonFactory, sites: Site, box: Box) -> None:
    alone = daemons.start(QUICK + sites.model("only") + remote("box", box.url))
    known(alone, "box/qwen3:8b")
    answer = alone.send("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert answer.headers["x-accelerd-model"] == "only"


def test_ollamas_clients_keep_what_they_say_of_keep_alive(beside: Daemon, box: Box) -> None:
    known(beside, "box/qwen3:8b")
    body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}], "keep_alive": "7m"}
    assert beside.send("POST", "/api/chat", body).status == 200
    assert box.asked("/api/chat")[-1] == body


def test_unloading_gives_back_its_memory(beside: Daemon, box: Box) -> None:
    known(beside, "box/qwen3:8b")
    assert beside.chat("qwen3:8b").status == 200
    assert "qwen3:8b" in box.loaded()
    assert beside.events("unload?model=qwen3:8b")[-1]["event"] == "stopped"
    assert "qwen3:8b" not in box.loaded()
    assert box.asked("/api/generate")[-1] == {"model": "qwen3:8b", "keep_alive": 0}
    assert beside.chat("qwen3:8b").status == 200


def test_one_with_an_idle_timeout_is_unloaded_there_and_stays_ready_here(beside: Daemon, box: Box) -> None:
    told = {"model": "brief:1b", "keep_alive": 0}
    for count in (1, 2):
        assert beside.chat("brief").status == 200
        eventually(lambda count=count: box.asked("/api/generate").count(told) == count, "it was idle")  # type: ignore[misc]
        eventually(lambda: "brief:1b" not in box.loaded(), "its memory is back")
    assert (beside.state("brief"), beside.status("brief")["idle_timeout"]) == ("ready", 0.2)
    assert beside.status("box/qwen3:8b")["idle_timeout"] is None


def test_what_is_pulled_there_works_and_what_is_removed_is_said_to_be_gone(beside: Daemon, box: Box) -> None:
    known(beside, "box/qwen3:8b")
    pull(box.models, "new:1b")
    eventually(lambda: beside.chat("box/new:1b").status == 200, "it is asked for a name that is not known")
    remove(box.models, "new:1b")
    assert beside.chat("new:1b").status == 404
    there = beside.control("GET", "remotes").json()["remotes"][0]["models"]  # asks it now
    assert "new:1b" not in [one["name"] for one in there]
    answer = beside.chat("box/new:1b")
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert "the remote box has no 'new:1b'" in answer.json()["error"]["message"]
    assert "box/new:1b" not in listed(beside)
    assert "box/new:1b" not in [one["name"] for one in beside.status()["models"]]


def test_accelctl_shows_by_which_names_they_can_be_asked_for(beside: Daemon) -> None:
    known(beside, "box/qwen3:8b")
    said = accelctl(beside, "remotes")
    assert "box/qwen3:8b, qwen3:8b" in said
    assert "4.9 GiB" in said
    assert "box/here:latest" in accelctl(beside, "models")
    assert beside.status("box/qwen3:8b")["aliases"] == ["qwen3:8b"]


def test_while_it_is_away_its_models_stay_and_the_error_says_so(
    daemons: DaemonFactory, sites: Site, tmp_path: Path
) -> None:
    away = Box(tmp_path / "away", old=True)
    pull(away.models, "qwen3:4b", capabilities=["completion", "vision"])
    daemon = daemons.start(QUICK + remote("away", away.url) + sites.model("here"))
    answer = daemon.chat("away/qwen3:4b")  # nothing is known yet
    assert (answer.status, answer.code) == (502, "upstream_failed")
    assert "the remote away: it cannot be reached" in answer.json()["error"]["message"]
    with away:
        eventually(lambda: daemon.chat("away/qwen3:4b").status == 200, "it is asked again")
        can = known(daemon, "away/qwen3:4b")["capabilities"]  # an older one says that in /api/show alone
    assert {"chat", "vision"} <= set(can)
    assert "tools" not in can
    assert daemon.chat("qwen3:4b").status == 502
    said = accelctl(daemon, "remotes")
    assert "its models are those that it had when it answered last" in said
    assert "away/qwen3:4b" in listed(daemon)
    missing = daemon.chat("away/other")
    assert (missing.status, missing.code) == (404, "model_not_found")
    assert "or had none when it answered last" in missing.json()["error"]["message"]


def test_a_remote_offers_what_its_key_says(daemons: DaemonFactory, sites: Site, box: Box) -> None:
    openai = remote("open", box.url, api="openai", models=["qwen*"])
    daemon = daemons.start(QUICK + openai + remote("quiet", box.url, api="openai") + remote("none", box.url, models=[]))
    assert known(daemon, "open/qwen3:8b")["aliases"] == ["qwen3:8b"]
    assert list(listed(daemon)) == ["open/qwen3:8b"]
    assert daemon.chat("open/qwen3:8b").status == 200
    assert daemon.chat("open/here:latest").status == 404
    assert daemon.chat("quiet/qwen3:8b").status == 404
    daemon.configure(QUICK + remote("none", box.url, models=["here*"]))
    assert daemon.control("POST", "reload").status == 200
    assert daemon.chat("none/here").status == 200  # waits for the answer to the first question
    assert daemon.chat("open/qwen3:8b").status == 404
    assert list(listed(daemon)) == ["none/here:latest"]
