"""A model's whole graph, from the token's numbers to what comes out, and the bytes of the buffers it is computed in.

Layers that compute alike count once or twice: after the second the places repeat. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from accelerd.estimate.compute import place, recurrent
from accelerd.estimate.compute.graph import HOST, Graph, Node
from accelerd.estimate.compute.layers import ROTATION, Batch, Inputs, attention, experts, feed_forward
from accelerd.estimate.compute.rwkv import Rwkv
from accelerd.estimate.facts import Facts, Layer

ENOUGH: Final = 3  # layers alike after which nothing new comes
# All tokens go to the end of all layers.
LATE: Final = frozenset({"qwen3next", "qwen35", "qwen35moe", "nemotron_h", "nemotron_h_moe", "gemma4"})
MEAN, FIRST, LAST, RANK = 1, 2, 3, 4


def buffers(
    facts: Facts, batch: Batch, places: Sequence[int], out: int, copies: int = 1, enough: int = ENOUGH
) -> list[int]:
    """Bytes of each place's buffer: main memory, then the devices. `places`: of each layer; `out`: of the end."""
    graph = whole(facts, batch, places, out, enough)
    return place.sizes(graph, max([HOST, out, *places]) + 1, copies)


def whole(facts: Facts, batch: Batch, places: Sequence[int], out: int, enough: int = ENOUGH) -> Graph:
    """The graph of one batch."""
    return _Builder(facts, batch).graph(chosen(facts.layers, places, enough), out)


def chosen(layers: Sequence[Layer], places: Sequence[int], enough: int = ENOUGH) -> list[tuple[Layer, int]]:
    """The layers that are enough to know the buffers: the first few of each kind and change, and the last two."""
    found: list[tuple[Layer, int]] = []
    seen: dict[object, int] = {}
    kinds: dict[object, int] = {}
    before: tuple[int, int] | None = None
    for index, (layer, where) in enumerate(zip(layers, places, strict=True)):
        kind = (kinds.setdefault(layer.alike, len(kinds)), where)
        change = (before, kind)
        seen[change] = seen.get(change, 0) + 1
        if seen[change] <= enough or index >= len(layers) - 2:
            found.append((layer, where))
        before = kind
    return found


class _Builder:
    def __init__(self, facts: Facts, batch: Batch) -> None:
        self._facts = facts
        self._batch = batch
        self._g = Graph()
        self._first = HOST

    def graph(self, layers: Sequence[tuple[Layer, int]], out: int) -> Graph:
        g, facts = self._g, self._facts
        x = self._embedded()
        inputs, of_window = self._inputs()
        own = self._own(x, len(layers)) if facts.own else None
        rwkv = Rwkv(g, facts, self._batch, inputs, lambda size: self._state(inputs, size)) if facts.wkv else None
        for index, (layer, where) in enumerate(layers):
            # What needs no weights stays on the GPU where it was begun: the first norm of a layer.
            self._first = g.here or where
            g.here = where
            last = index == len(layers) - 1
            if rwkv is not None:
                x = rwkv.layer(layer, x, last)
            else:
                x = self._layer(layer, of_window if layer.window and of_window else inputs, x, last)
            if own is not None:
                x = self._with_own(x, own)
        g.here = out
        self._end(inputs, x)
        return g

    def _state(self, inputs: Inputs, size: int) -> Node:
        return recurrent.states(self._g, self._batch, inputs, size)

    def _embedded(self) -> Node:
        """Numbers of the tokens; those of pictures and the like come ready made."""
        g, facts, batch = self._g, self._facts, self._batch
        shape = (facts.width, batch.tokens, 1, 1)
        tokens = g.input((batch.tokens, 1, 1, 1), "i32")
        x = g.new(shape, tokens)
        g.expand(x)
        g.expand(g.input(shape))
        if facts.encoder and "token_types.weight" in facts.outside:
            x = g.like(x)
        if "position_embd.weight" in facts.outside:
            x = g.like(g.new(shape, self._positions()), x)
        if "token_embd_norm.weight" in facts.outside:
            x = g.like(g.like(g.new(shape, x)))
        if facts.architecture.startswith("gemma"):
            x = g.like(x)
        return x

    def _own(self, x: Node, count: int) -> Node:
        """What each layer gets beside of every token; for all of the model's layers, however few are looked at."""
        g, facts, batch = self._g, self._facts, self._batch
        count = max(count, len(facts.layers))
        rows = g.new((facts.own * count, batch.tokens, 1, 1), g.input((batch.tokens, 1, 1, 1), "i32"))
        shape = (facts.own, count, batch.tokens, 1)
        found = g.like(g.reshape(rows, shape))
        g.expand(found)
        projected = g.like(g.linear(x, facts.own * count))
        both = g.like(g.like(g.like(g.like(g.reshape(projected, shape))), found))
        return g.copy(g.permute(both, (0, 2, 1, 3)))

    def _with_own(self, x: Node, own: Node) -> Node:
        g, facts, batch = self._g, self._facts, self._batch
        part = g.view(own, (facts.own, batch.tokens, 1, 1))
        mixed = g.like(g.like(g.linear(x, facts.own)), part)
        return g.like(x, g.like(g.like(g.linear(mixed, facts.width))))

    _place: Node | None = None

    def _positions(self) -> Node:
        if self._place is None:
            each = 4 if "vl" in self._facts.architecture or self._facts.architecture.startswith("qwen35") else 1
            self._place = self._g.input((self._batch.tokens * each, 1, 1, 1), "i32")
        return self._place

    def _inputs(self) -> tuple[Inputs, Inputs | None]:
        """What the layers are told; and what those with a window are."""
        g, facts, batch = self._g, self._facts, self._batch
        attending = any(layer.attends for layer in facts.layers)
        each = batch.tokens // batch.streams
        kind = "f16" if batch.flash else "f32"
        states = g.input((batch.sequences, 1, 1, 1), "i32")
        outputs = g.input((batch.outputs, 1, 1, 1), "i32")
        widest = max((layer.value * layer.kv_heads for layer in facts.layers if layer.attends), default=0)

        def of(cells: int) -> Inputs:
            if facts.encoder:
                mask: Node | None = g.input((batch.tokens, batch.tokens, 1, 1), kind)
            else:
                mask = g.input((cells, each, 1, batch.streams), kind) if attending else None
            rows = batch.tokens if batch.flash else batch.tokens * widest
            k, v = g.input((batch.tokens, 1, 1, 1), "i64"), g.input((rows, 1, 1, 1), "i64")
            keys = {layer.key for layer in facts.layers if layer.attends and layer.window == (cells != batch.cells)}
            k_rotation = v_rotation = None
            if batch.quantised_k and len(keys) == 1 and not facts.rank and not (key := keys.pop()) % ROTATION and key:
                turn = ROTATION
                while key % (turn * 2) == 0:
                    turn *= 2
                k_rotation = g.input((turn, turn, 1, 1))
            values = {layer.value for layer in facts.layers if layer.attends}
            if batch.quantised_v and not facts.rank and all(value and not value % ROTATION for value in values):
                v_rotation = g.input((ROTATION, ROTATION, 1, 1))
            return Inputs(self._positions(), mask, k, v, states, outputs, k_rotation, v_rotation)

        usual = of(batch.cells)
        return usual, of(batch.window_cells) if facts.window else None

    def _layer(self, layer: Layer, inputs: Inputs, x: Node, last: bool) -> Node:
        g, facts, batch = self._g, self._facts, self._batch
        before = x
        normed = self._norm(layer, "attn_norm", x, self._first) if layer.has("attn_norm") else x
        if layer.state and layer.attends:  # both, side by side
            found = attention(g, facts, layer, batch, inputs, normed)
            again = self._norm(layer, "attn_norm", x)
            found = g.like(found, recurrent.mixer(g, facts, layer, batch, inputs, again))
            found = g.like(found, before)
            if last:
                found = g.rows(found, inputs.outputs)
            return g.like(self._forward(layer, self._norm(layer, "ffn_norm", found)), found)
        if layer.state:
            found = recurrent.mixer(g, facts, layer, batch, inputs, normed)
        elif layer.attends:
            found = attention(g, facts, layer, batch, inputs, normed)
        else:  # a layer of feed-forward alone
            return self._cut(g.like(self._forward(layer, normed), before), inputs, last)
        if last and facts.architecture not in LATE:
            found, before = g.rows(found, inputs.outputs), g.rows(before, inputs.outputs)
            normed = g.rows(normed, inputs.outputs) if self._parallel(layer) else normed
        if not layer.has("ffn_up", "ffn_gate", "ffn_up_exps", "ffn_gate_up_exps", "ffn_down"):
            return g.like(found, before)
        if facts.encoder and layer.has("attn_output_norm"):
            return self._encoder(layer, found, before)
        own = layer.has("post_attention_norm") and not layer.has("ffn_norm") and not layer.has("post_ffw_norm")
        if layer.has("post_attention_norm") and not own:
            found = self._norm(layer, "post_attention_norm", found)
        if self._parallel(layer):
            second = self._forward(layer, self._norm(layer, "ffn_norm", before) if layer.has("ffn_norm") else normed)
            return g.like(g.like(second, found), before)
        residual = g.like(found, before)
        name = "post_attention_norm" if own else "ffn_norm"
        normed = self._norm(layer, name, residual) if layer.has(name) else residual
        result = self._forward(layer, normed)
        if layer.has("post_ffw_norm"):
            result = self._norm(layer, "post_ffw_norm", result)
        return g.like(result, residual)

    def _cut(self, x: Node, inputs: Inputs, last: bool) -> Node:
        if not last or self._facts.architecture in LATE:
            return x
        return self._g.rows(x, inputs.outputs)

    def _parallel(self, layer: Layer) -> bool:
        """Does the feed-forward see what the attention saw?"""
        norms = layer.has("ffn_norm", "post_attention_norm", "attn_output_norm", "attn_norm_2", "post_ffw_norm")
        return (self._facts.parallel or not norms) and layer.has("attn_norm")

    def _norm(self, layer: Layer, name: str, x: Node, where: int | None = None) -> Node:
        """RMS norms overwrite what they norm, the older kind does not. `where` it is begun."""
        g = self._g
        older = f"{name}.bias" in layer.tensors
        normed = g.new(x.shape, x) if older else g.like(x)
        normed.place = normed.place if where is None else where
        weighed = g.like(normed)
        return g.like(weighed) if older else weighed

    def _forward(self, layer: Layer, x: Node) -> Node:
        g, facts = self._g, self._facts
        if not layer.has("ffn_up_exps", "ffn_gate_up_exps"):
            return feed_forward(g, facts, layer, x)
        here = g.here
        g.here = HOST if layer.index < self._batch.host_experts else here
        chosen_ones = experts(g, facts, layer, x)
        g.here = here
        if layer.has("ffn_up_shexp"):
            shared = feed_forward(g, facts, layer, x, "_shexp")
            if layer.has("ffn_gate_inp_shexp"):
                shared = g.like(shared, g.like(g.linear(x, 1)))
            return g.like(chosen_ones, shared)
        if layer.has("ffn_up"):  # beside the experts, for all
            return g.like(chosen_ones, feed_forward(g, facts, layer, x))
        return chosen_ones

    def _encoder(self, layer: Layer, found: Node, before: Node) -> Node:
        """Norms come after the sums."""
        g = self._g
        middle = self._norm(layer, "attn_output_norm", g.like(found, before))
        result = g.like(self._forward(layer, middle), middle)
        return self._norm(layer, "layer_output_norm", result) if layer.has("layer_output_norm") else result

    def _end(self, inputs: Inputs, x: Node) -> None:
        """The last norm, the tokens' scores, and what is made of them for embeddings."""
        g, facts, batch = self._g, self._facts, self._batch
        if "output_norm.weight" in facts.outside:
            x = g.like(g.like(g.new(x.shape, x) if "output_norm.bias" in facts.outside else g.like(x)))
        if facts.architecture in LATE:
            x.output = True
            x = g.rows(x, inputs.outputs)
        x.output = True
        g.expand(x)
        if not facts.encoder or "output.weight" in facts.outside:
            scores = g.linear(x, facts.vocabulary)
            scores.output = True
            g.expand(scores)
        if batch.embeddings and batch.pooling > 0:
            self._pooled(x)

    def _pooled(self, x: Node) -> None:
        g, facts, batch = self._g, self._facts, self._batch
        if batch.pooling == MEAN:
            mean = g.input((batch.tokens, batch.sequences, 1, 1))
            found = g.new((x.shape[0], batch.sequences, 1, 1), g.copy(g.transpose(x)), mean)
        else:
            found = g.rows(x, g.input((batch.sequences, 1, 1, 1), "i32"))
        if batch.pooling == RANK and "cls.weight" in facts.outside:
            found = g.like(g.like(g.linear(found, facts.outside["cls.weight"].shape[-1])))
        if batch.pooling == RANK and "cls.output.weight" in facts.outside:
            found = g.like(g.linear(found, facts.outside["cls.output.weight"].shape[-1]))
        found.output = True
        g.expand(found)
