"""What a model's files hold: every tensor with its shape and its bytes, over all parts of a model in many files.

Reads headers only and trusts nothing in them: what they claim is held against limits and against the size of the file.
Blocking: call it in a thread. Never reads weights.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO, Final, NamedTuple

from accelerd.base import volumes
from accelerd.estimate.gguf import Budget, GgufError, Header, Reader, TruncatedError, open_file

MOST_PARTS: Final = 1024
LONGEST_NAME: Final = 256  # ggml takes 64
LARGEST: Final = 1 << 31  # of any number in a header that means a size; a larger one is nonsense
MOST_ELEMENTS: Final = 1 << 50
DEFAULT_ALIGNMENT: Final = 32
KEPT: Final = 64  # models that are remembered
PART: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
LAYER: Final = re.compile(r"blk\.([0-9]{1,5})\.(.*)", re.DOTALL)  # ASCII: int() refuses other digits that are none

# Types of a tensor by their number in the file: name, elements in a block, bytes of a block.
TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 36), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1), 25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2), 31: ("q4_0_4_4", 32, 18), 32: ("q4_0_4_8", 32, 18),
    33: ("q4_0_8_8", 32, 18), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 36: ("iq4_nl_4_4", 32, 18),
    37: ("iq4_nl_4_8", 32, 18), 38: ("iq4_nl_8_8", 32, 18), 39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18), 42: ("q2_0", 64, 18),
}  # fmt: skip
BLOCKS: Final[Mapping[str, tuple[int, int]]] = {name: (elements, size) for name, elements, size in TYPES.values()}


class Tensor(NamedTuple):
    """One tensor. `shape` as in the file: the first number is that of a row's elements."""

    shape: tuple[int, ...]
    type: str  # "q4_k"; "type 99" where it is not known
    size: int  # bytes


@dataclass(frozen=True, eq=False)  # equal to itself only, so that it can be a key
class GgufModel:
    """A model as its headers describe it."""

    header: Header
    tensors: Mapping[str, Tensor] = field(repr=False)
    files: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        return self.header.architecture

    @cached_property
    def weights(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def vocabulary(self) -> int:
        """Tokens; 0: it has none."""
        count = self.header.skipped.get("tokenizer.ggml.tokens")
        if count is None:
            embedding = self.tensors.get("token_embd.weight")
            count = embedding.shape[1] if embedding is not None and len(embedding.shape) > 1 else 0
        return count

    def of_layer(self, key: str, index: int, default: int) -> int:
        """Of layer `index`, where the header has one number for each or one for all."""
        value = self.header.of_architecture(key)
        if isinstance(value, tuple):
            value = value[index] if index < len(value) else default
        return min(value, LARGEST) if isinstance(value, int) and value >= 0 else default

    def number(self, key: str, default: int = 0) -> int:
        """`ARCHITECTURE.key` as a number that is not negative; of an array its largest."""
        value = self.header.of_architecture(key)
        numbers = value if isinstance(value, tuple) else (value,)
        found = [int(one) for one in numbers if isinstance(one, int) and one >= 0]
        return min(max(found, default=default), LARGEST)


def layer_of(name: str) -> tuple[int, str] | None:
    """The index of a tensor's layer and its name there; None: it is outside of the layers."""
    found = LAYER.fullmatch(name)
    return None if found is None else (int(found[1]), found[2])


def row_bytes(kind: str, elements: int) -> int:
    """Bytes of a row of that type; a block that has begun counts whole."""
    block, size = BLOCKS.get(kind, (1, 4))
    return -(-elements // block) * size


def read_part(file: BinaryIO, size: int, budget: Budget) -> tuple[Header, dict[str, Tensor]]:
    """One file's header and tensors. Of its `size` bytes only the beginning must be there. GgufError."""
    reader = Reader(file, size, budget)
    header = reader.header()
    found: list[tuple[int, str, tuple[int, ...], int]] = []
    for _ in range(header.tensors):
        length = reader.length()
        if length > LONGEST_NAME:
            raise GgufError(f"a tensor's name of {length} bytes")
        name = reader.take(length).decode("utf-8", "replace")
        count = reader.number("I")
        if count > 4:
            raise GgufError(f"a tensor of {count} dimensions")
        shape = tuple(reader.length() for _ in range(count)) or (1,)
        kind, offset = reader.number("I"), reader.length()
        found.append((offset, name, shape, kind))
    alignment = header.values.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise GgufError(f"its alignment is {alignment}")
    data = -(-reader.position // alignment) * alignment
    return header, _sized(found, size - data)


def _sized(found: list[tuple[int, str, tuple[int, ...], int]], room: int) -> dict[str, Tensor]:
    """The tensors with their bytes, which must lie in the `room` behind the header."""
    found.sort(key=lambda one: one[0])
    tensors: dict[str, Tensor] = {}
    for index, (offset, name, shape, kind) in enumerate(found):
        elements = 1
        for length in shape:
            elements *= length
        if elements > MOST_ELEMENTS:
            raise GgufError(f"{name or 'a tensor'} has {elements} elements")
        if (known := TYPES.get(kind)) is not None:
            type_, block, bytes_ = known
            size = elements // block * bytes_ if elements % block == 0 else row_bytes(type_, elements)
        else:  # a type that is newer than this program: the next tensor's place tells
            type_ = f"type {kind}"
            size = max(0, (found[index + 1][0] if index + 1 < len(found) else room) - offset)
        if offset + size > room:
            raise TruncatedError(f"the file ends within its weights: {offset + size - room} bytes are missing")
        if name in tensors:
            raise GgufError(f"it has {name} twice")
        tensors[name] = Tensor(shape, type_, size)
    return tensors


def parts(path: str) -> list[str]:
    """All files of the model whose first is named; of a model in one file that one."""
    folder, name = os.path.split(path)
    match = PART.fullmatch(name)
    if match is None or not 1 < int(match["count"]) <= MOST_PARTS:
        return [path]
    count = int(match["count"])
    return [os.path.join(folder, f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]


Identity = tuple[tuple[str, int, int, int], ...]  # path, size, time of the last change in ns, and inode of every file


def identity(path: str) -> Identity:
    """Names exactly these files as they are now. OSError when one is missing, or its volume does not answer."""
    volumes.check(parts(path))
    found = []
    for file in parts(path):
        status = os.stat(file)
        found.append((os.path.realpath(file), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


class ModelReader:
    """Reads models and remembers the last ones, by the identity of their files. Safe to use from threads."""

    def __init__(self, keep: int = KEPT) -> None:
        self._keep = keep
        self._lock = threading.Lock()
        self._known: dict[str, tuple[Identity, GgufModel]] = {}

    def read(self, path: str) -> GgufModel:
        """The model of that file and of the parts that belong to it. GgufError; OSError when one cannot be read."""
        now = identity(path)
        with self._lock:
            known = self._known.pop(path, None)
            if known is not None and known[0] == now:
                self._known[path] = known  # the last used is the last to go
                return known[1]
        model = read_model(path)
        with self._lock:
            self._known[path] = now, model
            while len(self._known) > self._keep:
                self._known.pop(next(iter(self._known)))
        return model


def read_model(path: str | os.PathLike[str]) -> GgufModel:
    """A model's headers. GgufError; OSError when a file cannot be read."""
    files = parts(os.fspath(path))
    header: Header | None = None
    tensors: dict[str, Tensor] = {}
    budget = Budget()
    for file in files:
        with open_file(file) as opened:
            own, found = read_part(opened, os.fstat(opened.fileno()).st_size, budget)
        header = header or own
        if twice := tensors.keys() & found.keys():
            raise GgufError(f"{min(twice)} is in more than one of its files")
        tensors.update(found)
    assert header is not None
    count = header.values.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(files):
        raise GgufError(f"it is part of a model in {count} files, whose names must end in -00001-of-{count:05d}.gguf")
    return GgufModel(header, tensors, tuple(files))
