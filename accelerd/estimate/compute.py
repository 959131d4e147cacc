"""Bytes of the buffers a model computes in: one closed form for every architecture, read off the tensors' shapes. Pure.

llama.cpp reuses a buffer from layer to layer, so the widest layer decides. The form was fitted to what llama-server
reports of the models in tests/memory/zoo; docs/memory.md states it and its margin. After the first load a measurement
replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from accelerd.estimate.model_facts import ModelFacts, ModelLayer

MARGIN: Final = 16 << 20  # bytes, on every device that computes layers: what the closed form may be short by
NUMBER: Final = 4  # bytes: results are f32
RESIDUAL: Final = 5  # rows of the model's width beside those of one layer: input, residual, norm, sums
STATE: Final = 5  # rows of the inner width of a Mamba or delta-net layer
TIME_MIX: Final = 15  # rows of the width of an RWKV layer
SHORT: Final = 3  # rows of the width of a short convolution
IN_FLIGHT: Final = 4  # batches that several GPUs compute at once, each with its own inputs
CHOICE: Final = 24  # bytes for each token and each cell of an indexer that chooses cells


class Batch(Struct, frozen=True):
    """What is computed at once, and the KV cells it attends to."""

    tokens: int
    outputs: int  # tokens whose logits are wanted
    cells: int  # of one sequence's cache
    window_cells: int  # of one sequence's cache in layers with a sliding window
    streams: int  # caches side by side
    flash: bool


def buffers(
    facts: ModelFacts,
    batch: Batch,
    devices: Sequence[int],
    output: int,
    moved: Mapping[int, Mapping[int, int]],
    *,
    pipelined: bool,
) -> list[int]:
    """Bytes by device; 0 is main memory. `devices`: of each layer; `output`: of the output matrix.

    `moved`: by device the layers of other devices of which weights lie there, and the bytes of the largest of these.
    `pipelined`: there are several GPUs, which compute batches one behind the other.
    """
    used = sorted({device for device in (*devices, output) if device})
    hosted = moved.get(0, {})
    offloaded = bool(used) and all(devices) and output and not hosted
    copies = IN_FLIGHT - 1 if offloaded and pipelined else 0
    found = []
    for device in range(max([0, output, *devices, *moved]) + 1):
        layers = [layer for layer, where in zip(facts.layers, devices, strict=True)
                  if where == device or layer.index in moved.get(device, {})]  # fmt: skip
        scores = logits(facts, batch.outputs) if device == output else 0
        size = scores
        if layers:
            size = _of_layers(facts, batch, layers, scores, facts.layers if device == 0 else layers) + MARGIN
            size += copies * (2 * NUMBER * batch.tokens * max(facts.width, facts.inner) + _masks(facts, batch, layers))
        elif device == 0:  # tokens are looked up here, and masks made, for the GPUs
            size += (copies + 1) * (2 * NUMBER * batch.tokens * facts.width + _masks(facts, batch, facts.layers))
        found.append(size)
    if used and not offloaded:  # large batches of the layers in main memory are computed on a GPU too
        stay = [layer.largest for layer, where in zip(facts.layers, devices, strict=True) if not where]
        largest = max((*stay, *hosted.values()), default=0)
        everything = _of_layers(facts, batch, facts.layers, logits(facts, batch.outputs), facts.layers) + MARGIN
        found[used[0]] = max(found[used[0]], everything + largest)
    return found


def logits(facts: ModelFacts, tokens: int) -> int:
    """Bytes of the scores of all words of the vocabulary for so many tokens."""
    scores = not facts.encoder or "output.weight" in facts.outside
    return NUMBER * facts.vocabulary * tokens if scores else 0


def _of_layers(
    facts: ModelFacts, batch: Batch, layers: Sequence[ModelLayer], scores: int, masked: Sequence[ModelLayer]
) -> int:
    """Bytes while the widest of these layers is computed, or after them `scores` bytes of logits.

    `masked`: layers whose masks lie here; main memory has those of all layers, for the GPUs too.
    """
    widest = max((_width(facts, batch, layer) for layer in layers), default=0)
    inside = NUMBER * batch.tokens * widest + _masks(facts, batch, masked)
    size = NUMBER * batch.tokens * RESIDUAL * facts.width + max(inside, scores)
    if not batch.flash and facts.rank:  # values are unpacked from the compressed cache
        size += 2 * facts.rank * batch.cells * batch.streams
    if facts.indexer:
        size += CHOICE * batch.cells * batch.tokens
    return size


def _width(facts: ModelFacts, batch: Batch, layer: ModelLayer) -> int:
    """Numbers of one token while the layer's widest part is computed."""
    parts = [0]
    if (down := layer.tensors.get("ffn_down.weight")) is not None:
        gated = layer.has("ffn_gate") or layer.out("ffn_up") > down.shape[0]
        parts.append((3 if gated else 2) * down.shape[0])
    if (down := layer.tensors.get("ffn_down_exps.weight")) is not None:
        parts.append(max(1, facts.used) * (3 * down.shape[0] + facts.width))
    if layer.attends:
        if facts.rank:
            attention = layer.heads * (facts.key_full + 2 * layer.key)
        else:
            attention = 2 * layer.heads * max(layer.key, layer.value) + layer.kv_heads * (layer.key + layer.value)
        parts.append(attention + (0 if batch.flash else layer.heads * _cells(facts, batch, layer)))
    if layer.state:
        mixing = TIME_MIX * facts.width if facts.wkv else SHORT * facts.width if facts.short else STATE * facts.inner
        parts.append(mixing)
    return max(parts)


def _cells(facts: ModelFacts, batch: Batch, layer: ModelLayer) -> int:
    """Cells that one token attends to."""
    return batch.tokens if facts.encoder else batch.window_cells if layer.window else batch.cells


def _masks(facts: ModelFacts, batch: Batch, layers: Sequence[ModelLayer]) -> int:
    """Bytes of the attention masks, one for layers with a window and one for those without; f16 for flash attention."""
    cells = {layer.window: _cells(facts, batch, layer) for layer in layers if layer.attends}
    return sum((2 if batch.flash else NUMBER) * batch.tokens * count for count in cells.values())
