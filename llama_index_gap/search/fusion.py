"""Bringing searches together whose scores cannot be compared: normalize × combine."""

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
    """What one leg finds, as the fusion takes it.

    Attributes:
        keys: the document of each hit; a document may have several hits.
        scores: a score for each hit, shape (n,); higher is better. The order does not matter.
        background: the query's scores against a sample of all vectors of the leg, hubs taken off,
            shape (m,); None where there is no sample to be had.
        size: how many vectors the leg has in all; None where that is not known.
        places: where each hit lies in the background, −1 where it does not, shape (n,); None
            where no hit lies there.
        spread: of a sample of queries; see ``background_z``.
        hubs: what is taken off each score because the vector is near to everything, shape (n,);
            None for nothing.
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
    """A document with its place in the fused ranking.

    Attributes:
        key: the document.
        score: what the ranking goes by.
        scores: its best hit's raw score in each leg that found it.
        hubs: what was taken off that, in each leg whose hubs are corrected.
        normalized: the rest on the scale of the normalization.
        evidence: what each of these legs says by itself, weights included: what it adds to the
            score, and with ``intent`` its log odds.
    """

    key: str
    score: float
    scores: dict[str, float]
    hubs: dict[str, float]
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
    combine: Combine = "intent",
    weights: Mapping[str, float] | None = None,
    k: float = RANK_CONSTANT,
) -> Fusion:
    """Rank the documents of several legs together.

    Each document first gets its best score in each leg. Then ``normalize`` puts these on a scale:

    - ``rank``: 1/(k + rank), ranks from 1, equal scores with equal ranks;
    - ``minmax``: the leg's lowest hit 0, its highest 1; all 1 where all are equal;
    - ``zscore``: standard deviations above the mean of the leg's hits;
    - ``background``: standard deviations above what the same query gets from the leg's other
      vectors, see ``background_z``. A leg with fewer than 4 vectors, or whose scores are all equal,
      says nothing: its documents come after the others, in their order;
    - ``none``: the scores as they are, for comparison; the modality gap makes them incomparable.

    And ``combine`` brings the legs together:

    - ``sum``; ``max``, of the legs that found the document;
    - ``evidence``: −log of the upper tail probability of a standard normal variable at the
      z-score, added over the legs (Fisher's method). Of more vectors the best lies higher by chance
      alone. So where ``background`` comes with the legs' sizes, a leg with r times as many vectors
      as the smallest takes the probability that the best of r lies so high, 1 − (1 − p)^r (Šidák
      1967), in place of p;
    - ``intent``: the log odds that the query is about what this document has in one leg, or in
      several of them together. The sum over all sets of legs that found it of ∏ L / max N, where N
      is a leg's size, and L(z) = N(z; 4, 1.5) / N(z; 0, 1) the likelihood ratio of a relevant
      hit's z-score against the background's. For two legs: L₁/N₁ + L₂/N₂ + L₁·L₂/max(N₁, N₂). It
      assumes that exactly one document is meant, that one leg is as likely to be meant as the
      other or both, and that z-scores of different legs are independent. A weight multiplies a
      leg's odds.

    A leg that did not find a document adds nothing. Where a leg with hits comes without a
    background, all are put on the scale of ``zscore``, and the result says so.

    Args:
        legs: by name.
        normalize: as above.
        combine: as above; ``evidence`` and ``intent`` need ``zscore`` or ``background``.
        weights: what each leg's contribution is multiplied by; 1 where a leg is left out.
        k: for ``rank``; the smaller, the more the first places count.

    Raises:
        ValueError: unknown methods, or two that do not go together; a weight that is negative or
            belongs to no leg; scores that are NaN or infinite, or not one for each key.
    """
    check_method(normalize, combine, k=k)
    weights = weights or {}
    check_weights(weights, "legs", legs)
    best = {name: _best_hits(name, leg) for name, leg in legs.items()}
    note = None
    bare = [name for name, leg in legs.items() if best[name].keys and leg.background is None]
    if normalize == "background" and bare:
        normalize = "zscore"
        note = (
            f"no background for: {', '.join(bare)}; so each hit was compared with the other hits "
            "of its leg"
        )
    sizes = _sizes({name: legs[name] for name in legs if best[name].keys})
    if combine == "evidence" and normalize != "background":
        sizes = dict.fromkeys(sizes, 1)
    smallest = min(sizes.values(), default=1)
    raw = {name: dict(zip(hits.keys, hits.scores, strict=True)) for name, hits in best.items()}
    taken = {
        name: dict(zip(hits.keys, hits.hubs, strict=True))
        for name, hits in best.items()
        if hits.hubs is not None
    }
    normalized: dict[str, dict[str, float]] = {}
    evidence: dict[str, dict[str, float]] = {}
    silent: set[str] = set()
    for name, hits in best.items():
        values = _normalized(hits, normalize, k)
        weight, size = weights.get(name, 1.0), sizes.get(name, 1)
        says = _says(values, combine, size, size / smallest, weight)
        if says is None:
            silent.add(name)
            says = np.zeros(len(hits.keys))
        if values is None:
            values = np.zeros(len(hits.keys))
        normalized[name] = dict(zip(hits.keys, values.tolist(), strict=True))
        evidence[name] = dict(zip(hits.keys, says.tolist(), strict=True))
    documents: list[FusedDocument] = []
    last: list[FusedDocument] = []
    by_size = sorted(sizes, key=lambda name: sizes[name])
    for key in dict.fromkeys(key for hits in best.values() for key in hits.keys):
        found = {name: values[key] for name, values in evidence.items() if key in values}
        says_so = {name: value for name, value in found.items() if name not in silent}
        if not says_so:
            score = 0.0
        elif combine == "intent":
            score = _mixture([(says_so[name], sizes[name]) for name in by_size if name in says_so])
        else:
            score = max(says_so.values()) if combine == "max" else sum(says_so.values())
        scores, hubs = (
            {name: values[name][key] for name in found if name in values} for values in (raw, taken)
        )
        on_scale = {name: normalized[name][key] for name in found}
        document = FusedDocument(key, score, scores, hubs, on_scale, found)
        (documents if says_so else last).append(document)
    documents.sort(key=lambda document: -document.score)  # stable
    lowest = min([0.0, *(document.score for document in documents[-1:])])
    documents += [replace(document, score=lowest) for document in last]
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
    if combine in {"evidence", "intent"} and normalize not in {"zscore", "background"}:
        raise InvalidValueError(
            f"combine={combine!r} turns z-scores into probabilities and normalize={normalize!r} "
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


@dataclass(frozen=True)
class _BestHits:
    """Each document's best hit in one leg, best document first; as ``ScoredLeg``, checked."""

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
    """Scores of one leg, in descending order, on the scale of a method; None: it says nothing."""
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
            # Equal numbers can have a standard deviation just above 0.
            spread = 0.0 if np.ptp(scores) == 0 else scores.std()
            return (scores - scores.mean()) / spread if spread > 0 else np.zeros_like(scores)
        case "background":
            background = np.zeros(0) if hits.background is None else hits.background
            return background_z(scores, background, places=hits.places, spread=hits.spread)


def _sizes(legs: Mapping[str, ScoredLeg]) -> dict[str, int]:
    """How many vectors each leg has; 1 for all where one is not known."""
    sizes = {name: leg.size for name, leg in legs.items() if leg.size is not None}
    for name, size in sizes.items():
        if size < 1:
            raise InvalidValueError(f"the {name} leg has hits, but its size is {size}")
    return sizes if len(sizes) == len(legs) else dict.fromkeys(legs, 1)


def _says(
    values: FloatArray | None, combine: Combine, size: int, ratio: float, weight: float
) -> FloatArray | None:
    """What a leg says by itself of its hits; None where it says nothing."""
    if values is None or (combine == "intent" and weight == 0):
        return None
    if combine == "intent":
        return _log_odds(values, size, weight)
    return weight * (_tail_evidence(values, ratio) if combine == "evidence" else values)


def _tail_evidence(z: FloatArray, ratio: float) -> FloatArray:
    """−log of the probability that the best of so many standard normal variables is as high."""
    log_p = log_ndtr(-z)
    with np.errstate(divide="ignore"):
        evidence = -np.log(-np.expm1(ratio * np.log1p(-np.exp(log_p))))
    underflows = log_p < -30  # there the probability is ratio × p
    return np.where(underflows, -log_p - np.log(ratio), evidence)


def _log_odds(z: FloatArray, size: int, weight: float) -> FloatArray:
    """log(weight · L(z) / N): a likelihood ratio that never falls where z rises."""
    variance = RELEVANT_SPREAD**2
    lowest = RELEVANT_MEAN / (1 - variance)  # below, so wide a bell would overtake the narrow one
    z = np.maximum(z, lowest)
    ratio = z * z / 2 - np.square(z - RELEVANT_MEAN) / (2 * variance) - math.log(RELEVANT_SPREAD)
    return ratio + math.log(weight / size)


def _mixture(found: Sequence[tuple[float, int]]) -> float:
    """Log of the sum over all sets of legs of ∏ L / max N.

    Args:
        found: log(L / N) and N of each leg, smallest N first. A set whose last leg is j has
            max N = Nⱼ, and any of the legs before it: Lⱼ/Nⱼ · ∏ (1 + Lᵢ).
    """
    total, before = -math.inf, 0.0
    for log_odds, size in found:
        total = float(np.logaddexp(total, log_odds + before))
        before += float(np.logaddexp(0.0, log_odds + math.log(size)))
    return total
