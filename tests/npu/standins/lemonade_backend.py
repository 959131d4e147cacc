"""A backend of the stand-in for Lemonade: the little that a llama-server of its answers, as a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ("The", " backend", " says", " hello", " to", " you")


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    model = ""
    token_seconds = 0.0

    def do_GET(self) -> None:
        known: dict[str, Any] = {"/health": {"status": "ok"}, "/v1/models": {"object": "list", "data": []}}
        known |= {"/api/version": {"version": "0.9.45"}, "/api/tags": {"models": []}}  # where it stands for an flm
        self._answer(200, known[self.path]) if self.path in known else self._answer(404, {"error": "no such path"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        match self.path.removeprefix("/v1"):
            case "/chat/completions" | "/completions":
                self._generate(body, chat="chat" in self.path)
            case "/embeddings":
                found = [{"embedding": [0.5, 0.5], "index": 0}]
                self._answer(200, {"object": "list", "data": found, "model": self.model})
            case "/rerank" | "/reranking":
                self._answer(200, {"model": self.model, "results": [{"index": 0, "relevance_score": 0.5}]})
            case "/responses":
                self._answer(200, {"object": "response", "model": self.model, "output": []})
            case "/audio/transcriptions":
                self._answer(200, {"text": "hello"})
            case _:
                self._answer(404, {"error": {"message": f"no such path: {self.path}"}})

    def _generate(self, body: dict[str, Any], chat: bool) -> None:
        words = WORDS[: int(body.get("max_tokens") or len(WORDS))]
        said = "".join(words)
        usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
        if not body.get("stream"):
            time.sleep(self.token_seconds * len(words))
            choice = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
            self._answer(200, {
                "object": "chat.completion" if chat else "text_completion", "model": self.model,
                "choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": usage,
                "asked": {"model": body.get("model"), "authorization": self.headers.get("Authorization")},
            })  # fmt: skip
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for word in words:
            time.sleep(self.token_seconds)
            choice = {"delta": {"content": word}} if chat else {"text": word}
            chunk = {"object": "chat.completion.chunk", "model": self.model, "choices": [{"index": 0, **choice}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def _answer(self, status: int, said: Any) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: what it prints ends in the server's log."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fail", default="")
    parser.add_argument("--mib", type=int, default=0, help="taken by itself")
    parser.add_argument("--helper-mib", type=int, default=0, help="taken by a process that it starts")
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--token-seconds", type=float, default=0.0)
    parser.add_argument("--stubborn", action="store_true", help="ignores SIGTERM")
    options, _ = parser.parse_known_args()
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"backend of {options.model}: loading", flush=True)
    time.sleep(options.load_seconds)
    if options.fail:
        print(options.fail, flush=True)
        sys.exit(1)
    held = bytearray(os.urandom(1 << 20)) * options.mib
    if options.helper_mib:
        take = f"import os,time; held = bytearray(os.urandom(1 << 20)) * {options.helper_mib}; time.sleep(3600)"
        subprocess.Popen([sys.executable, "-S", "-E", "-c", take])
    Handler.model, Handler.token_seconds = options.model, options.token_seconds
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    server.serve_forever()
    del held


if __name__ == "__main__":
    main()
