"""Adds the first stage's log odds to a reranker's, so that a weak reranker does less harm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import NodeWithScore
from scipy.special import logit

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.nodes import ScoredNode

logger = logging.getLogger(__name__)

Scale: TypeAlias = Literal["log_odds", "standardised"]

NEAREST = float(np.finfo(np.float32).epsneg)
"""The distance of the largest float32 below 1; probabilities stay this far from 0 and 1."""


@dataclass(frozen=True)
class FirstStage:
    """The weight of the first stage beside a reranker, as ``learn_first_stage`` learns it.

    Attributes:
        weight: multiplies the first stage's log odds before they are added to the reranker's.
        scale: the scale of the first stage's scores, see ``first_stage_scores``.
        source: the reranker's ``model_name``; ``""`` if unknown.
        queries: the number of labelled queries that the weight was learnt from.
        weights: the weights that were learnt while one part of the queries was held out.
        held_out: nDCG@10 of both stages; each query is ranked with the weight of the others.
        reranker: nDCG@10 of the reranker alone.
        retriever: nDCG@10 of the first stage alone.
        gain: ``held_out`` minus the better of the two.
        verdict: ``"higher"`` or ``"lower"`` than the better of the two, or ``"unclear"``.
    """

    weight: float
    scale: Scale
    source: str = ""
    queries: int = 0
    weights: tuple[float, ...] = ()
    held_out: Estimate | None = None
    reranker: Estimate | None = None
    retriever: Estimate | None = None
    gain: Estimate | None = None
    verdict: str = ""

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.scale not in get_args(Scale):
            raise InvalidValueError(
                f"scale={self.scale!r}: must be one of {', '.join(get_args(Scale))}"
            )

    def check_source(self, source: str) -> None:
        """Check that the weight was learnt for this reranker.

        Raises:
            ValueError: the weight was learnt for another reranker, or for an unknown one.
        """
        if self.source != source:
            learnt = f"for {self.source}" if self.source else "without saying for which reranker"
            raise InvalidValueError(
                f"the first stage's weight was learnt {learnt}, and this reranker is {source}; "
                "learn one for it, or pass the weight as a number"
            )

    def summary(self) -> str:
        """The weight, its range and its gain, in one line."""
        if self.gain is None:
            return f"weight {self.weight:g} for the first stage"
        gain = f"{self.gain.value:+.3f}, {self.gain.low:+.3f} to {self.gain.high:+.3f}"
        return (
            f"weight {self.weight:g} for the first stage ({min(self.weights):g} to "
            f"{max(self.weights):g} where a part was held out), learnt from {self.queries:,} "
            f"queries: held out, nDCG@10 is {self.held_out}; the reranker alone has "
            f"{self.reranker}, the first stage alone {self.retriever}; against the better of the "
            f"two {gain.replace('-', '−')}: {self.verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FirstStage:
        """The inverse of ``to_dict``.

        Raises:
            ValueError: the content has other fields.
        """
        try:
            given = dict(content)
            for name in ("held_out", "reranker", "retriever", "gain"):
                if given.get(name) is not None:
                    given[name] = Estimate(**given[name])
            return cls(**{**given, "weights": tuple(given.get("weights", ()))})
        except TypeError as error:
            raise InvalidValueError(
                f"this is no first stage as to_dict gives it: {error}"
            ) from error


@dataclass(frozen=True)
class FirstStageScores:
    """The first stage's score of each candidate.

    Attributes:
        values: log odds or standard deviations, shape (n,). Their mean is 0, and a candidate
            without a score has 0.
        scale: which of the two the values are.
        missing: the number of candidates without a score.
    """

    values: FloatArray
    scale: Scale
    missing: int


def first_stage_scores(documents: Sequence[Sequence[NodeWithScore]]) -> FirstStageScores:
    """The first stage's scores of the candidates, on a scale that can be added to log odds.

    If the retriever gives log odds (``combine="intent"``), their mean over the candidates is
    subtracted, so that the sum does not move all candidates together. Other scores are
    standardised over the candidates. A single candidate, equal scores and a candidate without a
    score add nothing. After several rerankers the first stage is still the retriever.

    Args:
        documents: the nodes of each candidate, as the retriever returned them. The score of the
            best node counts.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    scores = [_best(map(_found_with, hits)) for hits in documents]
    odds = [_best(getattr(hit, "log_odds", None) for hit in hits) for hits in documents]
    scored = [place for place, score in enumerate(scores) if score is not None]
    scale: Scale = "standardised"
    if scored and all(odds[place] is not None for place in scored):
        scores, scale = odds, "log_odds"
    found = np.array([scores[place] for place in scored], dtype=np.float64)
    if not np.isfinite(found).all():
        node = documents[scored[int(np.argmin(np.isfinite(found)))]][0].node
        raise InvalidValueError(
            f"the first stage's score of node {node.node_id} is NaN or infinity, and cannot be "
            "added; mend the retriever's scores, or leave first_stage out"
        )
    values = np.zeros(len(documents))
    # Equal numbers can have a standard deviation just above 0.
    if found.size and np.ptp(found) > 0:
        centred = found - found.mean()
        values[scored] = centred if scale == "log_odds" else centred / found.std()
    return FirstStageScores(values, scale, len(documents) - len(scored))


def first_stage_adds(
    first_stage: float | FirstStage, documents: Sequence[Sequence[NodeWithScore]]
) -> FloatArray:
    """The first stage's part of each candidate's log odds.

    Args:
        first_stage: a weight, or a learnt one.
        documents: as for ``first_stage_scores``.

    Returns:
        Shape (n,).

    Raises:
        ValueError: as for ``first_stage_scores``; or the weight was learnt on another scale.
    """
    found = first_stage_scores(documents)
    if found.missing:
        logger.warning(
            "%d of %d documents have no score of the first stage: only the reranker's counts there",
            found.missing,
            len(documents),
        )
    if not isinstance(first_stage, FirstStage):
        return first_stage * found.values
    if found.scale != first_stage.scale and found.missing < len(documents):
        raise InvalidValueError(
            f"the first stage's weight was learnt on the scale {first_stage.scale!r}, and this "
            f"retriever's scores are on {found.scale!r}; learn one with this retriever, or pass "
            "the weight as a number"
        )
    return first_stage.weight * found.values


def added_log_odds(
    probabilities: Sequence[float | None], first_stage: npt.ArrayLike, weight: float = 1.0
) -> FloatArray:
    """The log odds that rank the candidates: the reranker's plus the first stage's.

    The sum with weight 1 is exact if the errors of the two are independent (naive Bayes). A weight
    below 1 trusts the first stage less, and allows for errors that both make.

    Args:
        probabilities: the reranker's probability of each of n candidates; None for a candidate
            without one.
        first_stage: values of ``first_stage_scores``, shape (n,).
        weight: the weight of the first stage; 1 if the values are weighted already.

    Returns:
        Shape (n,); minus infinity for a candidate without a probability.

    Raises:
        ValueError: a number is no probability, the weight is negative, or the lengths differ.
    """
    check_weight(weight)
    first = np.asarray(first_stage, dtype=np.float64)
    if first.shape != (len(probabilities),):
        raise InvalidValueError(
            f"{len(probabilities)} probabilities, but first_stage has shape {first.shape}; give "
            "one value for each candidate"
        )
    found = np.array([np.nan if each is None else each for each in probabilities], dtype=float)
    known = ~np.isnan(found)
    outside = (found < -NEAREST) | (found > 1 + NEAREST)
    if outside.any():
        raise InvalidValueError(
            f"the reranker gave {found[outside][0]:g}, which is no probability and has no log "
            "odds; pass a calibrator to MultiModalRerank, or leave first_stage out"
        )
    odds = np.full(len(found), -np.inf)
    odds[known] = logit(found[known].clip(NEAREST, 1 - NEAREST)) + weight * first[known]
    return odds


def check_first_stage(given: object) -> float | FirstStage:
    """Check early that this is a valid ``first_stage`` of a reranker.

    Raises:
        ValueError: it is neither a weight nor a learnt one.
    """
    return given if isinstance(given, FirstStage) else check_weight(given)


def check_weight(weight: object) -> float:
    """Check early that this is a valid weight of the first stage.

    Raises:
        ValueError: it is not a number of at least 0.
    """
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not 0 <= (value := float(cast("float", weight))) < np.inf:
        raise InvalidValueError(
            f"the first stage's weight is {weight!r}: must be a number of at least 0, such as 0.5; "
            "None for the reranker alone"
        )
    return value


def _found_with(hit: NodeWithScore) -> float | None:
    """The retriever's score, before any reranker."""
    scores = hit.scores if isinstance(hit, ScoredNode) else {}
    reranked = any(name.startswith("rerank_") for name in scores)
    return scores.get("retrieval", None if reranked else hit.score)


def _best(scores: Any) -> float | None:
    return max((each for each in scores if each is not None), default=None)
