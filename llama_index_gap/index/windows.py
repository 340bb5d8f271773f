"""Takes any number of nodes one window at a time."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

from llama_index.core.schema import BaseNode, ImageNode

from llama_index_gap.nodes import each_node

WINDOW = 2_000
"""The most nodes that a call holds in memory at a time."""
_MOST_BYTES = 64 * 2**20
_BYTES_PER_CHARACTER = 8  # a text may be split into parts, each a node


def windows(nodes: Iterable[BaseNode], most: int = WINDOW) -> Iterator[list[BaseNode]]:
    """Yield nodes in lists of bounded length and size, taking them lazily.

    If taking a node raises, the nodes taken before come first, then the error.

    Args:
        nodes: any iterable, such as a generator.
        most: the most nodes in a list.

    Raises:
        ValueError: ``nodes`` is not an iterable of nodes.
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
        except Exception as error:  # from the caller's iterable, so raised to the caller below
            failed = error
        full = len(window) >= most or size >= _MOST_BYTES
        if window:
            yield window
        if failed is not None:
            raise failed
        if not full:
            return


def how_many(nodes: Iterable[Any]) -> int | None:
    """The number of nodes, if it is known without taking them."""
    return operator.length_hint(nodes) or None


def _bytes_of(node: BaseNode) -> int:
    size = _BYTES_PER_CHARACTER * len(getattr(node, "text", None) or "")
    image = node.image if isinstance(node, ImageNode) else None
    if image is None:
        data = getattr(getattr(node, "image_resource", None), "data", None)
        return size + len(data or b"")
    return size + len(image)
