"""Fusing searches whose scores cannot be compared: normalize × combine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray, IntArray
from llama_index_gap.gap.background import background_z

Normalize: TypeAlias = Literal["rank", "minmax", "zscore", "background", "none"]
Combine: TypeAlias = Literal["sum", "max", "evidence", "intent"]

RANK_CONSTANT = 60
"""k of reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009)."""
RELEVANT_MEAN = 4.0
"""Mean z-score of relevant hits; (3, 1), (4, 1.5) and (5, 2) agree within .002 nDCG@10."""
RELEVANT_SPREAD = 1.5
"""Their standard deviation."""


@dataclass(frozen=True)
class ScoredLeg:
    """The hits of one leg, in the form that ``fuse`` takes.

    Attributes:
        keys: the document of each hit; a document may have several hits.
        scores: a score for each hit, shape (n,); higher is better. The order does not matter.
        background: the query's scores against a sample of all vectors of the leg, hub-corrected,
            shape (m,); None if there is no sample.
        size: how many vectors the leg has in all; None if that is not known.
        places: the position of each hit in the background, −1 for a hit that is not in it, shape
            (n,); None if no hit is in it.
        spread: of a sample of queries; see ``background_z``.
        hubs: the hub correction to subtract from each score, shape (n,); None for none.
    """

    keys: Sequence[str]
    scores: npt.ArrayLike
    background: npt.ArrayLike | None = None
    size: int | None = None
    places: npt.ArrayLike | None = None
    spread: float | None = None
    hubs: npt.ArrayLike | None = None


@dataclass(frozen=True)
class FusedDocument:
    """A document of the fused ranking.

    Attributes:
        key: the document.
        score: the fused score; the ranking is by this.
        scores: the raw score of its best hit, for each leg that found it.
        hubs: the hub correction that was subtracted from it, for each leg that has one.
        normalized: the corrected score on the scale of the normalization, for each leg.
        evidence: what each leg alone adds to the fused score, weight included; with ``intent``, its
            log odds.
    """

    key: str
    score: float
    scores: dict[str, float]
    hubs: dict[str, float]
    normalized: dict[str, float]
    evidence: dict[str, float]


@dataclass(frozen=True)
class Fusion:
    """A fused ranking, and the method that was used, which may not be the one asked for.

    Attributes:
        documents: best first; documents with equal scores in the order in which the legs list them.
        normalize: the normalization that was used.
        combine: the combination that was used.
        note: why these are not the methods asked for; None if they are.
    """

    documents: list[FusedDocument]
    normalize: Normalize
    combine: Combine
    note: str | None = None


def fuse(
    legs: Mapping[str, ScoredLeg],
    *,
    normalize: Normalize = "background",
    combine: Combine = "intent",
    weights: Mapping[str, float] | None = None,
    k: float = RANK_CONSTANT,
) -> Fusion:
    """Rank the documents of several legs together.

    Each document first gets its best score in each leg. Then ``normalize`` puts these scores on one
    scale:

    - ``rank``: 1/(k + rank); ranks start at 1, and equal scores get equal ranks;
    - ``minmax``: the leg's lowest hit gets 0, its highest 1; if all are equal, all get 1;
    - ``zscore``: standard deviations above the mean of the leg's hits;
    - ``background``: standard deviations above the scores of the leg's other vectors for the same
      query, see ``background_z``. A leg with fewer than 4 vectors, or whose scores are all equal,
      gives no evidence: its documents come after the others, in their order;
    - ``none``: the raw scores, for comparison; the modality gap makes them incomparable.

    Then ``combine`` combines the legs:

    - ``sum``, or ``max``: over the legs that found the document;
    - ``evidence``: −log of the upper tail probability of a standard normal variable at the
      z-score, added over the legs (Fisher's method). The best of more vectors scores higher by
      chance alone. So if ``background`` comes with the legs' sizes, a leg with r times as many
      vectors as the smallest uses the probability that the best of r scores so high,
      1 − (1 − p)^r (Šidák 1967), in place of p;
    - ``intent``: the log odds that the query is about what this document has in one leg, or in
      several legs together: the log of the sum, over all sets of legs that found the document, of
      ∏ L / max N. N is a leg's size. L(z) = N(z; 4, 1.5) / N(z; 0, 1) is the likelihood ratio of a
      relevant hit's z-score against the background's. For two legs:
      L₁/N₁ + L₂/N₂ + L₁·L₂/max(N₁, N₂). This assumes that the query is about exactly one document,
      that each leg and each set of legs is equally likely, and that z-scores of different legs are
      independent. A weight multiplies a leg's odds.

    A leg that did not find a document adds nothing. If ``background`` is asked for and any leg with
    hits has none, all legs use ``zscore`` instead, and the result says so.

    Args:
        legs: by name.
        normalize: as above.
        combine: as above; ``evidence`` and ``intent`` need ``zscore`` or ``background``.
        weights: multiply each leg's contribution; a leg without one has weight 1.
        k: for ``rank``; a smaller value gives the first ranks more weight.

    Raises:
        ValueError: a method is unknown, or the two do not go together; a weight is negative or
            belongs to no leg; scores are NaN or infinite, or there is not one for each key.
    """
    check_method(normalize, combine, k=k)
    weights = weights or {}
    check_weights(weights, "legs", legs)
    best = {name: _best_hits(name, leg) for name, leg in legs.items()}
    note = None
    without_background = [
        name for name, leg in legs.items() if best[name].keys and leg.background is None
    ]
    if normalize == "background" and without_background:
        normalize = "zscore"
        note = (
            f"no background for: {', '.join(without_background)}; so each hit was compared with "
            "the other hits of its leg"
        )
    sizes = _sizes({name: legs[name] for name in legs if best[name].keys})
    if combine == "evidence" and normalize != "background":
        sizes = dict.fromkeys(sizes, 1)
    smallest = min(sizes.values(), default=1)
    raw = {name: dict(zip(hits.keys, hits.scores, strict=True)) for name, hits in best.items()}
    corrections = {
        name: dict(zip(hits.keys, hits.hubs, strict=True))
        for name, hits in best.items()
        if hits.hubs is not None
    }
    normalized: dict[str, dict[str, float]] = {}
    evidence: dict[str, dict[str, float]] = {}
    without_evidence: set[str] = set()
    for name, hits in best.items():
        values = _normalized(hits, normalize, k)
        weight, size = weights.get(name, 1.0), sizes.get(name, 1)
        added = _leg_evidence(values, combine, size, size / smallest, weight)
        if added is None:
            without_evidence.add(name)
            added = np.zeros(len(hits.keys))
        if values is None:
            values = np.zeros(len(hits.keys))
        normalized[name] = dict(zip(hits.keys, values.tolist(), strict=True))
        evidence[name] = dict(zip(hits.keys, added.tolist(), strict=True))
    documents: list[FusedDocument] = []
    uncounted: list[FusedDocument] = []
    by_size = sorted(sizes, key=lambda name: sizes[name])
    for key in dict.fromkeys(key for hits in best.values() for key in hits.keys):
        found = {name: values[key] for name, values in evidence.items() if key in values}
        counted = {name: value for name, value in found.items() if name not in without_evidence}
        if not counted:
            score = 0.0
        elif combine == "intent":
            score = _mixture([(counted[name], sizes[name]) for name in by_size if name in counted])
        else:
            score = max(counted.values()) if combine == "max" else sum(counted.values())
        scores, hubs = (
            {name: values[name][key] for name in found if name in values}
            for values in (raw, corrections)
        )
        on_scale = {name: normalized[name][key] for name in found}
        document = FusedDocument(key, score, scores, hubs, on_scale, found)
        (documents if counted else uncounted).append(document)
    documents.sort(key=lambda document: -document.score)  # stable
    lowest = min([0.0, *(document.score for document in documents[-1:])])
    documents += [replace(document, score=lowest) for document in uncounted]
    return Fusion(documents, normalize, combine, note)


def check_method(normalize: str, combine: str, *, k: float = RANK_CONSTANT) -> None:
    """Check early that a normalization and a combination exist and go together.

    Raises:
        ValueError: they do not; the message says which ones would.
    """
    if normalize not in get_args(Normalize):
        raise InvalidValueError(
            f"normalize={normalize!r}: must be one of {', '.join(get_args(Normalize))}"
        )
    if combine not in get_args(Combine):
        raise InvalidValueError(
            f"combine={combine!r}: must be one of {', '.join(get_args(Combine))}"
        )
    if combine in {"evidence", "intent"} and normalize not in {"zscore", "background"}:
        raise InvalidValueError(
            f"combine={combine!r} needs z-scores, and normalize={normalize!r} gives none; pass "
            "normalize='background' or 'zscore', or combine='sum'"
        )
    if not (np.isfinite(k) and k >= 0):
        raise InvalidValueError(f"k={k}: must be a number of at least 0")


def check_weights(weights: Mapping[str, float], what: str, known: Iterable[str]) -> None:
    """Check early that weights are usable.

    Args:
        weights: by name.
        what: the weighted things, such as ``legs``; for the message.
        known: the names that a weight may have.

    Raises:
        ValueError: a weight is negative, NaN or infinite, or has an unknown name.
    """
    known = list(known)
    for name, weight in weights.items():
        if name not in known:
            raise InvalidValueError(f"weights name {name!r}; the {what} are {', '.join(known)}")
        if not (np.isfinite(weight) and weight >= 0):
            raise InvalidValueError(
                f"the weight of {name} is {weight}: must be a number of at least 0"
            )


@dataclass(frozen=True)
class _BestHits:
    """The best hit of each document in one leg, best first; a ``ScoredLeg`` after its checks."""

    keys: list[str]
    scores: list[float]
    hubs: list[float] | None
    corrected: FloatArray
    background: FloatArray | None
    places: IntArray | None
    spread: float | None


def _best_hits(name: str, leg: ScoredLeg) -> _BestHits:
    scores = np.asarray(leg.scores, dtype=np.float64)
    hubs = None if leg.hubs is None else np.asarray(leg.hubs, dtype=np.float64)
    background = None if leg.background is None else np.asarray(leg.background, dtype=np.float64)
    places = None if leg.places is None else np.asarray(leg.places, dtype=np.int64)
    for what, values in (("scores", scores), ("hubs", hubs), ("places", places)):
        if values is not None and values.shape != (len(leg.keys),):
            raise InvalidValueError(
                f"the {name} leg has {len(leg.keys)} keys but {what} of shape {values.shape}"
            )
    for what, values in (("scores", scores), ("hubs", hubs), ("background", background)):
        if values is not None and not np.isfinite(values).all():
            raise InvalidValueError(f"the {name} leg's {what} hold NaN or infinity")
    corrected = scores if hubs is None else scores - hubs
    best: dict[str, int] = {}
    for index in np.argsort(-corrected, kind="stable").tolist():
        best.setdefault(leg.keys[index], index)
    kept = list(best.values())
    return _BestHits(
        list(best),
        scores[kept].tolist(),
        None if hubs is None else hubs[kept].tolist(),
        corrected[kept],
        background,
        None if places is None else places[kept],
        leg.spread,
    )


def _normalized(hits: _BestHits, method: Normalize, k: float) -> FloatArray | None:
    """A leg's scores, normalized, in descending order; None if the leg gives no evidence."""
    scores = hits.corrected
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
            # By rounding, equal numbers can have a standard deviation just above 0.
            spread = 0.0 if np.ptp(scores) == 0 else scores.std()
            return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)
        case "background":
            background = np.zeros(0) if hits.background is None else hits.background
            return background_z(scores, background, places=hits.places, spread=hits.spread)


def _sizes(legs: Mapping[str, ScoredLeg]) -> dict[str, int]:
    """How many vectors each leg has; 1 for all legs if any size is unknown."""
    sizes = {name: leg.size for name, leg in legs.items() if leg.size is not None}
    for name, size in sizes.items():
        if size < 1:
            raise InvalidValueError(f"the {name} leg has hits, but its size is {size}")
    return sizes if len(sizes) == len(legs) else dict.fromkeys(legs, 1)


def _leg_evidence(
    values: FloatArray | None, combine: Combine, size: int, ratio: float, weight: float
) -> FloatArray | None:
    """What a leg alone adds to the score of each of its hits; None if it gives no evidence."""
    if values is None or (combine == "intent" and weight == 0):
        return None
    if combine == "intent":
        return _log_odds(values, size, weight)
    return weight * (_tail_evidence(values, ratio) if combine == "evidence" else values)


def _tail_evidence(z: FloatArray, ratio: float) -> FloatArray:
    """−log of the probability that the best of ``ratio`` standard normal variables is above z."""
    log_p = log_ndtr(-z)
    with np.errstate(divide="ignore"):
        evidence = -np.log(-np.expm1(ratio * np.log1p(-np.exp(log_p))))
    underflows = log_p < -30  # there the probability is ratio × p
    return np.where(underflows, -log_p - np.log(ratio), evidence)


def _log_odds(z: FloatArray, size: int, weight: float) -> FloatArray:
    """log(weight · L(z) / N), with a likelihood ratio L that never falls when z rises."""
    variance = RELEVANT_SPREAD**2
    lowest = RELEVANT_MEAN / (1 - variance)  # below this, L would rise again as z falls
    z = np.maximum(z, lowest)
    ratio = z * z / 2 - np.square(z - RELEVANT_MEAN) / (2 * variance) - math.log(RELEVANT_SPREAD)
    return ratio + math.log(weight / size)


def _mixture(found: Sequence[tuple[float, int]]) -> float:
    """Log of the sum over all sets of legs of ∏ L / max N.

    Args:
        found: log(L / N) and N of each leg, smallest N first. All sets whose last leg is j have
            max N = Nⱼ, and hold any of the legs i before it; so they sum to Lⱼ/Nⱼ · ∏ (1 + Lᵢ).
    """
    total, before = -math.inf, 0.0
    for log_odds, size in found:
        total = float(np.logaddexp(total, log_odds + before))
        before += float(np.logaddexp(0.0, log_odds + math.log(size)))
    return total
