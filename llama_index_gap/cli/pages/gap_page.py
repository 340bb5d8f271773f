"""The gap report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from llama_index_gap.cli.pages.rendering import render
from llama_index_gap.diagnosis.mitigations import Cloud, Mitigation
from llama_index_gap.diagnosis.recommendations import NAMES
from llama_index_gap.diagnosis.report import Report
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.gap.measure import GapReport
from llama_index_gap.gap.scores import Histograms
from llama_index_gap.modality import MODALITIES

PAIRS = {
    "text_to_text": "two texts",
    "text_to_image": "a text and an image",
    "image_to_image": "two images",
    "query_to_text": "a query and a text",
    "query_to_image": "a query and an image",
    "matched": "a text and its own image",
    "text": "texts",
    "image": "images",
}
"""What each kind of score compares."""
_ACROSS = {"text_to_image", "query_to_image", "matched"}
_WIDTH, _HEIGHT, _MARGIN = 320, 200, 10
_BAND, _LABEL, _AXIS = 30, 18, 16


def render_report(report: Report) -> str:
    """Write a gap report as an HTML page.

    It contains its drawings and fetches nothing: its content security policy forbids that. No
    information depends on colour alone.

    Args:
        report: the figures.
    """
    mitigations = report.figures.before_after.mitigations
    gaps = {NAMES[name]: each.gap for name, each in mitigations.items() if each.gap is not None}
    fitted, gap = any(report.figures.before_after.fitted_on.values()), report.figures.gap
    whole = {"all that was drawn, as stored": gap} if gap is not None and fitted else {}
    scorers = {name: scored.histograms for name, scored in report.figures.scorers.items()}
    return render(
        "gap",
        report=report,
        found=report.figures.before_after,
        names=NAMES,
        pairs=PAIRS,
        clouds=[*_clouds(mitigations)],
        ridges=[*_ridges({name: gap.histograms for name, gap in gaps.items()}, same_axis=True)],
        gaps=gaps,
        scorers=[*_ridges(scorers, same_axis=False)],
        columns=[name.removeprefix("one index, ") for name in whole | gaps],
        table=[*_table(list((whole | gaps).values()))],
        height=_HEIGHT,
        width=_WIDTH,
        number=lambda value: _interval(value, "{:.3f}"),
        percent=lambda value: _interval(value, "{:.1%}"),
    )


def _interval(value: Estimate | float | None, form: str) -> tuple[str, str]:
    """A figure, and its interval; empty if it has none."""
    if value is None:
        return "–", ""
    if not isinstance(value, Estimate):
        return form.format(value), ""
    return form.format(value.value), f"{form.format(value.low)} to {form.format(value.high)}"


# --- clouds --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CloudDrawing:
    """SVG paths of points, and their means."""

    name: str
    mitigation: Mitigation
    cloud: Cloud
    texts: str
    images: str
    text_mean: tuple[float, float]
    image_mean: tuple[float, float]


def _clouds(mitigations: Mapping[str, Mitigation]) -> Iterator[_CloudDrawing]:
    """All drawings have one scale, so that distances can be compared."""
    shown = {name: each.cloud for name, each in mitigations.items() if each.cloud is not None}
    if not shown:
        return
    reach = np.max([np.abs(np.vstack([c.texts, c.images])).max(axis=0) for c in shown.values()], 0)
    half = np.array([_WIDTH, _HEIGHT]) / 2
    scale = ((half - _MARGIN) / reach).min()
    for name, cloud in shown.items():
        texts, images = (half + scale * rows * [1, -1] for rows in (cloud.texts, cloud.images))
        yield _CloudDrawing(
            NAMES[name],
            mitigations[name],
            cloud,
            "".join(f"M{x:.1f} {y:.1f}h0" for x, y in texts),
            "".join(f"M{x:.1f} {y:.1f}m0-3.2l2.9 5h-5.8z" for x, y in images),
            *(tuple(rows.mean(axis=0).round(1).tolist()) for rows in (texts, images)),
        )


# --- histograms ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Band:
    """The histogram of one kind of score."""

    sort: str
    label: str
    across: bool
    base: int
    path: str
    mean: float


@dataclass(frozen=True)
class _Ridge:
    """Histograms one below the other, over one axis."""

    name: str
    height: int
    bands: list[_Band]
    ticks: list[tuple[float, str]]


def _ridges(histograms: Mapping[str, Histograms], *, same_axis: bool) -> Iterator[_Ridge]:
    ends = [(each.edges[0], each.edges[-1]) for each in histograms.values()]
    for (name, each), own in zip(histograms.items(), ends, strict=True):
        low, high = (min(e[0] for e in ends), max(e[1] for e in ends)) if same_axis else own
        yield _ridge(name, each, low, high)


def _ridge(name: str, histograms: Histograms, low: float, high: float) -> _Ridge:
    edges = np.array(histograms.edges)
    x = (edges - low) / (high - low) * _WIDTH
    density = {sort: np.array(s) / np.diff(edges) for sort, s in histograms.shares.items()}
    tallest = max(float(each.max()) for each in density.values())
    bands = []
    for i, (sort, heights) in enumerate(density.items()):
        base = (i + 1) * (_BAND + _LABEL)
        tops = base - heights / tallest * _BAND
        steps = "".join(f"V{y:.1f}H{end:.1f}" for y, end in zip(tops, x[1:], strict=True))
        mean = float(np.average((x[:-1] + x[1:]) / 2, weights=histograms.shares[sort]))
        bands.append(
            _Band(
                sort, PAIRS[sort], sort in _ACROSS, base, f"M{x[0]:.1f} {base}{steps}V{base}", mean
            )
        )
    # Three to six round numbers.
    sizes = (m * 10.0**e for e in range(-6, 7) for m in (1, 2.5, 5))
    step = next(size for size in sizes if (high - low) / size <= 5)
    at = range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)
    round_numbers = [round(i * step, 9) + 0.0 for i in at]
    ticks = [((tick - low) / (high - low) * _WIDTH, f"{tick:g}") for tick in round_numbers]
    return _Ridge(name, len(bands) * (_BAND + _LABEL) + _AXIS, bands, ticks)


# --- all figures ---------------------------------------------------------------------------------


_Row: TypeAlias = tuple[str, list[tuple[str, str]]]


def _table(reports: Sequence[GapReport]) -> Iterator[_Row]:
    """Each figure's name, and its value in each report."""
    if not reports:
        return
    first = reports[0]

    def row(label: str, values: Sequence[Estimate | float | None], form: str = "{:.3f}") -> _Row:
        return label, [_interval(value, form) for value in values]

    def figure(label: str, of: Callable[[GapReport], Estimate | float | None]) -> _Row:
        return row(label, [of(each) for each in reports])

    yield figure("Distance of the means ‖Δ‖", lambda gap: gap.distance)
    yield figure("Spread of the texts", lambda gap: gap.text_spread)
    yield figure("Spread of the images", lambda gap: gap.image_spread)
    yield figure(
        "Separation, distance over spread: above 1, the gap dominates raw scores",
        lambda gap: gap.separation,
    )
    yield figure(
        "Relative modality gap (RMG): at 0.5, pairs lie no nearer than others", lambda gap: gap.rmg
    )
    for largest in first.gap_share:
        label = "the largest dimension" if largest == 1 else f"the {largest} largest dimensions"
        yield row(f"Share of ‖Δ‖² in {label}", [each.gap_share[largest] for each in reports])
    yield figure(
        "Spread of cosines within modalities over that across: above 1, centring is not enough",
        lambda gap: gap.spread_ratio,
    )
    for modality in MODALITIES:
        yield row(
            f"Overlap of the scores of texts and of images for {modality} queries: 1 is one scale",
            [each.overlap[modality] for each in reports],
        )
        yield row(
            f"Own modality in the first {first.k} of this sample, {modality} queries",
            [each.bias[modality] for each in reports],
        )
        yield row("… its share of this sample", [each.corpus_share[modality] for each in reports])
    for sort in dict.fromkeys(sort for each in reports for sort in each.scores):
        scores = [each.scores.get(sort) for each in reports]
        yield row(f"Mean cosine of {PAIRS[sort]}", [each.mean if each else None for each in scores])
        yield row("… standard deviation", [each.std if each else None for each in scores])
        yield row("… how many", [each.count if each else None for each in scores], "{:,}")
    for kind in ("texts", "images", "queries", "pairs"):
        counts = [each.measured[kind] for each in reports]
        yield row(f"{kind.capitalize()} measured", counts, "{:,}")
