"""A registry on loopback: what podman pulls from, by the OCI distribution protocol, out of an OCI layout on disk.

Only the reading half: manifests by tag and digest, blobs. While its `gate` is closed larger blobs stop in the middle.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE = 64 << 10


class Registry:
    """`folder` is what `podman push IMAGE oci:folder:TAG` writes. `asked` are the paths that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.gate = threading.Event()  # blobs of more than one piece stop in the middle until it is set
        self.gate.set()

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Its address."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Silent."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield f"127.0.0.1:{server.server_port}"
            finally:
                self.gate.set()
                server.shutdown()
                thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        *_, kind, reference = handler.path.split("/")
        if handler.path == "/v2/":
            self._send(handler, b"{}", "application/json")
        elif kind == "blobs":
            self._send(handler, self._blob(reference), "application/octet-stream", reference)
        else:
            for manifest in json.loads((self.folder / "index.json").read_text())["manifests"]:
                tag = manifest.get("annotations", {}).get("org.opencontainers.image.ref.name")
                if reference in (manifest["digest"], tag):
                    self._send(handler, self._blob(manifest["digest"]), manifest["mediaType"], manifest["digest"])
                    break
            else:
                body = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
                self._send(handler, json.dumps(body).encode(), "application/json", status=404)

    def _blob(self, digest: str) -> bytes:
        return (self.folder / "blobs" / digest.replace(":", "/")).read_bytes()

    def _send(
        self, handler: BaseHTTPRequestHandler, data: bytes, kind: str, digest: str = "", *, status: int = 200
    ) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        if digest:
            handler.send_header("Docker-Content-Digest", digest)
        handler.end_headers()
        if handler.command != "HEAD":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # podman may be stopped
                handler.wfile.write(data[:PIECE])
                if len(data) > PIECE:
                    handler.wfile.flush()
                    self.gate.wait()
                    handler.wfile.write(data[PIECE:])
