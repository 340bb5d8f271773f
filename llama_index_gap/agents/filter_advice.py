"""Advice on filters that match nothing, based on the whole collection, not on the hits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_gap.agents.quoting import as_json, quote, visible_metadata
from llama_index_gap.store.filters import COLUMNS

Examples: TypeAlias = Callable[[str | None], Sequence[BaseNode] | None]
"""Gives some nodes that have a field (None: any), or None where the stores cannot tell."""

_VALUES_NAMED = 5
_FIELDS_NAMED = 50
_SHORT = 40
_TRUE_WITHOUT_FIELD = {FilterOperator.NE, FilterOperator.NIN, FilterOperator.IS_EMPTY}
_LISTS = {FilterOperator.CONTAINS, FilterOperator.ANY, FilterOperator.ALL}


def mistaken_filters(
    filters: MetadataFilters | None, hits: Sequence[NodeWithScore], examples: Examples
) -> list[str]:
    """Name filters on fields that no document has, and on values of another type.

    Args:
        filters: of an agent, which cannot nest them.
        hits: found with the filters or without them.
        examples: gives nodes for a field that no hit has.
    """
    nodes = [hit.node for hit in hits]
    said: dict[str, None] = {}
    for each in _flat(filters):
        if each.key in COLUMNS:
            continue
        having = _having(each.key, nodes, examples)
        if not having:
            found = "No document" if having is not None else "No document that was found"
            said[
                f"{found} has the field {quote(each.key)}; {_known(each.key, nodes, examples)}"
            ] = None
        elif mismatch := _mismatch(each, _visible_values(each.key, having)):
            said[mismatch] = None
    return list(said)


def why_nothing_fits(filters: MetadataFilters | None, examples: Examples) -> list[str]:
    """Name the mistaken filters because of which nothing fits, as ``mistaken_filters`` does.

    Args:
        filters: may be nested; only conditions that every hit must fulfil are checked.
        examples: gives nodes of the whole collection, without the filters.
    """
    needed: list[MetadataFilter | MetadataFilters] = list(_needed(filters))
    mistakes = mistaken_filters(MetadataFilters(filters=needed), [], examples) if needed else []
    return mistakes if mistakes and examples(None) else []


def values_of(
    filters: MetadataFilters | None, hits: Sequence[NodeWithScore], examples: Examples
) -> list[str]:
    """Some values of each filtered field, if chat models may see them.

    Args:
        filters: as for ``mistaken_filters``.
        hits: found without the filters.
        examples: gives nodes for a field that no hit has.
    """
    nodes = [hit.node for hit in hits]
    said: list[str] = []
    for key in dict.fromkeys(each.key for each in _flat(filters)):
        values = _visible_values(key, _having(key, nodes, examples) or ())
        some = list(dict.fromkeys(as_json(value, _SHORT) for value in values))[:_VALUES_NAMED]
        if some:
            said.append(f"Without them, {quote(key)} is {', '.join(some)}, …")
    return said


def _having(key: str, nodes: Sequence[BaseNode], examples: Examples) -> Sequence[BaseNode] | None:
    """Nodes with a field: from these, or else from the collection; None if that is unknown."""
    return [node for node in nodes if key in node.metadata] or examples(key)


def _visible_values(key: str, nodes: Iterable[BaseNode]) -> list[Any]:
    shown = map(visible_metadata, nodes)
    return [metadata[key] for metadata in shown if key in metadata]


def _known(key: str, nodes: Sequence[BaseNode], examples: Examples) -> str:
    """The known fields, and the one that the agent may have meant."""
    others = [*nodes, *(examples(None) or ())]
    fields = list(dict.fromkeys(field for node in others for field in visible_metadata(node)))
    known = ", ".join(map(quote, fields[:_FIELDS_NAMED])) or "none"
    plain = {_plain(field): field for field in fields}
    near = [plain[each] for each in get_close_matches(_plain(key), plain, n=1)]
    # The examples may lack a rare field: try other spellings.
    near = near or [each for each in _spellings(key) if _visible_values(each, examples(each) or ())]
    meant = f" Did you mean {quote(near[0])}?" if near else ""
    return f"their fields are: {known}.{meant}"


def _spellings(key: str) -> list[str]:
    """A key in small and capital letters, in the singular and plural, with other dashes."""
    bare = key.strip()
    dashed = [bare, *(re.sub(r"[\s_-]+", dash, bare) for dash in "_- ")]
    ways = [each for way in dashed for each in (way, way.lower(), way.upper(), way.capitalize())]
    ways += [each.removesuffix("s") if each.endswith("s") else f"{each}s" for each in ways[:2]]
    return [each for each in dict.fromkeys(ways) if each not in {key, ""}]


def _plain(field: str) -> str:
    return "".join(filter(str.isalnum, field.casefold()))


def _mismatch(condition: MetadataFilter, values: Sequence[Any]) -> str | None:
    """The message for a filter whose value has another type than all values of its field."""
    kinds = {_kind(value) for value in values}
    if len(kinds) != 1 or condition.operator is FilterOperator.TEXT_MATCH:
        return None
    (kind,), key = kinds, quote(condition.key)
    example = as_json(values[0], _SHORT)
    if condition.operator in _LISTS:
        if kind == "lists":
            return None
        return f"The values of {key} are {kind}, such as {example}, no lists: use '=='."
    if kind == "lists":
        return f"The values of {key} are lists, such as {example}: use 'contains'."
    asked = condition.value if isinstance(condition.value, list) else [condition.value]
    other = {_kind(value) for value in asked} - {kind}
    if not other or kind == "objects":
        return None
    return (
        f"The values of {key} are {kind}, such as {example}, and never equal to {other.pop()}: "
        f"pass {kind}."
    )


def _kind(value: Any) -> str:
    match value:
        case str():
            return "texts"
        case bool() | int() | float():
            return "numbers"
        case list() | tuple():
            return "lists"
    return "objects"


def _flat(filters: MetadataFilters | None) -> list[MetadataFilter]:
    """The filters' conditions; agents cannot nest them."""
    listed = filters.filters if filters else []
    return [each for each in listed if isinstance(each, MetadataFilter)]


def _needed(filters: MetadataFilters | None) -> Iterator[MetadataFilter]:
    """The conditions that every hit must fulfil, and that need their field."""
    listed = filters.filters if filters else []
    if filters and filters.condition not in {None, FilterCondition.AND}:
        listed = listed if len(listed) == 1 and filters.condition is FilterCondition.OR else []
    for each in listed:
        if isinstance(each, MetadataFilters):
            yield from _needed(each)
        elif each.operator not in _TRUE_WITHOUT_FIELD:
            yield each
