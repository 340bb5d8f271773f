"""Bringing searches together whose scores cannot be compared: normalize × combine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray

Normalize: TypeAlias = Literal["rank", "minmax", "zscore", "background", "none"]
Combine: TypeAlias = Literal["sum", "max", "evidence"]

RANK_CONSTANT = 60
"""k of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)."""
SMALLEST_BACKGROUND = 50
"""Fewer scores than this say too little about a leg's mean and spread."""


@dataclass(frozen=True)
class ScoredLeg:
    """What one leg finds, as the fusion takes it.

    Attributes:
        keys: the document of each hit; a document may have several hits.
        scores: a score for each hit, shape (n,); higher is better. The order does not matter.
        background: the query's scores against a sample of all vectors of the leg, shape (m,);
            None where there is no sample to be had.
        size: how many vectors the leg has in all; None where that is not known.
    """

    keys: Sequence[str]
    scores: npt.ArrayLike
    background: npt.ArrayLike | None = None
    size: int | None = None


@dataclass(frozen=True)
class FusedDocument:
    """A document with its place in the fused ranking.

    Attributes:
        key: the document.
        score: what the ranking goes by.
        scores: its best raw score in each leg that found it.
        normalized: the same on the scale of the normalization.
        evidence: what each of these legs adds to the score, weights included.
    """

    key: str
    score: float
    scores: dict[str, float]
    normalized: dict[str, float]
    evidence: dict[str, float]


@dataclass(frozen=True)
class Fusion:
    """A fused ranking, and how it really came about.

    Attributes:
        documents: best first; equal scores in the order in which the legs name them.
        normalize: the normalization that was used.
        combine: the combination that was used.
        note: why these are not the ones asked for; None if they are.
    """

    documents: list[FusedDocument]
    normalize: Normalize
    combine: Combine
    note: str | None = None


def fuse(
    legs: Mapping[str, ScoredLeg],
    *,
    normalize: Normalize = "background",
    combine: Combine = "evidence",
    weights: Mapping[str, float] | None = None,
    k: float = RANK_CONSTANT,
) -> Fusion:
    """Rank the documents of several legs together.

    Each document first gets its best score in each leg. Then ``normalize`` puts these on a scale:

    - ``rank``: 1/(k + rank), ranks from 1, equal scores with equal ranks;
    - ``minmax``: the leg's lowest hit 0, its highest 1; all 1 where all are equal;
    - ``zscore``: standard deviations above the mean of the leg's hits;
    - ``background``: standard deviations above the mean of the leg's ``background``: how far above
      what this query gets anyway. 0 for all where the background has no spread;
    - ``none``: the scores as they are, for comparison; the modality gap makes them incomparable.

    And ``combine`` brings the legs together:

    - ``sum``; ``max``, of the legs that found the document;
    - ``evidence``: −log of the upper tail probability of a standard normal variable at the
      z-score, added over the legs (Fisher's method). Weak evidence adds almost nothing, so it
      suits queries that need one modality as well as those that need both. Of more vectors the best
      lies higher by chance alone. So where ``background`` comes with the legs' sizes, a leg with r
      times as many vectors as the smallest takes the probability that the best of r lies so high,
      1 − (1 − p)^r (Šidák 1967), in place of p.

    A leg that did not find a document adds 0. Where a leg with hits has no background of at least
    50 scores, all fall back to ``rank`` × ``sum``, and the result says so.

    Args:
        legs: by name.
        normalize: as above.
        combine: as above; ``evidence`` needs ``zscore`` or ``background``.
        weights: what each leg's contribution is multiplied by; 1 where a leg is left out.
        k: for ``rank``; the smaller, the more the first places count.

    Raises:
        ValueError: unknown methods, or two that do not go together; a weight that is negative or
            belongs to no leg; scores that are NaN or infinite, or not one for each key.
    """
    check_method(normalize, combine, k=k)
    weights = weights or {}
    check_weights(weights, "legs", legs)
    best = {name: _best_scores(name, leg) for name, leg in legs.items()}
    note = None
    if normalize == "background":
        thin = [name for name in legs if best[name] and not _has_background(legs[name])]
        if thin:
            normalize, combine = "rank", "sum"
            note = (
                f"no background of at least {SMALLEST_BACKGROUND} scores for: {', '.join(thin)}; "
                "so all legs were fused by rank"
            )
    normalized: dict[str, dict[str, float]] = {}
    evidence: dict[str, dict[str, float]] = {}
    sized = normalize == "background" and combine == "evidence"
    ratios = _size_ratios({name: legs[name] for name in legs if best[name]}) if sized else {}
    for name, scores in best.items():
        values = _normalized(np.array(list(scores.values())), normalize, legs[name].background, k)
        normalized[name] = dict(zip(scores, values.tolist(), strict=True))
        if combine == "evidence":
            values = _tail_evidence(values, ratios.get(name, 1.0))
        evidence[name] = dict(zip(scores, (weights.get(name, 1.0) * values).tolist(), strict=True))
    documents = []
    for key in dict.fromkeys(key for scores in best.values() for key in scores):
        found = {name: values[key] for name, values in evidence.items() if key in values}
        score = max(found.values()) if combine == "max" else sum(found.values())
        raw = {name: best[name][key] for name in found}
        on_scale = {name: normalized[name][key] for name in found}
        documents.append(FusedDocument(key, score, raw, on_scale, found))
    documents.sort(key=lambda document: -document.score)  # stable
    return Fusion(documents, normalize, combine, note)


def check_method(normalize: str, combine: str, *, k: float = RANK_CONSTANT) -> None:
    """Check early that a normalization and a combination exist and go together.

    Raises:
        ValueError: they do not; says what would.
    """
    if normalize not in get_args(Normalize):
        raise InvalidValueError(
            f"normalize={normalize!r}: must be one of {', '.join(get_args(Normalize))}"
        )
    if combine not in get_args(Combine):
        raise InvalidValueError(
            f"combine={combine!r}: must be one of {', '.join(get_args(Combine))}"
        )
    if combine == "evidence" and normalize not in {"zscore", "background"}:
        raise InvalidValueError(
            f"combine='evidence' turns z-scores into probabilities and normalize={normalize!r} "
            "gives none; pass normalize='background' or 'zscore', or combine='sum'"
        )
    if not (np.isfinite(k) and k >= 0):
        raise InvalidValueError(f"k={k}: must be a number of at least 0")


def check_weights(weights: Mapping[str, float], what: str, known: Iterable[str]) -> None:
    """Check early that weights can be multiplied with.

    Args:
        weights: by name.
        what: is weighted, such as ``legs``, for the message.
        known: the names that a weight may have.

    Raises:
        ValueError: a weight is negative, NaN or infinite, or has another name.
    """
    known = list(known)
    for name, weight in weights.items():
        if name not in known:
            raise InvalidValueError(f"weights name {name!r}; the {what} are {', '.join(known)}")
        if not (np.isfinite(weight) and weight >= 0):
            raise InvalidValueError(
                f"the weight of {name} is {weight}: must be a number of at least 0"
            )


def _best_scores(name: str, leg: ScoredLeg) -> dict[str, float]:
    """Each document's best score, best document first."""
    scores = np.asarray(leg.scores, dtype=np.float64)
    if scores.shape != (len(leg.keys),):
        raise InvalidValueError(
            f"the {name} leg has {len(leg.keys)} keys but scores of shape {scores.shape}"
        )
    for what, values in (("scores", scores), ("background", leg.background)):
        if values is not None and not np.isfinite(np.asarray(values, dtype=np.float64)).all():
            raise InvalidValueError(f"the {name} leg's {what} hold NaN or infinity")
    best: dict[str, float] = {}
    for index in np.argsort(-scores, kind="stable"):
        best.setdefault(leg.keys[index], float(scores[index]))
    return best


def _has_background(leg: ScoredLeg) -> bool:
    return leg.background is not None and np.size(leg.background) >= SMALLEST_BACKGROUND


def _normalized(
    scores: FloatArray, method: Normalize, background: npt.ArrayLike | None, k: float
) -> FloatArray:
    """Scores of one leg, in descending order, on the scale of a method."""
    if not scores.size or method == "none":
        return scores
    match method:
        case "rank":
            ranks = 1 + np.searchsorted(-scores, -scores, side="left")
            return np.asarray(1.0 / (k + ranks), dtype=np.float64)
        case "minmax":
            spread = scores.max() - scores.min()
            return (scores - scores.min()) / spread if spread > 0 else np.ones_like(scores)
        case "zscore":
            return _above(scores, scores)
        case "background":
            return _above(scores, np.asarray(background, dtype=np.float64))


def _size_ratios(legs: Mapping[str, ScoredLeg]) -> dict[str, float]:
    """How many times as large as the smallest each leg is; 1 where a size is not known."""
    sizes = {name: leg.size for name, leg in legs.items() if leg.size is not None}
    for name, size in sizes.items():
        if size < 1:
            raise InvalidValueError(f"the {name} leg has hits, but its size is {size}")
    if len(sizes) < len(legs):
        return dict.fromkeys(legs, 1.0)
    return {name: size / min(sizes.values()) for name, size in sizes.items()}


def _tail_evidence(z: FloatArray, ratio: float) -> FloatArray:
    """−log of the probability that the best of so many standard normal variables is as high."""
    log_p = log_ndtr(-z)
    with np.errstate(divide="ignore"):
        evidence = -np.log(-np.expm1(ratio * np.log1p(-np.exp(log_p))))
    underflows = log_p < -30  # there the probability is ratio × p
    return np.where(underflows, -log_p - np.log(ratio), evidence)


def _above(scores: FloatArray, reference: FloatArray) -> FloatArray:
    """Standard deviations above the mean of a reference; 0 where that has no spread."""
    # Equal numbers can have a standard deviation just above 0.
    spread = 0.0 if np.ptp(reference) == 0 else reference.std()
    above: FloatArray = (
        (scores - reference.mean()) / spread if spread > 0 else np.zeros_like(scores)
    )
    return above
