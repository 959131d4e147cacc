"""Programs of the engine `command` under a daemon: loaded on demand, proved, kept from others, evicted and stopped."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from accelerd.config.command import CommandSettings, of_preset, presets
from tests.daemon.kit import QUICK, Site, alive
from tests.gateway.test_form_body import FILE, B, form, part
from tests.harness import ROOT, Answer, Daemon, DaemonFactory, eventually

PROGRAM = ROOT / "tests" / "fakes" / "http_program.py"
HEAD = {"Content-Type": f"multipart/form-data; boundary={B}"}


def program(sites: Site, name: str, *argv: str, **settings: Any) -> str:
    more = {key: settings.pop(key) for key in ("memory", "start_timeout") if key in settings}
    argv = (str(PROGRAM), *(argv or ("--port", "{port}", "--model", "{model}")))
    command = {"argv": argv, "api": ["transcription", "images"], **settings}
    lines = [f"[models.{name}]", 'engine = "command"', f'path = "{sites.gguf}"']
    lines += [f"{key} = {json.dumps(value)}" for key, value in more.items()]
    lines += [f"[models.{name}.env]", f'PROGRAM_LOG = "{sites.directory / (name + ".log")}"']
    lines += [f"[models.{name}.command]", *(f"{key} = {json.dumps(value)}" for key, value in command.items())]
    return "\n".join(lines) + "\n"


def preset(sites: Site, name: str) -> str:
    """A model of that preset whose program is the stand-in."""
    source = f'path = "{sites.gguf}"' if "model" in CommandSettings(**of_preset(name)).placeholders else ""
    source = 'model = "qwen3:8b"' if name == "ollama" else source
    lines = [f'[models."p/{name}"]', 'engine = "command"', f'binary = "{PROGRAM}"', source]
    lines += [f'[models."p/{name}".env]', f'PROGRAM_LOG = "{sites.directory / (name + ".log")}"']
    return "\n".join([*lines, f'[models."p/{name}".command]', f'preset = "{name}"']) + "\n"


@pytest.fixture(scope="module")
def daemon(factory: DaemonFactory, sites: Site) -> Daemon:
    toml = [
        QUICK,
        sites.model("chat", memory="600 MiB"),
        program(sites, "hear", memory="100 MiB"),
        program(sites, "swap", memory="600 MiB", served_name="whisper-1"),  # of one test
        program(sites, "socket", "--socket", "{socket}"),
        program(sites, "key", "--port", "{port}", key_env="PROGRAM_KEY"),
        program(sites, "file", "--socket", "{socket}", "--key-file", "{key_file}"),
        program(sites, "slow", "--port", "{port}", "--slow", "0.3"),
        program(sites, "nowhere").replace(str(PROGRAM), "no-such-speech-server"),
        *(preset(sites, name) for name in presets()),
        program(sites, "broken", "--port", "{port}", "--broken", probe_path="/v1/audio/speech", probe_body='{"a": 1}'),
    ]
    return factory.start("".join(toml).replace("[scheduler]\n", '[scheduler]\nmemory = "1 GiB"\n'))


def transcribe(daemon: Daemon, model: str) -> Answer:
    return daemon.send("POST", "/v1/audio/transcriptions", form(FILE, part("model", model.encode())), HEAD)


def draw(daemon: Daemon, model: str) -> Answer:
    return daemon.send("POST", "/v1/images/generations", {"model": model, "prompt": "a cat"})


def seen(sites: Site, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (sites.directory / f"{name}.log").read_text().splitlines()]


def test_it_is_loaded_on_demand_evicted_for_a_chat_model_and_back(daemon: Daemon, sites: Site) -> None:
    answer = transcribe(daemon, "swap")
    assert (answer.status, answer.json()) == (200, {"text": "hello"})
    assert answer.headers["x-accelerd-model"] == "swap"
    first = daemon.status("swap")["pid"]
    assert daemon.chat("chat").status == 200  # both do not fit
    assert daemon.state("swap") == "stopped"
    assert not alive(first)
    assert draw(daemon, "swap").status == 200
    assert daemon.state("chat") == "stopped"
    paths = [one.get("path") for one in seen(sites, "swap")]
    assert paths == [None, "/v1/audio/transcriptions", None, "/v1/images/generations"]
    assert seen(sites, "swap")[0]["rest"] == ["--model", str(sites.gguf)]
    assert json.loads(seen(sites, "swap")[-1]["body"]) == {"model": "whisper-1", "prompt": "a cat"}
    assert "whisper-1" in seen(sites, "swap")[1]["body"]


@pytest.mark.parametrize("name", ["socket", "key", "file", "slow"])
def test_wherever_it_listens_and_however_it_gets_its_key(daemon: Daemon, name: str) -> None:
    answer = draw(daemon, name)
    assert answer.status == 200, answer.body
    assert daemon.control("POST", f"unload?model={name}").status in (200, 202)
    eventually(lambda: daemon.state(name) == "stopped", "it is unloaded")


def test_a_program_that_is_not_there_is_named_by_explain(daemon: Daemon) -> None:
    answer = daemon.control("GET", "explain?model=nowhere")
    assert answer.code == "model_failed"
    assert "cannot find the program no-such-speech-server: it is not on PATH" in answer.json()["error"]["message"]
    problems = daemon.control("GET", "config/check").json()["problems"]
    (told,) = [one for one in problems if "no-such-speech-server" in one["message"]]
    assert (told["key"], told["severity"]) == ("models.nowhere.command.argv", "warning")


REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"input": "hi"},
    "/v1/audio/speech": {"input": "hi", "voice": "af"},
    "/v1/images/generations": {"prompt": "a cat"},
}
PATHS = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings", "speech": "/v1/audio/speech",
         "images": "/v1/images/generations"}  # fmt: skip


@pytest.mark.parametrize("name", list(presets()))
def test_a_preset_starts_a_stand_in_and_is_asked_at_its_path(daemon: Daemon, sites: Site, name: str) -> None:
    settings = CommandSettings(**of_preset(name))
    if "transcription" in settings.api:
        assert transcribe(daemon, f"p/{name}").status == 200
        body = form(FILE, part("translate", b"false"), part("model", f"p/{name}".encode()))
        assert daemon.send("POST", "/v1/audio/translations", body, HEAD).status == 200
        first, second = seen(sites, name)[-2:]
        assert first["path"] == second["path"] == "/v1/audio/transcriptions", "it has only one"
        assert 'name="translate"' not in first["body"]
        assert re.findall(r'name="(translate|language)"\s+(\w+)', second["body"]) == [
            ("translate", "true"), ("language", "auto"),
        ]  # fmt: skip
        assert FILE.decode("latin-1") in second["body"]
        return
    path = PATHS[settings.api[0]]
    answer = daemon.send("POST", path, {"model": f"p/{name}", **REQUESTS[path]})
    assert answer.status == 200, answer.body
    noted = seen(sites, name)[-1]
    assert noted["path"] == path
    asked_for = {"ollama": "qwen3:8b"}.get(name, f"p/{name}")
    assert json.loads(noted["body"])["model"] == asked_for


def test_one_that_does_not_work_is_not_ready(daemon: Daemon) -> None:
    error = draw(daemon, "broken").json()["error"]
    assert error["code"] in ("model_failed", "model_backing_off")
    assert "no model is loaded" in error["message"]


def test_what_it_cannot_do_is_refused_before_it_is_loaded(daemon: Daemon) -> None:
    before = daemon.state("hear")
    answer = daemon.chat("hear")
    assert (answer.status, answer.code) == (400, "not_supported_by_model")
    assert daemon.state("hear") == before


def test_what_it_prints_of_requests_is_not_kept(daemon: Daemon) -> None:
    assert draw(daemon, "hear").status == 200
    assert daemon.control("GET", "logs?model=hear").status == 200
    assert b"secret words" not in daemon.control("GET", "logs?model=hear").body
    assert "hear: request" not in daemon.output()


def test_its_catalogue_entry(daemon: Daemon) -> None:
    listed = {one["id"]: one for one in daemon.send("GET", "/v1/models").json()["data"]}
    assert listed["hear"]["engine"] == "command"
    assert listed["hear"]["capabilities"] == ["images", "transcription"]


def test_a_form_for_an_edit_has_its_image_in_another_field(daemon: Daemon, sites: Site) -> None:
    model, image = part("model", b"hear"), part("image[]", b"\x89PNG", '; filename="a.png"')
    assert daemon.send("POST", "/v1/images/edits", form(model, image, image), HEAD).status == 200
    assert seen(sites, "hear")[-1]["body"].count("\x89PNG") == 2
    answer = daemon.send("POST", "/v1/images/edits", form(model), HEAD)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "image")
