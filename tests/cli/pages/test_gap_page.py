from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from clouds import two_clouds
from parsed_page import EVIL, Parsed
from rich.console import Console

from llama_index_gap.cli.gap_tables import print_report
from llama_index_gap.cli.pages.gap_page import PAIRS, render_report
from llama_index_gap.diagnosis.drawn import Drawn, Queries, Rows
from llama_index_gap.diagnosis.mitigations import (
    before_and_after,
    measure_drawn,
)
from llama_index_gap.diagnosis.recommendations import NAMES, Figures, Recommendation, recommend
from llama_index_gap.diagnosis.report import Report
from llama_index_gap.gap.neighbours import compare_recall
from llama_index_gap.gap.scores import compare_scores

N = 120


@pytest.fixture(scope="module")
def report() -> Report:
    """A report with everything that can be measured."""
    texts, images = two_clouds(N, own=6)
    documents = [f"d{i}" for i in range(N)]
    queries = Queries({"text": texts, "image": texts}, [{each: 1} for each in documents])
    pairs = np.column_stack([np.arange(N)] * 2)
    drawn = Drawn(Rows(texts, documents), Rows(images, documents), pairs, queries={"text": queries})
    scores = np.random.default_rng(0).normal(size=(4, 50))
    figures = Figures(
        stored={"text": 1_234, "image": N},
        gap=measure_drawn(drawn, texts, k=10, rounds=20, seed=0),
        before_after=before_and_after(drawn, rounds=20),
        within=compare_recall(images, texts, np.arange(N) // 2, rounds=20),
        scorers={
            "embedder": compare_scores(scores[0] + 5, scores[1], rounds=20),
            "reranker": compare_scores(scores[2], scores[3], rounds=20),
        },
    )
    return Report(
        database="gap.db",
        name="gap",
        models="a model",
        drawn=drawn.counts(),
        figures=figures,
        notes=("a note",),
        recommendations=tuple(recommend(figures)),
    )


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_report(report)


def words(page: str) -> str:
    return " ".join(re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL).split())


def numbers(content: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in some JSON, except histograms, which are drawn."""
    match content:
        case dict():
            for key, value in content.items():
                if key != "histograms":
                    yield from numbers(value, f"{path}/{key}")
        case bool() | str() | None:
            pass
        case list() | tuple():
            for value in content:
                yield from numbers(value, path)
        case _:
            yield path, content


def test_every_figure_of_the_json_is_on_the_page(report: Report, page: str) -> None:
    shown = set(re.findall(r"-?[\d,]*\d(?:\.\d+)?%?", words(page)))
    found = [*numbers(report.to_dict())]

    assert len(found) > 300
    for path, value in found:
        forms = {f"{value:,}", f"{value:.3f}", f"{value:.1%}", f"{value:.0%}"}
        assert forms & shown, (path, value)


def test_each_way_and_each_pair_of_modalities_is_named(page: str) -> None:
    for name in (*NAMES.values(), *PAIRS.values()):
        assert name in words(page)


def test_what_moves_only_the_means_is_marked(report: Report, page: str) -> None:
    mitigations = report.figures.before_after.mitigations.values()
    marked = sum(mitigation.only_means for mitigation in mitigations)

    assert marked >= 2
    assert page.count('class="flag">moves only the means') == 2 * marked  # for both modalities
    assert page.count("<strong>Moves only the means</strong>") == marked


def test_recommendations_and_notes_are_there(report: Report, page: str) -> None:
    for recommendation in report.recommendations:
        assert recommendation.title in words(page).replace("&#39;", "'")
    assert "a note" in words(page)


def test_texts_of_others_stay_texts(report: Report, page: str) -> None:
    evil = replace(
        report,
        database=EVIL,
        name=EVIL,
        models=EVIL,
        notes=(EVIL,),
        recommendations=tuple(Recommendation(EVIL, EVIL, EVIL) for _ in report.recommendations),
    )
    parsed, plain = Parsed(render_report(evil)), Parsed(page)

    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]
    assert {name for _, attributes in parsed.elements for name in attributes} == {
        name for _, attributes in plain.elements for name in attributes
    }
    for within in ("bdi", "h3", "p", "li", "title"):
        assert EVIL in parsed.texts[within], within


def test_the_page_needs_nothing_else(page: str) -> None:
    parsed = Parsed(page)

    assert not re.search(r"https?:|//|@import|url\(|javascript", page)
    assert not {"link", "iframe", "object", "base", "img"} & {tag for tag, _ in parsed.elements}
    assert parsed.attributes("href") == parsed.attributes("style") == []


def test_nothing_depends_on_colour_alone(page: str) -> None:
    """Texts are dots, images triangles; every drawing has a description or a number beside it."""
    drawings = [attributes for tag, attributes in Parsed(page).elements if tag == "svg"]

    assert all("aria-label" in each or each.get("aria-hidden") == "true" for each in drawings)
    for sort, mark in (("texts", "h0"), ("images", "l2.9 5h-5.8z")):
        paths = re.findall(rf'class="{sort}" d="([^"]+)"', page)
        assert len(paths) == 1 + 4  # the key, and each cloud
        assert all(path.count(mark) == path.count("M") for path in paths)
    assert page.count("<figcaption>") == 4 + 4 + 2  # clouds, histograms, scorers


def test_drawings_stay_inside(page: str) -> None:
    clouds = re.findall(r'class="(?:texts|images)" d="((?:M[\d.]+ [\d.]+[^"]*?)+)"', page)
    points = [
        (float(x), float(y)) for path in clouds for x, y in re.findall(r"M([\d.]+) ([\d.]+)", path)
    ]

    assert len(points) > 4 * 2 * 50
    assert min(x for x, _ in points) >= 0
    assert max(x for x, _ in points) <= 320
    assert max(y for _, y in points) <= 200


def test_a_page_of_next_to_nothing(report: Report) -> None:
    bare = before_and_after(
        Drawn(
            Rows(two_clouds(12)[0], [f"d{i}" for i in range(12)]),
            Rows(np.zeros((0, 7), dtype=np.float32), []),
            np.empty((0, 2), dtype=np.int64),
        )
    )
    figures = Figures(stored={"text": 12, "image": 0}, gap=None, before_after=bare)
    found = words(
        render_report(replace(report, figures=figures, recommendations=tuple(recommend(figures))))
    )

    assert "no mitigation needed" in found
    assert "All figures" not in found
    assert "The two clouds" not in found


def test_the_terminal_shows_the_main_figures_in_80_columns(report: Report) -> None:
    written = StringIO()
    steering = replace(report, models="\x1b[31mred [bold]")
    print_report(steering, Console(file=written, width=80, highlight=False))
    lines = written.getvalue().splitlines()
    found = " ".join(" ".join(lines).split())

    assert max(map(len, lines)) <= 80
    assert lines[0] == "gap in gap.db: 1,234 texts, 120 images"
    assert lines[1] == r"\x1b[31mred [bold]"
    for name in NAMES.values():
        assert name in found
    gap = report.figures.gap
    assert f"separation {gap.separation.value:.3f}" in found
    bias = report.figures.before_after.mitigations["centred"].asked["text"].bias
    assert f"one index, centred * {bias.value:.0%} ({bias.low:.0%} to {bias.high:.0%})" in found
    assert "* moves only the means" in found
    for recommendation in report.recommendations:
        assert recommendation.title in found
    assert "– a note" in found
    assert "reranker" in found
