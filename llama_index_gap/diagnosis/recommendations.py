"""Which remedy for the modality gap fits, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from llama_index_gap.diagnosis.mitigations import (
    FEWEST_PAIRS,
    FUSIONS,
    SIDES,
    STORED,
    Asked,
    BeforeAfter,
    Remedy,
    Side,
)
from llama_index_gap.gap.measure import (
    Estimate,
    GapReport,
    RecallComparison,
    ScoreComparison,
)

THIN = 100
"""With fewer vectors of a side, read the intervals rather than the figures."""
THIN_QUERIES = 30
RARE = 0.05
"""A threshold is set where no more of the unrelated pictures lie above it."""
NAMES = {
    "stored": "one index, as stored",
    "offset": "one index, offset",
    "centred": "one index, centred",
    "linear": "one index, linear map",
    "rank": "two indexes, by rank",
    "evidence": "two indexes, by evidence",
}
_PLURAL = {"text": "texts", "image": "pictures"}
_QUERY = {"text": "text query", "image": "picture query"}
_QUERIES = {"text": "text queries", "image": "picture queries"}


@dataclass(frozen=True)
class Figures:
    """What was measured of an index.

    Attributes:
        stored: rows of each side.
        gap: all figures of the gap; None where there is only one modality, or no common space.
        before_after: what each remedy brings.
        one_space: whether one model made both sides.
        within: pictures that find the others of their document, by this model and by the encoder
            for picture queries; None where there is none, or no documents with several pictures.
        scorers: what texts and pictures of the same hits get of the ``embedder`` and of the
            ``reranker``; empty where no reranker was measured.
    """

    stored: Mapping[Side, int]
    gap: GapReport | None
    before_after: BeforeAfter
    one_space: bool = True
    within: RecallComparison | None = None
    scorers: Mapping[str, ScoreComparison] = field(default_factory=dict)


@dataclass(frozen=True)
class Advice:
    """What to do, and the figures that say so.

    Attributes:
        title: the case, and the remedy.
        because: with the figures.
        do: how it is done here.
    """

    title: str
    because: str
    do: str


def advise(figures: Figures) -> list[Advice]:
    """The guide: each remedy that the figures speak for, or against.

    Nothing is advised without a figure; what was not measured is not mentioned.

    Args:
        figures: of one index.

    Returns:
        What concerns everybody first; then what suits those who cannot have two indexes, who ask
        by picture, who set thresholds, or who may choose another model.
    """
    rules: tuple[Callable[[Figures], Iterator[Advice]], ...] = (
        _thin,
        _one_modality,
        _two_spaces,
        _two_indexes,
        _cross_encoder,
        _align,
        _pictures_by_picture,
        _thresholds,
        _other_model,
    )
    return [advice for rule in rules for advice in rule(figures)]


# --- the cases -----------------------------------------------------------------------------------


def _thin(figures: Figures) -> Iterator[Advice]:
    before_after = figures.before_after
    few = [
        f"{figures.stored[side]:,} {_PLURAL[side]}"
        for side in SIDES
        if 0 < figures.stored[side] < THIN
    ]
    few += [
        f"{before_after.queries[side]} labelled {_QUERIES[side]}"
        for side in before_after.labelled
        if before_after.queries[side] < THIN_QUERIES
    ]
    if few:
        yield Advice(
            "The data is thin",
            f"There are only {_listed(few)}, so that another sample may show something else.",
            "Read the intervals rather than the figures, and measure again once there is more.",
        )


def _one_modality(figures: Figures) -> Iterator[Advice]:
    for side, there in (SIDES, SIDES[::-1]):
        if figures.stored[side]:
            continue
        yield Advice(
            "One modality only: no remedy needed",
            f"The index holds {figures.stored[there]:,} {_PLURAL[there]} and no {_PLURAL[side]}. "
            "All scores of a query are then of one pair of modalities, and the gap moves them "
            "all alike: it changes no ranking.",
            "Search as it is. An aligner would cost, and bring nothing.",
        )


def _two_spaces(figures: Figures) -> Iterator[Advice]:
    if figures.one_space or not all(figures.stored.values()):
        return
    yield Advice(
        "Two models: keep two indexes",
        f"The {figures.stored['text']:,} texts and the {figures.stored['image']:,} pictures were "
        "embedded by two models, whose vectors have no space in common. There is no gap to close "
        f"between them, and one mixed index is impossible.{_gains(figures.before_after, *FUSIONS)}",
        "index.as_retriever() fuses the two by evidence.",
    )


def _two_indexes(figures: Figures) -> Iterator[Advice]:
    before_after = figures.before_after
    before = before_after.remedies.get(STORED)
    fused = {name: before_after.remedies[name] for name in FUSIONS if name in before_after.remedies}
    if before is None or not fused:
        return
    best = _best(fused)
    shares = _shares(before, before_after)
    if not _is_biased(before_after):
        if shares:
            yield Advice(
                "One index or two: both serve",
                f"One mixed index shows no bias: {shares}.{_gains(before_after, STORED, best)}",
                "Two indexes cost little more, and stay right when the corpus changes.",
            )
        return
    if _is_lower(fused[best], before):
        yield Advice(
            "One index serves these queries better",
            f"It is biased ({shares}), and yet the labelled queries find more in it."
            f"{_gains(before_after, STORED, *fused)}",
            "Check that the queries are like those of users: here, those that look for the other "
            "modality may be missing.",
        )
        return
    notes = sorted({f" ({remedy.note}.)" for remedy in fused.values() if remedy.note})
    if before_after.labelled and not _is_lower(before, fused[best]):
        notes.append(" For the labelled queries no difference is to be seen beyond the intervals.")
    by_rank = best == "rank" or fused[best].note is not None
    settings = 'normalise="rank", combine="sum"' if best == "rank" else ""
    then = "; ".join(
        f"fused by {name} it is {_bias_values(remedy)}" for name, remedy in fused.items()
    )
    yield Advice(
        f"One index for each modality, fused by {'rank' if by_rank else 'evidence'}",
        f"In one mixed index {shares}; {then}.{_gains(before_after, STORED, *fused)}"
        + "".join(notes),
        f"Search with index.as_retriever({settings}), and let a cross-encoder, MultiModalRerank, "
        "decide on the final order.",
    )


def _cross_encoder(figures: Figures) -> Iterator[Advice]:
    if not {"embedder", "reranker"} <= figures.scorers.keys():
        return
    embedder, reranker = figures.scorers["embedder"], figures.scorers["reranker"]
    numbers = (
        f"of the same hits, the scores of texts and of pictures overlap by "
        f"{_percent(reranker.overlap)} with the reranker, and by {_percent(embedder.overlap)} with "
        f"the embedder; they lie {_number(reranker.distance)} and {_number(embedder.distance)} "
        "standard deviations apart."
    )
    if reranker.overlap.low > embedder.overlap.high:
        yield Advice(
            "Let the cross-encoder decide on the final order",
            f"Its gap is narrower: {numbers}",
            'MultiModalRerank(score_mode="mean") on what index.as_retriever() finds.',
        )
    else:
        yield Advice(
            "This reranker's own gap is no narrower",
            f"It reads query and document together, and yet {numbers}",
            "Calibrate its sides before they are combined: MultiModalRerank(calibrator=…).",
        )


def _align(figures: Figures) -> Iterator[Advice]:
    before_after = figures.before_after
    aligned = {
        name: remedy
        for name, remedy in before_after.remedies.items()
        if name not in {STORED, *FUSIONS}
    }
    if not aligned or not _is_biased(before_after):
        return
    before = before_after.remedies[STORED]
    best = _best(aligned)
    told = " ".join(_told(name, remedy, before) for name, remedy in aligned.items())
    if "linear" not in aligned:
        told += (
            f" A linear map was not fitted: it takes {FEWEST_PAIRS} pairs of a text and its "
            f"picture, and there were {before_after.fitted_on['pairs']}."
        )
    told += _gains(before_after, STORED, *aligned, *FUSIONS)
    if (aligned[best].bias_closed or 0) < 0.5:
        yield Advice(
            "If it must be one index: no aligner closes this gap",
            told,
            "Keep two indexes if that is possible at all; else expect little of an aligner.",
        )
        return
    kind = {"offset": "OffsetAligner", "centred": "CenterAligner", "linear": "LinearAligner"}[best]
    yield Advice(
        f"If the model must stay and it must be one index: align by {_ALIGNED[best]}",
        told,
        f"aligner_from_nodes(nodes, embedding, {kind}).save(path), then index again with "
        "DualEncoderEmbedding(aligner=path).",
    )


def _pictures_by_picture(figures: Figures) -> Iterator[Advice]:
    within = figures.within
    if within is None:
        return
    numbers = (
        f"Asked with one picture of a document for the others ({within.queries} pictures), this "
        f"model has a recall@{within.k} of {_number(within.model)}, the encoder for picture "
        f"queries {_number(within.reference)}; the difference is {_number(within.delta)}."
    )
    if within.delta.high < 0:
        yield Advice(
            "Pictures that look for pictures: by an encoder of images",
            numbers,
            "Keep image_query_embed_model: picture queries go there by themselves.",
        )
    elif within.delta.low > 0:
        yield Advice(
            "Pictures that look for pictures: the model itself is better",
            numbers,
            "Index again without image_query_embed_model.",
        )
    else:
        yield Advice(
            "Pictures that look for pictures: no difference to be seen",
            numbers,
            "The leg for picture queries has not shown here that it is worth its space.",
        )


def _thresholds(figures: Figures) -> Iterator[Advice]:
    if figures.gap is None:
        return
    asking = "query" if "query_to_text" in figures.gap.scores else "text"
    histograms = figures.gap.histograms
    of_pictures = histograms.shares[f"{asking}_to_image"]
    of_texts = histograms.shares[f"{asking}_to_text"]
    above = [sum(of_pictures[i:]) for i in range(len(of_pictures))]
    start = next((i for i, share in enumerate(above) if share <= RARE), None)
    if start is None:
        return
    pictures, texts = above[start], sum(of_texts[start:])
    if RARE / 2 <= texts <= 2 * RARE:
        return
    yield Advice(
        "Thresholds: one for each pair of modalities",
        f"To a text query, {pictures:.1%} of unrelated pictures score "
        f"{histograms.edges[start]:.2f} or more, and {texts:.1%} of unrelated texts do.",
        "Fit a RelevanceCalibrator on labelled hits (collect_scores), and set min_probability in "
        "place of a score.",
    )


def _other_model(figures: Figures) -> Iterator[Advice]:
    gap = figures.gap
    if gap is None or gap.separation.low <= 1 or not _is_biased(figures.before_after):
        return
    centred = figures.before_after.remedies.get("centred")
    still = (
        f" With both centred the share of the own modality is still {_bias_values(centred)}: the "
        "gap lies not in the means alone."
        if centred is not None and centred.only_means
        else ""
    )
    yield Advice(
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
    asked = before_after.remedies[STORED].asked if STORED in before_after.remedies else {}
    return any(
        each.bias is not None and each.bias.low > before_after.corpus_share[side]
        for side, each in asked.items()
    )


def _best(remedies: Mapping[str, Remedy]) -> str:
    """By nDCG where queries are labelled; else evidence if it closes half the bias, or by bias."""

    def worth(name: str) -> tuple[float, bool, float]:
        remedy = remedies[name]
        gain = sum(each.ndcg.value for each in remedy.asked.values() if each.ndcg is not None)
        closed = remedy.bias_closed or 0.0
        return gain, name == "evidence" and closed >= 0.5, closed

    return max(remedies, key=worth)


def _is_lower(one: Remedy, other: Remedy) -> bool:
    """Whether one has a lower nDCG wherever queries are labelled, beyond both intervals."""
    pairs = [(one.asked[side].ndcg, other.asked[side].ndcg) for side in one.asked]
    judged = [(a, b) for a, b in pairs if a is not None and b is not None]
    return bool(judged) and all(a.high < b.low for a, b in judged)


def _shares(remedy: Remedy, before_after: BeforeAfter) -> str:
    return ", and ".join(
        f"{_percent(each.bias)} of a {_QUERY[side]}'s first {before_after.k} are {_PLURAL[side]}, "
        f"where {before_after.corpus_share[side]:.0%} of the corpus is"
        for side, each in remedy.asked.items()
        if each.bias is not None
    )


def _bias_values(remedy: Remedy) -> str:
    return _listed([f"{each.bias.value:.0%}" for each in remedy.asked.values() if each.bias])


def _told(name: str, remedy: Remedy, before: Remedy) -> str:
    """What an aligner moved, and what that brought."""
    moved = ""
    if remedy.gap is not None and before.gap is not None:
        moved = (
            f"the distance of the means from {before.gap.distance.value:.2f} to "
            f"{remedy.gap.distance.value:.2f}, "
        )
    shares = " and ".join(
        f"the share of {_PLURAL[side]} among what {_QUERIES[side]} find from "
        f"{each.bias.value:.0%} to {after.value:.0%}"
        for side, each in before.asked.items()
        if each.bias is not None and (after := remedy.asked[side].bias) is not None
    )
    judged = " It moves only the means." if remedy.only_means else ""
    return f"{_ALIGNED[name].capitalize()} takes {moved}{shares}.{judged}"


def _gains(before_after: BeforeAfter, *names: str) -> str:
    """The nDCG of labelled queries by each of these remedies."""
    parts = []
    for side in before_after.labelled:
        gains: list[tuple[str, Asked]] = [
            (name, before_after.remedies[name].asked[side])
            for name in names
            if name in before_after.remedies
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
