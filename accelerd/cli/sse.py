"""Server-sent events as a chat needs them: data and comments, from lines to values. Pure; skips all other fields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Data:
    """The data of one event, its lines joined."""

    text: str


@dataclass(frozen=True)
class Comment:
    """A comment line, without its colon: what keeps a connection alive, and may say why it takes long."""

    text: str


def parse(lines: Iterable[bytes]) -> Iterator[Data | Comment]:
    """Events in order; one that the stream's end cuts off is dropped, as the specification says."""
    data: list[str] = []
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if not line:
            if data:
                yield Data("\n".join(data))
                data = []
        elif line.startswith(":"):
            yield Comment(line[1:].strip())
        else:
            name, _, value = line.partition(":")
            if name == "data":
                data.append(value.removeprefix(" "))
