from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ortho_group

from llama_index_gap.gap import measure
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.measure import (
    GapReport,
    cloud_separation,
    compare_recall,
    compare_scores,
    gap_share,
    histogram_overlap,
    measure_gap,
    own_modality_share,
    recall_of_neighbours,
    relative_modality_gap,
    score_histograms,
    standardised_distance,
)

EAST, NORTH, WEST, SOUTH = [1, 0], [0, 1], [-1, 0], [0, -1]
ROOT_2 = np.sqrt(2)


# --- figures of vectors --------------------------------------------------------------------------


def test_separation() -> None:
    """Means at (½, ½) and (−½, −½); every vector √½ from its own."""
    found = cloud_separation([EAST, NORTH], [WEST, SOUTH])

    assert found.distance == pytest.approx(ROOT_2)
    assert (found.text_spread, found.image_spread) == pytest.approx((1 / ROOT_2, 1 / ROOT_2))
    assert found.ratio == pytest.approx(2)


@pytest.mark.parametrize(
    ("images", "rmg"),
    [
        ([EAST, NORTH], 0),  # matches coincide
        ([NORTH, EAST], 1 / 2),  # matches are as unlike as any others
        ([WEST, SOUTH], 2 / 3),  # m = 1, a = b = ½
    ],
)
def test_relative_modality_gap(images: list[list[int]], rmg: float) -> None:
    assert relative_modality_gap([EAST, NORTH], images) == pytest.approx(rmg)


def test_gap_share() -> None:
    """Δ = (−0.4, 0.8, 0): squares 0.16 and 0.64."""
    texts, images = [[1, 0, 0], [1, 0, 0]], [[0.6, 0.8, 0], [0.6, 0.8, 0]]

    assert gap_share(texts, images, 1) == pytest.approx(0.8)
    assert gap_share(texts, images, 2) == pytest.approx(1)


def test_own_modality_share() -> None:
    own, other = [EAST, NORTH], [[3, 4], WEST]  # cosines of east: 1 and 0, 0.6 and −1

    shares = [own_modality_share([EAST], own, other, k)[0] for k in (1, 2, 3, 4)]
    without = [own_modality_share([EAST], own, other, k, itself=[0])[0] for k in (1, 2, 3)]

    assert shares == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert without == pytest.approx([0, 1 / 2, 1 / 3])


def test_equal_scores_share_their_places() -> None:
    assert own_modality_share([EAST], [NORTH], [NORTH, NORTH], 1)[0] == pytest.approx(1 / 3)
    assert own_modality_share([EAST], [EAST, NORTH], [NORTH], 2)[0] == pytest.approx(3 / 4)


def test_recall_of_neighbours() -> None:
    """At 0°, 10°, 50° and 70°: the nearest of each is 10°, 0°, 70°, 50°."""
    angles = np.radians([0, 10, 50, 70])
    vectors = np.column_stack([np.cos(angles), np.sin(angles)])

    assert recall_of_neighbours(vectors, ["a", "a", "b", "b"], 1).tolist() == [1, 1, 1, 1]
    assert recall_of_neighbours(vectors, ["a", "b", "a", "b"], 1).tolist() == [0, 0, 0, 0]
    assert recall_of_neighbours(vectors, ["a", "b", "a", "b"], 2).tolist() == [1, 0, 0, 1]
    # Of two relevant ones a single place can hold one.
    assert recall_of_neighbours(vectors, ["a", "a", "a", "b"], 1)[:3].tolist() == [1, 1, 0]
    assert recall_of_neighbours(vectors, ["a", "a", "a", "b"], 2)[:3].tolist() == [1, 1, 0.5]
    assert np.isnan(recall_of_neighbours(vectors, ["a", "a", "a", "b"], 2)[3])


def test_recall_against_a_dedicated_encoder() -> None:
    """Pairs that one encoder brings together and the other tears apart, and two on their own."""
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
    assert json.loads(json.dumps(found.to_dict()))["delta"]["value"] == found.delta.value


def test_what_belongs_together_is_drawn_together() -> None:
    """40 items with 2 labels are 2 units, so the interval reaches from one to the other."""
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
        itself = np.arange(30)
        return [
            own_modality_share(texts, texts, images, 5, itself=itself),
            recall_of_neighbours(texts, labels, 5),
        ]

    at_once = figures()
    monkeypatch.setattr(measure, "_SCORES_AT_ONCE", 100)

    for found, expected in zip(figures(), at_once, strict=True):
        np.testing.assert_array_equal(found, expected)


# --- figures of scores ---------------------------------------------------------------------------


def test_histograms_share_their_bins() -> None:
    found = score_histograms({"a": [0, 1, 1, 2], "b": [[2], [4]]}, 2)

    assert found.edges == (0, 2, 4)
    assert found.shares == {"a": (0.75, 0.25), "b": (0, 1)}
    assert histogram_overlap(found.shares["a"], found.shares["b"]) == pytest.approx(0.25)


def test_what_lies_outside_given_edges_counts_at_the_ends() -> None:
    assert score_histograms({"a": [-5, 0.5, 1.5, 9]}, [0, 1, 2]).shares == {"a": (0.5, 0.5)}


def test_standardised_distance() -> None:
    assert standardised_distance([1, 3], [0, 2]) == pytest.approx(1)  # means 2 and 1, both ± 1
    assert standardised_distance([0, 2], [1, 3]) == pytest.approx(-1)
    assert standardised_distance([5, 5], [1, 3]) == pytest.approx(3 * ROOT_2)  # variances 0, 1


def test_scores_of_both_sides() -> None:
    rng = np.random.default_rng(0)
    texts, images = rng.normal(2, 1, size=2000), rng.normal(0, 1, size=3000)

    found = compare_scores(texts, images)

    assert found.counts == {"text": 2000, "image": 3000}
    assert found.text_mean.value == pytest.approx(texts.mean())
    assert found.image_std.value == pytest.approx(images.std())
    assert found.distance.value == pytest.approx(standardised_distance(texts, images))
    assert found.distance.low < 2 < found.distance.high
    assert found.distance.high - found.distance.low < 0.2
    assert found.overlap.value == pytest.approx(
        histogram_overlap(found.histograms.shares["text"], found.histograms.shares["image"])
    )
    assert found.overlap.value == pytest.approx(0.317, abs=0.03)  # 2 Φ(−1)
    assert json.loads(json.dumps(found.to_dict()))["counts"]["image"] == 3000


@given(st.floats(0.1, 10), st.floats(-5, 5))
def test_another_scale_of_all_scores_changes_neither_figure(factor: float, shift: float) -> None:
    """So that scorers with different scales can stand side by side."""
    rng = np.random.default_rng(0)
    texts, images = rng.normal(1, 1, size=100), rng.normal(0, 2, size=100)

    before = compare_scores(texts, images, rounds=1)
    after = compare_scores(factor * texts + shift, factor * images + shift, rounds=1)

    assert after.distance.value == pytest.approx(before.distance.value)
    assert after.overlap.value == pytest.approx(before.overlap.value, abs=0.03)  # rounding at edges


def test_scores_of_one_query_are_drawn_together() -> None:
    """Ten queries whose scores differ from query to query, and hardly within one."""
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


# --- all figures ---------------------------------------------------------------------------------


def two_clouds(n: int = 40, gap: float = 2.0) -> npt.NDArray[np.float64]:
    """Texts and images, pairs alike but for a shift; shape (2, n, 8)."""
    rng = np.random.default_rng(0)
    subjects = rng.normal(size=(n, 8))
    shift = np.eye(8)[0] * gap
    return np.stack([subjects + shift, subjects - shift]) + 0.3 * rng.normal(size=(2, n, 8))


def rows_in_order(n: int = 40) -> npt.NDArray[np.int64]:
    return np.column_stack([np.arange(n), np.arange(n)])


@pytest.fixture(scope="module")
def report() -> GapReport:
    texts, images = two_clouds()
    return measure_gap(texts, images, pairs=rows_in_order(), rounds=100)


def test_a_report_says_what_the_functions_say(report: GapReport) -> None:
    texts, images = two_clouds()
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (texts, images)]
    separation = cloud_separation(texts, images)
    others = ~np.eye(40, dtype=bool)
    upper = np.triu(others)
    itself = np.arange(40)

    assert report.distance.value == pytest.approx(separation.distance)
    assert report.text_spread.value == pytest.approx(separation.text_spread)
    assert report.image_spread.value == pytest.approx(separation.image_spread)
    assert report.separation.value == pytest.approx(separation.ratio)
    assert report.rmg is not None
    assert report.rmg.value == pytest.approx(relative_modality_gap(texts, images))
    assert report.gap_share[2].value == pytest.approx(gap_share(texts, images, 2))
    expected = {
        "text_to_text": (unit[0] @ unit[0].T)[upper],
        "text_to_image": (unit[0] @ unit[1].T)[others],
        "image_to_image": (unit[1] @ unit[1].T)[upper],
        "matched": (unit[0] * unit[1]).sum(axis=1),
    }
    assert set(report.scores) == set(expected)
    histograms = score_histograms(expected)
    assert report.histograms.edges == pytest.approx(histograms.edges)
    for name, scores in expected.items():
        assert report.scores[name].mean.value == pytest.approx(scores.mean())
        assert report.scores[name].std.value == pytest.approx(scores.std())
        assert report.scores[name].count == scores.size
        assert report.histograms.shares[name] == pytest.approx(histograms.shares[name], abs=0.02)
    shares = report.histograms.shares
    assert report.overlap["text"].value == pytest.approx(
        histogram_overlap(shares["text_to_text"], shares["text_to_image"])
    )
    assert report.spread_ratio.value == pytest.approx(
        (expected["text_to_text"].std() + expected["image_to_image"].std())
        / (2 * expected["text_to_image"].std())
    )
    for side, own, other in (("text", texts, images), ("image", images, texts)):
        bias = own_modality_share(own, own, other, itself=itself).mean()
        assert report.bias[side].value == pytest.approx(bias)
        assert report.corpus_share[side] == pytest.approx(39 / 79)


def test_intervals_hold_their_figures(report: GapReport) -> None:
    estimates = [
        *(report.distance, report.text_spread, report.image_spread, report.separation, report.rmg),
        *(report.spread_ratio, *report.gap_share.values(), *report.bias.values()),
        *(figure for pair in report.scores.values() for figure in (pair.mean, pair.std)),
    ]

    assert len(estimates) == 20
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in estimates)
    assert sum(estimate.low < estimate.high for estimate in estimates) >= 18


def test_intervals_cover_what_another_sample_shows() -> None:
    """Of 20 samples' intervals, nearly all hold what very many vectors show."""
    every = two_clouds(20_000)
    truth = cloud_separation(*every).ratio
    covered = 0
    for start in range(0, 1200, 60):
        texts, images = every[:, start : start + 60]
        found = measure_gap(texts, images, pairs=rows_in_order(60), rounds=100).separation
        covered += found.low <= truth <= found.high

    assert covered >= 16


def test_a_report_is_json(report: GapReport) -> None:
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))

    assert content["separation"]["value"] == report.separation.value
    assert content["gap_share"]["1"]["value"] == report.gap_share[1].value
    assert content["measured"] == {"texts": 40, "images": 40, "queries": 0, "pairs": 40}


def test_identical_clouds_have_no_gap() -> None:
    texts, _ = two_clouds(100, gap=0)
    found = measure_gap(texts, texts, pairs=rows_in_order(100), rounds=20)

    assert found.distance.value == pytest.approx(0, abs=1e-12)
    assert found.separation == Estimate(*[pytest.approx(0, abs=1e-12)] * 3)
    assert found.rmg is not None
    assert found.rmg.value == pytest.approx(0, abs=1e-12)
    # Each finds its own double first, and then as many of either.
    assert found.bias["text"].value == pytest.approx(0.45, abs=0.02)
    assert found.overlap["image"].value == pytest.approx(1, abs=0.02)


def test_rotation_and_length_change_nothing(report: GapReport) -> None:
    rotation = 5 * ortho_group.rvs(8, random_state=0)
    texts, images = two_clouds() @ rotation
    found = measure_gap(texts, images, pairs=rows_in_order(), rounds=100).to_dict()

    expected = report.to_dict()
    for name in ("distance", "separation", "rmg", "scores", "spread_ratio", "bias"):
        assert str(flat(found[name])) == str(flat(expected[name])), name


def flat(value: object) -> list[float]:
    """All numbers in nested dictionaries, rounded."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in flat(item)]
    return [round(float(value), 6) + 0.0]  # type: ignore[arg-type]


@given(arrays(np.float64, (2, 5, 3), elements=st.floats(-1, 1)))
def test_rmg_lies_between_0_and_1(vectors: npt.NDArray[np.float64]) -> None:
    vectors = vectors + np.array([2.0, 0, 0])  # no zero vectors, and no clouds in one point
    vectors[:, 0] = [0, 1, 0]

    assert 0 <= relative_modality_gap(*vectors) <= 1


def test_all_captions_of_an_image_belong_together() -> None:
    """20 images with two captions each: the captions of one are no two unrelated texts."""
    texts, images = two_clouds()
    pairs = np.column_stack([np.arange(40), np.arange(40) // 2])
    found = measure_gap(texts, images[:20], pairs=pairs, rounds=5)

    assert found.scores["text_to_text"].count == 40 * 39 // 2 - 20
    assert found.scores["text_to_image"].count == 40 * 20 - 40
    assert found.scores["matched"].count == 40


def test_without_pairs() -> None:
    texts, images = two_clouds()
    found = measure_gap(texts, images[:30], rounds=5)

    assert found.rmg is None
    assert "matched" not in found.scores
    assert found.scores["text_to_image"].count == 40 * 30
    assert found.corpus_share == {"text": 39 / 69, "image": 29 / 69}


def test_queries_of_their_own() -> None:
    texts, images = two_clouds()
    queries = images[:15]  # as unlike the texts as can be
    found = measure_gap(texts, images, queries=queries, rounds=5)

    assert found.measured["queries"] == 15
    assert found.scores["query_to_image"].count == 15 * 40
    assert found.bias["text"].value == own_modality_share(queries, texts, images).mean() < 0.1
    assert found.corpus_share["text"] == 0.5
    shares = found.histograms.shares
    assert found.overlap["text"].value == pytest.approx(
        histogram_overlap(shares["query_to_text"], shares["query_to_image"])
    )


def test_much_is_sampled_pairs_first() -> None:
    texts, images = two_clouds(400)
    pairs = rows_in_order(400)[::10]
    found = measure_gap(texts, images, pairs=pairs, queries=texts, sample=50, rounds=5)

    assert found.given == {"texts": 400, "images": 400, "queries": 400, "pairs": 40}
    measured = {"texts": 50, "images": 50, "queries": 50}
    assert {name: found.measured[name] for name in measured} == measured
    assert found.measured["pairs"] == 40
    assert found.distance.value == pytest.approx(cloud_separation(texts, images).distance, rel=0.1)


def test_nothing_given_is_changed() -> None:
    texts, images = two_clouds()
    before = texts.copy(), images.copy()
    measure_gap(texts, images, pairs=rows_in_order(), queries=texts, rounds=2)

    np.testing.assert_array_equal((texts, images), before)


TEXTS, IMAGES = two_clouds()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": TEXTS[:9]}, "9 texts: it takes at least 10"),
        ({"images": IMAGES[:, :7]}, "different dimensions: texts 8, images 7; all must come from"),
        ({"images": IMAGES[0]}, r"images of shape \(8,\): must be \(n, d\)"),
        ({"images": []}, "images: there are none"),
        ({"texts": TEXTS * np.nan}, "texts: hold NaN or infinity"),
        ({"texts": TEXTS * (np.arange(40) != 3)[:, None]}, "texts: row 3 is a zero vector"),
        ({"texts": np.ones((20, 8)), "images": np.ones((20, 8))}, "all texts are the same vector"),
        ({"pairs": [0, 1]}, r"pairs of shape \(2,\): must be \(n, 2\)"),
        ({"pairs": [[0, 40]]}, "pairs, images: rows 40 to 40, but there are 40"),
        ({"pairs": [[-1, 0]]}, "pairs, texts: rows -1 to -1, but there are 40"),
        ({"pairs": [[0.5, 0]]}, "float64: must be 1 row numbers"),
        ({"k": 80}, "k=80: must lie between 1 and the 79 vectors"),
        ({"k": 0}, "k=0: must lie between 1"),
        ({"sample": 5}, "sample=5: must be at least 10"),
    ],
)
def test_what_it_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_gap(**{"texts": TEXTS, "images": IMAGES, "rounds": 2, **arguments})


def test_what_the_functions_refuse() -> None:
    with pytest.raises(ValueError, match="40 texts and 39 images: row i of each makes a pair"):
        relative_modality_gap(TEXTS, IMAGES[1:])
    with pytest.raises(ValueError, match=r"1 texts and 1 images: row i .* it takes two pairs"):
        relative_modality_gap([EAST], [NORTH])
    with pytest.raises(ValueError, match="all texts and images are the same vector"):
        relative_modality_gap([EAST, EAST], [EAST, EAST])
    with pytest.raises(ValueError, match="largest=9: must lie between 1 and 8"):
        gap_share(TEXTS, IMAGES, 9)
    with pytest.raises(ValueError, match="itself: rows 0 to 40, but there are 40"):
        own_modality_share(TEXTS[:2], TEXTS, IMAGES, itself=[0, 40])
    with pytest.raises(ValueError, match=r"labels of shape \(3,\): must be \(40,\), one for each"):
        recall_of_neighbours(TEXTS, [1, 2, 3])
    with pytest.raises(ValueError, match="40 vectors and 39 of the reference"):
        compare_recall(TEXTS, IMAGES[1:], np.zeros(40))
    with pytest.raises(ValueError, match="no two items share a label"):
        compare_recall(TEXTS, IMAGES, np.arange(40))
    with pytest.raises(ValueError, match="9 scores of texts and 20 of images: it takes 10 of each"):
        compare_scores(np.arange(9), np.arange(20))
    with pytest.raises(ValueError, match="give text_queries and image_queries, or neither"):
        compare_scores(np.arange(20), np.arange(20), text_queries=np.arange(20))
    with pytest.raises(ValueError, match="distance is not a number in some draws"):
        compare_scores(np.ones(20), np.ones(20))
    with pytest.raises(ValueError, match="no spread on either side"):
        standardised_distance([1, 1], [2, 2])
    with pytest.raises(ValueError, match="a: hold NaN"):
        score_histograms({"a": [np.nan]})


# --- on real features ----------------------------------------------------------------------------


def test_real_clip_features(gap_shared: Path) -> None:
    """As published for CLIP ViT-B/16 on 500 COCO pairs, raw and with each modality centred."""
    images, texts = np.load(gap_shared / "data" / "clip_features" / "features_clip.npy")

    raw = measure_gap(texts, images, pairs=rows_in_order(500), rounds=20)
    centred = measure_gap(
        texts - texts.mean(axis=0),
        images - images.mean(axis=0),
        pairs=rows_in_order(500),
        rounds=20,
    )

    assert raw.rmg is not None
    assert centred.rmg is not None
    assert f"{raw.distance.value:.3f}" == "0.851"
    assert f"{raw.image_spread.value:.2f} / {raw.text_spread.value:.2f}" == "0.68 / 0.69"
    assert f"{raw.separation.value:.2f}" == "1.24"
    assert (f"{raw.rmg.value:.3f}", f"{centred.rmg.value:.3f}") == ("0.591", "0.406")
    assert f"{centred.scores['text_to_text'].std.value:.3f}" == "0.154"
    assert f"{centred.scores['text_to_image'].std.value:.3f}" == "0.092"
    assert raw.bias["text"].value == 1
    assert f"{centred.bias['text'].value:.2f}" == "0.94"
    assert raw.gap_share[2].value == pytest.approx(0.686, abs=0.001)
