"""The maker of hello models: files that a GGUF reader accepts, the same for the same arguments."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from tests.models import MAKER, SHORT_REPLY, make_model


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(MAKER), *arguments], capture_output=True, text=True, timeout=60)


def value(reader: gguf.GGUFReader, key: str) -> object:
    return reader.get_field(key).contents()


def test_chat_model_is_small_quick_and_repeatable(tmp_path: Path) -> None:
    start = time.monotonic()
    done = run(str(tmp_path / "a" / "hello.gguf"))
    seconds = time.monotonic() - start
    assert done.stdout.split() == [str(tmp_path / "a" / "hello.gguf")]
    run(str(tmp_path / "b" / "hello.gguf"))
    one, two = (tmp_path / d / "hello.gguf" for d in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert one.stat().st_size < 1_000_000
    assert seconds < 20  # about 0.3 s; a machine under load may take long
    reader = gguf.GGUFReader(one)
    assert value(reader, "general.architecture") == "llama"
    assert value(reader, "general.name") == "hello"
    assert value(reader, "llama.context_length") == 8192
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == len(set(tokens))


@pytest.mark.parametrize("kind", ["embed", "rerank"])
def test_encoders(kind: str, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(make_model(tmp_path, kind=kind, ctx=128))
    assert value(reader, "general.architecture") == "bert"
    assert value(reader, "bert.context_length") == 128
    names = {tensor.name for tensor in reader.tensors}
    assert ("cls.weight" in names) == (kind == "rerank")


@pytest.mark.parametrize("megabytes", [5, 60])
@pytest.mark.parametrize("kind", ["chat", "embed"])
def test_size(kind: str, megabytes: int, tmp_path: Path) -> None:
    size = make_model(tmp_path, kind=kind, size_mb=megabytes).stat().st_size
    assert 0.9 < size / (megabytes * 1e6) < 1.1


def test_shards(tmp_path: Path) -> None:
    first = make_model(tmp_path, split=3)
    shards = sorted(first.parent.iterdir())
    assert [shard.name for shard in shards] == [f"chat-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert first == shards[0]
    readers = [gguf.GGUFReader(shard) for shard in shards]
    assert [value(reader, "split.no") for reader in readers] == [0, 1, 2]
    whole = gguf.GGUFReader(make_model(tmp_path))
    assert sum(len(reader.tensors) for reader in readers) == len(whole.tensors)


@pytest.mark.parametrize(
    "reply",
    ["no", "a a a a a a", "the the the", "ab", "naïve café ☕ über", "  spaces  \n\n lines\n", "1 2 3 1 2 3", "!!"],
)
def test_any_reply_is_cut_into_tokens_that_are_new_and_join_to_it(reply: str, tmp_path: Path) -> None:
    path = make_model(tmp_path, reply=reply)
    tokens = value(gguf.GGUFReader(path), "tokenizer.ggml.tokens")
    assert len(tokens) == len(set(tokens))
    letters = {char: byte for byte, char in enumerate(tokens[:256])}
    said = b""
    for token in tokens[256 + 2 + 7 :]:
        said += bytes(letters[char] for char in token)
        if said == reply.encode():
            break
    assert said == reply.encode()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.gguf", "--reply", "a"], "at least two characters"),
        (["x.gguf", "--reply-tokens", "0"], "between 1 and 4000"),
        (["x.gguf", "--tool-call", "{"], "not JSON"),
        (["x.bin"], "must end in .gguf"),
        (["/proc/no/x.gguf"], "cannot write the model"),
        (["x.gguf", "--split", "1000"], "cannot be cut"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_make_model_makes_each_model_once(tmp_path: Path) -> None:
    first = make_model(tmp_path, reply=SHORT_REPLY)
    stamp = first.stat().st_mtime_ns
    assert make_model(tmp_path, reply=SHORT_REPLY) == first
    assert first.stat().st_mtime_ns == stamp
    assert make_model(tmp_path, reply="another one") != first
    with pytest.raises(RuntimeError, match="at least two characters"):
        make_model(tmp_path, reply="x")
