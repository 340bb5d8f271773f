from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.scores import compare_scores, histogram_overlap


def test_scores_by_hand() -> None:
    """Means 2 and 1, both ± 1; the histograms of 1 and 3, and of 0 and 2, share no bin."""
    found = compare_scores([1, 3] * 5, [0, 2] * 5, rounds=1)

    assert found.distance.value == pytest.approx(1)
    assert found.overlap.value == 0
    assert found.histograms.edges == pytest.approx(np.linspace(0, 3, 51))
    assert {
        sort: [share for share in shares if share]
        for sort, shares in found.histograms.shares.items()
    } == {"text": [0.5, 0.5], "image": [0.5, 0.5]}
    assert compare_scores([0, 2] * 5, [1, 3] * 5, rounds=1).distance.value == pytest.approx(-1)
    spreads = compare_scores([5] * 10, [1, 3] * 5, rounds=1)  # variances 0 and 1
    assert spreads.distance.value == pytest.approx(3 * np.sqrt(2))


def test_overlap_of_histograms() -> None:
    assert histogram_overlap([0.75, 0.25], [0, 1]) == pytest.approx(0.25)


def test_scores_of_both_modalities() -> None:
    rng = np.random.default_rng(0)
    texts, images = rng.normal(2, 1, size=2000), rng.normal(0, 1, size=3000)

    found = compare_scores(texts, images)

    assert found.counts == {"text": 2000, "image": 3000}
    assert found.text_mean.value == pytest.approx(texts.mean())
    assert found.image_std.value == pytest.approx(images.std())
    spread = np.sqrt((texts.var() + images.var()) / 2)
    assert found.distance.value == pytest.approx((texts.mean() - images.mean()) / spread)
    assert found.distance.low < 2 < found.distance.high
    assert found.distance.high - found.distance.low < 0.2
    assert found.overlap.value == pytest.approx(
        histogram_overlap(found.histograms.shares["text"], found.histograms.shares["image"])
    )
    assert found.overlap.value == pytest.approx(0.317, abs=0.03)  # 2 Φ(−1)


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_another_scale_of_all_scores_changes_neither_figure(factor: float, shift: float) -> None:
    """So scorers with different scales can be compared."""
    rng = np.random.default_rng(0)
    texts, images = rng.normal(1, 1, size=100), rng.normal(0, 2, size=100)

    before = compare_scores(texts, images, rounds=1)
    after = compare_scores(factor * texts + shift, factor * images + shift, rounds=1)

    assert after.distance.value == pytest.approx(before.distance.value)
    assert after.overlap.value == pytest.approx(before.overlap.value, abs=0.03)  # rounding at edges


def test_scores_of_one_query_are_drawn_together() -> None:
    """Ten queries: scores differ between queries, but hardly within a query."""
    queries = np.repeat(np.arange(10), 50)
    rng = np.random.default_rng(0)
    texts = rng.normal(size=10)[queries] + 0.01 * rng.normal(size=500)
    images = texts - 1

    alone = compare_scores(texts, images)
    together = compare_scores(texts, images, text_queries=queries, image_queries=queries)

    def width(estimate: Estimate) -> float:
        return estimate.high - estimate.low

    assert width(together.text_mean) > 4 * width(alone.text_mean)
    assert together.text_mean.low - together.image_mean.low == pytest.approx(1, abs=0.01)


def test_what_is_refused() -> None:
    with pytest.raises(
        ValueError, match="9 scores of texts and 20 of images: must be at least 10 of each"
    ):
        compare_scores(np.arange(9), np.arange(20))
    with pytest.raises(ValueError, match="give text_queries and image_queries, or neither"):
        compare_scores(np.arange(20), np.arange(20), text_queries=np.arange(20))
    with pytest.raises(ValueError, match="distance is not a number in some draws"):
        compare_scores(np.ones(20), np.ones(20))
    with pytest.raises(ValueError, match="text_scores: hold NaN"):
        compare_scores([np.nan] * 20, np.arange(20))
