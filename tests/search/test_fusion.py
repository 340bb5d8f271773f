from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from llama_index_gap.search.fusion import Fusion, ScoredLeg, fuse

# A background with mean 0 and standard deviation 1, so that a score is its own z-score.
UNIT = [-1.0, 1.0] * 50


def ranked(fusion: Fusion) -> list[str]:
    return [document.key for document in fusion.documents]


def scores(fusion: Fusion) -> dict[str, float]:
    return {document.key: document.score for document in fusion.documents}


def test_the_readme_s_two_articles() -> None:
    """Where texts get 0.70 ± 0.03 from this query, and photos 0.30 ± 0.06."""
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

    assert scores(fuse(legs, combine="sum")) == pytest.approx({"b": 4, "a": 3})
    assert scores(fuse(legs, combine="max")) == pytest.approx({"a": 3, "b": 3})


def test_evidence_is_minus_log_of_the_tail() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 0], background=UNIT),
        "image": ScoredLeg(["b"], [2], background=UNIT),
    }

    assert scores(fuse(legs)) == pytest.approx(
        {"a": -norm.logsf(3), "b": -norm.logsf(0) - norm.logsf(2)}
    )


def test_of_twice_as_many_the_best_lies_higher_by_chance() -> None:
    legs = {
        "text": ScoredLeg(["t"], [1.0], UNIT, size=100),
        "image": ScoredLeg(["i", "far"], [1.0, 40.0], UNIT, size=200),
    }

    found = scores(fuse(legs))

    p = norm.sf(1.0)
    assert found["t"] == pytest.approx(-math.log(p))
    assert found["i"] == pytest.approx(-math.log(1 - (1 - p) ** 2))
    assert found["far"] == pytest.approx(-norm.logsf(40.0) - math.log(2))


@pytest.mark.parametrize("sizes", [(500, 500), (100, None), (None, None)])
def test_sizes_that_are_equal_or_unknown_change_nothing(sizes: tuple[int, int]) -> None:
    legs = {
        name: ScoredLeg(["a", name], [2.0, 0.5], UNIT, size)
        for name, size in zip(("text", "image"), sizes, strict=True)
    }
    unsized = {name: ScoredLeg(leg.keys, leg.scores, UNIT) for name, leg in legs.items()}

    assert scores(fuse(legs)) == pytest.approx(scores(fuse(unsized)))


def test_a_leg_with_hits_is_not_empty() -> None:
    with pytest.raises(ValueError, match="the text leg has hits, but its size is 0"):
        fuse({"text": ScoredLeg(["a"], [1.0], UNIT, size=0)})


def test_evidence_does_not_underflow() -> None:
    (document,) = fuse({"text": ScoredLeg(["a"], [50.0], background=UNIT)}).documents

    assert 1250 < document.score < 1260  # z²/2 and a little: the probability itself is 0.0


def test_weights_multiply_what_a_leg_adds() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 1], background=UNIT),
        "image": ScoredLeg(["b", "a"], [3, 1], background=UNIT),
    }

    assert ranked(fuse(legs, weights={"image": 2})) == ["b", "a"]
    assert ranked(fuse(legs, weights={"image": 0.5})) == ["a", "b"]
    only_text = fuse(legs, weights={"image": 0})
    assert scores(only_text) == scores(fuse({"text": legs["text"]}))
    assert only_text.documents[0].evidence["image"] == 0


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

    assert (a.key, a.scores, a.evidence) == (
        "a",
        {"text": 3, "image": 2},
        pytest.approx({"text": 6, "image": 2}),
    )
    assert (b.scores, b.evidence) == ({"image": 1}, pytest.approx({"image": 1}))


def test_without_a_background_all_legs_go_by_rank_and_say_so() -> None:
    legs = {
        "text": ScoredLeg(["a", "b"], [3, 1], background=UNIT),
        "image": ScoredLeg(["b"], [2], background=UNIT[:49]),
    }
    fusion = fuse(legs)

    assert (fusion.normalize, fusion.combine) == ("rank", "sum")
    assert fusion.note is not None
    assert "no background of at least 50 scores for: image; so" in fusion.note
    assert scores(fusion) == scores(fuse(legs, normalize="rank", combine="sum"))
    assert fuse({**legs, "image": ScoredLeg(["b"], [2])}).normalize == "rank"


def test_a_leg_without_hits_needs_no_background() -> None:
    legs = {"text": ScoredLeg(["a"], [3], background=UNIT), "image": ScoredLeg([], [])}
    fusion = fuse(legs)

    assert (fusion.normalize, fusion.note) == ("background", None)
    assert ranked(fusion) == ["a"]


METHODS = [
    (normalize, combine)
    for normalize in ("rank", "minmax", "zscore", "background", "none")
    for combine in ("sum", "max", "evidence")
    if combine != "evidence" or normalize in {"zscore", "background"}
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
        ({"combine": "mean"}, "combine='mean': must be one of sum, max, evidence"),
        ({"normalize": "rank"}, "combine='evidence' turns z-scores into probabilities"),
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
        legs = {"text": ScoredLeg([*text.keys, "new"], [*text.scores, 0.5], UNIT), "image": image}
        return scores(fuse(legs))["new"]

    found = ScoredLeg([*image.keys, "new"], [*image.scores, score], UNIT)

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
    """A caption asks for its image among 250 images and the 249 other captions.

    Over all captions of 8 random halves (the other half is the background), recall@10 is 0 raw,
    0.861 by rank fusion, 0.874 by background z-scores (0.84 to 0.90 by half), and the share of
    captions in the ten 1, 0.5, 0.384. Here 60 captions of each half.
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
                    texts[fit] @ texts[query],
                ),
                "image": ScoredLeg(
                    [f"image {i}" for i in test],
                    images[test] @ texts[query],
                    images[fit] @ texts[query],
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
    assert share["background"] == pytest.approx(0.384, abs=0.03)
