#!/usr/bin/env python3
"""Stands in for Ollama's program: `ollama serve`, with what its server does with models, and nothing of inference.

Held against server/routes.go and server/sched.go of Ollama (fb30760): paths, statuses, texts and fields. Models are the
files manifests/registry.ollama.ai/library/NAME/TAG below OLLAMA_MODELS, JSON as in `pull`; those that come and go while
it runs count. Each loaded model has a child, its runner, which holds `memory` bytes, as long as keep_alive says. Every
request is noted in OLLAMA_LOG, if that is set, one JSON object a line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Json = dict[str, Any]
LIBRARY = Path("manifests", "registry.ollama.ai", "library")
WORDS = ("Hel", "lo ", "wörld")
FOREVER = 10 * 365 * 86400.0
RUNNER = "import sys; held = bytearray(b'x') * int(sys.argv[1]); print('ready', flush=True); sys.stdin.read()"


def pull(models: Path, name: str, *, capabilities: Any = ("completion", "tools"), **more: Any) -> None:
    """What `ollama pull` leaves, for this program: `size`, `memory` (bytes), `context`."""
    model, _, tag = name.partition(":")
    path = models / LIBRARY / model / (tag or "latest")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"capabilities": list(capabilities), **more}))


def remove(models: Path, name: str) -> None:
    """As `ollama rm` does."""
    model, _, tag = name.partition(":")
    (models / LIBRARY / model / (tag or "latest")).unlink()


class Runner:
    """A loaded model."""

    def __init__(self, memory: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(memory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.until = 0.0

    def keep(self, seconds: float) -> None:
        self.until = time.time() + (FOREVER if seconds < 0 else seconds)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Ollama:
    def __init__(self) -> None:
        self.models = Path(os.environ.get("OLLAMA_MODELS", Path.home() / ".ollama" / "models"))
        self.keep_alive = seconds_of(os.environ.get("OLLAMA_KEEP_ALIVE", "5m"))
        self.most = int(os.environ.get("OLLAMA_MAX_LOADED_MODELS", "3"))
        self.runners: dict[str, Runner] = {}
        self.lock = threading.RLock()

    def manifests(self) -> dict[str, Json]:
        found = sorted((self.models / LIBRARY).glob("*/*"))
        return {f"{path.parent.name}:{path.name}": json.loads(path.read_text()) for path in found}

    def load(self, name: str, keep_alive: Any) -> None:
        """As its scheduler does: with the most loaded, the one that would end first leaves."""
        with self.lock:
            runner = self.runners.get(name)
            if runner is None:
                if len(self.runners) >= self.most:
                    self.unload(min(self.runners, key=lambda one: self.runners[one].until))
                runner = self.runners[name] = Runner(self.manifests()[name].get("memory", 1 << 20))
            runner.keep(self.keep_alive if keep_alive is None else seconds_of(keep_alive))

    def unload(self, name: str) -> None:
        with self.lock:
            if (runner := self.runners.pop(name, None)) is not None:
                runner.end()

    def expire(self) -> None:
        while True:
            time.sleep(0.05)
            with self.lock:
                for name in [name for name, runner in self.runners.items() if runner.until <= time.time()]:
                    self.unload(name)


def seconds_of(value: Any) -> float:
    """A Go duration such as "5m", or seconds; below 0: for ever."""
    text = str(value)
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:])
    return float(text) if factor is None else float(text[:-1]) * factor


def whole(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        note(path=self.path)
        match self.path:
            case "/":
                self.send(200, b"Ollama is running", "text/plain; charset=utf-8")
            case "/api/version":
                self.answer(200, {"version": "0.0.0"})
            case "/api/tags":
                self.answer(200, {"models": [_listed(*one) for one in OLLAMA.manifests().items()]})
            case "/api/ps":
                with OLLAMA.lock:
                    known, loaded = OLLAMA.manifests(), list(OLLAMA.runners)
                self.answer(200, {"models": [_loaded(name, known.get(name, {})) for name in loaded]})
            case "/v1/models":
                data = [{"id": n, "object": "model", "created": 1, "owned_by": "library"} for n in OLLAMA.manifests()]
                self.answer(200, {"object": "list", "data": data})
            case _:
                self.send(404, b"404 page not found", "text/plain")

    def do_POST(self) -> None:
        body: Json = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        note(path=self.path, body=body)
        asked = body.get("model") or body.get("name") or ""
        name = whole(asked)
        found = OLLAMA.manifests().get(name)
        openai = self.path.startswith("/v1/")
        if found is None:
            text = f"model '{asked}' not found"
            if self.path == "/api/embed":
                text = f'model "{asked}" not found, try pulling it first'
            error = {"message": text, "type": "not_found_error", "param": None, "code": None} if openai else text
            self.answer(404, {"error": error})
            return
        can = found["capabilities"]
        match self.path:
            case "/api/show":
                info = {"general.architecture": "llama", "llama.context_length": found.get("context", 4096)}
                self.answer(200, {"details": _details(), "model_info": info, "capabilities": can})
            case "/api/generate" if not body.get("prompt") and is_zero(body.get("keep_alive")):
                OLLAMA.unload(name)
                self.answer(200, {"model": asked, "response": "", "done": True, "done_reason": "unload"})
            case "/api/generate" if "completion" not in can:
                self.answer(400, {"error": f'"{asked}" does not support generate'})
            case "/api/generate":
                OLLAMA.load(name, body.get("keep_alive"))
                self.answer(200, {"model": asked, "response": "", "done": True, "done_reason": "load"})
            case "/api/embed":
                OLLAMA.load(name, body.get("keep_alive"))
                texts = body.get("input") or []
                texts = [texts] if isinstance(texts, str) else texts
                self.answer(200, {"model": asked, "embeddings": [[0.5, 0.5] for _ in texts]})
            case "/api/chat" if not body.get("messages") and is_zero(body.get("keep_alive")):
                OLLAMA.unload(name)
                self.answer(200, {**_said(asked, ""), "done": True, "done_reason": "unload"})
            case "/api/chat":
                OLLAMA.load(name, body.get("keep_alive"))
                lines = [_said(asked, word) for word in WORDS]
                end = {**_said(asked, ""), "done": True, "done_reason": "stop", "eval_count": 3, "prompt_eval_count": 3}
                if body.get("stream") is False:
                    self.answer(200, {**end, **_said(asked, "".join(WORDS)), "done": True})
                    return
                data = b"".join(json.dumps(one).encode() + b"\n" for one in [*lines, end])
                self.send(200, data, "application/x-ndjson")
            case "/v1/chat/completions":
                OLLAMA.load(name, None)
                message = {"role": "assistant", "content": "".join(WORDS)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked}
                self.answer(200, {**head, "choices": [choice]})
            case "/v1/embeddings":
                OLLAMA.load(name, None)
                data = [{"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}]
                self.answer(200, {"object": "list", "data": data, "model": asked})
            case _:
                self.send(404, b"404 page not found", "text/plain")

    def answer(self, status: int, body: Json) -> None:
        self.send(status, json.dumps(body).encode(), "application/json; charset=utf-8")

    def send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        print("[GIN] a request", file=sys.stderr, flush=True)


def is_zero(keep_alive: Any) -> bool:
    return keep_alive is not None and seconds_of(keep_alive) == 0


def _said(model: str, text: str) -> Json:
    return {
        "model": model, "created_at": "2026-12-01T00:00:00Z", "message": {"role": "assistant", "content": text},
        "done": False,
    }  # fmt: skip


def _details() -> Json:
    return {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "8B",
        "quantization_level": "Q4_K_M",
    }  # fmt: skip


def _listed(name: str, found: Json) -> Json:
    entry = {
        "name": name, "model": name, "modified_at": "2026-12-01T00:00:00Z", "size": found.get("size", 1 << 20),
        "digest": "00" * 32, "details": _details(),
    }  # fmt: skip
    if os.environ.get("OLLAMA_OLD"):  # an older one says the rest in /api/show alone
        return entry
    details = {**_details(), "context_length": found.get("context", 4096)}
    return {**entry, "details": details, "capabilities": found["capabilities"]}


def _loaded(name: str, found: Json) -> Json:
    size = found.get("memory", 1 << 20)
    return {
        "name": name, "model": name, "size": size, "digest": "00" * 32, "details": _details(),
        "expires_at": "2026-12-01T00:05:00Z", "size_vram": 0, "context_length": 4096,
    }  # fmt: skip


def note(**what: object) -> None:
    if log := os.environ.get("OLLAMA_LOG"):
        with open(log, "a") as file:
            file.write(json.dumps(what) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["serve"]:
        sys.exit(f"Error: unknown command {sys.argv[1:]}")
    OLLAMA = Ollama()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    names = ("HOST", "MODELS", "KEEP_ALIVE", "MAX_LOADED_MODELS", "NUM_PARALLEL", "NOPRUNE")
    note(env={name: os.environ.get(f"OLLAMA_{name}") for name in names})
    threading.Thread(target=OLLAMA.expire, daemon=True).start()
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Answers)
    print(f"Listening on {host}:{server.server_port}", flush=True)
    server.serve_forever()
