"""Splits nodes into parts for workers, and finds what several parts share."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import BaseNode, ImageNode, TextNode

from llama_index_gap.nodes import document_key

_MOST_CHARACTERS = 8 * 2**20
_DIGEST_BYTES = 16


def cut_into_parts(nodes: Iterable[BaseNode], size: int) -> Iterator[list[BaseNode]]:
    """Split nodes into parts of about equal size, without splitting a document.

    Args:
        nodes: read lazily; the nodes of a document must follow each other.
        size: a part ends once it has this many nodes, or 8 Mi characters of texts and base64.
    """
    part: list[BaseNode] = []
    characters, last = 0, None
    for node in nodes:
        document = document_key(node, "document")
        if document != last and (len(part) >= size or characters >= _MOST_CHARACTERS):
            yield part
            part, characters = [], 0
        last = document
        part.append(node)
        characters += len(node.text) if isinstance(node, TextNode) else 0
        characters += len(node.image or "") if isinstance(node, ImageNode) else 0
    if part:
        yield part


def digest(name: str) -> bytes:
    """A digest of 16 bytes that stands for an id of any length."""
    encoded = name.encode(errors="surrogatepass")
    return hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()


class KnownIds:
    """The ids in each of many parts, as digests."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.bytes_]] = []
        self._sorted: npt.NDArray[np.bytes_] | None = None

    def add(self, ids: Iterable[str]) -> None:
        """Note the ids of the next part."""
        digests = sorted({digest(each) for each in ids})
        self._parts.append(np.array(digests, dtype=f"S{_DIGEST_BYTES}"))
        self._sorted = None

    def __contains__(self, name: str) -> bool:
        if self._sorted is None:
            self._sorted = np.unique(self._all())
        place = int(np.searchsorted(self._sorted, np.bytes_(digest(name))))
        return place < len(self._sorted) and self._padded(self._sorted[place]) == digest(name)

    def again(self) -> tuple[Mapping[int, frozenset[bytes]], frozenset[bytes]]:
        """The digests that are in more than one part.

        Returns:
            For each part, those that a later part has again; and all that several parts have.
        """
        of_all = self._all()
        numbers = np.repeat(np.arange(len(self._parts)), [len(each) for each in self._parts])
        order = np.argsort(of_all, kind="stable")  # keeps the order of parts with the same id
        same = np.flatnonzero(of_all[order[1:]] == of_all[order[:-1]])
        later: defaultdict[int, set[bytes]] = defaultdict(set)
        for place in same:
            later[int(numbers[order[place]])].add(self._padded(of_all[order[place]]))
        several = frozenset().union(*later.values())
        return {number: frozenset(each) for number, each in later.items()}, several

    def _all(self) -> npt.NDArray[np.bytes_]:
        empty = np.array([], dtype=f"S{_DIGEST_BYTES}")
        return np.concatenate([empty, *self._parts])

    @staticmethod
    def _padded(stored: Any) -> bytes:
        """A stored digest with the zeros at its end, which NumPy strips."""
        return bytes(stored).ljust(_DIGEST_BYTES, b"\0")


def ids_of(nodes: Sequence[BaseNode]) -> list[str]:
    """The ids of nodes."""
    return [node.node_id for node in nodes]


def documents_of(nodes: Sequence[BaseNode]) -> list[str]:
    """The documents of nodes, without duplicates."""
    return list(dict.fromkeys(document_key(node, "document") for node in nodes))
