"""Computes first stages for many queries at once, for ``fusion_study.py`` and ``hubs.py``.

A million single fusions take half an hour. This file does the arithmetic of ``fuse`` and
``gap.background`` for all queries of a setting together. The hubs, their reliability and the spread
of a query sample come from the package. To make sure that the result is the package's fusion,
``evaluate`` also puts some queries of every setting through ``fuse``, and stops if a document's
score differs.

Methods that ``fuse`` does not have:

- ``dbsf``: distribution-based score fusion, as in vector databases: a leg's scores are scaled from
  mean − 3 standard deviations (0) to mean + 3 (1), clipped, and added;
- ``best hits``: standard deviations above the mean of the best hits that a sample of queries has in
  this leg (arXiv 2511.22141);
- ``all vectors``: plain standard deviations above the mean of the background, hits included;
- ``plain``: ``background`` without the upper quarter;
- ``two-sided`` z-scores: the z-score among the query's scores, plus ρ times the z-score among all
  queries' scores for the vector.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from scipy.special import log_ndtr, ndtri

from llama_index_gap.gap.arrays import FloatArray, IntArray
from llama_index_gap.gap.background import (
    FEWEST_UPPER,
    UPPER_SHARE,
    Background,
    normal_equivalent,
)
from llama_index_gap.gap.hubs import STRENGTH
from llama_index_gap.search.fusion import (
    RANK_CONSTANT,
    RELEVANT_MEAN,
    RELEVANT_SPREAD,
    Normalize,
    ScoredLeg,
    fuse,
)

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]
from two_modalities import CANDIDATES, TOP, Outcome  # noqa: E402

FETCHED = 4 * CANDIDATES


class Method(NamedTuple):
    """A first stage.

    Attributes:
        normalize: as in ``fuse``, or one of the methods above.
        combine: as in ``fuse``.
        correct: ``hubs`` for the hub correction, ``two-sided`` for such z-scores, or empty.
        sample: whether a sample of queries is known.
    """

    normalize: str
    combine: str
    correct: str = ""
    sample: bool = False

    @property
    def of_package(self) -> bool:
        return self.normalize in get_args(Normalize) and self.correct != "two-sided"


METHODS = {
    "raw, max": Method("none", "max"),
    "raw, sum": Method("none", "sum"),
    "RRF": Method("rank", "sum"),
    "min–max, sum": Method("minmax", "sum"),
    "DBSF, sum": Method("dbsf", "sum"),
    "list z, evidence": Method("zscore", "evidence"),
    "hubs, list z, evidence": Method("zscore", "evidence", "hubs"),
    "best hits (sample)": Method("best hits", "max", sample=True),
    **{
        f"{correct}{', ' * bool(correct)}{combine}{' (sample)' * sample}": Method(
            "background", combine, correct, sample
        )
        for sample in (False, True)
        for correct in ("", "hubs", "two-sided")
        for combine in ("evidence", "intent")
    },
    **{
        f"plain: {correct}{', ' * bool(correct)}{combine}{' (sample)' * sample}": Method(
            "plain", combine, correct, sample
        )
        for correct, combine, sample in (
            ("", "evidence", False),
            ("hubs", "evidence", False),
            ("hubs", "intent", False),
            ("hubs", "intent", True),
        )
    },
}
DEFAULT = "hubs, intent"
WITH_SAMPLE = "hubs, intent (sample)"


@dataclass(frozen=True)
class Searched:
    """The vectors of one modality.

    Attributes:
        vectors: shape (n, d).
        documents: the document of each vector, shape (n,); no document comes twice.
        sample: a sample of such vectors, shape (m, d).
        places: the place of each vector in the sample, −1 if it is not in it, shape (n,); None if
            no vector is in it.
    """

    vectors: FloatArray
    documents: IntArray
    sample: FloatArray
    places: IntArray | None = None


class Hits(NamedTuple):
    """A leg's hits for all queries, best first.

    Attributes:
        rows: row numbers of the vectors, shape (q, k).
        raw: cosines, shape (q, k).
        scores: scores after the hub correction, shape (q, k).
        background: scores against the sample after the hub correction, shape (q, m).
        spread: the spread of the query sample.
    """

    rows: IntArray
    raw: FloatArray
    scores: FloatArray
    background: FloatArray
    spread: float | None


class Leg:
    """One collection, searched by all queries."""

    def __init__(
        self, queries: FloatArray, searched: Searched, references: FloatArray, sample: FloatArray
    ) -> None:
        self.searched, self.size = searched, len(searched.vectors)
        self.banks = {False: references, True: sample}
        scores = queries @ searched.vectors.T
        self.rows = best(scores, FETCHED)
        self.raw = np.take_along_axis(scores, self.rows, axis=1)
        self.background = queries @ searched.sample.T
        self.known_hits: dict[tuple[str, bool], Hits] = {}
        self.known_values: dict[tuple[str, str, bool], tuple[IntArray, FloatArray]] = {}

    def hits(self, correct: str, sample: bool) -> Hits:
        """The best 16 of the best 64, as the package corrects them."""
        if (correct, sample) not in self.known_hits:
            self.known_hits[correct, sample] = self.find(correct, sample)
        return self.known_hits[correct, sample]

    def values(self, method: Method) -> tuple[IntArray, FloatArray]:
        """The documents found, best first, and their normalized scores, both of shape (q, k)."""
        key = method.normalize, method.correct, method.sample
        if key not in self.known_values:
            self.known_values[key] = self.on_scale(*key)
        return self.known_values[key]

    def find(self, correct: str, sample: bool) -> Hits:
        queries = self.banks[True] if sample else None
        if correct == "hubs":
            known = Background.of([], self.searched.sample, self.size, self.banks[False], queries)
        else:
            known = Background([], self.searched.sample, self.size, None, queries)
        spread = known.spread(STRENGTH)
        if known.hubs is None:
            rows, raw = self.rows[:, :CANDIDATES], self.raw[:, :CANDIDATES]
            return Hits(rows, raw, raw, self.background, spread)
        scores = self.raw - STRENGTH * known.hubs.of(self.searched.vectors)[self.rows]
        first = best(scores, CANDIDATES)
        rows, raw, scores = (
            np.take_along_axis(each, first, axis=1) for each in (self.rows, self.raw, scores)
        )
        hubs = STRENGTH * known.hubs.of(self.searched.sample)
        return Hits(rows, raw, scores, self.background - hubs, spread)

    def on_scale(self, normalize: str, correct: str, sample: bool) -> tuple[IntArray, FloatArray]:
        if correct == "two-sided":
            return self.two_sided(sample)
        hits = self.hits(correct, sample)
        scores = hits.scores
        if normalize == "best hits":
            tops = (self.banks[True] @ self.searched.vectors.T).max(axis=1)
            scores = (scores - tops.mean()) / tops.std()
        elif normalize == "rank":
            lower = np.diff(scores, axis=1, prepend=np.inf) < 0  # equal scores have equal ranks
            ranks = np.where(lower, np.arange(1, scores.shape[1] + 1), 0)
            scores = 1 / (RANK_CONSTANT + np.maximum.accumulate(ranks, axis=1))
        elif normalize == "minmax":
            low = scores.min(axis=1, keepdims=True)
            scores = (scores - low) / (scores.max(axis=1, keepdims=True) - low)
        elif normalize in {"zscore", "dbsf"}:
            scores = scores - scores.mean(axis=1, keepdims=True)
            scores = scores / scores.std(axis=1, keepdims=True)
            scores = np.clip((scores + 3) / 6, 0, 1) if normalize == "dbsf" else scores
        elif normalize == "all vectors":
            background = hits.background
            mean, deviation = (f(background, axis=1, keepdims=True) for f in (np.mean, np.std))
            scores = (scores - mean) / deviation
        elif normalize in {"plain", "background"}:
            scores = against_background(
                scores, hits.background, self.places(hits.rows), hits.spread, normalize
            )
        return self.searched.documents[hits.rows], scores

    def two_sided(self, sample: bool) -> tuple[IntArray, FloatArray]:
        """(z + ρ · the vector's z among all queries) / (1 + ρ), the best 16 of the best 64."""
        queries = self.banks[True] if sample else None
        known = Background.of([], self.searched.sample, self.size, self.banks[False], queries)
        rho = 0.0 if known.hubs is None else known.hubs.reliability
        scores = self.searched.vectors @ self.banks[sample].T
        scores[scores > 1 - 1e-5] = np.nan  # itself
        mean, spread = np.nanmean(scores, axis=1), np.nanstd(scores, axis=1)
        of_vector = (self.raw - mean[self.rows]) / spread[self.rows]
        z = against_background(
            self.raw,
            self.background,
            self.places(self.rows),
            Background([], self.searched.sample, self.size, None, queries).spread(STRENGTH),
            "background",
        )
        z = (z + rho * of_vector) / (1 + rho)
        first = best(z, CANDIDATES)
        rows, z = (np.take_along_axis(each, first, axis=1) for each in (self.rows, z))
        return self.searched.documents[rows], z

    def places(self, rows: IntArray) -> IntArray:
        places = self.searched.places
        return np.full(rows.shape, -1) if places is None else places[rows]


def best(scores: FloatArray, k: int) -> IntArray:
    """The k highest of each row, highest first: shape (q, k)."""
    k = min(k, scores.shape[1])
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(top, order, axis=1))


def against_background(
    scores: FloatArray,
    background: FloatArray,
    places: IntArray,
    spread: float | None,
    how: str = "background",
) -> FloatArray:
    """Like ``gap.background.background_z``; ``plain`` leaves the upper quarter out.

    Args:
        scores: best first, shape (q, k).
        background: shape (q, m).
        places: the places of the hits in the background, shape (q, k).
        spread: the spread of the query sample.
        how: ``background`` or ``plain``.
    """
    m = background.shape[1]
    centre = background.mean(axis=1, keepdims=True)
    hits, ordered = scores - centre, -np.sort(centre - background, axis=1)
    sums, squares = (np.cumsum(each, axis=1) for each in (ordered, ordered**2))
    z = np.empty_like(hits)
    for among in (False, True):  # leave a hit out of its own background
        those = (places >= 0) == among
        if not those.any():
            continue
        n = m - among
        own = hits if among else np.zeros_like(hits)
        mean, deviations = moments(sums[:, -1:] - own, squares[:, -1:] - own**2, n)
        widths = deviations if spread is None else np.sqrt(deviations * spread)
        t = (hits - mean) / (widths * math.sqrt(1 + 1 / n))
        z[those] = normal_equivalent(t[those], n - 1)
        k = min(n, max(FEWEST_UPPER, round(UPPER_SHARE * n)))
        if how == "plain" or k == n:
            continue
        inside = among & (hits > ordered[:, k - 1 : k] - 1e-12)  # it may be rounded differently
        total = np.where(inside, sums[:, k : k + 1] - hits, sums[:, k - 1 : k])
        square = np.where(inside, squares[:, k : k + 1] - hits**2, squares[:, k - 1 : k])
        mean, upper = moments(total, square, k)
        edge = -float(ndtri(k / n))
        expected = math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) / (k / n)
        narrower = math.sqrt(1 + edge * expected - expected * expected)
        widths = np.maximum(upper / narrower, deviations / 2)
        above = (expected + (hits - mean) / widths) / math.sqrt(1 + 1 / k)
        z[those] = (z[those] + normal_equivalent(above[those], k - 1)) / 2
    return np.maximum.accumulate(z[:, ::-1], axis=1)[:, ::-1]


def moments(total: FloatArray, squares: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    mean = total / n
    return mean, np.sqrt(np.maximum((squares - n * mean**2) / (n - 1), 1e-18))


def fused(
    documents: Sequence[IntArray],
    values: Sequence[FloatArray],
    sizes: Sequence[int],
    combine: str,
) -> tuple[IntArray, FloatArray]:
    """All documents that two legs found, with their scores; −∞ for repeated documents."""
    says = [
        contribution(each, size, size / min(sizes), combine)
        for each, size in zip(values, sizes, strict=True)
    ]
    same = documents[0][:, :, None] == documents[1][:, None, :]
    partner = np.take_along_axis(says[1], same.argmax(axis=2), axis=1)
    both = np.maximum(says[0], partner) if combine == "max" else says[0] + partner
    if combine == "intent":
        both = np.logaddexp(both + math.log(min(sizes)), np.logaddexp(says[0], partner))
    first = np.where(same.any(axis=2), both, says[0])
    second = np.where(same.any(axis=1), -np.inf, says[1])
    return np.hstack(documents), np.hstack([first, second])


def contribution(values: FloatArray, size: int, ratio: float, combine: str) -> FloatArray:
    if combine == "evidence":
        log_p = log_ndtr(-values)
        with np.errstate(divide="ignore"):
            sized = -np.log(-np.expm1(ratio * np.log1p(-np.exp(log_p))))
        return np.where(log_p < -30, -log_p - np.log(ratio), sized)
    if combine == "intent":
        variance = RELEVANT_SPREAD**2
        z = np.maximum(values, RELEVANT_MEAN / (1 - variance))
        bell = z * z / 2 - (z - RELEVANT_MEAN) ** 2 / (2 * variance)
        return np.asarray(bell - math.log(RELEVANT_SPREAD * size))
    return values


def evaluate(
    queries: FloatArray,
    legs: Mapping[str, Searched],
    wanted: IntArray,
    methods: Mapping[str, Method],
    *,
    references: FloatArray,
    sample: FloatArray,
    checked: int = 2,
) -> Outcome:
    """Search two collections with every query, and fuse the hits by every method.

    Args:
        queries: shape (q, d).
        legs: by name; each leg alone is also a method, called ``"{name} leg"``.
        wanted: the relevant documents of each query, shape (q, answers), filled up with −2.
        methods: by name.
        references: stored vectors of the queries' modality, shape (r, d).
        sample: unlabelled queries, shape (s, d).
        checked: how many of the queries also go through ``fuse``.

    Returns:
        nDCG@10 and recall@10, shape (q,), by method.
    """
    asked = {name: Leg(queries, leg, references, sample) for name, leg in legs.items()}
    found = {
        f"{name} leg": leg.searched.documents[leg.rows[:, :CANDIDATES]]
        for name, leg in asked.items()
    } | rankings(asked, methods, checked)
    both = {name: figures(ranked, wanted) for name, ranked in found.items()}
    return Outcome(*({name: each[at] for name, each in both.items()} for at in (0, 1)))


def rankings(
    asked: Mapping[str, Leg], methods: Mapping[str, Method], checked: int = 2
) -> dict[str, IntArray]:
    """The documents that two legs find for each query, best first, filled up with −1."""
    sizes = [leg.size for leg in asked.values()]
    ranked = {}
    for name, method in methods.items():
        found, values = zip(*(leg.values(method) for leg in asked.values()), strict=True)
        unsized = method.combine == "evidence" and method.normalize == "zscore"
        documents, scores = fused(found, values, [1, 1] if unsized else sizes, method.combine)
        for number in range(min(checked, len(scores)) if method.of_package else 0):
            legs = scored(asked, method, number)
            check(name, method, legs, documents[number], scores[number])
        order = np.argsort(-scores, axis=1, kind="stable")
        documents = np.where(np.isfinite(scores), documents, -1)
        ranked[name] = np.take_along_axis(documents, order, axis=1)
    return ranked


def figures(ranked: IntArray, wanted: IntArray) -> tuple[FloatArray, FloatArray]:
    """nDCG@10 and recall@10 of each query."""
    right = (ranked[:, :TOP, None] == wanted[:, None, :]).any(axis=2)
    discounts = 1 / np.log2(np.arange(TOP) + 2)
    answers = (wanted >= 0).sum(axis=1)
    ideal = np.cumsum(discounts)[np.minimum(answers, TOP) - 1]
    return right @ discounts[: right.shape[1]] / ideal, right.sum(axis=1) / answers


def check(
    name: str,
    method: Method,
    legs: Mapping[str, ScoredLeg],
    documents: IntArray,
    scores: FloatArray,
) -> None:
    """Check that ``fuse`` gives these scores to one query's documents."""
    found = fuse(legs, normalize=method.normalize, combine=method.combine)
    theirs = {document.key: document.score for document in found.documents}
    ours = {
        key: score
        for key, score in zip(documents.tolist(), scores.tolist(), strict=True)
        if math.isfinite(score)
    }
    if ours.keys() != theirs.keys() or any(
        not math.isclose(ours[key], theirs[key], rel_tol=1e-6, abs_tol=1e-6) for key in ours
    ):
        raise AssertionError(f"{name}: fuse gives {theirs}, but this file gives {ours}")


def scored(asked: Mapping[str, Leg], method: Method, number: int) -> dict[str, ScoredLeg]:
    """The legs' hits for one query, in the form that ``fuse`` expects."""
    legs = {}
    for name, leg in asked.items():
        hits = leg.hits(method.correct, method.sample)
        legs[name] = ScoredLeg(
            leg.searched.documents[hits.rows[number]].tolist(),
            hits.raw[number],
            hubs=hits.raw[number] - hits.scores[number],
            background=hits.background[number],
            size=leg.size,
            places=leg.places(hits.rows)[number],
            spread=hits.spread,
        )
    return legs
