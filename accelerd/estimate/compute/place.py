"""Finds a place for every result of a graph, in buffers that are as small as the search makes them.

The search is that of ggml's allocator, so that sizes come out as there: best fit, neighbours merged, overwriting where
a result is the last user of what it is made of; what is computed elsewhere than it is used is copied there. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from accelerd.estimate.compute.graph import HOST, Graph, Node

ENDLESS: Final = 1 << 62
ALIGNMENT: Final = 32  # bytes, in main memory
DEVICE_ALIGNMENT: Final = 128


@dataclass
class Buffer:
    """The memory of one place: what is free of it, by address; the last part has no end."""

    alignment: int
    free: list[list[int]] = field(default_factory=lambda: [[0, ENDLESS]])  # from, bytes
    peak: int = 0

    def take(self, size: int) -> int:
        """The address of so many bytes."""
        if not size:
            return 0
        size = -(-size // self.alignment) * self.alignment
        best, least = len(self.free) - 1, ENDLESS
        for index in range(len(self.free) - 1):
            there = self.free[index][1]
            if size <= there <= least:
                best, least = index, there
        part = self.free[best]
        at = part[0]
        part[0] += size
        part[1] -= size
        if part[1] == 0:
            del self.free[best]
        self.peak = max(self.peak, at + size)
        return at

    def give(self, at: int, size: int) -> None:
        """Take back what was given."""
        if not size:
            return
        size = -(-size // self.alignment) * self.alignment
        free = self.free
        for index, part in enumerate(free):
            if part[0] + part[1] == at:
                part[1] += size
                if index + 1 < len(free) and part[0] + part[1] == free[index + 1][0]:
                    part[1] += free.pop(index + 1)[1]
                return
            if at + size == part[0]:
                part[0] = at
                part[1] += size
                if index and free[index - 1][0] + free[index - 1][1] == at:
                    free[index - 1][1] += part[1]
                    del free[index]
                return
            if part[0] > at:
                free.insert(index, [at, size])
                return
        free.append([at, size])


def sizes(graph: Graph, places: int, copies: int = 1) -> list[int]:
    """Bytes of the buffer of each place; [0] is main memory. `copies`: of what crosses; 4 where devices take turns."""
    nodes, leaves = _crossing(graph, places, copies) if places > 1 else (graph.nodes, graph.leaves)
    buffers = [Buffer(DEVICE_ALIGNMENT if place else ALIGNMENT) for place in range(places)]
    for node in nodes:
        for one in (node, *node.source):
            one.children = one.views = 0
            one.allocated = False
    for leaf in leaves:
        leaf.children = leaf.views = 0
        leaf.allocated = False
    for leaf in leaves:
        _allocate(leaf, buffers)
    for node in nodes:
        if node.root is not None and not node.keep:
            node.root.views += 1
        for source in node.source:
            source.children += 1
            if source.input:
                _allocate(source, buffers)
    for node in nodes:
        for source in node.source:
            _allocate(source, buffers)
        _allocate(node, buffers)
        for source in node.source:
            source.children -= 1
            if source.children or source.views:
                continue
            root = source.root
            if root is not None:
                root.views -= 1
                if not root.views and not root.children and root.allocated:
                    _release(root, buffers)
            elif source.allocated:
                _release(source, buffers)
    return [buffer.peak for buffer in buffers]


def _allocate(node: Node, buffers: list[Buffer]) -> None:
    if node.allocated or node.external or node.root is not None:
        return
    node.allocated = True
    if node.inplace:
        for parent in node.source:
            # A view is never overwritten, even where it is all that is left of what it looks into.
            if not parent.allocated or parent.output or parent.children != 1 or parent.views:
                continue
            if parent.shape == node.shape and parent.strides == node.strides and parent.place == node.place:
                parent.allocated = False
                node.at = parent.at
                _give_rest(parent, node, buffers[node.place])
                return
    node.at = buffers[node.place].take(node.size)


def _give_rest(old: Node, new: Node, buffer: Buffer) -> None:
    """What the overwritten result had beyond the new one is free."""
    unit = buffer.alignment
    whole, used = -(-old.size // unit) * unit, -(-new.size // unit) * unit
    if whole > used:
        buffer.give(old.at + used, whole - used)


def _release(node: Node, buffers: list[Buffer]) -> None:
    if not node.output:
        buffers[node.place].give(node.at, node.size)
        node.allocated = False


def _crossing(graph: Graph, places: int, copies: int) -> tuple[list[Node], list[Node]]:
    """Nodes and leaves with a copy of everything that is used elsewhere than where it is; the graph stays as it is."""
    made: dict[tuple[int, int], Node] = {}
    stand: dict[int, Node] = {}  # nodes that take something else than the graph says
    nodes: list[Node] = []
    waiting: list[Node] = []
    first_copies: list[Node] = []
    inputs: dict[int, Node] = {}

    def flush() -> None:
        nodes.extend(waiting)
        waiting.clear()

    place = next((node.place for node in graph.nodes if node.root is None), HOST)
    for node in graph.nodes:
        if node.root is None and node.place != place:
            flush()
            place = node.place
        source, changed = [], False
        for one in node.source:
            here = stand.get(id(one), one)
            where = (here.root or here).place if here.root is not None else here.place
            if node.root is None and where != node.place and not here.external and not (here.root or here).external:
                key = (id(here), node.place)
                if key not in made:
                    copy = Node(here.shape, here.type, (), node.place)
                    mark = Node(here.shape, here.type, (here,), where)
                    mark.root, mark.keep = here.root or here, True
                    nodes += [mark, copy]
                    made[key] = copy
                    if copies > 1:
                        copy.input = copy.output = True
                        first_copies += [copy, *(_twin(copy) for _ in range(copies - 1))]
                here, changed = made[key], True
            elif here is not one:
                changed = True
            source.append(here)
        if changed:
            other = Node(node.shape, node.type, tuple(source), node.place)
            other.strides, other.inplace, other.output = node.strides, node.inplace, node.output
            if node.root is not None:
                root = stand.get(id(node.root), node.root)
                other.root, other.place = root, root.place
            stand[id(node)] = other
            node = other
        waiting.append(node)
    flush()
    leaves = list(graph.leaves)
    if copies > 1:
        for leaf in graph.leaves:
            if leaf.input:
                inputs[id(leaf)] = leaf
        leaves = [*first_copies, *(_twin(leaf) for leaf in inputs.values() for _ in range(copies - 1)), *leaves]
    return nodes, leaves


def _twin(node: Node) -> Node:
    """Another one of the same size that is never given back."""
    other = Node(node.shape, node.type, (), node.place)
    other.input = other.output = True
    return other
