"""The order of a page's lines, from where they stand."""

from __future__ import annotations

from collections import Counter

import pytest

from llama_index_gap.readers.pdf.layout import (
    Line,
    cleaned,
    paragraphs_of,
    repeated_lines,
    words_in,
    written,
)


def line(text: str, x: float, y: float, width: float = 200, height: float = 10) -> Line:
    return Line(text, (x, y, x + width, y + height))


def column(name: str, x: float, y: float, count: int, width: float = 200) -> list[Line]:
    return [line(f"{name}{number}", x, y + 12 * number, width) for number in range(count)]


def order(lines: list[Line]) -> list[str]:
    return [each.text for paragraph in paragraphs_of(lines) for each in paragraph]


def test_three_columns_are_read_one_after_the_other() -> None:
    columns = [column(name, x, 100, 4, 120) for name, x in (("a", 50), ("b", 190), ("c", 330))]
    by_rows = [each for row in zip(*columns, strict=True) for each in row]

    assert order(by_rows) == [each.text for lines in columns for each in lines]


def test_a_line_across_parts_what_is_above_from_what_is_below() -> None:
    lines = [
        *column("a", 50, 100, 4),
        *column("b", 300, 100, 4),
        line("across", 50, 160, 450),
        *column("c", 50, 180, 4),
        *column("d", 300, 180, 4),
    ]
    wanted = [each.text for each in lines]

    assert order(lines) == wanted
    assert order(sorted(lines, key=lambda each: each.box[1])) == wanted


def test_right_comes_first_where_text_runs_from_right_to_left() -> None:
    right, left = column("نص", 300, 100, 4), column("آخر", 50, 100, 4)

    assert order(left + right) == [each.text for each in right + left]


def test_narrow_columns_are_a_table() -> None:
    rows = [
        line(f"{row}{cell}", 50 + 60 * cell, 100 + 12 * row, 40)
        for cell in range(3)
        for row in range(4)
    ]

    assert order(rows) == [f"{row}0 {row}1 {row}2" for row in range(4)]


def test_the_files_order_is_kept_where_it_leads_downwards() -> None:
    formula = [line("x", 50, 100, 8), line("2", 58, 97, 4, 6), line("+ y", 64, 100, 20)]

    assert order([*formula, line("below", 50, 120)]) == ["x2 + y", "below"]


def test_gaps_and_sizes_part_paragraphs() -> None:
    lines = [
        line("Title", 50, 80, height=20),
        line("one", 50, 104),
        line("two", 50, 116),
        line("three", 50, 140),
    ]

    assert [len(paragraph) for paragraph in paragraphs_of(lines)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["an exam-", "ple"], "an example"),
        (["an exam\u00ad", "ple"], "an example"),
        (["a well-", "known fact: well-known"], "a well-known fact: well-known"),
        (["Baden-", "Baden"], "Baden-Baden"),
        (["1990-", "1995"], "1990- 1995"),
        (["super-", "cali-", "fragil"], "supercalifragil"),
        (["第一", "行"], "第一行"),
        (["第一", "line"], "第一 line"),
    ],
)
def test_lines_are_joined_as_their_words_are(lines: list[str], text: str) -> None:
    paragraph = [line(each, 50, 100 + 12 * number) for number, each in enumerate(lines)]

    assert written([paragraph], words_in([paragraph])) == text


def test_letters_are_those_that_people_type() -> None:
    assert cleaned(" \ufb01ne\x00 \ufefb ") == "fine لا"


def test_headers_repeat_at_their_place() -> None:
    def page(number: int) -> list[list[Line]]:
        chapter = "One" if number < 4 else "Two"
        top = [line("The book", 50, 20) if number % 2 else line(f"Chapter {chapter}", 50, 20)]
        return [
            top,
            [line(f"text {number}", 50, 100), line("text", 50, 112)],
            [line(f"{number}", 300, 780)],
        ]

    found, counts = repeated_lines([page(number) for number in range(10)], [800.0] * 10)

    # Each chapter's own line comes on two or three pages only; three in a row are enough.
    assert counts == Counter({"0": 10, "The book": 5, "Chapter Two": 3})
    assert [len(boxes) for boxes in found] == [1, 2, 1, 2, 2, 2, 2, 2, 2, 2]


def test_titles_and_pages_of_nothing_else_are_no_headers() -> None:
    slides = [
        [[line("Results", 50, 30, height=30)], [line(f"point {number}", 50, 200)] * 3]
        for number in range(5)
    ]
    assert repeated_lines(slides, [600.0] * 5)[1] == Counter()
    same = [[[line("Only this", 50, 30)]] for _ in range(5)]
    assert repeated_lines(same, [600.0] * 5)[1] == Counter()


@pytest.mark.parametrize("by_rows", [False, True])
def test_captions_beside_each_other_are_two(by_rows: bool) -> None:
    left = [line("Figure 1: one", 50, 100), line("and more", 50, 112)]
    right = [line("Figure 2: two", 300, 100), line("and less", 300, 112)]
    lines = [left[0], right[0], left[1], right[1]] if by_rows else left + right
    body = line("The text goes on over all of it", 50, 150, 450)

    paragraphs = [[each.text for each in found] for found in paragraphs_of([*lines, body])]

    assert paragraphs == [
        ["Figure 1: one", "and more"],
        ["Figure 2: two", "and less"],
        ["The text goes on over all of it"],
    ]
