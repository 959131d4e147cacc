"""A hub of one's own: the part of Hugging Face's server that clients need to find and download files.

Repositories are folders; large files lead to another host, as at the real one, which serves ranges and wants no token.
It can be slow, break off, send damaged bytes, and demand tokens. `python -m tests.downloads.hub_server FOLDER` runs it:
FOLDER/ORG/REPO/FILE. Needs nothing but Python, so that it runs in a bare room, too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

COMMIT = "3f2504e04f8911d39a0c0305e82c3301deadbeef"
PIECE = 1 << 14


@dataclass
class Asked:
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repository:
    folder: Path
    gated: bool = False  # everybody sees it; its files want a token
    private: bool = False  # nobody sees it without one
    commit: str = COMMIT

    def files(self) -> dict[str, Path]:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path for path in found}


@dataclass
class Hub:
    """What the server has and how it behaves; changed while it runs."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_letmein"
    large: int = 1000  # bytes from which a file lies at the other host
    speed: float | None = None  # bytes a second
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    damage: int = 0  # so many of the next answers have a wrong byte
    ranges: bool = True
    down: int = 0  # so many of the next requests for a file get an error …
    down_status: int = 503
    said: dict[str, str] = field(default_factory=dict)  # headers that answers with a file have instead of the true ones
    asked: list[Asked] = field(default_factory=list)
    sent: int = 0
    port: int = 0
    sums: dict[tuple[str, int], str] = field(default_factory=dict)
    folder: Path | None = None  # with further repositories below it

    def find(self, name: str) -> Repository | None:
        if name not in self.repositories and self.folder is not None and (self.folder / name).is_dir():
            self.repositories[name] = Repository((self.folder / name).absolute())
        return self.repositories.get(name)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sum(self, path: Path) -> str:
        """Of a large file its SHA-256, of a small one git's."""
        size = path.stat().st_size
        key = (str(path), path.stat().st_mtime_ns)
        if key not in self.sums:
            if size >= self.large:
                with path.open("rb") as file:
                    self.sums[key] = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                self.sums[key] = hashlib.sha1(b"blob %d\0" % size + path.read_bytes()).hexdigest()
        return self.sums[key]

    def requests(self, method: str, part: str = "") -> list[Asked]:
        return [one for one in self.asked if one.method == method and part in one.path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = self.headers.get("Authorization")
        self.hub.asked.append(Asked(self.command, path, self.headers.get("Range"), token))
        if path.startswith("/cdn/"):
            return self.content(Path(path.removeprefix("/cdn")))
        if token not in (None, f"Bearer {self.hub.token}"):
            return self.reply(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"{}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            return self.listing(found[1])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve(found[1], found[2], found[3])
        return self.refuse(404, "")

    def known(self, name: str, files: bool) -> Repository | None:
        """The repository, if this client may see it."""
        found = self.hub.find(name)
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if found is None or (found.private and not allowed):
            self.refuse(404 if allowed else 401, "RepoNotFound")
            return None
        if found.gated and files and not allowed:
            self.refuse(401, "GatedRepo")
            return None
        return found

    def listing(self, name: str) -> None:
        if (found := self.known(name, False)) is None:
            return
        siblings: list[dict[str, Any]] = []
        for file, path in found.files().items():
            size = path.stat().st_size
            one: dict[str, Any] = {"rfilename": file}
            if "blobs=true" in self.path:
                one |= {"size": size, "blobId": "0" * 40}
                if size >= self.hub.large:
                    one["lfs"] = {"sha256": self.hub.sum(path), "size": size, "pointerSize": 135}
            siblings.append(one)
        gated = "manual" if found.gated else False
        body = {"_id": "1", "id": name, "modelId": name, "sha": found.commit, "gated": gated, "private": found.private,
                "siblings": siblings, "tags": ["gguf"], "downloads": 0}  # fmt: skip
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (found := self.known(name, True)) is None:
            return None
        if revision not in ("main", found.commit):
            return self.refuse(404, "RevisionNotFound")
        path = found.files().get(file)
        if path is None:
            return self.refuse(404, "EntryNotFound")
        size, total = path.stat().st_size, self.hub.sum(path)
        headers = {"X-Repo-Commit": found.commit, "Accept-Ranges": "bytes"}
        if size < self.hub.large:
            return self.content(path, {**headers, "ETag": f'"{total}"'})
        # the other host has another name, so that clients do not take it for the hub
        place = f"http://localhost:{self.hub.port}/cdn{quote(str(path))}?sig=secret"
        linked = {"X-Linked-Etag": f'"{total}"', "X-Linked-Size": str(size), "ETag": '"xet"', "Location": place}
        return self.reply(302, {**headers, **linked}, b"Found. Redirecting")

    def content(self, path: Path, headers: dict[str, str] | None = None) -> None:
        """The bytes of a file."""
        hub = self.hub
        if hub.down > 0:
            hub.down -= 1
            return self.refuse(hub.down_status, "")
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if hub.ranges and found is not None:
            first, last, status = int(found[1]), min(int(found[2] or size), size - 1), 206
            if first >= size:
                return self.reply(416, {"Content-Range": f"bytes */{size}"}, b"")
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        said = {"Content-Length": str(last - first + 1), **hub.said}
        for name, value in said.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send(path, first, last)
        return None

    def send(self, path: Path, first: int, last: int) -> None:
        hub = self.hub
        wanted = last - first + 1
        # a look at the header is neither cut nor damaged: it is the download that is tried
        whole = wanted > 1 << 20 or path.stat().st_size - 1 == last
        cut = hub.cuts.pop(0) if hub.cuts and whole else None
        damaged = whole and hub.damage > 0
        hub.damage -= damaged
        with path.open("rb") as file:
            file.seek(first)
            done = 0
            while done < wanted:
                if cut is not None and done >= cut:
                    self.close_connection = True
                    return
                piece = file.read(min(PIECE, wanted - done, *([cut - done] if cut is not None else [])))
                if damaged and done + len(piece) == wanted:
                    piece = piece[:-1] + bytes([piece[-1] ^ 0xFF])
                self.wfile.write(piece)
                done += len(piece)
                hub.sent += len(piece)
                if hub.speed:
                    time.sleep(len(piece) / hub.speed)

    def refuse(self, status: int, code: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": "no"} if code else {}
        self.reply(status, headers, b'{"error":"no"}')

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def server_of(hub: Hub, address: str = "127.0.0.1", port: int = 0) -> Server:
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = Server((address, port), handler)
    hub.port = server.server_port
    return server


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    with server_of(hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve models as a hub does; set HF_ENDPOINT to it.")
    parser.add_argument("folder", type=Path, help="with ORG/REPO/FILE below it")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--speed", type=float, help="bytes a second")
    parser.add_argument("--gated", action="append", default=[], metavar="ORG/REPO")
    parser.add_argument("--token", default="hf_letmein", help="that opens what is gated")
    args = parser.parse_args()
    hub = Hub(token=args.token, speed=args.speed, folder=args.folder)
    for name in args.gated:
        hub.repositories[name] = Repository((args.folder / name).absolute(), gated=True)
    with server_of(hub, port=args.port) as server:
        print(f"HF_ENDPOINT={hub.base}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
