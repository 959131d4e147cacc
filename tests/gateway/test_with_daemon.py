"""The gateway in its place: the whole daemon as a process, on the loop that users get, with engines that misbehave."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE, Answer, Daemon, DaemonFactory, dummy_gguf, eventually, fake_model, streaming

MODELS = ("narrow", "wide")  # one slot: answers are relayed; several: plain answers are put together here
TOKENS = "t0 t1 t2 t3 t4 t5 t6 t7 "


class Stage:
    """A daemon whose engines change their ways from request to request."""

    def __init__(self, daemon: Daemon, mode: Path) -> None:
        self.daemon = daemon
        self._mode = mode

    def mode(self, text: str) -> None:
        self._mode.write_text(text)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("stage")
    mode, gguf = directory / "mode", dummy_gguf(directory)
    mode.write_text("ok")
    toml = "".join(
        fake_model(name, gguf, env={"FAKE_MODE_FILE": str(mode)}, parallel=slots)
        for name, slots in zip(MODELS, (1, 4), strict=True)
    )
    toml += fake_model("vectors", gguf, embeddings=True)
    with DaemonFactory(directory) as factory:
        # A crash of an engine on purpose must not keep it away for long.
        toml += "[scheduler]\nbackoff_initial = 0.05\nbackoff_max = 0.05\nmax_failures = 100\n"
        yield Stage(factory.start(toml, server="stall_timeout = 0.5\nmax_body = 10485760"), mode)


@pytest.fixture
def stage(shared: Stage) -> Iterator[Stage]:
    """Well again before and after each test."""
    yield shared
    shared.mode("ok")
    for name in MODELS:
        eventually(lambda name=name: shared.daemon.chat(name).status == 200, f"{name} is well again")  # type: ignore[misc]


def stream_of(daemon: Daemon, model: str) -> tuple[int, bytes, bool]:
    """Status, bytes and whether the stream ended as HTTP says."""
    with streaming(daemon, model) as response:
        try:
            return response.status, response.read(), True
        except http.client.IncompleteRead as error:
            return response.status, error.partial, False


# Mode, and what comes of it: a stream's status, completeness and a piece of it; a plain answer's status of a model
# with one slot and with several.
OUTCOMES: dict[str, tuple[int, bool, bytes, int, int]] = {
    "ok": (200, True, b"data: [DONE]\n\n", 200, 200),
    "1xx": (200, True, b"data: [DONE]\n\n", 200, 200),
    "garbage-sse": (200, True, b"\xff\xfe\x00garbage without a colon\n\n", 200, 502),
    "huge-line": (200, True, b"h" * (1 << 20), 200, 502),
    "wrong-ctype": (200, True, b"data: [DONE]\n\n", 200, 502),
    "health-ok-infer-500": (500, True, b"device lost", 500, 500),
    "bad-headers": (502, True, b"upstream_failed", 502, 502),
    "huge-header": (502, True, b"upstream_failed", 502, 502),
    "die-before-headers": (502, True, b"upstream_failed", 502, 502),
    "cut-mid-stream": (200, False, b'"code":"upstream_failed"', 502, 502),
    "die-mid-stream": (200, False, b'"code":"upstream_failed"', 502, 502),
    "stall-token": (200, False, b'"code":"upstream_timeout"', 0, 504),
}


@pytest.mark.parametrize("mode", OUTCOMES)
def test_what_comes_of_an_engine_that_misbehaves(stage: Stage, mode: str) -> None:
    status, complete, piece, relayed, assembled = OUTCOMES[mode]
    for model in MODELS:
        stage.mode(mode)
        found = stream_of(stage.daemon, model)
        assert (found[0], found[2]) == (status, complete), found[1][-500:]
        assert piece in found[1]
        assert complete == (b"[DONE]" in found[1]) or status != 200
        stage.mode("ok")
        eventually(lambda model=model: stage.daemon.chat(model).status == 200, "well again")  # type: ignore[misc]
    for model, expected in zip(MODELS, (relayed, assembled), strict=True):
        if not expected:
            continue  # a plain answer that stalls has an hour: the engine says nothing before it is complete
        stage.mode(mode)
        answer = stage.daemon.chat(model)
        assert answer.status == expected, answer.body[:500]
        if expected == 200 and mode != "huge-line":
            assert answer.json()["choices"][0]["message"]["content"] == TOKENS
        elif expected >= 502:
            assert answer.code.startswith("upstream_")
        stage.mode("ok")
        eventually(lambda model=model: stage.daemon.chat(model).status == 200, "well again")  # type: ignore[misc]


def test_nothing_a_stranger_sends_leaves_a_traceback_in_the_log(stage: Stage) -> None:
    """One short line at most; a 500 never."""
    raw = [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0",
        b"GET /v1/models/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\x1b[31m HTTP/1.1\r\nHost: \x1b[31mlocalhost\r\nX: \x1b]0;title\x07\r\n\r\n",
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\nSSH-2.0\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[evil\r\n\r\n",
    ]
    before = len(stage.daemon.output())
    for data in raw:
        with socket.create_connection(("127.0.0.1", stage.daemon.port), timeout=PATIENCE) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda sock=sock: sock.recv(65536), b""))  # type: ignore[misc]
            assert not answer.startswith(b"HTTP/1.1 50"), (data, answer)
    said = stage.daemon.output()[before:]
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert len(said.splitlines()) <= 2 * len(raw)
    assert max((len(line) for line in said.splitlines()), default=0) < 500


def test_large_bodies(stage: Stage) -> None:
    text = "x" * (8 << 20)
    for model in MODELS:
        assert stage.daemon.chat(model, user=text).status == 200
    too_large = stage.daemon.chat("narrow", user=text + "x" * (3 << 20))
    assert (too_large.status, too_large.code) == (413, "body_too_large")


def test_the_live_socket_is_private_and_serves_the_api(stage: Stage) -> None:
    path = stage.daemon.control_socket
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stage.daemon.control("GET", "/health").json() == {"status": "ok"}
    body = {"model": "narrow", "prompt": "hi"}
    assert stage.daemon.control("POST", "/v1/completions", body).json()["choices"][0]["text"] == TOKENS
    assert stage.daemon.control("GET", "/accelerd/v1/nothing").code == "not_found"
    assert stage.daemon.control("GET", "load?model=narrow").code == "method_not_allowed"
    assert stage.daemon.control("POST", "load?model=no-such").code == "model_not_found"
    assert stage.daemon.control("POST", "load").code == "bad_request"
    assert stage.daemon.control("GET", "logs?model=narrow&lines=-1").code == "bad_request"
    assert stage.daemon.control("GET", "logs?model=%ff%00").code == "model_not_found"


def test_embeddings_and_completions_go_the_same_way(stage: Stage) -> None:
    answer = stage.daemon.send("POST", "/v1/embeddings", {"model": "vectors", "input": ["a", "b"]})
    assert [d["embedding"] for d in answer.json()["data"]] == [[0.5, -0.5]] * 2
    for model in MODELS:
        answer = stage.daemon.send("POST", "/v1/completions", {"model": model, "prompt": "x", "max_tokens": 3})
        assert answer.json()["choices"][0]["text"] == "t0 t1 t2 "


# --- settings that a reload changes ---------------------------------------------------------------------------------


def keyed(daemon: Daemon, key: str | None) -> Answer:
    return daemon.send("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {})


def test_keys_are_read_anew_at_a_reload_and_never_shown(daemons: DaemonFactory, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-secret-key\n")
    keys.chmod(0o600)
    daemon = daemons.start(fake_model("a", dummy_gguf(tmp_path)), server=f"key_file = {json.dumps(str(keys))}")
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=PATIENCE)
    body = json.dumps({"model": "a", "prompt": "x"}).encode()

    def ask() -> int:
        """Again and again on one connection."""
        headers = {"Content-Type": "application/json", "Authorization": "Bearer first-secret-key"}
        connection.request("POST", "/v1/completions", body, headers)
        response = connection.getresponse()
        response.read()
        return response.status

    try:
        assert [ask() for _ in range(3)] == [200] * 3
        assert keyed(daemon, None).status == 401
        assert keyed(daemon, None).body == keyed(daemon, "wrong").body
        keys.write_text("second-secret-key\n")
        assert ask() == 200, "the file alone changes nothing"
        assert daemon.control("POST", "reload").status == 200
        assert ask() == 401
        assert keyed(daemon, "second-secret-key").status == 200
        os.chmod(keys, 0o644)
        refused = daemon.control("POST", "reload")
        assert (refused.status, refused.code) == (422, "config_invalid")
        assert keyed(daemon, "second-secret-key").status == 200, "a reload that fails changed something"
    finally:
        connection.close()
    assert daemon.control("GET", "status").status == 200
    seen = daemon.output() + json.dumps(daemon.status()) + " ".join(daemon.process.args)  # type: ignore[arg-type]
    assert "secret-key" not in seen


def test_hosts_and_origins_are_read_anew_at_a_reload(daemons: DaemonFactory, tmp_path: Path) -> None:
    toml = fake_model("a", dummy_gguf(tmp_path))
    daemon = daemons.start(toml)
    page = {"Origin": "https://chat.example.org"}
    assert daemon.send("GET", "/health", headers={"Host": "box.local:4000"}).code == "host_not_allowed"
    assert daemon.send("GET", "/health", headers=page).code == "origin_not_allowed"
    preamble = daemon.env["TEST_PREAMBLE"]
    more = 'allowed_hosts = ["box.local"]\nallowed_origins = ["https://chat.example.org"]\n'
    daemon.config.write_text(preamble + more + toml)
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.send("GET", "/health", headers={"Host": "box.local:4000"}).status == 200, "reloaded")
    answer: Any = daemon.send("GET", "/health", headers=page)
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, page["Origin"])
