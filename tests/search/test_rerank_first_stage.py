"""What the first stage counts beside a reranker: ``search/first_stage.py``, and within it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import NodeWithScore, TextNode
from named_vectors import NamedVectors
from scipy.special import expit, logit

from llama_index_gap import DualIndex
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.calibrate import PAIRS, Curve, RelevanceCalibrator
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.models import ModelError, PairScorer
from llama_index_gap.models.base import Item
from llama_index_gap.nodes import ScoredNode
from llama_index_gap.results import documents_of
from llama_index_gap.search.first_stage import (
    NEAREST,
    FirstStage,
    added_log_odds,
    first_stage_scores,
)
from llama_index_gap.search.rerank import MultiModalRerank

LEARNT = FirstStage(
    0.5,
    "standardised",
    "told",
    20,
    (0.25, 1.0),
    Estimate(0.9, 0.8, 0.95),
    Estimate(0.7, 0.6, 0.8),
    Estimate(0.8, 0.7, 0.9),
    Estimate(0.1, -0.01, 0.2),
    "unclear",
)


class Told(PairScorer):
    """The probability of a text is its first word; one without a number cannot be read."""

    name = "told"
    licence = None
    modalities = frozenset({"text"})

    def prepare(self, item: Item) -> float:
        try:
            return float(str(item).split()[0])
        except ValueError:
            raise ModelError("no number") from None

    def score_prepared(self, query: float, documents: Sequence[float]) -> FloatArray:
        return np.array(documents, dtype=np.float64)

    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return scores


class ByLetters(NamedVectors):
    """A vector of how often a name has each of five letters."""

    model_name: str = "by-letters"

    def vector_of(self, name: str) -> list[float]:
        vector = np.array([1 + name.count(letter) for letter in "aehot"], dtype=float)
        return (vector / np.linalg.norm(vector)).tolist()


class Raw(Told):
    def to_probability(self, scores: FloatArray) -> FloatArray | None:
        return None


def node(probability: float, name: str) -> TextNode:
    return TextNode(id_=name, text=f"{probability}")


def foreign(*found: tuple[float, float | None]) -> list[NodeWithScore]:
    """As any retriever returns them: a, b, c …, each with what the reranker will say of it."""
    return [
        NodeWithScore(node=node(probability, name), score=score)
        for name, (probability, score) in zip("abcdef", found, strict=False)
    ]


def in_log_odds(*found: tuple[float, float]) -> list[NodeWithScore]:
    """As a ``DualIndexRetriever`` returns them."""
    return [
        ScoredNode(node=hit.node, score=hit.score, log_odds=hit.score) for hit in foreign(*found)
    ]


def rerank(
    nodes: Sequence[NodeWithScore], first_stage: Any, **settings: Any
) -> list[NodeWithScore]:
    reranker = MultiModalRerank(
        **{"model": Told(), "score_mode": "text", "top_n": None, "first_stage": first_stage}
        | settings
    )
    return reranker.postprocess_nodes(list(nodes), query_str="0")


def order(nodes: Sequence[NodeWithScore]) -> str:
    return "".join(hit.node_id for hit in nodes)


# --- what the first stage says ------------------------------------------------------------------


def values(nodes: Sequence[NodeWithScore]) -> list[float]:
    return first_stage_scores([[hit] for hit in nodes]).values.tolist()


def test_scores_of_other_retrievers_are_standardised() -> None:
    """The mean of 1, 3 and 5 is 3, and their variance 8/3."""
    found = first_stage_scores([[hit] for hit in foreign((0, 5), (0, 1), (0, 3))])

    assert found.scale == "standardised"
    assert found.values == pytest.approx([2 / math.sqrt(8 / 3), -2 / math.sqrt(8 / 3), 0])


def test_log_odds_lose_their_mean_only() -> None:
    found = first_stage_scores([[hit] for hit in in_log_odds((0, -1), (0, -7), (0, -4))])

    assert (found.scale, found.values.tolist()) == ("log_odds", [3, -3, 0])


def test_one_candidate_and_equal_scores_say_nothing() -> None:
    third = 0.1 + 0.2
    assert values(foreign((0, 7))) == [0]
    assert values(in_log_odds((0, 7))) == [0]
    assert values(foreign((0, third), (0, third), (0, third))) == [0, 0, 0]
    assert values([]) == []


def test_a_candidate_without_a_score_stands_at_the_mean() -> None:
    found = first_stage_scores([[hit] for hit in foreign((0, 1), (0, None), (0, 3))])

    assert (found.values.tolist(), found.missing) == ([-1, 0, 1], 1)


def test_log_odds_and_other_scores_together_are_standardised() -> None:
    mixed = [*in_log_odds((0, -3)), *foreign((0, 1))]

    assert first_stage_scores([[hit] for hit in mixed]).scale == "standardised"


def test_the_best_node_of_a_document_counts() -> None:
    first, second, third = foreign((0, 1), (0, 5), (0, 3))

    found = first_stage_scores([[first, second], [third]])

    assert found.values.tolist() == [1, -1]


def test_after_another_reranker_the_retriever_is_the_first_stage() -> None:
    scored = ScoredNode(node=node(0, "a"), score=0.9, scores={"retrieval": 2, "rerank_text": 0.9})
    unscored = ScoredNode(node=node(0, "b"), score=0.8, scores={"rerank_text": 0.8})
    found = first_stage_scores([[scored], *([hit] for hit in foreign((0, 6))), [unscored]])

    assert (found.values.tolist(), found.missing) == ([-1, 1, 0], 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_first_stage_that_gives_no_numbers_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="score of node b is NaN or infinity"):
        first_stage_scores([[hit] for hit in foreign((0, 1), (0, bad))])


# --- how both are added -------------------------------------------------------------------------


def test_log_odds_are_added() -> None:
    """Odds of 1 to 1 and 3 to 1; the first stage multiplies them by e and e^-2 to the weight."""
    odds = added_log_odds([0.5, 0.75, None], [1, -2, 5], 0.5)

    assert odds.tolist() == pytest.approx([0.5, math.log(3) - 1, -math.inf])


def test_certain_probabilities_are_as_far_from_1_as_float32_can_tell() -> None:
    odds = added_log_odds([1.0, 0.0], [0, 0])

    assert odds.tolist() == pytest.approx([logit(1 - NEAREST), logit(NEAREST)])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-9, 9)), min_size=1))
def test_weight_0_is_the_reranker_s_order_and_a_large_one_the_first_stage_s(
    pairs: list[tuple[float, float]],
) -> None:
    probabilities, first = ([float(each) for each in column] for column in zip(*pairs, strict=True))

    alone = added_log_odds(probabilities, first, 0.0)
    assert (np.diff(alone[np.argsort(probabilities)]) >= 0).all()
    both = added_log_odds([0.5] * len(first), first, 3.0)
    assert both == pytest.approx(3 * np.array(first))


@pytest.mark.parametrize(
    ("probabilities", "first", "weight", "message"),
    [
        ([1.2], [0], 1, "gave 1.2, which is no probability"),
        ([0.5], [0, 1], 1, r"1 probabilities, but first_stage has shape \(2,\)"),
        ([0.5], [0], -1, "weight is -1: must be a number of at least 0"),
    ],
)
def test_what_cannot_be_added(
    probabilities: list[float], first: list[float], weight: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        added_log_odds(probabilities, first, weight)


# --- within the reranker ------------------------------------------------------------------------


def test_without_a_weight_the_reranker_alone_ranks() -> None:
    ranked = rerank(foreign((0.2, 9), (0.8, 1)), None)

    assert [(hit.node_id, hit.score) for hit in ranked] == [("b", 0.8), ("a", 0.2)]
    assert "rerank_first_stage" not in ranked[0].scores


def test_both_stages_decide_and_the_score_is_a_probability() -> None:
    """The mean of the first stage is -3; a has odds of 1/4 · e^2, b of 4 · e^-2."""
    nodes = in_log_odds((0.2, -1), (0.8, -5))

    alone, half, both = (rerank(nodes, weight) for weight in (0, 0.5, 1.0))

    assert [order(each) for each in (alone, half, both)] == ["ba", "ba", "ab"]
    assert [hit.score for hit in alone] == pytest.approx([0.8, 0.2])
    assert [hit.score for hit in both] == pytest.approx(
        [expit(2 - math.log(4)), expit(math.log(4) - 2)]
    )
    assert both[0].scores == pytest.approx(
        {"retrieval": -1, "rerank_text": 0.2, "rerank_first_stage": 2}
    )
    assert half[0].scores["rerank_first_stage"] == -1
    assert documents_of(both)[0].first_stage == 2


def test_a_certain_reranker_leaves_equals_to_the_first_stage() -> None:
    nodes = in_log_odds((1.0, -90), (1.0, -10), (0.0, -50))

    ranked = rerank(nodes, 1.0)

    assert order(ranked) == "bca"  # and scores that are 1 as far as a float can tell keep an order
    assert all(0 <= (hit.score or 0) <= 1 for hit in ranked)


def test_over_other_retrievers() -> None:
    """The first stage is one standard deviation above and below its mean: odds · e and / e."""
    nodes = foreign((0.5, 10), (0.6, 8))

    assert order(rerank(nodes, 0.1)) == "ba"
    ranked = rerank(nodes, 1)
    assert order(ranked) == "ab"
    assert ranked[0].score == pytest.approx(math.e / (1 + math.e))


def test_asynchronously() -> None:
    reranker = MultiModalRerank(model=Told(), score_mode="text", first_stage=1)
    nodes = foreign((0.5, 10), (0.6, 8))

    ranked = asyncio.run(reranker.apostprocess_nodes(nodes, query_str="0"))

    assert order(ranked) == "ab"


def test_candidates_without_a_score_are_counted_and_ranked_by_the_reranker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ranked = rerank(foreign((0.5, 1), (0.6, None), (0.5, 3)), 1.0)

    assert order(ranked) == "cba"
    assert ranked[1].score == pytest.approx(0.6)
    assert "1 of 3 documents have no score of the first stage" in caplog.text
    caplog.clear()
    assert order(rerank(foreign((0.1, None), (0.2, None)), 1.0)) == "ba"
    assert "2 of 2 documents have no score" in caplog.text


def test_what_the_reranker_did_not_score_keeps_its_order_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = foreign((0.1, 1), (0.2, 2), (0.9, 9), (0.9, 7))
    monkeypatch.setattr(
        "llama_index_gap.search.rerank.time.monotonic", iter([0.0, 5.0, 6.0]).__next__
    )

    ranked = rerank(nodes, 1.0, batch_size=2, max_seconds=1)

    assert order(ranked) == "bacd"
    assert [hit.score for hit in ranked[2:]] == [None, None]
    assert all(hit.partial for hit in ranked)
    assert "rerank_first_stage" not in ranked[2].scores
    assert ranked[0].scores["rerank_first_stage"] < 0  # the mean is that of all four


def test_the_cut_off_and_top_n_go_by_the_new_probability() -> None:
    """1/4 · e^2 is 1.85 to 1, 4 · e^-2 is 0.54 to 1."""
    nodes = in_log_odds((0.2, -1), (0.8, -5))

    assert order(rerank(nodes, 1.0, similarity_cutoff=0.5)) == "a"
    assert order(rerank(nodes, 1.0, top_n=1)) == "a"
    assert order(rerank(nodes, None, similarity_cutoff=0.5)) == "b"


def test_a_calibrator_gives_the_log_odds_of_raw_scores() -> None:
    curve = Curve((0.0, 1.0), (0.0, 1.0), (0.5, 0.5), 10, 10)
    calibrator = RelevanceCalibrator(dict.fromkeys(PAIRS, curve), "logistic", "told")

    ranked = rerank(foreign((1, 1), (0, 3)), 2, model=Raw(), calibrator=calibrator)

    assert [hit.score for hit in ranked] == pytest.approx([expit(2), expit(-1)])


def test_the_trace_shows_it() -> None:
    handler, root = SimpleSpanHandler(), get_dispatcher()
    root.add_span_handler(handler)
    try:
        rerank(foreign((0.5, 1), (0.5, 2)), 1.0)
    finally:
        root.span_handlers.remove(handler)

    names = [span.id_[:-37] for span in handler.completed_spans]
    assert "MultiModalRerank.first_stage" in names


def test_it_takes_what_an_index_finds_as_log_odds(tmp_path: Path) -> None:
    nodes = [TextNode(id_=name, text=f"0.5 {name}") for name in ("east", "north", "south", "west")]
    with DualIndex(str(tmp_path / "gap.db"), embed_model=ByLetters()) as index:
        index.insert_nodes(nodes)
        found = index.as_retriever().retrieve("0.5 east")
        ranked = index.search("0.5 east", reranker=_reranker(1.0))
        other = index.as_retriever(normalize="rank", combine="sum").retrieve("0.5 east")

    assert [hit.log_odds for hit in found] == [hit.score for hit in found]
    assert {hit.log_odds for hit in other} == {None}
    middle = np.mean([hit.score or 0 for hit in found])
    assert [document.first_stage for document in ranked] == pytest.approx(
        [(hit.score or 0) - middle for hit in found]
    )
    assert [each["first_stage"] for each in ranked.to_dict()["documents"]] == [
        document.first_stage for document in ranked
    ]
    again = _reranker(1.0).postprocess_nodes(ranked.nodes, query_str="0")
    assert [hit.scores for hit in again] == [hit.scores for hit in ranked.nodes]


def _reranker(first_stage: float) -> MultiModalRerank:
    return MultiModalRerank(model=Told(), score_mode="text", first_stage=first_stage)


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_stage": -1}, "first stage's weight is -1: must be a number of at least 0"),
        ({"first_stage": math.inf}, "weight is inf: must be"),
        ({"first_stage": math.nan}, "weight is nan: must be"),
        ({"first_stage": True}, "weight is True: must be"),
        ({"first_stage": "much"}, "weight is 'much': must be"),
        ({"first_stage": 1, "model": Raw()}, "scores of told are no probabilities"),
        ({"first_stage": FirstStage(1, "log_odds")}, "learnt without saying for which reranker"),
        ({"first_stage": FirstStage(1, "log_odds", "m0")}, "learnt for m0, and this reranker is"),
    ],
)
def test_wrong_settings_fail_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiModalRerank(**{"model": Told(), "score_mode": "text", **settings})


def test_a_weight_that_was_learnt_on_another_scale_is_refused() -> None:
    nodes = foreign((0.5, 10), (0.6, 8))

    assert order(rerank(nodes, FirstStage(1, "standardised", "told"))) == "ab"
    with pytest.raises(ValueError, match="learnt on the scale 'log_odds', and this retriever's"):
        rerank(nodes, FirstStage(1, "log_odds", "told"))


@pytest.mark.parametrize("first_stage", [0.25, LEARNT])
def test_it_survives(first_stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "llama_index_gap.search.rerank.load_scorer", lambda *_args, **_settings: Told()
    )
    original = MultiModalRerank(model=tmp_path, score_mode="text", first_stage=first_stage)

    settings = json.loads(json.dumps(original.to_dict()))

    for again in (MultiModalRerank.from_dict(settings), pickle.loads(pickle.dumps(original))):
        assert again.first_stage == first_stage


def test_what_was_learnt_says_how_sure_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert FirstStage.from_dict(json.loads(json.dumps(LEARNT.to_dict()))) == LEARNT
    assert LEARNT.summary() == (
        "weight 0.5 for the first stage (0.25 to 1 where a part was held out), learnt from 20 "
        "queries: held out, nDCG@10 is 0.900 (0.800–0.950); the reranker alone has 0.700 "
        "(0.600–0.800), the first stage alone 0.800 (0.700–0.900); against the better of the two "
        "+0.100, −0.010 to +0.200: unclear"
    )
    assert FirstStage(2, "log_odds").summary() == "weight 2 for the first stage"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": 1}, "no first stage as to_dict gives it"),
        ({"weight": 1, "scale": "other"}, "scale='other': must be one of log_odds, standardised"),
        ({"weight": "1", "scale": "log_odds"}, "weight is '1'"),
        ({"weight": 1, "scale": "log_odds", "gain": {"value": 1}}, "no first stage as to_dict"),
    ],
)
def test_what_describes_no_first_stage(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FirstStage.from_dict(content)
