from __future__ import annotations

from results import dataset, result

from llama_index_gap.evaluation.examples import pick_examples


def test_examples_are_queries_on_which_methods_differ() -> None:
    headline, image = pick_examples(result(), dataset(), 2)

    # All methods get query 1 right and query 3 wrong.
    assert [(each.query.id, each.kind) for each in (headline, image)] == [
        ("2", "headline"),
        ("4", "image"),
    ]
    assert [(place.document, place.methods, place.right) for place in headline.first] == [
        ("b", ["16+16, default"], True),
        ("a", ["32 by text"], False),
        ("c", ["16+16, RRF"], False),
    ]
    assert [place.title for place in headline.first] == [
        "words of b",
        "The title of a",
        "words of c",
    ]
    assert headline.first[0].image.ref_doc_id == "b"


def test_a_method_that_found_nothing_is_wrong() -> None:
    *_, image = pick_examples(result(), dataset(), 2)

    assert [(place.document, place.methods, place.right) for place in image.first] == [
        ("d", ["16+16, RRF"], True),
        ("c", ["16+16, default"], True),
        ("", ["32 by text"], False),
    ]
    assert image.first[-1].image is None


def test_the_number_is_shared_among_the_kinds() -> None:
    one_kind = result(kinds={})

    assert [each.query.id for each in pick_examples(result(), dataset())] == ["2", "4"]
    assert [each.query.id for each in pick_examples(one_kind, dataset())] == ["2", "4"]
    assert [each.kind for each in pick_examples(one_kind, dataset(), 1)] == [None]


def test_a_grade_below_the_relevant_ones_is_wrong() -> None:
    """As in EDIS, where grade 2 marks a secondary document."""
    runs = {"one": {"1": ["b"]}, "other": {"1": ["a"]}}
    changed = result(runs=runs, qrels={"1": {"a": 3, "b": 2}}, kinds={})

    (example,) = pick_examples(changed, dataset())
    assert [(place.document, place.right) for place in example.first] == [("a", True), ("b", False)]


def test_only_some_methods_have_to_differ() -> None:
    """On query 4 these two agree, and the third differs."""
    picked = pick_examples(result(), dataset(), between=("16+16, default", "16+16, RRF"))

    assert [each.query.id for each in picked] == ["2"]
