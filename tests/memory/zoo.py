"""A zoo of models that a real llama-server loads, each of another kind, made from nothing in well under a second.

`make(name, folder)` writes one (once for each version of these sources) and says where; tests.memory.zoo_report prints
what llama-server says that each of them takes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType as Type

from tests.memory import zoo_file, zoo_recurrent, zoo_shapes
from tests.memory.zoo_shapes import Shape

SOURCES = (zoo_file, zoo_shapes, zoo_recurrent)


@dataclass(frozen=True)
class Kind:
    """How one animal is made and run."""

    shape: Shape
    options: Mapping[str, Any] = field(default_factory=dict)
    split: int = 1
    contexts: tuple[int, int, int] = (1024, 4096, 16384)
    arguments: tuple[str, ...] = ()  # what the server must be told beside
    draft: str = ""  # another of the zoo that guesses for it
    loads: bool = True  # False: far too big, only its header is of use


BIG = {"d": 4096, "layers": 94, "heads": 64, "kv": 4, "ff": 12288, "experts": 128, "expert_ff": 1536}
BIG_QWEN = {**BIG, "vocab": 151936, "merges": 151387}
EMBEDS = {"contexts": (512, 2048, 8192)}

ZOO: Mapping[str, Kind] = {
    "llama": Kind(zoo_shapes.llama, {"d": 512, "layers": 8, "ff": 1536, "heads": 8, "kv": 8, "type": Type.Q4_0}),
    "llama-gqa": Kind(zoo_shapes.llama),
    "llama-f16": Kind(zoo_shapes.llama, {"d": 512, "layers": 6, "ff": 1408, "heads": 8, "kv": 2, "type": Type.F16}),
    "mixtral": Kind(zoo_shapes.llama, {"d": 768, "layers": 6, "ff": 1024, "heads": 12, "experts": 8}),
    "qwen2": Kind(zoo_shapes.qwen2),
    "qwen3moe": Kind(zoo_shapes.qwen3moe),
    "gemma2": Kind(zoo_shapes.gemma2),
    "gemma3": Kind(zoo_shapes.gemma3),
    "gemma4": Kind(zoo_shapes.gemma4),
    "deepseek2": Kind(zoo_shapes.deepseek2),
    "gpt-oss": Kind(zoo_shapes.gpt_oss),
    "llama4": Kind(zoo_shapes.llama4),
    "mamba": Kind(zoo_recurrent.mamba),
    "mamba2": Kind(zoo_recurrent.mamba2),
    "jamba": Kind(zoo_recurrent.jamba),
    "granitehybrid": Kind(zoo_recurrent.granitehybrid),
    "falcon-h1": Kind(zoo_recurrent.falcon_h1),
    "lfm2": Kind(zoo_recurrent.lfm2),
    "qwen3next": Kind(zoo_recurrent.qwen3next),
    "qwen35moe": Kind(zoo_recurrent.qwen35moe),
    "bert": Kind(zoo_shapes.bert, arguments=("--embeddings",), **EMBEDS),
    "nomic-bert": Kind(zoo_shapes.nomic_bert, arguments=("--embeddings",), **EMBEDS),
    "rerank": Kind(zoo_shapes.bert, {"classifier": True}, arguments=("--rerank",), **EMBEDS),
    "shards": Kind(zoo_shapes.llama, {"d": 768, "layers": 10, "ff": 2048, "heads": 12}, split=3),
    "draft": Kind(zoo_shapes.llama, {"d": 256, "layers": 4, "ff": 768, "heads": 4, "kv": 2}),
    "drafted": Kind(zoo_shapes.llama, draft="draft"),
    "qwen3-235b-a22b": Kind(zoo_shapes.qwen3moe, BIG_QWEN, loads=False),
    "qwen3-235b-a22b-shards": Kind(zoo_shapes.qwen3moe, BIG_QWEN, split=4, loads=False),
}
ADAPTERS: Mapping[str, Kind] = {
    "adapter-0": Kind(zoo_shapes.adapter, {"rank": 16}),
    "adapter-1": Kind(zoo_shapes.adapter, {"rank": 64, "names": ("attn_output", "ffn_down")}),
}
LOADABLE = tuple(name for name, kind in ZOO.items() if kind.loads)


@dataclass(frozen=True)
class Model:
    """One of the zoo as files."""

    name: str
    architecture: str
    paths: tuple[Path, ...]  # all shards
    tensor_bytes: int

    @property
    def path(self) -> Path:
        return self.paths[0]


def make(name: str, folder: Path) -> Model:
    """Written on the first call; safe against other processes that make the same one."""
    kind = {**ZOO, **ADAPTERS}[name]
    content = kind.shape(**kind.options)
    sources = b"".join(Path(str(module.__file__)).read_bytes() for module in SOURCES)
    key = hashlib.sha256(repr((name, kind.options, kind.split)).encode() + sources).hexdigest()[:12]
    place = folder / f"{name}-{key}"
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as work:
            fresh = Path(work) / "new"
            fresh.mkdir()
            zoo_file.write(content, fresh, name, kind.split)
            try:
                os.rename(fresh, place)
            except OSError:
                if not place.is_dir():  # else another process was quicker
                    raise
    return Model(name, content.architecture, tuple(sorted(place.glob("*.gguf"))), content.tensor_bytes)
