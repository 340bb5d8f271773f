"""Each case of the guide, with figures written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llama_index_gap.diagnosis.mitigations import Asked, BeforeAfter, Mitigation
from llama_index_gap.diagnosis.recommendations import Figures, Recommendation, recommend
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.measure import GapReport, ScoreFigures
from llama_index_gap.gap.neighbours import RecallComparison
from llama_index_gap.gap.scores import Histograms, ScoreComparison

FUSED = {"rank": (0.5, 0.5), "intent": (0.4, 0.45)}
"""The share of the own modality, for text queries and for image queries."""


def about(value: float, off: float = 0.02) -> Estimate:
    return Estimate(value, value - off, value + off)


def gap(distance: float = 0.85, separation: float = 1.24, **changes: Any) -> GapReport:
    """Unrelated texts score 0.5 or 0.6, unrelated images 0.2 or 0.3."""
    figure = ScoreFigures(about(0.5), about(0.1), 100)
    report = GapReport(
        measured={},
        k=10,
        distance=about(distance),
        text_spread=about(0.7),
        image_spread=about(0.7),
        separation=about(separation),
        rmg=None,
        gap_share={},
        scores=dict.fromkeys(("text_to_text", "text_to_image", "image_to_image"), figure),
        spread_ratio=about(1.7),
        bias={},
        corpus_share={},
        overlap={},
        histograms=Histograms(
            (0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
            {"text_to_text": (0, 0, 0, 0.5, 0.5), "text_to_image": (0.97, 0.03, 0, 0, 0)},
        ),
    )
    return replace(report, **changes)


def mitigation(
    text: float, image: float, distance: float | None = None, gain: float | None = None, **rest: Any
) -> Mitigation:
    found = None if gain is None else about(gain)
    asked = {"text": Asked(about(text), found, found), "image": Asked(about(image))}
    return Mitigation(asked, None if distance is None else gap(distance), **rest)


def figures(mitigations: dict[str, Mitigation], **changes: Any) -> Figures:
    """500 texts and 500 images, with stored vectors as queries."""
    labelled = tuple(changes.pop("labelled", ()))
    before_after = BeforeAfter(
        k=10,
        fitted_on={"texts": 250, "images": 250, "pairs": changes.pop("pairs", 250)},
        corpus={"texts": 250, "images": 250, "pairs": 250},
        corpus_share={"text": 0.5, "image": 0.5},
        queries={"text": changes.pop("queries", 250), "image": 250},
        labelled=labelled,
        left_out=0,
        mitigations=mitigations,
    )
    return replace(Figures({"text": 500, "image": 500}, gap(), before_after), **changes)


CLIP = {
    "stored": mitigation(1.0, 1.0, 0.85),
    "offset": mitigation(0.9, 0.84, 0.08, bias_closed=0.26, only_means=True),
    "centred": mitigation(0.89, 0.9, 0.12, bias_closed=0.21, only_means=True),
    "linear": mitigation(0.53, 0.69, 0.09, bias_closed=0.79),
    **{name: mitigation(*shares, bias_closed=0.9) for name, shares in FUSED.items()},
}
"""As CLIP's features of COCO have it."""


def titles(given: Figures) -> list[str]:
    return [recommendation.title for recommendation in recommend(given)]


def recommendation(given: Figures, start: str) -> Recommendation:
    (found,) = (each for each in recommend(given) if each.title.startswith(start))
    return found


# --- what concerns everybody ---------------------------------------------------------------------


def test_a_gap_as_clips_gets_the_whole_guide() -> None:
    assert titles(figures(CLIP)) == [
        "One index for each modality, fused by intent",
        "If it must be one index with this model: align by a linear map",
        "Thresholds: one for each pair of modalities",
        "If the model can change: one with a narrower gap",
    ]


def test_nothing_is_recommended_without_a_figure() -> None:
    for each in recommend(
        figures(CLIP, scorers={"embedder": scorer(0.02), "reranker": scorer(0.8)})
    ):
        assert any(character.isdigit() for character in each.because), each.title
        assert each.do


@pytest.mark.parametrize(
    ("stored", "numbers"),
    [
        ({"text": 0, "image": 480}, "480 images and no texts"),
        ({"text": 480, "image": 0}, "480 texts and no images"),
    ],
)
def test_one_modality_needs_no_mitigation(stored: Any, numbers: str) -> None:
    (only,) = recommend(figures({"stored": Mitigation({})}, stored=stored, gap=None))

    assert only.title == "Only one modality: no mitigation needed"
    assert numbers in only.because


def test_thin_data_is_called_thin() -> None:
    given = figures(CLIP, stored={"text": 500, "image": 40}, labelled=["text"], queries=12)
    first = recommend(given)[0]

    assert first.title == "There is little data"
    assert "only 40 images and 12 labelled text queries" in first.because
    assert "500" not in first.because


def test_two_models_keep_two_indexes() -> None:
    mitigations = {name: mitigation(*shares, gain=0.6) for name, shares in FUSED.items()}
    (only,) = recommend(figures(mitigations, one_space=False, gap=None, labelled=["text"]))

    assert only.title == "Two models: keep two indexes"
    assert "two indexes, by intent 0.60 (0.58 to 0.62)" in only.because


# --- one index or two ----------------------------------------------------------------------------


def test_two_indexes_where_one_is_biased() -> None:
    found = recommendation(figures(CLIP), "One index for each modality")

    assert "100% (98% to 102%) of the first 10 hits of text queries are texts," in found.because
    assert "compared with 50% of the corpus" in found.because
    assert "with fusion by rank, 50% and 50%; with fusion by intent, 40% and 45%" in found.because
    assert "as_retriever()" in found.do


def test_labelled_queries_decide_between_intent_and_rank() -> None:
    mitigations = CLIP | {
        "rank": mitigation(0.5, 0.5, gain=0.9),
        "intent": mitigation(0.4, 0.4, gain=0.7),
    }
    found = recommendation(figures(mitigations, labelled=["text"]), "One index for each modality")

    assert found.title.endswith("fused by rank")
    assert 'normalize="rank"' in found.do
    assert "two indexes, by rank 0.90 (0.88 to 0.92)" in found.because


def test_without_labels_intent_must_close_half_of_the_bias() -> None:
    swung = {
        "rank": mitigation(0.5, 0.5, bias_closed=1.0),
        "intent": mitigation(0, 0.1, bias_closed=0.1),
    }
    found = recommendation(figures(CLIP | swung), "One index for each modality")

    assert found.title.endswith("fused by rank")
    assert "with fusion by intent, 0% and 10%" in found.because


def test_where_the_fusion_fell_back_it_says_so() -> None:
    note = "no background for: image"
    mitigations = CLIP | {"intent": mitigation(0.5, 0.5, bias_closed=1.0, note=note)}

    found = recommendation(figures(mitigations), "One index for each modality")

    assert note in found.because


@pytest.mark.parametrize(("fused", "differs"), [(0.79, False), (0.9, True)])
def test_where_labelled_queries_find_no_difference_it_says_so(fused: float, differs: bool) -> None:
    mitigations = CLIP | {
        "stored": mitigation(1, 1, 0.85, gain=0.77),
        "rank": mitigation(0.5, 0.5, gain=0.7),
        "intent": mitigation(0.5, 0.5, gain=fused),
    }
    found = recommendation(figures(mitigations, labelled=["text"]), "One index for each modality")

    assert ("the intervals show no difference" in found.because) is not differs


def test_one_index_where_labelled_queries_find_more_in_it() -> None:
    mitigations = CLIP | {
        "stored": mitigation(1, 1, 0.85, gain=0.9),
        "rank": mitigation(0.5, 0.5, gain=0.6),
        "intent": mitigation(0.5, 0.5, gain=0.7),
    }
    found = recommendation(figures(mitigations, labelled=["text"]), "One index works")

    assert "one index, as stored 0.90 (0.88 to 0.92)" in found.because


def test_without_bias_both_serve_and_no_aligner_is_needed() -> None:
    mitigations = CLIP | {"stored": mitigation(0.51, 0.49, 0.2)}
    given = figures(mitigations, gap=gap(0.2, 0.3))

    assert titles(given)[0] == "One index or two: both work"
    assert not [title for title in titles(given) if title.startswith("If")]


# --- aligners ------------------------------------------------------------------------------------


def test_aligners_come_with_what_they_moved() -> None:
    found = recommendation(figures(CLIP), "If it must be one index with")

    assert "Centring changes the distance of the means from 0.85 to 0.12" in found.because
    assert "from 100% to 89%" in found.because
    assert found.because.count("It moves only the means.") == 2
    assert "LinearAligner" in found.do


def test_the_best_aligner_is_named_by_ndcg_where_queries_are_labelled() -> None:
    gains = {"stored": 0.1, "offset": 0.8, "centred": 0.5, "linear": 0.6, "intent": 0.9}
    mitigations = {
        name: replace(each, asked={"text": replace(each.asked["text"], ndcg=about(gains[name]))})
        for name, each in CLIP.items()
        if name in gains
    }
    mitigations["offset"] = replace(mitigations["offset"], bias_closed=0.6, only_means=False)
    found = recommendation(figures(mitigations, labelled=["text"]), "If it must be one index with")

    assert "the offset" in found.title
    assert "OffsetAligner" in found.do
    assert "two indexes, by intent 0.90" in found.because


def test_where_no_aligner_closes_the_gap_it_says_so() -> None:
    mitigations = {name: each for name, each in CLIP.items() if name != "linear"}
    found = recommendation(figures(mitigations, pairs=12), "If it must be one index")

    assert "no aligner" in found.title
    assert "needs 50 pairs of a text and its image, and there were 12" in found.because


# --- further cases -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delta", "title"),
    [
        (-0.3, "use the encoder for image queries"),
        (0.3, "the main model"),
        (0.01, "no significant"),
    ],
)
def test_images_that_look_for_images(delta: float, title: str) -> None:
    within = RecallComparison(10, about(0.5), about(0.5 - delta), about(delta), 90, 10)
    found = recommendation(figures(CLIP, within=within), "Image queries for images")

    assert title in found.title
    assert f"{delta:.2f}" in found.because
    assert "90 images" in found.because


def test_a_threshold_of_one_pair_means_nothing_for_another() -> None:
    found = recommendation(figures(CLIP), "Thresholds")

    assert "3.0% of unrelated images score 0.30 or more, and so do 100.0%" in found.because


def test_thresholds_that_mean_the_same_need_no_recommendation() -> None:
    shares = {"text_to_text": (0.96, 0.04, 0, 0, 0), "text_to_image": (0.97, 0.03, 0, 0, 0)}
    same = gap(histograms=replace(gap().histograms, shares=shares))

    assert not [title for title in titles(figures(CLIP, gap=same)) if "Thresholds" in title]


def scorer(overlap: float) -> ScoreComparison:
    value = about(0.5)
    histograms = Histograms((0, 1), {"text": (1,), "image": (1,)})
    counts = {"text": 50, "image": 50}
    return ScoreComparison(
        value, value, value, value, about(overlap), about(1 - overlap), histograms, counts
    )


@pytest.mark.parametrize(
    ("overlap", "title"),
    [(0.8, "Let the cross-encoder decide"), (0.03, "The gap of this reranker is no narrower")],
)
def test_a_reranker_is_judged_by_its_own_gap(overlap: float, title: str) -> None:
    given = figures(CLIP, scorers={"embedder": scorer(0.02), "reranker": scorer(overlap)})
    found = recommendation(given, title)

    assert f"{overlap:.0%}" in found.because
    assert "2%" in found.because


def test_another_model_where_the_gap_is_wider_than_the_clouds() -> None:
    found = recommendation(figures(CLIP), "If the model can change")

    assert "1.24 (1.22 to 1.26) times the spread" in found.because
    assert "still 89% and 90%" in found.because
    narrow = figures(CLIP, gap=gap(0.4, 0.9))
    assert not [title for title in titles(narrow) if "model can change" in title]


def test_a_sample_of_queries_where_the_legs_spread_by_subject() -> None:
    def of(found: float | None, learnt: int = 0) -> list[str]:
        given = figures(CLIP, learnt=learnt, range_of_spreads=found, labelled=["text"])
        return [title for title in titles(given) if "quer" in title]

    assert of(None) == []
    assert of(1.5) == ["A sample of queries would gain little"]
    assert of(40.5) == ["Let the index learn from a sample of queries"]
    assert of(40.5, 300) == ["The index has learnt from 300 text queries"]
    because = recommendation(figures(CLIP, range_of_spreads=40.51), "Let the index").because
    assert "is 40.5 times its 10th percentile (250 labelled queries)" in because
