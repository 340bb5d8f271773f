"""How far a score lies above what the same query gets from other vectors: its background."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, ndtri, ndtri_exp, stdtr

from llama_index_gap.gap.arrays import FloatArray, IntArray, VectorArray, unit_rows
from llama_index_gap.gap.hubs import FEWEST_REFERENCES, Hubs

FEWEST_OTHERS = 3
"""With fewer vectors beside the hit itself, a background says nothing."""
UPPER_SHARE = 0.25
"""The part of a background that a good hit has to rise above."""
FEWEST_UPPER = 16
"""Scores that this part has at least."""

_MOST_KNOWN = 200_000  # nodes whose hubness is kept: some 20 MB
_NARROWEST = 0.5  # of the whole background's spread; near duplicates would have none at all


@dataclass(frozen=True)
class Background:
    """What the hits of a leg are compared with.

    Attributes:
        ids: of the nodes that were drawn, m of them.
        sample: their vectors, of length 1, shape (m, d).
        size: how many vectors the leg has in all.
        hubs: which of its vectors are near to everything; None where none are.
        queries: vectors of sample queries, of length 1, shape (q, d); None where there are none.
    """

    ids: Sequence[str]
    sample: VectorArray
    size: int
    hubs: Hubs | None = None
    queries: VectorArray | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        sample: VectorArray,
        size: int,
        references: VectorArray | None = None,
        queries: VectorArray | None = None,
    ) -> Background:
        """Find the hubs, too.

        Args:
            ids: as above, like ``sample``, ``size`` and ``queries``.
            sample: as above.
            size: as above.
            references: stored vectors that are like queries, shape (r, d): they say which vectors
                are hubs where there are no sample queries, or too few.
            queries: as above.
        """
        if queries is not None and (references is None or len(queries) >= FEWEST_REFERENCES):
            references = queries
        hubs = None if references is None else Hubs.found(sample, references)
        return cls(ids, sample, size, hubs, queries)

    def hubness_of(
        self, ids: Sequence[str], vectors: Callable[[list[str]], Mapping[str, VectorArray]]
    ) -> FloatArray:
        """ρ · hubness of nodes, shape (n,); 0 where there are no hubs.

        It is kept, so that a node's vector is read once only.

        Args:
            ids: of n nodes.
            vectors: gives the vectors of nodes, by id; 0 for one that it does not give.
        """
        if self.hubs is None:
            return np.zeros(len(ids))
        unknown = [node_id for node_id in ids if node_id not in self._known]
        if unknown:
            if len(self._known) + len(unknown) > _MOST_KNOWN:
                self._known.clear()
                unknown = list(ids)
            found = vectors(unknown)
            amounts = self.hubs.of(unit_rows(list(found.values()))) if found else ()
            self._known.update(dict.fromkeys(unknown, 0.0) | dict(zip(found, amounts, strict=True)))
        known = self._known
        return np.array([known.get(node_id, 0.0) for node_id in ids])

    @cached_property
    def _known(self) -> dict[str, float]:
        return dict(zip(self.ids, self._hubness.tolist(), strict=True))

    @cached_property
    def _hubness(self) -> FloatArray:
        return np.zeros(len(self.sample)) if self.hubs is None else self.hubs.of(self.sample)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {node_id: place for place, node_id in enumerate(self.ids)}

    def scores(self, query: VectorArray, strength: float) -> FloatArray:
        """The query's scores against the sample, with hubs taken off, shape (m,).

        Args:
            query: of length 1, shape (d,).
            strength: α.
        """
        return np.asarray(self.sample @ query - strength * self._hubness, dtype=np.float64)

    def places(self, ids: Sequence[str]) -> IntArray:
        """Where nodes lie in the sample; −1 where they do not, shape (n,)."""
        return np.array([self._places.get(node_id, -1) for node_id in ids], dtype=np.int64)

    def spread(self, strength: float) -> float | None:
        """Root mean square of the spreads of the sample queries' scores; None without any.

        Args:
            strength: α.
        """
        if self.queries is None or len(self.sample) < FEWEST_OTHERS + 1:
            return None
        scores, hubs, covariance = self._moments
        return math.sqrt(max(scores - 2 * strength * covariance + strength**2 * hubs, 0.0)) or None

    @cached_property
    def _moments(self) -> tuple[float, float, float]:
        """Mean variance of the queries' scores, variance of the hubness, mean covariance."""
        scores = (self.queries @ self.sample.T).astype(np.float64)  # type: ignore[operator]
        scores -= scores.mean(axis=1, keepdims=True)
        hubs = self._hubness - self._hubness.mean()
        return (
            float(np.square(scores).mean()),
            float(np.square(hubs).mean()),
            float((scores @ hubs).mean() / len(hubs)),
        )


def background_z(
    scores: npt.ArrayLike,
    background: npt.ArrayLike,
    *,
    places: npt.ArrayLike | None = None,
    spread: float | None = None,
) -> FloatArray | None:
    """Standard deviations above the background, as a standard normal variable has them.

    The mean of two z-scores: one against the whole background, one against its upper quarter. The
    second one measures what the query's own subject does: where many vectors are on it, the upper
    scores lie wide apart, and it takes more to stand out. Each is what mean and spread of the m
    *other* vectors predict for one vector more, so it follows Student's t with m − 1 degrees of
    freedom; it is given as the normal z-score of the same tail probability. With few vectors it is
    thereby small, and with some hundred nearly the plain z-score.

    Args:
        scores: of the hits, shape (n,).
        background: the query's scores against the leg's vectors, or a sample of them, shape (m,).
        places: where each hit lies in the background, −1 where it does not, shape (n,). A hit is
            never compared with itself. None: none of them lies there.
        spread: the root mean square of the spreads that a sample of queries has against the same
            vectors. The whole background's spread then is √(own × sample's).

    Returns:
        Shape (n,), never lower for a higher score; None where there are fewer than 3 others, or
        all scores of the background are equal.
    """
    hits, whole = np.asarray(scores, np.float64), np.asarray(background, np.float64)
    own = np.full(hits.shape, -1) if places is None else np.asarray(places, np.int64)
    among = own >= 0
    if len(whole) - among.any() < FEWEST_OTHERS or np.ptp(whole) == 0:
        return None
    z = np.empty(hits.shape)
    z[~among] = _z(hits[~among], whole[None, :], whole.std(), spread)
    if among.any():
        z[among] = _z(hits[among], _without(whole, own[among]), whole.std(), spread)
    # Hits in the background and hits beside it have backgrounds that differ a little.
    order = np.argsort(hits, kind="stable")
    z[order] = np.maximum.accumulate(z[order])
    return z


def _without(whole: FloatArray, places: IntArray) -> FloatArray:
    """The background without one score, for each place: shape (n, m − 1)."""
    kept = np.arange(len(whole)) != places[:, None]
    others: FloatArray = np.broadcast_to(whole, kept.shape)[kept].reshape(len(places), -1)
    return others


def _z(hits: FloatArray, others: FloatArray, deviation: float, spread: float | None) -> FloatArray:
    """The z-score of each hit against its row of others, or against the one row there is.

    Args:
        hits: shape (n,).
        others: shape (n, m) or (1, m).
        deviation: of all scores, for a hit that is the only one that differs.
        spread: as for ``background_z``.
    """
    m = others.shape[1]
    means, deviations = others.mean(axis=1), others.std(axis=1, ddof=1)
    deviations = np.where(deviations > 1e-9 * deviation, deviations, deviation)
    widths = deviations if spread is None else np.sqrt(deviations * spread)
    z = normal_equivalent((hits - means) / (widths * math.sqrt(1 + 1 / m)), m - 1)
    k = min(m, max(FEWEST_UPPER, round(UPPER_SHARE * m)))
    if k == m:
        return z
    upper = np.partition(others, m - k, axis=1)[:, m - k :]
    # Mean and deviation of a standard normal variable's upper share.
    edge = -float(ndtri(k / m))
    mean = math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) / (k / m)
    narrower = math.sqrt(1 + edge * mean - mean * mean)
    widths = np.maximum(upper.std(axis=1, ddof=1) / narrower, _NARROWEST * deviations)
    above = mean + (hits - upper.mean(axis=1)) / widths
    return (z + normal_equivalent(above / math.sqrt(1 + 1 / k), k - 1)) / 2


def range_of_spreads(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """How much the spreads of two legs differ from query to query.

    Where a query's subject decides in which leg its scores lie wide apart, a spread of its own
    tells the legs apart, and to divide by it throws that away; a sample of queries keeps it.

    Args:
        first: scores of q queries against vectors of one leg, shape (q, m).
        second: of the same queries against vectors of the other, shape (q, n).

    Returns:
        Of the ratios of the two spreads, the 90th percentile over the 10th; None where a query has
        no spread.
    """
    spreads = [np.asarray(each, np.float64).std(axis=1) for each in (first, second)]
    if not len(spreads[0]) or min(map(np.min, spreads)) <= 0:
        return None
    low, high = np.percentile(spreads[0] / spreads[1], [10, 90])
    return float(high / low)


def normal_equivalent(t: npt.ArrayLike, freedom: int) -> FloatArray:
    """The standard normal z-score with the upper tail probability of a Student's t.

    Args:
        t: shape (n,).
        freedom: degrees of freedom, at least 1.
    """
    t = np.asarray(t, np.float64)
    with np.errstate(divide="ignore"):
        log_p = np.log(stdtr(freedom, -t))
    # Where that underflows: the leading term of the incomplete beta function.
    ratio = np.log(freedom) - np.log(freedom + np.square(t))
    far = freedom / 2 * ratio - np.log(freedom) - betaln(freedom / 2, 0.5)
    log_p = np.where(np.isfinite(log_p), log_p, far)
    # ndtri_exp loses its digits near 1, where the lower tail is the small one.
    below = ndtri(stdtr(freedom, t))
    return np.where(t > 0, -ndtri_exp(log_p), np.maximum(below, -37.0))
