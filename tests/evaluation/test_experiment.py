from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode
from PIL import Image

from llama_index_gap.evaluation.datasets import Dataset, LabelledQuery
from llama_index_gap.evaluation.experiment import (
    BOTH_LEARNT,
    BOTH_STAGES,
    DEFAULT,
    DEFAULT_RERANKED,
    FIRST_STAGE,
    RERANKED,
    Experiment,
)
from llama_index_gap.evaluation.experiment_result import ExperimentResult
from llama_index_gap.evaluation.results_cache import ResultsCacheError
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.modality import Modality
from llama_index_gap.models import LazyImage, PairScorer
from llama_index_gap.models.base import Item
from llama_index_gap.readers.corpus import Corpus

AXES = {"alpha": 0, "beta": 1}
DOCUMENTS = "abcdefghij"


class ByHand(MultiModalEmbedding):
    """Vectors by hand: ``alpha=0.7`` in a text or an image name is its cosine with query alpha.

    The rest of the length points in a separate direction for each, which no query shares.
    """

    model_name: str = "by hand"
    dimension: int = 12
    asked: list[str] = []

    def _vector(self, text: str) -> list[float]:
        vector = np.zeros(12)
        for name, axis in AXES.items():
            if f"{name}=" in text:
                vector[axis] = float(text.partition(f"{name}=")[2].split()[0])
        rest = np.random.default_rng(list(text.encode())).normal(size=10)
        vector[2:] = rest / np.linalg.norm(rest) * np.sqrt(1 - vector @ vector)
        return vector.tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        self.asked.append(query)
        return np.eye(12)[AXES[query]].tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        name = Path(img_file_path).name
        if name == "broken":
            raise ValueError("no image at all")
        return self._get_query_embedding(name) if name in AXES else self._vector(name)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)


def nodes_of(document: str, text: str, image: str) -> list[TextNode]:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return [
        TextNode(id_=f"{document}-text", text=text, relationships=source),
        ImageNode(id_=f"{document}-image", image_path=image, relationships=source),
    ]


def in_order(order: str, **others: float) -> dict[str, float]:
    """Cosines from 0.60 down in steps of 0.01, for the documents in this order."""
    return {d: round(0.60 - 0.01 * i, 2) for i, d in enumerate(order)} | others


# Images score 0.30 lower than texts: the gap. The relevant document of alpha is c, which
# has the third text and by far the best image; that of beta is b: best text, last image.
TEXTS = {"alpha": in_order("abcdefghij"), "beta": in_order("bacdefghij", b=0.70)}
IMAGES = {
    "alpha": in_order("cajbdefghi", c=0.80),
    "beta": in_order("acdefghijb"),
}


def corpus() -> Corpus:
    nodes = []
    for document in DOCUMENTS:
        text = " ".join(f"{query}={TEXTS[query][document]}" for query in AXES)
        image = " ".join(f"{query}={IMAGES[query][document] - 0.3:.2f}" for query in AXES)
        nodes += nodes_of(document, text, f"/p/{image}")
    return Corpus(nodes, [])


def dataset(**changes: Any) -> Dataset:
    settings: dict[str, Any] = {
        "name": "ten",
        "corpus": corpus(),
        "queries": [
            LabelledQuery("1", "alpha", kind="image"),
            LabelledQuery("2", "beta", kind="headline"),
        ],
        "qrels": {"1": {"c": 1}, "2": {"b": 1}},
    }
    return Dataset(**settings | changes)


@pytest.fixture
def model() -> ByHand:
    return ByHand(asked=[])


@pytest.fixture
def index(tmp_path: Path, model: ByHand) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "ten.db"), embed_model=model) as index:
        index.insert_nodes(corpus().nodes)
        model.asked.clear()
        yield index


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ten.jsonl"


def means(result: ExperimentResult, metric: str) -> dict[str, float]:
    return {method.name: method.metrics[metric].value for method in result.methods}


def test_every_row_as_worked_out_by_hand(index: DualIndex, file: Path) -> None:
    result = Experiment(dataset(), index).run(file)

    assert result.runs["32 by text"] == {"1": list(DOCUMENTS), "2": list("bacdefghij")}
    assert result.runs["32 by image"] == {"1": list("cajbdefghi"), "2": list("acdefghijb")}
    # The ranks of c for alpha, and of b for beta.
    ranks = {
        "32 by text": (3, 1),
        "32 by image": (1, 10),
        "16+16, raw scores": (3, 1),  # every text is above every image
        "16+16, RRF": (2, 5),  # a has ranks 1 and 2, c 3 and 1; a, c, d, e are before b's 1 and 10
        "16+16, min–max": (1, 4),  # c: 7/9 + 1; b: 1 + 0, after a, c, d
        DEFAULT: (1, 1),  # each of these hits stands out in its leg
    }
    by_hand = {name: (1 / first + 1 / second) / 2 for name, (first, second) in ranks.items()}
    assert means(result, "mrr@10") == pytest.approx(by_hand)
    assert means(result, "recall@5") == {
        name: (int(first <= 5) + int(second <= 5)) / 2 for name, (first, second) in ranks.items()
    }
    by_kind = {
        method.name: [method.by_kind[kind]["mrr@10"].value for kind in ("image", "headline")]
        for method in result.methods
    }
    assert by_kind == {name: pytest.approx([1 / r for r in each]) for name, each in ranks.items()}
    assert (result.queries, result.kinds) == (2, {"image": ["1"], "headline": ["2"]})
    assert result.notes == (
        "recall@10 says little with 10 documents: compare nDCG@10",
        "the index has learnt from no queries; let it learn from 100 to 300 queries that "
        "are not judged: llama-gap learn",
    )


def test_every_row_is_what_the_retriever_finds(model: ByHand, file: Path, tmp_path: Path) -> None:
    """With enough vectors for a background, and more documents than a leg returns."""
    cosines = np.random.default_rng(0).uniform(-0.6, 0.6, size=(60, 4))
    nodes = []
    for number, (a, b, c, d) in enumerate(cosines):
        nodes += nodes_of(f"d{number}", f"alpha={a} beta={b}", f"/p/alpha={c} beta={d}")
    data = dataset(corpus=Corpus(nodes, []), qrels={"1": {"d1": 1}, "2": {"d2": 1}})

    with DualIndex(str(tmp_path / "more.db"), embed_model=model) as index:
        index.insert_nodes(nodes)
        result = Experiment(data, index).run(file)
        for name, settings in FIRST_STAGE.items():
            hits = index.as_retriever(**settings).retrieve("alpha")
            found = list(dict.fromkeys(hit.node.ref_doc_id for hit in hits))
            assert result.runs[name]["1"] == found, name

    assert [note for note in result.notes if "learnt from" not in note] == []
    assert len(result.runs["32 by text"]["1"]) == 32


def test_an_image_asks_all_legs_too(index: DualIndex, file: Path) -> None:
    queries = [LabelledQuery("1", "alpha"), LabelledQuery("2", "", image_path="/p/beta")]

    result = Experiment(dataset(queries=queries), index).run(file)

    assert result.kinds == {"text": ["1"], "image": ["2"]}
    assert {pair: recall.value for pair, recall in result.legs.items()} == {
        "text_to_text": 1,
        "text_to_image": 1,
        "image_to_text": 1,
        "image_to_image": 1,
    }
    # The ten texts come before the ten images, for any query.
    assert [(own.modality, own.share.value, own.queries) for own in result.own_modality] == [
        ("text", 1, 1),
        ("image", 0, 1),
    ]
    assert [own.corpus_share for own in result.own_modality] == [0.5, 0.5]


def test_a_text_and_an_image_have_no_modality_of_their_own(index: DualIndex, file: Path) -> None:
    queries = [LabelledQuery("1", "alpha", image_path="/p/alpha")]

    result = Experiment(dataset(queries=queries), index).run(file)

    assert len(result.legs) == 4
    assert result.own_modality == []
    assert result.kinds == {}  # there is only one


def test_legs_of_two_models_are_no_mixed_index(model: ByHand, file: Path, tmp_path: Path) -> None:
    with DualIndex(str(tmp_path / "two.db"), "gap", model, ByHand(asked=[])) as index:
        index.insert_nodes(corpus().nodes)
        result = Experiment(dataset(), index).run(file)

    assert result.own_modality == []
    assert any("the legs embed text queries with different models" in n for n in result.notes)


def test_a_model_for_image_queries_leaves_texts_in_one_space(
    model: ByHand, file: Path, tmp_path: Path
) -> None:
    queries = [LabelledQuery("1", "alpha"), LabelledQuery("2", "", image_path="/p/beta")]
    third = ByHand(asked=[])
    with DualIndex(str(tmp_path / "3.db"), "gap", model, image_query_embed_model=third) as index:
        index.insert_nodes(corpus().nodes)
        result = Experiment(dataset(queries=queries), index).run(file)

    assert [own.modality for own in result.own_modality] == ["text"]
    assert any("the legs embed image queries with different models" in n for n in result.notes)
    assert third.asked == ["beta"]


def test_differences_are_tested_against_the_default(index: DualIndex, file: Path) -> None:
    result = Experiment(dataset(), index).run(file)
    methods = {method.name: method for method in result.methods}

    assert methods[DEFAULT].against_default == {}
    comparison = methods["16+16, min–max"].against_default["mrr@10"]
    assert comparison.difference.value == pytest.approx((1 / 1 - 1 / 1 + 1 / 4 - 1 / 1) / 2)
    assert comparison.p_value == 1  # only one of the two queries differs
    assert methods["16+16, RRF"].against_default["mrr@10"].p_value == 0.5


def test_a_stopped_run_is_taken_up(index: DualIndex, model: ByHand, file: Path) -> None:
    """Even if the process was killed in the middle of a line."""
    whole = Experiment(dataset(), index).run(file)
    assert model.asked == ["alpha", "beta"]
    written = file.read_bytes()
    file.write_bytes(written[:-30])

    again = Experiment(dataset(), index).run(file)

    assert model.asked == ["alpha", "beta", "beta"]
    assert again == whole
    assert file.read_bytes() == written


def test_answers_serve_other_queries_and_judgements(
    index: DualIndex, model: ByHand, file: Path
) -> None:
    Experiment(dataset().limited(1), index).run(file)

    result = Experiment(dataset(qrels={"1": {"c": 1}, "2": {"a": 1}}), index).run(file)
    assert model.asked == ["alpha", "beta"]
    assert means(result, "mrr@10")["32 by text"] == pytest.approx((1 / 3 + 1 / 2) / 2)

    reworded = [LabelledQuery("1", "beta")]
    Experiment(dataset(queries=reworded), index).run(file)
    assert model.asked == ["alpha", "beta", "beta"]


def test_another_index_needs_another_file(index: DualIndex, file: Path) -> None:
    Experiment(dataset(), index).run(file)
    index.delete_ref_doc("j")

    with pytest.raises(ResultsCacheError, match="differs in rows; name another file, or delete"):
        Experiment(dataset(), index).run(file)
    result = Experiment(dataset(), index).run(file.with_suffix(".other"))

    missing = "1 of the data set not in the index"
    assert f"the index has 9 texts, the data set 10: {missing}" in result.notes
    assert f"the index has 9 images, the data set 10: {missing}" in result.notes


def test_a_larger_index_is_explained(index: DualIndex, file: Path) -> None:
    """By the parts of a long text, and by documents that the data set lacks."""
    first = corpus().nodes[0]
    parts = [first.model_copy(update={"id_": f"{first.node_id}#part-{n}"}) for n in (2, 3)]
    index.insert_nodes(parts)
    split = Experiment(dataset(), index).run(file).notes
    assert "the index has 12 texts, the data set 10: long texts were split into parts" in split
    assert "recall@10 says little with 10 documents: compare nDCG@10" in split

    index.insert_nodes(nodes_of("k", "alpha=0.1 beta=0.1", "/p/alpha=0.1 beta=0.1"))
    both = Experiment(dataset(), index).run(file.with_suffix(".other")).notes

    assert both[:2] == (
        "the index has 13 texts, the data set 10: long texts were split into parts; 1 from other "
        "documents",
        "the index has 11 images, the data set 10: 1 from other documents",
    )
    assert not any("recall@10" in note for note in both)


def test_captions_are_found_among_the_texts(index: DualIndex, file: Path) -> None:
    caption = nodes_of("k", "alpha=0.1 beta=0.1", "/p/alpha=0.2 beta=0.1")[1]
    index.insert_nodes([caption.model_copy(update={"text": "alpha=0.3 beta=0.1"})])
    named = Corpus([caption.model_copy(update={"text": "alpha=0.3 beta=0.1"})], [])

    notes = Experiment(dataset(corpus=named, qrels={"1": {"k": 1}, "2": {"k": 1}}), index).run(file)

    assert "the index has 11 texts, the data set 1: 10 from other documents" in notes.notes


def test_a_failing_query_is_counted_and_asked_again(index: DualIndex, file: Path) -> None:
    broken = LabelledQuery("3", "", image_path="/p/broken")
    data = dataset(
        queries=[*dataset().queries, broken], qrels={"1": {"c": 1}, "2": {"b": 1}, "3": {"a": 1}}
    )

    result = Experiment(data, index).run(file)

    assert result.failed == {"3": "no image at all"}
    assert result.queries == 2
    assert (
        result.notes[0] == "queries that failed, not counted: 1 (the first is 3: no image at all)"
    )
    assert Experiment(data, index).run(file).failed == result.failed
    with pytest.raises(ValueError, match="no query could be answered: no image at all"):
        Experiment(dataset(queries=[broken], qrels=data.qrels), index).run(file)


def test_queries_with_nothing_to_find_are_counted(index: DualIndex, file: Path) -> None:
    data = dataset(qrels={"1": {"c": 3}, "2": {"b": 2}}, relevant_from=3, notes=("seen before",))

    result = Experiment(data, index).run(file)

    assert result.queries == 1
    assert result.notes[:2] == (
        "seen before",
        "queries without a document of grade 3 or more, not counted: 1",
    )


# --- reranking ----------------------------------------------------------------------------------


class ByColour(PairScorer):
    """The score of a text is written in it; that of an image is its redness."""

    name = "by colour"
    licence = None

    def __init__(self, *modalities: Modality) -> None:
        self.modalities = frozenset(modalities)
        self.scored: list[Any] = []

    def prepare(self, item: Item) -> float | None:
        if isinstance(item, LazyImage):
            return item.open().getpixel((0, 0))[0] / 255
        return float(item.partition("score=")[2] or 0)

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> FloatArray:
        self.scored += documents
        return np.array(documents, dtype=np.float32)


@pytest.fixture
def three(tmp_path: Path) -> Dataset:
    """Documents a, b, c: texts in the order a, c, b, images in the order b, c, a."""
    nodes = []
    for document, text, score, image, red in (
        ("a", 0.60, 0.9, 0.40, 26),
        ("b", 0.50, 0.5, 0.45, 153),
        ("c", 0.55, 0.1, 0.42, 204),
    ):
        path = tmp_path / f"alpha={image} .png"
        Image.new("RGB", (8, 8), (red, 0, 0)).save(path)
        nodes += nodes_of(document, f"alpha={text} score={score}", str(path))
    return dataset(
        corpus=Corpus(nodes, []), queries=[LabelledQuery("1", "alpha")], qrels={"1": {"b": 1}}
    )


def reranked(data: Dataset, scorer: PairScorer, folder: Path) -> ExperimentResult:
    with DualIndex(str(folder / "three.db"), embed_model=ByHand(asked=[])) as index:
        index.insert_nodes(data.corpus.nodes)
        return Experiment(data, index, scorer).run(folder / "three.jsonl")


def test_candidates_are_reranked_by_each_modality_and_by_both(
    three: Dataset, tmp_path: Path
) -> None:
    scorer = ByColour("text", "image")

    result = reranked(three, scorer, tmp_path)

    assert {name: run["1"] for name, run in result.runs.items() if name in RERANKED} == {
        "32 by text, reranked": ["a", "b", "c"],  # 0.9, 0.5, 0.1
        "32 by image, reranked": ["c", "b", "a"],  # 0.8, 0.6, 0.1
        # a was found by its text, b by its image, c equally by both, so its text counts
        "16+16, by modality": ["a", "b", "c"],  # 0.9, 0.6, 0.1
        "16+16, mean of both": ["b", "a", "c"],  # 0.55, 0.5, 0.45
    }
    assert sorted(scorer.scored) == pytest.approx([0.1, 26 / 255, 0.5, 0.6, 0.8, 0.9])  # each once
    assert result.reranker == "by colour"
    methods = {method.name: method for method in result.methods}
    by_text = methods["32 by text, reranked"]
    assert by_text.reranked
    assert by_text.against_default["mrr@10"].difference.value == pytest.approx(1 / 2 - 1)
    assert methods["16+16, mean of both"].against_default == {}


class ByProbability(ByColour):
    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return scores


def far_off(name: str, cosine: float, folder: Path) -> list[TextNode]:
    path = folder / f"alpha={cosine} .png"
    Image.new("RGB", (8, 8)).save(path)
    return nodes_of(name, f"alpha={cosine} score=0", str(path))


def asked_for_both(
    data: Dataset, scorer: PairScorer | None, folder: Path, **settings: Any
) -> ExperimentResult:
    with DualIndex(str(folder / "three.db"), embed_model=ByHand(asked=[])) as index:
        index.upsert_nodes(data.corpus.nodes)
        return Experiment(data, index, scorer, **settings).run(folder / "three.jsonl")


def test_both_stages_are_measured_beside_the_reranker(three: Dataset, tmp_path: Path) -> None:
    """The reranker says .55, .5 and .45 of b, a and c; a large weight ranks as the first stage.

    Without d and e the first stage has too few vectors to say anything.
    """
    more = [node for name, low in (("d", 0.1), ("e", 0.2)) for node in far_off(name, low, tmp_path)]
    five = replace(three, corpus=Corpus([*three.corpus.nodes, *more], []))
    scorer = ByProbability("text", "image")
    asked_for_both(five, scorer, tmp_path)  # what it keeps serves any weight
    scored = len(scorer.scored)

    results = {
        weight: asked_for_both(five, scorer, tmp_path, first_stage=weight) for weight in (0, 99)
    }

    assert len(scorer.scored) == scored
    runs = {weight: result.runs[BOTH_STAGES]["1"] for weight, result in results.items()}
    assert runs[0] == results[0].runs[DEFAULT_RERANKED]["1"]
    assert runs[0][:3] == ["b", "a", "c"]
    assert runs[99] == results[99].runs[DEFAULT]["1"]
    assert runs[99][0] == "a"
    (both,) = (method for method in results[99].methods if method.name == BOTH_STAGES)
    assert both.reranked
    assert set(both.against_default) == {"recall@10", "ndcg@10", "mrr@10"}


def test_a_weight_is_learnt_where_there_are_queries_enough(three: Dataset, tmp_path: Path) -> None:
    scorer = ByProbability("text", "image")
    many = replace(
        three,
        queries=[LabelledQuery(f"{number}", "alpha") for number in range(10)],
        qrels={f"{number}": {"b": 1} for number in range(10)},
    )

    result = asked_for_both(many, scorer, tmp_path, learn_first_stage=True)

    assert result.first_stage is not None
    assert (result.first_stage.weight, result.first_stage.scale) == (0, "log_odds")
    assert set(map(tuple, result.runs[BOTH_LEARNT].values())) == {("b", "a", "c")}
    assert result.notes[-1] == result.first_stage.summary()
    assert result.to_dict()["first_stage"]["weight"] == 0
    with pytest.raises(ValueError, match=r"^1 queries with a relevant document; a weight for the"):
        asked_for_both(three, scorer, tmp_path, learn_first_stage=True)


@pytest.mark.parametrize(
    ("scorer", "weight", "message"),
    [
        (None, 1, "gives probabilities; there is none$"),
        (ByColour("text", "image"), 1, "gives probabilities; by colour does not$"),
        (ByProbability("text"), 1, "gives probabilities; by colour does not$"),
        (ByProbability("text", "image"), -1, "weight is -1: must be a number of at least 0"),
    ],
)
def test_what_the_first_stage_cannot_be_added_to(
    three: Dataset, tmp_path: Path, scorer: PairScorer | None, weight: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        asked_for_both(three, scorer, tmp_path, first_stage=weight)


def test_a_reranker_of_texts_leaves_out_what_needs_images(three: Dataset, tmp_path: Path) -> None:
    result = reranked(three, ByColour("text"), tmp_path)

    assert [name for name in result.runs if name in RERANKED] == ["32 by text, reranked"]
    assert sum("left out, because by colour reads only text" in note for note in result.notes) == 3
