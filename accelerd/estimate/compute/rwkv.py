"""The layers of RWKV 6 and 7 as graphs: a mix over time and one over channels, each with the token before. Pure."""

from __future__ import annotations

from collections.abc import Callable

from accelerd.estimate.compute.graph import Graph, Node
from accelerd.estimate.compute.layers import Batch, Inputs, feed_forward
from accelerd.estimate.facts import Facts, Layer


class Rwkv:
    """One model's layers, in order: later ones of version 7 look at what the first one made."""

    def __init__(self, g: Graph, facts: Facts, batch: Batch, inputs: Inputs, states: Callable[[int], Node]) -> None:
        self._g = g
        self._facts = facts
        self._batch = batch
        self._inputs = inputs
        self._states = states
        self._first: Node | None = None

    def layer(self, layer: Layer, x: Node, last: bool) -> Node:
        """The layer's output from its input."""
        g, facts, batch = self._g, self._facts, self._batch
        width, each, sequences = facts.width, batch.each, batch.sequences
        x = g.reshape(x, (width, each, sequences, 1))
        kept = g.reshape(self._states(facts.shifts * width), (width, facts.shifts, sequences, 1))
        normed = g.like(g.like(g.new(x.shape, x)))
        before = self._before(kept, normed)
        old = self._mix7 if layer.has("time_mix_a1") else self._mix6
        residual = g.like(old(layer, normed, before), x)
        if not layer.has("channel_mix_key"):  # a usual feed-forward follows
            return self._usual(layer, normed, residual, last)
        second = g.like(g.like(g.new(residual.shape, residual)))
        before = self._before(kept, second)
        ends = [g.view(one, (width, 1, sequences, 1), (one.strides[1], one.strides[2], one.size))
                for one in (normed, second)]  # fmt: skip
        shift = g.new((width, 2, sequences, 1), *ends)
        g.expand(g.store(shift, g.external((width * 2, sequences, 1, 1))))
        residual, second, before = (g.reshape(one, (width, batch.tokens, 1, 1)) for one in (residual, second, before))
        if last:
            residual, second, before = (g.rows(one, self._inputs.outputs) for one in (residual, second, before))
        return g.like(self._channels(layer, second, before), residual)

    def _usual(self, layer: Layer, normed: Node, residual: Node, last: bool) -> Node:
        g, facts, batch = self._g, self._facts, self._batch
        end = g.view(normed, (facts.width, 1, batch.sequences, 1), (normed.strides[1], normed.strides[2], normed.size))
        g.expand(g.store(end, g.external((facts.width, batch.sequences, 1, 1))))
        residual = g.reshape(residual, (facts.width, batch.tokens, 1, 1))
        if last:
            residual = g.rows(residual, self._inputs.outputs)
        return g.like(feed_forward(g, facts, layer, g.like(g.like(residual))), residual)

    def _before(self, kept: Node, x: Node) -> Node:
        """Each token's predecessor."""
        g, (width, each, sequences, _) = self._g, x.shape
        old = g.view(kept, (width, 1, sequences, 1), (kept.strides[1], kept.strides[2], kept.size))
        rest = g.view(x, (width, max(0, each - 1), sequences, 1), (x.strides[1], x.strides[2], x.size))
        return g.new(x.shape, old, rest)

    def _channels(self, layer: Layer, x: Node, before: Node) -> Node:
        g, width = self._g, self._facts.width
        difference = g.like(before, x)
        mixed = g.like(g.like(difference), x)
        inner = g.like(g.like(g.linear(mixed, layer.out("channel_mix_key"))))
        value = g.linear(inner, width)
        if not layer.has("channel_mix_receptance"):
            return value
        return g.like(g.like(g.linear(g.like(g.like(difference), x), width)), value)

    def _tail(self, layer: Layer, result: Node, gate: Node | None) -> Node:
        """Norm, gate and the way back; keeps the state."""
        g, facts, batch = self._g, self._facts, self._batch
        width, tokens = facts.width, batch.tokens
        state = g.view(result, (width * facts.wkv * batch.sequences, 1, 1, 1))
        g.expand(g.store(state, g.external((width * facts.wkv, batch.sequences, 1, 1))))
        y = g.view(result, (width, tokens, 1, 1))
        if layer.has("time_mix_ln"):
            heads = max(1, width // max(1, facts.wkv))
            normed = g.new((width // heads, heads, tokens, 1), g.reshape(y, (width // heads, heads, tokens, 1)))
            y = g.like(g.like(g.reshape(normed, (width, tokens, 1, 1))))
        return g.like(y, gate) if gate is not None else y

    def _mix6(self, layer: Layer, x: Node, before: Node) -> Node:
        g, facts, batch = self._g, self._facts, self._batch
        width, tokens = facts.width, batch.tokens
        difference = g.reshape(g.like(before, x), (width, tokens, 1, 1))
        x = g.reshape(x, (width, tokens, 1, 1))
        five = g.linear(g.like(g.like(difference), x), max(5, layer.out("time_mix_w1")))
        five = g.reshape(g.like(five), (five.shape[0] // 5, 1, 5, tokens))
        turned = g.copy(g.permute(five, (0, 1, 3, 2)))
        spread = g.new((width, 1, tokens, 5), turned)
        spread = g.like(g.like(spread, difference), x)
        w, k, v, r, gate = (g.view(spread, (width, tokens, 1, 1)) for _ in range(5))
        heads = (facts.wkv, width // max(1, facts.wkv), tokens, 1)
        small = layer.out("time_mix_key") or width
        k, v = g.linear(k, small), g.linear(v, small)
        if small != width:
            k, v = g.new((width, tokens, 1, 1), k), g.new((width, tokens, 1, 1), v)
        k, v, r = g.reshape(k, heads), g.reshape(v, heads), g.reshape(g.linear(r, width), heads)
        gate = g.like(g.linear(gate, width))
        decay = g.linear(g.like(g.linear(w, layer.out("time_mix_decay_w1"))), width)
        decay = g.reshape(g.like(g.like(g.like(g.like(decay)))), heads)
        if not layer.has("time_mix_first"):
            k = g.like(k, g.like(k, decay))
        state = self._states(width * facts.wkv)
        result = g.new((width, tokens + facts.wkv * batch.sequences, 1, 1), k, v, r, decay, state)
        y = g.linear(self._tail(layer, result, gate), width)
        return g.reshape(y, (width, batch.each, batch.sequences, 1))

    def _mix7(self, layer: Layer, x: Node, before: Node) -> Node:
        g, facts, batch = self._g, self._facts, self._batch
        width, tokens = facts.width, batch.tokens
        gated = layer.has("time_mix_g1")
        count = 6 if gated else 5
        spread = g.new((width, batch.each, batch.sequences, count), g.like(before, x))
        spread = g.like(g.like(spread), x)
        r, w, k, v, a, gate = (g.view(spread, (width, tokens, 1, 1)) for _ in range(6))
        heads = (facts.wkv, width // max(1, facts.wkv), tokens, 1)
        w = g.like(g.linear(g.like(g.linear(w, layer.out("time_mix_w1"))), width))
        w = g.like(g.like(g.like(w)))
        key, value = g.linear(k, width), g.linear(v, width)
        if self._first is None:
            self._first = value
        else:
            more = g.like(g.like(g.linear(g.linear(v, layer.out("time_mix_v1")), width)))
            value = g.like(value, g.like(g.like(self._first, value), more))
        opened = None
        if gated:
            opened = g.linear(g.like(g.linear(gate, layer.out("time_mix_g1"))), width)
        a = g.like(g.like(g.linear(g.linear(a, layer.out("time_mix_a1")), width)))
        unit = g.new(heads, g.reshape(g.like(key), heads))
        scaled = g.like(key)
        key = g.like(key, g.like(g.like(a, scaled), scaled))
        r, w, key, value, a = (g.reshape(one, heads) for one in (g.linear(r, width), w, key, value, a))
        state = self._states(width * facts.wkv)
        shape = (width, tokens + facts.wkv * batch.sequences, 1, 1)
        result = g.new(shape, r, w, key, value, g.like(unit), g.like(unit, a), state)
        y = self._tail(layer, result, None)
        sums = g.new((1, heads[1], tokens, 1), g.like(g.like(key, r)))
        y = g.like(y, g.reshape(g.like(value, sums), (width, tokens, 1, 1)))
        y = g.linear(g.like(y, opened) if opened is not None else y, width)
        return g.reshape(y, (width, batch.each, batch.sequences, 1))
