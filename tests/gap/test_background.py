from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from llama_index_gap.gap.arrays import unit_rows
from llama_index_gap.gap.background import (
    Background,
    background_z,
    normal_equivalent,
    range_of_spreads,
)
from llama_index_gap.gap.hubs import Hubs


def test_few_vectors_go_by_student_s_t() -> None:
    """Mean 2, standard deviation 1: (5 − 2) / √(1 + 1/3), with 2 degrees of freedom."""
    (found,) = background_z([5.0], [1.0, 2.0, 3.0])

    assert found == pytest.approx(norm.isf(t.sf(3 / np.sqrt(4 / 3), 2)))


def test_a_hit_is_left_out_of_its_own_background() -> None:
    background = [1.0, 2.0, 3.0, 9.0]

    inside = background_z([9.0, 3.0], background, places=[3, 2])

    assert inside[0] == background_z([9.0], [1.0, 2.0, 3.0])[0]
    assert inside[1] == background_z([3.0], [1.0, 2.0, 9.0])[0]


def test_with_many_vectors_it_is_nearly_the_plain_z_score() -> None:
    background = norm.ppf((np.arange(5000) + 0.5) / 5000)  # normal, without chance

    assert background_z([0, 2, 4], background) == pytest.approx([0, 2, 4], abs=0.05)


def test_where_the_subject_spreads_the_upper_scores_it_takes_more_to_stand_out() -> None:
    plain = norm.ppf((np.arange(400) + 0.5) / 400)
    crowded = np.where(plain > 0.7, 0.7 + 2 * (plain - 0.7), plain)

    assert background_z([5.0], crowded)[0] < background_z([5.0], plain)[0] * plain.std() * 0.9


def test_a_sample_of_queries_steadies_the_spread() -> None:
    background = [-1.0, 0.0, 1.0]  # deviation 1

    (own,) = background_z([4.0], background)
    (steadied,) = background_z([4.0], background, spread=4.0)

    assert normal_equivalent([4 / np.sqrt(4 / 3)], 2)[0] == pytest.approx(own)
    assert normal_equivalent([4 / np.sqrt(4 * 4 / 3)], 2)[0] == pytest.approx(steadied)


@pytest.mark.parametrize(
    ("background", "places"),
    [([], None), ([1.0, 2.0], None), ([1.0, 2.0, 3.0], [0]), ([0.5] * 60, None)],
)
def test_too_little_says_nothing(background: list[float], places: list[int] | None) -> None:
    assert background_z([1.0], background, places=places) is None


def test_one_score_that_differs_from_all_others() -> None:
    background = [0.5] * 20 + [0.9]

    odd, equal = background_z([0.9, 0.5], background, places=[20, 0])

    assert np.isfinite(odd)
    assert odd > 2 > equal


NUMBERS = st.floats(-1, 1, width=32)


@given(st.lists(NUMBERS, min_size=4, max_size=40), st.data())
def test_a_higher_score_never_has_a_lower_z(background: list[float], data: st.DataObject) -> None:
    inside = data.draw(st.lists(st.integers(0, len(background) - 1), unique=True, max_size=5))
    outside = data.draw(st.lists(NUMBERS, min_size=1, max_size=5))
    scores = np.array([background[place] for place in inside] + outside)

    found = background_z(scores, background, places=inside + [-1] * len(outside))

    if found is not None:
        assert np.isfinite(found).all()
        assert (np.diff(found[np.argsort(scores, kind="stable")]) >= 0).all()


@given(st.lists(NUMBERS, min_size=4, max_size=40), st.floats(0.5, 2), st.floats(-1, 1))
def test_another_scale_changes_nothing(
    background: list[float], factor: float, shift: float
) -> None:
    scores = np.array(background[:4])
    places = [0, 1, 2, 3]
    before = background_z(scores, background, places=places)

    moved = np.array(background) * factor + shift
    after = background_z(scores * factor + shift, moved, places=places)

    if before is not None and np.ptp(background) > 1e-3:
        assert after == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("freedom", [1, 2, 5, 300])
def test_normal_equivalent_has_the_same_tail(freedom: int) -> None:
    values = np.array([-3.0, -0.5, 0.0, 1.0, 4.0])

    assert normal_equivalent(values, freedom) == pytest.approx(norm.isf(t.sf(values, freedom)))


def test_far_out_it_goes_on_growing() -> None:
    values = normal_equivalent([10.0, 1e3, 1e6, 1e9], 300)

    assert (np.diff(values) > 1).all()
    assert normal_equivalent([-1e9], 300)[0] > -40


# --- the sample of vectors ----------------------------------------------------------------------

SAMPLE = unit_rows(np.random.default_rng(0).normal(size=(50, 8)))
QUERIES = unit_rows(np.random.default_rng(1).normal(size=(40, 8)))


def test_scores_have_their_hubs_taken_off() -> None:
    hubs = Hubs(QUERIES, 0.5)
    background = Background([str(i) for i in range(50)], SAMPLE, 1000, hubs)

    assert background.scores(QUERIES[0], 0.6) == pytest.approx(
        SAMPLE @ QUERIES[0] - 0.6 * hubs.of(SAMPLE), abs=1e-6
    )
    assert background.scores(QUERIES[0], 0.0) == pytest.approx(SAMPLE @ QUERIES[0], abs=1e-6)
    assert background.places(["3", "no", "49"]).tolist() == [3, -1, 49]
    assert background.spread(0.6) is None


def test_a_node_s_vector_is_read_once() -> None:
    hubs = Hubs(QUERIES, 0.5)
    background = Background(["a", "b"], SAMPLE[:2], 1000, hubs)
    read: list[list[str]] = []

    def vectors(ids: list[str]) -> dict[str, np.ndarray]:
        read.append(ids)
        return {node_id: SAMPLE[int(node_id)] for node_id in ids if node_id != "99"}

    expected = [*hubs.of(SAMPLE[:1]), *hubs.of(SAMPLE[7:9]), 0]
    for _ in range(2):
        assert background.hubness_of(["a", "7", "8", "99"], vectors) == pytest.approx(expected)
    assert read == [["7", "8", "99"]]


def test_the_spread_of_a_sample_of_queries() -> None:
    hubs = Hubs(QUERIES, 0.5)
    background = Background([str(i) for i in range(50)], SAMPLE, 1000, hubs, QUERIES)

    for strength in (0.0, 0.6):
        spreads = [background.scores(query, strength).std() for query in QUERIES]
        assert background.spread(strength) == pytest.approx(np.sqrt(np.mean(np.square(spreads))))


def test_sample_queries_take_the_place_of_stored_references() -> None:
    of = Background.of([str(i) for i in range(50)], SAMPLE, 1000, SAMPLE, QUERIES)

    assert of.queries is QUERIES
    assert of.hubs is None or of.hubs.references is QUERIES


def test_the_range_of_spreads_by_hand() -> None:
    """The spreads are 1 to 11 in one leg and always 1 in the other: 10 / 2."""
    wide = [[-spread, spread] for spread in range(1, 12)]

    assert range_of_spreads(wide, [[-1, 1]] * 11) == pytest.approx(5)
    assert range_of_spreads(wide, wide) == pytest.approx(1)
    assert range_of_spreads(wide, [[1, 1]] * 11) is None
    assert range_of_spreads(np.zeros((0, 3)), np.zeros((0, 3))) is None
