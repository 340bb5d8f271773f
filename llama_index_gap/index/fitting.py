"""Splits texts that are too long for a model, as its tokenizer counts, before embedding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    ObjectType,
    RelatedNodeInfo,
    TextNode,
)

from llama_index_gap.errors import EXPECTED_ERRORS
from llama_index_gap.nodes import as_row, texts_of_bytes
from llama_index_gap.readers.splitting import splitter_of
from llama_index_gap.threads import stop_if_given_up

_BATCH = 256
_FEWEST_TOKENS = 4  # with less room beside title and prompt, parts would be too small to use
_TRIES = 4
_CACHE_SIZE = 4096
_PARTS_PER_LOOKUP = 8
_BAD_INPUT = (*EXPECTED_ERRORS, TypeError, RecursionError)


@dataclass
class Fitted:
    """Nodes whose texts fit a model, as far as they can be split.

    Attributes:
        nodes: the nodes in their order, with all parts in place of a split node.
        cut: the number of texts that were split.
        parts: the number of their parts.
        too_long: the number of texts that are still too long for the model.
    """

    nodes: list[BaseNode] = field(default_factory=list)
    cut: int = 0
    parts: int = 0
    too_long: int = 0


def fit_nodes(nodes: Sequence[BaseNode], model: BaseEmbedding) -> Fitted:
    """Split texts that, with titles and metadata, are too long for a model.

    The first part keeps the node's id; the others are called ``ID#part-2`` and so on, so that ids
    stay the same at every reading. Captions are not split, since an image has only one.

    Args:
        nodes: text nodes and image nodes; never changed.
        model: the embedding model; if it cannot count tokens, all texts stay whole.
    """
    limit, counts = getattr(model, "longest_text", None), getattr(model, "count_tokens", None)
    if limit is None or counts is None or counts([""]) is None:
        return Fitted(list(nodes))
    (special,) = counts([""])
    fitted = Fitted()
    last = {node.node_id: node for node in nodes}
    of_bytes = texts_of_bytes(nodes)  # these are not texts, and are skipped when written
    # The splitter asks again and again, since it splits a huge word letter by letter.
    size = lru_cache(_CACHE_SIZE)(lambda text: range(max(counts([text])[0] - special, 0)))
    for start in range(0, len(nodes), _BATCH):
        stop_if_given_up()
        batch = nodes[start : start + _BATCH]
        contents = [
            _content(node) if last[node.node_id] is node and node.node_id not in of_bytes else ""
            for node in batch
        ]
        # A token has at least one letter, so short texts need not be counted. (Outside ASCII, a
        # tokenizer may normalize one letter to several.)
        contents = [
            "" if each.isascii() and len(each) + special < limit else each for each in contents
        ]
        for node, length in zip(batch, counts(contents), strict=True):
            parts = _parts(as_row(node), counts, size, limit) if length > limit else [node]
            fitted.nodes += parts
            if len(parts) > 1:
                fitted.cut += 1
                fitted.parts += len(parts)
            if length > limit:
                lengths = counts([_content(part) for part in parts])
                fitted.too_long += sum(each > limit for each in lengths)
    return fitted


def _is_first_part(node: BaseNode) -> bool:
    """Whether a node was read from an index as the first part of a text that still has others."""
    following = node.relationships.get(NodeRelationship.NEXT)
    return isinstance(following, RelatedNodeInfo) and following.node_id == f"{node.node_id}#part-2"


def parts_left(
    given: Iterable[BaseNode], fitted: Fitted, existing: Callable[[Sequence[str]], set[str]]
) -> set[str]:
    """The ids of stored parts that the texts no longer have.

    Args:
        given: the nodes as they were given.
        fitted: the result of ``fit_nodes`` for them.
        existing: returns which of some ids are stored.
    """
    ids = {node.node_id for node in fitted.nodes}
    whole = ids.difference(node.node_id for node in given if _is_first_part(node))
    return parts_of(whole, existing) - ids


def parts_of(
    node_ids: Collection[str], existing: Callable[[Sequence[str]], set[str]], after: int = 1
) -> set[str]:
    """The ids of the stored parts of nodes, after the first ``after`` parts.

    Args:
        node_ids: ids of the nodes.
        existing: returns which of some ids are stored.
        after: the number of first parts to leave out.
    """
    found: set[str] = set()
    left, first, width = set(node_ids), after + 1, 1
    while left:
        numbers = range(first, first + width)
        asked = {f"{each}#part-{number}": each for each in left for number in numbers}
        here = existing(sorted(asked))
        found |= here
        # Parts are numbered without gaps: if the last one is missing, there are no more.
        left = {each for each in left if f"{each}#part-{numbers[-1]}" in here}
        first, width = first + width, _PARTS_PER_LOOKUP
    return found


def _content(node: BaseNode) -> str:
    try:
        return as_row(node).get_content(MetadataMode.EMBED)
    except _BAD_INPUT:  # such a node is skipped with a reason when it is written
        return ""


def _parts(
    row: TextNode,
    counts: Callable[[list[str]], list[int]],
    size: Callable[[str], Sequence[int]],
    limit: int,
) -> Sequence[BaseNode]:
    if isinstance(row, ImageNode):
        return [row]
    (around,) = counts([row.model_copy(update={"text": ""}).get_content(MetadataMode.EMBED)])
    texts: list[str] = []
    room = limit - around
    for _ in range(_TRIES):
        if room < _FEWEST_TOKENS:
            return [row]
        texts = splitter_of(room, size).split_text(row.text)
        contents = [
            row.model_copy(update={"text": text}).get_content(MetadataMode.EMBED) for text in texts
        ]
        # A text may have more tokens than its sentences together.
        over = max(counts(contents), default=0) - limit
        if over <= 0:
            break
        room -= max(over, room // 8)
    source = row.relationships.get(NodeRelationship.SOURCE) or RelatedNodeInfo(
        node_id=row.node_id, node_type=ObjectType.DOCUMENT
    )
    names = _names(row.node_id)
    around_it: dict[str, Any] = {
        "relationships": {**row.relationships, NodeRelationship.SOURCE: source},
        "start_char_idx": None,
        "end_char_idx": None,
    }
    return _linked(
        [row.model_copy(update={**around_it, "id_": next(names), "text": text}) for text in texts]
    )


def _linked(parts: list[TextNode]) -> list[TextNode]:
    """Parts that refer to the next and the previous part, as LlamaIndex's chunks do."""
    last = len(parts) - 1
    return [
        part.model_copy(
            update={
                "relationships": {
                    **part.relationships,
                    **({} if place == 0 else {NodeRelationship.PREVIOUS: _named(parts[place - 1])}),
                    **({} if place == last else {NodeRelationship.NEXT: _named(parts[place + 1])}),
                }
            }
        )
        for place, part in enumerate(parts)
    ]


def _named(node: TextNode) -> RelatedNodeInfo:
    return RelatedNodeInfo(node_id=node.node_id, node_type=ObjectType.TEXT)


def _names(node_id: str) -> Iterator[str]:
    yield node_id
    for number in count(2):
        yield f"{node_id}#part-{number}"
