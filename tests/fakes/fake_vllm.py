#!/usr/bin/env python3
"""vLLM's server, as far as accelerd knows it: `vllm serve MODEL --host … --port N …`, held against vLLM's source (the
routers of sleep and health, the guard of the key, and the two gauges of its queue).

With VLLM_API_KEY it answers to that key alone, but at /health, /metrics and /version. Its development mode has /sleep,
/wake_up and /is_sleeping; sleeping takes --enable-sleep-mode, and who sleeps answers no request. FAKE_CARD is a folder
in which it says, in a file with the name of its process, how many bytes of the card it has: FAKE_BYTES, or FAKE_KEPT in
its sleep. FAKE_LOG: a file in which it notes each start and request, one JSON object a line. FAKE_TROUBLE: it has one
with "sleep" or "wake" (status 500), or "keep" (its memory stays where it is); "die" (it exits when it is to wake up).
A file FAKE_HOLD: as long as it is there, chats are not answered.
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

OPEN = ("/health", "/metrics", "/version")
KEY = os.environ.get("VLLM_API_KEY", "")
DEV = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"
TROUBLE = os.environ.get("FAKE_TROUBLE", "").split(",")
HOLD = Path(os.environ.get("FAKE_HOLD", "/nowhere"))
parser = argparse.ArgumentParser(prog="vllm")
commands = parser.add_subparsers(required=True)
serve = commands.add_parser("serve")
serve.add_argument("model")
serve.add_argument("--host", default="0.0.0.0")
serve.add_argument("--port", type=int, default=8000)
serve.add_argument("--served-model-name", nargs="+")
serve.add_argument("--max-model-len", type=int)
serve.add_argument("--max-num-seqs", type=int, default=256)
serve.add_argument("--gpu-memory-utilization", type=float, default=0.92)
serve.add_argument("--enable-sleep-mode", action="store_true")


class Engine:
    """One model on one card."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asleep = False
        self.running = 0
        self.hold("FAKE_BYTES")

    def hold(self, what: str) -> None:
        if card := os.environ.get("FAKE_CARD"):
            new = Path(card) / f".{os.getpid()}"
            new.write_text(os.environ.get(what, "0"))
            new.rename(Path(card) / str(os.getpid()))

    def sleep(self) -> None:
        if not ARGS.enable_sleep_mode:
            raise RuntimeError("Sleep mode is not enabled. Please enable it by setting `enable_sleep_mode`")
        if "sleep" in TROUBLE:
            raise RuntimeError("cannot pin memory")
        if "keep" not in TROUBLE:
            self.hold("FAKE_KEPT")
        self.asleep = True

    def wake_up(self) -> None:
        if "die" in TROUBLE:
            os._exit(1)
        if "wake" in TROUBLE:
            raise RuntimeError("CUDA out of memory")
        self.hold("FAKE_BYTES")
        self.asleep = False

    def metrics(self) -> str:
        """Those that it has beside many others."""
        name = f'{{engine="0",model_name="{NAMES[0]}"}}'
        waiting = max(0, self.running - ARGS.max_num_seqs)
        return (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{name} {self.running - waiting}.0\n"
            "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            f"vllm:num_requests_waiting{name} {waiting}.0\n"
        )


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self.allowed(path):
            return
        if path == "/health":
            self.answer(200, b"")
        elif path == "/metrics":
            self.answer(200, ENGINE.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        elif path == "/v1/models":
            models = [{"id": name, "object": "model", "max_model_len": ARGS.max_model_len} for name in NAMES]
            self.say(200, {"object": "list", "data": models})
        elif path == "/is_sleeping" and DEV:
            self.say(200, {"is_sleeping": ENGINE.asleep})
        else:
            self.say(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path, _, query = self.path.partition("?")
        if not self.allowed(path):
            return
        note(path=self.path)
        if path in ("/sleep", "/wake_up") and DEV:
            try:
                if path == "/sleep" and query != "level=1":
                    raise RuntimeError(f"level 1 is meant, not {query}")
                with ENGINE.lock:
                    (ENGINE.sleep if path == "/sleep" else ENGINE.wake_up)()
            except RuntimeError:
                self.answer(500, b"Internal Server Error", "text/plain; charset=utf-8")
            else:
                self.answer(200, b"")
        elif path == "/v1/chat/completions":
            self.chat(json.loads(body))
        else:
            self.say(404, {"detail": "Not Found"})

    def chat(self, asked: dict[str, object]) -> None:
        name = asked.get("model")
        if name not in NAMES:
            text = f"The model `{name}` does not exist."
            self.say(404, {"error": {"message": text, "type": "NotFoundError", "param": "model", "code": 404}})
            return
        if ENGINE.asleep:
            os._exit(3)  # nobody may ask what sleeps
        with ENGINE.lock:
            ENGINE.running += 1
        while HOLD.exists():
            time.sleep(0.01)
        with ENGINE.lock:
            ENGINE.running -= 1
        message = {"role": "assistant", "content": "hello"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.say(200, {"id": "1", "object": "chat.completion", "created": 1, "model": name, "choices": [choice]})

    def allowed(self, path: str) -> bool:
        if not KEY or path in OPEN or self.headers["Authorization"] == f"Bearer {KEY}":
            return True
        self.say(401, {"error": "Unauthorized"})
        return False

    def say(self, status: int, what: object) -> None:
        self.answer(status, json.dumps(what).encode())

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Only its own log counts."""


def note(**what: object) -> None:
    if log := os.environ.get("FAKE_LOG"):
        with open(log, "a") as file:
            file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


if __name__ == "__main__":
    ARGS = parser.parse_args()
    NAMES = ARGS.served_model_name or [ARGS.model]
    note(argv=sys.argv[1:], dev=DEV)
    ENGINE = Engine()
    ThreadingHTTPServer((ARGS.host, ARGS.port), Answers).serve_forever()
