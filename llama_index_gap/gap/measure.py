"""Measuring the modality gap: figures of vectors and of scores, each with an interval.

Vectors are rows; only their directions count, so they are brought to length 1 first. *Scores* are
then cosines, or whatever another scorer (a reranker) gives. A pair of modalities is written
``text_to_image``: a text asks, images are found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import BoolArray, FloatArray, IntArray
from llama_index_gap.gap.estimates import ROUNDS, Estimate, bootstrap

SAMPLE = 500
"""Vectors of each modality that are measured, at most."""
FEWEST = 10
"""With fewer vectors or scores than this, an interval says nothing."""
LARGEST_DIMENSIONS = (1, 2, 4, 8)
_SCORES_AT_ONCE = 2**22  # 32 MB
_NO_SPREAD = 1e-6  # what rounding leaves of unit vectors that are equal


# --- figures of vectors --------------------------------------------------------------------------


@dataclass(frozen=True)
class Separation:
    """How far two clouds of vectors lie apart, against how wide they are.

    Attributes:
        distance: ‖Δ‖, Δ = mean(images) − mean(texts).
        text_spread: mean distance of a text from the mean of all texts.
        image_spread: mean distance of an image from the mean of all images.
    """

    distance: float
    text_spread: float
    image_spread: float

    @property
    def ratio(self) -> float:
        """The distance over the mean of the spreads; above 1 the gap dominates raw scores."""
        return self.distance / ((self.text_spread + self.image_spread) / 2)


def cloud_separation(texts: npt.ArrayLike, images: npt.ArrayLike) -> Separation:
    """The distance between the modalities' means (Liang et al. 2022), and their spreads.

    Args:
        texts: shape (n, d).
        images: shape (m, d).

    Raises:
        ValueError: not vectors of one dimension; all texts or all images are the same.
    """
    text, image = _unit_rows(texts=texts, images=images)
    return _separation(text, image, np.ones(len(text)), np.ones(len(image)))


def relative_modality_gap(texts: npt.ArrayLike, images: npt.ArrayLike) -> float:
    """RMG (Schrodi et al., ICLR 2025): 0.5 where matches are no nearer than any others.

    m/(m + (a + b)/2), with m, a and b the mean of the dissimilarity 1 − (cos + 1)/2 of matched
    text and image, of two images, and of two texts. 0 where matches coincide; towards 1 where
    each modality lies close together and far from the other.

    Args:
        texts: shape (n, d), n at least 2.
        images: shape (n, d); row i belongs to text i.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: not as many texts as images, fewer than two, not vectors of one dimension, or
            all the same.
    """
    text, image = _unit_rows(texts=texts, images=images)
    n = len(text)
    if n != len(image) or n < 2:
        raise InvalidValueError(
            f"{n} texts and {len(image)} images: row i of each makes a pair, and it takes two pairs"
        )
    of_images, of_texts = (
        (np.square(rows.sum(axis=0)).sum() - n) / (n * (n - 1)) for rows in (image, text)
    )
    return _rmg(float((text * image).sum() / n), float(of_images), float(of_texts))


def gap_share(texts: npt.ArrayLike, images: npt.ArrayLike, largest: int) -> float:
    """How much of the gap lies in few dimensions: its squared length there, over all of it.

    Unlike the other figures it is about the model's own axes, and changes where vectors are
    rotated. In CLIP a handful of dimensions holds most of the gap.

    Args:
        texts: shape (n, d).
        images: shape (m, d).
        largest: how many of the d dimensions, those where Δ is largest.

    Returns:
        Between 0 and 1; 0 where the means are the same.

    Raises:
        ValueError: ``largest`` is not between 1 and d, or these are not vectors of one dimension.
    """
    text, image = _unit_rows(texts=texts, images=images)
    if not 1 <= largest <= text.shape[1]:
        raise InvalidValueError(f"largest={largest}: must lie between 1 and {text.shape[1]}")
    return _share_of_largest(image.mean(axis=0) - text.mean(axis=0), largest)


def own_modality_share(
    queries: npt.ArrayLike,
    own: npt.ArrayLike,
    other: npt.ArrayLike,
    k: int = 10,
    *,
    itself: npt.ArrayLike | None = None,
) -> FloatArray:
    """The share of a mixed index's best k that has the query's own modality, for each query.

    Its mean is the intra-modal bias rate, to be read next to the corpus' own share of that modality
    (intra-modal ranking bias: Li et al. 2025, arXiv 2507.19054). Equal scores share their places.

    Args:
        queries: shape (n, d).
        own: the vectors of the queries' modality in the index, shape (m, d).
        other: those of the other modality, shape (l, d).
        k: how many places.
        itself: the row of ``own`` that each query is, and that is left out for it, shape (n,).

    Returns:
        Shape (n,), between 0 and 1.

    Raises:
        ValueError: not vectors of one dimension, or fewer than k of them to be found.
    """
    query, same, cross = _unit_rows(queries=queries, own=own, other=other)
    rows = None if itself is None else _checked_rows("itself", itself, len(query), len(same))
    _check_k(k, len(same) + len(cross) - (rows is not None))
    shares = []
    for at, scores in _blocks(query, np.vstack([same, cross])):
        if rows is not None:
            scores[np.arange(len(scores)), rows[at]] = -np.inf
        is_own = np.broadcast_to(np.arange(scores.shape[1]) < len(same), scores.shape)
        shares.append(_among_best(scores, is_own, k) / k)
    return np.concatenate(shares)


def recall_of_neighbours(vectors: npt.ArrayLike, labels: npt.ArrayLike, k: int = 10) -> FloatArray:
    """Recall@k of each item among the others of its modality, itself left out.

    Items with the same label are relevant to each other; pairs are written by giving both the same
    label, and an item that belongs to nothing a label of its own. Recall is capped: of the
    min(k, relevant) that the k places can hold (as in BEIR, Thakur et al. 2021), so that 1 can
    always be reached. Equal scores share their places.

    Args:
        vectors: shape (n, d).
        labels: numbers or words, shape (n,).
        k: how many places.

    Returns:
        Shape (n,), between 0 and 1; NaN for an item that no other shares the label of.

    Raises:
        ValueError: not one label for each vector, or fewer than k vectors to be found.
    """
    (rows,) = _unit_rows(vectors=vectors)
    groups = _groups("labels", labels, len(rows))
    _check_k(k, len(rows) - 1)
    relevant = np.bincount(groups)[groups] - 1
    found = []
    for at, scores in _blocks(rows, rows):
        scores[np.arange(len(scores)), np.arange(len(rows))[at]] = -np.inf
        found.append(_among_best(scores, groups[at][:, None] == groups[None, :], k))
    recall = np.full(len(rows), np.nan)
    np.divide(np.concatenate(found), np.minimum(relevant, k), out=recall, where=relevant > 0)
    return recall


@dataclass(frozen=True)
class RecallComparison:
    """How well two encoders bring items of one modality together.

    Attributes:
        k: recall is counted in so many places.
        model: mean recall of the encoder in question.
        reference: mean recall of the dedicated encoder.
        delta: model − reference: below 0, a query by this modality is better asked there.
        queries: how many items were asked for; those that share their label with another.
        alone: how many were not, since they do not.
    """

    k: int
    model: Estimate
    reference: Estimate
    delta: Estimate
    queries: int
    alone: int

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return asdict(self)


def compare_recall(
    vectors: npt.ArrayLike,
    reference: npt.ArrayLike,
    labels: npt.ArrayLike,
    k: int = 10,
    *,
    rounds: int = ROUNDS,
    level: float = 0.95,
    seed: int = 0,
) -> RecallComparison:
    """The within-modal recall delta: of image→image, or text→text, against a dedicated encoder.

    See ``recall_of_neighbours``. The intervals are over labels: items that belong together are
    drawn together, and both encoders get the same draws. What they search stays as it is.

    Args:
        vectors: this model's, of one modality, shape (n, d).
        reference: a dedicated encoder's, of the same items in the same order, shape (n, e).
        labels: what belongs together, shape (n,).
        k: how many places.
        rounds: as for ``bootstrap``.
        level: as for ``bootstrap``.
        seed: as for ``bootstrap``.

    Raises:
        ValueError: not the same number of items, no label that two share, or as for
            ``recall_of_neighbours`` and ``bootstrap``.
    """
    groups = _groups("labels", labels, len(np.asarray(vectors)))
    if len(np.asarray(reference)) != len(groups):
        raise InvalidValueError(
            f"{len(groups)} vectors and {len(np.asarray(reference))} of the reference: row i of "
            "each must be the same item"
        )
    ours, theirs = (recall_of_neighbours(rows, groups, k) for rows in (vectors, reference))
    asked = np.isfinite(ours)
    if not asked.any():
        raise InvalidValueError("no two items share a label, so that there is nothing to be found")
    ours, theirs, units = (
        ours[asked],
        theirs[asked],
        np.unique(groups[asked], return_inverse=True)[1],
    )

    def means(counts: FloatArray) -> dict[str, float]:
        weights = counts[units]
        model, other = (float(weights @ recall / weights.sum()) for recall in (ours, theirs))
        return {"model": model, "reference": other, "delta": model - other}

    estimates = bootstrap(means, np.zeros(units.max() + 1), rounds=rounds, level=level, seed=seed)
    return RecallComparison(k, **estimates, queries=int(asked.sum()), alone=int((~asked).sum()))


# --- figures of scores ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Histograms:
    """How scores of several sorts are distributed.

    Attributes:
        edges: of the bins, the same for all sorts, shape (bins + 1,).
        shares: for each sort the share of its scores in each bin, shape (bins,); adds up to 1.
    """

    edges: tuple[float, ...]
    shares: Mapping[str, tuple[float, ...]]


def score_histograms(
    scores: Mapping[str, npt.ArrayLike], bins: int | npt.ArrayLike = 50
) -> Histograms:
    """Histograms of several sorts of scores over the same bins.

    Args:
        scores: by sort, of any shape.
        bins: how many, of equal width from the lowest score of all to the highest; or their edges,
            ascending, with what lies outside counted in the first and the last.

    Raises:
        ValueError: no scores, NaN or infinity, or no bins.
    """
    values = {name: _finite(name, of_sort) for name, of_sort in scores.items()}
    edges = _edges(values.values(), bins)
    shares = {
        name: _shares(_bin_of(of_sort, edges), np.ones(of_sort.shape), len(edges) - 1)
        for name, of_sort in values.items()
    }
    return Histograms(
        tuple(edges.tolist()), {name: tuple(share.tolist()) for name, share in shares.items()}
    )


def histogram_overlap(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """What two histograms have in common: Σ min(pᵢ, qᵢ) (Inman and Bradley 1989).

    Args:
        first: the share in each bin, shape (bins,), adding up to 1.
        second: the same for the same bins.

    Returns:
        0 for histograms that share no bin, 1 for equal ones.
    """
    return float(np.minimum(first, second).sum())


def standardised_distance(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """By how many standard deviations the first scores are higher: Cohen's d (1988).

    The difference of the means over the root of the mean of both variances.

    Args:
        first: scores, of any shape.
        second: scores, of any shape.

    Raises:
        ValueError: all scores on both sides are the same as the others there, NaN or infinity.
    """
    one, two = _finite("first", first), _finite("second", second)
    if np.ptp(one) == np.ptp(two) == 0:
        raise InvalidValueError("the scores have no spread on either side to measure a distance by")
    return _distance(one, two, np.ones(one.shape), np.ones(two.shape))


@dataclass(frozen=True)
class ScoreComparison:
    """Whether a scorer gives texts and images scores on one scale.

    Attributes:
        text_mean: mean of the text side's scores.
        text_std: their standard deviation.
        image_mean: mean of the image side's scores.
        image_std: their standard deviation.
        overlap: see ``histogram_overlap``; 1 is no gap.
        distance: see ``standardised_distance``; above 0 where texts score higher.
        histograms: of ``text`` and ``image``.
        counts: how many scores of each.
    """

    text_mean: Estimate
    text_std: Estimate
    image_mean: Estimate
    image_std: Estimate
    overlap: Estimate
    distance: Estimate
    histograms: Histograms
    counts: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return asdict(self)


def compare_scores(
    text_scores: npt.ArrayLike,
    image_scores: npt.ArrayLike,
    *,
    text_queries: npt.ArrayLike | None = None,
    image_queries: npt.ArrayLike | None = None,
    bins: int | npt.ArrayLike = 50,
    rounds: int = ROUNDS,
    level: float = 0.95,
    seed: int = 0,
) -> ScoreComparison:
    """Compare what one scorer gives to texts and to images, so that scorers can be compared.

    Overlap and distance have no unit: an embedder's cosines and a reranker's logits or
    probabilities can stand side by side.

    Args:
        text_scores: of texts, shape (n,).
        image_scores: of images, for the same queries, shape (m,).
        text_queries: the query of each text's score, shape (n,), numbers or words. Scores of one
            query are drawn together; without, each score by itself, which makes the intervals too
            narrow where a query has several.
        image_queries: the same for images, shape (m,); a query has the same name here and there.
        bins: as for ``score_histograms``.
        rounds: as for ``bootstrap``.
        level: as for ``bootstrap``.
        seed: as for ``bootstrap``.

    Raises:
        ValueError: fewer than 10 scores of a side or none that differ, NaN or infinity, queries
            for one side only or not one for each score, or as for ``bootstrap``.
    """
    texts = _finite("text_scores", text_scores).ravel()
    images = _finite("image_scores", image_scores).ravel()
    if min(len(texts), len(images)) < FEWEST:
        raise InvalidValueError(
            f"{len(texts)} scores of texts and {len(images)} of images: it takes {FEWEST} of each"
        )
    if (text_queries is None) != (image_queries is None):
        raise InvalidValueError("give text_queries and image_queries, or neither")
    if text_queries is None:
        units = np.arange(len(texts) + len(images))
        strata = np.repeat([0, 1], [len(texts), len(images)])
    else:
        names = np.concatenate([np.asarray(text_queries), np.asarray(image_queries)])
        units = _groups("text_queries and image_queries", names, len(texts) + len(images))
        strata = np.zeros(units.max() + 1, dtype=np.int64)
    edges = _edges((texts, images), bins)
    text_bins, image_bins = _bin_of(texts, edges), _bin_of(images, edges)

    def figures(counts: FloatArray) -> dict[str, float]:
        of_texts, of_images = np.split(counts[units], [len(texts)])
        text, image = _statistics(texts, of_texts), _statistics(images, of_images)
        return {
            "text_mean": text[0],
            "text_std": text[1],
            "image_mean": image[0],
            "image_std": image[1],
            "overlap": histogram_overlap(
                _shares(text_bins, of_texts, len(edges) - 1),
                _shares(image_bins, of_images, len(edges) - 1),
            ),
            "distance": _distance(texts, images, of_texts, of_images),
        }

    return ScoreComparison(
        **bootstrap(figures, strata, rounds=rounds, level=level, seed=seed),
        histograms=score_histograms({"text": texts, "image": images}, edges),
        counts={"text": len(texts), "image": len(images)},
    )


# --- all figures of one set of vectors -----------------------------------------------------------


@dataclass(frozen=True)
class ScoreFigures:
    """Scores of one pair of modalities.

    Attributes:
        mean: of all of them.
        std: their standard deviation.
        count: how many there are.
    """

    mean: Estimate
    std: Estimate
    count: int


@dataclass(frozen=True)
class GapReport:
    """The modality gap of one set of vectors; before and after a mitigation are two of these.

    A mitigation that brings ``distance`` and ``separation`` down but leaves ``bias``, ``overlap``
    and ``spread_ratio`` has moved the means, and closed no gap.

    Attributes:
        given: how many ``texts``, ``images``, ``queries`` and ``pairs`` there were.
        measured: how many of them were drawn to be measured.
        k: places that ``bias`` is counted in.
        distance: ‖Δ‖ between the modalities' means; see ``cloud_separation``.
        text_spread: mean distance of a text from the texts' mean.
        image_spread: mean distance of an image from the images' mean.
        separation: the distance over the mean of the spreads.
        rmg: see ``relative_modality_gap``; of matches, any two images and any two texts. None
            without pairs.
        gap_share: the share of ‖Δ‖² in the 1, 2, 4 and 8 largest dimensions; see ``gap_share``.
        scores: ``text_to_text``, ``text_to_image`` and ``image_to_image`` of what does not belong
            together; ``matched`` of what does, where there are pairs; and ``query_to_text`` and
            ``query_to_image``, where there are queries.
        spread_ratio: the mean of the standard deviations within the modalities over the one across
            them. Above 1 centring is not enough to bring scores to one scale.
        bias: the share of the best k of a mixed index that has the query's modality, for ``text``
            queries and ``image`` queries; see ``own_modality_share``.
        corpus_share: the share of that modality among what they could find.
        overlap: of the histograms of scores within and across modalities, for ``text`` queries and
            ``image`` queries.
        histograms: of ``scores``.
        level: of all intervals.
    """

    given: Mapping[str, int]
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
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return asdict(self)


def measure_gap(
    texts: npt.ArrayLike,
    images: npt.ArrayLike,
    *,
    pairs: npt.ArrayLike | None = None,
    queries: npt.ArrayLike | None = None,
    k: int = 10,
    bins: int | npt.ArrayLike = 50,
    sample: int = SAMPLE,
    rounds: int = ROUNDS,
    level: float = 0.95,
    seed: int = 0,
) -> GapReport:
    """Measure the gap between the texts and the images of an index, or of any data.

    Intervals: a text and an image that make a pair are drawn together (as are all captions of an
    image), all others by themselves, texts, images and queries each keeping their number. In
    ``bias`` only the queries are drawn; the corpus stays as it is.

    Args:
        texts: shape (n, d).
        images: shape (m, d).
        pairs: rows of a text and of an image that belong together, shape (l, 2).
        queries: what users ask, if that is not like the texts, shape (q, d). Without, each text
            asks for the others.
        k: places of a ranking.
        bins: as for ``score_histograms``.
        sample: measure at most so many texts, images, queries, drawn at random, pairs first. The
            corpus that ``bias`` is measured in is then this sample.
        rounds: as for ``bootstrap``.
        level: as for ``bootstrap``.
        seed: of all that is drawn.

    Raises:
        ValueError: fewer than 10 of a sort, not vectors of one dimension, all the same, NaN or
            infinity, or a zero vector; pairs that name no rows; ``k``, ``sample`` or an argument
            of ``bootstrap`` out of range.
    """
    given = _Vectors.checked(texts, images, pairs, queries)
    if sample < FEWEST:
        raise InvalidValueError(f"sample={sample}: must be at least {FEWEST}")
    vectors = given.drawn(sample, np.random.default_rng(seed))
    _check_k(k, len(vectors.texts) + len(vectors.images) - 1)
    gap = _Gap(vectors, k, bins)
    estimates = bootstrap(gap.figures, gap.strata, rounds=rounds, level=level, seed=seed)
    n_texts, n_images = len(vectors.texts), len(vectors.images)
    itself = vectors.queries is None
    once = np.ones(len(gap.strata))
    return GapReport(
        given=given.counts(),
        measured=vectors.counts(),
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
            for name, scores in gap.scores.items()
        },
        spread_ratio=estimates["spread_ratio"],
        bias={side: estimates[f"bias {side}"] for side in ("text", "image")},
        corpus_share={
            "text": (n_texts - itself) / (n_texts + n_images - itself),
            "image": (n_images - 1) / (n_texts + n_images - 1),
        },
        overlap={side: estimates[f"overlap {side}"] for side in ("text", "image")},
        histograms=Histograms(
            tuple(gap.edges.tolist()),
            {
                name: tuple(gap.shares(name, scores.weights(once)).tolist())
                for name, scores in gap.scores.items()
            },
        ),
        level=level,
    )


@dataclass(frozen=True)
class _Vectors:
    """What is to be measured; rows of length 1."""

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
        rows = dict(zip(named, _unit_rows(**named), strict=True))
        for name, of_sort in rows.items():
            if len(of_sort) < FEWEST:
                raise InvalidValueError(
                    f"{len(of_sort)} {name}: it takes at least {FEWEST} to measure"
                )
        checked = np.empty((0, 2), dtype=np.int64) if pairs is None else np.asarray(pairs)
        if checked.ndim != 2 or checked.shape[1] != 2:
            raise InvalidValueError(
                f"pairs of shape {checked.shape}: must be (n, 2), text and image"
            )
        columns = [
            _checked_rows(f"pairs, {name}", checked[:, side], len(checked), len(rows[name]))
            for side, name in enumerate(("texts", "images"))
        ]
        unique = np.unique(np.column_stack(columns), axis=0)
        return cls(rows["texts"], rows["images"], unique, rows.get("queries"))

    def drawn(self, size: int, rng: np.random.Generator) -> _Vectors:
        """At most so many of each sort; those that make pairs first."""
        if all(count <= size for name, count in self.counts().items() if name != "pairs"):
            return self
        some = rng.permutation(len(self.pairs))[:size]
        kept = []
        for side, rows in enumerate((self.texts, self.images)):
            first = np.unique(self.pairs[some, side])
            others = rng.permutation(np.setdiff1d(np.arange(len(rows)), first))
            kept.append(np.sort(np.r_[first, others[: size - len(first)]]))
        both = np.isin(self.pairs[:, 0], kept[0]) & np.isin(self.pairs[:, 1], kept[1])
        pairs = np.column_stack(
            [np.searchsorted(rows, self.pairs[both, side]) for side, rows in enumerate(kept)]
        )
        queries = self.queries
        if queries is not None:
            queries = queries[np.sort(rng.permutation(len(queries))[:size])]
        return _Vectors(self.texts[kept[0]], self.images[kept[1]], pairs, queries)

    def counts(self) -> dict[str, int]:
        return {
            "texts": len(self.texts),
            "images": len(self.images),
            "queries": 0 if self.queries is None else len(self.queries),
            "pairs": len(self.pairs),
        }


class _Gap:
    """All figures, as functions of how often each unit counts."""

    def __init__(self, vectors: _Vectors, k: int, bins: int | npt.ArrayLike) -> None:
        self.texts, self.images = vectors.texts, vectors.images
        self.units, self.strata = _units(vectors)
        self.largest = [n for n in LARGEST_DIMENSIONS if n <= self.texts.shape[1]]
        rows = {"text": self.texts, "image": self.images}
        asked = [("text", "text"), ("text", "image"), ("image", "image")]
        if vectors.queries is not None:
            rows["query"] = vectors.queries
            asked += [("query", "text"), ("query", "image")]
        self.scores = {
            f"{one}_to_{other}": _Scores.between(
                rows[one], rows[other], self.units[one], self.units[other]
            )
            for one, other in asked
        }
        if len(vectors.pairs):
            text, image = vectors.pairs.T
            of_matches = (self.texts[text] * self.images[image]).sum(axis=1)
            self.scores["matched"] = _Scores(of_matches, (self.units["text"][text],))
        self.edges = _edges([of_pair.values for of_pair in self.scores.values()], bins)
        self.bins = {
            name: _bin_of(of_pair.values, self.edges) for name, of_pair in self.scores.items()
        }
        self.asking = "text" if vectors.queries is None else "query"
        itself = np.arange(len(self.texts)) if vectors.queries is None else None
        self.own_share = {
            "text": own_modality_share(
                rows[self.asking], self.texts, self.images, k, itself=itself
            ),
            "image": own_modality_share(
                self.images, self.images, self.texts, k, itself=np.arange(len(self.images))
            ),
        }

    def figures(self, counts: FloatArray) -> dict[str, float]:
        of = {side: counts[units] for side, units in self.units.items()}
        weights = {name: of_pair.weights(counts) for name, of_pair in self.scores.items()}
        statistics = {
            name: _statistics(of_pair.values, weights[name])
            for name, of_pair in self.scores.items()
        }
        mean, std = ({name: pair[at] for name, pair in statistics.items()} for at in (0, 1))
        clouds = _separation(self.texts, self.images, of["text"], of["image"])
        delta = _mean(self.images, of["image"]) - _mean(self.texts, of["text"])
        shares = {name: self.shares(name, weights[name]) for name in self.scores}
        within = (std["text_to_text"] + std["image_to_image"]) / 2
        ask = self.asking
        figures = {
            "distance": clouds.distance,
            "text_spread": clouds.text_spread,
            "image_spread": clouds.image_spread,
            "separation": clouds.ratio,
            "spread_ratio": within / std["text_to_image"],
            "bias text": float(np.average(self.own_share["text"], weights=of[ask])),
            "bias image": float(np.average(self.own_share["image"], weights=of["image"])),
            "overlap text": histogram_overlap(shares[f"{ask}_to_text"], shares[f"{ask}_to_image"]),
            "overlap image": histogram_overlap(shares["image_to_image"], shares["text_to_image"]),
        }
        if "matched" in mean:
            figures["rmg"] = _rmg(mean["matched"], mean["image_to_image"], mean["text_to_text"])
        figures |= {f"gap_share {n}": _share_of_largest(delta, n) for n in self.largest}
        figures |= {f"{name} mean": value for name, value in mean.items()}
        figures |= {f"{name} std": value for name, value in std.items()}
        return figures

    def shares(self, name: str, weights: FloatArray) -> FloatArray:
        return _shares(self.bins[name], weights, len(self.edges) - 1)


@dataclass(frozen=True)
class _Scores:
    """Scores, shape (n,), and the two units behind each; or the one, for a pair's own score."""

    values: FloatArray
    units: tuple[IntArray, ...]

    @classmethod
    def between(
        cls, rows: FloatArray, columns: FloatArray, row_units: IntArray, column_units: IntArray
    ) -> _Scores:
        """Of all that do not belong together, and of two of one modality once."""
        counted = row_units[:, None] != column_units[None, :]
        if columns is rows:
            counted = np.triu(counted)
        row, column = np.nonzero(counted)
        return cls((rows @ columns.T)[counted], (row_units[row], column_units[column]))

    def weights(self, counts: FloatArray) -> FloatArray:
        """How often each score counts."""
        weights, *others = (counts[units] for units in self.units)
        for other in others:
            weights = weights * other
        return weights


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


# --- the arithmetic, weighted --------------------------------------------------------------------


def _mean(rows: FloatArray, weights: FloatArray) -> FloatArray:
    mean: FloatArray = weights @ rows / weights.sum()
    return mean


def _separation(
    texts: FloatArray, images: FloatArray, text_weights: FloatArray, image_weights: FloatArray
) -> Separation:
    means, spreads = [], []
    for rows, weights in ((texts, text_weights), (images, image_weights)):
        mean = _mean(rows, weights)
        # ‖x − mean‖² of unit vectors, without a copy of all of them.
        squares = 1 - 2 * (rows @ mean) + mean @ mean
        spreads.append(float(np.average(np.sqrt(squares.clip(0)), weights=weights)))
        means.append(mean)
    if not max(spreads) > _NO_SPREAD:
        raise InvalidValueError(
            "all texts are the same vector, and so are all images: nothing to measure"
        )
    return Separation(float(np.linalg.norm(means[1] - means[0])), *spreads)


def _rmg(matched: float, image_image: float, text_text: float) -> float:
    """From the mean cosines."""
    m, a, b = (max(0.0, (1 - cosine) / 2) for cosine in (matched, image_image, text_text))
    total = m + (a + b) / 2
    if not total > _NO_SPREAD**2:
        raise InvalidValueError("all texts and images are the same vector: nothing to measure")
    return m / total


def _share_of_largest(delta: FloatArray, largest: int) -> float:
    squares = np.sort(np.square(delta))[::-1]
    return float(squares[:largest].sum() / squares.sum()) if squares[0] else 0.0


def _statistics(scores: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """Mean and standard deviation."""
    total = weights.sum()
    mean = np.vdot(weights, scores) / total
    variance = np.vdot(weights, np.square(scores - mean)) / total
    return float(mean), float(np.sqrt(variance))


def _distance(
    first: FloatArray, second: FloatArray, of_first: FloatArray, of_second: FloatArray
) -> float:
    one, two = _statistics(first, of_first), _statistics(second, of_second)
    spread = math.sqrt((one[1] ** 2 + two[1] ** 2) / 2)
    return (one[0] - two[0]) / spread if spread else math.nan


def _edges(scores: Iterable[FloatArray], bins: int | npt.ArrayLike) -> FloatArray:
    every = np.concatenate([of_sort.ravel() for of_sort in scores])
    edges = np.asarray(np.histogram_bin_edges(every, bins), dtype=np.float64)
    if len(edges) < 2:
        raise InvalidValueError("bins: a single bin has two edges")
    return edges


def _bin_of(scores: FloatArray, edges: FloatArray) -> IntArray:
    return (np.searchsorted(edges, scores, side="right") - 1).clip(0, len(edges) - 2)


def _shares(bin_of: IntArray, weights: FloatArray, bins: int) -> FloatArray:
    counts = np.bincount(bin_of.ravel(), weights.ravel(), bins)
    shares: FloatArray = counts / counts.sum()
    return shares


def _among_best(scores: FloatArray, wanted: BoolArray, k: int) -> FloatArray:
    """How many of each row's k best are wanted; equal scores share the places that are left."""
    last = np.partition(scores, -k, axis=1)[:, -k, None]
    above, level = scores > last, scores == last
    left = k - above.sum(axis=1)
    share = (level & wanted).sum(axis=1) / level.sum(axis=1)
    found: FloatArray = (above & wanted).sum(axis=1) + left * share
    return found


def _blocks(queries: FloatArray, items: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
    """The scores of some queries after the other, never too many at once."""
    step = max(1, _SCORES_AT_ONCE // len(items))
    for start in range(0, len(queries), step):
        at = slice(start, start + step)
        yield at, queries[at] @ items.T


# --- checks --------------------------------------------------------------------------------------


def _unit_rows(**named: npt.ArrayLike) -> list[FloatArray]:
    """Rows of length 1, all of one dimension."""
    rows = []
    for name, values in named.items():
        of_sort = _finite(name, values)
        if of_sort.ndim != 2 or not of_sort.size:
            raise InvalidValueError(
                f"{name} of shape {of_sort.shape}: must be (n, d), n and d at least 1"
            )
        lengths = np.linalg.norm(of_sort, axis=1, keepdims=True)
        if not lengths.all():
            raise InvalidValueError(f"{name}: row {int(np.argmin(lengths))} is a zero vector")
        rows.append(of_sort / lengths)
    dimensions = {name: of_sort.shape[1] for name, of_sort in zip(named, rows, strict=True)}
    if len(set(dimensions.values())) > 1:
        said = ", ".join(f"{name} {dimension}" for name, dimension in dimensions.items())
        raise InvalidValueError(
            f"vectors of different dimensions: {said}; all must come from one model"
        )
    return rows


def _finite(name: str, values: npt.ArrayLike) -> FloatArray:
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        raise InvalidValueError(f"{name}: there are none")
    if not np.isfinite(numbers).all():
        raise InvalidValueError(f"{name}: hold NaN or infinity")
    return numbers


def _groups(name: str, labels: npt.ArrayLike, n: int) -> IntArray:
    """Labels as numbers from 0."""
    given = np.asarray(labels)
    if given.shape != (n,):
        raise InvalidValueError(f"{name} of shape {given.shape}: must be ({n},), one for each")
    return np.unique(given, return_inverse=True)[1].astype(np.int64)


def _checked_rows(name: str, rows: npt.ArrayLike, n: int, below: int) -> IntArray:
    given = np.asarray(rows)
    if given.shape != (n,) or (n and not np.issubdtype(given.dtype, np.integer)):
        raise InvalidValueError(
            f"{name} of shape {given.shape}, {given.dtype}: must be {n} row numbers"
        )
    if n and not 0 <= given.min() <= given.max() < below:
        raise InvalidValueError(
            f"{name}: rows {given.min()} to {given.max()}, but there are {below}"
        )
    return given.astype(np.int64)


def _check_k(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise InvalidValueError(
            f"k={k}: must lie between 1 and the {most} vectors that can be found"
        )
