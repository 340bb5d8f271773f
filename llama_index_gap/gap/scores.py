"""Score distributions, and whether the scores of texts and images are on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray, IntArray, finite, group_numbers
from llama_index_gap.gap.estimates import FEWEST, ROUNDS, Estimate, bootstrap

BINS = 50
"""Number of bins in a histogram, from the lowest to the highest of all scores."""


@dataclass(frozen=True)
class Histograms:
    """The distributions of several kinds of scores.

    Attributes:
        edges: of the bins, the same for all kinds, shape (bins + 1,).
        shares: for each kind, the share of its scores in each bin, shape (bins,); adds up to 1.
    """

    edges: tuple[float, ...]
    shares: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Scores:
    """Scores of one kind, and the bootstrap units that they depend on.

    Attributes:
        values: shape (n,).
        units: the one or two units of each score: one or two arrays of shape (n,).
    """

    values: FloatArray
    units: tuple[IntArray, ...]


class Distribution(NamedTuple):
    """Weighted scores of one kind: mean, standard deviation, and the share in each bin."""

    mean: float
    std: float
    shares: FloatArray


class BinnedScores:
    """Several kinds of scores, in the same bins.

    Args:
        scores: by kind.
    """

    def __init__(self, scores: Mapping[str, Scores]) -> None:
        self.scores = scores
        every = np.concatenate([each.values for each in scores.values()])
        self._edges = np.histogram_bin_edges(every, BINS)
        self._bins = {
            sort: (np.searchsorted(self._edges, each.values, side="right") - 1).clip(0, BINS - 1)
            for sort, each in scores.items()
        }

    def distributions(self, counts: FloatArray) -> dict[str, Distribution]:
        """The distribution of each kind, with each unit weighted by its count, shape (n,)."""
        found = {}
        for sort, scores in self.scores.items():
            weights, *others = (counts[units] for units in scores.units)
            for other in others:
                weights = weights * other
            total = weights.sum()
            mean = float(np.vdot(weights, scores.values) / total)
            variance = np.vdot(weights, np.square(scores.values - mean)) / total
            shares = np.bincount(self._bins[sort], weights, BINS)
            found[sort] = Distribution(mean, float(np.sqrt(variance)), shares / shares.sum())
        return found

    def histograms(self, counts: FloatArray) -> Histograms:
        """The histograms of all kinds, with each unit weighted by its count, shape (n,)."""
        shares = {
            sort: tuple(each.shares.tolist()) for sort, each in self.distributions(counts).items()
        }
        return Histograms(tuple(self._edges.tolist()), shares)


def histogram_overlap(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """The overlap of two histograms: Σ min(pᵢ, qᵢ), 0 to 1 (Inman and Bradley 1989)."""
    return float(np.minimum(first, second).sum())


@dataclass(frozen=True)
class ScoreComparison:
    """Whether a scorer gives texts and images scores on one scale.

    Attributes:
        text_mean: mean of the texts' scores.
        text_std: their standard deviation.
        image_mean: mean of the images' scores.
        image_std: their standard deviation.
        overlap: see ``histogram_overlap``; 1 means no gap.
        distance: how many standard deviations higher the texts score: the difference of the means
            divided by the root of the mean variance (Cohen's d, 1988).
        histograms: of the scores of ``text`` and ``image``.
        counts: how many scores each modality has.
    """

    text_mean: Estimate
    text_std: Estimate
    image_mean: Estimate
    image_std: Estimate
    overlap: Estimate
    distance: Estimate
    histograms: Histograms
    counts: Mapping[str, int]


def compare_scores(
    text_scores: npt.ArrayLike,
    image_scores: npt.ArrayLike,
    *,
    text_queries: npt.ArrayLike | None = None,
    image_queries: npt.ArrayLike | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> ScoreComparison:
    """Compare the scores that one scorer gives to texts and to images.

    Overlap and distance have no unit, so an embedder's cosines can be compared with a reranker's
    logits or probabilities.

    Args:
        text_scores: of texts, shape (n,).
        image_scores: of images, for the same queries, shape (m,).
        text_queries: the query of each text's score, shape (n,), numbers or words. The bootstrap
            draws all scores of a query together. Without this, it draws each score separately,
            which makes the intervals too narrow if queries have several scores.
        image_queries: the same for images, shape (m,); a query has the same name in both.
        rounds: as for ``bootstrap``.
        seed: as for ``bootstrap``.

    Raises:
        ValueError: a modality has fewer than 10 scores, or only equal ones; there is NaN or
            infinity; only one modality has queries, or there is not one for each score; or as for
            ``bootstrap``.
    """
    texts = finite("text_scores", text_scores).ravel()
    images = finite("image_scores", image_scores).ravel()
    n_texts, n_images = len(texts), len(images)
    if min(n_texts, n_images) < FEWEST:
        raise InvalidValueError(
            f"{n_texts} scores of texts and {n_images} of images: must be at least {FEWEST} of each"
        )
    if (text_queries is None) != (image_queries is None):
        raise InvalidValueError("give text_queries and image_queries, or neither")
    if text_queries is None:
        units = np.arange(n_texts + n_images)
        strata = np.repeat([0, 1], [n_texts, n_images])
    else:
        names = np.concatenate([np.asarray(text_queries), np.asarray(image_queries)])
        units = group_numbers("text_queries and image_queries", names, n_texts + n_images)
        strata = np.zeros(units.max() + 1, dtype=np.int64)
    scores = BinnedScores(
        {"text": Scores(texts, (units[:n_texts],)), "image": Scores(images, (units[n_texts:],))}
    )

    def figures(counts: FloatArray) -> dict[str, float]:
        text, image = scores.distributions(counts).values()
        spread = math.sqrt((text.std**2 + image.std**2) / 2)
        return {
            "text_mean": text.mean,
            "text_std": text.std,
            "image_mean": image.mean,
            "image_std": image.std,
            "overlap": histogram_overlap(text.shares, image.shares),
            "distance": (text.mean - image.mean) / spread if spread else math.nan,
        }

    return ScoreComparison(
        **bootstrap(figures, strata, rounds=rounds, seed=seed),
        histograms=scores.histograms(np.ones(len(strata))),
        counts={"text": n_texts, "image": n_images},
    )
