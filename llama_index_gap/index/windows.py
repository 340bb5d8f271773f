"""Nodes that are given to an index, taken a window at a time, however many there are."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from typing import Any

from llama_index.core.schema import BaseNode, ImageNode

from llama_index_gap.errors import InvalidValueError

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


def as_ids(ids: Iterable[str], what: str) -> list[str]:
    """Ids as a list, each as it is; a single text is an error, for it would be read by its letters.

    Args:
        ids: any iterable.
        what: the parameter's name, for the message.

    Raises:
        ValueError: it is no iterable of texts.
    """
    if isinstance(ids, str | bytes):
        raise InvalidValueError(f"{what}={str(ids)[:60]!r}: is one text; pass a list, [{what}]")
    if not isinstance(ids, Iterable):
        raise InvalidValueError(f"{what} is {_shown(ids)}; pass an iterable of ids, such as a list")
    found = list(ids)
    for each in found:
        if not isinstance(each, str):
            raise InvalidValueError(f"{what} holds {_shown(each)}, and ids are texts")
    return [str(each) for each in found]  # those of NumPy's arrays are texts of its own


def each_node(nodes: Iterable[BaseNode]) -> Iterator[BaseNode]:
    """Nodes or documents one by one; what is no iterable of them is refused at once.

    Args:
        nodes: any iterable.

    Raises:
        ValueError: it is none; says what to pass.
    """
    if isinstance(nodes, AsyncIterable):
        raise InvalidValueError(
            f"nodes are {_shown(nodes)}, which only asynchronous code can take; collect them in a "
            "list, or pass a plain generator: the asynchronous methods run it in a thread"
        )
    if isinstance(nodes, BaseNode):
        raise InvalidValueError(f"nodes are one node, {_shown(nodes)}; pass a list, [node]")
    if isinstance(nodes, Mapping):
        raise InvalidValueError("nodes are a mapping, which gives its keys; pass its .values()")
    if isinstance(nodes, str | bytes) or not isinstance(nodes, Iterable):
        raise InvalidValueError(
            f"nodes are {_shown(nodes)}; pass an iterable of nodes, such as a list, a generator or "
            "what read_corpus gives"
        )
    return _each_checked(nodes)


def _each_checked(nodes: Iterable[BaseNode]) -> Iterator[BaseNode]:
    for place, node in enumerate(nodes):
        if not isinstance(node, BaseNode):
            raise InvalidValueError(
                f"nodes[{place}] is {_shown(node)}, and no LlamaIndex node or document"
            )
        yield node


def _bytes_of(node: BaseNode) -> int:
    size = _PER_CHARACTER * len(getattr(node, "text", None) or "")
    image = node.image if isinstance(node, ImageNode) else None
    if image is None:
        data = getattr(getattr(node, "image_resource", None), "data", None)
        return size + len(data or b"")
    return size + len(image)


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"
