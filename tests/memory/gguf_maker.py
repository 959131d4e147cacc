"""GGUF headers, whole and broken, as bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
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
