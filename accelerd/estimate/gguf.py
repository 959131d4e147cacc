"""Reads the header of a GGUF file: its keys and values, and how many tensors there are.

Vocabularies and other long arrays are stepped over, not kept, so that a model of any size takes a fraction of a second.
Trusts nothing: every length is held against what is there, and all of them together against a Budget.
Blocking: call it in a thread. Never reads weights.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Final

from msgspec import Struct, field

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
LONGEST_KEY: Final = 1 << 16
LONGEST_TEXT: Final = 1 << 16  # a longer string is stepped over: chat templates may be long, nobody asks for them here
LONGEST_ARRAY: Final = 4096  # elements; one number for each layer is kept, a vocabulary is not
PAIR: Final = 128  # bytes that a key takes beside its text and its value's
NUMBER: Final = 40  # bytes that a kept number takes
CHUNK: Final = 1 << 18

# Types by their number: struct's letter, None for what has a length of its own.
NUMBERS: Final[dict[int, str]] = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
                                  12: "d"}  # fmt: skip
TEXT: Final = 8
ARRAY: Final = 9

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]


class GgufError(Exception):
    """The file is no GGUF file that can be read. One clause."""


class TruncatedError(GgufError):
    """The file ends before what its header announces."""


class Budget:
    """What the headers of one model may cost, over all its files. Real ones take less than half of it."""

    def __init__(self) -> None:
        self.read = 256 << 20  # bytes
        self.kept = 4 << 20  # bytes of keys and values
        self.strings = 1 << 21  # in arrays; the largest vocabularies have some 800000, with their merges
        self.tensors = 1 << 14  # the largest models have some 3000

    def take_read(self, size: int) -> None:
        self.read -= size
        if self.read < 0:
            raise GgufError("its header is too large")

    def take_kept(self, size: int) -> None:
        self.kept -= size
        if self.kept < 0:
            raise GgufError("its header has too many keys, or values that are too large")

    def take_strings(self, count: int) -> None:
        self.strings -= count
        if self.strings < 0:
            raise GgufError(f"its header has too many strings: an array of {count}")

    def take_tensors(self, count: int) -> None:
        self.tensors -= count
        if self.tensors < 0:
            raise GgufError(f"it claims {count} tensors: more than any model has in all its files")


class Header(Struct, frozen=True):
    """What a header says. Arrays that are long or of strings are counted in `skipped`, by key."""

    version: int
    tensors: int
    values: dict[str, Value] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)  # elements

    @property
    def architecture(self) -> str:
        """ "llama", "qwen3moe"; empty when the file does not say."""
        value = self.values.get("general.architecture")
        return value if isinstance(value, str) else ""

    def of_architecture(self, key: str) -> Value | None:
        """The value of `ARCHITECTURE.key`, "expert_count"."""
        return self.values.get(f"{self.architecture}.{key}")

    @property
    def experts(self) -> int:
        """Of a mixture of experts; 0: the model is dense."""
        value = self.of_architecture("expert_count")
        return value if isinstance(value, int) else 0


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of the file. GgufError; OSError when it cannot be read."""
    with open_file(path) as file:
        return Reader(file, os.fstat(file.fileno()).st_size, Budget()).header()


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """The file without a buffer. An opener, not to hang on a FIFO. OSError."""
    return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


class Reader:
    """A window on a file that moves forward."""

    def __init__(self, file: BinaryIO, size: int, budget: Budget) -> None:
        self._file = file
        self._end = size
        self.budget = budget
        self._window = b""
        self._start = 0  # of the window in the file
        self._at = 0  # in the window, or beyond it

    @property
    def position(self) -> int:
        """Bytes of the file before what is read next."""
        return self._start + self._at

    def header(self) -> Header:
        """Keys and values; what describes the tensors comes next. GgufError."""
        if self.take(4) != MAGIC:
            raise GgufError("it is not a GGUF file")
        version = self.number("I")
        if version not in VERSIONS:
            swapped = version & 0xFFFF == 0
            what = "it is big-endian" if swapped else f"version {version} of the format is not known"
            raise GgufError(f"{what}; version 2 and 3, little-endian, are")
        tensors, count = self.length(), self.length()
        if count * PAIR > self.budget.kept:
            raise GgufError(f"it claims {count} keys")
        self.budget.take_tensors(tensors)
        header = Header(version, tensors)
        for _ in range(count):
            self._pair(header)
        return header

    def _pair(self, header: Header) -> None:
        length = self.length()
        if length > LONGEST_KEY:
            raise GgufError(f"a key of {length} bytes")
        self.budget.take_kept(PAIR + length)
        key = self.take(length).decode("utf-8", "replace")
        kind = self.number("I")
        if kind == ARRAY:
            self._array(header, key)
        elif (value := self._scalar(kind)) is not None:
            header.values[key] = value
        else:
            header.skipped[key] = 1

    def _array(self, header: Header, key: str) -> None:
        kind, length = self.number("I"), self.length()
        if kind in NUMBERS and length <= LONGEST_ARRAY:
            self.budget.take_kept(NUMBER * length)
            letter = NUMBERS[kind]
            header.values[key] = struct.unpack(f"<{length}{letter}", self.take(length * struct.calcsize(letter)))
        else:
            self._skip(kind, length)
            header.skipped[key] = length

    def _scalar(self, kind: int) -> Scalar | None:
        """None: a text that is too long to be kept."""
        if kind == TEXT:
            length = self.length()
            if length > LONGEST_TEXT:
                self._step(length)
                return None
            self.budget.take_kept(length)
            return self.take(length).decode("utf-8", "replace")
        if kind not in NUMBERS:
            raise GgufError(f"a value of unknown type {kind}")
        letter = NUMBERS[kind]
        return self.number(letter) if letter != "?" else self.take(1) != b"\0"

    def _skip(self, kind: int, length: int) -> None:
        """Step over the elements of an array."""
        if kind in NUMBERS:
            self._step(length * struct.calcsize(NUMBERS[kind]))
        elif kind == TEXT:
            self._reserve(length * 8)
            self.budget.take_strings(length)
            self._skip_texts(length)
        elif kind == ARRAY:
            raise GgufError("it has an array of arrays, which llama.cpp does not read")
        else:
            raise GgufError(f"an array of unknown type {kind}")

    def _skip_texts(self, count: int) -> None:
        """The only long loop: a vocabulary has some 150000 words."""
        unpack = struct.Struct("<Q").unpack_from
        while count:
            window, at = self._window, self._at
            last = len(window) - 8
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            self._step(at - self._at)
            if count:
                self._fill(8)

    # --- bytes ------------------------------------------------------------------------------------------------

    def number(self, letter: str) -> int:
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]  # type: ignore[no-any-return]

    def length(self) -> int:
        return self.number("Q")

    def take(self, size: int) -> bytes:
        if len(self._window) - self._at < size:
            self._fill(size)
        self._at += size
        return self._window[self._at - size : self._at]

    def _step(self, size: int) -> None:
        """Go on without reading."""
        self._reserve(size)
        self._at += size

    def _fill(self, size: int) -> None:
        """Have `size` bytes in the window."""
        self._reserve(size)
        start, rest = self.position, self._window[self._at :]
        parts, wanted = [rest], min(max(size, CHUNK), self._end - start) - len(rest)
        self.budget.take_read(wanted)
        self._file.seek(start + len(rest))
        while wanted > 0 and (piece := self._file.read(wanted)):
            parts.append(piece)
            wanted -= len(piece)
        self._window, self._start, self._at = b"".join(parts), start, 0
        if len(self._window) < size:
            raise TruncatedError("the file ends within its header")

    def _reserve(self, size: int) -> None:
        """GgufError unless so many bytes are still to come."""
        if size > self._end - self.position:
            raise TruncatedError("the file ends within its header")
