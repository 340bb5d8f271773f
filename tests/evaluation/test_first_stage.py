"""Learning what the first stage should count, from labelled queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from llama_index_gap.evaluation.datasets import LabelledQuery
from llama_index_gap.evaluation.first_stage import (
    FEWEST,
    Candidates,
    candidates_of,
    learn_first_stage,
    learn_weight,
)
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.models import PairScorer
from llama_index_gap.models.base import Item
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.search.first_stage import FirstStage
from llama_index_gap.search.rerank import MultiModalRerank


def candidates(right: float, first: float, scale: Any = "log_odds") -> Candidates:
    """The right document and a wrong one: the reranker's and the first stage's word of the right.

    Args:
        right: its probability; the wrong one has the rest.
        first: the first stage's value of it; the wrong one has the same below 0.
        scale: of the first stage.
    """
    documents = ["right", "wrong"] if first > 0 else ["wrong", "right"]
    probabilities, values = [right, 1 - right], [first, -first]
    if first <= 0:
        probabilities, values = probabilities[::-1], values[::-1]
    return Candidates(documents, probabilities, values, scale)


def qrels(of: Sequence[str]) -> dict[str, dict[str, int]]:
    return {query: {"right": 1} for query in of}


# --- rankings -----------------------------------------------------------------------------------


def test_candidates_are_ranked_as_the_reranker_does() -> None:
    """Log odds of log 4 against -log 4, and a first stage of 2 against -2: from .69 it decides."""
    of_both = candidates(0.2, 2)

    assert of_both.documents == ["right", "wrong"]
    for weight, first in ((0, "wrong"), (0.5, "wrong"), (0.7, "right"), (16, "right")):
        assert of_both.ranking(weight)[0] == first


def test_what_the_reranker_did_not_score_comes_last_in_its_order() -> None:
    some = Candidates(["a", "b", "c"], [None, 0.1, None], [9, -5, 3], "log_odds")

    assert some.ranking(1) == ["b", "a", "c"]
    assert Candidates([], [], [], None).ranking(1) == []


# --- the weight ---------------------------------------------------------------------------------


def learnt(of: dict[str, Candidates], **settings: Any) -> FirstStage:
    return learn_weight(of, qrels(list(of)), source="told", **settings).first_stage


def test_a_good_first_stage_beside_a_poor_reranker_gets_a_weight() -> None:
    """The first stage is right and the reranker wrong: 1 is the first weight that is enough."""
    found = learnt({f"{number}": candidates(0.2, 2) for number in range(20)})

    assert (found.weight, found.weights, found.queries) == (1.0, (1.0,) * 5, 20)
    assert found.scale == "log_odds"
    assert found.source == "told"
    wrong = 1 / np.log2(3)
    assert found.reranker == Estimate(*[pytest.approx(wrong)] * 3)
    assert found.retriever == found.held_out == Estimate(1, 1, 1)
    assert found.gain == Estimate(0, 0, 0)  # the better of the two is the first stage
    assert found.verdict == "unclear"


def test_a_good_reranker_beside_a_poor_first_stage_ranks_alone() -> None:
    found = learnt({f"{number}": candidates(0.8, -2) for number in range(20)})

    assert (found.weight, found.weights) == (0.0, (0.0,) * 5)
    assert found.held_out == found.reranker == Estimate(1, 1, 1)


def test_both_can_be_better_than_either() -> None:
    """Each stage is sure of half of the queries, and slightly wrong about the other half.

    Log odds of -log 1.5 against log 1.5 are .81 apart, and the first stage's 6: a seventh of it is
    enough. Log odds of log 99 bear any of these weights.
    """
    of = {
        f"{number}": candidates(0.99, -0.5) if number % 2 else candidates(0.4, 3)
        for number in range(40)
    }

    result = learn_weight(of, qrels(list(of)))

    found = result.first_stage
    assert found.weight == 0.25
    assert found.held_out == Estimate(1, 1, 1)
    assert found.gain is not None
    assert found.gain.value == pytest.approx((1 - 1 / np.log2(3)) / 2)
    assert found.gain.low > 0
    assert found.verdict == "higher"
    assert result.run == {query: ["right", "wrong"] for query in of}


def test_a_query_is_ranked_with_the_weight_of_the_others() -> None:
    """Only the last part needs the first stage: held out, it is ranked without."""
    kinds = {f"{number:02}": "other" if number % 5 == 4 else "one" for number in range(10)}
    of = {
        query: candidates(0.2, 2) if kind == "other" else candidates(0.8, -0.1)
        for query, kind in kinds.items()
    }

    alone = learn_weight(of, qrels(list(of)))
    stratified = learn_weight(of, qrels(list(of)), kinds=kinds)

    assert alone.first_stage.weights == (1.0, 1.0, 1.0, 1.0, 0.0)
    assert [alone.run[query][0] for query in ("04", "09")] == ["wrong", "wrong"]
    assert alone.run["00"][0] == "right"
    assert set(stratified.first_stage.weights) == {1.0}  # no part has all queries of a kind
    assert stratified.run["04"][0] == "right"


def test_queries_without_a_relevant_document_count_for_nothing() -> None:
    of = {f"{number}": candidates(0.2, 2) for number in range(12)}

    found = learn_weight(of, {**qrels(list(of)), "0": {"right": 1}, "1": {}}, relevant_from=1)

    assert found.first_stage.queries == 11
    assert "1" not in found.run


def test_too_few_queries_and_two_scales_are_errors() -> None:
    few = {f"{number}": candidates(0.2, 2) for number in range(FEWEST - 1)}
    with pytest.raises(ValueError, match=r"^9 queries with a relevant document; .* at least 10"):
        learnt(few)
    mixed = few | {"x": candidates(0.2, 2, "standardised"), "y": candidates(0.2, 2, None)}
    with pytest.raises(ValueError, match="log odds for some queries and other scores for others"):
        learnt(mixed)


# --- asking -------------------------------------------------------------------------------------


class Told(PairScorer):
    """The probability of a text is its first word."""

    name = "told"
    licence = None
    modalities = frozenset({"text"})

    def prepare(self, item: Item) -> float:
        return float(str(item).split()[0])

    def score_prepared(self, query: float, documents: Sequence[float]) -> FloatArray:
        return np.array(documents, dtype=np.float64)

    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return scores


class Raw(Told):
    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return None


class Fixed(BaseRetriever):
    """Finds the right document first, by two standard deviations; the reranker is mistaken."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.asked = [*getattr(self, "asked", []), query_bundle.query_str]
        return [
            NodeWithScore(node=TextNode(id_="right", text="0.4"), score=9),
            NodeWithScore(node=TextNode(id_="wrong", text="0.6"), score=7),
        ]


def asked(number: int) -> list[LabelledQuery]:
    return [LabelledQuery(f"{place}", f"0 {place}") for place in range(number)]


def reranker(scorer: PairScorer | None = None, **settings: Any) -> MultiModalRerank:
    return MultiModalRerank(model=scorer or Told(), score_mode="text", **settings)


def test_each_judged_query_is_asked_once_and_all_its_candidates_count() -> None:
    """Log odds of ∓ log 1.5 = .41, and ± 1 standard deviation: half of it is enough."""
    retriever, queries = Fixed(), asked(12)
    judged = qrels([query.id for query in queries[:11]])

    found = learn_first_stage(
        retriever, reranker(top_n=1, similarity_cutoff=0.5, first_stage=7), queries, judged
    )

    assert retriever.asked == [query.text for query in queries[:11]]
    assert (found.weight, found.queries, found.source) == (0.5, 11, "told")
    assert found.scale == "standardised"
    use = reranker(first_stage=found)
    assert use.postprocess_nodes(retriever.retrieve("0"), query_str="0")[0].node_id == "right"


def test_an_index_is_asked_for_all_that_its_documents_have() -> None:
    settings: list[dict[str, Any]] = []

    class Index:
        def as_retriever(self, **given: Any) -> BaseRetriever:
            settings.append(given)
            return Fixed()

    queries = asked(10)
    index: Any = Index()
    learn_first_stage(index, reranker(), queries, qrels([query.id for query in queries]))

    assert settings == [{"complete": True}]


def test_what_cannot_be_learnt_is_said_before_anything_is_asked() -> None:
    retriever, queries = Fixed(), asked(12)
    judged = qrels([query.id for query in queries])

    with pytest.raises(ValueError, match=r"^3 queries with a relevant document"):
        learn_first_stage(retriever, reranker(), queries[:3], judged)
    with pytest.raises(ValueError, match="scores of told are no probabilities, so that no weight"):
        learn_first_stage(retriever, reranker(Raw()), queries, judged)
    assert not hasattr(retriever, "asked")


def test_candidates_of_documents() -> None:
    """The mean of 3, 1 and 2 is 2."""
    nodes = [TextNode(id_=name, text="0.5") for name in ("a", "b", "c")]
    hits = [
        ScoredNode(node=each, score=score, log_odds=score)
        for each, score in zip(nodes, (3, 1, 2), strict=True)
    ]

    found = candidates_of(hits, reranker(top_n=None).postprocess_nodes(hits, query_str="0"))

    assert found == Candidates(["a", "b", "c"], [0.5, 0.5, 0.5], [1, -1, 0], "log_odds")
    assert candidates_of([], []) == Candidates([], [], [], None)
