"""Measures of the modality gap between texts and images, each with an interval.

Only the directions of vectors count, so vectors are scaled to length 1 first. The name of a pair of
modalities, such as ``text_to_image``, gives the query's modality first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray, IntArray, checked_unit_rows
from llama_index_gap.gap.estimates import FEWEST, ROUNDS, Estimate, bootstrap
from llama_index_gap.gap.neighbours import own_modality_share
from llama_index_gap.gap.scores import BinnedScores, Histograms, Scores, histogram_overlap
from llama_index_gap.modality import MODALITIES, PLURAL

SAMPLE = 500
"""Maximum number of vectors to measure in each modality."""
LARGEST_DIMENSIONS = (1, 2, 4, 8)
_NO_SPREAD = 1e-6  # spread that rounding gives to equal unit vectors


@dataclass(frozen=True)
class ScoreFigures:
    """Scores of one pair of modalities.

    Attributes:
        mean: their mean.
        std: their standard deviation.
        count: how many there are.
    """

    mean: Estimate
    std: Estimate
    count: int


@dataclass(frozen=True)
class GapReport:
    """The modality gap of one set of vectors; to judge a mitigation, measure before and after it.

    A mitigation that reduces ``distance`` and ``separation`` but not ``bias``, ``overlap`` and
    ``spread_ratio`` has moved the means, but has not closed the gap.

    Attributes:
        measured: how many ``texts``, ``images``, ``queries`` and ``pairs`` were measured.
        k: number of places that ``bias`` counts.
        distance: ‖Δ‖, Δ = mean(images) − mean(texts) (Liang et al. 2022).
        text_spread: mean distance of a text from the texts' mean.
        image_spread: mean distance of an image from the images' mean.
        separation: the distance divided by the mean of the two spreads. Above 1, the gap dominates
            raw scores.
        rmg: relative modality gap (Schrodi et al., ICLR 2025): m/(m + (a + b)/2). Here m, a and b
            are the mean dissimilarity 1 − (cos + 1)/2 of a text and its image, of any two images,
            and of any two texts. It is 0 if pairs coincide, 0.5 if they are no nearer than others,
            and near 1 if each modality is compact and far from the other. None without pairs.
        gap_share: the share of ‖Δ‖² in the 1, 2, 4 and 8 dimensions where Δ is largest. This is the
            only figure that a rotation of the vectors changes. In CLIP a handful of dimensions
            holds most of the gap.
        scores: ``text_to_text``, ``text_to_image`` and ``image_to_image`` are scores of items that
            are not a pair; ``matched`` are scores of pairs, if there are any; ``query_to_text`` and
            ``query_to_image`` are scores of queries, if there are any.
        spread_ratio: the mean standard deviation of scores within the modalities, divided by the
            standard deviation across them. Above 1, centring is not enough to bring scores to one
            scale.
        bias: the share of a mixed index's top k that has the query's modality, for ``text`` queries
            and ``image`` queries; see ``own_modality_share``.
        corpus_share: that modality's share of the vectors that the queries could find.
        overlap: of the histograms of scores within and across modalities, for ``text`` queries and
            ``image`` queries.
        histograms: of ``scores``.
    """

    measured: Mapping[str, int]
    k: int
    distance: Estimate
    text_spread: Estimate
    image_spread: Estimate
    separation: Estimate
    rmg: Estimate | None
    gap_share: Mapping[int, Estimate]
    scores: Mapping[str, ScoreFigures]
    spread_ratio: Estimate
    bias: Mapping[str, Estimate]
    corpus_share: Mapping[str, float]
    overlap: Mapping[str, Estimate]
    histograms: Histograms


def measure_gap(
    texts: npt.ArrayLike,
    images: npt.ArrayLike,
    *,
    pairs: npt.ArrayLike | None = None,
    queries: npt.ArrayLike | None = None,
    k: int = 10,
    sample: int = SAMPLE,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> GapReport:
    """Measure the gap between texts and images.

    For the intervals, the bootstrap draws the text and the image of a pair together (and all
    captions of an image), and all other items separately. The numbers of texts, images and queries
    stay the same. For ``bias`` only the queries are drawn; the corpus is not resampled.

    Args:
        texts: shape (n, d).
        images: shape (m, d).
        pairs: row numbers of a text and an image that belong together, shape (l, 2).
        queries: of users, if they differ from the texts, shape (q, d). By default the texts are the
            queries, and do not find themselves.
        k: number of places in a ranking.
        sample: measure at most this many texts, images and queries, drawn at random, pairs first.
            The corpus for ``bias`` is then this sample.
        rounds: as for ``bootstrap``.
        seed: of all random draws.

    Raises:
        ValueError: there are fewer than 10 texts, images or queries; the vectors differ in
            dimension, are all equal, or hold NaN, infinity or a zero vector; a pair names a row
            that does not exist; ``k``, ``sample`` or an argument of ``bootstrap`` is out of range.
    """
    vectors = _Vectors.checked(texts, images, pairs, queries)
    if sample < FEWEST:
        raise InvalidValueError(f"sample={sample}: must be at least {FEWEST}")
    vectors = vectors.drawn(sample, np.random.default_rng(seed))
    gap = _Gap(vectors, k)
    estimates = bootstrap(gap.figures, gap.strata, rounds=rounds, seed=seed)
    n_texts, n_images = len(vectors.texts), len(vectors.images)
    itself = vectors.queries is None
    return GapReport(
        measured={
            "texts": n_texts,
            "images": n_images,
            "queries": 0 if vectors.queries is None else len(vectors.queries),
            "pairs": len(vectors.pairs),
        },
        k=k,
        distance=estimates["distance"],
        text_spread=estimates["text_spread"],
        image_spread=estimates["image_spread"],
        separation=estimates["separation"],
        rmg=estimates.get("rmg"),
        gap_share={n: estimates[f"gap_share {n}"] for n in gap.largest},
        scores={
            name: ScoreFigures(
                estimates[f"{name} mean"], estimates[f"{name} std"], len(scores.values)
            )
            for name, scores in gap.binned.scores.items()
        },
        spread_ratio=estimates["spread_ratio"],
        bias={modality: estimates[f"bias {modality}"] for modality in MODALITIES},
        corpus_share={
            "text": (n_texts - itself) / (n_texts + n_images - itself),
            "image": (n_images - 1) / (n_texts + n_images - 1),
        },
        overlap={modality: estimates[f"overlap {modality}"] for modality in MODALITIES},
        histograms=gap.binned.histograms(np.ones(len(gap.strata))),
    )


@dataclass(frozen=True)
class _Vectors:
    """The vectors to measure, of length 1."""

    texts: FloatArray
    images: FloatArray
    pairs: IntArray
    queries: FloatArray | None

    @classmethod
    def checked(
        cls,
        texts: npt.ArrayLike,
        images: npt.ArrayLike,
        pairs: npt.ArrayLike | None,
        queries: npt.ArrayLike | None,
    ) -> _Vectors:
        named = {"texts": texts, "images": images}
        if queries is not None:
            named["queries"] = queries
        rows = dict(zip(named, checked_unit_rows(**named), strict=True))
        for name, vectors in rows.items():
            if len(vectors) < FEWEST:
                raise InvalidValueError(
                    f"{len(vectors)} {name}: at least {FEWEST} are needed to measure a gap"
                )
        given = np.empty((0, 2), dtype=np.int64) if pairs is None else np.asarray(pairs)
        if given.ndim != 2 or given.shape[1] != 2:
            raise InvalidValueError(f"pairs of shape {given.shape}: must be (n, 2), text and image")
        if len(given) and not np.issubdtype(given.dtype, np.integer):
            raise InvalidValueError(f"pairs of {given.dtype}: must be row numbers, which are whole")
        for modality, column in zip(MODALITIES, given.T, strict=True):
            count = len(rows[PLURAL[modality]])
            if len(column) and not 0 <= column.min() <= column.max() < count:
                raise InvalidValueError(
                    f"pairs, {PLURAL[modality]}: rows {column.min()} to {column.max()}, but there "
                    f"are {count}"
                )
        unique = np.unique(given.astype(np.int64), axis=0)
        return cls(rows["texts"], rows["images"], unique, rows.get("queries"))

    def drawn(self, size: int, rng: np.random.Generator) -> _Vectors:
        """A random sample of at most ``size`` texts, images and queries; pairs come first."""
        all_rows = [self.texts, self.images, *([] if self.queries is None else [self.queries])]
        if all(len(rows) <= size for rows in all_rows):
            return self
        some = rng.permutation(len(self.pairs))[:size]
        kept = []
        for column, rows in enumerate((self.texts, self.images)):
            first = np.unique(self.pairs[some, column])
            others = rng.permutation(np.setdiff1d(np.arange(len(rows)), first))
            kept.append(np.sort(np.r_[first, others[: size - len(first)]]))
        both = np.isin(self.pairs[:, 0], kept[0]) & np.isin(self.pairs[:, 1], kept[1])
        pairs = np.column_stack(
            [np.searchsorted(rows, self.pairs[both, column]) for column, rows in enumerate(kept)]
        )
        queries = self.queries
        if queries is not None:
            queries = queries[np.sort(rng.permutation(len(queries))[:size])]
        return _Vectors(self.texts[kept[0]], self.images[kept[1]], pairs, queries)


class _Gap:
    """All figures, as functions of each unit's count."""

    def __init__(self, vectors: _Vectors, k: int) -> None:
        self.texts, self.images = vectors.texts, vectors.images
        self.units, self.strata = _units(vectors)
        self.largest = [n for n in LARGEST_DIMENSIONS if n <= self.texts.shape[1]]
        rows = {"text": self.texts, "image": self.images}
        pairs = [("text", "text"), ("text", "image"), ("image", "image")]
        if vectors.queries is not None:
            rows["query"] = vectors.queries
            pairs += [("query", "text"), ("query", "image")]
        scores = {}
        for one, other in pairs:
            # Only scores of items that are not a pair; within a modality, each score only once.
            counted = self.units[one][:, None] != self.units[other][None, :]
            if one == other:
                counted = np.triu(counted)
            row, column = np.nonzero(counted)
            scores[f"{one}_to_{other}"] = Scores(
                (rows[one] @ rows[other].T)[counted],
                (self.units[one][row], self.units[other][column]),
            )
        if len(vectors.pairs):
            text, image = vectors.pairs.T
            matched = (self.texts[text] * self.images[image]).sum(axis=1)
            scores["matched"] = Scores(matched, (self.units["text"][text],))
        self.binned = BinnedScores(scores)
        self.asking = "text" if vectors.queries is None else "query"
        self.own_share = {
            "text": own_modality_share(
                rows[self.asking], self.texts, self.images, k, itself=vectors.queries is None
            ),
            "image": own_modality_share(self.images, self.images, self.texts, k, itself=True),
        }

    def figures(self, counts: FloatArray) -> dict[str, float]:
        weights = {name: counts[units] for name, units in self.units.items()}
        means, spreads = [], []
        for rows, row_weights in ((self.texts, weights["text"]), (self.images, weights["image"])):
            mean = row_weights @ rows / row_weights.sum()
            # ‖x − mean‖² of unit vectors, without a copy of all of them.
            squares = 1 - 2 * (rows @ mean) + mean @ mean
            spreads.append(float(np.average(np.sqrt(squares.clip(0)), weights=row_weights)))
            means.append(mean)
        if not max(spreads) > _NO_SPREAD:
            raise InvalidValueError(
                "all texts are the same vector, and so are all images: there is nothing to measure"
            )
        delta = means[1] - means[0]
        distance = float(np.linalg.norm(delta))
        scores = self.binned.distributions(counts)
        within = (scores["text_to_text"].std + scores["image_to_image"].std) / 2
        across = scores["text_to_image"].std
        asking = self.asking
        figures = {
            "distance": distance,
            "text_spread": spreads[0],
            "image_spread": spreads[1],
            "separation": distance / (sum(spreads) / 2),
            "spread_ratio": within / across if across else math.nan,
            "bias text": float(np.average(self.own_share["text"], weights=weights[asking])),
            "bias image": float(np.average(self.own_share["image"], weights=weights["image"])),
            "overlap text": histogram_overlap(
                scores[f"{asking}_to_text"].shares, scores[f"{asking}_to_image"].shares
            ),
            "overlap image": histogram_overlap(
                scores["image_to_image"].shares, scores["text_to_image"].shares
            ),
        }
        if "matched" in scores:
            m, a, b = (
                max(0.0, (1 - scores[name].mean) / 2)
                for name in ("matched", "image_to_image", "text_to_text")
            )
            total = m + (a + b) / 2
            figures["rmg"] = m / total if total else math.nan
        squares = np.sort(np.square(delta))[::-1]
        for n in self.largest:
            figures[f"gap_share {n}"] = (
                float(squares[:n].sum() / squares.sum()) if squares[0] else 0.0
            )
        for name, distribution in scores.items():
            figures[f"{name} mean"] = distribution.mean
            figures[f"{name} std"] = distribution.std
        return figures


def _units(vectors: _Vectors) -> tuple[dict[str, IntArray], IntArray]:
    """The unit of each text, image and query, and each unit's stratum."""
    n_texts, n_images = len(vectors.texts), len(vectors.images)
    n = n_texts + n_images
    links = (np.ones(len(vectors.pairs)), (vectors.pairs[:, 0], vectors.pairs[:, 1] + n_texts))
    n_units, found = connected_components(coo_array(links, shape=(n, n)), directed=False)
    unit_of = found.astype(np.int64)
    units = {"text": unit_of[:n_texts], "image": unit_of[n_texts:]}
    strata = np.zeros(n_units, dtype=np.int64)
    strata[units["text"]] += 1
    strata[units["image"]] += 2
    if vectors.queries is not None:
        units["query"] = n_units + np.arange(len(vectors.queries))
        strata = np.r_[strata, np.full(len(vectors.queries), 4)]
    return units, strata
