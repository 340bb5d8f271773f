from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from llama_index_gap.gap import neighbours
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.neighbours import compare_recall, own_modality_share, recall_of_neighbours

EAST, NORTH, WEST = [1, 0], [0, 1], [-1, 0]
ITEMS = np.random.default_rng(0).normal(size=(40, 8))


def test_own_modality_share() -> None:
    own, other = [EAST, NORTH], [[3, 4], WEST]  # cosines of east: 1 and 0, 0.6 and −1

    shares = [own_modality_share([EAST], own, other, k)[0] for k in (1, 2, 3, 4)]
    without = [own_modality_share(own, own, other, k, itself=True)[0] for k in (1, 2, 3)]

    assert shares == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert without == pytest.approx([0, 1 / 2, 1 / 3])


def test_equal_scores_share_their_places() -> None:
    assert own_modality_share([EAST], [NORTH], [NORTH, NORTH], 1)[0] == pytest.approx(1 / 3)
    assert own_modality_share([EAST], [EAST, NORTH], [NORTH], 2)[0] == pytest.approx(3 / 4)


def test_recall_of_neighbours() -> None:
    """The vectors are at 0°, 10°, 50° and 70°; their nearest are at 10°, 0°, 70° and 50°."""
    angles = np.radians([0, 10, 50, 70])
    vectors = np.column_stack([np.cos(angles), np.sin(angles)])

    assert recall_of_neighbours(vectors, ["a", "a", "b", "b"], 1).tolist() == [1, 1, 1, 1]
    assert recall_of_neighbours(vectors, ["a", "b", "a", "b"], 1).tolist() == [0, 0, 0, 0]
    assert recall_of_neighbours(vectors, ["a", "b", "a", "b"], 2).tolist() == [1, 0, 0, 1]
    # A single place can hold only one of two relevant items.
    assert recall_of_neighbours(vectors, ["a", "a", "a", "b"], 1)[:3].tolist() == [1, 1, 0]
    assert recall_of_neighbours(vectors, ["a", "a", "a", "b"], 2)[:3].tolist() == [1, 1, 0.5]
    assert np.isnan(recall_of_neighbours(vectors, ["a", "a", "a", "b"], 2)[3])


def test_recall_against_a_dedicated_encoder() -> None:
    """One encoder puts pairs together, the other puts them apart; two items have no pair."""
    rng = np.random.default_rng(0)
    subjects = np.repeat(rng.normal(size=(40, 8)), 2, axis=0)
    dedicated = subjects + 0.01 * rng.normal(size=subjects.shape)
    other = rng.normal(size=(82, 16))
    labels = [*np.repeat(np.arange(40), 2), "one", "two"]

    found = compare_recall(other, np.vstack([dedicated, rng.normal(size=(2, 8))]), labels, 5)

    assert (found.k, found.queries, found.alone) == (5, 80, 2)
    assert found.reference == Estimate(1, 1, 1)
    assert found.model.value == pytest.approx(5 / 81, abs=0.08)
    assert found.delta.value == pytest.approx(found.model.value - 1)
    assert found.model.low < found.model.value < found.model.high
    assert found.delta.low == pytest.approx(found.model.low - 1)


def test_what_belongs_together_is_drawn_together() -> None:
    """40 items with 2 labels are 2 units, so the interval spans the figures of both."""
    rng = np.random.default_rng(0)
    together = np.array([1.0, 0]) + 0.001 * rng.normal(size=(20, 2))
    everywhere = rng.normal(size=(20, 2))
    vectors = np.vstack([together, everywhere])

    found = compare_recall(vectors, vectors, np.repeat([0, 1], 20), 5).model

    by_label = recall_of_neighbours(vectors, np.repeat([0, 1], 20), 5).reshape(2, 20).mean(axis=1)
    assert (found.low, found.high) == pytest.approx(sorted(by_label))


def test_many_vectors_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    texts, images = rng.normal(size=(2, 30, 8))
    labels = np.arange(30) // 3

    def figures() -> list[npt.NDArray[np.float64]]:
        return [
            own_modality_share(texts, texts, images, 5, itself=True),
            recall_of_neighbours(texts, labels, 5),
        ]

    at_once = figures()
    monkeypatch.setattr(neighbours, "_SCORES_AT_ONCE", 100)

    for found, expected in zip(figures(), at_once, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"labels of shape \(3,\): must be \(40,\), one for each"):
        recall_of_neighbours(ITEMS, [1, 2, 3])
    with pytest.raises(ValueError, match="k=40: must lie between 1 and the 39 vectors"):
        recall_of_neighbours(ITEMS, np.zeros(40), 40)
    with pytest.raises(ValueError, match="40 vectors and 39 of the reference"):
        compare_recall(ITEMS, ITEMS[1:], np.zeros(40))
    with pytest.raises(ValueError, match="no two items share a label"):
        compare_recall(ITEMS, ITEMS, np.arange(40))
