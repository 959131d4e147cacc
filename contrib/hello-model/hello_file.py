"""Collects the metadata and tensors of one model and writes them as one GGUF file or several shards.

Knows the GGUF package, nothing of what the tensors mean. Tensors may be shared between layers, so that a model of a
gigabyte costs the memory of one layer.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np


class HelloFile:
    """One model in the making; `meta` is the GGUFWriter whose add_… calls set metadata."""

    def __init__(self, arch: str, name: str, context: int) -> None:
        # The path is given at write time: until then nothing is opened.
        self.meta = gguf.GGUFWriter(None, arch)
        self.context = context
        self.tensors: list[tuple[str, np.ndarray]] = []
        self.meta.add_name(name)
        self.meta.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        self.meta.add_context_length(context)

    def matrix(self, name: str, values: np.ndarray) -> None:
        """A weight, stored as 16 bit floats."""
        self.tensors.append((name, np.ascontiguousarray(values, np.float16)))

    def vector(self, name: str, values: np.ndarray) -> None:
        """A norm, a bias or another small tensor, stored as 32 bit floats."""
        self.tensors.append((name, np.ascontiguousarray(values, np.float32)))

    def norm(self, name: str, width: int, *, bias: bool = False) -> None:
        self.vector(f"{name}.weight", np.ones(width))
        if bias:
            self.vector(f"{name}.bias", np.zeros(width))

    def write(self, path: Path, shards: int = 1) -> list[Path]:
        """Writes the file, or `shards` files beside it; returns their paths in order."""
        if shards < 1 or shards > len(self.tensors):
            raise ValueError(f"a model of {len(self.tensors)} tensors cannot be cut into {shards} shards")
        path.parent.mkdir(parents=True, exist_ok=True)
        per_shard = -(-len(self.tensors) // shards)
        self.meta.split_max_tensors = per_shard if shards > 1 else 0
        if shards > 1 and -(-len(self.tensors) // per_shard) != shards:
            raise ValueError(f"{len(self.tensors)} tensors do not divide into {shards} shards, take fewer")
        for name, values in self.tensors:
            self.meta.add_tensor(name, values)
        self.meta.write_header_to_file(path)
        self.meta.write_kv_data_to_file()
        self.meta.write_tensors_to_file()
        self.meta.close()
        if shards == 1:
            return [path]
        return [path.with_name(f"{path.stem}-{i:05d}-of-{shards:05d}.gguf") for i in range(1, shards + 1)]
