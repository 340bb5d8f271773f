from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from llama_index_gap.gap.calibrate import (
    Curve,
    RelevanceCalibrator,
    brier_score,
    expected_calibration_error,
)

PAIR = "text_to_image"
METHODS = ("isotonic", "logistic")
Labelled = tuple[list[float], list[int]]


def hits(*groups: tuple[float, int, int]) -> Labelled:
    """Labelled hits, from (score, relevant, irrelevant)."""
    scores = [score for score, yes, no in groups for _ in range(yes + no)]
    labels = [label for _, yes, no in groups for label in [1] * yes + [0] * no]
    return scores, labels


# Six scores; the shares of relevant hits fall once, from 2/4 to 1/4.
SIX = hits((0.1, 0, 5), (0.2, 1, 3), (0.3, 2, 2), (0.4, 1, 3), (0.5, 4, 1), (0.6, 9, 0))


def fitted(data: tuple[Any, Any] = SIX, method: str = "isotonic") -> RelevanceCalibrator:
    return RelevanceCalibrator.fit({PAIR: data}, method)


# --- isotonic ------------------------------------------------------------------------------------


def test_isotonic_on_six_scores() -> None:
    """0.3 and 0.4 are pooled; one hit is added beyond each end."""
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]

    probabilities = fitted().probability(PAIR, scores)

    assert probabilities == pytest.approx([1 / 6, 1 / 4, 3 / 8, 3 / 8, 4 / 5, 9 / 10])


def test_between_steps_log_odds_go_straight_and_beyond_them_level() -> None:
    low, middle, high = fitted().probability(PAIR, [-9, 0.55, 9])

    assert (low, high) == (pytest.approx(1 / 6), pytest.approx(9 / 10))
    assert middle / (1 - middle) == pytest.approx(math.sqrt(4 * 9))  # between odds of 4 and of 9


@pytest.mark.parametrize("scores", [[0.5] * 40, list(range(40))])
def test_uninformative_scores_give_laplace_s_share(scores: list[float]) -> None:
    """All scores are equal, or all relevant hits score lower than the others."""
    calibrator = fitted((scores, [1] * 10 + [0] * 30))

    assert calibrator.probability(PAIR, scores) == pytest.approx([11 / 42] * 40)


# --- logistic ------------------------------------------------------------------------------------


def test_logistic_recovers_a_known_sigmoid() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0.25, 0.1, 100_000)
    truth = expit(30 * (scores - 0.35))

    calibrator = fitted((scores, rng.random(100_000) < truth), "logistic")

    assert calibrator.probability(PAIR, scores) == pytest.approx(truth, abs=0.02)


def test_logistic_with_platt_s_targets_is_sure_of_nothing() -> None:
    """Ten hits of each kind at two scores: the sigmoid meets 11/12 and 1/12 exactly."""
    calibrator = fitted(([0.2] * 10 + [0.4] * 10, [0] * 10 + [1] * 10), "logistic")

    assert calibrator.probability(PAIR, [0.2, 0.3, 0.4]) == pytest.approx(
        [1 / 12, 1 / 2, 11 / 12], abs=1e-4
    )


def test_logistic_is_level_where_higher_is_not_better() -> None:
    calibrator = fitted(([0.4] * 10 + [0.2] * 10, [0] * 10 + [1] * 10), "logistic")

    assert calibrator.probability(PAIR, [0.2, 0.4]) == pytest.approx([0.5, 0.5], abs=1e-4)


# --- both ----------------------------------------------------------------------------------------

SCORES = st.lists(st.floats(-100, 100, width=32), min_size=20, max_size=60)


@given(SCORES, st.randoms(use_true_random=False), st.sampled_from(METHODS))
def test_probabilities_never_fall_and_are_never_certain(
    scores: list[float], random: Any, method: str
) -> None:
    labels = [1] * 10 + [0] * 10 + [random.randint(0, 1) for _ in scores[20:]]
    random.shuffle(labels)

    calibrator = fitted((scores, labels), method)
    probabilities = calibrator.probability(PAIR, np.sort([*scores, -1e3, 1e3, 0.123]))

    assert (np.diff(probabilities) >= 0).all()
    assert probabilities.min() > 0
    assert probabilities.max() < 1
    assert RelevanceCalibrator.from_dict(json.loads(json.dumps(calibrator.to_dict()))) == calibrator


@given(SCORES, st.randoms(use_true_random=False))
def test_isotonic_is_calibrated_on_its_own_labels(scores: list[float], random: Any) -> None:
    """Except for the two hits that it adds."""
    labels = np.array([1] * 10 + [0] * 10 + [random.randint(0, 1) for _ in scores[20:]])

    probabilities = fitted((scores, labels)).probability(PAIR, scores)

    for value in np.unique(probabilities):
        assert abs((probabilities - labels)[probabilities == value].sum()) <= 1 + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_each_pair_has_its_own_scale(method: str) -> None:
    texts = [0.5 + score for score in SIX[0]]
    labelled = {"text_to_text": (texts, SIX[1]), PAIR: SIX}
    calibrator = RelevanceCalibrator.fit(labelled, method)

    assert calibrator.probability("text_to_text", texts) == pytest.approx(
        calibrator.probability(PAIR, SIX[0]), abs=1e-6
    )
    assert calibrator.probability("text_to_text", [0.6])[0] < 0.2
    assert calibrator.probability(PAIR, [0.6])[0] > 0.8


def test_inputs_stay_as_they_are() -> None:
    scores, labels = np.array(SIX[0]), np.array(SIX[1])

    fitted((scores, labels)).probability(PAIR, scores)

    assert (scores.tolist(), labels.tolist()) == SIX


# --- thresholds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "threshold"),
    [
        # Nine hits at 9/10, five at 4/5, eight at 3/8, four at 1/4, five at 1/6.
        (0.9, 0.6),
        (0.87, 0.6),
        (0.86, 0.5),  # (9 × 0.9 + 5 × 0.8) / 14 = 0.864
        (0.75, 0.4),  # the upper half of a step: (8.1 + 4 + 4 × 3/8) / 18 = 0.756
        (0.68, 0.3),  # all of it: (8.1 + 4 + 8 × 3/8) / 22 = 0.686
        (0.1, 0.1),
        (0.95, math.inf),
    ],
)
def test_threshold(precision: float, threshold: float) -> None:
    assert fitted().threshold(PAIR, precision) == threshold


@pytest.mark.parametrize("method", METHODS)
def test_from_the_threshold_on_the_precision_is_reached(method: str) -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=200_000)
    labels = rng.random(200_000) < expit(3 * scores - 4)
    calibrator = fitted((scores[:100_000], labels[:100_000]), method)

    for precision in (0.3, 0.6, 0.9):
        above = scores[100_000:] >= calibrator.threshold(PAIR, precision)
        assert labels[100_000:][above].mean() == pytest.approx(precision, abs=0.05)


# --- keeping it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded(method: str, tmp_path: Path) -> None:
    calibrator = RelevanceCalibrator.fit({PAIR: SIX}, method, source="a model")

    calibrator.save(tmp_path / "calibrator.json")
    again = RelevanceCalibrator.load(tmp_path / "calibrator.json")

    assert again == calibrator
    assert again.source == "a model"
    assert again.probability(PAIR, SIX[0]).tolist() == calibrator.probability(PAIR, SIX[0]).tolist()


def test_it_remembers_what_it_was_fitted_for() -> None:
    calibrator = RelevanceCalibrator.fit({PAIR: SIX}, source="CLIP")

    calibrator.check_source("CLIP")
    with pytest.raises(ValueError, match="fitted for CLIP, but these scores are of SigLIP"):
        calibrator.check_source("SigLIP")
    with pytest.raises(ValueError, match="without a source, but these scores are of CLIP"):
        fitted().check_source("CLIP")
    assert calibrator.summary() == "isotonic: text_to_image on 17 relevant and 14 other hits"


# --- measures of calibration ---------------------------------------------------------------------


def test_expected_calibration_error_by_hand() -> None:
    """Two bins: four hits at 0.2, one relevant (0.05 off); one at 0.9, relevant (0.1 off)."""
    probabilities, labels = [0.2, 0.2, 0.2, 0.2, 0.9], [0, 1, 0, 0, 1]

    error = expected_calibration_error(probabilities, labels, bins=2)

    assert error == pytest.approx(4 / 5 * 0.05 + 1 / 5 * 0.1)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0
    assert expected_calibration_error([0.0, 1.0], [1, 0]) == 1


def test_brier_score_by_hand() -> None:
    assert brier_score([0.5, 1.0], [1, 0]) == pytest.approx((0.25 + 1) / 2)
    assert brier_score([0.0, 1.0], [False, True]) == 0


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labelled", "message"),
    [
        ({}, "there are no labelled scores; give them for any of text_to_text, text_to_image"),
        ({"text_to_sound": SIX}, "pair 'text_to_sound': must be one of text_to_text, "),
        (
            {PAIR: hits((0.1, 0, 50))},
            "text_to_image: 0 relevant and 50 irrelevant hits; .* at least 10 of each:",
        ),
        ({PAIR: hits((0.1, 9, 50))}, "9 relevant and 50 irrelevant hits"),
        ({PAIR: hits((0.1, 50, 9))}, "50 relevant and 9 irrelevant hits"),
        ({PAIR: ([0.1] * 19 + [math.nan], [0, 1] * 10)}, "text_to_image: NaN or infinity at 19"),
        ({PAIR: ([-math.inf] + [0.1] * 19, [0, 1] * 10)}, "text_to_image: NaN or infinity at 0"),
        ({PAIR: ([0.1] * 21, [0, 1] * 10)}, "text_to_image: 21 hits have 20 labels"),
        ({PAIR: ([0.1] * 20, [0, 2] * 10)}, r"labels must be 1 \(relevant\) or 0"),
        ({PAIR: ([[0.1]] * 20, [0, 1] * 10)}, r"one number for each hit, not .* shape \(20, 1\)"),
    ],
)
def test_labels_that_cannot_be_fitted(labelled: dict[str, Labelled], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RelevanceCalibrator.fit(labelled)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fitted(method="platt"), "method='platt': must be one of isotonic, logistic"),
        (
            lambda: fitted().probability("text_to_text", [0.1]),
            "was not fitted for text_to_text, only for text_to_image",
        ),
        (lambda: fitted().probability("sound", [0.1]), "pair 'sound': must be one of"),
        (lambda: fitted().probability(PAIR, [math.nan]), "NaN or infinity at 0"),
        (lambda: fitted().threshold("image_to_text"), "was not fitted for image_to_text"),
        (lambda: fitted().threshold(PAIR, 1.0), "precision=1.0: must lie between 0 and 1"),
        (lambda: brier_score([1.2], [1]), "probabilities must lie between 0 and 1"),
        (lambda: brier_score([], []), "and there must be one"),
        (lambda: expected_calibration_error([0.5], [1], bins=0), "bins=0: must be at least 1"),
        (lambda: expected_calibration_error([0.5], [1, 0]), "1 hits have 2 labels"),
        (
            lambda: RelevanceCalibrator.from_dict({"curves": {}}),
            "not a calibrator in the form that to_dict gives",
        ),
        (
            lambda: RelevanceCalibrator.from_dict({**fitted().to_dict(), "method": "guess"}),
            "method='guess'",
        ),
        (lambda: Curve((2.0, 1.0), (0.0, 0.0), (0.5, 0.5), 10, 10), "scores must rise"),
        (lambda: Curve((1.0, 2.0), (0.0, -1.0), (0.5, 0.5), 10, 10), "log-odds never fall"),
        (lambda: Curve((1.0,), (0.0, 1.0), (0.5,), 10, 10), "equally many scores, log-odds"),
        (lambda: Curve((1.0,), (math.inf,), (0.5,), 10, 10), "NaN or infinity"),
    ],
)
def test_what_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- on real features ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_real_clip_features(method: str, gap_shared: Path) -> None:
    """COCO captions are queries for images, and images for captions; the first 16 hits of 500.

    Half of the queries serve to fit. On the other half, a cosine read as a probability has an error
    of 0.23, and the fitted probability has 0.010 (0.005 to 0.017, over 20 random halves).
    """
    features = np.load(gap_shared / "data" / "clip_features" / "features_clip.npy")
    images, texts = features / np.linalg.norm(features, axis=-1, keepdims=True)
    cosines = {"text_to_image": texts @ images.T, "image_to_text": images @ texts.T}
    halves = np.split(np.random.default_rng(0).permutation(500), 2)

    def first_hits(pair: str, queries: npt.NDArray[np.intp]) -> tuple[Any, Any]:
        scores = cosines[pair][queries]
        ranked = np.argsort(-scores, axis=1)[:, :16]
        return (
            np.take_along_axis(scores, ranked, axis=1).ravel(),
            (ranked == queries[:, None]).ravel(),
        )

    fit, test = ({pair: first_hits(pair, half) for pair in cosines} for half in halves)
    calibrator = RelevanceCalibrator.fit(fit, method)
    for pair, (scores, labels) in test.items():
        probabilities = calibrator.probability(pair, scores)
        constant = np.full(len(labels), labels.mean())

        assert expected_calibration_error(scores, labels) > 0.2
        assert expected_calibration_error(probabilities, labels) < 0.02
        assert brier_score(probabilities, labels) < 0.85 * brier_score(constant, labels)
