"""A leg is searched again if its hits belong to too few documents, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters

from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.modality import Leg
from llama_index_gap.results import SearchResult
from llama_index_gap.search import asking
from llama_index_gap.search.rerank import MultiModalRerank
from llama_index_gap.search.retriever import DualIndexRetriever
from llama_index_gap.store.milvus import MilvusStore

D = 8
TEXTS, IMAGES = Leg("text", "text"), Leg("text", "image")


class Near(MultiModalEmbedding):
    """``0.6`` in a text, or in an image's name, is its cosine to the query, the first axis."""

    model_name: str = "near"

    def _vector(self, text: str) -> list[float]:
        words = text.rpartition("/")[2].split()
        cosine = float(words[-1]) if words[-1].startswith("0.") else 1.0
        rest = np.random.default_rng(list(text.encode())).normal(size=D)
        rest[0] = 0
        vector = np.sqrt(1 - cosine**2) * rest / np.linalg.norm(rest)
        vector[0] = cosine
        return vector.tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._vector(str(img_file_path))

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._vector(str(img_file_path))


def of(document: str) -> dict[str, Any]:
    return {"relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}}


def chunks(document: str, count: int, best: float) -> list[BaseNode]:
    return [
        TextNode(
            id_=f"{document}-{i}", text=f"{document} {i} {best - i / 2000:.4f}", **of(document)
        )
        for i in range(count)
    ]


def pictures(document: str, count: int, best: float) -> list[BaseNode]:
    return [
        ImageNode(
            id_=f"{document}-image-{i}",
            image_path=f"/images/{document}-{i} {best - i / 2000:.4f}",
            **of(document),
        )
        for i in range(count)
    ]


LEAFLETS = [
    node
    for i in range(20)
    for node in (
        *chunks(f"leaflet {i:02}", 1, 0.6 - i / 100),
        *pictures(f"leaflet {i:02}", 1, 0.5 - i / 100),
    )
]
BOOK = [*chunks("book", 120, 0.9), *pictures("book", 70, 0.8)]


def opened(folder: Any, nodes: Sequence[BaseNode]) -> DualIndex:
    index = DualIndex(str(folder / "gap.db"), embed_model=Near())
    index.insert_nodes(nodes)
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualIndex]:
    with opened(tmp_path_factory.mktemp("index"), [*BOOK, *LEAFLETS]) as built:
        yield built


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """For each search of a collection: its name, and the number of excluded documents."""
    questions: list[tuple[str, int]] = []
    query_hits = MilvusStore.query_hits

    def noted(store: MilvusStore, query: Any, *, other_than: Sequence[str] = ()) -> Any:
        questions.append((store.collection_name, len(other_than)))
        return query_hits(store, query, other_than=other_than)

    monkeypatch.setattr(MilvusStore, "query_hits", noted)
    return questions


def keys(found: SearchResult) -> list[str]:
    return [document.key for document in found]


def test_a_book_of_sixteen_near_passages_is_one_document_of_ten(tmp_path: Any) -> None:
    with opened(tmp_path, [*chunks("book", 16, 0.9), *LEAFLETS]) as index:
        found = index.search("query", top_k=10)

    assert len(found) == 10
    assert "book" in keys(found)


def test_each_leg_is_asked_for_other_documents(
    index: DualIndex, asked: list[tuple[str, int]]
) -> None:
    found = index.search("query", top_k=10, image_similarity_top_k=10, hubs=False)

    assert len(found) == 10
    assert asked == [("gap_text", 0), ("gap_text", 1), ("gap_image", 0), ("gap_image", 1)]
    for summary in found.legs.values():
        assert summary.asked == 2
        assert summary.note is not None
        assert "searched 2 times" in summary.note
        assert "10 of 10 wanted documents" in summary.note
    assert found.to_dict()["legs"]["text"]["asked"] == 2
    assert keys(asyncio.run(index.asearch("query", top_k=10))) == keys(index.search("query"))


@pytest.mark.parametrize("settings", [{}, {"normalize": "rank", "combine": "sum"}])
def test_the_ranking_is_that_of_all_hits(index: DualIndex, settings: dict[str, Any]) -> None:
    """For one leg. With two legs, each still knows only its own first documents."""
    settings = {**settings, "hubs": False, "image_similarity_top_k": 0}
    crowded = index.search("query", top_k=10, **settings)
    complete = index.search("query", top_k=10, similarity_top_k=400, **settings)

    assert keys(crowded) == keys(complete)
    for one, other in zip(crowded, complete, strict=True):
        assert one.score == pytest.approx(other.score)
        assert one.scores == pytest.approx(other.scores)
        assert one.text == other.text


def test_where_nothing_crowds_nothing_is_asked_again(
    tmp_path: Any, asked: list[tuple[str, int]]
) -> None:
    with opened(tmp_path, LEAFLETS) as index:
        found = index.search("query", top_k=10)
        assert [summary.note for summary in found.legs.values()] == [None, None]
        index.as_retriever().retrieve("query")
        index.search("query", top_k=10, group_by="node")
        index.search("query", top_k=50)  # more than there are

    assert asked == [("gap_text", 0), ("gap_image", 0)] * 4


def test_what_was_asked_for_holds(index: DualIndex, asked: list[tuple[str, int]]) -> None:
    few = index.search("query", top_k=10, similarity_top_k=5)
    assert keys(few) == ["book"]
    note = few.legs[TEXTS].note
    assert note is not None
    assert "its 5 hits belong to 1 of 10 wanted documents" in note
    assert "raise similarity_top_k" in note
    assert len(index.search("query", top_k=3, group_by="node", similarity_top_k=5)) == 3
    assert {name for name, left_out in asked if left_out} == set()

    assert len(index.search("query", top_k=4, similarity_top_k=5)) == 4
    assert len(index.as_retriever(top_k=20).search("query")) == 20
    assert len(index.as_retriever().search("query")) >= 5


def test_who_chooses_among_the_documents_has_enough_of_them(index: DualIndex) -> None:
    class All(MultiModalRerank):
        def model_post_init(self, context: Any, /) -> None:
            pass

        def _postprocess_nodes(
            self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
        ) -> list[NodeWithScore]:
            return nodes

        @property
        def model_name(self) -> str:
            return "all"

    assert len(index.search("query", top_k=12, reranker=All())) >= 12
    tool = index.as_retriever(complete=True).as_tool(max_images=0)
    for top_k in (1, 7, 20):
        assert tool("query", top_k=top_k).content.count("\nscore ") == top_k


def test_where_there_are_no_others_it_ends(index: DualIndex, tmp_path: Any) -> None:
    with opened(tmp_path, [*BOOK, *chunks("leaflet", 1, 0.3)]) as small:
        found = small.search("query", top_k=10)
    assert keys(found) == ["book", "leaflet"]
    assert found.legs[TEXTS].note is not None
    assert found.legs[TEXTS].note.endswith(
        "2 of 10 wanted documents were found; there are no others"
    )

    only = MetadataFilters(filters=[MetadataFilter(key="ref_doc_id", value="book")])
    assert keys(index.search("query", filters=only)) == ["book"]


def test_there_is_a_limit(index: DualIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MOST_ASKS", 1)
    found = index.search("query", top_k=10, hubs=False)
    assert keys(found) == ["book"]
    assert found.legs[TEXTS].note is not None
    assert found.legs[TEXTS].note.endswith("raise similarity_top_k to find others")


def test_nodes_without_a_document_are_documents(tmp_path: Any) -> None:
    alone = [TextNode(id_=f"alone {i}", text=f"alone {0.5 - i / 100:.2f}") for i in range(12)]
    # Its id equals the book's key, but it belongs to another document.
    twin = TextNode(id_="book", text="twin 0.55", **of("twin"))
    with opened(tmp_path, [*chunks("book", 80, 0.9), *alone, twin]) as index:
        found = index.search("query", top_k=10)
    assert keys(found)[:2] == ["book", "twin"]
    assert len(found) == 10


def test_another_store_is_asked_for_more_nodes() -> None:
    model = Near()
    theirs = MultiModalVectorStoreIndex(
        [*BOOK[:50], *(node for node in LEAFLETS if type(node) is TextNode)],
        embed_model=model,
        image_embed_model=model,
    )
    found = DualIndexRetriever.from_index(theirs, top_k=10).search("query")

    assert len(found) == 10
    assert found.legs[TEXTS].asked == 2  # 16 nodes, then 64


def test_one_search_can_be_ranked_by_another_retriever(index: DualIndex) -> None:
    retriever = index.as_retriever(top_k=10)
    legs = retriever.search_legs("query", for_others=True)
    assert keys(retriever.rank_legs(legs)) == keys(retriever.search("query"))
    assert keys(index.as_retriever(top_k=10, hubs=False).rank_legs(legs))[:5] == keys(
        index.as_retriever(top_k=5, hubs=False).search("query")
    )


@pytest.mark.server
def test_on_a_server(milvus_url: str) -> None:
    with DualIndex(milvus_url, "crowded", embed_model=Near(), overwrite=True) as index:
        index.insert_nodes([*BOOK, *LEAFLETS, TextNode(id_="alone", text="alone 0.7")])
        found = index.search("query", top_k=10)
        assert len(found) == 10
        assert {"book", "alone"} <= set(keys(found))
        assert index.as_retriever().examples("nothing") == []
