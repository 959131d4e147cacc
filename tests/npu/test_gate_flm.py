"""The door before flm (a stand-in): its own model names, its full queue, what it lacks, what it hears, routes to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.gateway.test_form_body import FILE, B, form, part
from tests.harness import PATIENCE, Daemon, DaemonFactory, dummy_gguf, eventually, fake_model, streaming
from tests.npu.kit import FlmOnPath, flm_model

NAME = "npu/qwen3-4b"
HELLO = [{"role": "user", "content": "good day"}]
TOOL = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def posts(flm: FlmOnPath, path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
    return [record for record in flm.noted("post") if record["post"] == path]


@contextmanager
def stranger(flm: FlmOnPath) -> Iterator[None]:
    """Somebody who has found flm's port and keeps its NPU busy while the block runs."""
    argv = flm.served()[-1]
    connection = http.client.HTTPConnection("127.0.0.1", int(argv[argv.index("--port") + 1]), timeout=PATIENCE)
    body = {"model": "qwen3:4b", "messages": HELLO, "stream": True, "max_tokens": 4000}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode())
    response = connection.getresponse()
    response.read(1)
    try:
        yield
    finally:
        response.close()
        connection.close()


def test_B_flm_hears_its_own_name_whatever_the_client_says(daemons: DaemonFactory, tmp_path: Path) -> None:
    """It would load what a request names, and llama3.2:1b for a name that it does not know."""
    flm = FlmOnPath(tmp_path).pulled("qwen3:4b")
    daemon = daemons.start(
        flm_model(aliases=["gpt-4o"]) + f'[routes.assistant]\nmodels = ["{NAME}"]\n', env={"PATH": flm.path}
    )
    for name in (NAME, "gpt-4o", "assistant"):
        answer = daemon.chat(name)
        assert answer.status == 200, answer.body
        assert answer.headers["x-accelerd-model"] == NAME
    assert {record["model"] for record in posts(flm)} == {"qwen3:4b"}
    assert not any(record["authorization"] for record in posts(flm)), "a key for who knows no keys"
    assert len(flm.noted("switch")) == 1
    assert daemon.chat(f"npu/{NAME}").code == "model_not_found"


def test_B_what_flm_lacks_is_refused_before_it_is_started(daemons: DaemonFactory, tmp_path: Path) -> None:
    flm = FlmOnPath(tmp_path).pulled("llama3.2:1b")
    daemon = daemons.start(flm_model("npu/llama", "llama3.2:1b"), env={"PATH": flm.path})
    message = daemon.send("POST", "/v1/messages/count_tokens", {"model": "npu/llama", "messages": HELLO})
    assert message.status == 400
    assert (message.json()["type"], message.json()["error"]["type"]) == ("error", "invalid_request_error")
    for path, body, capability in (
        ("/v1/responses", {"input": "x"}, "responses"),
        ("/v1/embeddings", {"input": "x"}, "embeddings"),
        ("/v1/chat/completions", {"messages": HELLO, "tools": TOOL}, "tools"),
    ):
        answer = daemon.send("POST", path, {"model": "npu/llama", **body})
        assert (answer.status, answer.code) == (400, "not_supported_by_model"), answer.body
        assert answer.json()["error"]["capability"] == capability
    assert flm.served() == []
    (listed,) = daemon.send("GET", "/v1/models").json()["data"]
    assert "responses" not in listed["capabilities"]
    assert (listed["engine"], listed["device"]) == ("flm", "npu")


def test_B_anthropics_and_ollamas_clients_are_translated_to(daemons: DaemonFactory, tmp_path: Path) -> None:
    flm = FlmOnPath(tmp_path).pulled("qwen3:4b")
    daemon = daemons.start(flm_model(), env={"PATH": flm.path})
    asked = {"model": NAME, "messages": HELLO}
    message = daemon.send("POST", "/v1/messages", {**asked, "max_tokens": 9})
    assert (message.status, message.json()["type"], message.json()["model"]) == (200, "message", NAME)
    assert message.json()["content"][-1]["text"]
    line = daemon.send("POST", "/api/chat", {**asked, "stream": False})
    assert (line.status, line.json()["done"], line.json()["model"]) == (200, True, NAME)
    lines = daemon.send("POST", "/api/chat", asked).body.splitlines()
    assert (json.loads(lines[0])["done"], json.loads(lines[-1])["done"]) == (False, True)
    assert {record["model"] for record in posts(flm)} == {"qwen3:4b"}
    (listed,) = daemon.send("GET", "/api/tags").json()["models"]
    assert listed["name"] == NAME


def test_B_its_full_queue_never_reaches_a_client(daemons: DaemonFactory, tmp_path: Path) -> None:
    flm = FlmOnPath(tmp_path, token_seconds=0.01, tokens=4000).pulled("qwen3:4b")
    # A queue of no length: whoever comes second is refused at once.
    daemon = daemons.start(flm_model(extra_args=["--q-len", "0"]), env={"PATH": flm.path})
    daemon.control("POST", f"load?model={NAME}")
    before = len(posts(flm))
    answers: list[Any] = []
    with stranger(flm):
        ask = threading.Thread(target=lambda: answers.append(daemon.chat(NAME, max_tokens=2)))
        ask.start()
        eventually(lambda: len(posts(flm)) >= before + 3, "asked again")
        assert not answers
        assert daemon.status(NAME)["leases"] == 1
    ask.join(PATIENCE)
    assert answers[0].status == 200, answers[0].body
    assert "choices" in answers[0].json()
    assert daemon.status(NAME)["state"] == "ready"


def test_B_a_recording_is_written_down_through_the_same_port(daemons: DaemonFactory, tmp_path: Path) -> None:
    flm = FlmOnPath(tmp_path).pulled("whisper-v3:turbo")
    daemon = daemons.start(flm_model("npu/whisper", "whisper-v3:turbo", transcription=True), env={"PATH": flm.path})
    headers = {"Content-Type": f"multipart/form-data; boundary={B}"}
    body = form(FILE, part("model", b"npu/whisper"))
    answer = daemon.send("POST", "/v1/audio/transcriptions", body, headers=headers)
    assert answer.status == 200, answer.body
    assert answer.json()["text"]
    assert answer.headers["x-accelerd-model"] == "npu/whisper"
    post = posts(flm, "/v1/audio/transcriptions")[-1]
    assert (post["model"], post["keys"]) == ("whisper-v3:turbo", ["file", "model"])
    assert daemon.chat("npu/whisper").code == "not_supported_by_model"


def explained(daemon: Daemon) -> dict[str, Any]:
    found: dict[str, Any] = daemon.control("GET", "explain?model=assistant").json()
    return found


def test_a_route_takes_the_npu_while_the_other_device_is_busy(daemons: DaemonFactory, tmp_path: Path) -> None:
    flm = FlmOnPath(tmp_path).pulled("qwen3:4b")
    toml = fake_model("big", dummy_gguf(tmp_path), "slow", env={"FAKE_TOKENS": "10000"}) + flm_model()
    daemon = daemons.start(toml + f'[routes.assistant]\nmodels = ["big", "{NAME}"]\n', env={"PATH": flm.path})
    assert explained(daemon)["answers"] == "big"
    with streaming(daemon, "big", max_tokens=100_000) as response:
        response.read(1)
        now = explained(daemon)
        assert (now["answers"], now["models"][0]["free"]) == (NAME, False)
        assert "big has no free slot" in now["reason"]
        answer = daemon.chat("assistant")
        assert (answer.status, answer.headers["x-accelerd-model"]) == (200, NAME)
    eventually(lambda: explained(daemon)["answers"] == "big", "the first again")
