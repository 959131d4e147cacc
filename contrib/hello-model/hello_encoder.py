"""The encoder models (BERT): `embed` for /v1/embeddings, `rerank` for /v1/rerank.

The embedding of a text is the mean of its letters' random vectors: texts with the same letters are near each other, and
order does not matter. The reranker mixes the letters into the first token and scores it with a random head: scores are
repeatable and differ between documents, but mean nothing.
"""

from __future__ import annotations

import gguf
import numpy as np
from hello_file import HelloFile

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VISIBLE = [chr(c) for c in range(0x21, 0x7F)]


def fill(file: HelloFile, *, rerank: bool, size: int) -> None:
    """Puts the whole encoder into `file`; `size` in bytes is reached from below where it is larger than needed."""
    tokens = [*SPECIAL, *("▁" + c for c in VISIBLE), *VISIBLE]  # a letter at the start of a word, and inside one
    tokens += [f"[unused{i}]" for i in range(-len(tokens) % 32)]
    rng = np.random.default_rng(2)
    width = 64 if size < 8e6 else 384
    count = 2 if size < 8e6 else 6
    room = size - 2 * width * (len(tokens) + 2 * file.context)
    hidden = max(int((room / 2 / count - 4 * width * width) / (2 * width)) // 32 * 32, 2 * width)

    meta = file.meta
    meta.add_embedding_length(width)
    meta.add_block_count(count)
    meta.add_feed_forward_length(hidden)
    meta.add_head_count(width // 32)
    meta.add_layer_norm_eps(1e-12)
    meta.add_causal_attention(False)
    meta.add_pooling_type(gguf.PoolingType.RANK if rerank else gguf.PoolingType.MEAN)
    meta.add_tokenizer_model("bert")
    meta.add_tokenizer_pre("default")
    meta.add_token_list(tokens)
    meta.add_token_types(
        [gguf.TokenType.CONTROL if t.startswith("[") and len(t) > 2 else gguf.TokenType.NORMAL for t in tokens]
    )
    meta.add_token_type_count(2)
    meta.add_pad_token_id(0)
    meta.add_unk_token_id(1)
    meta.add_bos_token_id(2)
    meta.add_eos_token_id(3)
    meta.add_sep_token_id(3)
    meta.add_mask_token_id(4)

    letters = rng.standard_normal((len(VISIBLE), width))
    rest = rng.standard_normal((len(tokens) - 2 * len(VISIBLE), width)) * 0.01  # [CLS] and the like weigh nothing
    file.matrix("token_embd.weight", np.concatenate([rest[:5], letters, letters, rest[5:]]))
    file.vector("token_types.weight", np.zeros((2, width)))
    file.vector("position_embd.weight", np.zeros((file.context, width)))
    file.norm("token_embd_norm", width, bias=True)

    square = np.resize(rng.standard_normal((64, width)) / np.sqrt(width), (width, width))
    wide = np.resize(rng.standard_normal((64, width)) / np.sqrt(width), (hidden, width))
    mixed = square if rerank else np.zeros_like(square)
    for i in range(count):
        for part in ("attn_q", "attn_k", "attn_v"):
            linear(file, f"blk.{i}.{part}", square)
        linear(file, f"blk.{i}.attn_output", mixed)
        linear(file, f"blk.{i}.ffn_up", wide)
        linear(file, f"blk.{i}.ffn_down", np.zeros((width, hidden)))
        file.norm(f"blk.{i}.attn_output_norm", width, bias=True)
        file.norm(f"blk.{i}.layer_output_norm", width, bias=True)
    if rerank:
        for name, shape in (("cls", (width, width)), ("cls.output", (1, width))):
            file.vector(f"{name}.weight", rng.standard_normal(shape) / np.sqrt(width))
            file.vector(f"{name}.bias", np.zeros(shape[0]))


def linear(file: HelloFile, name: str, weight: np.ndarray) -> None:
    file.matrix(f"{name}.weight", weight)
    file.vector(f"{name}.bias", np.zeros(weight.shape[0]))
