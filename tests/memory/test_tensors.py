"""Tensors of all files of a model: their bytes, what belongs together, and what no file may do."""

from __future__ import annotations

import contextlib
import io
import os
import random
from pathlib import Path

import gguf
import pytest

from accelerd.estimate.gguf import Budget, GgufError
from accelerd.estimate.tensors import TYPES, ModelReader, Tensor, identity, read_model, read_part, row_bytes
from tests.memory import zoo
from tests.memory.gguf_maker import file_of, string, strings, u32, value, write
from tests.models import make_model

KEYS = {"general.architecture": string("llama"), "llama.block_count": u32(1)}
SOME = {"token_embd.weight": ((256, 100), 12), "blk.0.ffn_up.weight": ((256, 32), 8), "output.weight": ((64,), 0)}


def test_every_type_of_the_format_has_its_size() -> None:
    known = {number: (block, size) for number, (_, block, size) in TYPES.items()}
    listed = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items() if kind.name != "Q8_1"}  # never in a file
    assert listed.items() <= known.items()
    assert [row_bytes("q8_0", 64), row_bytes("q8_0", 65), row_bytes("f16", 3), row_bytes("who knows", 2)] == [
        68, 102, 6, 8,
    ]  # fmt: skip


def test_tensors_with_their_bytes(tmp_path: Path) -> None:
    model = read_model(write(tmp_path / "m.gguf", KEYS, SOME))
    assert model.tensors == {
        "token_embd.weight": Tensor((256, 100), "q4_k", 14400),
        "blk.0.ffn_up.weight": Tensor((256, 32), "q8_0", 8704),
        "output.weight": Tensor((64,), "f32", 256),
    }
    assert (model.weights, model.vocabulary, model.architecture) == (14400 + 8704 + 256, 100, "llama")


def test_a_type_that_nobody_knows_is_as_large_as_its_place(tmp_path: Path) -> None:
    listed = {"a": ((640,), 99), "b": ((8,), 0), "c": ((640,), 77)}
    model = read_model(write(tmp_path / "m.gguf", KEYS, listed, {"a": 4096, "c": 320}))
    assert [(one.type, one.size) for one in model.tensors.values()] == [
        ("type 99", 4096),
        ("f32", 32),
        ("type 77", 320),
    ]


def test_a_real_model_has_the_bytes_that_its_maker_says(tmp_path: Path) -> None:
    made = zoo.make("shards", tmp_path)
    model = read_model(made.path)
    assert len(model.files) == len(made.paths) == 3
    assert model.weights == made.tensor_bytes
    assert read_model(make_model(tmp_path)).weights > 100_000


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    split = {**KEYS, "split.count": value(2, b"\2\0")}
    first = write(tmp_path / "m-00001-of-00002.gguf", split, {"a": ((8,), 0)})
    with pytest.raises(FileNotFoundError):
        read_model(first)
    second = write(tmp_path / "m-00002-of-00002.gguf", split, {"a": ((8,), 0)})
    with pytest.raises(GgufError, match="a is in more than one of its files"):
        read_model(first)
    write(second, split, {"b": ((8,), 0)})
    assert set(read_model(first).tensors) == {"a", "b"}
    os.rename(first, tmp_path / "alone.gguf")
    with pytest.raises(GgufError, match="part of a model in 2 files"):
        read_model(tmp_path / "alone.gguf")


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ({"a": ((1 << 30, 1 << 30), 0)}, "elements"),
        ({"a": ((1, 1, 1, 1, 1), 0)}, "dimensions"),
        ({"n" * 300: ((1,), 0)}, "name of 300 bytes"),
        ({"a": ((1 << 20,), 0)}, "ends within its weights"),
    ],
)
def test_what_cannot_be_is_refused(listed: dict[str, tuple[tuple[int, ...], int]], words: str) -> None:
    data, _ = file_of(KEYS, listed)
    with pytest.raises(GgufError, match=words):
        read_part(io.BytesIO(data), len(data) + 100, Budget())


def test_too_many_tensors_and_an_odd_alignment_are_refused() -> None:
    data = b"GGUF" + (3).to_bytes(4, "little") + (1 << 19).to_bytes(8, "little") + bytes(8)
    with pytest.raises(GgufError, match="it claims 524288 tensors"):
        read_part(io.BytesIO(data), 1 << 30, Budget())
    data, size = file_of({**KEYS, "general.alignment": u32(0)}, SOME)
    with pytest.raises(GgufError, match="alignment is 0"):
        read_part(io.BytesIO(data), size, Budget())


def test_the_parts_of_a_model_share_one_budget(tmp_path: Path) -> None:
    """Each of 40 parts is modest, and together they claim more tensors than any model has."""
    listed = {f"{'t' * 200}{i}": ((1,), 0) for i in range(500)}
    names = [f"m-{number:05d}-of-00040.gguf" for number in range(1, 41)]
    for number, name in enumerate(names):
        tensors = {f"{number}{key}": one for key, one in listed.items()}
        write(tmp_path / name, {**KEYS, "split.count": value(2, b"\x28\0")}, tensors)
    data = (tmp_path / names[0]).read_bytes()
    assert len(read_part(io.BytesIO(data), len(data), Budget())[1]) == 500
    with pytest.raises(GgufError, match="it claims 500 tensors: more than"):
        read_model(tmp_path / names[0])


def test_only_the_beginning_of_a_file_is_needed() -> None:
    """What is not downloaded yet can be looked into."""
    data, size = file_of(KEYS, SOME)
    header, tensors = read_part(io.BytesIO(data), size, Budget())
    assert header.architecture == "llama"
    assert len(tensors) == 3


def test_no_damage_does_more_than_refuse() -> None:
    whole, size = file_of({**KEYS, "tokens": strings([f"w{i}" for i in range(300)])}, SOME)
    chance = random.Random(11)
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with contextlib.suppress(GgufError):  # any other exception fails the test
            _, tensors = read_part(io.BytesIO(bytes(data[: chance.randint(1, len(data))])), size, Budget())
            assert all(0 <= tensor.size <= size for tensor in tensors.values())


def test_a_model_is_read_once_as_long_as_its_files_stay(tmp_path: Path) -> None:
    path = str(write(tmp_path / "m.gguf", KEYS, SOME))
    reader = ModelReader(keep=1)
    first, known = reader.read(path), identity(path)
    assert reader.read(path) is first
    write(Path(path), KEYS, {**SOME, "blk.0.more": ((32,), 0)})
    assert identity(path) != known
    assert "blk.0.more" in reader.read(path).tensors
    other = str(write(tmp_path / "other.gguf", KEYS, SOME))
    second = reader.read(path)
    reader.read(other)
    assert reader.read(path) is not second  # only one is kept
