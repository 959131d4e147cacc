"""GGUF headers, whole and broken, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind: int, data: bytes) -> bytes:
    return struct.pack("<I", kind) + data


def string(content: str) -> bytes:
    return value(8, text(content))


def u32(number: int) -> bytes:
    return value(4, struct.pack("<I", number))


def numbers(items: Iterable[int]) -> bytes:
    listed = list(items)
    return value(9, struct.pack("<IQ", 4, len(listed)) + struct.pack(f"<{len(listed)}I", *listed))


def strings(items: Iterable[str]) -> bytes:
    listed = list(items)
    return value(9, struct.pack("<IQ", 8, len(listed)) + b"".join(map(text, listed)))


def header(pairs: Mapping[str, bytes], *, tensors: int = 2, version: int = 3) -> bytes:
    body = b"".join(text(key) + data for key, data in pairs.items())
    return b"GGUF" + struct.pack("<IQQ", version, tensors, len(pairs)) + body


def model(architecture: str = "qwen3", experts: int | None = None, **more: Any) -> bytes:
    """The header of a model."""
    pairs = {"general.architecture": string(architecture)}
    if experts is not None:
        pairs[f"{architecture}.expert_count"] = u32(experts)
    return header({**pairs, **more})


def integers(items: Iterable[int]) -> bytes:
    """An array of signed ones."""
    listed = list(items)
    return value(9, struct.pack("<IQ", 5, len(listed)) + struct.pack(f"<{len(listed)}i", *listed))


def flag(yes: bool) -> bytes:
    return value(7, b"\1" if yes else b"\0")


Listed = Mapping[str, tuple[tuple[int, ...], int]]  # name → shape and type's number


def file_of(pairs: Mapping[str, bytes], tensors: Listed, sizes: Mapping[str, int] | None = None) -> tuple[bytes, int]:
    """A header with tensors, and how long its file must be. `sizes`: bytes of tensors of types that nobody knows."""
    body = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    body += b"".join(text(key) + data for key, data in pairs.items())
    at = 0
    for name, (shape, kind) in tensors.items():
        body += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape) + struct.pack("<IQ", kind, at)
        elements = 1
        for length in shape:
            elements *= length
        block, size = BLOCKS.get(kind, (1, 0))
        at += -(-((sizes or {}).get(name) or elements // block * size) // 32) * 32
    return body, -(-len(body) // 32) * 32 + at


BLOCKS = {0: (1, 4), 1: (1, 2), 8: (32, 34), 12: (256, 144), 14: (256, 210)}


def write(path: Path, pairs: Mapping[str, bytes], tensors: Listed, sizes: Mapping[str, int] | None = None) -> Path:
    """A file with that header and a hole where the weights would be."""
    body, length = file_of(pairs, tensors, sizes)
    with path.open("wb") as file:
        file.write(body)
        file.truncate(length)
    return path
