"""A client's connection whose request waits for its model, on its way from one daemon to the next.

systemd keeps the connection and, in a memory file, the request as it came. The next daemon reads it again from the
start: access, limits and routing are those of its own configuration. Nothing of it is written to a disk.
"""

from __future__ import annotations

import contextlib
import os
import socket

import msgspec
from msgspec import Struct

from accelerd.base.decoding import from_json
from accelerd.base.errors import AccelError
from accelerd.gateway.corrections import error_event
from accelerd.gateway.response_framing import chunk
from accelerd.gateway.responses import error_response


class Waiting(Struct, frozen=True):
    """What the next daemon must know beside the request."""

    local: bool  # it came over the unix socket
    begun: bool  # the head of a stream was sent, and comments


class Parcel:
    """One connection, which belongs to whoever has the parcel. `path`: of the request."""

    def __init__(self, client: int, waiting: Waiting, request: bytes, path: str, *, http10: bool) -> None:
        self.client = client  # a descriptor
        self._waiting = waiting
        self._request = request
        self._path = path
        self._http10 = http10

    def memory_file(self) -> int:
        """A descriptor of a new memory file with everything that `unpack` reads."""
        file = os.memfd_create("accelerd-request", os.MFD_CLOEXEC)
        with open(file, "wb", closefd=False) as out:
            out.write(msgspec.json.encode(self._waiting) + b"\n" + self._request)
        return file

    def refuse(self, error: AccelError) -> None:
        """Nobody takes it: answer with this error, as far as the client reads."""
        if self._waiting.begun:
            event = error_event(error, self._path)
            answer = event if self._http10 else chunk(event)
        else:
            answer = error_response(error, self._path).encode(keep_alive=False)
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.client)) as client:
            client.setblocking(False)
            client.send(answer)

    def close(self) -> None:
        """This process needs it no more."""
        os.close(self.client)


def unpack(data: bytes) -> tuple[Waiting, bytes]:
    """What `memory_file` has written. ValueError."""
    head, _, request = data.partition(b"\n")
    return from_json(head, Waiting), request
