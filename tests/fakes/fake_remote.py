#!/usr/bin/env python3
"""Servers elsewhere, for tests: OpenAI's, Anthropic's and Ollama's APIs in a process, with or without TLS.

What a chat is answered is chosen by the name of its model, such as "slow" or "stall"; each request is noted in a file.
The certificates beside this file are made for the tests alone: `server.pem` is for localhost, `other.pem` for another
name, and both are signed by `ca.pem`.
"""

from __future__ import annotations

import gzip
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

CERTIFICATES = Path(__file__).parent / "certificates"
CA = CERTIFICATES / "ca.pem"
WORDS = ("Hel", "lo ", "wörld")


class FakeRemote:
    """The process, from its making to `close`. It listens at `port` of localhost, or of `address`."""

    def __init__(
        self,
        folder: Path,
        certificate: str = "",
        key: str = "",
        models: Any = ({"id": "big"},),
        *,
        address: str = "",
        enter: Sequence[str] = (),
    ) -> None:
        """`certificate`: a file beside this one, "": no TLS. `key`: what requests must bring. `enter`: what its command
        is begun with."""
        self._log = folder / f"remote-{certificate}-{len(key)}-{len(json.dumps(models))}.log"
        argv = [sys.executable, __file__, str(self._log), certificate, key, json.dumps(list(models)), address]
        self._process = subprocess.Popen([*enter, *argv], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"{'https' if certificate else 'http'}://{address or 'localhost'}:{self.port}"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def seen(self, path: str) -> list[dict[str, Any]]:
        """The requests for it."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [one for one in map(json.loads, lines) if one["path"] == path]

    def go_on(self) -> None:
        """Answer what "slow" has kept waiting."""
        self._process.send_signal(signal.SIGUSR1)


class Server:
    """Within the process."""

    def __init__(self, log: Path, certificate: str, key: str, models: list[dict[str, Any]], address: str) -> None:
        self.tls: ssl.SSLContext | None = None
        if certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(CERTIFICATES / certificate)
        self.log = log.open("a", buffering=1)
        self.key = key
        self.models = models
        self.loaded = [one["id"] for one in models if one.get("loaded")]
        self.connections = self.chats = 0
        self.goes_on = threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: self.go_on())
        self._socket = socket.create_server((address or "127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.url = f"{'https' if self.tls else 'http'}://localhost:{self.port}"

    def go_on(self) -> None:
        """Those who wait now."""
        waited_for, self.goes_on = self.goes_on, threading.Event()
        waited_for.set()

    def run(self) -> None:
        print(self.port, flush=True)
        while True:
            connection, _ = self._socket.accept()
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as file:
                while (request := _read(file)) is not None:
                    noted = {key: value for key, value in request.items() if key != "body"}
                    self.log.write(json.dumps({**noted, "connection": number}) + "\n")
                    if not self._answer(connection, request):
                        return
        except (OSError, ValueError):
            return

    def _answer(self, connection: socket.socket, request: dict[str, Any]) -> bool:
        """May the connection be used again?"""
        headers, path = request["headers"], request["path"]
        if path.startswith("http://"):  # it is asked as a proxy
            path = "/" + path.split("/", 3)[3]
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and given != self.key:
            text = f"Incorrect API key provided: {given or 'none'}"
            return _send(connection, 401, {"error": {"message": text, "type": "invalid_request_error"}})
        match path:
            case "/v1/models":
                return _send(connection, 200, {"object": "list", "data": self.models})
            case "/api/tags":
                return _send(connection, 200, {"models": [{"name": one["id"]} for one in self.models]})
            case "/api/ps":
                return _send(connection, 200, {"models": [{"name": one} for one in self.loaded]})
            case "/api/show":
                info = {"llama.context_length": 4096}
                return _send(connection, 200, {"capabilities": ["completion", "vision"], "model_info": info})
            case "/api/generate":
                return _send(connection, 200, {"done": True, "done_reason": "unload"})
            case "/api/chat":
                return _lines(connection, request["json"]["model"])
            case "/v1/messages":
                return _send(connection, 200, _message(request["json"]["model"]))
            case "/v1/chat/completions":
                return self._chat(connection, request["json"])
        return _send(connection, 404, {"error": {"message": f"no {path} at {self.url}/v1"}})

    def _chat(self, connection: socket.socket, body: dict[str, Any]) -> bool:
        model, stream = body["model"], body.get("stream")
        self.chats += 1
        match model:
            case "slow":
                self.goes_on.wait(30)
            case "hangup":
                return False
            case "once":  # as a server does that has closed a connection while it idled
                _send(connection, 200, _completion(model))
                return False
            case "redirect":
                return _send(connection, 307, {}, Location=f"{self.url}/other")
            case "nothing":
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                return True
            case "busy":
                return _send(connection, 429, {"error": {"message": "too many requests"}}, **{"Retry-After": "7"})
            case "later":
                moment = formatdate(time.time() + 1000, usegmt=True)
                return _send(connection, 429, {"error": {"message": "too many requests"}}, **{"Retry-After": moment})
            case "unknown":
                return _send(connection, 404, {"error": {"message": f'model "{model}" not found', "code": None}})
            case "text":
                head = b"HTTP/1.1 503 X\r\nContent-Type: text/plain\r\nContent-Length: 24\r\n\r\n"
                connection.sendall(head + b"the GPU\tis gone\nmore ...")
                return True
            case "short":
                return _send(connection, 200, json.dumps(_completion(model)).encode()[:-2])
            case "early":
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
                connection.sendall(head + json.dumps(_completion(model)).encode())
                return False
            case "broken":
                text = f"backend http://localhost:{self.port}/v1 of {self.key or 'nobody'} is broken"
                return _send(connection, 500, {"error": {"message": text, "type": "server_error"}})
            case "unhappy":
                return _send(connection, 400, {"error": {"message": "temperature is too hot", "param": "temperature"}})
            case "page":
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 12\r\n\r\n"
                connection.sendall(head + b"Please login")
                return True
            case "head":
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 200_000 + b"\r\n\r\n")
                return False
            case "garbage":
                connection.sendall(b"\x00\x01 this is not HTTP\r\n\r\n")
                return False
            case "gzip":
                data = gzip.compress(json.dumps(_completion(model)).encode())
                return _send(connection, 200, data, **{"Content-Encoding": "gzip"})
        if not stream:
            return _send(connection, 200, _completion(model))
        pieces = b"".join(_events(model))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        match model:
            case "stall" | "cut" | "cut-chunk":
                part = pieces[: pieces.index(b"lo ")]
                connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
                if model == "stall":
                    self.goes_on.wait(30)
                if model == "cut-chunk":
                    connection.sendall(b"ff\r\ndata: ")
                return False
            case "odd":
                for at in range(0, len(pieces), 3):
                    part = pieces[at : at + 3]
                    connection.sendall(b"%X;name=value\r\n%b\r\n" % (len(part), part))
            case _:
                connection.sendall(b"%x\r\n%b\r\n" % (len(pieces), pieces))
        connection.sendall(b"0\r\n\r\n")
        return True


def _read(file: Any) -> dict[str, Any] | None:
    first = file.readline()
    if not first:
        return None
    method, path, _ = first.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (line := file.readline().decode("latin-1").strip()) != "":
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    body = file.read(int(headers.get("content-length", "0")))
    data = json.loads(body) if headers.get("content-type", "").startswith("application/json") else None
    return {"method": method, "path": path, "headers": headers, "body": body, "json": data}


def _send(connection: socket.socket, status: int, body: Any, **headers: str) -> bool:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
    return True


def _lines(connection: socket.socket, model: str) -> bool:
    messages = [{"role": "assistant", "content": word} for word in WORDS]
    lines = [{"model": model, "message": one, "done": False} for one in messages]
    lines.append({"model": model, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"})
    data = b"".join(json.dumps(one).encode() + b"\n" for one in lines)
    head = f"HTTP/1.1 200 X\r\nContent-Type: application/x-ndjson\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return True


def _completion(model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(WORDS)}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    }  # fmt: skip


def _events(model: str) -> Iterator[bytes]:
    for word in WORDS:
        choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": model}
        yield b"data: " + json.dumps({**event, "choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def _message(model: str) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "stop_reason": "end_turn",
        "stop_sequence": None, "content": [{"type": "text", "text": "".join(WORDS)}],
        "usage": {"input_tokens": 3, "output_tokens": 3},
    }  # fmt: skip


if __name__ == "__main__":
    Server(Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5]).run()
