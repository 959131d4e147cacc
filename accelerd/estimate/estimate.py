"""How much memory a model will take, from its header and the settings alone: weights, caches, buffers, by place.

Weights and caches follow llama.cpp's own rules; compute buffers are a closed form with a margin (`compute`).
Pure and quick: some milliseconds, so that it can be asked again and again with another context.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from accelerd.estimate.compute import Batch, buffers
from accelerd.estimate.model_facts import NO_FLASH, ROLLS_BACK, SKIPS_DRAFT_LAYERS, TWICE, ModelFacts, ModelLayer, facts
from accelerd.estimate.tensor_places import (
    FIRST,
    HEAD,
    HOST,
    Overrides,
    PlacedTensor,
    adapter_tensors,
    divisible,
    elsewhere,
    moved_tensors,
    padded,
)
from accelerd.estimate.tensors import GgufModel, row_bytes

MIB: Final = 1 << 20
MOST: Final = 1 << 31  # of a context
# Types that are repacked, by what platform.machine() says, and the rows that are taken together.
REPACKED: Final = {"x86_64": frozenset({"q4_0", "q4_k", "iq4_nl", "mxfp4", "q2_k"}),
                   "aarch64": frozenset({"q4_0", "q4_k", "iq4_nl", "mxfp4", "q5_k", "q6_k", "q8_0"})}  # fmt: skip
REPACKED_ROWS: Final = 8
# Bytes that a backend takes of a device for itself: its context, its kernels.
BACKEND: Final = {"cuda": 400 * MIB, "rocm": 320 * MIB, "vulkan": 300 * MIB, "radv": 300 * MIB, "amdvlk": 300 * MIB,
                  "sycl": 300 * MIB, "metal": 64 * MIB, "cpu": 0}  # fmt: skip
BACKEND_ELSE: Final = 300 * MIB
PROGRAM: Final = 48 * MIB  # llama-server itself: code, heap, threads; the vocabulary beside
TOKEN: Final = 160  # bytes of one word of a vocabulary in the program's tables
PICTURE_TOKENS: Final = 4096  # patches that a projector for pictures of any size computes at once, at least
PROJECTOR_LEAST: Final = 32 * MIB
PAD: Final = 256  # cells
STATE_NUMBER: Final = 4  # bytes; states are always f32


class EstimateSettings(Struct, frozen=True):
    """What a model is run with. Sizes in tokens; `context` is that of all slots together, 0: all it was trained for."""

    context: int = 4096
    slots: int = 1
    unified: bool = False  # the slots share one cache
    type_k: str = "f16"
    type_v: str = "f16"
    flash: Literal["on", "off", "auto"] = "auto"
    batch: int = 2048
    ubatch: int = 512
    mmap: bool = True  # what is mapped counts, too: it must be in memory to be quick
    embeddings: bool = False
    rerank: bool = False
    offload_cache: bool = True
    window_full: bool = False
    few_outputs: bool = True  # only tokens that are asked for get scores; earlier programs reserve for all of a batch
    drafted: int = 0  # tokens that another model guesses at once
    checkpoints: int = 0  # places in a conversation that each slot may go back to, where a cache forgets
    overrides: Overrides = ()
    split_mode: Literal["none", "layer", "row", "tensor"] = "layer"
    main_gpu: str | None = None  # id; with "none"
    tensor_split: tuple[float, ...] | None = None  # each GPU's part; None: by what it has
    fit_target: tuple[int, ...] | None = None  # bytes of each GPU left free, as llama-server fits the model; None: not
    projector_at: str | None = None  # id or HOST; None: the first GPU of the model
    draft_type_k: str = "f16"
    draft_type_v: str = "f16"
    draft_layers: int | None = None  # of the draft model, on the GPU; None: all
    own_drafts: bool = False  # layers that only draft tokens are loaded, with a context of their own
    kept_states: int = 0  # states of a sequence that are kept beside the newest
    repacked: frozenset[str] = frozenset()  # types of weights that this machine's processor wants in another order
    backend: str = ""  # of engines.base.Build


class MemoryShare(Struct, frozen=True, omit_defaults=True, rename={"cache": "kv cache", "draft": "draft model"}):
    """Bytes in one place."""

    weights: int = 0
    cache: int = 0
    compute: int = 0
    output: int = 0
    lora: int = 0
    projector: int = 0
    draft: int = 0
    checkpoints: int = 0
    program: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """For people; what is nothing is left out."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


class CacheCells(Struct, frozen=True):
    """What one sequence's caches hold, and how many caches lie side by side."""

    full: int
    window: int
    streams: int
    sequences: int


@dataclass(frozen=True)
class Estimate:
    """One model with one set of settings, not yet placed."""

    facts: ModelFacts = field(repr=False)
    settings: EstimateSettings
    batch: Batch = field(repr=False)
    layers: tuple[tuple[int, int], ...] = field(repr=False)  # bytes of weights and of cache
    embedding: int  # bytes of weights that are always in main memory
    head: int  # bytes of weights behind the last layer
    tied: int  # bytes of the embedding that a GPU takes once more, as there is no head
    tied_repacked: int  # and that the processor does, in its own order
    output: int  # bytes: scores and the like for the program to read
    checkpoints: int  # bytes of all of them, in main memory wherever the model is
    moved: tuple[PlacedTensor, ...] = field(default=(), repr=False)
    lora: tuple[PlacedTensor, ...] = field(default=(), repr=False)
    divisible: tuple[int, ...] = field(default=(), repr=False)  # bytes of each layer, and of the head, that rows divide
    projector: tuple[int, int] = (0, 0)  # bytes of weights, of its buffer
    draft: Estimate | None = field(default=None, repr=False)

    @property
    def weights(self) -> int:
        return self.placed(())[0].weights

    @property
    def total(self) -> int:
        """Bytes when all of it is in main memory, what the program keeps for itself left out."""
        share = self.placed(())[0]
        return share.total - share.program - share.checkpoints

    @property
    def cache(self) -> int:
        return sum(cache for _, cache in self.layers)

    def placed(
        self, counts: Sequence[int], ids: Sequence[str] = (), parts: Sequence[float] = ()
    ) -> tuple[MemoryShare, ...]:
        """The share of main memory, then of each GPU.

        `counts`: layers on each, the last ones of the model with what comes behind them, so at most one more than there
        are; the others stay in main memory. `ids`: of the GPUs; `parts`: of the whole, where weights are divided.
        """
        rest = len(self.layers) + 1 - sum(counts)
        *places, out = [0] * rest + [place for place, count in enumerate(counts, 1) for _ in range(count)]
        number = {HOST: 0, **{id: place for place, id in enumerate(ids, 1) if place <= len(counts)}}
        computing = self._buffers(tuple(places), out, number, len(counts) > 1)
        first = next((place for place in (*places, out) if place), 0)
        projector_at = (
            number.get(self.settings.projector_at, first) if self.settings.projector_at is not None else first
        )
        weights = [0] * (len(counts) + 1)
        lora = [0] * (len(counts) + 1)
        for size, at in zip((*(one for one, _ in self.layers), self.head), (*places, out), strict=True):
            weights[at] += size
        weights[0] += self.embedding
        weights[out] += self.tied if out else self.tied_repacked
        if parts and self.settings.split_mode in ("row", "tensor"):
            self._divide(weights, (*places, out), parts)
        for tensor in self.moved:
            at, to = self._at(tensor, places, out), number.get(tensor.place or HOST)
            if to is not None:
                weights[at] -= tensor.size
                weights[to] += tensor.size
        for tensor in self.lora:
            at = self._at(tensor, places, out)
            lora[at if tensor.place is None else number.get(tensor.place, at)] += tensor.size
        cache_here = self.settings.offload_cache or not counts
        caches = [0] * (len(counts) + 1)
        for (_, size), at in zip(self.layers, places, strict=True):
            caches[at if cache_here else 0] += size
        if parts and self.settings.split_mode == "tensor" and cache_here:
            shared = sum(caches[1:])
            caches[1:] = [round(shared * part / sum(parts)) for part in parts]
        shares = []
        for place in range(len(counts) + 1):
            used = place == 0 or place in places or out == place or bool(weights[place])
            share = MemoryShare(
                weights=weights[place],
                cache=caches[place],
                compute=computing[place] if place < len(computing) else 0,
                output=self.output if place == 0 else 0,
                checkpoints=self.checkpoints if place == 0 else 0,
                lora=lora[place],
                projector=sum(self.projector) if place == projector_at else 0,
                program=self._program(place, used),
            )
            shares.append(share)
        return self._with_draft(shares)

    @staticmethod
    def _at(tensor: PlacedTensor, places: Sequence[int], out: int) -> int:
        """Where it would be by its layer."""
        if tensor.layer == FIRST:
            return 0
        return places[tensor.layer] if 0 <= tensor.layer < len(places) else out  # a layer that is not counted, too

    def _divide(self, weights: list[int], places: Sequence[int], parts: Sequence[float]) -> None:
        """Gives every GPU its part of the weights that can be divided; by tensors, each has all of the others."""
        divided = 0
        for size, at in zip(self.divisible, places, strict=True):
            if at:
                weights[at] -= size
                divided += size
        if self.settings.split_mode == "tensor":
            weights[1:] = [sum(weights[1:])] * len(parts)
        for place, part in enumerate(parts, 1):
            weights[place] += round(divided * part / sum(parts))

    def hosting(self, layers: int) -> Estimate:
        """The same with the experts of so many of the first layers in main memory."""
        experts = [PlacedTensor(layer.index, HOST, layer.experts) for layer in self.facts.layers[:layers]]
        return dataclasses.replace(self, moved=tuple(one for one in experts if one.size))

    def _program(self, place: int, used: bool) -> int:
        if place == 0:
            return PROGRAM + TOKEN * self.facts.vocabulary
        return BACKEND.get(self.settings.backend, BACKEND_ELSE) if used else 0

    def _with_draft(self, shares: list[MemoryShare]) -> tuple[MemoryShare, ...]:
        """The draft model goes where the first layers on a GPU are."""
        if self.draft is None:
            return tuple(shares)
        device = next((place for place in range(1, len(shares)) if shares[place].weights), 0)
        all_of_it = len(self.draft.layers) + 1
        count = all_of_it if self.settings.draft_layers is None else min(self.settings.draft_layers, all_of_it)
        counts = [count if place == device else 0 for place in range(1, len(shares))]
        for place, share in enumerate(self.draft.placed(counts)):
            shares[place] = replace(shares[place], draft=share.total - share.program)
        return tuple(shares)

    def _buffers(self, places: tuple[int, ...], out: int, number: Mapping[str, int], several: bool) -> list[int]:
        moved: dict[int, dict[int, int]] = {}
        for tensor in self.moved:
            to = number.get(tensor.place or HOST)
            if to is not None and tensor.layer >= 0:
                layers = moved.setdefault(to, {})
                layers[tensor.layer] = max(layers.get(tensor.layer, 0), tensor.size)
        if not self.settings.offload_cache:
            places, out = (0,) * len(places), 0  # the largest part is computed where the cache is
        pipelined = several and not self.settings.overrides and self.settings.split_mode == "layer"
        return buffers(self.facts, self.batch, places, out, moved, pipelined=pipelined)


def estimate(
    model: GgufModel,
    settings: EstimateSettings,
    projector: GgufModel | None = None,
    draft: GgufModel | None = None,
    lora: Sequence[GgufModel] = (),
) -> Estimate:
    """What `model` will take. Never fails, whatever its header claims."""
    known = _facts(model)
    context = min(settings.context or known.trained or 4096, MOST)
    slots = max(1, settings.slots)
    batch_size = max(1, min(context, settings.batch) if known.causal and not known.encoder else settings.batch)
    ubatch = max(1, min(batch_size, settings.ubatch))
    flash = settings.flash != "off" and known.architecture not in NO_FLASH
    held = cells(known, context, slots, ubatch, unified=settings.unified, window_full=settings.window_full)
    batch = _batch(known, settings, held, batch_size, ubatch, flash)
    widest = 0 if flash else widest_value(known)
    states = settings.kept_states if known.architecture in ROLLS_BACK else 0
    layers = tuple(
        (
            padded(layer.tensors.values()),
            layer_bytes(known, layer, held, settings.type_k, settings.type_v, widest)
            + (states * STATE_NUMBER * sum(known.row_state) * held.sequences if layer.state else 0),
        )
        for layer in known.layers
    )
    drafting = sum(padded(layer.tensors.values()) for layer in known.drafting)
    if known.architecture in SKIPS_DRAFT_LAYERS and not settings.own_drafts:
        drafting = 0
    head = {name: one for name, one in known.outside.items() if name.startswith(HEAD)}
    first = [one for name, one in known.outside.items() if name not in head]
    embedding = known.outside.get("token_embd.weight")
    tied = embedding if embedding is not None and "output.weight" not in head and not known.encoder else None
    again = tied is not None and tied.type in settings.repacked and tied.shape[-1] % REPACKED_ROWS == 0
    again = again or (known.architecture in TWICE and not settings.mmap)
    moved = elsewhere(model, settings.overrides)
    if moved.get("token_embd.weight") == HOST:  # what takes the place of the head is found by the same name
        tied = None
    wide = known.width if settings.embeddings or settings.rerank else 0
    return Estimate(
        facts=known,
        settings=settings,
        batch=batch,
        layers=layers,
        embedding=padded(first),
        head=padded(head.values()) + drafting,
        tied=tied.size if tied is not None else 0,
        tied_repacked=tied.size if tied is not None and again else 0,
        output=4 * (known.vocabulary + wide) * max(slots, batch.outputs if wide else slots),
        checkpoints=settings.checkpoints * slots * rewind_bytes(known, held, settings.type_k, settings.type_v),
        moved=moved_tensors(model, known, settings.overrides),
        lora=tuple(found for adapter in lora for found in adapter_tensors(adapter, model, settings.overrides)),
        divisible=divisible(known, head, moved, experts=settings.split_mode == "tensor"),
        projector=_projector(projector) if projector is not None else (0, 0),
        draft=(
            _draft(draft, settings, slots)
            if draft is not None
            else _own_drafts(known, settings, held, batch, slots)
            if settings.own_drafts and known.drafting
            else None
        ),
    )


_facts = lru_cache(maxsize=32)(facts)


def _batch(
    known: ModelFacts, settings: EstimateSettings, held: CacheCells, batch: int, ubatch: int, flash: bool
) -> Batch:
    tokens = min(held.full * held.streams, ubatch)
    tokens = -(-tokens // held.sequences) * held.sequences
    every = settings.embeddings or settings.rerank or not settings.few_outputs
    wanted = batch if every else min(batch, held.sequences * (1 + settings.drafted))
    return Batch(tokens, max(1, min(tokens, wanted)), held.full, held.window, held.streams, flash)


def _projector(model: GgufModel) -> tuple[int, int]:
    """Weights and buffer of what turns pictures or sound into tokens."""
    value = model.header.values
    size = 0
    for kind in ("clip.vision", "clip.audio"):
        width, inner = (value.get(f"{kind}.{name}", 0) for name in ("embedding_length", "feed_forward_length"))
        side, patch = value.get(f"{kind}.image_size", 0), value.get(f"{kind}.patch_size", 1)
        numbers = [one if isinstance(one, int) and 0 < one < 1 << 20 else 0 for one in (width, inner, side, patch)]
        if not numbers[0]:
            continue
        patches = max(PICTURE_TOKENS, (numbers[2] // max(1, numbers[3])) ** 2)
        size += patches * 4 * (6 * numbers[0] + 2 * numbers[1]) + 12 * numbers[2] ** 2
    return padded(model.tensors.values()), max(PROJECTOR_LEAST, size)


def _draft(model: GgufModel, settings: EstimateSettings, slots: int) -> Estimate:
    """The model that guesses: the same context, a cache of its own."""
    own = replace(
        settings,
        type_k=settings.draft_type_k,
        type_v=settings.draft_type_v,
        embeddings=False,
        rerank=False,
        drafted=0,
        overrides=(),
        split_mode="layer",
        own_drafts=False,
        kept_states=0,
    )
    return estimate(model, own)


def _own_drafts(known: ModelFacts, settings: EstimateSettings, held: CacheCells, batch: Batch, slots: int) -> Estimate:
    """What the layers that only draft need beside their weights: caches and buffers of a second context."""
    alone = dataclasses.replace(known, layers=known.drafting, drafting=())
    widest = 0 if batch.flash else widest_value(alone)
    types = settings.draft_type_k, settings.draft_type_v
    return Estimate(
        facts=alone,
        settings=replace(settings, overrides=(), split_mode="layer", own_drafts=False),
        batch=replace(batch, outputs=min(batch.tokens, slots)),
        layers=tuple((0, layer_bytes(alone, layer, held, *types, widest)) for layer in alone.layers),
        embedding=0,
        head=0,
        tied=0,
        tied_repacked=0,
        output=4 * (known.vocabulary + known.width) * slots,
        checkpoints=0,
    )


# --- caches ---------------------------------------------------------------------------------------------------


def rounded(count: int) -> int:
    return -(-count // PAD) * PAD


def cells(
    facts: ModelFacts, context: int, slots: int, ubatch: int, *, unified: bool, window_full: bool = False
) -> CacheCells:
    """For a context of all slots together. `unified`: the slots share one cache."""
    each = rounded(context) if unified else rounded(max(1, rounded(context) // slots))
    window = each
    if facts.window and not window_full:
        window = rounded(min(each, facts.window * (slots if unified else 1) + ubatch))
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
