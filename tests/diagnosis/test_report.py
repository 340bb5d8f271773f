from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clouds import Numbered, image, text, two_clouds, unit
from llama_index.core.bridge.pydantic import Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode

from llama_index_gap import DualIndex, ScoredNode
from llama_index_gap.diagnosis import collect
from llama_index_gap.diagnosis.report import Report, report_gap
from llama_index_gap.evaluation.datasets import LabelledQuery
from llama_index_gap.gap.measure import measure_gap

N = 60
TEXTS, IMAGES = two_clouds(N, own=6)


def build(folder: Path, nodes: Sequence[BaseNode], **models: Any) -> DualIndex:
    models = {"embed_model": Numbered(TEXTS, IMAGES), **models}
    index = DualIndex(str(folder / "gap.db"), **models)
    index.insert_nodes(nodes)
    return index


def run(index: DualIndex, *arguments: Any, **settings: Any) -> Report:
    return report_gap(index, *arguments, **{"rounds": 10, **settings})


def asked(*queries: LabelledQuery, relevant: str = "document {}") -> tuple[Any, Any]:
    """Queries, each answered by the document with its number."""
    return queries, {query.id: {relevant.format(query.id): 1} for query in queries}


def by_text(number: int) -> LabelledQuery:
    return LabelledQuery(str(number), f"query {number}")


def by_image(number: int) -> LabelledQuery:
    return LabelledQuery(str(number), "", f"/images/{number}.png")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DualIndex]:
    """Documents with a captioned image."""
    with build(tmp_path_factory.mktemp("index"), [image(i) for i in range(N)]) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(index: DualIndex) -> Report:
    return run(index)


# --- what is drawn -------------------------------------------------------------------------------


def test_a_whole_index_is_measured(index: DualIndex, report: Report) -> None:
    figures = report.figures

    assert (report.database, report.name, report.models) == (index.uri, "gap", index.models())
    assert figures.stored == {"text": N, "image": N}
    assert report.drawn == {"texts": N, "images": N, "pairs": N}
    assert figures.gap is not None
    assert figures.gap.measured == {"texts": N, "images": N, "queries": 0, "pairs": N}
    assert figures.before_after.corpus == {"texts": N // 2, "images": N // 2, "pairs": N // 2}
    assert figures.before_after.mitigations["stored"].asked["text"].bias.value == 1
    assert report.recommendations[-1].title.startswith("If the model can change")


def test_its_figures_are_those_of_its_vectors(report: Report) -> None:
    pairs = np.column_stack([np.arange(N)] * 2)
    expected = measure_gap(TEXTS, IMAGES, pairs=pairs, rounds=10)
    found = report.figures.gap

    for name in ("distance", "separation", "rmg", "spread_ratio"):
        assert getattr(found, name).value == pytest.approx(getattr(expected, name).value, rel=1e-4)


def test_it_says_who_asked_and_what_was_searched(report: Report) -> None:
    notes = " ".join(report.notes)

    assert "no labelled text queries. 30 stored texts stood in for them" in notes
    assert "no labelled image queries. 30 stored images stood in" in notes
    assert "fitted on one half of the documents (30 texts, 30 images, 30 pairs)" in notes
    assert "No linear map was fitted: it needs 50 pairs" in notes


def test_it_is_json(report: Report) -> None:
    content = json.loads(json.dumps(report.to_dict()))

    mitigations = content["figures"]["before_after"]["mitigations"]
    assert list(mitigations) == ["stored", "offset", "centred", "rank", "intent"]
    assert "cloud" not in mitigations["stored"]
    assert report.figures.before_after.mitigations["stored"].cloud is not None
    assert content["recommendations"][0].keys() == {"title", "because", "do"}


def test_the_same_seed_draws_the_same(index: DualIndex, report: Report) -> None:
    assert run(index) == report
    assert run(index, seed=1) != report


def test_of_a_large_index_the_same_part_of_both_modalities_is_drawn(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "ENOUGH", 24)
    monkeypatch.setattr(collect, "LEAST", 10)

    found = run(index)

    assert 10 < found.drawn["pairs"] < N
    assert found.drawn["texts"] == found.drawn["images"] == found.drawn["pairs"]
    assert any("The sample has" in note for note in found.notes)

    # Relevant documents are always drawn, and never fitted on.
    every = run(index, *asked(*(by_text(i) for i in range(N))))

    assert every.drawn["pairs"] == N
    assert every.figures.before_after.fitted_on["texts"] == found.drawn["texts"] // 2
    assert every.figures.before_after.queries["text"] == N - found.drawn["texts"] // 2


def test_a_small_collection_is_drawn_more_densely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "MOST", 12)
    monkeypatch.setattr(collect, "LEAST", 15)
    nodes = [*(text(i) for i in range(N)), *(image(i, caption=False) for i in range(15))]
    with build(tmp_path, nodes) as index:
        found = run(index)

    assert found.drawn["images"] == 15
    assert 10 <= found.drawn["texts"] < N


# --- pairs ---------------------------------------------------------------------------------------


def test_without_captions_a_pair_is_of_one_document(tmp_path: Path) -> None:
    nodes = [*(text(i) for i in range(20)), *(image(i, caption=False) for i in range(15))]
    with build(tmp_path, nodes) as index:
        found = run(index)

    assert found.drawn == {"texts": 20, "images": 15, "pairs": 15}
    assert any("a pair is the first text and the first image" in note for note in found.notes)
    assert found.figures.gap.scores["matched"].mean.value == pytest.approx(
        np.mean((TEXTS[:15] * IMAGES[:15]).sum(axis=1)), abs=1e-5
    )


def test_texts_of_drawn_images_are_added_where_pairs_would_be_rare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "ENOUGH", 24)
    monkeypatch.setattr(collect, "LEAST", 10)
    nodes = [*(text(i) for i in range(N)), *(image(i, caption=False) for i in range(N))]
    with build(tmp_path, nodes) as index:
        found = run(index)

    assert found.drawn["pairs"] == found.drawn["images"] < N
    assert any("whose documents have an image in the sample" in note for note in found.notes)


# --- labelled queries ----------------------------------------------------------------------------


def test_labelled_queries_by_text_and_by_image(index: DualIndex) -> None:
    queries = [by_text(i) for i in range(0, N, 2)] + [by_image(i) for i in range(1, N, 2)]
    found = run(index, *asked(*queries)).figures.before_after

    assert found.labelled == ("text", "image")
    assert sum(found.queries.values()) + found.left_out == N
    stored = found.mitigations["stored"]
    assert stored.asked["text"].ndcg.value == 1  # each query finds its own caption
    assert stored.asked["image"].recall.value == 1


def test_what_cannot_be_asked_is_counted(index: DualIndex) -> None:
    both = LabelledQuery("2", "query 2", "/images/2.png")
    lost = LabelledQuery("none", "query 3")
    found = run(index, *asked(by_text(0), by_text(1), both, lost))

    assert "without a single" not in " ".join(found.notes)
    assert any(note.endswith("needs a single vector: 1.") for note in found.notes)
    assert "Relevant documents that are not in the index: 1 of 3." in found.notes
    assert found.figures.before_after.left_out >= 1


def test_a_query_without_judgement_is_an_error(index: DualIndex) -> None:
    with pytest.raises(ValueError, match="no judgement for query '3'"):
        run(index, [by_text(3)])


def test_not_too_many_queries_are_asked(index: DualIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MOST_QUERIES", 10)

    found = run(index, *asked(*(by_text(i) for i in range(25))))

    assert "Labelled queries used: 9 of 25, spread evenly." in found.notes


# --- other indexes -------------------------------------------------------------------------------


def test_images_alone_need_nothing(tmp_path: Path) -> None:
    with build(tmp_path, [image(i, caption=False) for i in range(12)]) as index:
        found = run(index, *asked(*(by_text(i) for i in range(12))))

    assert found.figures.gap is None
    assert "Only one modality: no mitigation needed" in [
        recommendation.title for recommendation in found.recommendations
    ]
    assert found.figures.before_after.mitigations["stored"].asked["text"].recall.value > 0.5


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "gap is empty; put a corpus into it first"),
        (
            [image(i) for i in range(4)],
            "has 4 texts and 4 images; measuring the gap takes 10 of each",
        ),
    ],
    ids=["empty", "too few"],
)
def test_too_little_is_an_error(tmp_path: Path, nodes: list[BaseNode], message: str) -> None:
    with build(tmp_path, nodes) as index, pytest.raises(ValueError, match=message):
        run(index)


def test_two_models_have_two_spaces(tmp_path: Path) -> None:
    other = Numbered(unit(np.hstack([TEXTS, TEXTS])), unit(np.hstack([IMAGES, IMAGES])))
    nodes = [image(i) for i in range(N)]
    with build(tmp_path, nodes, image_embed_model=other) as index:
        found = run(index, *asked(*(by_text(i) for i in range(10)), by_image(11)))

    assert found.figures.gap is None
    assert list(found.figures.before_after.mitigations) == ["rank", "intent"]
    assert found.figures.before_after.queries == {"text": 10, "image": 1}
    assert "Two models: keep two indexes" in [
        recommendation.title for recommendation in found.recommendations
    ]


def test_vectors_that_are_aligned_already(tmp_path: Path) -> None:
    class Aligned(Numbered):
        aligner: dict[str, str] = Field(default={"path": "aligner.safetensors", "fingerprint": "0"})

    with build(tmp_path, [image(i) for i in range(N)], embed_model=Aligned(TEXTS, IMAGES)) as index:
        found = run(index)

    assert list(found.figures.before_after.mitigations) == ["stored", "rank", "intent"]
    assert any("aligner has already moved" in note for note in found.notes)


def test_an_encoder_for_image_queries_is_held_against_the_model(tmp_path: Path) -> None:
    """It gives the two images of a document the same vector; the model does not."""
    alike = np.repeat(np.eye(N // 2), 2, axis=0)
    nodes = [image(i, document=f"document {i // 2}") for i in range(N)]
    with build(tmp_path, nodes, image_query_embed_model=Numbered(alike, alike)) as index:
        found = run(index, *asked(by_image(0), by_image(3), relevant="document 0"))

    within = found.figures.within
    assert within is not None
    assert (within.queries, within.alone) == (N, 0)
    assert within.reference.value == 1
    assert within.delta.high < 0
    assert "use the encoder for image queries" in " ".join(
        recommendation.title for recommendation in found.recommendations
    )


def test_documents_of_one_image_say_nothing_of_images(tmp_path: Path) -> None:
    nodes = [image(i) for i in range(12)]
    with build(tmp_path, nodes, image_query_embed_model=Numbered(TEXTS, TEXTS)) as index:
        found = run(index)

    assert found.figures.within is None
    assert any("hardly any document has several" in note for note in found.notes)


# --- rerankers -----------------------------------------------------------------------------------


class Fair(BaseNodePostprocessor):
    """Scores texts and images by their number, on one scale."""

    modalities: tuple[str, ...] = ("text", "image")

    def _postprocess_nodes(self, nodes: Any, query_bundle: Any = None) -> Any:
        return [
            ScoredNode(
                node=hit.node,
                score=1.0,
                scores=hit.scores
                | {
                    f"rerank_{modality}": float(hit.node_id.split()[-1])
                    for modality in self.modalities
                },
            )
            for hit in nodes
        ]


def test_a_reranker_is_held_against_the_embedder(index: DualIndex) -> None:
    found = run(index, *asked(*(by_text(i) for i in range(5))), reranker=Fair()).figures.scorers

    assert found["embedder"].counts == found["reranker"].counts
    assert found["reranker"].overlap.value == pytest.approx(1)
    assert found["embedder"].overlap.value < 0.2


def test_stored_texts_ask_a_reranker_and_do_not_find_themselves(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "RERANKED", 4)
    found = run(index, reranker=Fair())

    assert any(note == "The reranker's queries were 4 stored texts." for note in found.notes)
    assert found.figures.scorers["embedder"].text_mean.value < 1
    assert max(found.figures.scorers["embedder"].histograms.edges) < 0.999


def test_a_reranker_of_one_modality_is_not_measured(index: DualIndex) -> None:
    found = run(index, *asked(by_text(0)), reranker=Fair(modalities=("text",)))

    assert found.figures.scorers == {}
    assert any("The reranker was not measured" in note for note in found.notes)


# --- real features -------------------------------------------------------------------------------


def test_real_features_of_clip(gap_shared: Path, tmp_path: Path) -> None:
    images, texts = np.load(gap_shared / "data" / "clip_features" / "features_clip.npy")
    model = Numbered(texts, images)
    with build(tmp_path, [image(i) for i in range(500)], embed_model=model) as index:
        found = run(index)
    pairs = np.column_stack([np.arange(500)] * 2)
    expected = measure_gap(texts, images, pairs=pairs, rounds=10)

    assert found.figures.gap.distance.value == pytest.approx(expected.distance.value, abs=0.02)
    assert found.figures.gap.separation.value == pytest.approx(expected.separation.value, abs=0.03)
    assert found.figures.gap.rmg.value == pytest.approx(expected.rmg.value, abs=0.01)
    mitigations = found.figures.before_after.mitigations
    assert mitigations["stored"].asked["text"].bias.value == 1
    assert 0.85 < mitigations["centred"].asked["text"].bias.value < 0.95
    assert mitigations["centred"].only_means
    assert not mitigations["linear"].only_means
