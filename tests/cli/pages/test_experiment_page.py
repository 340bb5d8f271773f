from __future__ import annotations

import re

from results import dataset, method, result

from llama_index_gap.cli.pages.experiment_page import render_experiment
from llama_index_gap.evaluation.examples import pick_examples
from llama_index_gap.evaluation.metrics import Comparison
from llama_index_gap.gap.estimates import Estimate

EVIL = "<script>alert('x')</script>\"' & {{{{ 7 * 7 }}}} </style>"


def plain(page: str) -> str:
    """The visible text of a page."""
    body = page.partition("<body>")[2]
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_all_figures_are_there() -> None:
    shown = plain(render_experiment(result(), []))

    for part in (
        "What each method finds: ten 4 queries, 1,234 documents",
        "1,234 texts and 1,000 images Embedded by",
        "something to know",
        "32 by text 0.250 (0.150–0.350) −0.250 lower 0.200 higher 0.300",
        "headline (2) image (2) 32 by text 0.250 (0.150–0.350) 0.250 (0.150–0.350)",
        "text queries 0.250 (0.200–0.300) – image queries – –",
        "97% of the first 10 hits for a text are texts, and 50% of all rows.",
    ):
        assert part in shown
    assert "Examples" not in shown


def test_bars_are_as_long_as_recall() -> None:
    page = render_experiment(result(methods=[method("16+16, default", 0.5)]), [])

    assert '<rect class="mean" width="50.0"' in page
    assert 'x1="40.0" x2="60.0"' in page


def test_the_row_that_others_are_compared_with_is_marked() -> None:
    better = Comparison(Estimate(0.1, 0.05, 0.2), 0.001)
    rows = [method("16+16, default", 0.5), method("32 by text, reranked", 0.6, better)]

    page = render_experiment(result(methods=rows, reranker="jina-m0", kinds={}), [])

    assert re.findall(r'<tr data-row class="([ \w]*)">\n<th scope="row">([^<]+)<', page) == [
        ("default", "16+16, default"),
        (" after", "32 by text, reranked"),
    ]
    assert "reranked by jina-m0" in plain(page)


def test_examples_have_images_and_a_sign(noise_files: list[str]) -> None:
    found, data = result(), dataset(image=noise_files[0])

    page = render_experiment(found, pick_examples(found, data))

    assert "✓ right words of b first by 16+16, default ✗ wrong The title of a" in plain(page)
    assert "✗ wrong nothing found first by 32 by text" in plain(page)
    assert page.count('src="data:image/jpeg;base64,') == 5


def test_an_image_that_is_missing_leaves_its_reason() -> None:
    found = result()

    page = render_experiment(found, pick_examples(found, dataset(image="/no/such.png")))

    assert "No image no such file" in plain(page)


def test_texts_of_others_stay_texts() -> None:
    found = result(dataset=EVIL, models=EVIL, notes=(EVIL,), kinds={EVIL: ["1", "2"]})
    for row in found.methods:
        row.by_kind[EVIL] = row.metrics

    page = render_experiment(found, pick_examples(found, dataset(EVIL)))

    assert page.count("<script") == page.count("</script") == 1
    assert page.count("</style>") == 1
    assert page.count("&lt;script&gt;") >= 7


def test_the_page_needs_nothing_else(noise_files: list[str]) -> None:
    found = result()
    page = render_experiment(found, pick_examples(found, dataset(image=noise_files[0])))

    assert "default-src 'none'; img-src data:; style-src 'sha256-" in page
    assert not re.search(r"https?:|//|@import|url\(", re.sub(r"base64,[\w+/=]+", "", page))
    assert not re.search(r"<(script .|link|iframe|object|base)\b| style=", page)
