"""Nodes that are given to an index, taken a window at a time, however many there are."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from llama_index.core.schema import BaseNode, ImageNode

from llama_index_gap.nodes import each_node

WINDOW = 2_000
"""Most nodes that a call holds at a time."""
_MOST_BYTES = 64 * 2**20
_PER_CHARACTER = 8  # a text may be cut into parts, each a node


def windows(nodes: Iterable[BaseNode], most: int = WINDOW) -> Iterator[list[BaseNode]]:
    """Nodes in lists of bounded length and size, taken as they are asked for.

    If taking the next node raises, what was taken before is given first; then the error comes.

    Args:
        nodes: any iterable, such as a generator.
        most: most nodes of a list.

    Raises:
        ValueError: it is no iterable of nodes.
    """
    taken = each_node(nodes)
    while True:
        window: list[BaseNode] = []
        size = 0
        failed: Exception | None = None
        try:
            for node in taken:
                window.append(node)
                size += _bytes_of(node)
                if len(window) >= most or size >= _MOST_BYTES:
                    break
        except Exception as error:  # of whoever gives the nodes: it goes on to the caller
            failed = error
        full = len(window) >= most or size >= _MOST_BYTES
        if window:
            yield window
        if failed is not None:
            raise failed
        if not full:
            return


def how_many(nodes: Iterable[Any]) -> int | None:
    """How many nodes there are, where that can be told without taking them."""
    return operator.length_hint(nodes) or None


def _bytes_of(node: BaseNode) -> int:
    size = _PER_CHARACTER * len(getattr(node, "text", None) or "")
    image = node.image if isinstance(node, ImageNode) else None
    if image is None:
        data = getattr(getattr(node, "image_resource", None), "data", None)
        return size + len(data or b"")
    return size + len(image)
