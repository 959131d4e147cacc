"""What decides about a model's memory, out of its header: layers and their kinds, heads, windows, states, experts.

Where header and tensors say the same, the tensors are believed. What only an architecture's name tells is in the tables
here. Pure: never fails, whatever a header claims; what is missing counts 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from accelerd.estimate.tensors import LARGEST, GgufModel, Tensor, layer_of

MOST_LAYERS: Final = 2048

# No cache: a whole input is computed at once.
ENCODERS: Final = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "dream", "llada", "llada-moe", "rnd1", "t5encoder", "llama-embed",
})  # fmt: skip
# Their layers have a sliding window but for one of n: the first (True) or the last. A header may say otherwise.
WINDOWS: Final[Mapping[str, tuple[int, bool]]] = {
    "afmoe": (4, False), "cohere2": (4, False), "cohere2moe": (4, True), "exaone-moe": (4, False),
    "exaone4": (4, False), "gemma-embedding": (6, False), "gemma2": (2, False), "gemma3": (6, False),
    "gemma3n": (5, False), "gemma4": (6, False), "gpt-oss": (2, False), "granite-swa": (4, False),
    "laguna": (4, True), "lfm2": (0, False), "llama4": (4, False), "maple": (4, False), "mellum": (4, False),
    "mimo2": (0, False), "modern-bert": (3, True), "muse-glimmer": (4, False), "olmo2": (4, False),
    "plamo3": (8, False), "smallthinker": (4, True), "spark2-5": (4, False), "step35": (4, False),
}  # fmt: skip
WINDOW_ANYWAY: Final = {"llama4": 8192, "gpt-oss": 128, "smallthinker": 4096, "gemma2": 4096, "cohere2": 4096}
# A layer whose state is of one size whatever the context.
RECURRENT: Final = re.compile(r"ssm_|time_mix_|shortcon|channel_mix_")
BOTH: Final = frozenset({"falcon-h1"})  # attention and state in every layer
NO_FLASH: Final = frozenset({"grok"})
# Layers that only draft tokens are not loaded.
SKIPS_DRAFT_LAYERS: Final = frozenset({
    "bailingmoe2", "cohere2moe", "deepseek2", "deepseek32", "exaone-moe", "glm-dsa", "glm4", "glm4moe", "hy-v3",
    "kimi-linear", "mimo2", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next", "step35",
})  # fmt: skip
# States are kept for each token that is drafted, to go back to.
ROLLS_BACK: Final = frozenset({
    "bailingmoe3", "deepseek4", "glm5-next", "kimi-k3", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe", "qwen35",
    "qwen35moe", "qwen4exp",
})  # fmt: skip
# The embedding is read into memory twice where the file is not mapped, as it is the head as well.
TWICE: Final = frozenset({"gemma4"})


@dataclass(frozen=True)
class ModelLayer:
    """One layer. Its tensors by the part of their name behind "blk.N."."""

    index: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    attends: bool  # it has keys and values
    state: bool  # it has a state of fixed size
    window: bool
    heads: int
    kv_heads: int
    key: int  # numbers of one head's key
    value: int

    def has(self, *names: str) -> bool:
        """Any of those weights?"""
        return any(f"{name}.weight" in self.tensors for name in names)

    def out(self, *names: str) -> int:
        """Numbers that come out of the first of those weights that is there; 0: none is."""
        for name in names:
            if (found := self.tensors.get(f"{name}.weight")) is not None and len(found.shape) > 1:
                return found.shape[1]
        return 0

    @property
    def experts(self) -> int:
        return sum(tensor.size for name, tensor in self.tensors.items() if "_exps." in name)

    @property
    def largest(self) -> int:
        return max((tensor.size for tensor in self.tensors.values()), default=0)


@dataclass(frozen=True)
class ModelFacts:
    """A model as far as its memory depends on it. Figures are counts of values or tokens unless they say bytes."""

    architecture: str
    width: int  # numbers of one token between layers
    vocabulary: int
    trained: int  # context
    layers: tuple[ModelLayer, ...]
    drafting: tuple[ModelLayer, ...]  # that only draft tokens
    outside: Mapping[str, Tensor] = field(repr=False)  # tensors of no layer
    encoder: bool
    causal: bool
    pooling: int  # 0 none, 1 mean, 2 first, 3 last, 4 rank; -1: not said
    window: int  # tokens; 0: none
    rank: int  # of compressed keys and values that are kept instead of them; 0: they are not
    key_full: int  # of a head whose keys are compressed, unpacked
    shared_from: int  # layers from here on use the keys of earlier ones; -1: none
    indexer: int  # numbers of a key that only chooses tokens; 0: none
    experts: int
    used: int  # experts for a token
    convolution: int  # of states: tokens looked back at, with its own
    inner: int
    state: int
    state_groups: int
    wkv: int  # size of a head of a time mix
    shifts: int
    short: int  # tokens of a short convolution

    @property
    def row_state(self) -> tuple[int, int]:
        """Numbers of one sequence's state in one layer: what was seen last, and the state itself."""
        if self.wkv:
            return self.shifts * self.width, self.width * self.wkv
        if self.short:
            return self.width * (self.short - 1), 0
        seen = max(0, self.convolution - 1) * (self.inner + 2 * self.state_groups * self.state)
        return seen, self.state * self.inner


def facts(model: GgufModel) -> ModelFacts:
    name = model.architecture
    by_layer: dict[int, dict[str, Tensor]] = {}
    outside: dict[str, Tensor] = {}
    for full, tensor in model.tensors.items():
        place = layer_of(full)
        if place is not None and place[0] < MOST_LAYERS:
            by_layer.setdefault(place[0], {})[place[1]] = tensor
        else:
            outside[full] = tensor
    count = min(model.number("block_count") or max(by_layer, default=-1) + 1, MOST_LAYERS)
    drafting = min(model.number("nextn_predict_layers"), count)
    window, windowed = _windows(model, count - drafting)
    mla = bool(model.number("attention.key_length_mla") and model.number("attention.value_length_mla"))
    layers = [_layer(model, i, by_layer.get(i, {}), i < len(windowed) and windowed[i], mla) for i in range(count)]
    shared = model.number("attention.shared_kv_layers")
    return ModelFacts(
        architecture=name,
        width=model.number("embedding_length"),
        vocabulary=min(model.vocabulary, LARGEST),
        trained=model.number("context_length"),
        layers=tuple(layers[: count - drafting]),
        drafting=tuple(layers[count - drafting :]),
        outside=outside,
        encoder=name in ENCODERS,
        causal=model.header.of_architecture("attention.causal") is not False,
        pooling=model.of_layer("pooling_type", 0, -1),
        window=window if any(windowed) else 0,
        rank=model.number("attention.kv_lora_rank") if mla else 0,
        key_full=model.number("attention.key_length_mla") or model.number("attention.key_length"),
        shared_from=20 if name == "gemma3n" else count - shared if shared else -1,
        indexer=model.number("attention.indexer.key_length"),
        experts=model.number("expert_count"),
        used=model.number("expert_used_count"),
        convolution=model.number("ssm.conv_kernel"),
        inner=model.number("ssm.inner_size"),
        state=model.number("ssm.state_size"),
        state_groups=model.number("ssm.group_count"),
        wkv=model.number("wkv.head_size"),
        shifts=model.number("token_shift_count", 2),
        short=model.number("shortconv.l_cache"),
    )


def _windows(model: GgufModel, count: int) -> tuple[int, list[bool]]:
    """Tokens of the window, and which layers have it."""
    name = model.architecture
    window = model.number("attention.sliding_window") or (WINDOW_ANYWAY.get(name, 0) if name != "smallthinker" else 0)
    if name not in WINDOWS or not window:
        return 0, []
    every, first = WINDOWS[name]
    said = model.header.of_architecture("attention.sliding_window_pattern")
    if isinstance(said, tuple):
        return window, [bool(said[i]) if i < len(said) else False for i in range(count)]
    if isinstance(said, int) and not isinstance(said, bool) and said >= 0:
        every = said
    if every == 0:
        return window, [True] * count
    return window, [(i % every != 0) if first else (i % every < every - 1) for i in range(count)]


def _layer(model: GgufModel, index: int, tensors: Mapping[str, Tensor], window: bool, mla: bool) -> ModelLayer:
    name = model.architecture
    width = model.number("embedding_length")
    heads = model.of_layer("attention.head_count", index, 0)
    kv_heads = model.of_layer("attention.head_count_kv", index, heads)
    usual = width // heads if heads else width // max(1, model.number("attention.head_count"))
    key, value = model.number("attention.key_length", usual), model.number("attention.value_length", usual)
    if window:
        key = model.number("attention.key_length_swa", key)
        value = model.number("attention.value_length_swa", value)
    state = any(RECURRENT.match(one) for one in tensors)
    attention = any(one.startswith("attn_") and not one.startswith(("attn_norm", "attn_gate")) for one in tensors)
    attends = attention and (not state or name in BOTH)
    if attends and kv_heads:
        kv_heads = 1 if mla else kv_heads
    return ModelLayer(index, tensors, attends, state, window, heads, kv_heads, key, value)
