"""Clients of the endpoint that behave as clients do: they stay, leave at any moment, reset, send half a request."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

WAYS = ("stays", "stays", "leaves before the answer", "leaves in mid-stream", "resets", "sends half a request")
PATIENCE = 60.0  # s for a whole answer
PAUSE = 0.3  # s at most, before a client does what it came for


@dataclass(frozen=True)
class Client:
    """One request, planned."""

    model: str
    way: str
    pause: float  # s

    @classmethod
    def some(cls, chance: random.Random, models: Sequence[str], count: int) -> list[Client]:
        return [cls(chance.choice(models), chance.choice(WAYS), chance.uniform(0, PAUSE)) for _ in range(count)]

    def run(self, port: int) -> None:
        """What becomes of the request does not matter: the daemon may go meanwhile."""
        body = json.dumps({"model": self.model, "messages": [{"role": "user", "content": "hi"}], "stream": True})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        request = (head + body).encode()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
            sock.sendall(request[: len(request) // 2] if self.way == "sends half a request" else request)
            if self.way in ("leaves in mid-stream", "resets"):
                sock.recv(1)
            time.sleep(self.pause)
            if self.way == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            while self.way == "stays" and sock.recv(65536):
                continue
