"""Nearest neighbours: their modality, and whether they are relevant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import BoolArray, FloatArray, checked_unit_rows, group_numbers
from llama_index_gap.gap.estimates import ROUNDS, Estimate, bootstrap

_SCORES_AT_ONCE = 2**22  # 32 MB


def own_modality_share(
    queries: npt.ArrayLike,
    own: npt.ArrayLike,
    other: npt.ArrayLike,
    k: int = 10,
    *,
    itself: bool = False,
) -> FloatArray:
    """The share of a mixed index's top k that has the query's own modality, for each query.

    Its mean is the intra-modal bias rate (Li et al. 2025, arXiv 2507.19054). Compare it with that
    modality's share of the corpus. Equal scores share their places.

    Args:
        queries: shape (n, d).
        own: the index's vectors of the queries' modality, shape (m, d).
        other: the index's vectors of the other modality, shape (l, d).
        k: number of places.
        itself: whether query i is row i of ``own`` and must not find itself.

    Returns:
        Shape (n,), between 0 and 1.

    Raises:
        ValueError: the arrays are not vectors of one dimension, or fewer than k can be found.
    """
    query, same, cross = checked_unit_rows(queries=queries, own=own, other=other)
    _check_k(k, len(same) + len(cross) - itself)
    is_own = np.arange(len(same) + len(cross)) < len(same)
    shares = []
    for rows, scores in _blocks(query, np.vstack([same, cross])):
        if itself:
            scores[np.arange(len(scores)), np.arange(len(query))[rows]] = -np.inf
        shares.append(_among_best(scores, np.broadcast_to(is_own, scores.shape), k) / k)
    return np.concatenate(shares)


def recall_of_neighbours(vectors: npt.ArrayLike, labels: npt.ArrayLike, k: int = 10) -> FloatArray:
    """Recall@k of each item among the others of its modality.

    Items with the same label are relevant to each other. Recall is a share of min(k, relevant), as
    many as k places can hold (as in BEIR, Thakur et al. 2021), so 1 can always be reached. Equal
    scores share their places.

    Args:
        vectors: shape (n, d).
        labels: numbers or words, shape (n,).
        k: number of places.

    Returns:
        Shape (n,), between 0 and 1; NaN for an item whose label no other item has.

    Raises:
        ValueError: there is not one label for each vector, or fewer than k vectors can be found.
    """
    (rows,) = checked_unit_rows(vectors=vectors)
    groups = group_numbers("labels", labels, len(rows))
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
    """How well two encoders find related items of one modality.

    Attributes:
        k: number of places that recall counts.
        model: mean recall of the tested encoder.
        reference: mean recall of the dedicated encoder.
        delta: model − reference. Below 0, the dedicated encoder finds more.
        queries: how many items were queries: those that share their label with another item.
        alone: how many items have a label that no other item has.
    """

    k: int
    model: Estimate
    reference: Estimate
    delta: Estimate
    queries: int
    alone: int


def compare_recall(
    vectors: npt.ArrayLike,
    reference: npt.ArrayLike,
    labels: npt.ArrayLike,
    k: int = 10,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> RecallComparison:
    """Compare recall within one modality, such as image→image, with a dedicated encoder.

    See ``recall_of_neighbours``. The bootstrap draws labels, so that items with the same label are
    drawn together; both encoders get the same draws. The corpus is not resampled.

    Args:
        vectors: of the tested encoder, of one modality, shape (n, d).
        reference: of a dedicated encoder, for the same items in the same order, shape (n, e).
        labels: items with the same label belong together, shape (n,).
        k: number of places.
        rounds: as for ``bootstrap``.
        seed: as for ``bootstrap``.

    Raises:
        ValueError: the numbers of items differ, no two items share a label, or as for
            ``recall_of_neighbours`` and ``bootstrap``.
    """
    groups = group_numbers("labels", labels, len(np.asarray(vectors)))
    if len(np.asarray(reference)) != len(groups):
        raise InvalidValueError(
            f"{len(groups)} vectors and {len(np.asarray(reference))} of the reference: row i of "
            "both must be the same item"
        )
    ours, theirs = (recall_of_neighbours(rows, groups, k) for rows in (vectors, reference))
    asked = np.isfinite(ours)
    if not asked.any():
        raise InvalidValueError("no two items share a label, so there is nothing to find")
    units = np.unique(groups[asked], return_inverse=True)[1]

    def means(counts: FloatArray) -> dict[str, float]:
        weights = counts[units]
        model, other = (float(weights @ recall[asked] / weights.sum()) for recall in (ours, theirs))
        return {"model": model, "reference": other, "delta": model - other}

    estimates = bootstrap(means, np.zeros(units.max() + 1), rounds=rounds, seed=seed)
    return RecallComparison(k, **estimates, queries=int(asked.sum()), alone=int((~asked).sum()))


def _among_best(scores: FloatArray, wanted: BoolArray, k: int) -> FloatArray:
    """How many of each row's best k are wanted; equal scores share the remaining places."""
    last = np.partition(scores, -k, axis=1)[:, -k, None]
    above, level = scores > last, scores == last
    left = k - above.sum(axis=1)
    share = (level & wanted).sum(axis=1) / level.sum(axis=1)
    found: FloatArray = (above & wanted).sum(axis=1) + left * share
    return found


def _blocks(queries: FloatArray, items: FloatArray) -> Iterator[tuple[slice, FloatArray]]:
    """The scores of a block of queries at a time, to limit memory."""
    step = max(1, _SCORES_AT_ONCE // len(items))
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        yield rows, queries[rows] @ items.T


def _check_k(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise InvalidValueError(
            f"k={k}: must lie between 1 and the {most} vectors that can be found"
        )
