from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ortho_group

from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.measure import GapReport, measure_gap
from llama_index_gap.gap.neighbours import own_modality_share
from llama_index_gap.gap.scores import histogram_overlap

EAST, NORTH, WEST, SOUTH = ([vector] * 5 for vector in ([1, 0], [0, 1], [-1, 0], [0, -1]))


# --- by hand -------------------------------------------------------------------------------------


def test_separation() -> None:
    """The means are (½, ½) and (−½, −½); every vector is √½ from the mean of its modality."""
    found = measure_gap([*EAST, *NORTH], [*WEST, *SOUTH], rounds=1)

    assert found.distance.value == pytest.approx(np.sqrt(2))
    assert found.text_spread.value == pytest.approx(np.sqrt(1 / 2))
    assert found.image_spread.value == pytest.approx(np.sqrt(1 / 2))
    assert found.separation.value == pytest.approx(2)


@pytest.mark.parametrize(
    ("images", "rmg"),
    [
        ([*EAST, *NORTH], 0),  # pairs coincide
        ([*NORTH, *EAST], (1 / 2) / (1 / 2 + 5 / 18)),
        ([*WEST, *SOUTH], 1 / (1 + 5 / 18)),
    ],
)
def test_relative_modality_gap(images: list[list[int]], rmg: float) -> None:
    """25 of the 45 pairs of texts, and of images, are at right angles: ½ · 25/45."""
    found = measure_gap([*EAST, *NORTH], images, pairs=rows_in_order(10), rounds=1)

    assert found.rmg is not None
    assert found.rmg.value == pytest.approx(rmg)


def test_gap_share() -> None:
    """Δ = (−0.2, 0.48, 0): squares 0.04 and 0.2304."""
    texts = [[0.8, 0, 0.6], [0.8, 0, -0.6]] * 5
    images = [[0.6, 0.48, 0.64], [0.6, 0.48, -0.64]] * 5
    shares = measure_gap(texts, images, rounds=1).gap_share

    assert shares[1].value == pytest.approx(0.2304 / 0.2704)
    assert shares[2].value == pytest.approx(1)


# --- all figures ---------------------------------------------------------------------------------


def two_clouds(n: int = 40, gap: float = 2.0) -> npt.NDArray[np.float64]:
    """Texts and images whose pairs are equal except for a shift and noise; shape (2, n, 8)."""
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


def test_a_report_says_what_numpy_says(report: GapReport) -> None:
    texts, images = two_clouds()
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (texts, images)]
    delta = unit[1].mean(axis=0) - unit[0].mean(axis=0)
    spreads = [np.linalg.norm(rows - rows.mean(axis=0), axis=1).mean() for rows in unit]
    others = ~np.eye(40, dtype=bool)
    upper = np.triu(others)

    assert report.distance.value == pytest.approx(np.linalg.norm(delta))
    assert [report.text_spread.value, report.image_spread.value] == pytest.approx(spreads)
    assert report.separation.value == pytest.approx(np.linalg.norm(delta) / np.mean(spreads))
    assert report.gap_share[2].value == pytest.approx(
        np.sort(delta**2)[-2:].sum() / np.square(delta).sum()
    )
    expected = {
        "text_to_text": (unit[0] @ unit[0].T)[upper],
        "text_to_image": (unit[0] @ unit[1].T)[others],
        "image_to_image": (unit[1] @ unit[1].T)[upper],
        "matched": (unit[0] * unit[1]).sum(axis=1),
    }
    assert set(report.scores) == set(expected)
    every = np.concatenate(list(expected.values()))
    assert report.histograms.edges == pytest.approx(np.histogram_bin_edges(every, 50))
    for name, scores in expected.items():
        assert report.scores[name].mean.value == pytest.approx(scores.mean())
        assert report.scores[name].std.value == pytest.approx(scores.std())
        assert report.scores[name].count == scores.size
        shares = np.histogram(scores, report.histograms.edges)[0] / scores.size
        assert report.histograms.shares[name] == pytest.approx(shares, abs=0.02)
    by_pair = report.histograms.shares
    assert report.overlap["text"].value == pytest.approx(
        histogram_overlap(by_pair["text_to_text"], by_pair["text_to_image"])
    )
    assert report.spread_ratio.value == pytest.approx(
        (expected["text_to_text"].std() + expected["image_to_image"].std())
        / (2 * expected["text_to_image"].std())
    )
    m, a, b = (
        (1 - expected[name].mean()) / 2 for name in ("matched", "image_to_image", "text_to_text")
    )
    assert report.rmg is not None
    assert report.rmg.value == pytest.approx(m / (m + (a + b) / 2))
    for modality, own, other in (("text", texts, images), ("image", images, texts)):
        bias = own_modality_share(own, own, other, itself=True).mean()
        assert report.bias[modality].value == pytest.approx(bias)
        assert report.corpus_share[modality] == pytest.approx(39 / 79)


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
    """Of the intervals of 20 samples, nearly all contain the figure of very many vectors."""
    every = two_clouds(20_000)
    texts, images = every / np.linalg.norm(every, axis=2, keepdims=True)
    spreads = [np.linalg.norm(rows - rows.mean(axis=0), axis=1).mean() for rows in (texts, images)]
    truth = np.linalg.norm(texts.mean(axis=0) - images.mean(axis=0)) / np.mean(spreads)
    covered = 0
    for start in range(0, 1200, 60):
        texts, images = every[:, start : start + 60]
        found = measure_gap(texts, images, pairs=rows_in_order(60), rounds=100).separation
        covered += found.low <= truth <= found.high

    assert covered >= 16


def test_a_report_is_json(report: GapReport) -> None:
    content = json.loads(json.dumps(asdict(report), allow_nan=False))

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
    # Each query first finds its own copy, and then equally many of each modality.
    assert found.bias["text"].value == pytest.approx(0.45, abs=0.02)
    assert found.overlap["image"].value == pytest.approx(1, abs=0.02)


def test_rotation_and_length_change_nothing(report: GapReport) -> None:
    rotation = 5 * ortho_group.rvs(8, random_state=0)
    texts, images = two_clouds() @ rotation
    found = asdict(measure_gap(texts, images, pairs=rows_in_order(), rounds=100))

    expected = asdict(report)
    for name in ("distance", "separation", "rmg", "scores", "spread_ratio", "bias"):
        assert str(flat(found[name])) == str(flat(expected[name])), name


def flat(value: object) -> list[float]:
    """All numbers in nested dictionaries, rounded."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in flat(item)]
    return [round(float(value), 6) + 0.0]  # type: ignore[arg-type]


@given(arrays(np.float64, (2, 10, 3), elements=st.floats(-1, 1)))
def test_rmg_lies_between_0_and_1(vectors: npt.NDArray[np.float64]) -> None:
    vectors = vectors + np.array([2.0, 0, 0])  # no zero vectors, and no clouds in one point
    vectors[:, :5] = [0, 1, 0]
    found = measure_gap(*vectors, pairs=rows_in_order(10), rounds=1).rmg

    assert found is not None
    assert 0 <= found.value <= 1


def test_all_captions_of_an_image_belong_together() -> None:
    """20 images with two captions each: two captions of one image are not unrelated texts."""
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
    queries = images[:15]  # as different from the texts as possible
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

    measured = {"texts": 50, "images": 50, "queries": 50}
    assert {name: found.measured[name] for name in measured} == measured
    assert found.measured["pairs"] == 40
    every = measure_gap(texts, images, rounds=1)
    assert found.distance.value == pytest.approx(every.distance.value, rel=0.1)


def test_nothing_given_is_changed() -> None:
    texts, images = two_clouds()
    before = texts.copy(), images.copy()
    measure_gap(texts, images, pairs=rows_in_order(), queries=texts, rounds=2)

    np.testing.assert_array_equal((texts, images), before)


TEXTS, IMAGES = two_clouds()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": TEXTS[:9]}, "9 texts: at least 10 are needed"),
        ({"images": IMAGES[:, :7]}, "different dimensions: texts 8, images 7; all must come from"),
        ({"images": IMAGES[0]}, r"images of shape \(8,\): must be \(n, d\)"),
        ({"images": []}, "images: there are none"),
        ({"texts": TEXTS * np.nan}, "texts: hold NaN or infinity"),
        ({"texts": TEXTS * (np.arange(40) != 3)[:, None]}, "texts: row 3 is a zero vector"),
        ({"texts": np.ones((20, 8)), "images": np.ones((20, 8))}, "all texts are the same vector"),
        (
            {"texts": [[1, 0, 0, 0, 0, 0, 0, 0]] * 10, "images": np.eye(8)[[1, 2] * 5]},
            "not a number",
        ),
        ({"pairs": [0, 1]}, r"pairs of shape \(2,\): must be \(n, 2\)"),
        ({"pairs": [[0, 40]]}, "pairs, images: rows 40 to 40, but there are 40"),
        ({"pairs": [[-1, 0]]}, "pairs, texts: rows -1 to -1, but there are 40"),
        ({"pairs": [[0.5, 0]]}, "pairs of float64: must be row numbers"),
        ({"k": 80}, "k=80: must lie between 1 and the 79 vectors"),
        ({"k": 0}, "k=0: must lie between 1"),
        ({"sample": 5}, "sample=5: must be at least 10"),
    ],
)
def test_what_it_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_gap(**{"texts": TEXTS, "images": IMAGES, "rounds": 2, **arguments})


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
