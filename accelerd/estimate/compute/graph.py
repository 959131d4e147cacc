"""The outline of a computation: which results there are, how large, what each is made of, and in which order.

Only what decides about memory is kept: shapes, strides, who looks into whose bytes, and which results may overwrite
what they are made of. Weights and caches lie elsewhere; where they only are factors they do not appear at all. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

HOST: Final = 0  # the place of main memory; devices are 1, 2, …
SIZES: Final = {"f32": 4, "f16": 2, "i32": 4, "i64": 8}

Shape = tuple[int, int, int, int]


class Node:
    """One result. `root` is the node in whose bytes it lies, when it is a view."""

    __slots__ = (
        "allocated", "at", "children", "external", "inplace", "input", "keep", "needed", "output", "place", "root",
        "shape", "size", "source", "strides", "type", "views",
    )  # fmt: skip

    def __init__(self, shape: Shape, kind: str, source: Sequence[Node], place: int) -> None:
        self.shape = shape
        self.type = kind
        self.source = source
        self.place = place
        one = SIZES[kind]
        a = one * shape[0]
        b = a * shape[1]
        c = b * shape[2]
        self.strides = (one, a, b, c)
        self.size = c * shape[3]
        self.root: Node | None = None
        self.inplace = False
        self.input = False
        self.output = False
        self.external = False  # its bytes lie elsewhere
        # for the search of places
        self.needed = False  # already in the order
        self.children = 0
        self.views = 0
        self.allocated = False
        self.keep = False  # a mark only: nothing is computed
        self.at = 0  # bytes from the beginning of the buffer


class Graph:
    """Results in the order in which they are computed. `here` is the place where new ones are computed."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.leaves: list[Node] = []
        self.here = HOST

    # --- the order --------------------------------------------------------------------------------------------

    def expand(self, node: Node) -> None:
        """Compute it next, and before it what it is made of that is not there yet."""
        if node.needed:
            return
        stack = [(node, iter(node.source))]
        node.needed = True
        while stack:
            top, rest = stack[-1]
            for child in rest:
                if not child.needed:
                    child.needed = True
                    stack.append((child, iter(child.source)))
                    break
            else:
                stack.pop()
                if top.source:
                    self.nodes.append(top)
                else:
                    self.leaves.append(top)

    # --- what is there ----------------------------------------------------------------------------------------

    def input(self, shape: Shape, kind: str = "f32") -> Node:
        """Filled in from outside before the computation."""
        node = Node(shape, kind, (), HOST)
        node.input = True
        return node

    def external(self, shape: Shape) -> Node:
        """Bytes of a cache or a weight."""
        node = Node(shape, "f32", (), self.here)
        node.external = True
        return node

    # --- results ----------------------------------------------------------------------------------------------

    def new(self, shape: Shape, *source: Node, kind: str = "f32") -> Node:
        """A result with bytes of its own."""
        return Node(shape, kind, source, self.here)

    def like(self, first: Node, *more: Node) -> Node:
        """Each element from the same of `first`: may overwrite what it is made of."""
        node = Node(first.shape, first.type, (first, *more), self.here)
        node.inplace = True
        return node

    def linear(self, x: Node, width: int) -> Node:
        """`x` times a matrix of weights."""
        return self.new((width, *x.shape[1:]), x)

    def product(self, a: Node, b: Node) -> Node:
        """Two results multiplied as matrices."""
        return self.new((a.shape[1], *b.shape[1:]), a, b)

    def rows(self, x: Node, index: Node) -> Node:
        """Some rows of `x`."""
        return self.new((x.shape[0], *index.shape[:3]), x, index)

    def copy(self, x: Node, shape: Shape | None = None) -> Node:
        """The same with its elements side by side."""
        return self.new(shape or x.shape, x, kind=x.type)

    # --- other looks at the same bytes ------------------------------------------------------------------------

    def view(self, x: Node, shape: Shape, strides: tuple[int, int, int] | None = None) -> Node:
        """A part of `x`; `strides` in bytes of the second to the fourth dimension."""
        node = Node(shape, x.type, (x,), x.place)
        node.root = x.root or x
        if strides is not None:
            node.strides = (node.strides[0], *strides)
        return node

    def reshape(self, x: Node, shape: Shape) -> Node:
        return self.view(x, shape)

    def permute(self, x: Node, axes: tuple[int, int, int, int]) -> Node:
        """Dimension i becomes dimension axes[i]."""
        shape, strides = [0] * 4, [0] * 4
        for old, new in enumerate(axes):
            shape[new], strides[new] = x.shape[old], x.strides[old]
        node = self.view(x, (shape[0], shape[1], shape[2], shape[3]))
        node.strides = (strides[0], strides[1], strides[2], strides[3])
        return node

    def transpose(self, x: Node) -> Node:
        return self.permute(x, (1, 0, 2, 3))

    def store(self, x: Node, where: Node, *more: Node) -> Node:
        """Write `x` into the bytes of `where`."""
        node = Node(where.shape, where.type, (x, *more, where), where.place)
        node.root = where.root or where
        return node


def contiguous(x: Node) -> bool:
    """Do its elements lie side by side?"""
    expected = SIZES[x.type]
    for length, stride in zip(x.shape, x.strides, strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
