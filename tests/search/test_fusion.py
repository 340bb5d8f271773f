from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from llama_index_gap.gap.background import background_z
from llama_index_gap.search.fusion import Fusion, ScoredLeg, fuse

UNIT = [-1.0, 1.0] * 50  # a background with mean 0


def z(*scores: float) -> list[float]:
    """The z-scores of these scores against ``UNIT``."""
    found = background_z(scores, UNIT)
    assert found is not None
    return found.tolist()


def likelihood(z_score: float) -> float:
    """The likelihood ratio of this z-score: relevant hits against the background."""
    return float(norm.pdf(z_score, 4, 1.5) / norm.pdf(z_score))


def ranked(fusion: Fusion) -> list[str]:
    return [document.key for document in fusion.documents]


def scores(fusion: Fusion) -> dict[str, float]:
    return {document.key: document.score for document in fusion.documents}


def test_the_readme_s_two_articles() -> None:
    """The query's scores are 0.70 ± 0.03 with texts, and 0.30 ± 0.06 with photos."""
    text = ScoredLeg(["A", "B"], [0.72, 0.23], background=0.70 + 0.03 * np.array(UNIT))
    image = ScoredLeg(["A", "B"], [0.31, 0.54], background=0.30 + 0.06 * np.array(UNIT))

    assert ranked(fuse({"text": text, "image": image}, normalize="none", combine="max")) == [
        "A",
        "B",
    ]
    assert ranked(fuse({"text": text, "image": image}, normalize="none", combine="sum")) == [
        "A",
        "B",
    ]
    assert ranked(fuse({"text": text, "image": image})) == ["B", "A"]


def test_rank() -> None:
    legs = {"text": ScoredLeg(["a", "b"], [9, 8]), "image": ScoredLeg(["b", "c"], [0.2, 0.1])}

    assert scores(fuse(legs, normalize="rank", combine="sum")) == pytest.approx(
        {"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62}
    )
    assert scores(fuse(legs, normalize="rank", combine="sum", k=0)) == pytest.approx(
        {"b": 1 / 2 + 1, "a": 1, "c": 1 / 2}
    )
    assert scores(fuse(legs, normalize="rank", combine="max", k=0)) == {"a": 1, "b": 1, "c": 0.5}


def test_equal_scores_share_their_rank() -> None:
    fusion = fuse(
        {"text": ScoredLeg(["a", "b", "c"], [5, 5, 4])}, normalize="rank", combine="sum", k=0
    )

    assert scores(fusion) == pytest.approx({"a": 1, "b": 1, "c": 1 / 3})


def test_minmax() -> None:
    legs = {"text": ScoredLeg(["a", "b", "c"], [10, 7, 6]), "image": ScoredLeg(["c"], [0.3])}

    assert scores(fuse(legs, normalize="minmax", combine="sum")) == {"a": 1, "c": 1, "b": 0.25}


def test_zscore() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 1]),
        "image": ScoredLeg(["c"], [0.3]),
    }  # mean 2, deviation 1

    assert scores(fuse(legs, normalize="zscore", combine="sum")) == {"a": 1, "c": 0, "b": -1}
    assert scores(fuse(legs, normalize="zscore", combine="max")) == {"a": 1, "c": 0, "b": -1}


def test_background() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 1], background=UNIT),
        "image": ScoredLeg(["b"], [0.3], background=0.1 * np.array(UNIT)),
    }

    three, one = z(3, 1)
    assert scores(fuse(legs, combine="sum")) == pytest.approx({"b": one + three, "a": three})
    assert scores(fuse(legs, combine="max")) == pytest.approx({"a": three, "b": three})


def test_evidence_is_minus_log_of_the_tail() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 0], background=UNIT),
        "image": ScoredLeg(["b"], [2], background=UNIT),
    }

    three, two, zero = z(3, 2, 0)
    assert scores(fuse(legs, combine="evidence")) == pytest.approx(
        {"a": -norm.logsf(three), "b": -norm.logsf(zero) - norm.logsf(two)}
    )


def test_of_twice_as_many_the_best_lies_higher_by_chance() -> None:
    legs = {
        "text": ScoredLeg(["t"], [1.0], background=UNIT, size=100),
        "image": ScoredLeg(["i", "far"], [1.0, 400.0], background=UNIT, size=200),
    }

    found = scores(fuse(legs, combine="evidence"))

    one, far = z(1.0, 400.0)
    p = norm.sf(one)
    assert found["t"] == pytest.approx(-math.log(p))
    assert found["i"] == pytest.approx(-math.log(1 - (1 - p) ** 2))
    assert found["far"] == pytest.approx(-norm.logsf(far) - math.log(2))


def test_intent_is_about_one_leg_or_both() -> None:
    """L₁/N₁ + L₂/N₂ + L₁·L₂/max(N₁, N₂), over the legs that found the document."""
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 1], background=UNIT, size=400),
        "image": ScoredLeg(["b", "c"], [2, 1], background=UNIT, size=100),
    }

    found = fuse(legs)

    three, two, one = (likelihood(each) for each in z(3, 2, 1))
    assert scores(found) == pytest.approx(
        {
            "a": math.log(three / 400),
            "b": math.log(one / 400 + two / 100 + one * two / 400),
            "c": math.log(one / 100),
        }
    )
    (b,) = (document for document in found.documents if document.key == "b")
    assert b.evidence == pytest.approx({"text": math.log(one / 400), "image": math.log(two / 100)})


def test_intent_over_three_legs_is_the_sum_over_all_sets() -> None:
    sizes = {"first": 5, "second": 2, "third": 9}
    legs = {
        name: ScoredLeg(["a"], [score], background=UNIT, size=sizes[name])
        for name, score in zip(sizes, (1.5, 2.5, 0.5), strict=True)
    }

    ((score,),) = (scores(fuse(legs)).values(),)

    of_leg = dict(
        zip(sizes, (likelihood(each) for each in (z(1.5) + z(2.5) + z(0.5))), strict=True)
    )
    sets = [each for size in (1, 2, 3) for each in combinations(sizes, size)]
    total = sum(
        math.prod(of_leg[name] for name in each) / max(sizes[name] for name in each)
        for each in sets
    )
    assert score == pytest.approx(math.log(total))


def test_hubs_are_taken_off_and_said() -> None:
    leg = ScoredLeg(["a", "b", "a"], [3, 2.5, 2.9], hubs=[1, 0.25, 0.5], background=UNIT)

    first, second = fuse({"text": leg}, combine="sum").documents

    assert (first.key, first.scores, first.hubs) == ("a", {"text": 2.9}, {"text": 0.5})
    assert (second.scores, second.hubs) == ({"text": 2.5}, {"text": 0.25})
    assert [first.score, second.score] == pytest.approx(z(2.4, 2.25))


def test_a_hit_is_not_compared_with_itself() -> None:
    background = [1.0, 2.0, 3.0, 9.0]
    inside = ScoredLeg(["a"], [9.0], background=background, places=[3])
    outside = ScoredLeg(["a"], [9.0], background=background[:3])

    assert scores(fuse({"text": inside})) == scores(fuse({"text": outside}))


@pytest.mark.parametrize("sizes", [(500, 500), (100, None), (None, None)])
def test_sizes_that_are_equal_or_unknown_change_no_order(sizes: tuple[int, int]) -> None:
    legs = {
        name: ScoredLeg(["a", name], [2.0, 0.5], background=UNIT, size=size)
        for name, size in zip(("text", "image"), sizes, strict=True)
    }
    unsized = {name: replace(leg, size=None) for name, leg in legs.items()}

    assert ranked(fuse(legs)) == ranked(fuse(unsized))
    assert scores(fuse(legs, combine="evidence")) == pytest.approx(
        scores(fuse(unsized, combine="evidence"))
    )


def test_a_leg_with_hits_is_not_empty() -> None:
    with pytest.raises(ValueError, match="the text leg has hits, but its size is 0"):
        fuse({"text": ScoredLeg(["a"], [1.0], background=UNIT, size=0)})


@pytest.mark.parametrize("combine", ["evidence", "intent"])
def test_nothing_underflows(combine: str) -> None:
    """The probability itself is 0.0 in floating point."""
    leg = ScoredLeg(["a", "b", "c"], [5e6, 1e6, -1e6], background=UNIT)

    a, b, c = scores(fuse({"text": leg}, combine=combine)).values()

    assert a > b > 400 > c
    assert math.isfinite(c)


def test_weights_multiply_what_a_leg_adds() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 1], background=UNIT),
        "image": ScoredLeg(["b", "a"], [3, 1], background=UNIT),
    }

    for combine in ("evidence", "intent"):
        assert ranked(fuse(legs, combine=combine, weights={"image": 2})) == ["b", "a"]
        assert ranked(fuse(legs, combine=combine, weights={"image": 0.5})) == ["a", "b"]
    only_text = fuse(legs, combine="evidence", weights={"image": 0})
    assert scores(only_text) == scores(fuse({"text": legs["text"]}, combine="evidence"))
    assert only_text.documents[0].evidence["image"] == 0


def test_a_leg_of_weight_0_moves_no_document() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 2.9], background=UNIT, size=100),
        "image": ScoredLeg(["b", "c"], [9, 8], background=UNIT, size=10),
    }

    assert ranked(fuse(legs, weights={"image": 0})) == ["a", "b", "c"]


def test_the_best_hit_of_a_document_counts() -> None:
    leg = ScoredLeg(["a", "b", "a"], [1, 2, 3])

    fusion = fuse({"text": leg}, normalize="none", combine="sum")

    assert scores(fusion) == {"a": 3, "b": 2}


def test_the_result_says_where_scores_come_from() -> None:
    legs = {
        "text": ScoredLeg(["a"], [3], background=UNIT),
        "image": ScoredLeg(["a", "b"], [2, 1], background=UNIT),
    }

    a, b = fuse(legs, combine="sum", weights={"text": 2}).documents
    three, two, one = z(3, 2, 1)

    assert (a.key, a.scores, a.evidence) == (
        "a",
        {"text": 3, "image": 2},
        pytest.approx({"text": 2 * three, "image": two}),
    )
    assert (b.scores, b.evidence) == ({"image": 1}, pytest.approx({"image": one}))


def test_without_a_background_hits_are_compared_with_each_other_and_it_is_said() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 1], background=UNIT),
        "image": ScoredLeg(["b"], [2]),
    }
    fusion = fuse(legs)

    assert (fusion.normalize, fusion.combine) == ("zscore", "intent")
    assert fusion.note is not None
    assert "no background for: image; so each hit was compared" in fusion.note
    assert scores(fusion) == scores(fuse(legs, normalize="zscore"))


@pytest.mark.parametrize("combine", ["sum", "max", "evidence", "intent"])
@pytest.mark.parametrize("background", [[0.5] * 60, [0.1, 0.2, 0.5]])
def test_what_a_leg_that_says_nothing_finds_comes_last_in_its_order(
    combine: str, background: list[float]
) -> None:
    legs = {
        "image": ScoredLeg(["c", "b"], [0.5, 0.4], background=background, places=[0, 1], size=3),
        "text": ScoredLeg(["a", "b"], [2.0, 1.0], background=UNIT, size=3),
    }

    assert ranked(fuse(legs, combine=combine)) == ["a", "b", "c"]


def test_a_leg_without_hits_needs_no_background() -> None:
    legs = {"text": ScoredLeg(["a"], [3], background=UNIT), "image": ScoredLeg([], [])}
    fusion = fuse(legs)

    assert (fusion.normalize, fusion.note) == ("background", None)
    assert ranked(fusion) == ["a"]


METHODS = [
    (normalize, combine)
    for normalize in ("rank", "minmax", "zscore", "background", "none")
    for combine in ("sum", "max", "evidence", "intent")
    if combine not in {"evidence", "intent"} or normalize in {"zscore", "background"}
]


@pytest.mark.parametrize(("normalize", "combine"), METHODS)
def test_edge_cases(normalize: str, combine: str) -> None:
    def run(**legs: ScoredLeg) -> Fusion:
        return fuse(legs, normalize=normalize, combine=combine)

    flat = ScoredLeg(["a", "b"], [0.5, 0.5], background=[0.1] * 60)

    assert run().documents == []
    assert run(text=ScoredLeg([], []), image=ScoredLeg([], [])).documents == []
    assert ranked(run(text=ScoredLeg(["a"], [0.5], background=UNIT), image=ScoredLeg([], []))) == [
        "a"
    ]
    assert ranked(run(text=flat)) == ["a", "b"]  # equal: in the order given
    assert all(math.isfinite(score) for score in scores(run(text=flat)).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalize": "softmax"}, "normalize='softmax': must be one of rank, minmax"),
        ({"combine": "mean"}, "combine='mean': must be one of sum, max, evidence, intent"),
        ({"normalize": "rank"}, "combine='intent' needs z-scores"),
        ({"normalize": "none"}, "normalize='none' gives none"),
        ({"weights": {"image": 1}}, "weights name 'image'; the legs are text"),
        ({"weights": {"text": -1}}, "the weight of text is -1: must be a number of at least 0"),
        ({"weights": {"text": math.nan}}, "the weight of text is nan"),
        ({"k": -1}, "k=-1: must be a number of at least 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse({"text": ScoredLeg(["a"], [1], background=UNIT)}, **arguments)


@pytest.mark.parametrize(
    ("leg", "message"),
    [
        (ScoredLeg(["a"], [math.nan]), "the text leg's scores hold NaN"),
        (ScoredLeg(["a"], [math.inf]), "the text leg's scores hold NaN or infinity"),
        (
            ScoredLeg(["a"], [1], background=[math.nan] * 60),
            "the text leg's background holds? NaN|hold NaN",
        ),
        (ScoredLeg(["a", "b"], [1]), r"2 keys but scores of shape \(1,\)"),
        (ScoredLeg(["a"], [1], hubs=[1, 2]), r"1 keys but hubs of shape \(2,\)"),
        (ScoredLeg(["a"], [1], hubs=[math.nan]), "the text leg's hubs hold NaN"),
    ],
)
def test_wrong_legs(leg: ScoredLeg, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse({"text": leg})


NUMBERS = st.floats(-1, 1, width=32)
LEGS = st.lists(st.tuples(st.sampled_from("abcdef"), NUMBERS), max_size=8).map(
    lambda hits: ScoredLeg([key for key, _ in hits], [score for _, score in hits], background=UNIT)
)


@given(LEGS, LEGS, st.sampled_from(METHODS))
def test_every_document_once_best_first(
    text: ScoredLeg, image: ScoredLeg, method: tuple[str, str]
) -> None:
    fusion = fuse({"text": text, "image": image}, normalize=method[0], combine=method[1])
    values = [document.score for document in fusion.documents]

    assert sorted(ranked(fusion)) == sorted({*text.keys, *image.keys})
    assert values == sorted(values, reverse=True)


@given(LEGS, st.sampled_from(METHODS))
def test_one_leg_keeps_its_order(leg: ScoredLeg, method: tuple[str, str]) -> None:
    order = fuse({"text": leg}, normalize="none", combine="sum").documents
    fused = fuse({"text": leg}, normalize=method[0], combine=method[1])

    assert ranked(fused) == [document.key for document in order]


@given(LEGS, LEGS, NUMBERS)
def test_more_evidence_never_counts_against_a_document(
    text: ScoredLeg, image: ScoredLeg, score: float
) -> None:
    def score_of_new(image: ScoredLeg) -> float:
        legs = {
            "text": ScoredLeg([*text.keys, "new"], [*text.scores, 0.5], background=UNIT),
            "image": image,
        }
        return scores(fuse(legs))["new"]

    found = ScoredLeg([*image.keys, "new"], [*image.scores, score], background=UNIT)

    assert score_of_new(found) >= score_of_new(image)


@given(LEGS, LEGS, st.floats(0.5, 2), st.floats(-1, 1))
def test_background_does_not_mind_another_scale(
    text: ScoredLeg, image: ScoredLeg, factor: float, shift: float
) -> None:
    """The modality gap is such a shift; this is what calibration is for."""
    moved = ScoredLeg(
        image.keys,
        np.array(image.scores) * factor + shift,
        background=np.array(UNIT) * factor + shift,
    )
    before, after = (scores(fuse({"text": text, "image": leg})) for leg in (image, moved))

    assert after == pytest.approx(before, rel=1e-6, abs=1e-9)


# --- on real features ---------------------------------------------------------------------------


def test_real_clip_features(gap_shared: Path) -> None:
    """Each caption is a query for its image, among 250 images and the 249 other captions.

    Over all captions of 8 random halves (the other half is the background), recall@10 is 0 raw,
    0.861 by rank fusion, 0.874 by background z-scores, and the share of captions in the ten 1, 0.5,
    0.45. Here 60 captions of each half.
    """
    features = np.load(gap_shared / "data" / "clip_features" / "features_clip.npy")
    images, texts = features / np.linalg.norm(features, axis=-1, keepdims=True)
    found: dict[str, list[float]] = {"none": [], "rank": [], "background": []}
    shares: dict[str, list[float]] = {"none": [], "rank": [], "background": []}
    for seed in range(8):
        fit, test = np.split(np.random.default_rng(seed).permutation(500), 2)
        for query in test[:60]:
            others = test[test != query]
            legs = {
                "text": ScoredLeg(
                    [f"text {i}" for i in others],
                    texts[others] @ texts[query],
                    background=texts[fit] @ texts[query],
                ),
                "image": ScoredLeg(
                    [f"image {i}" for i in test],
                    images[test] @ texts[query],
                    background=images[fit] @ texts[query],
                ),
            }
            for normalize, hits in found.items():
                top = ranked(fuse(legs, normalize=normalize, combine="sum"))[:10]
                hits.append(f"image {query}" in top)
                shares[normalize].append(sum(key.startswith("text") for key in top) / 10)
    recall = {name: np.mean(hits) for name, hits in found.items()}
    share = {name: np.mean(parts) for name, parts in shares.items()}

    assert recall["none"] == 0
    assert share["none"] == 1
    assert recall["rank"] == pytest.approx(0.861, abs=0.02)
    assert share["rank"] == pytest.approx(0.5, abs=0.001)
    assert recall["background"] == pytest.approx(0.874, abs=0.02)
    assert share["background"] == pytest.approx(0.45, abs=0.03)
