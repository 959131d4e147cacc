"""The header of GGUF files: what is kept, what is stepped over, and what no file may do."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from accelerd.estimate.gguf import LONGEST_ARRAY, Budget, GgufError, Header, Reader, open_file, read_header
from accelerd.estimate.tensors import read_part
from tests.memory.gguf_maker import header, model, numbers, string, strings, text, u32, value
from tests.models import make_model

WORDS = [f"word{number}" for number in range(50_000)]


def read(tmp_path: Path, data: bytes) -> Header:
    file = tmp_path / "m.gguf"
    file.write_bytes(data)
    return read_header(file)


def test_values_of_every_type(tmp_path: Path) -> None:
    found = read(tmp_path, header({
        "u8": value(0, b"\xff"), "i8": value(1, b"\xff"), "u16": value(2, b"\xff\xff"), "i16": value(3, b"\xff\xff"),
        "u32": u32(7), "i32": value(5, struct.pack("<i", -7)), "f32": value(6, struct.pack("<f", 0.5)),
        "yes": value(7, b"\1"), "no": value(7, b"\0"), "text": string("ä"),
        "u64": value(10, struct.pack("<Q", 1 << 60)),
        "i64": value(11, struct.pack("<q", -1)), "f64": value(12, struct.pack("<d", 0.25)), "some": numbers([1, 2, 3]),
        "bad utf-8": value(8, text(b"\xff")),
    }, tensors=5))  # fmt: skip
    assert found.values == {
        "u8": 255, "i8": -1, "u16": 65535, "i16": -1, "u32": 7, "i32": -7, "f32": 0.5, "yes": True, "no": False,
        "text": "ä", "u64": 1 << 60, "i64": -1, "f64": 0.25, "some": (1, 2, 3), "bad utf-8": "\ufffd",
    }  # fmt: skip
    assert (found.version, found.tensors, found.skipped) == (3, 5, {})


def test_long_arrays_are_stepped_over_and_what_follows_is_read(tmp_path: Path) -> None:
    more = {"tokens": strings(WORDS), "types": numbers(range(LONGEST_ARRAY + 1)), "long": strings(["a", "b" * 300_000]),
            "template": string("x" * 100_000), "empty": strings([]), "last": u32(9)}  # fmt: skip
    found = read(tmp_path, model("qwen3moe", 128, **more))
    assert found.skipped == {
        "tokens": len(WORDS), "types": LONGEST_ARRAY + 1, "long": 2, "template": 1, "empty": 0,
    }  # fmt: skip
    assert (found.architecture, found.experts, found.values["last"]) == ("qwen3moe", 128, 9)


def test_a_dense_model_and_one_that_says_nothing(tmp_path: Path) -> None:
    assert (read(tmp_path, model("llama")).architecture, read(tmp_path, model("llama")).experts) == ("llama", 0)
    nothing = read(tmp_path, header({}))
    assert (nothing.architecture, nothing.experts, nothing.of_architecture("block_count")) == ("", 0, None)


def test_a_real_model(tmp_path: Path) -> None:
    found = read_header(make_model(tmp_path))
    assert found.architecture == "llama"
    assert found.of_architecture("context_length")
    assert found.skipped["tokenizer.ggml.tokens"] > 100


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file ends"),
        (b"GG", "the file ends"),
        (b"PK\3\4" + bytes(60), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1 of the format"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "keys"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 5), "the file ends"),
        (header({"k": value(99, b"1234")}), "unknown type 99"),
        (header({"k": value(8, struct.pack("<Q", 1 << 62))}), "the file ends"),
        (header({"k": value(9, struct.pack("<IQ", 77, 3))}), "unknown type 77"),
        (header({"k": value(9, struct.pack("<IQ", 8, 1 << 61))}), "the file ends"),
        (header({"k": value(9, struct.pack("<IQ", 12, 1 << 63))}), "the file ends"),
        (header({"k": value(9, struct.pack("<IQ", 9, 1 << 50))}), "array of arrays"),
        (header({"k": value(9, struct.pack("<IQ", 9, 1) * 9 + bytes(99))}), "array of arrays"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 20) + bytes(1 << 21), "a key of"),
        (model(tokens=strings(WORDS))[:-3], "the file ends"),
    ],
)
def test_what_is_no_header_is_said(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=words):
        read(tmp_path, data)


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size) or b""
        self.taken += len(piece)
        return piece


ARRAY_OF_4096 = value(9, struct.pack("<IQ", 2, 4096) + bytes(8192))


@pytest.mark.parametrize(
    ("data", "words", "most"),
    [
        (header({"k": value(9, struct.pack("<IQ", 9, 44_000_000))}), "an array of arrays", 1),
        (header({"k": value(9, struct.pack("<IQ", 8, 64_000_000))}), "too many strings: an array of 64000000", 1),
        (header({"k": value(9, struct.pack("<IQ", 8, (1 << 21) + 1))}), "too many strings", 1),
        (header({"k": strings([""] * 1000), "l": value(9, struct.pack("<IQ", 8, (1 << 21) - 999))}), "many strings", 1),
        (header({f"k{i}": ARRAY_OF_4096 for i in range(200)}), "values that are too large", 1),
        (header({f"k{i}": string("\U0001f600" + "a" * 65_000) for i in range(100)}), "values that are too large", 17),
        (header({f"k{i}{'y' * 60_000}": u32(1) for i in range(100)}), "too many keys", 17),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 65_000), "it claims 65000 keys", 1),
        (header({}, tensors=65_536), "it claims 65536 tensors", 1),
    ],
    ids=["empty arrays", "empty strings", "one string too many", "two arrays", "4096 numbers", "texts", "long keys",
         "keys", "tensors"],
)  # fmt: skip
def test_a_header_that_would_cost_much_is_refused_early(data: bytes, words: str, most: int, tmp_path: Path) -> None:
    """`most`: quarters of a MiB that are read of 512 MiB."""
    (tmp_path / "m.gguf").write_bytes(data)
    os.truncate(tmp_path / "m.gguf", 512 << 20)
    with Counted(tmp_path / "m.gguf") as file, pytest.raises(GgufError, match=words):
        read_part(cast(BinaryIO, file), 512 << 20, Budget())
    assert file.taken <= most << 18


def test_strings_that_lie_far_apart_are_not_read_for_ever(tmp_path: Path) -> None:
    """Each is stepped over, and its length costs a piece of the file."""
    far = text(b"x" * 300_000)
    budget = Budget()
    budget.read = 40 << 18
    (tmp_path / "m.gguf").write_bytes(header({"k": value(9, struct.pack("<IQ", 8, 50) + 50 * far)}))
    with Counted(tmp_path / "m.gguf") as file, pytest.raises(GgufError, match="its header is too large"):
        read_part(cast(BinaryIO, file), 512 << 20, budget)
    assert file.taken == 40 << 18


def test_the_largest_vocabularies_are_a_part_of_the_budget(tmp_path: Path) -> None:
    """262144 tokens, their scores and types, 514906 merges, a long template, numbers of 200 layers."""
    file = tmp_path / "m.gguf"
    words = struct.pack("<IQ", 8, 262_144) + b"".join(text(b"%d" % i) for i in range(262_144))
    merges = struct.pack("<IQ", 8, 514_906) + text(b"a b") * 514_906
    more = {"tokens": value(9, words), "merges": value(9, merges), "types": numbers(range(262_144)),
            "template": string("t" * 60_000)} | {f"llama.{i}": numbers(range(200)) for i in range(20)}  # fmt: skip
    file.write_bytes(model("llama", **more))
    budget = Budget()
    with open_file(file) as opened:
        found = Reader(opened, file.stat().st_size, budget).header()
    assert found.skipped == {"tokens": 262_144, "merges": 514_906, "types": 262_144}
    whole = Budget()
    assert (whole.strings - budget.strings) / whole.strings < 0.4
    assert (whole.kept - budget.kept) / whole.kept < 0.1
    assert (whole.read - budget.read) / whole.read < 0.1


def test_no_damage_does_more_than_refuse(tmp_path: Path) -> None:
    whole = model("llama", 8, tokens=strings(WORDS[:200]), types=numbers(range(50)), name=string("n" * 50))
    chance = random.Random(7)
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(GgufError):  # any other exception fails the test
            assert read(tmp_path, bytes(data[: chance.randint(1, len(data))])).version in (2, 3)


def test_neither_a_fifo_nor_a_missing_file_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises((GgufError, OSError)):
        read_header(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "missing")
