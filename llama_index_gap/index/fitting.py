"""Texts cut to what a model reads, by its own tokenizer, before they are embedded."""

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

_AT_ONCE = 256
_FEWEST_TOKENS = 4  # with fewer left beside title and prompt, a cut would make crumbs
_TRIES = 4
_KEPT = 4096
_FIRST_LOOK = 8
_BAD_INPUT = (*EXPECTED_ERRORS, TypeError, RecursionError)


@dataclass
class Fitted:
    """Nodes whose texts a model reads whole, as far as they can be cut so.

    Attributes:
        nodes: in the order they came; of a node that was cut, all parts.
        cut: how many texts were cut.
        parts: how many they became.
        too_long: how many texts are still longer than the model reads.
    """

    nodes: list[BaseNode] = field(default_factory=list)
    cut: int = 0
    parts: int = 0
    too_long: int = 0


def fit_nodes(nodes: Sequence[BaseNode], model: BaseEmbedding) -> Fitted:
    """Cut the texts that are longer than a model reads, titles and metadata included.

    The first part keeps the node's id, the others are called ``ID#part-2`` and so on, so that ids
    stay the same at every reading. Captions stay whole, since an image has one.

    Args:
        nodes: text nodes and image nodes; never changed.
        model: what embeds them; one that does not count tokens leaves all texts whole.
    """
    limit, counts = getattr(model, "longest_text", None), getattr(model, "count_tokens", None)
    if limit is None or counts is None or counts([""]) is None:
        return Fitted(list(nodes))
    (special,) = counts([""])
    fitted = Fitted()
    last = {node.node_id: node for node in nodes}
    of_bytes = texts_of_bytes(nodes)  # are no texts, and skipped by whoever writes them
    # A word of many thousand letters is cut letter by letter.
    size = lru_cache(_KEPT)(lambda text: range(max(counts([text])[0] - special, 0)))
    for start in range(0, len(nodes), _AT_ONCE):
        stop_if_given_up()
        batch = nodes[start : start + _AT_ONCE]
        contents = [
            _content(node) if last[node.node_id] is node and node.node_id not in of_bytes else ""
            for node in batch
        ]
        # A token is at least one letter, so that a short text need not be counted. (Beyond
        # ASCII a letter may become several, where a tokenizer normalizes it.)
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
    """Whether a node came out of an index as the first part of a text, whose others stay there."""
    following = node.relationships.get(NodeRelationship.NEXT)
    return isinstance(following, RelatedNodeInfo) and following.node_id == f"{node.node_id}#part-2"


def parts_left(
    given: Iterable[BaseNode], fitted: Fitted, existing: Callable[[Sequence[str]], set[str]]
) -> set[str]:
    """The ids of stored parts that texts were cut into before, and are no longer.

    Args:
        given: the nodes as they were given.
        fitted: what ``fit_nodes`` made of them.
        existing: which of some ids are stored.
    """
    ids = {node.node_id for node in fitted.nodes}
    whole = ids.difference(node.node_id for node in given if _is_first_part(node))
    return parts_of(whole, existing) - ids


def parts_of(
    node_ids: Collection[str], existing: Callable[[Sequence[str]], set[str]], after: int = 1
) -> set[str]:
    """The ids of the parts that nodes were cut into, beyond the first ``after``, which are stored.

    Args:
        node_ids: of the nodes.
        existing: which of some ids are stored.
        after: how many parts not to look for.
    """
    found: set[str] = set()
    left, first, width = set(node_ids), after + 1, 1
    while left:
        numbers = range(first, first + width)
        asked = {f"{each}#part-{number}": each for each in left for number in numbers}
        here = existing(sorted(asked))
        found |= here
        # Parts are numbered without a gap: where the last one is missing, there are no more.
        left = {each for each in left if f"{each}#part-{numbers[-1]}" in here}
        first, width = first + width, _FIRST_LOOK
    return found


def _content(node: BaseNode) -> str:
    try:
        return as_row(node).get_content(MetadataMode.EMBED)
    except _BAD_INPUT:  # whoever writes it skips it, and says why
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
        # Tokens of a whole may be more than those of its sentences together.
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
    """Parts that name the next one and the one before, as LlamaIndex's chunks do."""
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
