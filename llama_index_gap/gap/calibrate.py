"""Calibration: scores become probabilities of relevance, for each pair of modalities."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.files import write_at_once
from llama_index_gap.gap.arrays import BoolArray, FloatArray
from llama_index_gap.modality import LEGS

Method: TypeAlias = Literal["isotonic", "logistic"]
Labelled: TypeAlias = tuple[npt.ArrayLike, npt.ArrayLike]

PAIRS = tuple(leg.pair for leg in LEGS)
"""The pairs of modalities, the query's modality first."""
FEWEST_LABELS = 10
"""Minimum number of relevant hits and of irrelevant hits.

With fewer than nine relevant hits no probability could reach 0.9 (see ``fit``).
"""
_KNOTS = 101


@dataclass(frozen=True)
class Curve:
    """Maps a score to a probability, by linear interpolation of log-odds between knots.

    Attributes:
        scores: of the knots, in rising order.
        log_odds: of relevance, at each knot; they never fall. They are constant below the first
            knot and above the last.
        precision: for each knot, the mean probability of the fitted scores at or above it.
        relevant: how many relevant hits it was fitted on.
        irrelevant: how many other hits it was fitted on.
    """

    scores: tuple[float, ...]
    log_odds: tuple[float, ...]
    precision: tuple[float, ...]
    relevant: int
    irrelevant: int

    def __post_init__(self) -> None:
        columns = self.scores, self.log_odds, self.precision
        if not self.scores or len({len(column) for column in columns}) != 1:
            raise InvalidValueError(
                "a curve must have equally many scores, log-odds and precisions, at least one"
            )
        if not np.isfinite(columns).all():
            raise InvalidValueError("a curve holds NaN or infinity")
        if not all(isinstance(count, int) for count in (self.relevant, self.irrelevant)):
            raise InvalidValueError("a curve's counts of hits must be whole numbers")
        if (np.diff(self.scores) <= 0).any() or (np.diff(self.log_odds) < 0).any():
            raise InvalidValueError("a curve's scores must rise, and its log-odds never fall")

    def probability(self, scores: FloatArray) -> FloatArray:
        """The probability of each score."""
        return np.asarray(expit(np.interp(scores, self.scores, self.log_odds)), dtype=np.float64)


@dataclass(frozen=True)
class RelevanceCalibrator:
    """Turns scores into probabilities of relevance, separately for each pair of modalities.

    For CLIP, a cosine of 0.33 is very high between a text and an image, but low between two texts.
    A probability of 0.5 means the same for both. It is valid for hits like the fitted ones:
    candidates of the same index or the same reranker, few of which are relevant. Fit again if many
    more or many fewer are relevant (another corpus, another kind of query).

    Attributes:
        curves: one for each fitted pair.
        method: of the fit.
        source: of the scores, such as the models of an index; ``""`` if unknown.
    """

    curves: Mapping[str, Curve]
    method: Method
    source: str = ""

    @classmethod
    def fit(
        cls, labelled: Mapping[str, Labelled], method: Method = "isotonic", *, source: str = ""
    ) -> RelevanceCalibrator:
        """Learn the probabilities from labelled hits.

        - ``isotonic``: the rising step function nearest to the labels (Zadrozny and Elkan, KDD
          2002), with linear interpolation of log-odds between the steps. One relevant hit is added
          below all others and one irrelevant hit above, so no probability is 0 or 1: n relevant
          hits at the top give n/(n + 1), and uninformative scores give Laplace's
          (relevant + 1)/(all + 2).
        - ``logistic``: a sigmoid with Platt's smoothed targets (*Probabilistic outputs for support
          vector machines*, 1999). It is constant beyond the fitted scores, and everywhere if higher
          scores are not better. It fits two numbers for each pair, so it needs few labels. With a
          thousand labels or more, isotonic is usually more accurate (Niculescu-Mizil and Caruana,
          ICML 2005).

        Args:
            labelled: for each pair of modalities (``text_to_image``: a text query, an image hit)
                the scores of hits, shape (n,), higher is better; and whether each is relevant,
                shape (n,).
            method: as above.
            source: of the scores, such as the models of an index or a reranker's name;
                ``check_source`` compares it.

        Raises:
            ValueError: a pair or the method is unknown; the numbers of scores and labels differ;
                there is NaN or infinity, or a label other than 0 and 1; there are fewer than 10
                relevant or 10 irrelevant hits.
        """
        fit = _isotonic if _method(method) == "isotonic" else _logistic
        if not labelled:
            raise InvalidValueError(
                f"there are no labelled scores; give them for any of {', '.join(PAIRS)}"
            )
        curves = {pair: _curve(pair, *data, fit) for pair, data in labelled.items()}
        return cls(curves, method, source)

    def probability(self, pair: str, scores: npt.ArrayLike) -> FloatArray:
        """The probability that a hit with this score is relevant.

        Args:
            pair: of modalities, such as ``text_to_image``.
            scores: shape (n,).

        Returns:
            Shape (n,), between 0 and 1; never lower for a higher score.

        Raises:
            ValueError: the pair was not fitted, or a score is NaN or infinite.
        """
        return self._curve(pair).probability(_finite(pair, scores))

    def threshold(self, pair: str, precision: float = 0.9) -> float:
        """The lowest score for which this share of the hits at or above it is relevant.

        It is computed from the probabilities: by counting labels, one lucky hit at the top would
        give a precision of 1. The hit just above the threshold may be less probable than
        ``precision``. To keep only hits that are each this probable, compare ``probability``.

        Args:
            pair: of modalities, such as ``text_to_image``.
            precision: the wanted share, between 0 and 1.

        Returns:
            The score, to a hundredth of the fitted scores' range. ``inf`` if no threshold reaches
            the precision on the fitted labels: ask for a lower one, or fit on more queries.

        Raises:
            ValueError: the pair was not fitted, or ``precision`` is out of range.
        """
        if not 0 < precision < 1:
            raise InvalidValueError(f"precision={precision}: must lie between 0 and 1")
        curve = self._curve(pair)
        reached = zip(curve.scores, curve.precision, strict=True)
        return next((score for score, share in reached if share >= precision), math.inf)

    def check_source(self, source: str) -> None:
        """Check that the calibrator was fitted for scores of this source.

        Raises:
            ValueError: it was fitted for another source, or for an unknown one.
        """
        if self.source != source:
            fitted = f"for {self.source}" if self.source else "without a source"
            raise InvalidValueError(
                f"the calibrator was fitted {fitted}, but these scores are of {source}; fit one on "
                f"these scores, with source={source!r}"
            )

    def check_pairs(self, needed: Sequence[Sequence[str]]) -> None:
        """Check that the calibrator covers at least one kind of query.

        Args:
            needed: the pairs of modalities that each kind of query needs.

        Raises:
            ValueError: it covers no kind of query.
        """
        if not any(self.curves.keys() >= set(pairs) for pairs in needed):
            raise InvalidValueError(
                f"the calibrator was fitted for {', '.join(self.curves)}, but a query needs "
                + " or ".join(" and ".join(pairs) for pairs in needed)
            )

    def summary(self) -> str:
        """The method and the fitted hits, in one line."""
        pairs = ", ".join(
            f"{pair} on {curve.relevant:,} relevant and {curve.irrelevant:,} other hits"
            for pair, curve in self.curves.items()
        )
        return f"{self.method}: {pairs}"

    # --- keeping it ------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The whole calibrator, in types that JSON knows."""
        curves = {pair: asdict(curve) for pair, curve in self.curves.items()}
        return {"method": self.method, "source": self.source, "curves": curves}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RelevanceCalibrator:
        """Make a calibrator from the result of ``to_dict``.

        Raises:
            ValueError: it does not describe a calibrator.
        """
        try:
            curves = {
                _known(pair): Curve(
                    scores=tuple(curve["scores"]),
                    log_odds=tuple(curve["log_odds"]),
                    precision=tuple(curve["precision"]),
                    relevant=curve["relevant"],
                    irrelevant=curve["irrelevant"],
                )
                for pair, curve in content["curves"].items()
            }
            return cls(curves, _method(content["method"]), content["source"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidValueError(
                f"this is not a calibrator in the form that to_dict gives: {error!r}"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write it to a JSON file, completely or not at all."""
        write_at_once(Path(path), json.dumps(self.to_dict(), indent=1).encode())

    @classmethod
    def load(cls, path: str | Path) -> RelevanceCalibrator:
        """Read a calibrator that ``save`` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: the file holds no calibrator.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise InvalidValueError(
                f"{path} holds no calibrator ({str(error)[:200]}); fit it again"
            ) from error

    def _curve(self, pair: str) -> Curve:
        if pair not in self.curves:
            _known(pair)
            raise InvalidValueError(
                f"the calibrator was not fitted for {pair}, only for {', '.join(self.curves)}; "
                "fit it with labelled hits of that pair too"
            )
        return self.curves[pair]


# --- how good probabilities are ------------------------------------------------------------------


def expected_calibration_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 15
) -> float:
    """How far probabilities are from the true shares of relevant hits: 0 is perfect.

    Hits are put into bins of equal width by their probability. The error is the mean over the hits
    of the distance between their bin's mean probability and its share of relevant hits (Naeini et
    al., AAAI 2015; Guo et al., ICML 2017, with 15 bins). If few hits are relevant, a constant has a
    low error too, so look at ``brier_score`` as well. Bins with few hits make the error too high.

    Args:
        probabilities: shape (n,), between 0 and 1.
        labels: whether each is relevant, shape (n,).
        bins: number of bins.

    Raises:
        ValueError: the values are not probabilities and labels, their numbers differ, or ``bins``
            is below 1.
    """
    values, relevant = _probabilities_and_labels(probabilities, labels)
    if bins < 1:
        raise InvalidValueError(f"bins={bins}: must be at least 1")
    # A bin's distance times its share of the hits is the distance of its sums over all hits.
    bin_of = np.minimum((values * bins).astype(np.int64), bins - 1)
    surplus = np.bincount(bin_of, weights=values - relevant)
    return float(np.abs(surplus).sum() / len(values))


def brier_score(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean squared distance of probabilities from the labels, 1 or 0 (Brier, 1950).

    Args:
        probabilities: shape (n,), between 0 and 1.
        labels: whether each is relevant, shape (n,).

    Raises:
        ValueError: the values are not probabilities and labels, or their numbers differ.
    """
    values, relevant = _probabilities_and_labels(probabilities, labels)
    return float(np.square(values - relevant).mean())


def _probabilities_and_labels(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[FloatArray, BoolArray]:
    values = _finite("probabilities", probabilities)
    relevant = _labels("probabilities", labels, values)
    if not values.size or values.min() < 0 or values.max() > 1:
        raise InvalidValueError("probabilities must lie between 0 and 1, and there must be one")
    return values, relevant


# --- fitting -------------------------------------------------------------------------------------


def _curve(
    pair: str,
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    fit: Callable[[FloatArray, BoolArray], tuple[FloatArray, FloatArray]],
) -> Curve:
    values = _finite(_known(pair), scores)
    relevant = _labels(pair, labels, values)
    counts = int(relevant.sum()), int((~relevant).sum())
    if min(counts) < FEWEST_LABELS:
        raise InvalidValueError(
            f"{pair}: {counts[0]} relevant and {counts[1]} irrelevant hits; probabilities need at "
            f"least {FEWEST_LABELS} of each: label more queries, or take more hits of each query"
        )
    bends, line = fit(values, relevant)
    ascending = np.sort(values)
    # For ``threshold``: the lowest fitted score of each hundredth of the range.
    grid = np.searchsorted(ascending, np.linspace(ascending[0], ascending[-1], _KNOTS))
    knots = np.unique(np.r_[bends, ascending[grid]])
    log_odds = np.interp(knots, bends, line).round(9)
    probabilities = expit(np.interp(ascending, knots, log_odds))
    upward = np.cumsum(probabilities[::-1])[::-1] / np.arange(len(values), 0, -1)
    # Rounded, so that nine hits at 9/10 reach 0.9.
    precision = upward[np.searchsorted(ascending, knots)].round(9)
    return Curve(
        tuple(knots.tolist()), tuple(log_odds.tolist()), tuple(precision.tolist()), *counts
    )


def _isotonic(scores: FloatArray, labels: BoolArray) -> tuple[FloatArray, FloatArray]:
    """The scores at both ends of each step, and the step's log-odds."""
    from scipy.optimize import isotonic_regression  # slow to import, and only needed to fit

    distinct, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    shares = np.bincount(which, weights=labels) / counts
    steps = isotonic_regression(np.r_[1.0, shares, 0.0], weights=np.r_[1, counts, 1])
    ends = np.r_[steps.blocks[:-1], steps.blocks[1:] - 1].clip(1, len(distinct))
    knots = np.unique(ends) - 1  # without the hit added below
    return distinct[knots], np.asarray(logit(steps.x[1:-1][knots]), dtype=np.float64)


def _logistic(scores: FloatArray, labels: BoolArray) -> tuple[FloatArray, FloatArray]:
    """The lowest and the highest score, and the fitted log-odds at them."""
    from scipy.optimize import minimize

    relevant, irrelevant = labels.sum(), (~labels).sum()
    targets = np.where(labels, (relevant + 1) / (relevant + 2), 1 / (irrelevant + 2))
    spread = scores.std() if np.ptp(scores) > 0 else 1.0
    standard = (scores - scores.mean()) / spread

    def loss(line: FloatArray) -> tuple[float, FloatArray]:
        log_odds = line[0] * standard + line[1]
        surplus = expit(log_odds) - targets
        cross_entropy = np.logaddexp(0, log_odds) - targets * log_odds
        return float(cross_entropy.mean()), np.array([surplus @ standard, surplus.sum()]) / len(
            targets
        )

    start = np.array([0.0, logit(targets.mean())])
    bounds = [(0, None), (None, None)]
    slope, intercept = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    ends = np.unique([scores.min(), scores.max()])
    return ends, slope * (ends - scores.mean()) / spread + intercept


# --- checks --------------------------------------------------------------------------------------


def _method(method: str) -> Method:
    if method not in get_args(Method):
        raise InvalidValueError(f"method={method!r}: must be one of {', '.join(get_args(Method))}")
    return cast(Method, method)


def _known(pair: str) -> str:
    if pair not in PAIRS:
        raise InvalidValueError(f"pair {pair!r}: must be one of {', '.join(PAIRS)}")
    return pair


def _finite(name: str, values: npt.ArrayLike) -> FloatArray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise InvalidValueError(
            f"{name}: must be one number for each hit, not an array of shape {numbers.shape}"
        )
    if not np.isfinite(numbers).all():
        raise InvalidValueError(
            f"{name}: NaN or infinity at {int(np.argmin(np.isfinite(numbers)))}"
        )
    return numbers


def _labels(name: str, labels: npt.ArrayLike, values: FloatArray) -> BoolArray:
    numbers = _finite(f"{name}, labels", labels)
    if numbers.shape != values.shape:
        raise InvalidValueError(
            f"{name}: {len(values)} hits have {len(numbers)} labels; give one for each"
        )
    if not np.isin(numbers, (0, 1)).all():
        raise InvalidValueError(
            f"{name}: labels must be 1 (relevant) or 0, or True or False; grades are not labels"
        )
    return numbers.astype(np.bool_)
