"""What a file is, told from its beginning: tasks, projectors, and everything else that people name as a model."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from accelerd.estimate.model_kind import Identified, Kind, Modality, identify
from tests.memory.gguf_maker import Listed, flag, header, string, strings, u32, write

WEIGHTS: Listed = {"token_embd.weight": ((256, 64), 0), "blk.0.attn_q.weight": ((256, 256), 0)}
TEMPLATE = {"tokenizer.chat_template": string("{{ messages }}")}


def made(folder: Path, architecture: str = "qwen3", tensors: Listed = WEIGHTS, /, **more: bytes) -> Identified:
    """What a file with that header is. `_` and `__` in a key stand for "." and "_"."""
    pairs = {"general.architecture": string(architecture)} if architecture else {}
    pairs |= {key.replace("__", "\0").replace("_", ".").replace("\0", "_"): data for key, data in more.items()}
    return identify(write(folder / "file.gguf", pairs, tensors))


@pytest.mark.parametrize(
    ("architecture", "more", "kind"),
    [
        ("llama", TEMPLATE, Kind.CHAT),
        ("gemma3", {"tokenizer.chat_template": string("x" * 70000)}, Kind.CHAT),  # too long to be kept
        ("starcoder2", {}, Kind.COMPLETION),
        ("bert", {"bert.pooling_type": u32(1)}, Kind.EMBEDDING),
        ("nomic-bert", {}, Kind.EMBEDDING),
        ("qwen3", {"qwen3.pooling_type": u32(3), **TEMPLATE}, Kind.EMBEDDING),  # Qwen3-Embedding keeps a chat template
        ("qwen2", {"qwen2.pooling_type": u32(0), **TEMPLATE}, Kind.CHAT),
        ("bert", {"bert.pooling_type": u32(4)}, Kind.RERANK),
        ("qwen3", {"qwen3.pooling_type": u32(4), **TEMPLATE}, Kind.RERANK),
    ],
)
def test_the_task_comes_from_the_header(tmp_path: Path, architecture: str, more: dict[str, bytes], kind: Kind) -> None:
    found = identify(write(tmp_path / "m.gguf", {"general.architecture": string(architecture), **more}, WEIGHTS))
    assert found.kind is kind
    assert found.runs
    assert not found.reason


@pytest.mark.parametrize("tensor", ["cls.weight", "cls.output.weight"])
def test_a_model_with_a_classifier_reranks(tmp_path: Path, tensor: str) -> None:
    assert made(tmp_path, "bert", {**WEIGHTS, tensor: ((256, 1), 0)}).kind is Kind.RERANK


@pytest.mark.parametrize("name", ["Qwen3 0.6B", "Großes Modell", "日本語モデル", " padded "])
def test_the_name_is_that_of_the_header(tmp_path: Path, name: str) -> None:
    assert made(tmp_path, general_name=string(name)).name == name.strip()
    assert made(tmp_path).name == ""


@pytest.mark.parametrize(
    ("flags", "modalities"),
    [
        ({"vision": True}, (Modality.VISION,)),
        ({"audio": True, "vision": False}, (Modality.AUDIO,)),
        ({"audio": True, "vision": True}, (Modality.VISION, Modality.AUDIO)),
        ({}, (Modality.VISION,)),  # the first projectors said nothing
    ],
)
def test_projectors_say_what_they_take(
    tmp_path: Path, flags: dict[str, bool], modalities: tuple[Modality, ...]
) -> None:
    pairs = {"general.architecture": string("clip")}
    pairs |= {f"clip.has_{one}_encoder": flag(value) for one, value in flags.items()}
    found = identify(write(tmp_path / "unlucky name.gguf", pairs, {"v.patch_embd.weight": ((32, 32), 0)}))
    assert (found.kind, found.modalities) == (Kind.PROJECTOR, modalities)
    assert not found.runs
    assert "projector" in found.reason
    assert found.hint


REFUSED = [
    ({"general.type": string("adapter"), "adapter.type": string("lora")}, "llama", WEIGHTS, "LoRA"),
    ({"adapter.type": string("lora")}, "qwen3", WEIGHTS, "LoRA"),
    ({"general.type": string("imatrix")}, "", WEIGHTS, "importance matrix"),
    ({}, "controlvector", {"direction.1": ((64,), 0)}, "control vector"),
    ({}, "flux", {"double_blocks.0.img_attn.qkv.weight": ((64, 64), 0)}, "images or video"),
    ({}, "", {"model.diffusion_model.input_blocks.0.0.weight": ((64, 64), 0)}, "images or video"),
    ({}, "wan", {"blocks.0.self_attn.q.weight": ((64, 64), 0)}, "images or video"),
    ({}, "dream", WEIGHTS, "diffusion language model"),
    ({}, "whisper", {"encoder.conv1.weight": ((64, 64), 0)}, "Whisper"),
    ({}, "wavtokenizer-dec", WEIGHTS, "speech"),
    ({}, "eagle3", {"fc.weight": ((64, 64), 0)}, "drafts"),
    ({"tokenizer.ggml.tokens": strings(["a", "b"])}, "llama", {}, "vocabulary"),
    ({}, "", WEIGHTS, "general.architecture"),
    ({}, "resnet", {"conv1.weight": ((64, 64), 0)}, "no language model (architecture resnet)"),
    ({"split.no": u32(2), "split.count": u32(3)}, "llama", WEIGHTS, "in 3 files"),
]


@pytest.mark.parametrize(("pairs", "architecture", "tensors", "words"), REFUSED, ids=[row[3] for row in REFUSED])
def test_what_is_no_model_is_called_what_it_is(
    tmp_path: Path, pairs: dict[str, bytes], architecture: str, tensors: Listed, words: str
) -> None:
    named = {"general.architecture": string(architecture)} if architecture else {}
    found = identify(write(tmp_path / "model.gguf", {**named, **pairs}, tensors))
    assert found.kind is Kind.NOT_A_MODEL
    assert not found.runs
    assert words in found.reason
    assert found.hint


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return file.getvalue()


SAFETENSORS = b'{"weight":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'
FOREIGN = [
    (b"", "empty"),
    (b"GG", "ends within its header"),
    (b"GGUF\3\0\0\0", "ends within its header"),
    (struct.pack("<I", 0x67676D6C) + b"\0" * 40, "whisper.cpp"),
    (struct.pack("<I", 0x67676A74) + b"\1\0\0\0", "ggjt"),
    (struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + b"\0\0", "safetensors"),
    (zipped(), "zip archive"),
    (pickle.dumps({"a": 1}, protocol=2), "pickle"),
    (pickle.dumps({"a": 1}), "pickle"),
    (b"<!DOCTYPE html><title>Sign in</title>", "web page"),
    (b"\n <html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
    (b'{"error":"Invalid username or password."}', "JSON"),
    (b"\0" * 9000, "begins with zeros"),
    (b"MZ\x90\0" + b"x" * 100, "not a GGUF file"),
    (header({}, version=0x03000000), "big-endian"),
    (header({}, version=9), "version 9"),
]


@pytest.mark.parametrize(("data", "words"), FOREIGN, ids=[row[1] for row in FOREIGN])
def test_other_formats_are_called_by_their_names(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    found = identify(path)
    assert found.kind is Kind.NOT_A_MODEL
    assert words in found.reason
    assert found.hint


@pytest.mark.parametrize("missing", [1, 4096, 300_000])
def test_a_truncated_file_is_not_taken(tmp_path: Path, missing: int) -> None:
    path = write(tmp_path / "m.gguf", {"general.architecture": string("llama"), **TEMPLATE}, WEIGHTS)
    os.truncate(path, path.stat().st_size - missing)
    found = identify(path)
    assert found.kind is Kind.NOT_A_MODEL
    assert "the file ends within its weights" in found.reason
    assert "download it again" in found.hint


def shards(folder: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        pairs = {"general.architecture": string("llama"), "split.no": u32(number), "split.count": u32(count)}
        tensors: Listed = {f"blk.{number}.w": ((64, 64), 0)} | (
            {"token_embd.weight": ((64, 64), 0)} if not number else {}
        )
        made.append(write(folder / f"big-{number + 1:05d}-of-{count:05d}.gguf", pairs | TEMPLATE, tensors))
    return made


def test_a_model_in_several_files_is_named_by_its_first(tmp_path: Path) -> None:
    files = shards(tmp_path, 3)
    assert identify(files[0]).kind is Kind.CHAT
    found = identify(files[2])
    assert found.kind is Kind.NOT_A_MODEL
    assert "part 3 of 3" in found.reason
    assert found.first == files[0]
    assert files[0].name in found.hint


def test_missing_and_truncated_parts_are_noticed(tmp_path: Path) -> None:
    files = shards(tmp_path, 7)
    os.truncate(files[4], files[4].stat().st_size - 100)
    assert "ends within its weights" in identify(files[0]).reason
    for file in files[2:]:
        file.unlink()
    reason = identify(files[0]).reason
    assert files[2].name in reason
    assert files[1].name not in reason
    assert "and 1 more" in reason


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf"):
        assert not identify(path).runs
    assert "No such file" in identify(tmp_path / "nothing.gguf").reason
