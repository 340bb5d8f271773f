from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.embeddings import MockEmbedding, MultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import (
    ImageNode,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import FilterCondition, MetadataFilter, MetadataFilters

from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.modality import Leg
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.results import FusionUsed, LegSummary
from llama_index_gap.search.retriever import DualIndexRetriever
from llama_index_gap.store.collection import Collection
from llama_index_gap.store.milvus import MilvusStore

D = 8


class Angles(MultiModalEmbedding):
    """Vectors set by hand: a word gives the cosine of its text or image to the query.

    The query is the first axis. ``near=0.6`` in a text, or in an image's name, gives a vector with
    a cosine of 0.6 to it. What is left points to a random direction, another for each.
    """

    model_name: str = "angles"
    asked: list[str] = []

    def _vector(self, text: str) -> list[float]:
        cosine = float(text.partition("near=")[2].split()[0]) if "near=" in text else 1.0
        rest = np.random.default_rng(list(text.encode())).normal(size=D)
        rest[0] = 0
        vector = np.sqrt(max(0.0, 1 - cosine**2)) * rest / np.linalg.norm(rest)
        vector[0] = cosine
        return vector.tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        self.asked.append(query)
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        self.asked.append(Path(img_file_path).name)
        return self._vector(Path(img_file_path).name)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)


def text(identifier: str, near: float, document: str | None = None, **metadata: Any) -> TextNode:
    relationships = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document or identifier)}
    return TextNode(
        id_=f"{identifier}-text",
        text=f"{identifier} near={near}",
        relationships=relationships,
        metadata=metadata,
        excluded_embed_metadata_keys=list(metadata),
    )


def image(identifier: str, near: float, document: str | None = None, **metadata: Any) -> ImageNode:
    relationships = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document or identifier)}
    return ImageNode(
        id_=f"{identifier}-image",
        image_path=f"/images/{identifier} near={near}",
        relationships=relationships,
        metadata=metadata,
    )


# The scores of an everyday query: texts 0.70 ± 0.03, images 0.30 ± 0.06; the same gap as CLIP's.
CROWD = [
    *(text(f"t{i}", round(0.70 + 0.03 * (-1) ** i, 3)) for i in range(60)),
    *(image(f"i{i}", round(0.30 + 0.06 * (-1) ** i, 3)) for i in range(60)),
]
# The two articles of the README.
ARTICLES = [
    text("A", 0.72, kind="report"),
    image("A", 0.31, kind="report"),
    text("B", 0.23, kind="other"),
    image("B", 0.54, kind="other"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualIndex]:
    uri = str(tmp_path_factory.mktemp("index") / "gap.db")
    with DualIndex(uri, embed_model=Angles()) as opened:
        opened.insert_nodes([*CROWD, *ARTICLES])
        yield opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualIndex]:
    """Only the two articles: too few to sample."""
    uri = str(tmp_path_factory.mktemp("small") / "gap.db")
    with DualIndex(uri, embed_model=Angles()) as opened:
        opened.insert_nodes(ARTICLES)
        yield opened


def ids(hits: list[Any]) -> list[str]:
    return [hit.node_id for hit in hits]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call to the database: method and collection."""
    made: list[str] = []
    call = Collection.call

    def noting(of: Collection, method: str, **arguments: Any) -> Any:
        made.append(f"{method} {of.name}")
        return call(of, method, **arguments)

    monkeypatch.setattr(Collection, "call", noting)
    return made


# --- the ranking --------------------------------------------------------------------------------


def test_the_readme_s_question(index: DualIndex) -> None:
    """B's photo scores far above other photos; A's text scores like other texts."""
    by_evidence = index.as_retriever(top_k=1).retrieve("query")
    by_score = index.as_retriever(top_k=1, normalize="none", combine="max").retrieve("query")

    assert ids(by_evidence) == ["B-image"]
    assert by_score[0].node.ref_doc_id != "B"


def test_the_second_query_only_searches(index: DualIndex, calls: list[str]) -> None:
    """The background is sampled only once."""
    retriever = index.as_retriever()
    retriever.retrieve("query")
    calls.clear()

    retriever.retrieve("query")

    assert sorted(calls) == ["search gap_image", "search gap_text"]


def test_a_document_s_best_text_and_image_come_together(small: DualIndex) -> None:
    hits = small.as_retriever(normalize="none", combine="sum").retrieve("query")

    assert ids(hits) == ["A-text", "A-image", "B-text", "B-image"]
    assert [hit.score for hit in hits] == pytest.approx([1.03, 1.03, 0.77, 0.77], abs=1e-5)
    assert hits[0].scores == pytest.approx(
        {"text": 0.72, "image": 0.31, "text_evidence": 0.72, "image_evidence": 0.31}, abs=1e-5
    )
    assert all(isinstance(hit, ScoredNode) for hit in hits)
    assert hits[0].node.metadata == {"kind": "report"}  # unchanged


def test_a_captioned_image_found_on_both_sides_comes_once(
    tmp_path: Path, noise_files: list[str]
) -> None:
    node = image("C", 0.5).model_copy(update={"text": "near=0.9"})
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Angles()) as index:
        index.insert_nodes([node])
        (hit,) = index.as_retriever(normalize="none", combine="sum").retrieve("query")

    here = hit.node.model_copy(update={"image_path": noise_files[0]})
    assert hit.score == pytest.approx(1.4, abs=1e-5)
    assert [type(block) for block in here.get_content_blocks()] == [TextBlock, ImageBlock]


def test_counts(index: DualIndex) -> None:
    def documents(**settings: Any) -> int:
        hits = index.as_retriever(**settings).retrieve("query")
        return len({hit.node.ref_doc_id for hit in hits})

    assert documents(top_k=3) == 3
    assert documents() == 32  # 16 of each modality, no document in both
    assert documents(similarity_top_k=5, image_similarity_top_k=2) == 7
    assert documents(similarity_top_k=3) == 6  # it applies to both
    assert documents(similarity_top_k=0) == 16  # except 0, which leaves only the texts out
    assert documents(image_similarity_top_k=2) == 18
    assert documents(image_similarity_top_k=0, top_k=4) == 4


def test_group_by_node(small: DualIndex) -> None:
    hits = small.as_retriever(group_by="node", normalize="none", combine="max").retrieve("query")

    assert ids(hits) == ["A-text", "B-image", "A-image", "B-text"]
    assert [hit.score for hit in hits] == pytest.approx([0.72, 0.54, 0.31, 0.23], abs=1e-5)


def test_weights_really_work(small: DualIndex) -> None:
    def first(**weights: float) -> str:
        retriever = small.as_retriever(normalize="none", combine="sum", weights=weights, top_k=1)
        return retriever.retrieve("query")[0].node.ref_doc_id

    assert first() == "A"
    assert first(image=4) == "B"
    assert first(text=0) == "B"


def test_filters_apply_to_both_sides(index: DualIndex) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="kind", value="report")])

    assert ids(index.as_retriever(filters=filters).retrieve("query")) == ["A-text", "A-image"]


def where(
    *conditions: tuple[str, Any], joined: FilterCondition = FilterCondition.AND
) -> MetadataFilters:
    return MetadataFilters(
        filters=[MetadataFilter(key=key, value=value) for key, value in conditions],
        condition=joined,
    )


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (where(("kindd", "report")), 'has the field "kindd".*Did you mean "kind"'),
        (where(("kind", 2023)), "are texts.*never equal to numbers: pass texts"),
        (where(("kind", "none")), None),
        (where(("kind", "none"), ("kind", 1), joined=FilterCondition.OR), None),
        (where(("kind", "report")), None),
    ],
)
def test_filters_that_can_fit_nothing_are_explained(
    index: DualIndex, filters: MetadataFilters, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = index.as_retriever(filters=filters)
    retriever.retrieve("query")
    asyncio.run(retriever.aretrieve("query"))

    assert len(caplog.records) == (2 if said else 0)
    for record in caplog.records:
        assert record.levelname == "WARNING"
        assert re.search(f"nothing fits the filters: .*{said}", record.getMessage())


def test_two_documents_come_in_the_order_of_the_texts(small: DualIndex) -> None:
    """So few vectors make no background; the search does not fail."""
    found = small.as_retriever().search("query")

    assert [document.key for document in found] == ["A", "B"]
    assert found.fusion == FusionUsed("background", "intent")


def test_complete_fetches_the_other_side_with_its_exact_score(index: DualIndex) -> None:
    plain = index.as_retriever(top_k=1).retrieve("query")
    complete = index.as_retriever(top_k=1, complete=True).retrieve("query")

    assert ids(plain) == ["B-image"]
    assert ids(complete) == ["B-text", "B-image"]
    assert complete[0].score == complete[1].score == plain[0].score
    assert complete[0].scores["text"] == pytest.approx(0.23, abs=1e-5)
    assert "text_evidence" not in complete[0].scores


# --- passages -----------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[DualIndex]:
    """A document with four passages and two captioned images, and one with a single passage."""
    passages = [
        text(f"{part}", near, "compote")
        for part, near in (("one", 0.5), ("two", 0.9), ("three", 0.7), ("four", 0.6))
    ]
    pictured = [
        image(part, near, "compote").model_copy(update={"text": f"caption near={caption}"})
        for part, near, caption in (("p", 0.2, 0.95), ("q", 0.4, 0.1))
    ]
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Angles()) as opened:
        opened.insert_nodes([*passages, *pictured, text("other", 0.8, "other")])
        yield opened


def of_compote(index: DualIndex, **settings: Any) -> list[str]:
    hits = index.as_retriever(normalize="none", combine="max", **settings).retrieve("query")
    return [hit.node_id for hit in hits if hit.node.ref_doc_id == "compote"]


def test_the_best_passages_come_first_and_then_the_best_image(recipe: DualIndex) -> None:
    assert of_compote(recipe) == ["two-text", "three-text", "four-text", "p-image"]
    assert of_compote(recipe, passages_per_document=4, images_per_document=2) == [
        *("two-text", "three-text", "four-text", "one-text", "p-image", "q-image")
    ]
    assert of_compote(recipe, passages_per_document=1, images_per_document=0) == ["two-text"]


def test_a_caption_counts_but_takes_no_passage_s_place(recipe: DualIndex) -> None:
    """The caption of p is the best text; with one hit per leg, no passage is found."""
    few = {"similarity_top_k": 1, "image_similarity_top_k": 1, "images_per_document": 2}

    assert of_compote(recipe, **few) == ["p-image", "q-image"]
    assert of_compote(recipe, **few, complete=True) == ["two-text", "p-image", "q-image"]
    (hit, *_) = recipe.as_retriever(**few, complete=True, top_k=1).retrieve("query")
    assert hit.scores["text"] == pytest.approx(
        0.95, abs=1e-5
    )  # the score of the caption, which was found


def test_a_document_is_never_without_nodes(recipe: DualIndex) -> None:
    assert of_compote(recipe, similarity_top_k=1, images_per_document=0) == ["p-image"]


def test_completing_asks_each_collection_once(recipe: DualIndex, calls: list[str]) -> None:
    retriever = recipe.as_retriever(
        similarity_top_k=1, image_similarity_top_k=1, complete=True, normalize="none", combine="max"
    )
    retriever.retrieve("query")  # samples the background, which tells hubs
    calls.clear()

    retriever.retrieve("query")

    assert sorted(calls) == ["query gap_text", "search gap_image", "search gap_text"]


# --- probabilities ------------------------------------------------------------------------------


class TwoAxes(Angles):
    """``near=0.3,0.7`` lies at these cosines to a text query and to an image query."""

    def _vector(self, text: str) -> list[float]:
        vector = np.zeros(D)
        if "near=" in text:
            vector[:2] = [float(cosine) for cosine in text.partition("near=")[2].split(",")]
            rest = np.random.default_rng(list(text.encode())).normal(size=D - 2)
            vector[2:] = np.sqrt(1 - vector @ vector) * rest / np.linalg.norm(rest)
        else:
            vector[1 if text == "photo" else 0] = 1
        return vector.tolist()


def test_complete_judges_what_two_queries_say_on_the_fusion_s_scale(tmp_path: Path) -> None:
    """0.72 is an everyday score for the image query; 0.54 is high for the text query."""
    crowd = [image(f"i{i}", 0).model_copy() for i in range(60)]
    for i, node in enumerate(crowd):
        node.image_path = f"/images/{i} near={0.30 + 0.06 * (-1) ** i},{0.70 + 0.03 * (-1) ** i}"
    images = {"looks like others": "0.30,0.72", "meant": "0.54,0.66"}
    document = [
        text("A", 0, "A").model_copy(update={"text": "A near=0.9,0.1"}),
        *(
            image(name, 0, "A").model_copy(update={"image_path": f"/images/{name} near={near}"})
            for name, near in images.items()
        ),
    ]
    found_instead = [
        image(name, 0).model_copy(update={"image_path": f"/images/{name} near={near}"})
        for name, near in (("Y", "0.60,0.50"), ("Z", "0.10,0.90"))
    ]
    with DualIndex(str(tmp_path / "gap.db"), embed_model=TwoAxes()) as index:
        index.insert_nodes([*crowd, *document, *found_instead])
        retriever = index.as_retriever(
            similarity_top_k=1, image_similarity_top_k=1, complete=True, normalize="background"
        )
        hits = retriever.retrieve(QueryBundle("query", image_path="/images/photo"))

    of_a = [hit for hit in hits if hit.node.ref_doc_id == "A"]
    assert ids(of_a) == ["A-text", "meant-image"]
    assert of_a[0].scores["image"] == pytest.approx(0.54, abs=1e-5)


def labelled(irrelevant: float, relevant: float) -> tuple[list[float], list[int]]:
    """Twenty relevant and twenty irrelevant hits, each at one score: probabilities 20/21, 1/21."""
    return [irrelevant] * 20 + [relevant] * 20, [0] * 20 + [1] * 20


LABELLED = {"text_to_text": labelled(0.72, 0.8), "text_to_image": labelled(0.31, 0.5)}


@pytest.fixture(scope="module")
def calibrator(small: DualIndex) -> RelevanceCalibrator:
    return RelevanceCalibrator.fit(LABELLED, source=small.models())


def test_one_threshold_for_texts_and_images(
    small: DualIndex, calibrator: RelevanceCalibrator
) -> None:
    """With raw scores, a threshold of 0.5 would keep the everyday text of A too."""
    result = small.as_retriever(calibrator=calibrator, min_probability=0.5).search("query")
    hits = result.nodes

    assert ids(hits) == ["B-image"]
    assert hits[0].scores["image_probability"] == pytest.approx(20 / 21)
    assert "text" not in hits[0].scores
    assert result.legs == {
        Leg("text", "text"): LegSummary(0, improbable=2),
        Leg("text", "image"): LegSummary(1, improbable=1),
    }


def test_probabilities_come_with_the_scores(
    small: DualIndex, calibrator: RelevanceCalibrator
) -> None:
    plain = small.as_retriever().retrieve("query")
    hits = small.as_retriever(calibrator=calibrator).retrieve("query")

    assert [(hit.node_id, hit.score) for hit in hits] == [(h.node_id, h.score) for h in plain]
    assert all("text_probability" not in hit.scores for hit in plain)
    by_document = {hit.node.ref_doc_id: hit.scores for hit in hits}
    probable = pytest.approx({"text_probability": 1 / 21, "image_probability": 1 / 21}, abs=1e-4)
    assert {k: v for k, v in by_document["A"].items() if k.endswith("probability")} == probable
    assert by_document["B"]["image_probability"] == pytest.approx(20 / 21)


def test_nothing_is_left_where_nothing_is_probable(
    small: DualIndex, calibrator: RelevanceCalibrator
) -> None:
    retriever = small.as_retriever(calibrator=calibrator, min_probability=0.99, complete=True)

    assert retriever.retrieve("query") == []
    assert asyncio.run(retriever.aretrieve("query")) == []


def test_what_is_left_out_adds_no_evidence(
    index: DualIndex, calibrator: RelevanceCalibrator
) -> None:
    """B's text is far from the query; it is returned only to complete the document."""
    settings: dict[str, Any] = {"calibrator": calibrator, "min_probability": 0.5, "top_k": 1}
    hits = index.as_retriever(**settings, complete=True).retrieve("query")

    assert ids(hits) == ["B-text", "B-image"]
    assert "text_probability" not in hits[0].scores
    assert "text_evidence" not in hits[0].scores


def test_a_pair_that_was_not_fitted_is_an_error(
    small: DualIndex, calibrator: RelevanceCalibrator
) -> None:
    retriever = small.as_retriever(calibrator=calibrator)
    with pytest.raises(ValueError, match="not fitted for image_to_image, only for text_to_text"):
        retriever.retrieve(QueryBundle("", image_path="/images/query"))

    texts = RelevanceCalibrator.fit({"text_to_text": labelled(0, 1)}, source=small.models())
    with pytest.raises(
        ValueError,
        match="fitted for text_to_text, but a query needs text_to_text and text_to_image or image_",
    ):
        small.as_retriever(calibrator=texts)
    only_texts = small.as_retriever(calibrator=texts, image_similarity_top_k=0)
    assert ids(only_texts.retrieve("query")) == ["A-text", "B-text"]


def test_calibrators_that_do_not_fit_are_refused(small: DualIndex) -> None:
    foreign = RelevanceCalibrator.fit(LABELLED, source="CLIP")
    with pytest.raises(ValueError, match=r"fitted for CLIP, but these scores .*\('angles'\)"):
        small.as_retriever(calibrator=foreign)
    with pytest.raises(ValueError, match=r"without a source"):
        small.as_retriever(calibrator=RelevanceCalibrator.fit(LABELLED))
    with pytest.raises(ValueError, match=r"min_probability=0.5 needs a calibrator: .*collect_scor"):
        small.as_retriever(min_probability=0.5)
    # Other stores do not tell which model made their vectors.
    stores = (
        small.collections()["text"].store,
        small.collections()["image"].store,
        small.embed_model,
    )
    retriever = DualIndexRetriever.from_stores(*stores, calibrator=foreign, min_probability=0.5)
    assert ids(retriever.retrieve("query")) == ["B-image"]
    with pytest.raises(ValueError, match="needs a calibrator"):
        DualIndexRetriever.from_stores(*stores, min_probability=0.5)


def test_what_each_leg_finds(small: DualIndex, calibrator: RelevanceCalibrator) -> None:
    """With the raw scores, and before anything is left out."""
    retriever = small.as_retriever(calibrator=calibrator, min_probability=0.9)

    legs = retriever.search_legs("query")

    assert {leg.name: [node.node_id for node in hits.nodes] for leg, hits in legs.items()} == {
        "text": ["A-text", "B-text"],
        "image": ["B-image", "A-image"],
    }
    assert legs[Leg("text", "image")].scores == pytest.approx([0.54, 0.31], abs=1e-5)
    by_image = retriever.search_legs(QueryBundle("", image_path="/images/query"))
    assert [leg.pair for leg in by_image] == ["image_to_image"]


def test_one_search_can_be_ranked_in_several_ways(small: DualIndex) -> None:
    """Each retriever takes its own number of hits, and ranks as after its own search."""
    legs = small.as_retriever().search_legs("query")

    for settings in (
        {},
        {"normalize": "none", "combine": "max"},
        {"similarity_top_k": 1},
        {"image_similarity_top_k": 0},
    ):
        retriever = small.as_retriever(**settings)
        assert retriever.rank_legs(legs).nodes == retriever.retrieve("query")
    assert ids(small.as_retriever(image_similarity_top_k=0).rank_legs(legs).nodes) == [
        "A-text",
        "B-text",
    ]


# --- the query ----------------------------------------------------------------------------------

IMAGE = QueryBundle("", image_path="/images/query")


def test_an_image_alone_asks_the_images(small: DualIndex) -> None:
    hits = small.as_retriever(normalize="none", combine="sum").retrieve(IMAGE)

    assert ids(hits) == ["B-image", "A-image"]
    assert hits[0].scores.keys() == {"image_by_image", "image_by_image_evidence"}


def test_an_image_alone_asks_the_texts_where_only_they_are_searched(small: DualIndex) -> None:
    hits = small.as_retriever(image_similarity_top_k=0).retrieve(IMAGE)

    assert ids(hits) == ["A-text", "B-text"]


def test_complete_gives_a_passage_that_no_query_asked_for(small: DualIndex) -> None:
    hits = small.as_retriever(complete=True).retrieve(IMAGE)

    assert ids(hits) == ["B-text", "B-image", "A-text", "A-image"]
    assert "text_by_image" not in hits[0].scores


def test_an_image_asks_the_texts_of_a_shared_space_where_told(small: DualIndex) -> None:
    settings = {"normalize": "none", "combine": "sum", "image_queries": "also_texts"}
    hits = small.as_retriever(**settings).retrieve(IMAGE)

    assert ids(hits)[0] == "A-text"
    assert hits[0].scores == pytest.approx(
        {
            "text_by_image": 0.72,
            "image_by_image": 0.31,
            "text_by_image_evidence": 0.72,
            "image_by_image_evidence": 0.31,
        },
        abs=1e-5,
    )


def test_text_and_image_are_two_searches_whose_evidence_is_added(small: DualIndex) -> None:
    both = QueryBundle("query", image_path="/images/query")

    hits = small.as_retriever(normalize="none", combine="sum").retrieve(both)

    assert hits[0].score == pytest.approx(2 * (0.72 + 0.31), abs=1e-5)


def test_a_query_is_embedded_once_per_model(small: DualIndex) -> None:
    asked = small.embed_model.asked
    asked.clear()

    small.as_retriever().retrieve("query")
    assert asked == ["query"]
    small.as_retriever().retrieve(QueryBundle("query", embedding=[1.0] + [0.0] * (D - 1)))
    assert asked == ["query"]
    small.as_retriever().retrieve(QueryBundle("x", custom_embedding_strs=["one", "two"]))
    assert asked == ["query", "one", "two"]


def test_the_bundle_is_never_changed(small: DualIndex) -> None:
    for bundle in (QueryBundle("query"), QueryBundle("query", image_path="/images/query")):
        before = bundle.to_dict()
        first = small.as_retriever().retrieve(bundle)
        second = small.as_retriever().retrieve(bundle)

        assert bundle.to_dict() == before
        assert [(h.node_id, h.score) for h in first] == [(h.node_id, h.score) for h in second]


def test_sync_equals_async_in_two_event_loops(index: DualIndex) -> None:
    retriever = index.as_retriever(complete=True)
    expected = [(hit.node_id, hit.score) for hit in retriever.retrieve("query")]

    for _ in range(2):
        hits = asyncio.run(retriever.aretrieve("query"))
        assert [(hit.node_id, hit.score) for hit in hits] == expected


def test_an_empty_query_is_an_error(small: DualIndex) -> None:
    with pytest.raises(ValueError, match="the query is empty: pass a text, an image_path, or both"):
        small.as_retriever().retrieve("")


# --- settings and failures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"similarity_top_k": -1}, "similarity_top_k=-1: must be at least 0"),
        ({"top_k": 0}, "top_k=0: must be at least 1"),
        ({"similarity_top_k": 0, "image_similarity_top_k": 0}, "are both 0"),
        ({"normalize": "rank"}, "combine='intent' needs z-scores"),
        ({"hubs": 2}, "hubs=2: must be True, False, or a number from 0 to 1"),
        ({"group_by": "chapter"}, "group_by='chapter': must be one of document, node"),
        ({"on_leg_error": "ignore"}, "must be one of raise, degrade"),
        ({"weights": {"sound": 1}}, "weights name 'sound'; the modalities are text, image"),
        ({"weights": {"text": -1}}, "the weight of text is -1"),
        ({"min_probability": 1.5}, "min_probability=1.5: must lie between 0 and 1"),
    ],
)
def test_wrong_settings_fail_at_construction(
    settings: dict[str, Any], message: str, small: DualIndex
) -> None:
    with pytest.raises(ValueError, match=message):
        small.as_retriever(**settings)


def test_a_failing_leg_raises_or_degrades(
    small: DualIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the disk is on fire")

    query = MilvusStore.query_hits

    def query_texts(store: MilvusStore, asked: Any, **others: Any) -> Any:
        return (broken if "image" in store.collection_name else query)(store, asked, **others)

    monkeypatch.setattr(MilvusStore, "query_hits", query_texts)

    with pytest.raises(RuntimeError, match="on fire"):
        small.as_retriever().retrieve("query")
    hits = small.as_retriever(on_leg_error="degrade").retrieve("query")
    assert ids(hits) == ["A-text", "B-text"]
    assert "the image leg failed and is left out of the ranking: the disk is on fire" in caplog.text


# --- over other stores --------------------------------------------------------------------------


def test_over_an_existing_multi_modal_index() -> None:
    model = Angles()
    nodes = [*ARTICLES, image("C", 0.9).model_copy(update={"text": "near=0.1"})]
    index = MultiModalVectorStoreIndex(nodes, embed_model=model, image_embed_model=model)

    hits = DualIndexRetriever.from_index(index).retrieve("query")

    # Ranks of A: 1 by text, 3 by image; B: 2 and 2; C: 3 and 1.
    assert [hit.score for hit in hits[:2]] == pytest.approx([1 / 61 + 1 / 63] * 2)
    assert {hit.node.ref_doc_id for hit in hits} == {"A", "B", "C"}
    vectors_only = (index.vector_store, index.image_vector_store, model)
    with pytest.raises(ValueError, match="pass the docstore that holds the store"):
        DualIndexRetriever.from_stores(*vectors_only).retrieve("query")


def test_over_foreign_stores_by_rank(index: DualIndex) -> None:
    stores = {side: s.store for side, s in index.collections().items()}
    retriever = DualIndexRetriever.from_stores(stores["text"], stores["image"], Angles(), top_k=2)

    hits = retriever.retrieve("query")

    assert hits[0].score == pytest.approx(1 / 61)
    with pytest.raises(ValueError, match="the query is an image, but unknown embeds no images"):
        DualIndexRetriever.from_stores(
            stores["text"], stores["image"], MockEmbedding(embed_dim=D)
        ).retrieve(IMAGE)


# --- traps of LlamaIndex's own parts that this package avoids -----------------------------------


def test_a_first_insert_without_images_does_not_hide_later_ones(tmp_path: Path) -> None:
    """MultiModalVectorStoreIndex then skips the image leg for good."""
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Angles()) as index:
        index.insert_nodes([text("A", 0.7)])
        assert ids(index.as_retriever().retrieve("query")) == ["A-text"]
        index.insert_nodes([image("B", 0.5)])
        assert set(ids(index.as_retriever().retrieve("query"))) == {"A-text", "B-image"}


def test_images_without_text_and_metadata_are_found(small: DualIndex) -> None:
    """MultiModalVectorStoreIndex drops them with a print."""
    bare = ImageNode(id_="bare", image_path="/images/bare near=0.99")
    small.insert_nodes([bare])
    try:
        assert "bare" in ids(small.as_retriever().retrieve("query"))
    finally:
        small.delete_nodes(["bare"])


def test_image_nodes_come_back_with_caption_and_image(
    tmp_path: Path, noise_files: list[str]
) -> None:
    """ImageNode.get_content_blocks leaves out the node's own text."""
    node = ImageNode(id_="a", text="a caption", image_path=noise_files[0])
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Angles()) as index:
        index.insert_nodes([node])
        (hit,) = index.as_retriever().retrieve("query")

    caption, image = hit.node.get_content_blocks()
    assert caption.text == "a caption"
    assert str(image.path) == noise_files[0]


def test_nodes_found_are_not_changed_by_ranking(small: DualIndex) -> None:
    """QueryFusionRetriever writes its scores into the inputs."""
    first = small.as_retriever(normalize="none", combine="sum").retrieve("query")
    scores = [hit.score for hit in first]

    small.as_retriever().retrieve("query")

    assert [hit.score for hit in first] == scores


def test_samples_follow_what_is_written(tmp_path: Path) -> None:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Angles()) as index:
        index.insert_nodes(CROWD[:55])
        assert index.collections()["text"].background("text").sample.shape == (55, D)
        index.insert_nodes(CROWD[55:60])
        assert index.collections()["text"].background("text").sample.shape == (60, D)
        index.delete_nodes([node.node_id for node in CROWD[:20]])
        assert index.collections()["text"].background("text").sample.shape == (40, D)


# --- for tools ----------------------------------------------------------------------------------


def only(condition: FilterCondition = FilterCondition.AND, **values: str) -> MetadataFilters:
    conditions = [MetadataFilter(key=key, value=value) for key, value in values.items()]
    return MetadataFilters(filters=conditions, condition=condition)


def test_filtered_narrows_a_copy(index: DualIndex) -> None:
    retriever = index.as_retriever()
    reports = retriever.filtered(only(kind="report"))

    assert set(ids(reports.retrieve("a query"))) == {"A-text", "A-image"}
    assert reports.filtered(only(kind="other")).retrieve("a query") == []
    assert len(retriever.retrieve("a query")) > 2
    either = index.as_retriever(filters=only(FilterCondition.OR, kind="report", _="none"))
    assert either.filtered(only(kind="other")).retrieve("a query") == []
    assert set(ids(either.filtered(only(kind="report")).retrieve("a"))) == {"A-text", "A-image"}


def test_filters_stay_flat_for_stores_that_know_no_nesting(index: DualIndex) -> None:
    retriever = index.as_retriever(filters=only(kind="report")).filtered(only(year="2024"))

    assert [each.key for each in retriever._filters.filters] == ["kind", "year"]


def test_an_image_is_found_by_its_id_where_the_filters_allow(index: DualIndex) -> None:
    retriever = index.as_retriever()

    assert retriever.get_image("A-image").image_path == "/images/A near=0.31"
    assert retriever.get_image("A-text") is None
    assert retriever.filtered(only(kind="other")).get_image("A-image") is None
