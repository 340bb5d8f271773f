"""Backgrounds: how far a hit's score lies above the query's scores with other vectors."""

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
"""Minimum number of vectors in a background besides the hit: with fewer, it is meaningless."""
UPPER_SHARE = 0.25
"""Share of a background's highest scores that form its upper part."""
FEWEST_UPPER = 16
"""Minimum number of scores in the upper part."""

_MOST_KNOWN = 200_000  # nodes whose hubness is cached: about 20 MB
_NARROWEST = 0.5  # of the whole background's spread; that of near duplicates would be nearly 0


@dataclass(frozen=True)
class Background:
    """The sample of vectors that the hits of a leg are compared with.

    Attributes:
        ids: of the m sampled nodes.
        sample: their vectors, of length 1, shape (m, d).
        size: how many vectors the leg has in all.
        hubs: tells how much of a hub a vector is; None if the leg has no hubs.
        queries: vectors of sample queries, of length 1, shape (q, d); None if there are none.
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
        """Make a background, and find the leg's hubs.

        Args:
            ids: as above, like ``sample``, ``size`` and ``queries``.
            sample: as above.
            size: as above.
            references: stored vectors that are like queries, shape (r, d); hubs are found with
                these if there are no sample queries, or too few.
            queries: as above.
        """
        if queries is not None and (references is None or len(queries) >= FEWEST_REFERENCES):
            references = queries
        hubs = None if references is None else Hubs.found(sample, references)
        return cls(ids, sample, size, hubs, queries)

    def hubness_of(
        self, ids: Sequence[str], vectors: Callable[[list[str]], Mapping[str, VectorArray]]
    ) -> FloatArray:
        """ρ · hubness of nodes, shape (n,); 0 if there are no hubs.

        It is cached, so that a node's vector is read only once.

        Args:
            ids: of n nodes.
            vectors: gives the vectors of nodes, by id; a node that it leaves out gets 0.
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
        """The query's hub-corrected scores against the sample, shape (m,).

        Args:
            query: of length 1, shape (d,).
            strength: α.
        """
        return np.asarray(self.sample @ query - strength * self._hubness, dtype=np.float64)

    def places(self, ids: Sequence[str]) -> IntArray:
        """The position of each node in the sample, −1 for nodes that are not in it; shape (n,)."""
        return np.array([self._places.get(node_id, -1) for node_id in ids], dtype=np.int64)

    def spread(self, strength: float) -> float | None:
        """Root mean square of the spreads of the sample queries' scores; None without queries.

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
    """How far hits lie above the background, as standard normal z-scores.

    This is the mean of two z-scores: one against the whole background, one against its upper
    quarter. The second one takes the query's subject into account: if many vectors are about it,
    the upper scores are widely spread, and a hit must score higher to stand out. Each z-score is a
    prediction for one further vector from the mean and spread of the m *other* vectors, so it
    follows Student's t with m − 1 degrees of freedom. It is converted to the normal z-score of the
    same tail probability. So it is small with few vectors, and with some hundred it is nearly the
    plain z-score.

    Args:
        scores: of the hits, shape (n,).
        background: the query's scores against the leg's vectors, or a sample of them, shape (m,).
        places: the position of each hit in the background, −1 for a hit that is not in it, shape
            (n,). A hit is never compared with itself. None if no hit is in the background.
        spread: the root mean square of the spreads of sample queries' scores against the same
            vectors. The spread of the whole background is then √(own × sample's).

    Returns:
        Shape (n,), never lower for a higher score; None if there are fewer than 3 others, or if
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
    # A hit that is in the background is compared with one vector less. This must not change the
    # order of the hits.
    order = np.argsort(hits, kind="stable")
    z[order] = np.maximum.accumulate(z[order])
    return z


def _without(whole: FloatArray, places: IntArray) -> FloatArray:
    """For each position, the background without the score there; shape (n, m − 1)."""
    kept = np.arange(len(whole)) != places[:, None]
    others: FloatArray = np.broadcast_to(whole, kept.shape)[kept].reshape(len(places), -1)
    return others


def _z(hits: FloatArray, others: FloatArray, deviation: float, spread: float | None) -> FloatArray:
    """The z-score of each hit against its own row of others, or against the only row.

    Args:
        hits: shape (n,).
        others: shape (n, m) or (1, m).
        deviation: standard deviation of all scores; used for a hit whose others are all equal.
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
    # Mean and standard deviation of a standard normal variable's upper share.
    edge = -float(ndtri(k / m))
    mean = math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi) / (k / m)
    narrower = math.sqrt(1 + edge * mean - mean * mean)
    widths = np.maximum(upper.std(axis=1, ddof=1) / narrower, _NARROWEST * deviations)
    above = mean + (hits - upper.mean(axis=1)) / widths
    return (z + normal_equivalent(above / math.sqrt(1 + 1 / k), k - 1)) / 2


def range_of_spreads(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """How much the ratio of two legs' spreads varies from query to query.

    If a query's subject decides in which leg its scores are widely spread, that spread tells which
    leg has the answer. Dividing by the query's own spread loses this; a sample of queries keeps it.

    Args:
        first: scores of q queries against vectors of one leg, shape (q, m).
        second: scores of the same queries against vectors of the other leg, shape (q, n).

    Returns:
        The 90th percentile of the ratios of the two spreads divided by the 10th; None if a query
        has no spread.
    """
    spreads = [np.asarray(each, np.float64).std(axis=1) for each in (first, second)]
    if not len(spreads[0]) or min(map(np.min, spreads)) <= 0:
        return None
    low, high = np.percentile(spreads[0] / spreads[1], [10, 90])
    return float(high / low)


def normal_equivalent(t: npt.ArrayLike, freedom: int) -> FloatArray:
    """The standard normal z-score with the same upper tail probability as a Student's t.

    Args:
        t: shape (n,).
        freedom: degrees of freedom, at least 1.
    """
    t = np.asarray(t, np.float64)
    with np.errstate(divide="ignore"):
        log_p = np.log(stdtr(freedom, -t))
    # If that underflows, use the leading term of the incomplete beta function.
    ratio = np.log(freedom) - np.log(freedom + np.square(t))
    far = freedom / 2 * ratio - np.log(freedom) - betaln(freedom / 2, 0.5)
    log_p = np.where(np.isfinite(log_p), log_p, far)
    # ndtri_exp loses precision for probabilities near 1. There the lower tail is small: use it.
    below = ndtri(stdtr(freedom, t))
    return np.where(t > 0, -ndtri_exp(log_p), np.maximum(below, -37.0))
