"""Layers with a state of fixed size instead of keys and values, as graphs. Pure.

Mamba, Mamba 2, gated delta nets and short convolutions; RWKV, whose layers differ as a whole, is in `rwkv`.
"""

from __future__ import annotations

from accelerd.estimate.compute.graph import Graph, Node
from accelerd.estimate.compute.layers import Batch, Inputs
from accelerd.estimate.facts import Facts, Layer


def mixer(g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, x: Node) -> Node:
    """Everything from the normed input to what is added to it."""
    if layer.has("shortconv.in_proj"):
        return _short(g, facts, batch, inputs, x)
    if layer.has("ssm_x"):
        return _mamba(g, facts, layer, batch, inputs, x)
    if layer.has("attn_qkv", "ssm_beta_alpha", "ssm_ba", "ssm_alpha"):
        return _delta_net(g, facts, layer, batch, inputs, x)
    return _mamba2(g, facts, layer, batch, inputs, x)


def states(g: Graph, batch: Batch, inputs: Inputs, size: int) -> Node:
    """The states of the sequences, taken out of the cache."""
    kept = g.external((size, batch.sequences, 1, 1))
    main = g.view(inputs.states, (batch.sequences, 1, 1, 1))
    found = g.rows(kept, main)
    g.expand(found)
    extra = g.view(inputs.states, (0, 1, 1, 1))
    g.expand(g.store(g.rows(kept, extra), g.external((size, 0, 1, 1))))
    return found


def _looked_back(g: Graph, facts: Facts, batch: Batch, inputs: Inputs, x: Node, channels: int) -> Node:
    """What the convolution sees: the last tokens of before, then these. Keeps the last ones for the next time."""
    back = max(0, facts.convolution - 1)
    seen = states(g, batch, inputs, back * channels)
    old = g.reshape(seen, (back, channels, batch.sequences, 1))
    joined = g.new((back + batch.each, channels, batch.sequences, 1), old, g.transpose(x))
    last = g.view(joined, (back, channels, batch.sequences, 1), (joined.strides[1], joined.strides[2], joined.size))
    g.expand(g.store(last, g.external((back * channels, batch.sequences, 1, 1))))
    return joined


def _mamba(g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, x: Node) -> Node:
    each, sequences, inner = batch.each, batch.sequences, facts.inner
    rank = facts.step_rank
    x = g.reshape(x, (x.shape[0], each, sequences, 1))
    both = g.linear(x, 2 * inner)
    row = both.strides[1]
    half = g.view(both, (inner, each, sequences, 1), (row, row * each, both.size))
    gate = g.view(both, (inner, each, sequences, 1), (row, row * each, both.size))
    window = _looked_back(g, facts, batch, inputs, half, inner)
    y = g.like(g.like(g.new((inner, each, sequences, 1), window)))
    small = g.linear(y, rank + 2 * facts.state)
    row = small.strides[1]
    step = g.view(small, (rank, each, sequences, 1), (row, row * each, small.size))
    b = g.view(small, (facts.state, 1, each, sequences), (facts.state * 4, row, row * each))
    c = g.view(small, (facts.state, 1, each, sequences), (facts.state * 4, row, row * each))
    if layer.has("ssm_dt_norm"):
        step, b, c = (g.like(g.like(one)) for one in (step, b, c))
    else:
        step = g.copy(step)
    step = g.like(g.linear(step, inner))
    scanned = _scan(g, facts, batch, inputs, (1, inner), y, step, b, c)
    result = g.view(scanned, (inner, each, sequences, 1))
    result = g.like(result, g.like(y))
    mixed = g.new(gate.shape, g.copy(gate), result)
    return g.reshape(g.linear(mixed, facts.width), (facts.width, batch.tokens, 1, 1))


def _scan(
    g: Graph, facts: Facts, batch: Batch, inputs: Inputs, heads: tuple[int, int], y: Node, step: Node, b: Node, c: Node
) -> Node:
    """All tokens through the state: results and the last states in one."""
    whole = y if y.root is not None else g.reshape(y, (*heads, batch.each, batch.sequences))
    numbers = facts.inner * batch.tokens + facts.state * facts.inner * batch.sequences
    main = g.view(inputs.states, (batch.sequences, 1, 1, 1))
    scanned = g.new((numbers, 1, 1, 1), whole, step, b, c, main)
    g.expand(scanned)
    size = facts.state * facts.inner
    extra = g.view(inputs.states, (0, 1, 1, 1))
    g.expand(g.store(g.rows(g.external((size, 1, 1, 1)), extra), g.external((size, 0, 1, 1))))
    last = g.view(scanned, (size * batch.sequences, 1, 1, 1))
    g.expand(g.store(last, g.external((size, batch.sequences, 1, 1))))
    return scanned


def _mamba2(g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, x: Node) -> Node:
    each, sequences, inner = batch.each, batch.sequences, facts.inner
    heads, groups = max(1, facts.step_rank), max(1, facts.state_groups)
    channels = inner + 2 * facts.state_groups * facts.state
    whole = g.linear(x, layer.out("ssm_in"))
    whole = g.reshape(whole, (whole.shape[0], each, sequences, 1))
    row = whole.strides[1]
    size = inner // heads
    gate = g.view(whole, (size, heads, each, sequences), (size * 4, row, row * each))
    mixed = g.view(whole, (channels, each, sequences, 1), (row, row * each, whole.size))
    step = g.view(whole, (heads, each, sequences, 1), (row, row * each, whole.size))
    window = _looked_back(g, facts, batch, inputs, mixed, channels)
    seen = g.like(g.like(g.new((channels, each, sequences, 1), window)))
    row = seen.strides[1]
    y = g.view(seen, (size, heads, each, sequences), (size * 4, row, row * each))
    b = g.view(seen, (facts.state, groups, each, sequences), (facts.state * 4, row, row * each))
    c = g.view(seen, (facts.state, groups, each, sequences), (facts.state * 4, row, row * each))
    step = g.like(g.copy(step))
    scanned = _scan(g, facts, batch, inputs, (size, heads), y, step, b, c)
    result = g.view(scanned, (size, heads, each, sequences))
    result = g.like(result, g.like(y))
    result = g.new(gate.shape, g.copy(gate), result)
    if layer.has("ssm_norm"):
        result = g.like(g.like(g.reshape(result, (inner // groups, groups, each, sequences))))
    return g.linear(g.reshape(result, (inner, batch.tokens, 1, 1)), facts.width)


def _delta_net(g: Graph, facts: Facts, layer: Layer, batch: Batch, inputs: Inputs, x: Node) -> Node:
    each, sequences = batch.each, batch.sequences
    size, key_heads, heads = facts.state, max(1, facts.state_groups), max(1, facts.step_rank)
    long = facts.inner // heads
    channels = 2 * size * key_heads + long * heads
    if layer.has("attn_qkv"):
        mixed = g.linear(x, channels)
        mixed = g.reshape(mixed, (channels, each, sequences, 1))
        gate = g.linear(x, long * heads)
    else:
        whole = g.linear(x, layer.out("ssm_in"))
        gate = g.copy(g.view(whole, (long * heads, each, sequences, 1)))
        parts = [g.copy(g.view(whole, (width, each, sequences, 1)))
                 for width in (size * key_heads, size * key_heads, long * heads)]  # fmt: skip
        first = g.new((2 * size * key_heads, each, sequences, 1), parts[0], parts[1])
        mixed = g.new((channels, each, sequences, 1), first, parts[2])
    if layer.has("ssm_beta_alpha", "ssm_ba"):
        both = g.linear(x, 2 * heads)
        beta = g.like(g.copy(g.view(both, (heads, each, sequences, 1))))
        alpha = g.copy(g.view(both, (heads, each, sequences, 1)), (heads, each, sequences, 1))
    else:
        beta = g.like(g.linear(x, heads))
        alpha = g.linear(x, heads)
    decay = g.like(g.like(g.like(alpha)))
    beta = g.reshape(beta, (1, heads, each, sequences))
    decay = g.reshape(decay, (1, heads, each, sequences))
    window = _looked_back(g, facts, batch, inputs, mixed, channels)
    state = g.reshape(states(g, batch, inputs, size * facts.inner), (long, long, heads, sequences))
    seen = g.like(g.new((channels, each, sequences, 1), window))
    row = seen.strides[1]

    def part(length: int, count: int) -> Node:
        return g.view(seen, (length, count, each, sequences), (length * 4, row, row * each))

    q = g.new((size, key_heads, each, sequences), part(size, key_heads))  # normed
    k = g.new((size, key_heads, each, sequences), part(size, key_heads))
    v = part(long, heads)
    if key_heads != heads and layer.has("ssm_beta_alpha", "ssm_ba"):
        q = g.reshape(g.new((size, heads, each, sequences), q), (size, heads, each, sequences))
        k = g.reshape(g.new((size, heads, each, sequences), k), (size, heads, each, sequences))
    result = g.new((long * heads, batch.tokens + long * sequences, 1, 1), q, k, v, decay, beta, state)
    found = g.view(result, (long, heads, each, sequences))
    last = g.view(result, (long, long, heads, sequences))
    g.expand(g.store(last, g.external((size * facts.inner, sequences, 1, 1))))
    normed = g.like(g.like(found))
    opened = g.like(g.reshape(gate, (long, heads, each, sequences)))
    final = g.reshape(g.like(normed, opened), (long * heads, each, sequences, 1))
    return g.reshape(g.linear(final, facts.width), (facts.width, batch.tokens, 1, 1))


def _short(g: Graph, facts: Facts, batch: Batch, inputs: Inputs, x: Node) -> Node:
    each, sequences, width = batch.each, batch.sequences, facts.width
    back = max(0, facts.short - 1)
    x = g.reshape(x, (width, each, sequences, 1))
    three = g.linear(x, 3 * width)
    row = three.strides[1]
    b, c, y = (g.view(three, (width, each, sequences, 1), (row, row * each, three.size)) for _ in range(3))
    product = g.transpose(g.like(b, y))
    old = g.reshape(states(g, batch, inputs, back * width), (back, width, sequences, 1))
    joined = g.new((back + each, width, sequences, 1), old, product)
    last = g.view(joined, (back, width, sequences, 1), (joined.strides[1], joined.strides[2], joined.size))
    g.expand(g.store(last, g.external((back * width, sequences, 1, 1))))
    seen = g.new((width, each, sequences, 1), joined)
    return g.reshape(g.linear(g.like(c, seen), width), (width, batch.tokens, 1, 1))
