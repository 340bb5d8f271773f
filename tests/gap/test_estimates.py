from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from llama_index_gap.gap.estimates import Estimate, bootstrap


def test_bootstrap_of_a_mean() -> None:
    """It agrees with the textbook interval: the mean ± 1.96 standard errors."""
    numbers = np.random.default_rng(0).normal(5, 2, size=400)

    found = bootstrap(
        lambda counts: {"mean": float(np.average(numbers, weights=counts))}, np.zeros(400)
    )["mean"]

    error = 1.96 * numbers.std() / 20
    assert found.value == pytest.approx(numbers.mean())
    assert found.low == pytest.approx(numbers.mean() - error, abs=0.15 * error)
    assert found.high == pytest.approx(numbers.mean() + error, abs=0.15 * error)


def test_bootstrap_draws_each_stratum_by_itself() -> None:
    drawn: list[npt.NDArray[np.float64]] = []
    strata = np.array([0, 1, 1, 0, 1])

    def figures(counts: npt.NDArray[np.float64]) -> dict[str, float]:
        drawn.append(counts.copy())
        return {"nothing": 0.0}

    bootstrap(figures, strata, rounds=50)

    assert drawn[0].tolist() == [1, 1, 1, 1, 1]
    assert all(counts[strata == 0].sum() == 2 for counts in drawn)
    assert all(counts[strata == 1].sum() == 3 for counts in drawn)
    assert len({tuple(counts) for counts in drawn}) > 10


def test_bootstrap_says_by_its_seed_what_it_draws() -> None:
    def run(seed: int) -> dict[str, Estimate]:
        return bootstrap(lambda counts: {"first": counts[0]}, np.zeros(30), seed=seed)

    assert run(1) == run(1)
    assert bootstrap(lambda _: {"constant": 3}, [0])["constant"] == Estimate(3, 3, 3)


def test_an_interval_holds_its_figure() -> None:
    """No resample contains all of the different units."""
    found = bootstrap(lambda counts: {"drawn": float((counts > 0).mean())}, np.zeros(50))["drawn"]

    assert found.low < 0.7 < found.high == found.value == 1


@pytest.mark.parametrize(
    ("strata", "settings", "message"),
    [
        ([], {}, r"strata of shape \(0,\)"),
        ([[0]], {}, r"strata of shape \(1, 1\)"),
        ([0], {"rounds": 0}, "rounds=0: must be at least 1"),
    ],
)
def test_what_bootstrap_refuses(strata: object, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(lambda counts: {"n": len(counts)}, strata, **settings)


def test_bootstrap_refuses_what_is_no_number_in_some_draw() -> None:
    def figures(counts: npt.NDArray[np.float64]) -> dict[str, float]:
        return {"ratio": 1.0 if counts[0] else np.nan}

    with pytest.raises(ValueError, match="ratio is not a number in some draws"):
        bootstrap(figures, np.zeros(5))
