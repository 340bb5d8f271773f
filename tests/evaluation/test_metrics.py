from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from llama_index_gap.evaluation.metrics import compare, estimate, judge, judged_queries
from llama_index_gap.gap.estimates import Estimate

QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"d": 1}}
RUN = {"q1": ["c", "b", "x", "a"], "q2": ["e", "f"]}


def test_worked_out_by_hand() -> None:
    judged = judge(RUN, QRELS, ["recall@2", "ndcg@4", "mrr@10"])

    assert judged["recall@2"].tolist() == [1 / 2, 0]
    gained, ideal = 1 / math.log2(3) + 2 / math.log2(5), 2 + 1 / math.log2(3)
    assert judged["ndcg@4"] == pytest.approx([gained / ideal, 0])
    assert judged["mrr@10"].tolist() == [1 / 2, 0]


def test_only_the_grades_that_count_are_relevant_but_ndcg_takes_all() -> None:
    judged = judge(RUN, QRELS, ["recall@4", "mrr@4", "ndcg@4"], relevant_from=2)

    assert judged["recall@4"].tolist() == [1]  # q2 has nothing of grade 2
    assert judged["mrr@4"].tolist() == [1 / 4]
    assert judged["ndcg@4"] == pytest.approx(judge(RUN, QRELS, ["ndcg@4"])["ndcg@4"][:1])


def test_a_query_that_found_nothing_counts() -> None:
    assert judge({}, QRELS, ["recall@10"])["recall@10"].tolist() == [0, 0]


def test_a_query_with_nothing_to_find_does_not_count() -> None:
    assert judged_queries({"q1": {"a": 0}, "q2": {"b": 1}, "q3": {}}) == ["q2"]
    with pytest.raises(ValueError, match="no query has a document of grade 1"):
        judge({}, {"q1": {"a": 0}})


@pytest.mark.parametrize("metric", ["recall", "recall@0", "map@10", "ndcg@ten"])
def test_unknown_metrics_are_refused(metric: str) -> None:
    with pytest.raises(ValueError, match="must be recall@k, ndcg@k or mrr@k"):
        judge(RUN, QRELS, [metric])


def test_a_document_found_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'q2' names a document twice"):
        judge({"q2": ["d", "d"]}, QRELS)


documents = st.sampled_from([f"d{index}" for index in range(12)])


@given(
    st.dictionaries(
        st.sampled_from(["q1", "q2", "q3"]),
        st.tuples(
            st.lists(documents, unique=True, min_size=1),
            st.dictionaries(documents, st.integers(0, 3), min_size=1).filter(
                lambda grades: max(grades.values()) > 0
            ),
        ),
        min_size=1,
    )
)
def test_as_trec_eval_judges(world: dict[str, tuple[list[str], dict[str, int]]]) -> None:
    run = {query: ranking for query, (ranking, _) in world.items()}
    qrels = {query: grades for query, (_, grades) in world.items()}
    scored = {q: {d: -float(rank) for rank, d in enumerate(found)} for q, found in run.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recall.5", "ndcg_cut.5", "recip_rank"})
    expected = evaluator.evaluate(scored)

    ours = judge(run, qrels, ["recall@5", "ndcg@5", "mrr@100"])

    for name, theirs in (
        ("recall@5", "recall_5"),
        ("ndcg@5", "ndcg_cut_5"),
        ("mrr@100", "recip_rank"),
    ):
        assert ours[name] == pytest.approx([expected[query][theirs] for query in qrels])


def test_the_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)

    found = estimate(values)

    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20  # the theoretical value
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)
    assert estimate(values) == found


def test_equal_values_have_no_interval() -> None:
    assert str(estimate([0.25, 0.25])) == "0.250 (0.250–0.250)"


def test_runs_that_differ_and_runs_that_do_not() -> None:
    rng = np.random.default_rng(2)
    first = rng.random(200)

    better = compare(first, first + rng.normal(0.05, 0.1, 200))
    same = compare(first, first + rng.normal(0.0, 0.1, 200))

    assert better.p_value < 0.01
    assert better.difference.low > 0
    assert same.p_value > 0.05
    assert same.difference.low < 0 < same.difference.high
    assert compare(first, first).p_value == 1


def test_the_p_value_of_few_queries() -> None:
    # All sixteen ways of swapping; two of them differ as much.
    assert compare([0, 0, 0, 0], [1, 1, 1, 1]).p_value == pytest.approx(2 / 16)
    assert compare([0], [1]).p_value == 1
    assert compare([0], [1]).difference == Estimate(1, 1, 1)


def test_runs_over_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        compare([0, 1], [0, 1, 1])
