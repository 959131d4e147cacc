"""The real llama-server alone, with its own defaults: what a client gets without accelerd."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.harness import Answer, eventually
from tests.ports import free_port

LONG = 300.0  # s until a real model has answered, on a busy machine


def ask(port: int, path: str, body: Mapping[str, Any] | None = None) -> Answer:
    """One request to llama-server or accelerd: a POST if there is a body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LONG)) as connection:
        data = None if body is None else json.dumps(body).encode()
        connection.request("POST" if data else "GET", path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def healthy(port: int) -> bool:
    try:
        return ask(port, "/health").status == 200
    except OSError:
        return False


@contextlib.contextmanager
def bare_server(server: str, model: Path, log: Path, *arguments: str) -> Iterator[int]:
    """A llama-server that is ready, and its port."""
    port = free_port()
    command = [server, "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--offline", *arguments]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as it,
    ):
        try:
            eventually(lambda: healthy(port) or it.poll() is not None, "llama-server is ready", within=60)
            assert it.poll() is None, log.read_text(errors="replace")
            yield port
        finally:
            it.terminate()
