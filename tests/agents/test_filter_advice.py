"""An agent is told of its filters what the collection says, not what the nearest documents say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.embeddings.mock_embed_model import MockMultiModalEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_gap import DualIndex, DualIndexRetriever, MultiModalSearchTool


class Lengths(MockMultiModalEmbedding):
    """The longer a text, the farther from the query."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1.0, len(text) / 1000]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [1.0, 0.0]


def node(identifier: str, length: int, **metadata: Any) -> TextNode:
    hidden = list(metadata)
    return TextNode(
        id_=identifier,
        text="x" * length,
        metadata=metadata,
        excluded_embed_metadata_keys=hidden,
        excluded_llm_metadata_keys=["secret"],
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualIndex]:
    """Two hundred near documents without a year, and four far ones with one."""
    near = [node(f"near {i:03}", 10 + i, section="news") for i in range(200)]
    far = [
        node(f"far {year}", 900, year=year, tags=["a", "b"], edition="2", secret="s")
        for year in (2005, 2006, 2007, 2008)
    ]
    uri = str(tmp_path_factory.mktemp("index") / "gap.db")
    with DualIndex(uri, embed_model=Lengths(embed_dim=2)) as opened:
        opened.insert_nodes([*near, *far])
        yield opened


@pytest.fixture
def search(index: DualIndex) -> MultiModalSearchTool:
    return index.as_retriever().as_tool()


def where(key: str, value: Any, operator: str = "==") -> list[dict[str, Any]]:
    return [{"key": key, "operator": operator, "value": value}]


def test_a_field_of_documents_further_down_exists(search: MultiModalSearchTool) -> None:
    assert "far 2006" in search("x", filters=where("year", 2006)).content
    assert "far 2006" in search("x", filters=where("year", [2006, 2007.5], "in")).content
    none = search("x", filters=where("year", 1999))
    assert not none.is_error
    assert none.content.startswith('Nothing fits the filters. Without them, "year" is 200')
    assert "2008" in none.content


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (where("year", "2005"), 'The values of "year" are numbers, such as 2005, and never equal '
                                "to texts: pass numbers."),
        (where("year", ["2005", "2006"], "in"), "pass numbers"),
        (where("year", ["2005", 2006], "in"), "must be a list of texts or of numbers, not of both"),
        (where("year", "2005", ">="), "pass numbers"),
        (where("edition", 2), 'are texts, such as "2", and never equal to numbers: pass texts.'),
        (where("tags", "a"), "\"tags\" are lists, such as [\"a\", \"b\"]: use 'contains'."),
        (where("section", "news", "contains"), "such as \"news\", no lists: use '=='."),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_named(
    search: MultiModalSearchTool, filters: list[dict[str, Any]], said: str
) -> None:
    output = search("x", filters=filters)
    assert output.is_error
    assert said in output.content


def test_such_a_filter_that_lets_all_through_is_named_too(search: MultiModalSearchTool) -> None:
    output = search("x", filters=where("year", "2005", "!="))
    assert not output.is_error
    assert "pass numbers" in output.content
    assert "has the field" not in search("x", filters=where("year", 2005, "!=")).content


@pytest.mark.parametrize(
    ("key", "meant"), [("Year", "year"), ("years", "year"), ("sektion", "section"), ("tag", "tags")]
)
def test_a_field_that_nothing_has_names_the_nearest(
    search: MultiModalSearchTool, key: str, meant: str
) -> None:
    output = search("x", filters=where(key, 2005))
    assert output.is_error
    assert f'No document has the field "{key}"; their fields are: ' in output.content
    assert f'Did you mean "{meant}"?' in output.content


def test_nothing_is_told_that_may_not_be_seen(index: DualIndex) -> None:
    """Of hidden fields, and of documents that the retriever's own filters leave out."""
    search = index.as_retriever().as_tool()
    assert search("x", filters=where("secret", "t")).content == "Nothing fits the filters."
    assert search("x", filters=where("secret", 5)).content == "Nothing fits the filters."
    assert "secret" not in search("x", filters=where("secrt", "s")).content.partition(";")[2]
    news = MetadataFilters(filters=[MetadataFilter(key="section", value="news")])
    confined = index.as_retriever(filters=news).as_tool()
    output = confined("x", filters=where("year", 2005))
    assert 'No document has the field "year"; their fields are: "section".' in output.content


def test_over_stores_that_cannot_tell(index: DualIndex) -> None:
    class Other:
        """A store that knows nothing but searching."""

        def __init__(self, store: Any) -> None:
            self.query = store.query

    stores: list[Any] = [Other(each.store) for each in index.collections().values()]
    search = DualIndexRetriever.from_stores(*stores, Lengths(embed_dim=2)).as_tool()
    output = search("x", filters=where("year", 1999))
    assert 'No document that was found has the field "year"' in output.content
