"""Which mitigation for the modality gap fits, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from llama_index_gap.diagnosis.mitigations import (
    FEWEST_PAIRS,
    FUSIONS,
    STORED,
    Asked,
    BeforeAfter,
    Mitigation,
)
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.measure import GapReport
from llama_index_gap.gap.neighbours import RecallComparison
from llama_index_gap.gap.scores import ScoreComparison
from llama_index_gap.modality import MODALITIES, Modality

THIN = 100
"""With fewer vectors of a side, read the intervals rather than the figures."""
THIN_QUERIES = 30
RARE = 0.05
"""A threshold is set where no more of the unrelated images lie above it."""
NAMES = {
    "stored": "one index, as stored",
    "offset": "one index, offset",
    "centred": "one index, centred",
    "linear": "one index, linear map",
    "rank": "two indexes, by rank",
    "evidence": "two indexes, by evidence",
}
_PLURAL = {"text": "texts", "image": "images"}
_QUERY = {"text": "text query", "image": "image query"}
_QUERIES = {"text": "text queries", "image": "image queries"}


@dataclass(frozen=True)
class Figures:
    """What was measured of an index.

    Attributes:
        stored: rows of each side.
        gap: all figures of the gap; None where there is only one modality, or no common space.
        before_after: what each mitigation brings.
        one_space: whether one model made both sides.
        within: images that find the others of their document, by this model and by the encoder
            for image queries; None where there is none, or no documents with several images.
        scorers: what texts and images of the same hits get of the ``embedder`` and of the
            ``reranker``; empty where no reranker was measured.
    """

    stored: Mapping[Modality, int]
    gap: GapReport | None
    before_after: BeforeAfter
    one_space: bool = True
    within: RecallComparison | None = None
    scorers: Mapping[str, ScoreComparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommendation:
    """What to do, and the figures that say so.

    Attributes:
        title: the case, and the mitigation.
        because: with the figures.
        do: how it is done here.
    """

    title: str
    because: str
    do: str


def recommend(figures: Figures) -> list[Recommendation]:
    """The guide: each mitigation that the figures speak for, or against.

    Nothing is advised without a figure; what was not measured is not mentioned.

    Args:
        figures: of one index.

    Returns:
        What concerns everybody first; then what suits those who cannot have two indexes, who ask
        by image, who set thresholds, or who may choose another model.
    """
    rules: tuple[Callable[[Figures], Iterator[Recommendation]], ...] = (
        _thin,
        _one_modality,
        _two_spaces,
        _two_indexes,
        _cross_encoder,
        _align,
        _images_by_image,
        _thresholds,
        _other_model,
    )
    return [recommendation for rule in rules for recommendation in rule(figures)]


# --- the cases -----------------------------------------------------------------------------------


def _thin(figures: Figures) -> Iterator[Recommendation]:
    before_after = figures.before_after
    few = [
        f"{figures.stored[side]:,} {_PLURAL[side]}"
        for side in MODALITIES
        if 0 < figures.stored[side] < THIN
    ]
    few += [
        f"{before_after.queries[side]} labelled {_QUERIES[side]}"
        for side in before_after.labelled
        if before_after.queries[side] < THIN_QUERIES
    ]
    if few:
        yield Recommendation(
            "The data is thin",
            f"There are only {_listed(few)}, so that another sample may show something else.",
            "Read the intervals rather than the figures, and measure again once there is more.",
        )


def _one_modality(figures: Figures) -> Iterator[Recommendation]:
    for side, there in (MODALITIES, MODALITIES[::-1]):
        if figures.stored[side]:
            continue
        yield Recommendation(
            "One modality only: no mitigation needed",
            f"The index holds {figures.stored[there]:,} {_PLURAL[there]} and no {_PLURAL[side]}. "
            "All scores of a query are then of one pair of modalities, and the gap moves them "
            "all alike: it changes no ranking.",
            "Search as it is. An aligner would cost, and bring nothing.",
        )


def _two_spaces(figures: Figures) -> Iterator[Recommendation]:
    if figures.one_space or not all(figures.stored.values()):
        return
    yield Recommendation(
        "Two models: keep two indexes",
        f"The {figures.stored['text']:,} texts and the {figures.stored['image']:,} images were "
        "embedded by two models, whose vectors have no space in common. There is no gap to close "
        f"between them, and one mixed index is impossible.{_gains(figures.before_after, *FUSIONS)}",
        "index.as_retriever() fuses the two by evidence.",
    )


def _two_indexes(figures: Figures) -> Iterator[Recommendation]:
    before_after = figures.before_after
    before = before_after.mitigations.get(STORED)
    fused = {
        name: before_after.mitigations[name] for name in FUSIONS if name in before_after.mitigations
    }
    if before is None or not fused:
        return
    best = _best(fused)
    shares = _shares(before, before_after)
    if not _is_biased(before_after):
        if shares:
            yield Recommendation(
                "One index or two: both serve",
                f"One mixed index shows no bias: {shares}.{_gains(before_after, STORED, best)}",
                "Two indexes cost little more, and stay right when the corpus changes.",
            )
        return
    if _is_lower(fused[best], before):
        yield Recommendation(
            "One index serves these queries better",
            f"It is biased ({shares}), and yet the labelled queries find more in it."
            f"{_gains(before_after, STORED, *fused)}",
            "Check that the queries are like those of users: here, those that look for the other "
            "modality may be missing.",
        )
        return
    notes = sorted({f" ({mitigation.note}.)" for mitigation in fused.values() if mitigation.note})
    if before_after.labelled and not _is_lower(before, fused[best]):
        notes.append(" For the labelled queries no difference is to be seen beyond the intervals.")
    by_rank = best == "rank" or fused[best].note is not None
    settings = 'normalize="rank", combine="sum"' if best == "rank" else ""
    then = "; ".join(
        f"fused by {name} it is {_bias_values(mitigation)}" for name, mitigation in fused.items()
    )
    yield Recommendation(
        f"One index for each modality, fused by {'rank' if by_rank else 'evidence'}",
        f"In one mixed index {shares}; {then}.{_gains(before_after, STORED, *fused)}"
        + "".join(notes),
        f"Search with index.as_retriever({settings}), and let a cross-encoder, MultiModalRerank, "
        "decide on the final order.",
    )


def _cross_encoder(figures: Figures) -> Iterator[Recommendation]:
    if not {"embedder", "reranker"} <= figures.scorers.keys():
        return
    embedder, reranker = figures.scorers["embedder"], figures.scorers["reranker"]
    numbers = (
        f"of the same hits, the scores of texts and of images overlap by "
        f"{_percent(reranker.overlap)} with the reranker, and by {_percent(embedder.overlap)} with "
        f"the embedder; they lie {_number(reranker.distance)} and {_number(embedder.distance)} "
        "standard deviations apart."
    )
    if reranker.overlap.low > embedder.overlap.high:
        yield Recommendation(
            "Let the cross-encoder decide on the final order",
            f"Its gap is narrower: {numbers}",
            'MultiModalRerank(score_mode="mean") on what index.as_retriever() finds.',
        )
    else:
        yield Recommendation(
            "This reranker's own gap is no narrower",
            f"It reads query and document together, and yet {numbers}",
            "Calibrate its sides before they are combined: MultiModalRerank(calibrator=…).",
        )


def _align(figures: Figures) -> Iterator[Recommendation]:
    before_after = figures.before_after
    aligned = {
        name: mitigation
        for name, mitigation in before_after.mitigations.items()
        if name not in {STORED, *FUSIONS}
    }
    if not aligned or not _is_biased(before_after):
        return
    before = before_after.mitigations[STORED]
    best = _best(aligned)
    told = " ".join(_told(name, mitigation, before) for name, mitigation in aligned.items())
    if "linear" not in aligned:
        told += (
            f" A linear map was not fitted: it takes {FEWEST_PAIRS} pairs of a text and its "
            f"image, and there were {before_after.fitted_on['pairs']}."
        )
    told += _gains(before_after, STORED, *aligned, *FUSIONS)
    if (aligned[best].bias_closed or 0) < 0.5:
        yield Recommendation(
            "If it must be one index: no aligner closes this gap",
            told,
            "Keep two indexes if that is possible at all; else expect little of an aligner.",
        )
        return
    kind = {"offset": "OffsetAligner", "centred": "CenterAligner", "linear": "LinearAligner"}[best]
    yield Recommendation(
        f"If the model must stay and it must be one index: align by {_ALIGNED[best]}",
        told,
        f"aligner_from_nodes(nodes, embedding, {kind}).save(path), then index again with "
        "DualEncoderEmbedding(aligner=path).",
    )


def _images_by_image(figures: Figures) -> Iterator[Recommendation]:
    within = figures.within
    if within is None:
        return
    numbers = (
        f"Asked with one image of a document for the others ({within.queries} images), this "
        f"model has a recall@{within.k} of {_number(within.model)}, the encoder for image "
        f"queries {_number(within.reference)}; the difference is {_number(within.delta)}."
    )
    if within.delta.high < 0:
        yield Recommendation(
            "Images that look for images: by an encoder of images",
            numbers,
            "Keep image_query_embed_model: image queries go there by themselves.",
        )
    elif within.delta.low > 0:
        yield Recommendation(
            "Images that look for images: the model itself is better",
            numbers,
            "Index again without image_query_embed_model.",
        )
    else:
        yield Recommendation(
            "Images that look for images: no difference to be seen",
            numbers,
            "The leg for image queries has not shown here that it is worth its space.",
        )


def _thresholds(figures: Figures) -> Iterator[Recommendation]:
    if figures.gap is None:
        return
    asking = "query" if "query_to_text" in figures.gap.scores else "text"
    histograms = figures.gap.histograms
    of_images = histograms.shares[f"{asking}_to_image"]
    of_texts = histograms.shares[f"{asking}_to_text"]
    above = [sum(of_images[i:]) for i in range(len(of_images))]
    start = next((i for i, share in enumerate(above) if share <= RARE), None)
    if start is None:
        return
    images, texts = above[start], sum(of_texts[start:])
    if RARE / 2 <= texts <= 2 * RARE:
        return
    yield Recommendation(
        "Thresholds: one for each pair of modalities",
        f"To a text query, {images:.1%} of unrelated images score "
        f"{histograms.edges[start]:.2f} or more, and {texts:.1%} of unrelated texts do.",
        "Fit a RelevanceCalibrator on labelled hits (collect_scores), and set min_probability in "
        "place of a score.",
    )


def _other_model(figures: Figures) -> Iterator[Recommendation]:
    gap = figures.gap
    if gap is None or gap.separation.low <= 1 or not _is_biased(figures.before_after):
        return
    centred = figures.before_after.mitigations.get("centred")
    still = (
        f" With both centred the share of the own modality is still {_bias_values(centred)}: the "
        "gap lies not in the means alone."
        if centred is not None and centred.only_means
        else ""
    )
    yield Recommendation(
        "If the model can change: one with a narrower gap",
        f"The modalities' means lie {_number(gap.separation)} times as far apart as each spreads, "
        f"and cosines within a modality spread {_number(gap.spread_ratio)} times as wide as those "
        f"across.{still}",
        "Try a model that was trained with intra-modal terms, or one that embeds both with a "
        "single vision-language model ('llama-gap models' lists some); index under another name, "
        "and hold the two reports side by side.",
    )


# --- figures in words ----------------------------------------------------------------------------

_ALIGNED = {"offset": "the offset", "centred": "centring", "linear": "a linear map"}


def _is_biased(before_after: BeforeAfter) -> bool:
    """Whether more of one mixed index's best have the query's modality than of the corpus."""
    asked = before_after.mitigations[STORED].asked if STORED in before_after.mitigations else {}
    return any(
        each.bias is not None and each.bias.low > before_after.corpus_share[side]
        for side, each in asked.items()
    )


def _best(mitigations: Mapping[str, Mitigation]) -> str:
    """By nDCG where queries are labelled; else evidence if it closes half the bias, or by bias."""

    def worth(name: str) -> tuple[float, bool, float]:
        mitigation = mitigations[name]
        gain = sum(each.ndcg.value for each in mitigation.asked.values() if each.ndcg is not None)
        closed = mitigation.bias_closed or 0.0
        return gain, name == "evidence" and closed >= 0.5, closed

    return max(mitigations, key=worth)


def _is_lower(one: Mitigation, other: Mitigation) -> bool:
    """Whether one has a lower nDCG wherever queries are labelled, beyond both intervals."""
    pairs = [(one.asked[side].ndcg, other.asked[side].ndcg) for side in one.asked]
    judged = [(a, b) for a, b in pairs if a is not None and b is not None]
    return bool(judged) and all(a.high < b.low for a, b in judged)


def _shares(mitigation: Mitigation, before_after: BeforeAfter) -> str:
    return ", and ".join(
        f"{_percent(each.bias)} of a {_QUERY[side]}'s first {before_after.k} are {_PLURAL[side]}, "
        f"where {before_after.corpus_share[side]:.0%} of the corpus is"
        for side, each in mitigation.asked.items()
        if each.bias is not None
    )


def _bias_values(mitigation: Mitigation) -> str:
    return _listed([f"{each.bias.value:.0%}" for each in mitigation.asked.values() if each.bias])


def _told(name: str, mitigation: Mitigation, before: Mitigation) -> str:
    """What an aligner moved, and what that brought."""
    moved = ""
    if mitigation.gap is not None and before.gap is not None:
        moved = (
            f"the distance of the means from {before.gap.distance.value:.2f} to "
            f"{mitigation.gap.distance.value:.2f}, "
        )
    shares = " and ".join(
        f"the share of {_PLURAL[side]} among what {_QUERIES[side]} find from "
        f"{each.bias.value:.0%} to {after.value:.0%}"
        for side, each in before.asked.items()
        if each.bias is not None and (after := mitigation.asked[side].bias) is not None
    )
    judged = " It moves only the means." if mitigation.only_means else ""
    return f"{_ALIGNED[name].capitalize()} takes {moved}{shares}.{judged}"


def _gains(before_after: BeforeAfter, *names: str) -> str:
    """The nDCG of labelled queries by each of these mitigations."""
    parts = []
    for side in before_after.labelled:
        gains: list[tuple[str, Asked]] = [
            (name, before_after.mitigations[name].asked[side])
            for name in names
            if name in before_after.mitigations
        ]
        told = [f"{NAMES[name]} {_number(asked.ndcg)}" for name, asked in gains if asked.ndcg]
        parts.append(
            f" nDCG@{before_after.k} of {before_after.queries[side]} labelled "
            f"{_QUERIES[side]}: {'; '.join(told)}."
        )
    return "".join(parts)


def _number(estimate: Estimate) -> str:
    return _with_interval(estimate, ".2f")


def _percent(estimate: Estimate) -> str:
    return _with_interval(estimate, ".0%")


def _with_interval(estimate: Estimate, form: str) -> str:
    value, low, high = (f"{each:{form}}" for each in (estimate.value, estimate.low, estimate.high))
    return value if low == high else f"{value} ({low} to {high})"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
