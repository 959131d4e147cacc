"""A web server that sends parts of files, and does whatever else a test wants of servers."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Asked:
    path: str
    range: str | None
    token: str | None


@dataclass
class Web:
    """`files`: what is served, by path. `answers`: what is said instead, by path: a status with headers and a body."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    ranges: bool = True
    most: int = 1 << 62  # bytes that are sent at a time
    twist: Callable[[dict[str, str]], None] = lambda headers: None  # changes what is said of a part
    base: str = ""

    def json(self, path: str, value: Any) -> None:
        self.answers[path] = (200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def redirect(self, path: str, target: str) -> None:
        self.answers[path] = (302, {"Location": target}, b"")

    def refuse(self, path: str, status: int) -> None:
        self.answers[path] = (status, {}, b"no")


@contextlib.contextmanager
def serving() -> Iterator[Web]:
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            web.asked.append(Asked(path, self.headers.get("Range"), self.headers.get("Authorization")))
            if path in web.answers:
                return self.reply(*web.answers[path])
            if path not in web.files:
                return self.reply(404, {}, b"")
            content = web.files[path]
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if not web.ranges or found is None:
                return self.reply(200, {}, self.part(content, 0, min(size, 1 << 16)))
            first, last = int(found[1]), min(int(found[2]), int(found[1]) + web.most - 1, size - 1)
            if first >= size:
                return self.reply(416, {}, b"")
            headers = {"Content-Range": f"bytes {first}-{last}/{size}"}
            web.twist(headers)
            body = self.part(content, first, last - first + 1)
            web.sent += len(body)
            return self.reply(206, headers, body)

        def part(self, content: Path | bytes, at: int, size: int) -> bytes:
            if isinstance(content, bytes):
                return content[at : at + size]
            with content.open("rb") as file:
                file.seek(at)
                return file.read(size)

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may leave at any time
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", headers.get("X-Length") or str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        web.base = f"http://127.0.0.1:{server.server_port}"
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
