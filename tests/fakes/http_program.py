#!/usr/bin/env python3
"""Any program that serves HTTP, for the engine `command`: --port N or --socket PATH; other options are ignored.

It notes each request in the file of PROGRAM_LOG, one JSON object a line. PROGRAM_KEY or --key-file: it answers to that
key alone, but at /health. --slow S: at /health 503 for so many seconds. --broken: its probe fails.
"""

import argparse
import json
import os
import socketserver
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEYS = ("PROGRAM_KEY", "VLLM_API_KEY", "API_KEY")
JSON, EVENTS = "application/json", "text/event-stream"
HELLO = {"role": "assistant", "content": "hello"}
CHAT = json.dumps(
    {"id": "1", "object": "chat.completion", "created": 1, "model": "inner",
     "choices": [{"index": 0, "message": HELLO, "finish_reason": "stop"}]}
).encode()  # fmt: skip
EMBEDDING = b'{"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}'
COMPLETION = b'{"id": "1", "object": "text_completion", "created": 1, "choices": [{"index": 0, "text": "hello"}]}'
CHUNKS = [
    b"data: %b\n\n" % json.dumps(
        {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "inner",
         "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    ).encode()
    for delta, reason in ((HELLO, None), ({}, "stop"))
] + [b"data: [DONE]\n\n"]  # fmt: skip


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        loading = time.monotonic() - BEGAN < ARGS.slow
        self.answer(503 if self.path == "/health" and loading else 200, b'{"status": "ok"}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        note(path=self.path, type=self.headers["Content-Type"], body=body.decode("latin-1"))
        if KEY and self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, b'{"error": {"message": "wrong key"}}')
        elif ARGS.broken:
            self.answer(500, b'{"error": {"message": "no model is loaded"}}')
        elif self.path == "/v1/chat/completions":
            streams = json.loads(body).get("stream")
            self.answer(200, b"".join(CHUNKS) if streams else CHAT, EVENTS if streams else JSON)
        elif self.path == "/v1/embeddings":
            self.answer(200, EMBEDDING)
        elif self.path == "/v1/completions":
            self.answer(200, COMPLETION)
        elif self.path == "/v1/audio/speech":
            self.answer(200, b"RIFF....WAVE", "audio/wav")
        elif self.path == "/v1/images/generations":
            self.answer(200, b'{"created": 1, "data": [{"b64_json": "aGVsbG8="}]}')
        else:
            self.answer(200, b'{"text": "hello"}')

    def answer(self, status: int, body: bytes, kind: str = JSON) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:  # of a unix socket there is none
        return "-"

    def log_message(self, *_: object) -> None:
        if self.command == "POST":
            print("request: the secret words of a client", file=sys.stderr, flush=True)


def note(**what: object) -> None:
    if log := os.environ.get("PROGRAM_LOG"):
        with open(log, "a") as file:
            file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


BEGAN = time.monotonic()
parser = argparse.ArgumentParser()
parser.add_argument(
    "--port", "--listen-port", type=int, default=os.environ.get("OLLAMA_HOST", "").rpartition(":")[2] or 0
)
parser.add_argument("--socket")
parser.add_argument("--key-file", "--api-key-file")
parser.add_argument("--slow", type=float, default=0)
parser.add_argument("--broken", action="store_true")
ARGS, REST = parser.parse_known_args()
KEY = (
    Path(ARGS.key_file).read_text().strip()
    if ARGS.key_file
    else next((os.environ[name] for name in KEYS if name in os.environ), "")
)

if __name__ == "__main__":
    note(argv=sys.argv[1:], rest=REST)
    server = (
        socketserver.ThreadingUnixStreamServer(ARGS.socket, Answers)
        if ARGS.socket
        else ThreadingHTTPServer(("127.0.0.1", ARGS.port), Answers)
    )
    server.serve_forever()
