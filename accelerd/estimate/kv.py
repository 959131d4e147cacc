"""Bytes that a model keeps of what it has read: keys and values by the kind of layer, and states of fixed size. Pure.

How many cells a cache has for a context, slots and a window is llama.cpp's rule, padding and all.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from accelerd.estimate.model_facts import ModelFacts, ModelLayer
from accelerd.estimate.tensors import row_bytes

PAD: Final = 256  # cells
STATE_NUMBER: Final = 4  # bytes; states are always f32


class CacheCells(Struct, frozen=True):
    """What one sequence's caches hold, and how many caches lie side by side."""

    full: int
    window: int
    streams: int
    sequences: int


def padded(count: int) -> int:
    return -(-count // PAD) * PAD


def cells(
    facts: ModelFacts, context: int, slots: int, ubatch: int, *, unified: bool, window_full: bool = False
) -> CacheCells:
    """For a context of all slots together. `unified`: the slots share one cache."""
    each = padded(context) if unified else padded(max(1, padded(context) // slots))
    window = each
    if facts.window and not window_full:
        window = padded(min(each, facts.window * (slots if unified else 1) + ubatch))
    return CacheCells(each, window, 1 if unified else slots, slots)


def layer_bytes(facts: ModelFacts, layer: ModelLayer, cells: CacheCells, type_k: str, type_v: str, widest: int) -> int:
    """What one layer keeps. `widest`: numbers of the largest row of values, where all layers must be alike; else 0."""
    total = 0
    if layer.state:
        total += STATE_NUMBER * sum(facts.row_state) * cells.sequences
    if layer.attends and not facts.encoder and not 0 <= facts.shared_from <= layer.index:
        count = (cells.window if layer.window else cells.full) * cells.streams
        if facts.rank:
            total += row_bytes(type_k, layer.key) * count
        else:
            total += row_bytes(type_k, layer.key * layer.kv_heads) * count
            total += row_bytes(type_v, max(widest, layer.value * layer.kv_heads)) * count
        if facts.indexer and layer.has("indexer.k_proj", "indexer.attn_k"):
            total += row_bytes(type_k, facts.indexer) * count
    return total


def rewind_bytes(facts: ModelFacts, cells: CacheCells, type_k: str, type_v: str) -> int:
    """What is kept to go back to one place in one conversation: windows and states forget, other caches do not."""
    states = STATE_NUMBER * sum(facts.row_state) * sum(layer.state for layer in facts.layers)
    one = CacheCells(0, min(facts.window, cells.window), 1, 0)
    windows = (layer_bytes(facts, layer, one, type_k, type_v, 0) for layer in facts.layers if layer.window)
    return states + sum(windows)


def widest_value(facts: ModelFacts) -> int:
    """Numbers of the largest row of values, which all rows have where values are kept turned."""
    return max((layer.value * layer.kv_heads for layer in facts.layers if layer.attends), default=0)
