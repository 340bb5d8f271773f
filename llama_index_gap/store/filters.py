"""LlamaIndex metadata filters as Milvus filter expressions, every value quoted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_gap.errors import InvalidValueError, UnsupportedError
from llama_index_gap.nodes import as_ids

Scalar: TypeAlias = str | int | float

ID_FIELD = "id"
DOC_ID_FIELD = "doc_id"
TEXT_FIELD = "text"
NO_DOCUMENT = ("", "None")
"""Values of ``doc_id`` for a node without a document; LlamaIndex's own store writes "None"."""

# Keys that are columns of the collection; every other key is in the row's dynamic field.
COLUMNS = {
    ID_FIELD: ID_FIELD,
    DOC_ID_FIELD: DOC_ID_FIELD,
    "document_id": DOC_ID_FIELD,  # LlamaIndex's other names for it
    "ref_doc_id": DOC_ID_FIELD,
    TEXT_FIELD: TEXT_FIELD,
}
# The only escapes that both Milvus and Milvus Lite know; other characters are written unescaped.
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Words of the filter language; some are reserved only in newer servers.
_WORDS = re.compile(
    r"(and|between|exists|false|in|interval|is|iso|like|not|null|or|true)|"
    r"(json|array|text_match|phrase_match|random_sample|st|match)(_.*)?",
    re.IGNORECASE,
)
_COMPARISONS = {
    FilterOperator.GT: (">", "<="),
    FilterOperator.GTE: (">=", "<"),
    FilterOperator.LT: ("<", ">="),
    FilterOperator.LTE: ("<=", ">"),
}
_NEGATIONS = {FilterOperator.NE: FilterOperator.EQ, FilterOperator.NIN: FilterOperator.IN}
_NOTHING = f"{ID_FIELD} in []"
_INT64 = 2**63


def filter_expression(
    filters: MetadataFilters | None = None,
    *,
    node_ids: Iterable[str] | None = None,
    doc_ids: Iterable[str] | None = None,
    document_keys: Iterable[str] | None = None,
    other_than: Sequence[str] = (),
) -> str:
    """Translate filters and ids into one Milvus expression; all of them must hold.

    If a row lacks a key, or its value is null, a condition on that key is false, both on Milvus
    Lite and on a server. The negation is therefore true: ``!=``, ``nin`` and a surrounding ``NOT``
    match rows without the key, as in LlamaIndex's own evaluation. ``NOT`` over several filters
    matches rows where none of them holds. A text is neither greater nor less than a number, also
    under a negation. To match booleans, use ``== 1`` and ``== 0``, since LlamaIndex's filters take
    no booleans.

    Args:
        filters: conditions, nested to any depth; empty ones match everything.
        node_ids: only these nodes; an empty list matches nothing.
        doc_ids: only nodes of these documents; an empty list matches nothing.
        document_keys: only nodes of these documents, and nodes with one of these ids.
        other_than: no nodes of the documents with these keys.

    Returns:
        The expression; ``""`` if there is no restriction.

    Raises:
        ValueError: a value does not fit its operator, or a key cannot be filtered on.
        NotImplementedError: Milvus has no such operator.
    """
    parts = [_all_of(filters) if filters is not None else ""]
    if node_ids is not None:
        parts.append(f"{ID_FIELD} in {literal_list(as_ids(node_ids, 'node_ids'))}")
    if doc_ids is not None:
        parts.append(f"{DOC_ID_FIELD} in {literal_list(as_ids(doc_ids, 'doc_ids'))}")
    if document_keys is not None:
        keys = literal_list(as_ids(document_keys, "document_keys"))
        parts.append(f"({DOC_ID_FIELD} in {keys}) or ({ID_FIELD} in {keys})")
    if other_than:
        keys, none = literal_list(other_than), literal_list(NO_DOCUMENT)
        parts.append(
            f"({DOC_ID_FIELD} not in {keys}) and "
            f"(({ID_FIELD} not in {keys}) or ({DOC_ID_FIELD} not in {none}))"
        )
    parts = [part for part in parts if part]
    return parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)


def literal(value: Scalar) -> str:
    """Write a value as a literal of the filter language, quoted and escaped.

    Args:
        value: a string, an integer of 64 bits, or a finite number.

    Raises:
        ValueError: it is any other value, or a string that is not valid Unicode.
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int() if -_INT64 < value < _INT64:
            return str(value)
        case int():
            raise InvalidValueError(
                f"{value}: Milvus compares only integers of 64 bits; use a smaller one"
            )
        case float() if math.isfinite(value):
            return repr(value)
        case float():
            raise InvalidValueError(f"{value}: a filter compares only finite numbers")
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InvalidValueError(
                    f"{value!r}: is not valid Unicode ({error.reason})"
                ) from error
            return f'"{value.translate(_ESCAPES)}"'
    raise InvalidValueError(f"{value!r}: a filter compares only strings and numbers")


def literal_list(values: Sequence[Scalar]) -> str:
    """Write values as a list of literals."""
    return f"[{', '.join(map(literal, values))}]"


def _all_of(filters: MetadataFilters, *, negated: bool = False) -> str:
    """A group of filters under its condition; empty groups restrict nothing.

    Negations are moved down to the single conditions: for values that Milvus Lite cannot compare, a
    condition is unknown, and so is its negation.
    """
    condition = filters.condition or FilterCondition.AND
    if condition is FilterCondition.NOT:
        condition, negated = FilterCondition.OR, not negated
    written = [
        _all_of(inner, negated=negated)
        if isinstance(inner, MetadataFilters)
        else _one(inner, negated=negated)
        for inner in filters.filters
    ]
    parts = [f"({part})" for part in written if part]
    both = (condition is FilterCondition.AND) != negated
    return (" and " if both else " or ").join(parts)


def _one(condition: MetadataFilter, *, negated: bool = False) -> str:
    key, operator, value = condition.key, condition.operator, condition.value
    if key == "embedding":
        raise InvalidValueError("filter on 'embedding': vectors are searched, not filtered")
    if re.search(r"[\x00-\x1f]", key):
        raise InvalidValueError(
            f"filter on {key!r}: Milvus cannot find keys with control characters; rename the key"
        )
    if operator in _NEGATIONS:
        positive = condition.model_copy(update={"operator": _NEGATIONS[operator]})
        return _one(positive, negated=not negated)
    if operator in _COMPARISONS:
        sign, opposite = _COMPARISONS[operator]
        expression = f"{_access(key)} {opposite if negated else sign} {literal(_scalar(condition))}"
        return _or_missing(key, expression) if negated else expression
    match operator:
        case FilterOperator.IS_EMPTY:
            expression = _is_empty(key)
            return f"not ({expression})" if negated else expression
        case FilterOperator.EQ | FilterOperator.IN:
            expression = _any_equal(condition, _as_list(condition))
        case FilterOperator.CONTAINS | FilterOperator.ANY | FilterOperator.ALL:
            expression = _contains(condition, _as_list(condition))
        case FilterOperator.TEXT_MATCH:
            expression = f"{_access(key)} like {literal(_pattern(condition))}"
        case _:
            raise UnsupportedError(
                f"filter operator {operator.value!r} on {key!r} with {value!r}: Milvus has no such "
                "operator; use 'text_match', which is case-sensitive"
            )
    return _or_missing(key, f"not ({expression})") if negated else expression


def _or_missing(key: str, expression: str) -> str:
    """Make a condition true for rows without the key, for which Milvus Lite calls it unknown."""
    return expression if key in COLUMNS else f"(not ({_exists(key)})) or ({expression})"


def _exists(key: str) -> str:
    return f"exists {_access(key)}"


def _access(key: str) -> str:
    return COLUMNS.get(key) or f"$meta[{literal(key)}]"


def _is_plain(key: str) -> bool:
    """Whether a key can stand in an expression without quotes."""
    return bool(key not in COLUMNS and _PLAIN_KEY.fullmatch(key) and not _WORDS.fullmatch(key))


def _any_equal(condition: MetadataFilter, values: list[Scalar]) -> str:
    """A condition that the row's value is one of these."""
    key = condition.key
    if not values:
        return _NOTHING
    _check_column_values(condition, values)
    if key in COLUMNS:
        return f"{COLUMNS[key]} in {literal_list(values)}"
    # Not `in`, which fails on Milvus Lite if a row holds a list.
    parts = [f"{_access(key)} == {literal(value)}" for value in values]
    if not isinstance(values[0], str):
        parts += [f"{_access(key)} == {literal(value == 1)}" for value in {0, 1} & set(values)]
    return _either(parts)


def _either(parts: list[str]) -> str:
    """Join conditions by `or`, as a tree: a server takes seconds to parse a long chain."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_either(parts[:middle])}) or ({_either(parts[middle:])})"


def _contains(condition: MetadataFilter, values: list[Scalar]) -> str:
    """A condition that the row's list holds the value, any of the values, or all of them."""
    key = condition.key
    if not _is_plain(key):
        raise InvalidValueError(
            f"filter {condition.operator.value!r} on {key!r}: lists can be searched only under a "
            "plain key (letters, digits, _; not a word of the filter language); rename the key"
        )
    every = condition.operator is FilterOperator.ALL
    if not values:
        return _exists(key) if every else _NOTHING
    return (" and " if every else " or ").join(
        f"json_contains_any({key}, {literal_list([value])})" for value in values
    )


def _is_empty(key: str) -> str:
    """A condition that the key is missing or its value is empty.

    Null values and empty lists are stored as missing keys.
    """
    if key in COLUMNS:
        return f'{COLUMNS[key]} == ""'
    return f'(not ({_exists(key)})) or ({_access(key)} == "")'


def _pattern(condition: MetadataFilter) -> str:
    value = _scalar(condition)
    if not isinstance(value, str):
        raise InvalidValueError(
            f"filter 'text_match' on {condition.key!r}: {value!r} is not a string"
        )
    if re.search(r"[%_\\]", value):
        raise UnsupportedError(
            f"filter 'text_match' on {condition.key!r} with {value!r}: '%', '_' and '\\' are "
            "wildcards that Milvus Lite cannot escape; leave them out"
        )
    return f"%{value}%"


def _scalar(condition: MetadataFilter) -> Scalar:
    value = condition.value
    if value is None or isinstance(value, list):
        raise InvalidValueError(
            f"filter {condition.operator.value!r} on {condition.key!r} takes one value, not "
            f"{value!r}; use 'in' for lists and 'is_empty' for missing values"
        )
    _check_column_values(condition, [value])
    return value


def _as_list(condition: MetadataFilter) -> list[Scalar]:
    """The values of an operator that takes several; for one that takes one, a list of one."""
    value = condition.value
    if condition.operator in (FilterOperator.EQ, FilterOperator.CONTAINS):
        return [_scalar(condition)]
    if not isinstance(value, list):
        raise InvalidValueError(
            f"filter {condition.operator.value!r} on {condition.key!r} takes a list, not {value!r}"
        )
    return list(value)


def _check_column_values(condition: MetadataFilter, values: list[Scalar]) -> None:
    if condition.key in COLUMNS and not all(isinstance(value, str) for value in values):
        raise InvalidValueError(f"filter on {condition.key!r}: {condition.value!r} must be text")
