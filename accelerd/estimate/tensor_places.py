"""Which tensors lie elsewhere than their layer: by patterns, as parts of adapters, or divided by rows. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from accelerd.estimate.model_facts import ModelFacts
from accelerd.estimate.tensors import GgufModel, Tensor, layer_of

ALIGNMENT: Final = 32  # bytes; weights begin at multiples of it
HOST: Final = ""  # as the place of a tensor: main memory
FIRST, LAST = -2, -1  # instead of a layer's index: before the first, behind the last one
Overrides = tuple[tuple[str, str], ...]  # pattern of names → id of a GPU or HOST; the first that is found
HEAD: Final = ("output", "cls", "dense_")


class PlacedTensor(NamedTuple):
    """Bytes that lie where a pattern says, or an adapter's bytes, which follow the tensor that they are for."""

    layer: int  # or FIRST, LAST
    place: str | None  # id of a GPU, HOST; None: where its layer is
    size: int


@lru_cache(maxsize=32)
def elsewhere(model: GgufModel, overrides: Overrides) -> Mapping[str, str]:
    """The place of each tensor for which a pattern is found."""
    patterns = [(re.compile(pattern), place) for pattern, place in overrides]
    found = ((name, next((place for one, place in patterns if one.search(name)), None)) for name in model.tensors)
    return {name: place for name, place in found if place is not None}


def where(name: str) -> int:
    """The index of a tensor's layer, FIRST or LAST."""
    place = layer_of(name)
    return place[0] if place is not None else LAST if name.startswith(HEAD) else FIRST


def moved_tensors(model: GgufModel, known: ModelFacts, overrides: Overrides) -> tuple[PlacedTensor, ...]:
    if not overrides:
        return ()
    found = []
    for name, place in elsewhere(model, overrides).items():
        if (layer := where(name)) < len(known.layers):
            found.append(PlacedTensor(layer, place, padded((model.tensors[name],))))
    return tuple(found)


def adapter_tensors(adapter: GgufModel, model: GgufModel, overrides: Overrides) -> Iterator[PlacedTensor]:
    """What a LoRA adapter adds: two small matrices to each weight that it changes, in the same place."""
    moved = elsewhere(model, overrides)
    for name, tensor in adapter.tensors.items():
        base = name.removesuffix(".lora_a").removesuffix(".lora_b")
        if base != name and base in model.tensors:
            yield PlacedTensor(where(base), moved.get(base), padded((tensor,)))


def divisible(
    known: ModelFacts, head: Mapping[str, Tensor], moved: Mapping[str, str], *, experts: bool
) -> tuple[int, ...]:
    """Bytes of the matrices of each layer, and of the head."""
    rows = [{f"blk.{layer.index}.{name}": one for name, one in layer.tensors.items()} for layer in known.layers]
    return tuple(
        padded(
            one
            for name, one in some.items()
            if len(one.shape) > 1 and (experts or "_exps" not in name) and name not in moved
        )
        for some in (*rows, head)
    )


def padded(tensors: Iterable[Tensor]) -> int:
    return sum(-(-one.size // ALIGNMENT) * ALIGNMENT for one in tensors)
