"""Metrics of a ranking: recall, nDCG and MRR, with intervals and a paired test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, permutation_test

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.estimates import Estimate

Run: TypeAlias = Mapping[str, Sequence[str]]
"""For each query, the ids of the documents found, best first."""
Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""For each query, the judged documents with their grades; 0 means not relevant."""

DEFAULT_METRICS = ("recall@10", "ndcg@10", "mrr@10")
RESAMPLES = 2_000
SIGNIFICANT = 0.01
"""A difference with a p-value below this is significant."""
_METRIC = re.compile(r"(recall|ndcg|mrr)@([1-9]\d*)")


def recall(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """The share of the relevant documents that are among the first k results."""
    return sum(document in relevant for document in ranking[:k]) / len(relevant)


def ndcg(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Discounted cumulative gain of the first k results, divided by that of the best order.

    The gain is the grade, discounted by log2(1 + rank) (Järvelin and Kekäläinen, 2002), as
    trec_eval computes it.
    """
    gains = [relevant.get(document, 0) for document in ranking[:k]]
    return _discounted(gains) / _discounted(sorted(relevant.values(), reverse=True)[:k])


def mrr(ranking: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """1 / rank of the first relevant document; 0 if none is among the first k results."""
    ranks = (rank for rank, document in enumerate(ranking[:k], start=1) if document in relevant)
    return 1.0 / next(ranks, np.inf)


_METRICS = {"recall": recall, "ndcg": ndcg, "mrr": mrr}


def judge(
    run: Run, qrels: Qrels, metrics: Sequence[str] = DEFAULT_METRICS, *, relevant_from: int = 1
) -> dict[str, FloatArray]:
    """Judge a run, query by query.

    Args:
        run: the rankings; a query without a ranking counts as having found nothing.
        qrels: the judgements; a query without a relevant document is left out.
        metrics: ``recall@k``, ``ndcg@k`` or ``mrr@k`` each.
        relevant_from: the lowest grade that counts as relevant; nDCG also counts lower grades, as
            smaller gains.

    Returns:
        For each metric, an array of shape (n,) with the n queries in the order of ``qrels``.

    Raises:
        ValueError: an unknown metric, a ranking that names a document twice, or no query to judge.
    """
    queries = judged_queries(qrels, relevant_from)
    if not queries:
        raise InvalidValueError(f"no query has a document of grade {relevant_from} or more")
    for query in queries:
        ranking = run.get(query, ())
        if len(set(ranking)) < len(ranking):
            raise InvalidValueError(f"the ranking of query {query!r} names a document twice")
    values = {}
    for metric in metrics:
        found = _METRIC.fullmatch(metric)
        if found is None:
            raise InvalidValueError(
                f"{metric!r}: must be recall@k, ndcg@k or mrr@k, such as recall@10"
            )
        measure, k = _METRICS[found[1]], int(found[2])
        least = 1 if measure is ndcg else max(relevant_from, 1)
        values[metric] = np.array(
            [
                measure(
                    run.get(query, ()),
                    {document: grade for document, grade in qrels[query].items() if grade >= least},
                    k,
                )
                for query in queries
            ]
        )
    return values


def judged_queries(qrels: Qrels, relevant_from: int = 1) -> list[str]:
    """The queries that have a relevant document, in the order of ``qrels``."""
    return [
        query
        for query, grades in qrels.items()
        if max(grades.values(), default=0) >= max(relevant_from, 1)
    ]


def estimate(values: npt.ArrayLike, *, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """The mean over queries, with a percentile bootstrap interval.

    Args:
        values: one value per query, shape (n,).
        confidence: the share of such intervals that contain the true mean.
        seed: the seed of the resampling.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if np.ptp(sample) == 0:  # resampling equal values changes nothing
        return Estimate(mean, mean, mean)
    interval = bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same queries.

    Attributes:
        difference: mean of the second run minus mean of the first, with its interval.
        p_value: the probability that chance alone gives a difference this large, in either
            direction.
    """

    difference: Estimate
    p_value: float

    @property
    def verdict(self) -> str:
        """``"higher"``, ``"lower"``, or ``"unclear"`` if the difference is not significant."""
        if self.p_value >= SIGNIFICANT:
            return "unclear"
        return "higher" if self.difference.value > 0 else "lower"


def compare(first: npt.ArrayLike, second: npt.ArrayLike, *, seed: int = 0) -> Comparison:
    """Test whether two runs over the same queries differ.

    The test is a paired randomisation: if the runs did not differ, the two values of each query
    could be swapped (Smucker, Allan and Carterette, CIKM 2007).

    Args:
        first: the metric of each query in the first run, shape (n,).
        second: the metric of the same queries in the second run, shape (n,).
        seed: the seed of the resampling.

    Raises:
        ValueError: the runs have different numbers of queries.
    """
    one, other = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if one.shape != other.shape or one.ndim != 1:
        raise InvalidValueError(
            f"the runs have values of shapes {one.shape} and {other.shape}; judge the same queries"
        )
    differences = other - one
    if len(differences) < 2 or not differences.any():  # nothing to swap
        return Comparison(estimate(differences), 1.0)
    test = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    return Comparison(estimate(differences, seed=seed), float(test.pvalue))


def _discounted(gains: Sequence[int]) -> float:
    return float(np.sum(np.asarray(gains) / np.log2(np.arange(2, len(gains) + 2))))
