from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_gap.store.filters import filter_expression, literal
from llama_index_gap.store.milvus import MilvusStore

Op = FilterOperator
NASTY = [
    'it"s',
    "it's",
    "back\\slash",
    '\\"',
    "line\nbreak\ttab\r",
    "é 漢 🚢",
    '" or id != "',
    "%_",
    "",
]
ROWS: dict[str, dict[str, Any]] = {
    "empty": {},
    "none": {"s": None, "n": None, "tags": []},
    "a": {"s": "a", "n": 1, "tags": ["a", "b"], "two words": "a", "dotted.key": 1},
    "b": {"s": "b", "n": 2, "tags": ["b"], "two words": 2, "and": "a"},
    "float": {"s": "", "n": 1.5, "tags": ["c"], "and": 1.5},
    "bool": {"s": "True", "n": True, "tags": "a"},
    "text": {"n": "1", "two words": 'it"s'},
    **{f"nasty {i}": {"s": value, "tags": [value]} for i, value in enumerate(NASTY)},
    'nasty " id \\': {"s": "x", 'nasty "key" \\': "a", "it's a key": "a"},
}
KEYS = sorted({key for metadata in ROWS.values() for key in metadata} | {"missing"})


def where(key: str, operator: Op, value: Any = None) -> MetadataFilter:
    return MetadataFilter(key=key, operator=operator, value=value)


def group(condition: str, *filters: MetadataFilter | MetadataFilters) -> MetadataFilters:
    return MetadataFilters(filters=list(filters), condition=FilterCondition(condition))


def holds(filters: MetadataFilter | MetadataFilters, row: dict[str, Any], no: bool = False) -> bool:
    """The meaning of a filter, or of its negation, written in Python."""
    if isinstance(filters, MetadataFilters):
        condition = filters.condition
        if condition is FilterCondition.NOT:
            condition, no = FilterCondition.OR, not no
        parts = [holds(part, row, no) for part in filters.filters if not restricts_nothing(part)]
        return not parts or (all if (condition is FilterCondition.AND) != no else any)(parts)
    have, want = row.get(filters.key), filters.value
    present = have is not None and have != []
    match filters.operator:
        case Op.NE:
            return (present and have == want) == no
        case Op.NIN:
            return (present and have in want) == no
        case Op.IS_EMPTY:
            return (have in (None, "", [])) != no
        case Op.GT | Op.GTE | Op.LT | Op.LTE:
            if not present:
                return no
            if isinstance(have, str) != isinstance(want, str) or isinstance(have, list):
                return False
            compared = {
                Op.GT: lambda: have > want,
                Op.GTE: lambda: have >= want,
                Op.LT: lambda: have < want,
                Op.LTE: lambda: have <= want,
            }
            return compared[filters.operator]() != no
        case operator:
            return (present and holds_present(operator, have, want)) != no


def holds_present(operator: Op, have: Any, want: Any) -> bool:
    match operator:
        case Op.EQ:
            return have == want
        case Op.IN:
            return have in want
        case Op.CONTAINS | Op.ANY:
            wanted = want if isinstance(want, list) else [want]
            return isinstance(have, list) and any(value in have for value in wanted)
        case Op.ALL:
            return not want or (isinstance(have, list) and all(value in have for value in want))
        case Op.TEXT_MATCH:
            return isinstance(have, str) and want in have
    raise AssertionError(operator)


def restricts_nothing(filters: MetadataFilter | MetadataFilters) -> bool:
    return isinstance(filters, MetadataFilters) and all(map(restricts_nothing, filters.filters))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusStore]:
    uri = tmp_path_factory.mktemp("filters") / "rows.db"
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id='doc "1"')}
    with MilvusStore(uri=uri, collection_name="rows", dim=2) as opened:
        opened.add(
            [
                TextNode(
                    id_=name,
                    text=f"text of {name}",
                    metadata=metadata,
                    embedding=[1, 0],
                    relationships=source if name == "a" else {},
                )
                for name, metadata in ROWS.items()
            ]
        )
        yield opened


def found(store: MilvusStore, filters: MetadataFilters) -> set[str]:
    return {node.node_id for node in store.get_nodes(filters=filters)}


# --- hand-worked --------------------------------------------------------------------------------


def test_nothing_to_restrict() -> None:
    assert filter_expression() == filter_expression(group("and")) == ""
    assert filter_expression(group("or", group("not"), group("and"))) == ""


def test_ids_alone_and_with_empty_filters() -> None:
    assert filter_expression(node_ids=["a"]) == 'id in ["a"]'
    assert filter_expression(group("and"), node_ids=["a"]) == 'id in ["a"]'
    assert filter_expression(node_ids=[]) == "id in []"
    both = filter_expression(group("and", where("n", Op.GT, 1)), doc_ids=["d"])
    assert both == '(($meta["n"] > 1)) and (doc_id in ["d"])'


@pytest.mark.parametrize("value", [*NASTY, "\x01\x7f\0", "a" * 5000])
def test_a_literal_reads_back_as_itself(value: str) -> None:
    written = literal(value)
    assert json.loads(written.replace("\\'", "'"), strict=False) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2**63, "integers of 64 bits"),
        (math.nan, "finite numbers"),
        (-math.inf, "finite numbers"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_values_that_no_filter_can_hold(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        literal(value)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (where("embedding", Op.EQ, 1), "vectors are searched, not filtered"),
        (where("a\x01b", Op.EQ, 1), "control characters"),
        (where("n", Op.EQ, None), "'is_empty' for missing values"),
        (where("n", Op.GT, [1]), "takes one value"),
        (where("n", Op.IN, "a"), "takes a list, not 'a'"),
        (where("text", Op.EQ, 1), "must be text"),
        (where("two words", Op.CONTAINS, "a"), "plain key"),
        (where("and", Op.ANY, ["a"]), "plain key"),
        (where("s", Op.TEXT_MATCH, 1), "is not a string"),
    ],
)
def test_conditions_that_make_no_sense(condition: MetadataFilter, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filter_expression(group("and", condition))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (where("s", Op.TEXT_MATCH_INSENSITIVE, "a"), "use 'text_match'"),
        (where("s", Op.TEXT_MATCH, "100%"), "wildcards"),
        (where("s", Op.TEXT_MATCH, "file_name"), "wildcards"),
    ],
)
def test_what_milvus_has_nothing_for(condition: MetadataFilter, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        filter_expression(group("and", condition))


def test_not_equal_and_not_match_rows_without_the_key(store: MilvusStore) -> None:
    without_n = {name for name, metadata in ROWS.items() if metadata.get("n") is None}
    others = {name for name, metadata in ROWS.items() if metadata.get("n") != 2}

    assert without_n < others
    assert found(store, group("and", where("n", Op.NE, 2))) == others
    assert found(store, group("and", where("n", Op.NIN, [2]))) == others
    assert found(store, group("not", where("n", Op.EQ, 2))) == others
    assert found(store, group("not", where("n", Op.EQ, 2), where("n", Op.EQ, 1))) == {
        name for name in others if ROWS[name].get("n") != 1
    }


def test_the_columns_under_all_their_names(store: MilvusStore) -> None:
    for key in ("doc_id", "ref_doc_id", "document_id"):
        assert found(store, group("and", where(key, Op.EQ, 'doc "1"'))) == {"a"}
    assert found(store, group("and", where("id", Op.IN, ["a", "b", "x"]))) == {"a", "b"}
    assert found(store, group("and", where("text", Op.TEXT_MATCH, "of floa"))) == {"float"}
    assert "a" not in found(store, group("and", where("doc_id", Op.IS_EMPTY)))


def test_a_long_list_of_values(store: MilvusStore) -> None:
    values = list(range(2, 5000))
    assert found(store, group("and", where("n", Op.IN, values))) == {"b"}


# --- any filter ---------------------------------------------------------------------------------

texts = st.sampled_from([*NASTY, "a", "b", "x", "1"]) | st.text(max_size=4)
numbers = st.sampled_from([0, 1, 2, 1.5, -1, 2**62]) | st.floats(-3, 3, width=16)
values = texts | numbers
lists = st.lists(texts, max_size=4) | st.lists(st.integers(-1, 3), max_size=4)
PLAIN = ["s", "n", "tags", "missing"]
conditions = st.one_of(
    st.builds(where, st.sampled_from(KEYS), st.sampled_from([Op.EQ, Op.NE]), values),
    st.builds(where, st.sampled_from(KEYS), st.sampled_from([Op.IN, Op.NIN]), lists),
    st.builds(where, st.sampled_from(PLAIN), st.sampled_from([Op.ANY, Op.ALL]), lists),
    st.builds(where, st.sampled_from(PLAIN), st.just(Op.CONTAINS), values),
    st.builds(where, st.sampled_from(KEYS), st.just(Op.IS_EMPTY)),
    # Booleans are left out: whether True > 0 differs between Milvus and Milvus Lite.
    st.builds(where, st.just("s"), st.sampled_from([Op.GT, Op.GTE, Op.LT, Op.LTE]), values),
    st.builds(where, st.just("s"), st.just(Op.TEXT_MATCH), st.sampled_from(["a", "it", '"', " "])),
)
groups = st.recursive(
    st.builds(
        lambda c, f: group(c, *f),
        st.sampled_from(["and", "or", "not"]),
        st.lists(conditions, max_size=3),
    ),
    lambda inner: st.builds(
        lambda c, f: group(c, *f),
        st.sampled_from(["and", "or", "not"]),
        st.lists(conditions | inner, max_size=3),
    ),
    max_leaves=4,
)


@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(group("not", where("s", Op.EQ, '" or id != "')))
@example(group("not", where("n", Op.EQ, 1)))
@given(groups)
def test_milvus_lite_finds_what_the_filter_means(
    store: MilvusStore, filters: MetadataFilters
) -> None:
    expected = {name for name, metadata in ROWS.items() if holds(filters, metadata)}
    assert found(store, filters) == expected, filter_expression(filters)


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, max_size=5), st.lists(texts, max_size=5))
def test_ids_are_ids_whatever_they_hold(
    store: MilvusStore, node_ids: list[str], doc_ids: list[str]
) -> None:
    expected = [node_id for node_id in dict.fromkeys(node_ids) if node_id in ROWS]
    assert [node.node_id for node in store.get_nodes(node_ids)] == expected
    store.get_nodes(node_ids, ref_doc_ids=doc_ids)  # parses
