"""Headers of made-up models, for tests that need no file: a plain transformer and what can be changed of it."""

from __future__ import annotations

from typing import Any

from accelerd.estimate.estimate import EstimateSettings, MemoryShare, estimate
from accelerd.estimate.gguf import Header
from accelerd.estimate.tensors import TYPES, GgufModel, Tensor

MIB = 1 << 20
NUMBERS = {name: number for number, (name, _, _) in TYPES.items()}


def tensor(*shape: int, type: str = "f16") -> Tensor:
    elements = 1
    for length in shape:
        elements *= length
    _, block, size = TYPES[NUMBERS[type]]
    return Tensor(shape, type, elements // block * size)


def animal(
    architecture: str = "llama",
    *,
    layers: int = 4,
    width: int = 512,
    heads: int = 8,
    kv_heads: int = 2,
    head: int = 64,
    inner: int = 1024,
    vocabulary: int = 32000,
    experts: int = 0,
    tied: bool = False,
    **values: Any,
) -> GgufModel:
    """A model of `layers` alike. Further values are keys of the architecture, dots written as two underscores."""
    said: dict[str, Any] = {
        "block_count": layers, "embedding_length": width, "attention.head_count": heads,
        "attention.head_count_kv": kv_heads, "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": head, "context_length": 131072, "feed_forward_length": inner,
    }  # fmt: skip
    if experts:
        said |= {"expert_count": experts, "expert_used_count": 2}
    said |= {key.replace("__", "."): value for key, value in values.items()}
    tensors = {"token_embd.weight": tensor(width, vocabulary), "output_norm.weight": tensor(width, type="f32")}
    if not tied:
        tensors["output.weight"] = tensor(width, vocabulary)
    for index in range(layers):
        at = f"blk.{index}."
        tensors |= {f"{at}{name}.weight": tensor(width, type="f32") for name in ("attn_norm", "ffn_norm")}
        tensors[f"{at}attn_q.weight"] = tensor(width, heads * head)
        tensors[f"{at}attn_k.weight"] = tensor(width, kv_heads * head)
        tensors[f"{at}attn_v.weight"] = tensor(width, kv_heads * head)
        tensors[f"{at}attn_output.weight"] = tensor(heads * head, width)
        if experts:
            tensors[f"{at}ffn_gate_inp.weight"] = tensor(width, experts, type="f32")
            for name, shape in (("gate", (width, inner)), ("up", (width, inner)), ("down", (inner, width))):
                tensors[f"{at}ffn_{name}_exps.weight"] = tensor(*shape, experts)
        else:
            for name, shape in (("gate", (width, inner)), ("up", (width, inner)), ("down", (inner, width))):
                tensors[f"{at}ffn_{name}.weight"] = tensor(*shape)
    header = Header(3, len(tensors), {"general.architecture": architecture,
                                      **{f"{architecture}.{key}": value for key, value in said.items()}},
                    {"tokenizer.ggml.tokens": vocabulary})  # fmt: skip
    return GgufModel(header, tensors, ("animal.gguf",))


def alone(model: GgufModel, settings: EstimateSettings | None = None) -> MemoryShare:
    """The model with all of it in main memory."""
    return estimate(model, settings or EstimateSettings()).placed(())[0]
