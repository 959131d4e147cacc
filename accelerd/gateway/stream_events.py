"""The events of a stream: how they are made, read, and cut out of the bytes of one. Pure: bytes in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from accelerd.base.decoding import from_json
from accelerd.gateway.response_framing import FramingError

Json = dict[str, Any]
MAX_EVENT: Final = 16 << 20  # bytes


def event_of(body: Mapping[str, Any], name: str = "") -> bytes:
    """An SSE event."""
    head = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (head, msgspec.json.encode(body))


def line_of(body: Mapping[str, Any]) -> bytes:
    """An event of Ollama's streams."""
    return msgspec.json.encode(body) + b"\n"


def decoded(event: bytes) -> Json:
    """The data of an event; empty if that is no object."""
    _, _, data = (b"\n" + event).partition(b"\ndata: ")
    try:
        return from_json(data, dict[str, Any])
    except msgspec.DecodeError:
        return {}


class WholeEvents:
    """Cuts a stream into events, which subclasses correct or leave out."""

    after = b"\n\n"  # each event

    def __init__(self) -> None:
        self._rest = bytearray()  # of an event

    def feed(self, data: bytes) -> bytes:
        """FramingError where an event does not end."""
        if self._rest:
            seen = max(0, len(self._rest) - len(self.after) + 1)
            self._rest += data
            if self._rest.find(self.after, seen) < 0:
                if len(self._rest) > MAX_EVENT:
                    raise FramingError(f"it sent an event of more than {MAX_EVENT >> 20} MiB")
                return b""
            data = bytes(self._rest)
        *events, rest = data.split(self.after)
        self._rest = bytearray(rest)
        return b"".join([event + self.after for one in events if (event := self.corrected(one)) is not None])

    def end(self) -> bytes:
        rest, self._rest = bytes(self._rest), bytearray()
        return rest

    def corrected(self, event: bytes) -> bytes | None:
        """The event, without the empty line after it; None: it is left out."""
        raise NotImplementedError


class SeveralAnswers(WholeEvents):
    """The events of several answers: llama-server says null where one begins, by which OpenAI's SDK breaks off, and
    the usage of each, of which OpenAI's API makes one at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._usage: Json | None = None  # the last event with one, of all answers

    def corrected(self, event: bytes) -> bytes | None:
        if event == b"data: null":
            return None
        if b'"choices":[]' in event and isinstance((data := decoded(event)).get("usage"), dict):
            self._usage = _with_those_of(data, self._usage)
            return None
        if event == b"data: [DONE]" and self._usage is not None:
            return event_of(self._usage) + event
        return event

    def failed(self, body: Json) -> bytes:
        return event_of(body)


def _with_those_of(event: Json, before: Json | None) -> Json:
    """The event with the tokens of these answers, too; they have the same prompt."""
    usage, more = event["usage"], None if before is None else before["usage"].get("completion_tokens")
    for key in ("completion_tokens", "total_tokens"):
        if isinstance(more, int) and isinstance(usage.get(key), int):
            usage[key] += more
    return event
