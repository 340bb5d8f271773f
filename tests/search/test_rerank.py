from __future__ import annotations

import asyncio
import base64
import copy
import json
import logging
import pickle
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gate import Gate
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import LLMMetadata, TextBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.callbacks.schema import EventPayload
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms.mock import MockLLMWithChatMemoryOfLastCall
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MediaResource,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from paths import PARITY
from PIL import Image
from scipy.special import logit

from llama_index_gap import DualEncoderEmbedding, DualIndex, ImageError, open_image
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.calibrate import PAIRS, Curve, RelevanceCalibrator
from llama_index_gap.models import Joint, LazyImage, LoadingSettings, ModelError, PairScorer
from llama_index_gap.models.base import Item
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.search.rerank import MultiModalRerank


class WordsAndColours(PairScorer):
    """Scores the share of the query's words or colours that a document has.

    A text has its words. An image is as red, green and blue, from 0 to 1, as its pixels are on
    average. A text with an image has the words of both.
    """

    name = "words-and-colours"
    licence = None
    modalities = frozenset({"text", "image"})
    joint = True

    def __init__(self) -> None:
        self.known: dict[str, dict[str, float]] = {}
        self.decoded = 0
        self.passes: list[int] = []

    def prepare(self, item: Item) -> dict[str, float]:
        match item:
            case str():
                return dict.fromkeys(item.lower().split(), 1.0)
            case Joint():
                text, image = self.prepare(item.text), self.prepare(item.image)
                return {word: max(text.get(word, 0), image.get(word, 0)) for word in text | image}
            case LazyImage():
                if item.key not in self.known:
                    self.known[item.key] = self.prepare(item.open())
                return self.known[item.key]
        self.decoded += 1
        colours = np.asarray(item).mean(axis=(0, 1)) / 255
        return dict(zip(("red", "green", "blue"), colours.tolist(), strict=True))

    def score_prepared(
        self, query: dict[str, float], documents: Sequence[dict[str, float]]
    ) -> FloatArray:
        self.passes.append(len(documents))
        return np.array(
            [
                sum(weight * document.get(word, 0) for word, weight in query.items())
                / sum(query.values())
                for document in documents
            ],
            dtype=np.float32,
        )

    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return scores


def paint(folder: Path, *, red: float = 0, green: float = 0) -> str:
    """An image with these shares of red and green."""
    path = folder / f"red {red} green {green}.png"
    Image.new("RGB", (4, 4), (round(255 * red), round(255 * green), 0)).save(path)
    return str(path)


def of_document(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}


def text(document: str, content: str, **settings: Any) -> TextNode:
    identifier = settings.pop("id_", f"{document}-text")
    return TextNode(id_=identifier, text=content, relationships=of_document(document), **settings)


def image(document: str, path: str | None, caption: str = "", **settings: Any) -> ImageNode:
    return ImageNode(
        id_=settings.pop("id_", f"{document}-image"),
        image_path=path,
        text=caption,
        relationships=of_document(document),
        **settings,
    )


def hits(*nodes: BaseNode) -> list[NodeWithScore]:
    """Hits in the form that a retriever returns, best first."""
    return [NodeWithScore(node=node, score=1 / (1 + rank)) for rank, node in enumerate(nodes)]


def ids(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def scores(nodes: Sequence[NodeWithScore]) -> list[tuple[str, Any]]:
    """Each document, best first, with its score."""
    of_document = {node.node.ref_doc_id or node.node_id: node.score for node in nodes}
    return [
        (document, None if score is None else pytest.approx(score, abs=1e-6))
        for document, score in of_document.items()
    ]


def rerank(nodes: Sequence[NodeWithScore], query: str | QueryBundle, **settings: Any) -> Any:
    """The ranking of all documents, by words and colours."""
    settings = {"model": WordsAndColours(), "top_n": None, **settings}
    bundle = QueryBundle(query) if isinstance(query, str) else query
    return MultiModalRerank(**settings).postprocess_nodes(list(nodes), query_bundle=bundle)


QUERY = "red bicycle"


@pytest.fixture
def found(tmp_path: Path) -> list[NodeWithScore]:
    """Four documents. For QUERY, a common word scores 1/2, and so does full red.

    A text 1, image 0.1; B text 0, image 0.3; C image 0.2; D text 0.
    """
    return hits(
        text("A", "a red bicycle"),
        image("A", paint(tmp_path, red=0.2)),
        text("B", "a car"),
        image("B", paint(tmp_path, red=0.6)),
        image("C", paint(tmp_path, red=0.4)),
        text("D", "rain"),
    )


# --- the modes ----------------------------------------------------------------------------------

MODES = {
    "mean": {"A": 0.55, "C": 0.2, "B": 0.15, "D": 0},
    "max": {"A": 1, "B": 0.3, "C": 0.2, "D": 0},
    "text": {"A": 1, "C": 0.2, "B": 0, "D": 0},
    "image": {"B": 0.3, "C": 0.2, "A": 0.1, "D": 0},
    "by_modality": {"A": 1, "C": 0.2, "B": 0, "D": 0},  # the first node of each
    "joint": {"A": 1, "B": 0.3, "C": 0.2, "D": 0},
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_has_its_ranking(mode: str, found: list[NodeWithScore]) -> None:
    ranked = rerank(found, QUERY, score_mode=mode)

    assert scores(ranked) == list(MODES[mode].items())


def test_where_each_score_comes_from(found: list[NodeWithScore]) -> None:
    def of_a(mode: str) -> dict[str, float]:
        return rerank(found[:2], QUERY, score_mode=mode)[0].scores

    text_side, image_side = {"rerank_text": 1.0}, {"rerank_image": 0.1}
    assert of_a("mean") == of_a("max") == pytest.approx({"retrieval": 1, **text_side, **image_side})
    assert of_a("text") == of_a("by_modality") == pytest.approx({"retrieval": 1, **text_side})
    assert of_a("image") == pytest.approx({"retrieval": 1, **image_side})
    assert of_a("joint") == pytest.approx({"retrieval": 1, "rerank_joint": 1})


@pytest.mark.parametrize(
    ("mode", "scored"),
    [("mean", 6), ("max", 6), ("text", 4), ("image", 4), ("by_modality", 4), ("joint", 4)],
)
def test_only_the_sides_that_a_mode_needs_are_scored(
    mode: str, scored: int, found: list[NodeWithScore]
) -> None:
    scorer = WordsAndColours()

    rerank(found, QUERY, model=scorer, score_mode=mode)

    assert sum(scorer.passes) == scored


def test_by_modality_is_what_the_stronger_evidence_found(found: list[NodeWithScore]) -> None:
    """A was found by its image and B by its text; a leg of an image query counts for its target."""
    evidence = {
        "A": {"text": 0.9, "image": 0.3, "text_evidence": 1.0, "image_evidence": 2.0},
        "B": {"text_by_image_evidence": 2.0, "image_evidence": 1.0, "image_by_image_evidence": 1.5},
        "C": {"text_evidence": 1.0},  # by a caption that is missing here: scored by its image
        "D": {},
    }
    found = [
        ScoredNode(node=hit.node, score=hit.score, scores=evidence[hit.node.ref_doc_id])
        for hit in found
    ]

    ranked = rerank(found, QUERY, score_mode="by_modality")

    assert scores(ranked) == [("C", 0.2), ("A", 0.1), ("B", 0), ("D", 0)]
    assert ids(ranked) == ["C-image", "A-text", "A-image", "B-text", "B-image", "D-text"]
    assert ranked[1].scores == pytest.approx(
        {**evidence["A"], "retrieval": 1, "rerank_image": 0.1}, abs=1e-6
    )


def test_a_captioned_image_found_by_its_caption_is_judged_by_it(tmp_path: Path) -> None:
    node = image("A", paint(tmp_path, red=1), caption="a bicycle and a red car")
    by_caption = ScoredNode(node=node, score=1, scores={"text_evidence": 1})
    by_image = ScoredNode(node=node, score=1, scores={"image_evidence": 1})

    for hit, score in ((by_caption, 1), (by_image, 0.5)):
        (ranked,) = rerank([hit], QUERY, score_mode="by_modality")
        assert ranked.score == score


def test_the_best_text_and_the_best_image_count(tmp_path: Path) -> None:
    nodes = hits(
        text("A", "a car", id_="a1"),
        image("A", paint(tmp_path, red=0.2), id_="a2"),
        text("A", "a bicycle", id_="a3"),
        image("A", paint(tmp_path, red=0.4), id_="a4"),
        image("A", paint(tmp_path), id_="a5"),
        text("A", "rain", id_="a6"),
    )

    ranked = rerank(nodes, QUERY)

    assert ids(ranked) == [
        "a1",
        "a3",
        "a6",
        "a2",
        "a4",
        "a5",
    ]  # texts first, in the order of retrieval
    assert ranked[0].scores == pytest.approx(
        {"retrieval": 1, "rerank_text": 0.5, "rerank_image": 0.2}
    )
    assert scores(ranked) == [("A", 0.35)]
    joint = rerank(nodes, QUERY, score_mode="joint")  # "a car" with red 0.2
    assert scores(joint) == [("A", 0.1)]


def test_captions_are_the_text_of_what_has_no_other(tmp_path: Path) -> None:
    path = paint(tmp_path)
    only_captions = hits(
        image("A", path, caption="a red car", id_="a1"),
        image("A", path, caption="a red bicycle", id_="a2"),
    )
    with_a_text = [*only_captions, *hits(text("A", "rain"))]

    assert scores(rerank(only_captions, QUERY, score_mode="text")) == [("A", 1)]
    assert scores(rerank(with_a_text, QUERY, score_mode="text")) == [("A", 0)]


def test_metadata_is_read_where_it_was_embedded() -> None:
    shown = text("A", "rain", metadata={"title": "bicycle"})
    hidden = text("B", "rain", metadata={"t": "bicycle"}, excluded_embed_metadata_keys=["t"])

    assert scores(rerank(hits(shown, hidden), "bicycle", score_mode="text")) == [("A", 1), ("B", 0)]


def test_metadata_alone_is_no_caption(tmp_path: Path) -> None:
    node = image("A", paint(tmp_path, green=1), metadata={"file": "red bicycle"})

    assert rerank(hits(node), QUERY)[0].scores == {"retrieval": 1, "rerank_image": 0}


# --- what is read -------------------------------------------------------------------------------


def test_images_of_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = paint(tmp_path, red=0.4)
    data = Path(path).read_bytes()
    monkeypatch.setattr(
        "llama_index_gap.images.opening.fetch", {"https://e.com/a.png": data}.__getitem__
    )
    scorer = WordsAndColours()
    nodes = hits(
        ImageNode(id_="path", image_path=path),
        ImageNode(id_="base64", image=base64.b64encode(data).decode()),
        ImageNode(id_="url", image_url="https://e.com/a.png"),
        Node(id_="resource", image_resource=MediaResource(path=path)),
        Node(
            id_="both",
            text_resource=MediaResource(text="a red bicycle"),
            image_resource=MediaResource(data=data),
        ),
        Node(id_="text", text_resource=MediaResource(text="a red bicycle")),
    )

    ranked = rerank(nodes, QUERY, model=scorer, allow_urls=True)

    assert scores(ranked)[:2] == [("text", 1), ("both", 0.6)]
    assert scores(ranked)[2:] == [(form, 0.2) for form in ("path", "base64", "url", "resource")]
    assert sum(scorer.passes) == 2  # equal texts and equal images are scored once
    rerank(nodes, "green", model=scorer, allow_urls=True)
    decoded = scorer.decoded
    rerank(nodes, "blue", model=scorer, allow_urls=True)
    assert scorer.decoded == decoded  # recognised by their files' content


def test_a_node_that_comes_twice_is_returned_once(tmp_path: Path) -> None:
    node = image("A", paint(tmp_path, red=1), caption="rain")
    scorer = WordsAndColours()

    (ranked,) = rerank(hits(node, node), "red", model=scorer)

    assert ranked.score == 0.5
    assert ranked.scores["retrieval"] == 1
    assert sum(scorer.passes) == 2


@pytest.mark.parametrize(("batch_size", "passes"), [(1, [1] * 4), (2, [2, 1, 1]), (8, [3, 1])])
def test_no_pass_is_larger_than_the_batch_size_and_nothing_is_scored_twice(
    batch_size: int, passes: list[int], tmp_path: Path
) -> None:
    """One document has three texts and an image; the other has one of these texts."""
    scorer = WordsAndColours()
    nodes = hits(
        text("A", "red", id_="a1"),
        text("A", "car", id_="a2"),
        text("A", "rain", id_="a3"),
        image("A", paint(tmp_path)),
        text("B", "car"),
    )

    rerank(nodes, QUERY, model=scorer, batch_size=batch_size)

    assert scorer.passes == passes


def test_queries_of_every_form(tmp_path: Path) -> None:
    """A red text and a green image: red words find the text, and a green image the image."""
    nodes = hits(text("A", "red"), image("B", paint(tmp_path, green=1)))
    green = paint(tmp_path, green=0.6)

    def ranking(query: str, image_path: str | None = None, **settings: Any) -> Any:
        return scores(rerank(nodes, QueryBundle(query, image_path=image_path), **settings))

    assert ranking("red") == [("A", 1), ("B", 0)]
    assert ranking("", green) == [("B", 1), ("A", 0)]
    assert ranking("red car", green) == [
        ("B", 0.5),
        ("A", 0.25),
    ]  # the mean of 1/2 and 0, of 0 and 1
    # Read together, the query is red, car and 0.6 of green: A has red, B has green.
    assert ranking("red car", green, score_mode="joint") == [("A", 1 / 2.6), ("B", 0.6 / 2.6)]


def test_a_query_that_cannot_be_read(tmp_path: Path) -> None:
    nodes = hits(text("A", "red"))

    with pytest.raises(ValueError, match="the query is missing: pass query_bundle or query_str"):
        MultiModalRerank(model=WordsAndColours()).postprocess_nodes(nodes)
    with pytest.raises(ValueError, match="the query is empty: pass a text, an image_path, or both"):
        rerank(nodes, " ")
    with pytest.raises(ImageError, match=r"nowhere\.png: no such file"):
        rerank(nodes, QueryBundle("red", image_path=str(tmp_path / "nowhere.png")))
    with pytest.raises(ValueError, match=r"a modality \(image\) that words-and-colours"):
        rerank(nodes, QueryBundle("red", image_path=paint(tmp_path)), model=WordsOnly())


def test_no_nodes() -> None:
    assert rerank([], "") == []


def test_images_are_opened_only_where_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch(url: str) -> bytes:
        return Path(paint(tmp_path, red=1)).read_bytes()

    monkeypatch.setattr("llama_index_gap.images.opening.fetch", fetch)
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    nodes = hits(
        image("A", paint(outside, red=1)),
        ImageNode(id_="B", image_url="https://e.com/a.png"),
        image("C", paint(inside, red=1)),
    )

    ranked = rerank(nodes, "red", image_root=inside)

    assert scores(ranked) == [("C", 1), ("A", None), ("B", None)]
    assert "that cannot be read and are ignored: 2; the first: node A-image" in caplog.text
    assert "lies outside root" in caplog.text


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """A truncated image with a valid header."""
    path = tmp_path / "damaged.jpg"
    noise = Image.effect_noise((200, 100), 50)
    noise.save(path)
    path.write_bytes(path.read_bytes()[:3000])
    return str(path)


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_image_costs_that_side_only(
    mode: str, damaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = hits(
        image("A", damaged),
        text("A", "red"),
        image("B", str(tmp_path / "nowhere.png")),
        text("C", "rain"),
        image("D", str(tmp_path / "nowhere, too.png"), id_="d1"),
        image("D", paint(tmp_path, red=0.4), id_="d2"),
    )

    ranked = rerank(nodes, "red", score_mode=mode)

    # B has nothing else and is returned after the others.
    assert scores(ranked) == [("A", 1), ("D", 0.4), ("C", 0), ("B", None)]
    assert ids(ranked) == ["A-text", "A-image", "d1", "d2", "C-text", "B-image"]
    assert ranked[-1].scores == {"retrieval": pytest.approx(1 / 3)}
    images, documents = (record.getMessage() for record in caplog.records)
    if mode == "text":  # A's image is not needed
        assert images.startswith("images that cannot be read and are ignored: 2; ")
        assert images.endswith("nowhere.png): no such file")
    else:
        assert images.startswith(
            "images that cannot be read and are ignored: 3; the first: node A-image: "
            "truncated or damaged image"
        )
    assert documents == (
        "1 of 4 documents have nothing that words-and-colours can read; they come last"
    )


def test_read_together_are_the_first_text_and_the_first_good_image(
    damaged: str, tmp_path: Path
) -> None:
    nodes = hits(
        text("A", "a car"),
        image("A", damaged, id_="a1"),
        image("A", paint(tmp_path, red=0.6), id_="a2"),
        image("A", paint(tmp_path, red=1), id_="a3"),
    )

    (ranked, *_) = rerank(nodes, "red car", score_mode="joint")

    assert ranked.scores == pytest.approx({"retrieval": 1, "rerank_joint": 0.8})


def test_an_image_that_the_model_refuses_costs_that_side_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Picky(WordsAndColours):
        def prepare(self, item: Item) -> dict[str, float]:
            if isinstance(item, LazyImage) and item.open().width > 4:
                raise ValueError("too wide for its patches")
            return super().prepare(item)

    Image.new("RGB", (900, 4)).save(tmp_path / "wide.png")
    nodes = hits(text("A", "red"), image("A", str(tmp_path / "wide.png")))

    assert scores(rerank(nodes, "red", model=Picky())) == [("A", 1)]
    assert "ignored: 1; the first: node A-image: too wide for its patches" in caplog.text


def test_documents_without_a_score_keep_their_order(tmp_path: Path) -> None:
    nodes = hits(
        image("A", str(tmp_path / "no.png")),
        text("B", "rain"),
        text("C", " "),
        text("D", "red"),
        image("E", None),
    )

    assert ids(rerank(nodes, "red")) == ["D-text", "B-text", "A-image", "C-text", "E-image"]


def test_scores_that_are_no_numbers_are_an_error() -> None:
    class Broken(WordsAndColours):
        def score_prepared(self, query: Any, documents: Sequence[Any]) -> FloatArray:
            return np.array([np.nan, *[1.0] * (len(documents) - 1)], dtype=np.float32)

    with pytest.raises(ModelError, match="1 of 2 scores are NaN or infinite; its weights may be"):
        rerank(hits(text("A", "a"), text("B", "b")), "a", model=Broken())


# --- scales -------------------------------------------------------------------------------------


class Logits(WordsAndColours):
    """The same as logits, from -2 to 2."""

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> FloatArray:
        return 4 * super().score_prepared(query, documents) - 2

    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return 1 / (1 + np.exp(-scores))


class RawLogits(Logits):
    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return None


def test_sides_are_combined_as_probabilities_where_the_model_has_them(
    found: list[NodeWithScore],
) -> None:
    """A's text has the logit 2, its image -1.6."""
    document = found[:2]
    sigmoid = [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1.6))]

    def score(scorer: PairScorer, mode: str) -> float:
        return rerank(document, QUERY, model=scorer, score_mode=mode)[0].score

    assert score(Logits(), "mean") == pytest.approx(np.mean(sigmoid), abs=1e-6)
    assert score(Logits(), "max") == pytest.approx(sigmoid[0], abs=1e-6)
    assert score(RawLogits(), "mean") == pytest.approx(0.2, abs=1e-6)
    assert score(RawLogits(), "max") == pytest.approx(2, abs=1e-6)


def calibrator(*pairs: str, source: str = "words-and-colours") -> RelevanceCalibrator:
    """Log-odds rise in a line up to a score of 1, where the pairs have 1/2, 1/4, 1/8 and so on."""
    certain = 1e-9  # no probability is quite 0
    curves = {
        pair: Curve(
            scores=(0.0, 1.0),
            log_odds=(logit(certain), logit(0.5 ** (rank + 1))),
            precision=(0.5, 0.5),
            relevant=10,
            irrelevant=10,
        )
        for rank, pair in enumerate(pairs or PAIRS)
    }
    return RelevanceCalibrator(curves, "isotonic", source)


def test_a_calibrator_comes_before_the_sides_are_combined(tmp_path: Path) -> None:
    """Text to text 1/2, text to image 1/4, image to text 1/8, image to image 1/16."""
    nodes = hits(text("A", "red"), image("A", paint(tmp_path, red=1)))
    red = QueryBundle("red", image_path=paint(tmp_path, red=1))

    (ranked, _) = rerank(nodes, "red", calibrator=calibrator())
    assert ranked.score == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert ranked.scores["rerank_image"] == pytest.approx(1 / 4)
    (ranked, _) = rerank(nodes, red, calibrator=calibrator())
    assert ranked.scores["rerank_text"] == pytest.approx((1 / 2 + 1 / 8) / 2)
    assert ranked.scores["rerank_image"] == pytest.approx((1 / 4 + 1 / 16) / 2)
    assert rerank(nodes, "red", calibrator=calibrator(), similarity_cutoff=0.4) == []


# --- what is returned ---------------------------------------------------------------------------


def test_inputs_stay_as_they_are(found: list[NodeWithScore]) -> None:
    found[0] = ScoredNode(node=found[0].node, score=7.5, scores={"text": 0.3})
    before = [copy.deepcopy(hit) for hit in found]

    ranked = rerank(found, QUERY)

    assert [hit.model_dump() for hit in found] == [hit.model_dump() for hit in before]
    assert {id(hit.node) for hit in ranked} == {id(hit.node) for hit in found}
    assert all(type(hit) is ScoredNode for hit in ranked)
    assert ranked[0].scores == pytest.approx(
        {"retrieval": 7.5, "text": 0.3, "rerank_text": 1, "rerank_image": 0.1}, abs=1e-6
    )


def test_a_second_reranker_s_scores_are_its_own(found: list[NodeWithScore]) -> None:
    first = rerank(found, QUERY, score_mode="image")
    second = rerank(first, QUERY, score_mode="text")

    (a,) = (hit for hit in second if hit.node_id == "A-text")
    assert a.scores == {"retrieval": 1, "rerank_text": 1}


def test_top_n_counts_documents(found: list[NodeWithScore]) -> None:
    assert ids(rerank(found, QUERY, top_n=1)) == ["A-text", "A-image"]
    assert ids(rerank(found, QUERY, top_n=2)) == ["A-text", "A-image", "C-image"]
    assert ids(rerank(found, QUERY, top_n=9)) == ids(rerank(found, QUERY, top_n=None))
    assert MultiModalRerank(model=WordsAndColours()).top_n == 5


def test_group_by_node(found: list[NodeWithScore]) -> None:
    ranked = rerank(found, QUERY, group_by="node", top_n=3)

    assert ids(ranked) == ["A-text", "B-image", "C-image"]
    assert [hit.score for hit in ranked] == pytest.approx([1, 0.3, 0.2], abs=1e-6)


def test_similarity_cutoff(
    found: list[NodeWithScore], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    lost = hits(image("E", str(tmp_path / "no.png")))

    with caplog.at_level(logging.INFO, "llama_index_gap.search.rerank"):
        ranked = rerank([*lost, *found], QUERY, similarity_cutoff=0.2)

    assert scores(ranked) == [("A", 0.55), ("C", 0.2)]
    assert "similarity_cutoff=0.2 keeps 2 of 5 documents" in caplog.text
    assert "1 of 5 documents have nothing that words-and-colours can read; they are left out" in (
        caplog.text
    )


def test_a_score_that_is_the_cutoff_is_enough() -> None:
    nodes = hits(text("A", "rain"), text("B", "red"))

    assert scores(rerank(nodes, QUERY, similarity_cutoff=0.5)) == [("B", 0.5)]


def test_a_node_without_a_score() -> None:
    (ranked,) = rerank([NodeWithScore(node=text("A", "red"))], "red")

    assert ranked.scores == {"rerank_text": 1}


WORDS = st.sampled_from(["red", "bicycle", "car", "rain"])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(WORDS, max_size=3), max_size=12),
    st.integers(1, 5),
    st.sampled_from(sorted(MODES)),
)
def test_any_batches_give_the_same_stable_ranking(
    contents: list[list[str]], batch_size: int, mode: str
) -> None:
    nodes = hits(*(text(str(i), " ".join(words)) for i, words in enumerate(contents)))
    expected = sorted(
        range(len(contents)),
        key=lambda i: -len({*contents[i]} & {"red", "bicycle"}) if contents[i] else 1,
    )

    ranked = rerank(nodes, QUERY, batch_size=batch_size, score_mode=mode)

    assert [hit.node.ref_doc_id for hit in ranked] == [str(i) for i in expected]


# --- time ---------------------------------------------------------------------------------------


class Slow(WordsAndColours):
    """Takes a second for each pass, on a simulated clock."""

    now = 0.0

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> FloatArray:
        self.now += 1
        return super().score_prepared(query, documents)


@pytest.mark.parametrize(
    ("max_seconds", "reached"), [(None, 6), (0.1, 2), (1, 2), (1.5, 4), (2.5, 6)]
)
def test_max_seconds(
    max_seconds: float | None,
    reached: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each pass scores two documents: E and F are the best, but are not reached and come last."""
    scorer = Slow()
    clock = SimpleNamespace(monotonic=lambda: scorer.now)
    monkeypatch.setattr("llama_index_gap.search.rerank.time", clock)
    words = ["rain", "red", "car", "red car", "red bicycle", "a red bicycle"]
    nodes = hits(*(text(name, words) for name, words in zip("ABCDEF", words, strict=True)))

    ranked = rerank(nodes, QUERY, model=scorer, batch_size=2, max_seconds=max_seconds)

    documents = "".join(hit.node.ref_doc_id for hit in ranked)
    assert documents == {2: "BACDEF", 4: "BDACEF", 6: "EFBDAC"}[reached]
    assert [hit.score is not None for hit in ranked] == [True] * reached + [False] * (6 - reached)
    if reached < 6:
        assert all(hit.partial for hit in ranked)
        assert f"max_seconds={max_seconds:g}: {reached} of 6 documents were scored" in caplog.text
    else:
        assert not any(hit.partial for hit in ranked)
        assert caplog.text == ""


def test_what_time_did_not_allow_has_not_reached_the_cutoff(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Slow()
    clock = SimpleNamespace(monotonic=lambda: scorer.now)
    monkeypatch.setattr("llama_index_gap.search.rerank.time", clock)
    nodes = hits(text("A", "rain"), text("B", "red"), text("C", "red"))

    ranked = rerank(nodes, "red", model=scorer, batch_size=1, max_seconds=2, similarity_cutoff=0.5)

    assert ids(ranked) == ["B-text"]
    assert "2 of 3 documents were scored; the others are left out" in caplog.text


# --- as LlamaIndex components do ----------------------------------------------------------------


def test_async_equals_sync_in_two_event_loops(found: list[NodeWithScore]) -> None:
    reranker = MultiModalRerank(model=WordsAndColours())
    expected = reranker.postprocess_nodes(found, query_str=QUERY)

    for _ in range(2):
        ranked = asyncio.run(reranker.apostprocess_nodes(found, query_str=QUERY))
        assert ranked == expected


class Gated(WordsAndColours):
    """Waits at a gate before each pass."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> FloatArray:
        self.gate.pass_through()
        return super().score_prepared(query, documents)


def test_the_event_loop_is_never_blocked(found: list[NodeWithScore]) -> None:
    scorer = Gated(Gate())
    reranker = MultiModalRerank(model=scorer)

    asyncio.run(scorer.gate.beside(reranker.apostprocess_nodes(found, query_str=QUERY)))
    assert threading.get_ident() not in scorer.gate.threads


def test_a_cancelled_ranking_stops() -> None:
    scorer = Gated(Gate(at=3))
    reranker = MultiModalRerank(model=scorer, batch_size=1)
    nodes = hits(*(text(str(i), f"text {i}") for i in range(100)))

    asyncio.run(scorer.gate.cancel(reranker.apostprocess_nodes(nodes, query_str=QUERY)))
    assert len(scorer.passes) == 3  # of 100
    assert reranker.postprocess_nodes(nodes[:1], query_str=QUERY)  # the next call is not affected


def test_callbacks_and_events(found: list[NodeWithScore]) -> None:
    seen: list[Any] = []

    class Collector(BaseEventHandler):
        def handle(self, event: Any, **_: Any) -> None:
            if isinstance(event, ReRankStartEvent | ReRankEndEvent):
                seen.append(event)

    handler = LlamaDebugHandler(print_trace_on_end=False)
    reranker = MultiModalRerank(
        model=WordsAndColours(), top_n=2, callback_manager=CallbackManager([handler])
    )
    collector = Collector()
    root_dispatcher.add_event_handler(collector)
    try:
        ranked = reranker.postprocess_nodes(found, query_str=QUERY)
    finally:
        root_dispatcher.event_handlers.remove(collector)

    ((start, end),) = handler.get_event_pairs(CBEventType.RERANKING)
    assert start.payload == {
        EventPayload.NODES: found,
        EventPayload.MODEL_NAME: "words-and-colours",
        EventPayload.QUERY_STR: QUERY,
        EventPayload.TOP_K: 2,
    }
    assert end.payload == {EventPayload.NODES: ranked}
    begun, ended = seen
    assert (begun.query.query_str, begun.nodes, begun.top_n) == (QUERY, found, 2)
    assert begun.model_name == "words-and-colours"
    assert ended.nodes == ranked


def test_progress_is_shown_when_asked(
    found: list[NodeWithScore], capsys: pytest.CaptureFixture[str]
) -> None:
    rerank(found, QUERY)
    assert capsys.readouterr().err == ""

    rerank(found, QUERY, batch_size=2, show_progress=True)
    assert "4/4" in capsys.readouterr().err


def test_copies_share_the_model() -> None:
    reranker = MultiModalRerank(model=WordsAndColours())

    for copied in (copy.deepcopy(reranker), reranker.model_copy()):
        assert copied._scorer is reranker._scorer


def test_settings_survive_and_load_the_model_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, LoadingSettings, int | None]] = []

    def load_scorer(
        name: str, settings: LoadingSettings, *, scale_to_pixels: int | None
    ) -> PairScorer:
        loaded.append((name, settings, scale_to_pixels))
        return WordsAndColours()

    monkeypatch.setattr("llama_index_gap.search.rerank.load_scorer", load_scorer)
    original = MultiModalRerank(
        model=tmp_path, top_n=7, scale_to_pixels=5000, dtype="float32", calibrator=calibrator()
    )

    settings = json.loads(json.dumps(original.to_dict()))
    copies = [MultiModalRerank.from_dict(settings), pickle.loads(pickle.dumps(original))]

    assert settings["class_name"] == "MultiModalRerank"
    for again in copies:
        assert again.to_dict() == original.to_dict()
        assert again.calibrator == original.calibrator
    expected = (str(tmp_path), LoadingSettings(dtype="float32"), 5000)
    assert loaded == [expected] * 3
    MultiModalRerank()
    assert loaded[-1][0] == "jina-m0"


def test_a_scorer_that_was_passed_cannot_be_serialised() -> None:
    reranker = MultiModalRerank(model=WordsAndColours())
    message = "the scorer words-and-colours is an object and cannot be serialised; pass the model"

    calls: list[Callable[[], object]] = [
        reranker.to_dict,
        reranker.to_json,
        lambda: pickle.dumps(reranker),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


class WordsOnly(WordsAndColours):
    modalities = frozenset({"text"})
    joint = False


class ColoursOnly(WordsAndColours):
    modalities = frozenset({"image"})
    joint = False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_n": 0}, "greater than 0"),
        ({"batch_size": 0}, "greater than 0"),
        ({"max_seconds": 0}, "greater than 0"),
        ({"similarity_cutoff": float("nan")}, "finite number"),
        ({"score_mode": "both"}, "'mean', 'max', 'text', 'image', 'by_modality' or 'joint'"),
        ({"group_by": "page"}, "'document' or 'node'"),
        ({"image_root": "/no/such"}, "image_root=/no/such: no such folder"),
        ({"top_k": 3}, "Extra inputs are not permitted"),
        ({"calibrator": "isotonic"}, "instance of RelevanceCalibrator"),
        ({"model": 7}, "instance of PairScorer"),
        (
            {"device": "cpu", "scale_to_pixels": 100},
            "device, scale_to_pixels: words-and-colours is already loaded; set this when you",
        ),
        ({"model": WordsOnly(), "score_mode": "image"}, "reads no images of documents; choose"),
        (
            {"model": ColoursOnly(), "score_mode": "text"},
            "reads no texts of documents; choose another",
        ),
        ({"model": WordsOnly(), "score_mode": "joint"}, "cannot read a text and an image toget"),
        (
            {"calibrator": calibrator(), "score_mode": "joint"},
            "a calibrator knows texts and images",
        ),
        ({"calibrator": calibrator(source="m0")}, "was fitted for m0, but these scores are of wor"),
        (
            {"calibrator": calibrator("text_to_text", "image_to_image")},
            "for text_to_text, image_to_image, but a query needs image_to_image and image_to_text "
            "or text_to_image and text_to_text",
        ),
    ],
)
def test_wrong_settings_fail_at_construction(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiModalRerank(**{"model": WordsAndColours(), **given})


def test_settings_can_be_changed_where_the_model_does_not_depend_on_them() -> None:
    reranker = MultiModalRerank(model=WordsAndColours())

    reranker.top_n = 3
    reranker.callback_manager = CallbackManager([])
    with pytest.raises(ValueError, match="greater than 0"):
        reranker.top_n = 0
    for name, value in (("model", "other"), ("score_mode", "joint"), ("device", "cpu")):
        with pytest.raises(ValueError, match="Field is frozen"):
            setattr(reranker, name, value)


def test_a_model_of_texts_alone_says_so(
    found: list[NodeWithScore], caplog: pytest.LogCaptureFixture
) -> None:
    ranked = rerank(found, QUERY, model=WordsOnly())

    assert scores(ranked) == [("A", 1), ("B", 0), ("D", 0), ("C", None)]
    assert [record.getMessage() for record in caplog.records] == [
        "words-and-colours reads no images of documents: it ranks documents without them",
        "1 of 4 documents have nothing that words-and-colours can read; they come last",
    ]
    caplog.clear()
    rerank(found[:2], QUERY, model=WordsOnly(), score_mode="text")
    assert caplog.text == ""  # nothing is missed


def test_a_model_that_reads_texts_as_queries_only(found: list[NodeWithScore]) -> None:
    """Models of the ColPali family do so."""

    class TextsAreQueries(WordsAndColours):
        joint = False
        document_modalities = frozenset({"image"})

    ranked = rerank(found, QUERY, model=TextsAreQueries())

    assert scores(ranked) == [("B", 0.3), ("C", 0.2), ("A", 0.1), ("D", None)]


# --- with a real model's code -------------------------------------------------------------------

M0 = PARITY / "jina_m0_tiny"


def test_jina_reranker_m0_gives_its_own_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = json.loads((M0 / "parity.json").read_text(encoding="utf-8"))["cases"]
    texts, image_cases = cases["text_text"], cases["text_image"]
    query = texts["pairs"][0][0]
    nodes = hits(
        *(text(name, pair[1]) for name, pair in zip("ABC", texts["pairs"], strict=True)),
        *(
            image(name, str(PARITY / "images" / f"{pair[1]}.png"))
            for name, pair in zip("ABC", image_cases["pairs"], strict=True)
        ),
    )
    expected = dict(
        zip("ABC", zip(texts["scores"], image_cases["scores"], strict=True), strict=True)
    )
    decoded: list[bytes] = []

    def decode(data: bytes) -> Image.Image:
        decoded.append(data)
        return open_image(data)

    monkeypatch.setattr("llama_index_gap.search.rerank.open_image", decode)
    reranker = MultiModalRerank(model=M0, dtype="float32", device="cpu")

    ranked = reranker.postprocess_nodes(nodes, query_str=query)

    assert ranked == pickle.loads(pickle.dumps(reranker)).postprocess_nodes(nodes, query_str=query)
    assert [hit.score for hit in ranked] == sorted((hit.score for hit in ranked), reverse=True)
    for hit in ranked:
        of_text, of_image = expected[hit.node.ref_doc_id]
        assert hit.scores["rerank_text"] == pytest.approx(of_text, abs=1e-5)
        assert hit.scores["rerank_image"] == pytest.approx(of_image, abs=1e-5)
        assert hit.score == pytest.approx((of_text + of_image) / 2, abs=1e-5)
    assert len(decoded) == 6
    reranker.postprocess_nodes(nodes, query_str="another question")
    assert len(decoded) == 6  # the prepared image_cases are cached


def test_jina_reranker_m0_refuses_an_image_of_its_own_accord(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (2000, 4)).save(tmp_path / "line.png")
    nodes = hits(text("A", "a line"), image("A", str(tmp_path / "line.png")))

    ranked = rerank(nodes, "a line", model=M0)

    assert ranked[0].score == ranked[0].scores["rerank_text"]
    assert "ignored: 1; the first: node A-image: " in caplog.text


# --- in a query engine --------------------------------------------------------------------------


class Onlooker(MockLLMWithChatMemoryOfLastCall):
    """A chat model that reads images, and records its input."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(context_window=100_000, num_output=256, is_chat_model=True)

    def seen(self) -> list[str | bytes]:
        """Texts and images' files, in their order."""
        return [
            block.text if isinstance(block, TextBlock) else block.resolve_image().read()
            for message in self.last_chat_messages
            for block in message.blocks
        ]


def test_a_query_engine_shows_texts_and_images_in_the_new_order(
    tiny_clip: Path, tmp_path: Path
) -> None:
    """Three answer the question: B by its image, A by its text, C a little; D does not."""
    images = {
        name: paint(tmp_path, red=red) for name, red in {"A": 0.2, "B": 1, "C": 0.4, "D": 0}.items()
    }
    nodes = [
        text("A", "a red car"),
        image("A", images["A"]),
        image("B", images["B"], caption="the red bicycle"),
        image("C", images["C"]),
        image("D", images["D"], caption="at night"),
    ]
    llm = Onlooker()
    embedding = DualEncoderEmbedding(model_name=tiny_clip)
    with DualIndex(str(tmp_path / "gap.db"), embed_model=embedding) as index:
        index.insert_nodes(nodes)
        engine = RetrieverQueryEngine.from_args(
            index.as_retriever(),
            node_postprocessors=[MultiModalRerank(model=WordsAndColours(), top_n=3)],
            llm=llm,
            multimodal=True,
        )
        answers, seen = [], []
        for _ in range(2):
            with asyncio.Runner() as runner:  # a new loop, closed at the end
                runner.get_loop()  # LlamaIndex uses it for its synchronous calls too
                for ask in (engine.query, lambda query: runner.run(engine.aquery(query))):
                    answers.append(ask(QUERY))
                    seen.append(llm.seen())

    of_b, of_a, of_c = (Path(images[name]).read_bytes() for name in "BAC")
    for _, begun, *context, _ in seen:
        assert begun.endswith("\nthe red bicycle")
        assert context == [of_b, "a red car", of_a, of_c]
    for answer in answers:
        assert scores(answer.source_nodes) == [("B", 0.75), ("A", 0.3), ("C", 0.2)]
        assert ids(answer.source_nodes) == ["B-image", "A-text", "A-image", "C-image"]
