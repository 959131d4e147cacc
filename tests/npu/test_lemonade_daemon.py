"""A real accelerd with models in Lemonade: clients, status, swaps and ends. Against the stand-in `lemond`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness import Daemon, DaemonFactory, command_line, eventually, streaming
from tests.npu.lemonade_kit import EMBED, GEMMA, QWEN, STANDINS, Foreign, Standin, foreign

Start = Callable[..., Daemon]


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    (tmp_path / "home").mkdir()
    return Standin(tmp_path / "home", "lemond")


@pytest.fixture
def start(daemons: DaemonFactory, standin: Standin) -> Start:
    def begin(toml: str, env: Mapping[str, str] | None = None) -> Daemon:
        return daemons.start(toml, env={"PATH": standin.path, **(env or {})})

    return begin


def model(name: str, id: str, **settings: Any) -> str:
    lines = [f"[models.{json.dumps(name)}]", 'engine = "lemonade"', f"model = {json.dumps(id)}"]
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]) + "\n"


def models_in(stream: bytes) -> set[str]:
    """The models that the events of a stream name."""
    events = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: {")]
    return {json.loads(event)["model"] for event in events}


def server_of(daemon: Daemon) -> psutil.Process:
    """The Lemonade Server that the daemon runs."""

    def find() -> psutil.Process | None:
        return next((one for one in daemon.children() if any("bin/lemond" in word for word in command_line(one))), None)

    found = eventually(find, "a Lemonade Server")
    assert isinstance(found, psutil.Process)
    return found


def test_a_chat_with_a_model_in_lemonade(start: Start) -> None:
    daemon = start(model("qwen", QWEN))
    answer = daemon.chat("qwen")
    assert answer.status == 200, answer.body
    assert answer.json()["choices"][0]["message"]["content"].startswith("The backend says")
    assert answer.json()["model"] == "qwen"
    with streaming(daemon, "qwen") as response:
        said = response.read()
    assert b"[DONE]" in said
    assert models_in(said) == {"qwen"}
    pid = server_of(daemon).pid
    assert daemon.status("qwen")["pid"] != pid
    assert daemon.stop() == 0
    assert not psutil.pid_exists(pid)


def test_unloading_one_does_nothing_to_the_other(start: Start, standin: Standin) -> None:
    daemon = start(model("qwen", QWEN) + model("gemma", GEMMA))
    assert daemon.chat("qwen").status == 200
    standin.say(token_seconds=0.05)
    assert daemon.chat("gemma").status == 200
    with streaming(daemon, "gemma") as response:
        first = response.readline()
        assert first
        daemon.events("unload?model=qwen")
        daemon.wait_state("qwen", "stopped")
        assert b"[DONE]" in response.read()
    assert daemon.state("gemma") == "ready"
    assert [one["body"]["model_name"] for one in standin.requests("/api/v1/unload")] == [QWEN]


def test_failed_load_evicts_all_and_the_others_come_again(start: Start, standin: Standin) -> None:
    """What Lemonade has thrown out is loaded again with the next request; the failed one is the only one to blame."""
    daemon = start(model("qwen", QWEN) + model("gemma", GEMMA))
    assert daemon.chat("qwen").status == 200
    standin.say(fail={GEMMA: "out of luck"})
    failed = daemon.chat("gemma")
    assert failed.status >= 500
    assert "out of luck" in failed.json()["error"]["message"]
    eventually(lambda: "qwen: the Lemonade Server unloaded it" in daemon.output(), "the reason in the log")
    again = daemon.chat("qwen")
    assert again.status == 200, again.body


def test_a_load_that_fails_cuts_nobody(start: Start, standin: Standin) -> None:
    """Lemonade would throw everything out: it is not asked before the running answer has ended."""
    daemon = start(model("qwen", QWEN) + model("gemma", GEMMA))
    assert daemon.chat("qwen").status == 200
    standin.say(token_seconds=0.1, fail={GEMMA: "out of luck"})
    with ThreadPoolExecutor(1) as pool, streaming(daemon, "qwen") as response:
        assert response.readline()
        other = pool.submit(daemon.chat, "gemma")
        assert b"[DONE]" in response.read()
        assert other.result().status >= 500
    eventually(lambda: "qwen: the Lemonade Server unloaded it" in daemon.output(), "only then")


def test_two_names_for_one_model_of_lemonade_take_turns(start: Start, standin: Standin) -> None:
    """With other options the server would replace the one that answers."""
    daemon = start(model("short", QWEN, context=2048) + model("long", QWEN, context=8192))
    assert daemon.chat("short").status == 200
    standin.say(token_seconds=0.1)
    with ThreadPoolExecutor(1) as pool, streaming(daemon, "short") as response:
        assert response.readline()
        other = pool.submit(daemon.chat, "long")
        said = response.read()
        assert b"[DONE]" in said
        assert b"error" not in said
        assert other.result().status == 200
    eventually(lambda: daemon.state("short") == "stopped", "it has left")
    loads = [one["body"]["ctx_size"] for one in standin.requests("/api/v1/load")]
    assert loads == [2048, 8192]


def test_embeddings_are_reached_on_the_same_port(start: Start) -> None:
    daemon = start(model("nomic", EMBED, embeddings=True))
    answer = daemon.send("POST", "/v1/embeddings", {"model": "nomic", "input": "hello"})
    assert answer.status == 200, answer.body
    assert answer.json()["data"][0]["embedding"] == [0.5, 0.5]


def test_a_running_server_is_used_and_survives_the_daemon(start: Start, standin: Standin) -> None:
    with foreign(standin, key="s3cret") as server:
        key = standin.home / "key"
        key.write_text("s3cret\n")
        key.chmod(0o600)
        toml = f"[engines.lemonade]\nurl = {json.dumps(server.url)}\nkey_file = {json.dumps(str(key))}\n"
        daemon = start(toml + model("qwen", QWEN))
        answer = daemon.chat("qwen")
        assert answer.status == 200
        assert answer.json()["model"] == "qwen", "not Lemonade's name, which a client could not use"
        with streaming(daemon, "qwen") as response:
            assert models_in(response.read()) == {"qwen"}
        asked = {"model": "qwen", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
        message = daemon.send("POST", "/v1/messages", asked)
        assert message.status == 200, message.body
        assert message.json()["content"][0]["text"].startswith("The backend")
        assert message.json()["model"] == "qwen"
        assert server.loaded() == [QWEN]
        assert daemon.stop() == 0
        assert server.loaded() == []
        assert server.process.poll() is None
        assert "s3cret" not in daemon.output()


def test_a_crash_leaves_a_server_that_the_next_daemon_ends(start: Start, daemons: DaemonFactory) -> None:
    daemon = start(model("qwen", QWEN))
    assert daemon.chat("qwen").status == 200
    server = server_of(daemon)
    backend = psutil.Process(daemon.status("qwen")["pid"])
    try:
        os.kill(daemon.process.pid, signal.SIGKILL)
        daemon.process.wait()
        eventually(lambda: gone(server), "its server's end")
        assert not gone(backend), "left alone: nobody has told it"
        env = {name: daemon.env[name] for name in ("PATH", "XDG_RUNTIME_DIR")}
        (Path(env["XDG_RUNTIME_DIR"]) / "notify").unlink()
        second = daemons.start(model("qwen", QWEN), env=env)
        assert gone(backend)
        assert second.chat("qwen").status == 200
    finally:
        if not gone(backend):
            backend.kill()


def gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # between the two questions
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def test_the_death_of_the_server_is_no_end_for_the_daemon(start: Start) -> None:
    daemon = start(model("qwen", QWEN) + model("nomic", EMBED, embeddings=True))
    assert daemon.chat("qwen").status == 200
    server_of(daemon).kill()
    eventually(lambda: "ended by SIGKILL" in daemon.output(), "the reason in the log")
    answer = eventually(lambda: (a := daemon.chat("qwen")).status == 200 and a, "an answer of a new server")
    assert answer.json()["choices"]


def test_a_model_on_the_npu_through_lemonade_and_flm(start: Start, standin: Standin) -> None:
    """lemond finds the flm in PATH, and accelerd asks that one itself, by its own name of the model."""
    (standin.bin / "flm").symlink_to(STANDINS / "flm")
    daemon = start(model("npu", "qwen3-4b-FLM"))
    answer = daemon.chat("npu")
    assert answer.status == 200, answer.body
    assert answer.json()["model"] == "npu", "it was asked by its own name: for another one it would switch"
    with streaming(daemon, "npu") as response:
        assert models_in(response.read()) == {"npu"}
    pid = daemon.status("npu")["pid"]
    assert "flm" in " ".join(psutil.Process(pid).cmdline())


def test_audio_and_rerank_are_reached_on_the_same_port(start: Start) -> None:
    daemon = start(model("whisper", "Whisper-Large-v3-Turbo", transcription=True)
                   + model("ranks", "bge-reranker-v2-m3-GGUF", rerank=True))  # fmt: skip
    asked = {"model": "ranks", "query": "a", "documents": ["b"]}
    answer = daemon.send("POST", "/v1/rerank", asked)
    assert answer.status == 200, answer.body
    assert answer.json()["results"]
    parts = ['Content-Disposition: form-data; name="model"\r\n\r\nwhisper',
             'Content-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF']  # fmt: skip
    body = "".join(f"--b\r\n{part}\r\n" for part in parts) + "--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = daemon.send("POST", "/v1/audio/transcriptions", body.encode(), headers)
    assert answer.status == 200, answer.body
    assert answer.json() == {"text": "hello"}


def test_what_a_model_cannot_do_is_refused_with_a_reason(start: Start) -> None:
    daemon = start(model("nomic", EMBED))
    first = daemon.send("POST", "/v1/embeddings", {"model": "nomic", "input": "hello"})
    assert first.status == 200, "no server has told what it is: nothing is refused"
    refused = daemon.chat("nomic")
    assert refused.status == 400, refused.body
    assert refused.code == "not_supported_by_model"
    assert "does not support chat" in refused.json()["error"]["message"]
    listed = daemon.send("GET", "/v1/models").json()["data"]
    assert listed[0]["labels"] == ["embeddings"]
    assert listed[0]["recipe"] == "llamacpp"


def test_a_busy_model_of_somebody_elses_server_is_not_thrown_out(start: Start, standin: Standin) -> None:
    """It has room for one model and knows who is busy, since it is not asked behind its back."""
    with foreign(standin, max_loaded=1) as server:
        used = f"[engines.lemonade]\nurl = {json.dumps(server.url)}\n"
        daemon = start(used + model("qwen", QWEN) + model("gemma", GEMMA))
        assert daemon.chat("qwen").status == 200
        standin.say(token_seconds=0.1)
        daemon.events("unload?model=qwen")
        assert daemon.chat("qwen", max_tokens=1).status == 200
        with ThreadPoolExecutor(2) as pool:
            slow = pool.submit(daemon.chat, "qwen")
            eventually(lambda: busy(server, QWEN), "a request on its way")
            other = pool.submit(daemon.chat, "gemma")
            assert slow.result().status == 200
            assert other.result().status == 200
        eventually(lambda: daemon.state("qwen") == "stopped", "its end is noticed")
        assert server.loaded() == [GEMMA]


def busy(server: Foreign, name: str) -> bool:
    """Does the server take it for busy?"""
    found = server.ask("/api/v1/health")["all_models_loaded"]
    return any(one["model_name"] == name and one["is_busy"] for one in found)
