"""Recommends mitigations for the modality gap, based on the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llama_index_gap.diagnosis.mitigations import (
    FEWEST_PAIRS,
    FUSIONS,
    STORED,
    BeforeAfter,
    Mitigation,
)
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.measure import GapReport
from llama_index_gap.gap.neighbours import RecallComparison
from llama_index_gap.gap.scores import ScoreComparison
from llama_index_gap.modality import MODALITIES, PLURAL, Modality

THIN = 100
"""With fewer vectors of a modality, the intervals matter more than the figures."""
THIN_QUERIES = 30
RARE = 0.05
"""The share of unrelated images that may score above a threshold."""
WIDE = 2.0
"""From this range of spreads on, a sample of queries gains more than 0.01 nDCG."""
NAMES = {
    "stored": "one index, as stored",
    "offset": "one index, offset",
    "centred": "one index, centred",
    "linear": "one index, linear map",
    "rank": "two indexes, by rank",
    "intent": "two indexes, by intent",
}
_ALIGNERS = {
    "offset": ("the offset", "OffsetAligner"),
    "centred": ("centring", "CenterAligner"),
    "linear": ("a linear map", "LinearAligner"),
}


@dataclass(frozen=True)
class Figures:
    """The measurements of an index.

    Attributes:
        stored: the number of rows in each collection.
        gap: all figures of the gap; None if there is only one modality, or no common space.
        before_after: the effect of each mitigation.
        one_space: whether one model embedded both modalities.
        within: how well images find others of their document, by this model and by the encoder for
            image queries; None if there is no such encoder, or hardly any document has several
            images.
        scorers: the scores that the ``embedder`` and the ``reranker`` give to texts and images of
            the same hits; empty if no reranker was measured.
        learnt: the number of text queries that the index has learnt from.
        range_of_spreads: how much the legs' spreads vary among labelled text queries, see
            ``gap.background``; None if there are too few such queries.
    """

    stored: Mapping[Modality, int]
    gap: GapReport | None
    before_after: BeforeAfter
    one_space: bool = True
    within: RecallComparison | None = None
    scorers: Mapping[str, ScoreComparison] = field(default_factory=dict)
    learnt: int = 0
    range_of_spreads: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """What to do, and the figures behind it.

    Attributes:
        title: the case, and the mitigation.
        because: the reason, with the figures.
        do: how to do it with this package.
    """

    title: str
    because: str
    do: str


def recommend(figures: Figures) -> list[Recommendation]:
    """Recommend each mitigation that the figures support, or advise against it.

    Every recommendation is based on a figure. Nothing is said about what was not measured.

    Args:
        figures: the figures of one index.

    Returns:
        First the recommendations for everybody; then those for users who cannot have two indexes,
        search by image, set thresholds, or can choose another model.
    """
    rules: tuple[Callable[[Figures], Recommendation | None], ...] = (
        _thin,
        _one_modality,
        _two_spaces,
        _two_indexes,
        _learn,
        _cross_encoder,
        _align,
        _images_by_image,
        _thresholds,
        _other_model,
    )
    return [found for rule in rules if (found := rule(figures)) is not None]


# --- the cases -----------------------------------------------------------------------------------


def _thin(figures: Figures) -> Recommendation | None:
    queries, labelled = figures.before_after.queries, figures.before_after.labelled
    few = [
        f"{count:,} {PLURAL[modality]}"
        for modality, count in figures.stored.items()
        if 0 < count < THIN
    ]
    few += [
        f"{queries[modality]} labelled {modality} queries"
        for modality in labelled
        if queries[modality] < THIN_QUERIES
    ]
    if not few:
        return None
    return Recommendation(
        "There is little data",
        f"There are only {_listed(few)}, so another sample may give other figures.",
        "Rely on the intervals, not the figures, and measure again with more data.",
    )


def _one_modality(figures: Figures) -> Recommendation | None:
    for missing, present in (MODALITIES, MODALITIES[::-1]):
        if not figures.stored[missing]:
            return Recommendation(
                "Only one modality: no mitigation needed",
                f"The index has {figures.stored[present]:,} {PLURAL[present]} and no "
                f"{PLURAL[missing]}. So all scores of a query belong to one pair of modalities. "
                "The gap shifts them all alike, and changes no ranking.",
                "Search as before. An aligner would have a cost and no benefit.",
            )
    return None


def _two_spaces(figures: Figures) -> Recommendation | None:
    if figures.one_space or not all(figures.stored.values()):
        return None
    return Recommendation(
        "Two models: keep two indexes",
        f"Two models without a common space embedded the {figures.stored['text']:,} texts and the "
        f"{figures.stored['image']:,} images. There is no gap between them to close, and one mixed "
        f"index is impossible.{_gains(figures.before_after, *FUSIONS)}",
        "index.as_retriever() fuses the two by intent.",
    )


def _two_indexes(figures: Figures) -> Recommendation | None:
    before_after = figures.before_after
    before = before_after.mitigations.get(STORED)
    fused = {name: each for name, each in before_after.mitigations.items() if name in FUSIONS}
    if before is None or not fused:
        return None
    best = _best(fused)
    shares = ", and ".join(
        f"{_figure(each.bias, '.0%')} of the first {before_after.k} hits of {modality} queries are "
        f"{PLURAL[modality]}, compared with {before_after.corpus_share[modality]:.0%} of the corpus"
        for modality, each in before.asked.items()
        if each.bias is not None
    )
    if not _is_biased(before_after):
        if not shares:
            return None
        return Recommendation(
            "One index or two: both work",
            f"One mixed index shows no bias: {shares}.{_gains(before_after, STORED, best)}",
            "Two indexes cost little more, and still work when the corpus changes.",
        )
    if _is_lower(fused[best], before):
        return Recommendation(
            "One index works better for these queries",
            f"It is biased ({shares}), but the labelled queries find more in it."
            f"{_gains(before_after, STORED, *fused)}",
            "Check that the queries are like those of users: queries for the other modality may be "
            "missing here.",
        )
    notes = sorted({f" ({mitigation.note}.)" for mitigation in fused.values() if mitigation.note})
    if before_after.labelled and not _is_lower(before, fused[best]):
        notes.append(" For the labelled queries, the intervals show no difference.")
    settings = 'normalize="rank", combine="sum"' if best == "rank" else ""
    then = "; ".join(
        f"with fusion by {name}, {_bias_values(mitigation)}" for name, mitigation in fused.items()
    )
    return Recommendation(
        f"One index for each modality, fused by {best}",
        f"In one mixed index, {shares}; {then}.{_gains(before_after, STORED, *fused)}"
        + "".join(notes),
        f"Search with index.as_retriever({settings}), and let a cross-encoder, MultiModalRerank, "
        "decide the final order.",
    )


def _learn(figures: Figures) -> Recommendation | None:
    found = figures.range_of_spreads
    if found is None or not all(figures.stored.values()):
        return None
    numbers = (
        "Whether a text query's scores spread wider over the texts or over the images depends on "
        f"its subject: the 90th percentile of the ratio of the two spreads is {found:.1f} times "
        f"its 10th percentile ({figures.before_after.queries['text']:,} labelled queries)."
    )
    if figures.learnt:
        return Recommendation(
            f"The index has learnt from {figures.learnt:,} text queries",
            f"{numbers} The sample preserves part of the information in that ratio.",
            "Nothing; learn again when users begin to ask for other things.",
        )
    if found < WIDE:
        return Recommendation(
            "A sample of queries would gain little",
            f"{numbers} This ratio has little information for a sample to preserve.",
            "Search as before; 'llama-gap evaluate' measures what a sample would gain.",
        )
    return Recommendation(
        "Let the index learn from a sample of queries",
        f"{numbers} The default divides the scores of each leg by the query's own spread, which "
        "loses the information in that ratio; a sample of queries preserves part of it.",
        "llama-gap learn QUERIES.txt, with 100 to 300 unlabelled queries other than these; "
        "'llama-gap evaluate' measures the gain.",
    )


def _cross_encoder(figures: Figures) -> Recommendation | None:
    if not {"embedder", "reranker"} <= figures.scorers.keys():
        return None
    embedder, reranker = figures.scorers["embedder"], figures.scorers["reranker"]
    numbers = (
        "for the same hits, the scores of texts and of images overlap by "
        f"{_figure(reranker.overlap, '.0%')} with the reranker and by "
        f"{_figure(embedder.overlap, '.0%')} with the embedder; they are "
        f"{_figure(reranker.distance)} and {_figure(embedder.distance)} standard deviations apart."
    )
    if reranker.overlap.low > embedder.overlap.high:
        return Recommendation(
            "Let the cross-encoder decide the final order",
            f"Its gap is narrower: {numbers}",
            'MultiModalRerank(score_mode="mean") on what index.as_retriever() finds.',
        )
    return Recommendation(
        "The gap of this reranker is no narrower",
        f"It reads query and document together, but {numbers}",
        "Calibrate its scores of each modality before combining them: "
        "MultiModalRerank(calibrator=…).",
    )


def _align(figures: Figures) -> Recommendation | None:
    before_after = figures.before_after
    aligned = {name: each for name, each in before_after.mitigations.items() if name in _ALIGNERS}
    if not aligned or not _is_biased(before_after):
        return None
    before = before_after.mitigations[STORED]
    best = _best(aligned)
    reasons = []
    for name, mitigation in aligned.items():
        changes = " and ".join(
            f"the share of {PLURAL[modality]} among the hits of {modality} queries from "
            f"{each.bias.value:.0%} to {after.value:.0%}"
            for modality, each in before.asked.items()
            if each.bias is not None and (after := mitigation.asked[modality].bias) is not None
        )
        if mitigation.gap is not None and before.gap is not None:
            changes = (
                f"the distance of the means from {before.gap.distance.value:.2f} to "
                f"{mitigation.gap.distance.value:.2f}, {changes}"
            )
        only_means = " It moves only the means." if mitigation.only_means else ""
        reasons.append(f"{_ALIGNERS[name][0].capitalize()} changes {changes}.{only_means}")
    if "linear" not in aligned:
        reasons.append(
            f"A linear map was not fitted: it needs {FEWEST_PAIRS} pairs of a text and its "
            f"image, and there were {before_after.fitted_on['pairs']}."
        )
    because = " ".join(reasons) + _gains(before_after, STORED, *aligned, *FUSIONS)
    if (aligned[best].bias_closed or 0) < 0.5:
        return Recommendation(
            "If it must be one index: no aligner closes this gap",
            because,
            "Keep two indexes if possible; otherwise, expect little from an aligner.",
        )
    words, aligner = _ALIGNERS[best]
    return Recommendation(
        f"If it must be one index with this model: align by {words}",
        because,
        f"aligner_from_nodes(nodes, embedding, {aligner}).save(path), then index again with "
        "DualEncoderEmbedding(aligner=path).",
    )


def _images_by_image(figures: Figures) -> Recommendation | None:
    within = figures.within
    if within is None:
        return None
    numbers = (
        f"If one image of a document searches for the others ({within.queries} images), "
        f"recall@{within.k} is {_figure(within.model)} with this model and "
        f"{_figure(within.reference)} with the encoder for image queries; the difference is "
        f"{_figure(within.delta)}."
    )
    title = "no significant difference"
    do = "This measurement does not show that the collection for image queries is worth its space."
    if within.delta.high < 0:
        title = "use the encoder for image queries"
        do = "Keep image_query_embed_model: image queries use it automatically."
    elif within.delta.low > 0:
        title = "the main model is better"
        do = "Index again without image_query_embed_model."
    return Recommendation(f"Image queries for images: {title}", numbers, do)


def _thresholds(figures: Figures) -> Recommendation | None:
    if figures.gap is None:
        return None
    query = "query" if "query_to_text" in figures.gap.scores else "text"
    histograms = figures.gap.histograms
    of_images = histograms.shares[f"{query}_to_image"]
    of_texts = histograms.shares[f"{query}_to_text"]
    above = [sum(of_images[i:]) for i in range(len(of_images))]
    start = next((i for i, share in enumerate(above) if share <= RARE), None)
    if start is None:
        return None
    images, texts = above[start], sum(of_texts[start:])
    if RARE / 2 <= texts <= 2 * RARE:
        return None
    return Recommendation(
        "Thresholds: one for each pair of modalities",
        f"For text queries, {images:.1%} of unrelated images score "
        f"{histograms.edges[start]:.2f} or more, and so do {texts:.1%} of unrelated texts.",
        "Fit a RelevanceCalibrator on labelled hits (collect_scores), and set min_probability "
        "instead of a score.",
    )


def _other_model(figures: Figures) -> Recommendation | None:
    gap = figures.gap
    if gap is None or gap.separation.low <= 1 or not _is_biased(figures.before_after):
        return None
    centred = figures.before_after.mitigations.get("centred")
    still = (
        f" After centring, the share of the own modality is still {_bias_values(centred)}: the "
        "means are not the whole gap."
        if centred is not None and centred.only_means
        else ""
    )
    return Recommendation(
        "If the model can change: one with a narrower gap",
        f"The distance of the modalities' means is {_figure(gap.separation)} times the spread of a "
        f"modality, and the spread of cosines within a modality is {_figure(gap.spread_ratio)} "
        f"times that across modalities.{still}",
        "Try a model that was trained with intra-modal terms, or a single vision-language model "
        "for both modalities ('llama-gap models' lists some). Index under another name, and "
        "compare the two reports.",
    )


# --- figures in words ----------------------------------------------------------------------------


def _is_biased(before_after: BeforeAfter) -> bool:
    """Whether the hits of one mixed index over-represent the query's modality."""
    stored = before_after.mitigations.get(STORED)
    return stored is not None and any(
        each.bias is not None and each.bias.low > before_after.corpus_share[modality]
        for modality, each in stored.asked.items()
    )


def _best(mitigations: Mapping[str, Mitigation]) -> str:
    """The best by nDCG if labelled; else intent if it closes half the bias; else by bias."""

    def worth(name: str) -> tuple[float, bool, float]:
        mitigation = mitigations[name]
        gain = sum(each.ndcg.value for each in mitigation.asked.values() if each.ndcg is not None)
        closed = mitigation.bias_closed or 0.0
        return gain, name == "intent" and closed >= 0.5, closed

    return max(mitigations, key=worth)


def _is_lower(one: Mitigation, other: Mitigation) -> bool:
    """Whether one has a lower nDCG for all labelled queries, with intervals that do not overlap."""
    pairs = [(one.asked[modality].ndcg, other.asked[modality].ndcg) for modality in one.asked]
    judged = [(a, b) for a, b in pairs if a is not None and b is not None]
    return bool(judged) and all(a.high < b.low for a, b in judged)


def _bias_values(mitigation: Mitigation) -> str:
    return _listed([f"{each.bias.value:.0%}" for each in mitigation.asked.values() if each.bias])


def _gains(before_after: BeforeAfter, *names: str) -> str:
    """The nDCG of labelled queries with each of these mitigations, in words."""
    found = {
        NAMES[name]: before_after.mitigations[name].asked
        for name in names
        if name in before_after.mitigations
    }
    parts = []
    for modality in before_after.labelled:
        gains = [
            f"{name} {_figure(ndcg)}"
            for name, asked in found.items()
            if (ndcg := asked[modality].ndcg) is not None
        ]
        parts.append(
            f" nDCG@{before_after.k} of {before_after.queries[modality]} labelled {modality} "
            f"queries: {'; '.join(gains)}."
        )
    return "".join(parts)


def _figure(estimate: Estimate, form: str = ".2f") -> str:
    value, low, high = (f"{each:{form}}" for each in (estimate.value, estimate.low, estimate.high))
    return value if low == high else f"{value} ({low} to {high})"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
