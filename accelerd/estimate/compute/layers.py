"""The parts that layers are made of, as graphs: attention in its kinds, feed-forward, mixtures of experts. Pure.

Which parts a layer has is read off its weights, so that a new architecture made of known parts comes out right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from accelerd.estimate.compute.graph import Graph, Node, contiguous
from accelerd.estimate.facts import Facts, Layer

ROTATION: Final = 64  # numbers rotated at once before they are kept in a quantised cache


@dataclass(frozen=True)
class Batch:
    """What is computed at once, and what it looks at."""

    tokens: int
    sequences: int
    outputs: int  # tokens of which something is wanted
    cells: int  # of one sequence's cache
    window_cells: int  # of one whose layers have a window
    streams: int  # caches beside each other
    flash: bool
    quantised_k: bool
    quantised_v: bool
    embeddings: bool
    pooling: int
    kept: str = "f16"  # type of a number in the cache, where it is none of blocks
    host_experts: int = 0  # so many of the first layers have their experts in main memory

    @property
    def each(self) -> int:
        """Tokens of one sequence."""
        return self.tokens // self.sequences


@dataclass(frozen=True)
class Inputs:
    """What is filled in before: the same for all layers."""

    positions: Node
    mask: Node | None
    k_cells: Node
    v_cells: Node
    states: Node  # which sequences' states
    outputs: Node  # which tokens are wanted at the end
    k_rotation: Node | None = None
    v_rotation: Node | None = None


def attention(g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, x: Node) -> Node:
    """Everything from the normed input to what is added to it."""
    if facts.rank and layer.has("attn_kv_a_mqa"):
        return _compressed(g, facts, layer, batch, inputs, x)
    tokens = batch.tokens
    doubled = layer.out("attn_q") == 2 * layer.heads * layer.key and bool(layer.heads)  # the other half is a gate
    gate: Node | None = None
    if layer.has("attn_qkv"):
        q, k, v = _fused(g, layer, tokens, x)
    elif layer.has("attn_kv_b"):
        q, k, v = _unpacked(g, facts, layer, batch, inputs, x)
        return _attend(g, facts, layer, batch, inputs, q, k, v)
    else:
        q, k, v = _separate(g, layer, tokens, x, doubled, facts.own > 0)
        if doubled:
            whole = q
            strides = (2 * layer.key * 4, 2 * layer.key * layer.heads * 4, whole.size)
            q = g.view(whole, (layer.key, layer.heads, tokens, 1), strides)
            gate = g.view(whole, (layer.key, layer.heads, tokens, 1), strides)
    per_head = "attn_q_norm.weight" in layer.tensors and layer.tensors["attn_q_norm.weight"].shape[0] == layer.key
    if layer.has("attn_q_norm") and per_head:
        q = g.like(g.like(q))
    rotates = _rotates(facts, layer)
    if rotates or facts.architecture == "llama4":  # which scales what it does not rotate
        q = g.like(q, inputs.positions)
    if layer.has("attn_k_norm") and per_head:
        k = g.like(g.like(k))
    if rotates:
        k = g.like(k, inputs.positions)
    if gate is None:
        return _attend(g, facts, layer, batch, inputs, q, k, v)
    joined = _attend(g, facts, layer, batch, inputs, q, k, v, out=False)
    opened = g.like(g.copy(gate, (layer.key * layer.heads, tokens, 1, 1)))
    return g.linear(g.like(joined, opened), facts.width)


NO_ROTATION: Final = frozenset({"bert", "jina-bert-v2", "bloom", "gpt2", "starcoder", "mpt", "refact", "jais", "jamba",
                                "nemotron_h", "nemotron_h_moe"})  # fmt: skip
NO_ROTATION_EVERY: Final = {"llama4": 4, "smollm3": 4}  # of so many layers the last


def _rotates(facts: Facts, layer: Layer) -> bool:
    """Are queries and keys turned by their position?"""
    every = NO_ROTATION_EVERY.get(facts.architecture, 0)
    return facts.architecture not in NO_ROTATION and not (every and (layer.index + 1) % every == 0)


def _fused(g: Graph, layer: Layer, tokens: int, x: Node) -> tuple[Node, Node, Node]:
    whole = g.linear(x, layer.out("attn_qkv"))
    if "attn_qkv.bias" in layer.tensors:
        whole = g.like(whole)
    row = whole.strides[1]
    parts = []
    for length, count in ((layer.key, layer.heads), (layer.key, layer.kv_heads), (layer.value, layer.kv_heads)):
        parts.append(g.view(whole, (length, count, tokens, 1), (length * 4, row, row * tokens)))
    return parts[0], parts[1], parts[2]


def _separate(
    g: Graph, layer: Layer, tokens: int, x: Node, doubled: bool, values_normed: bool
) -> tuple[Node, Node, Node]:
    found = []
    for name, length, count in (
        ("q", layer.key * (2 if doubled else 1), layer.heads),
        ("k", layer.key, layer.kv_heads),
        ("v", layer.value, layer.kv_heads),
    ):
        one = g.linear(x, length * count)
        if f"attn_{name}.bias" in layer.tensors:
            one = g.like(one)
        norm = layer.tensors.get(f"attn_{name}_norm.weight")
        if norm is not None and norm.shape[0] != layer.key:  # over all heads at once
            one = g.like(g.like(one))
        found.append(g.reshape(one, (length, count, tokens, 1)))
    if values_normed:
        found[2] = g.like(found[2])
    return found[0], found[1], found[2]


def _attend(
    g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, q: Node, k: Node, v: Node, out: bool = True
) -> Node:
    """Keep keys and values, look at all that is kept, and mix what the heads found."""
    cached = not facts.encoder
    if cached and inputs.k_rotation is not None:
        q, k = _rotated(g, q, inputs.k_rotation), _rotated(g, k, inputs.k_rotation)
    if cached and inputs.v_rotation is not None:
        v = _rotated(g, v, inputs.v_rotation)
    borrowed = 0 <= facts.shared_from <= layer.index
    for one in (q,) if borrowed else (q, v, k):
        g.expand(one)
    if not cached:
        joined = _heads(g, batch, q, k, v, inputs.mask)
    else:
        cells, streams = (batch.window_cells if layer.window else batch.cells), batch.streams
        kept_k = g.external((layer.key, layer.kv_heads, cells, streams))
        kept_v = g.external((layer.value, layer.kv_heads, cells, streams))
        if not borrowed:
            g.expand(g.store(_flat(g, k), kept_k, inputs.k_cells))
            g.expand(g.store(_flat(g, v) if batch.flash or contiguous(v) else g.copy(v), kept_v, inputs.v_cells))
        joined = _heads(g, batch, q, kept_k, kept_v, inputs.mask)
    if cached and inputs.v_rotation is not None:
        joined = _rotated(g, joined, inputs.v_rotation)
    if not out:
        return joined
    if layer.has("attn_output", "attn_out"):
        joined = g.linear(joined, facts.width)
        if "attn_output.bias" in layer.tensors:
            joined = g.like(joined)
    return joined


def _flat(g: Graph, x: Node) -> Node:
    """One row for each token."""
    return g.view(x, (x.shape[0] * x.shape[1], x.shape[2], 1, 1), (x.strides[2], x.strides[2], x.strides[2]))


def _rotated(g: Graph, x: Node, rotation: Node) -> Node:
    width = rotation.shape[0]
    rows = x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3] // width
    flat = g.reshape(x, (width, rows, 1, 1)) if contiguous(x) else g.copy(x, (width, rows, 1, 1))
    return g.reshape(g.product(rotation, flat), x.shape)


def _heads(g: Graph, batch: Batch, q: Node, k: Node, v: Node, mask: Node | None, unpack: int = 0) -> Node:
    """Scores and what they pick. `k` and `v` by head; `unpack`: numbers of a value after it is unpacked."""
    streams = k.shape[3]
    a, b, c = q.strides[1], q.strides[2], q.strides[2] * (q.shape[2] // streams)
    q = g.view(q, (q.shape[0], q.shape[1], q.shape[2] // streams, streams), (a, b, c))
    q = g.permute(q, (0, 2, 1, 3))
    heads, each = q.shape[2], q.shape[1]
    masks = () if mask is None else (mask,)
    if batch.flash:
        if not k.external:  # there is no cache: halves are made of what was just computed
            k = g.new(_turned(k), g.permute(k, (0, 2, 1, 3)), kind="f16")
            v = g.new(_turned(v), g.permute(v, (0, 2, 1, 3)), kind="f16")
        found = g.new((v.shape[0], heads, each, streams), q, k, v, *masks)
        if unpack:
            turned = g.permute(found, (0, 2, 1, 3))
            plain = g.new((unpack, each, heads, streams), turned)
            found = g.copy(g.permute(plain, (0, 2, 1, 3)))
        joined = g.reshape(found, (found.shape[0] * heads, each * streams, 1, 1))
    else:
        if not k.external:
            k, v = g.permute(k, (0, 2, 1, 3)), g.permute(v, (0, 2, 1, 3))
            cells = k.shape[1]
        else:
            cells = k.shape[2]
        scores = g.new((cells, each, heads, streams), k, q)
        scores = g.like(scores, *masks)
        width = v.shape[0]
        if not v.external or unpack:  # values are not kept turned
            count = v.shape[1] if v.external else v.shape[2]
            v = g.new((cells, width, count, streams), v, kind=batch.kept if v.external else "f32")
        found = g.new((width, each, heads, streams), v, scores)
        if unpack:
            found = g.new((unpack, each, heads, streams), found)
        turned = g.permute(found, (0, 2, 1, 3))
        joined = g.copy(turned, (turned.shape[0] * heads, each * streams, 1, 1))
    g.expand(joined)
    return joined


def _turned(x: Node) -> tuple[int, int, int, int]:
    return (x.shape[0], x.shape[2], x.shape[1], x.shape[3])


def _query(g: Graph, layer: Layer, length: int, tokens: int, x: Node) -> Node:
    if layer.has("attn_q_a"):
        q = g.like(g.like(g.linear(x, layer.out("attn_q_a"))))
        q = g.linear(q, length * layer.heads)
    else:
        q = g.linear(x, length * layer.heads)
    return g.reshape(q, (length, layer.heads, tokens, 1))


def _pressed(g: Graph, facts: Facts, batch: Batch, inputs: Inputs, layer: Layer, x: Node) -> tuple[Node, Node]:
    """Compressed keys and values, normed, and the part of the keys that tells the position."""
    rank = layer.out("attn_kv_a_mqa") - facts.rotated
    both = g.linear(x, rank + facts.rotated)
    row = both.strides[1]
    small = g.view(both, (rank, batch.tokens, 1, 1), (row, row * batch.tokens, row * batch.tokens))
    turn = g.view(both, (facts.rotated, 1, batch.tokens, 1), (row, row, row * batch.tokens))
    return g.like(g.like(small)), g.like(turn, inputs.positions)


def _compressed(g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, x: Node) -> Node:
    """Latent attention with the unpacking of keys moved into the query: one head's worth is kept for all."""
    tokens, plain = batch.tokens, facts.key_full - facts.rotated
    q = _query(g, layer, facts.key_full, tokens, x)
    small, turn = _pressed(g, facts, batch, inputs, layer, x)
    rank = small.shape[0]
    a, b = q.strides[1], q.strides[2]
    still = g.permute(g.view(q, (plain, layer.heads, tokens, 1), (a, b, b * tokens)), (0, 2, 1, 3))
    moved = g.like(g.view(q, (facts.rotated, layer.heads, tokens, 1), (a, b, b * tokens)), inputs.positions)
    absorbed = g.permute(g.new((rank, tokens, layer.heads, 1), still), (0, 2, 1, 3))
    query = g.new((rank + facts.rotated, layer.heads, tokens, 1), absorbed, moved)
    small = g.reshape(small, (rank, 1, tokens, 1))
    key = g.new((rank + facts.rotated, 1, tokens, 1), small, turn)
    for one in (query, small, key):
        g.expand(one)
    cells = batch.window_cells if layer.window else batch.cells
    kept = g.external((rank + facts.rotated, 1, cells, batch.streams))
    g.expand(g.store(_flat(g, key), kept, inputs.k_cells))
    value = g.external((rank, 1, cells, batch.streams))
    joined = _heads(g, batch, query, kept, value, inputs.mask, unpack=facts.value_full)
    return g.linear(joined, facts.width)


def _unpacked(g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, x: Node) -> tuple[Node, Node, Node]:
    """Latent attention whose keys and values are unpacked before they are kept."""
    tokens, heads, plain = batch.tokens, layer.heads, max(0, layer.key - facts.rotated)
    q = _query(g, layer, layer.key, tokens, x)
    small, turn = _pressed(g, facts, batch, inputs, layer, x)
    wide = plain + layer.value
    both = g.linear(small, wide * heads)
    strides = (wide * 4, wide * heads * 4, wide * heads * tokens * 4)
    v = g.copy(g.view(both, (layer.value, heads, tokens, 1), strides))
    still = g.view(both, (plain, heads, tokens, 1), strides)
    spread = g.new((facts.rotated, heads, tokens, 1), turn)
    return g.like(q, inputs.positions), g.new((layer.key, heads, tokens, 1), still, spread), v


def feed_forward(g: Graph, facts: Facts, layer: Layer, x: Node, suffix: str = "") -> Node:
    """Up, gate, down."""
    up_width, down = layer.out(f"ffn_up{suffix}"), layer.tensors.get(f"ffn_down{suffix}.weight")
    inner = down.shape[0] if down is not None else up_width
    up = g.linear(x, up_width) if up_width else x
    if f"ffn_up{suffix}.bias" in layer.tensors:
        up = g.like(up)
    if layer.has(f"ffn_gate{suffix}"):
        gate = g.linear(x, layer.out(f"ffn_gate{suffix}"))
        if f"ffn_gate{suffix}.bias" in layer.tensors:
            gate = g.like(gate)
        mixed = g.new(gate.shape, gate, up)
    elif up_width == 2 * inner and inner:
        mixed = g.new((inner, *up.shape[1:]), up)  # both halves in one
    else:
        mixed = g.like(up)
        if facts.architecture in SQUARED:
            mixed = g.like(mixed)
    result = g.linear(mixed, facts.width) if down is not None else mixed
    return g.like(result) if f"ffn_down{suffix}.bias" in layer.tensors else result


SQUARED: Final = frozenset({"nemotron", "nemotron_h", "nemotron_h_moe"})


def experts(g: Graph, facts: Facts, layer: Layer, x: Node) -> Node:
    """The chosen experts' sum."""
    width, tokens = x.shape[0], x.shape[1]
    used = max(1, min(facts.used, facts.experts, MOST_EXPERTS))
    count = layer.out("ffn_gate_inp") or facts.experts
    logits = g.linear(x, count)
    if "ffn_gate_inp.bias" in layer.tensors:
        logits = g.like(logits)
    late = facts.architecture in CHOSEN_BEFORE
    probabilities = logits if late else g.like(logits)
    choice = probabilities
    if "exp_probs_b.bias" in layer.tensors:
        choice = g.like(probabilities)
    if facts.groups > 1:
        choice = _of_groups(g, facts, choice, count, tokens)
    order = g.new((count, tokens, 1, 1), choice, kind="i32")
    chosen = g.view(order, (used, tokens, 1, 1), (order.strides[1], order.strides[2], order.strides[3]))
    weights = g.rows(g.reshape(probabilities, (1, count, tokens, 1)), chosen)
    if late:
        weights = g.reshape(g.like(g.reshape(weights, (used, tokens, 1, 1))), (1, used, tokens, 1))
    elif facts.architecture not in NOT_NORMED:
        flat = g.reshape(weights, (used, tokens, 1, 1))
        weights = g.reshape(g.like(flat, g.like(g.new((1, tokens, 1, 1), flat))), (1, used, tokens, 1))
    g.expand(weights)
    x = g.reshape(x, (width, 1, tokens, 1))
    down = layer.tensors.get("ffn_down_exps.weight")
    inner = down.shape[0] if down is not None else 0
    if layer.has("ffn_gate_up_exps"):
        both = g.new((2 * inner, used, tokens, 1), x, chosen)
        strides = (both.strides[1], both.strides[2], both.strides[3])
        halves = [g.view(both, (inner, used, tokens, 1), strides) for _ in range(2)]
        mixed = g.new((inner, used, tokens, 1), *halves)
    else:
        up = g.new((inner, used, tokens, 1), x, chosen)
        if "ffn_up_exps.bias" in layer.tensors:
            up = g.like(up, chosen)
        if layer.has("ffn_gate_exps"):
            gate = g.new((inner, used, tokens, 1), x, chosen)
            if "ffn_gate_exps.bias" in layer.tensors:
                gate = g.like(gate, chosen)
            mixed = g.new(gate.shape, gate, up)
        else:
            mixed = g.like(up)
    result = g.new((width, used, tokens, 1), mixed, chosen)
    if "ffn_down_exps.bias" in layer.tensors:
        result = g.like(result, chosen)
    result = g.like(result, weights)
    g.expand(result)
    each = [g.view(result, (width, tokens, 1, 1), (result.strides[2], result.size, result.size)) for _ in range(used)]
    for one in each:
        g.expand(one)
    total = each[0]
    for one in each[1:]:
        total = g.like(total, one)
        g.expand(total)
    return total if used > 1 else g.copy(total)


MOST_EXPERTS: Final = 1024
CHOSEN_BEFORE: Final = frozenset({"gpt-oss"})  # the weights are normed after the choice, not before
NOT_NORMED: Final = frozenset({"olmoe", "deepseek", "qwen2moe", "nomic-bert-moe", "jamba", "llama4", "llada-moe"})


def _of_groups(g: Graph, facts: Facts, choice: Node, count: int, tokens: int) -> Node:
    """Only experts of the best groups stay."""
    each = count // facts.groups
    grouped = g.reshape(choice, (each, facts.groups, tokens, 1))
    best = g.new((each, facts.groups, tokens, 1), grouped, kind="i32")
    two = g.view(best, (min(2, each), facts.groups, tokens, 1), (best.strides[1], best.strides[2], best.strides[3]))
    scores = g.rows(g.reshape(grouped, (1, each, facts.groups, tokens)), two)
    sums = g.new((1, facts.groups, tokens, 1), g.reshape(scores, (min(2, each), facts.groups, tokens, 1)))
    ranked = g.new((facts.groups, tokens, 1, 1), g.reshape(sums, (facts.groups, tokens, 1, 1)), kind="i32")
    picked = g.rows(grouped, ranked)
    blank = g.like(grouped)
    return g.reshape(g.store(picked, blank, ranked), (count, tokens, 1, 1))
