from __future__ import annotations

import numpy as np
import pytest

from llama_index_gap.gap.arrays import unit_rows
from llama_index_gap.gap.hubs import (
    NEAREST,
    Hubs,
    hub_strength,
    hubness,
    reliability,
    spare_itself,
)

AXES = np.eye(4, dtype=np.float32)


def test_hubness_is_the_mean_of_the_nearest_references() -> None:
    vectors = unit_rows([[1, 1, 0, 0], [0, 0, 0, 1]])

    assert hubness(vectors, AXES[:3], k=2) == pytest.approx([np.sqrt(0.5), 0])
    assert hubness(vectors, AXES[:3], k=3) == pytest.approx([2 * np.sqrt(0.5) / 3, 0])
    assert hubness(vectors, AXES[:3], k=99) == pytest.approx([2 * np.sqrt(0.5) / 3, 0])


def test_a_vector_does_not_count_for_itself() -> None:
    references = unit_rows([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])

    assert hubness(references[:1], references, k=2) == pytest.approx([np.sqrt(0.5) / 2])
    assert hubness(AXES[:1], AXES[:1]).tolist() == [0]  # there is no other reference
    assert (
        hubness(np.repeat(AXES[:1], 9, axis=0), np.repeat(AXES[:1], 9, axis=0)).tolist() == [0] * 9
    )


def test_without_vectors_or_references() -> None:
    nothing = np.zeros((0, 4), dtype=np.float32)

    assert hubness(nothing, AXES).shape == (0,)
    assert hubness(AXES, nothing).tolist() == [0] * 4
    assert reliability(nothing, AXES) == reliability(AXES, nothing) == 0


def drawn(n: int, *, towards: float, seed: int) -> np.ndarray:
    """Random vectors that lean towards one direction, some more than others: these are hubs."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 64))
    rows[:, 0] += towards * rng.uniform(0, 12, n)
    return unit_rows(rows)


def test_real_hubs_are_told_from_chance() -> None:
    assert reliability(drawn(300, towards=1, seed=0), drawn(300, towards=1, seed=1)) > 0.9
    assert reliability(drawn(300, towards=0, seed=0), drawn(300, towards=0, seed=1)) < 0.25


@pytest.mark.parametrize(
    ("vectors", "references"), [(2 * NEAREST - 1, 300), (300, 2 * NEAREST - 1)]
)
def test_too_few_say_nothing(vectors: int, references: int) -> None:
    few = drawn(vectors, towards=1, seed=0)

    assert reliability(few, drawn(references, towards=1, seed=1)) == 0
    assert Hubs.found(few, drawn(references, towards=1, seed=1)) is None


def test_constant_vectors_and_duplicates_are_no_hubs() -> None:
    same = np.repeat(AXES[:1], 100, axis=0)

    assert reliability(same, drawn(100, towards=1, seed=0)[:, :4]) == 0
    assert Hubs.found(same, same) is None


def test_what_is_taken_off_grows_with_the_reliability() -> None:
    references = drawn(40, towards=1, seed=0)
    vectors = drawn(3, towards=1, seed=1)

    assert Hubs(references, 0.5).of(vectors) == pytest.approx(0.5 * hubness(vectors, references))


def test_what_the_query_is_itself_stays_first() -> None:
    assert spare_itself([0.1, 0.2, 0.3], [0.9, 1.0, 1.0 + 1e-7]).tolist() == [0.1, 0, 0]


def test_strength() -> None:
    assert [hub_strength(setting) for setting in (True, False, 0, 0.5, 1)] == [0.6, 0, 0, 0.5, 1]
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="must be True, False, or a number from 0 to 1"):
            hub_strength(wrong)
