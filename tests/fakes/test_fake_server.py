"""The fake server does what its head says: the other tests lean on it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.settled import pytest_pyfunc_call, settled  # noqa: F401

SERVER = Path(__file__).with_name("fake_server.py")
KEY = "the-key"


class Running:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "s.sock")

    def ask(self, path: str, body: dict[str, Any] | None = None, key: str = KEY) -> bytes:
        """The whole answer on the wire, up to its end or the connection's."""
        data = json.dumps(body).encode() if body is not None else b""
        with self.connect() as sock:
            sock.sendall(
                f"{'POST' if body is not None else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                f"Authorization: Bearer {key}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                + data
            )
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        return sock

    def recorded(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def wait_for(self, event: str) -> dict[str, Any]:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for record in self.recorded():
                if record["event"] == event:
                    return record
            time.sleep(0.005)
        raise AssertionError(f"no {event} in {self.recorded()}")


@contextmanager
def running(folder: Path, mode: str = "", *arguments: str, **env: str) -> Iterator[Running]:
    server = Running(folder)
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", str(SERVER), "--host", server.path, "--alias", "m", *arguments],
        env={"FAKE_MODE": mode, "FAKE_LOG": str(folder / "log"), "LLAMA_API_KEY": KEY, **env},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 10
        while b" 200 " not in health(server):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield server
    finally:
        process.kill()
        process.wait()


def health(server: Running) -> bytes:
    try:
        return server.ask("/health")
    except OSError:
        return b""


def test_it_runs_by_itself_and_tells_its_flags_and_version(tmp_path: Path) -> None:
    link = tmp_path / "llama-server"
    link.symlink_to(SERVER)
    env = {"PATH": os.environ["PATH"]}
    text = subprocess.run([link, "--help"], env=env, capture_output=True, text=True, check=True).stdout
    assert "--load-mode MODE" in text
    assert "UNIX socket" in text
    assert "version: 1" in subprocess.run([link, "--version"], env=env, capture_output=True, text=True).stderr
    wrong = subprocess.run([link, "--no-mmap"], env=env, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr) == (1, "error: invalid argument: --no-mmap\n")
    short = subprocess.run([link, "--port"], env=env, capture_output=True, text=True)
    assert short.returncode == 1


def test_a_good_server(tmp_path: Path) -> None:
    with running(tmp_path, FAKE_TOKENS="3") as server:
        assert b" 401 " in server.ask("/v1/models", key="wrong")
        assert b'"id": "m"' in server.ask("/v1/models")
        whole = server.ask("/v1/chat/completions", {"messages": []})
        assert b'"content": "t0 t1 t2 "' in whole
        stream = server.ask(
            "/v1/chat/completions", {"messages": [], "stream": True, "stream_options": {"include_usage": True}}
        )
        assert stream.count(b"data: ") == 1 + 3 + 1 + 1 + 1
        assert stream.count(b'"usage"') == 1
        assert stream.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert b'"text": "t0 "' in server.ask("/v1/completions", {"prompt": "x", "stream": True, "max_tokens": 1})
        assert server.ask("/v1/embeddings", {"input": ["a", "b"]}).count(b'"embedding": [') == 2
        assert b" 404 " in server.ask("/nowhere", {})
        assert [record["event"] for record in server.recorded()] == ["spawn", "ready", *["start", "end"] * 4]


def test_a_client_that_goes_is_noticed(tmp_path: Path) -> None:
    with running(tmp_path, "slow-token:50", FAKE_TOKENS="1000") as server:
        sock = server.connect()
        body = b'{"prompt": "x", "stream": true}'
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
            % (KEY.encode(), len(body), body)
        )
        assert sock.recv(10)
        sock.close()
        assert server.wait_for("disconnect")["tokens"] < 1000


def test_no_more_requests_at_once_than_slots(tmp_path: Path) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 2\r\n\r\n"
    with running(tmp_path, "infer-hang", "--parallel", "1") as server:
        socks = [server.connect() for _ in range(2)]
        for sock in socks:
            sock.sendall(head.encode() + b"{}")
        deadline = time.monotonic() + 10
        while sum(record["event"] == "start" for record in server.recorded()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert sorted(record["active"] for record in server.recorded() if record["event"] == "start") == [1, 2]
        for sock in socks:
            sock.close()
        server.wait_for("disconnect")


@pytest.mark.parametrize(
    ("mode", "sign"),
    [
        ("health-ok-infer-500", b"HTTP/1.1 500 "),
        ("garbage-sse", b"data: {not json\n\n\xff\xfe\x00"),
        ("huge-line", b"h" * 100_000),
        ("huge-header", b"X-Huge: hhh"),
        ("bad-headers", b"this is no header"),
        ("wrong-ctype", b"Content-Type: text/html"),
        ("1xx", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 "),
    ],
)
def test_modes_of_answers(tmp_path: Path, mode: str, sign: bytes) -> None:
    with running(tmp_path, mode) as server:
        assert sign in server.ask("/v1/completions", {"prompt": "x", "stream": True})


@pytest.mark.parametrize("mode", ["die-before-headers", "cut-mid-stream", "die-mid-stream"])
def test_modes_that_end_the_connection(tmp_path: Path, mode: str) -> None:
    with running(tmp_path, mode) as server:
        answer = server.ask("/v1/completions", {"prompt": "x", "stream": True})
        assert (b'"t1 "' in answer) == (mode != "die-before-headers")
        assert b"[DONE]" not in answer
        server.wait_for("exit" if mode == "die-mid-stream" else "cut")


def test_modes_can_change_while_it_runs(tmp_path: Path) -> None:
    mode = tmp_path / "mode"
    with running(tmp_path, FAKE_MODE_FILE=str(mode)) as server:
        assert b" 200 " in server.ask("/v1/completions", {"prompt": "x"})
        mode.write_text("health-ok-infer-500")
        assert b" 500 " in server.ask("/v1/completions", {"prompt": "x"})
