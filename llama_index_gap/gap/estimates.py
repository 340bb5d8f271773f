"""Estimates: figures with intervals, by the bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray

_Name = TypeVar("_Name")

FEWEST = 10
"""Minimum number of vectors or scores: with fewer, an interval is meaningless."""
ROUNDS = 500
"""Number of a bootstrap's resamples."""
LEVEL = 0.95
"""Confidence level: the share of such intervals that contain the true figure."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, which shows how much the figure depends on the sample."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


def bootstrap(
    figures: Callable[[FloatArray], Mapping[_Name, float]],
    strata: npt.ArrayLike,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> dict[_Name, Estimate]:
    """Percentile bootstrap intervals (Efron 1979) of any figures.

    *Units* are drawn with replacement. A unit is a query, a vector, or vectors that belong
    together, such as an image with its captions. A figure over pairs of vectors weights a pair by
    the product of the two counts, and leaves out pairs of a vector with itself or its own copies.

    Near 0, resampling only increases a distance, so the interval may miss the estimate. The
    interval is then widened to contain it.

    Args:
        figures: computes figures by name, from each unit's count, shape (n,).
        strata: the group of each unit, shape (n,). Each group, such as the texts, is resampled
            separately and keeps its size. All zeros for one group.
        rounds: how many resamples to draw.
        seed: of the draws.

    Returns:
        Each figure's value on the full sample, where each unit counts once, and its interval.

    Raises:
        ValueError: there are no units, ``rounds`` is out of range, or a figure is not a number in
            some resample.
    """
    groups_of = np.asarray(strata)
    if groups_of.ndim != 1 or not groups_of.size:
        raise InvalidValueError(
            f"strata of shape {groups_of.shape}: must be (n,), with n at least 1"
        )
    if rounds < 1:
        raise InvalidValueError(f"rounds={rounds}: must be at least 1")
    groups = [np.flatnonzero(groups_of == group) for group in np.unique(groups_of)]
    rng = np.random.default_rng(seed)
    values = dict(figures(np.ones(len(groups_of))))
    # Not SciPy's bootstrap: it needs at least two units per group, and resamples for each figure.
    drawn = np.empty((rounds, len(values)))
    counts = np.zeros(len(groups_of))
    for row in drawn:
        for group in groups:
            counts[group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)))
        row[:] = list(figures(counts).values())
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    estimates: dict[_Name, Estimate] = {}
    for (name, value), *ends in zip(values.items(), low, high, strict=True):
        if not np.isfinite([value, *ends]).all():
            raise InvalidValueError(
                f"{name} is not a number in some draws: the sample is too small or too uniform"
            )
        inside = sorted([float(value), *map(float, ends)])
        estimates[name] = Estimate(float(value), inside[0], inside[-1])
    return estimates
