"""Writes GGUF files whose tensors are holes: as long as a real model's, and next to nothing on disk.

Weights are zeros, so such a model says nothing worth reading; what it takes of memory is what a real one of its shape
takes. Types and their sizes are the gguf package's.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

Value = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
ALIGNMENT = 32


@dataclass(frozen=True)
class Tensor:
    """`shape` as the file has it: the first dimension is the one that lies together in memory."""

    name: str
    shape: tuple[int, ...]
    type: Type

    @property
    def size(self) -> int:
        """Bytes."""
        block, bytes_of_block = GGML_QUANT_SIZES[self.type]
        if self.shape[0] % block:
            raise ValueError(f"{self.name}: rows of {self.shape[0]} are no whole blocks of {self.type.name}")
        return prod(self.shape) // block * bytes_of_block


@dataclass
class Content:
    """What is to be written: pairs by their whole key, and tensors."""

    architecture: str
    pairs: dict[str, Value] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def set(self, **values: Value) -> None:
        """Pairs of the architecture; __ stands for a dot."""
        for key, value in values.items():
            self.pairs[f"{self.architecture}.{key.replace('__', '.')}"] = value

    def add(self, name: str, *shape: int, type: Type = Type.F32) -> None:
        self.tensors.append(Tensor(name, shape, type))

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)


def write(content: Content, folder: Path, name: str, split: int = 1) -> list[Path]:
    """The file NAME.gguf in `folder`, or its shards; all with the size that their headers speak of."""
    pairs = {"general.architecture": content.architecture, "general.name": name, **content.pairs}
    if split == 1:
        path = folder / f"{name}.gguf"
        _write(path, pairs, content.tensors)
        return [path]
    each = -(-len(content.tensors) // split)
    paths = []
    for index in range(split):
        numbers: dict[str, Value] = {
            "split.count": split,
            "split.no": index,
            "split.tensors.count": len(content.tensors),
        }
        path = folder / f"{name}-{index + 1:05d}-of-{split:05d}.gguf"
        _write(path, {**(pairs if index == 0 else {}), **numbers}, content.tensors[index * each : (index + 1) * each])
        paths.append(path)
    return paths


def _write(path: Path, pairs: Mapping[str, Value], tensors: Sequence[Tensor]) -> None:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(pairs))]
    for key, value in pairs.items():
        parts += [_text(key), *_value(key, value)]
    offset = 0
    for tensor in tensors:
        parts.append(_text(tensor.name) + struct.pack("<I", len(tensor.shape)))
        parts.append(struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, offset))
        offset += _aligned(tensor.size)
    header = b"".join(parts)
    with path.open("wb") as file:
        file.write(header)
        os.truncate(file.fileno(), _aligned(len(header)) + offset)


def _aligned(size: int) -> int:
    return size + -size % ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> Iterator[bytes]:
    """Type and value. Numbers are of the kind that llama.cpp asks for: most are u32, those of shards are not."""
    if isinstance(value, str | bool | int | float):
        kind = {"split.count": 2, "split.no": 2, "split.tensors.count": 5}.get(key) or _kind(value)
        yield struct.pack("<I", kind) + _scalar(kind, value)
        return
    items = list(value)
    kind = 5 if isinstance(items[0], int) and not isinstance(items[0], bool) else _kind(items[0])
    yield struct.pack("<IIQ", 9, kind, len(items))
    if kind == 8:
        yield from (_text(str(item)) for item in items)
    else:
        yield struct.pack(f"<{len(items)}{FORMATS[kind]}", *items)


FORMATS = {2: "H", 4: "I", 5: "i", 6: "f", 7: "?"}


def _kind(value: str | bool | int | float) -> int:
    if isinstance(value, str):
        return 8
    if isinstance(value, bool):
        return 7
    return 4 if isinstance(value, int) else 6


def _scalar(kind: int, value: str | bool | int | float) -> bytes:
    return _text(str(value)) if kind == 8 else struct.pack(f"<{FORMATS[kind]}", value)
