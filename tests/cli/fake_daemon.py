"""A control daemon that says what a test tells it to, over a real unix socket; as a program it plays a machine.

Answers docs/control.md's routes from `Reply` values and remembers what it was asked. Nothing here knows accelctl.
"""

from __future__ import annotations

import contextlib
import copy
import json
import socketserver
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from accelerd import __version__


@dataclass
class Reply:
    """A status with a JSON body, or with chunks that are sent one by one; `cut` ends the connection in the middle."""

    json: Any = None
    status: int = 200
    chunks: Iterable[bytes] | None = None
    cut: bool = False


def error(status: int, code: str, message: str, **fields: Any) -> Reply:
    return Reply({"error": {"message": message, "type": "x", "param": None, "code": code, **fields}}, status)


def events(*items: dict[str, Any], cut: bool = False) -> Reply:
    """NDJSON."""
    return Reply(chunks=[json.dumps(item).encode() + b"\n" for item in items], cut=cut)


def sse(*items: dict[str, Any] | str, done: bool = True) -> Reply:
    """Chunks of a streamed answer; a string is a comment."""
    lines = [f": {i}\n\n" if isinstance(i, str) else f"data: {json.dumps(i)}\n\n" for i in items]
    return Reply(chunks=[line.encode() for line in lines] + ([b"data: [DONE]\n\n"] if done else []))


def delta(text: str = "", **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text} if text else {}, **choice}]}


Answer = Reply | Callable[[dict[str, str], bytes], Reply]


@dataclass
class Request:
    method: str
    route: str
    query: dict[str, str]
    body: bytes
    host: str


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False


@dataclass
class FakeDaemon:
    """`answers` maps "GET status" (control routes) or "POST /v1/…" to what is answered."""

    path: Path
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    @contextlib.contextmanager
    def serve(self) -> Iterator[FakeDaemon]:
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                daemon._answer(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

            def address_string(self) -> str:
                return "unix"

        with Server(str(self.path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()
        self.path.unlink()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        route = url.path.removeprefix("/accelerd/v1/")
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        query = dict(parse_qsl(url.query))
        self.requests.append(Request(handler.command, route, query, body, handler.headers.get("Host", "")))
        answer = self.answers.get(f"{handler.command} {route}", error(404, "not_found", f"no route {route}"))
        reply = answer if isinstance(answer, Reply) else answer(query, body)
        handler.close_connection = True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may leave at any time
            handler.send_response(reply.status)
            if reply.chunks is None:
                data = json.dumps(reply.json).encode()
                handler.send_header("Content-Length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)
                return
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            with contextlib.closing(one_by_one(reply.chunks)) as chunks:
                for chunk in chunks:
                    handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    handler.wfile.flush()
            if not reply.cut:
                handler.wfile.write(b"0\r\n\r\n")


def one_by_one(chunks: Iterable[bytes]) -> Generator[bytes, None, None]:
    """A generator of its own, so that it can be closed: closing it closes one that it reads from."""
    yield from chunks


def model(name: str, state: str = "stopped", **changes: Any) -> dict[str, Any]:
    """One model of a status, as docs/control.md shows it."""
    return {
        "name": name, "aliases": [], "engine": "llama-server", "recipe": "", "labels": [],
        "state": state, "since": 12.0, "reason": "requested",
        "pid": None, "leases": 0, "queue": 0, "idle": None, "idle_timeout": 600.0, "pin": False, "preload": False,
        "memory": 5 << 30, "memory_source": "file size + 10 %", "memory_used": None, "device": None,
        "retry_in": None, "load_seconds": None, "outdated": False, "error": None,
    } | changes  # fmt: skip


def status(*models: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "version": __version__, "pid": 4711, "uptime": 5580.0, "state": "running", "status": "2 of 5 models loaded",
        "listen": ["127.0.0.1:4000", "[::1]:4000"],
        "config": {"files": ["/home/u/.config/accelerd/accelerd.toml"], "problems": []},
        "scheduler": {"memory_limit": 20 << 30, "memory_source": "80 % of the machine's memory",
                      "memory_used": 9 << 30, "max_loaded": None, "queue": 3, "max_queue": 256},
        "models": copy.deepcopy(list(models)),  # each test may change its own
    } | changes  # fmt: skip


FAILED = {
    "message": "llama-server exited with status 1 after 0.4 s",
    "tail": ["llama_model_load: error loading model", "error: invalid argument: --bogus\x1b[31m"],
}

FLEET = (
    model(
        "qwen3-30b-a3b", "ready", pid=4712, leases=1, memory_used=4800 << 20, device="gpu", aliases=["big"], pin=True
    ),
    model("gemma-3-4b-it", "ready", pid=4713, idle=190.0, memory_used=3 << 30, device="gpu", outdated=True),
    model("embed", "starting", memory=300 << 20, queue=3, device="cpu", preload=True),
    model("broken", "failed", error=FAILED),
    model("flaky", "backoff", retry_in=8.4, error={"message": "llama-server was killed by signal 9", "tail": []}),
    model("phi-4-mini-with-a-very-long-name-that-goes-on", "stopped"),
)


def machine(path: Path, pace: float) -> FakeDaemon:
    """A daemon with a fleet, whose loads and answers take `pace` seconds a step: to look at accelctl by eye."""
    fleet = {m["name"]: m for m in FLEET}

    def unknown(name: str | None) -> Reply | None:
        return None if name in fleet else error(404, "model_not_found", f"cannot find model '{name}'")

    def slowly(items: list[dict[str, Any]]) -> Iterator[bytes]:
        for item in items:
            time.sleep(pace)
            yield json.dumps(item).encode() + b"\n"

    def load(query: dict[str, str], body: bytes) -> Reply:
        steps = [
            {"event": "progress", "state": "starting", "elapsed": n * pace, "expected": 20 * pace,
             "memory": n * (250 << 20), "memory_expected": 5 << 30, "line": f"load_tensors: layer {n} on device CPU"}
            for n in range(20)
        ]  # fmt: skip
        end: dict[str, Any] = {"event": "ready", "elapsed": 20 * pace, "memory_used": 5 << 30}
        if query.get("model") == "broken":
            end = {"event": "error", "error": {"code": "model_failed", **FAILED}}
        return unknown(query.get("model")) or Reply(chunks=slowly([*steps, end]))

    def chat(query: dict[str, str], body: bytes) -> Reply:
        asked = json.loads(body)
        words = f"You have said {len(asked['messages'])} things, the last: {asked['messages'][-1]['content']}. ".split(
            " "
        )
        timings = {"predicted_per_second": 41.3, "predicted_n": len(words)}

        def stream() -> Iterator[bytes]:
            for n in range(8):
                time.sleep(pace)
                yield f": loading {asked['model']}, {n * pace:.1f} s of about {8 * pace:.0f} s\n\n".encode()
            for item in [delta(word + " ") for word in words] + [delta(finish_reason="stop") | {"timings": timings}]:
                time.sleep(pace)
                yield f"data: {json.dumps(item)}\n\n".encode()
            yield b"data: [DONE]\n\n"

        return unknown(asked["model"]) or Reply(chunks=stream())

    return FakeDaemon(
        path,
        {
            "GET status": Reply(status(*FLEET)),
            "POST load": load,
            "POST unload": lambda q, b: unknown(q.get("model")) or events({"event": "stopped"}),
            "POST reset": lambda q, b: unknown(q.get("model")) or Reply({"state": "stopped"}),
            "GET logs": lambda q, b: unknown(q.get("model")) or Reply(chunks=[b"one\n", b"two\\x1b\n"]),
            "GET explain": lambda q, b: unknown(q.get("model")) or Reply(EXPLAINED),
            "POST reload": Reply(
                {"added": ["new"], "removed": [], "relaunch": [], "updated": [], "unchanged": ["qwen"]}
            ),
            "POST /v1/chat/completions": chat,
        },
    )


EXPLAINED = {
    "model": "gemma-3-4b-it", "state": "ready",
    "argv": ["llama-server", "-m", "/models/gemma 3.gguf", "--ctx-size", "8192", "--fit", "off"],
    "command": "llama-server -m '/models/gemma 3.gguf' --ctx-size 8192 --fit off --alias gemma-3-4b-it",
    "flags": [
        {"text": "--ctx-size 8192", "source": "accelerd.toml:12", "reason": "tokens for one request"},
        {"text": "--fit off", "source": "built-in", "reason": "accelerd plans the memory, not the engine"},
    ],
    "warnings": ["this build has no --no-mmap; -lm none is used"],
    "placement": {"memory": 5 << 30, "source": "file size + 10 %", "fits": True, "reason": "3 GiB are free"},
    "history": [{"ago": 75.0, "from": "starting", "to": "ready", "reason": "answered"}],
}  # fmt: skip

if __name__ == "__main__":
    import sys

    with machine(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.2).serve():
        threading.Event().wait()
