from __future__ import annotations

from typing import Any

import pytest

from llama_index_gap.readers.cells import caption_list, image_list, joined, without_html


@pytest.mark.parametrize(
    ("cell", "images"),
    [
        ("a.png", ["a.png"]),
        ("a.png,b.png", ["a.png", "b.png"]),
        ("a.png, b.png", ["a.png", "b.png"]),
        ("a.png;b.JPG", ["a.png", "b.JPG"]),
        ("a | b.png |", ["a", "b.png"]),
        ("a.png\nb.png", ["a.png", "b.png"]),
        ('["a.png", "b.png"]', ["a.png", "b.png"]),
        ("['a.png', 'it\\'s.png']", ["a.png", "it\\'s.png"]),
        ("['a.png' 'b.png']", ["a.png", "b.png"]),
        ("[a.png, b.png]", ["a.png", "b.png"]),
        ("[]", []),
        ('[{"src": "a.png"}]', [{"src": "a.png"}]),
        ('{"path": "a.png"}', [{"path": "a.png"}]),
        ("Smith, John.png", ["Smith, John.png"]),
        ("1,_a.jpg, 2,_b.jpg", ["1,_a.jpg", "2,_b.jpg"]),
        ("https://e.com/w_300,h_300/a.jpg", ["https://e.com/w_300,h_300/a.jpg"]),
        ("https://e.com/1,https://e.com/2", ["https://e.com/1", "https://e.com/2"]),
        ("a.jpg?v=1,b.jpg?v=2", ["a.jpg?v=1", "b.jpg?v=2"]),
        ("", []),
    ],
)
def test_the_images_of_a_cell(cell: str, images: list[Any]) -> None:
    assert image_list(cell) == images


@pytest.mark.parametrize(
    ("cell", "images", "captions"),
    [
        ("Back, folded", 1, ["Back, folded"]),
        ("a|b", 1, ["a|b"]),
        ("a|b", 2, ["a", "b"]),
        ("one,, three", 3, ["one", "", "three"]),
        ('["a", "b"]', 2, ["a", "b"]),
        ("one", 2, ["one"]),
        ("", 2, []),
    ],
)
def test_the_captions_of_a_cell(cell: str, images: int, captions: list[str]) -> None:
    assert caption_list(cell, images) == captions


@pytest.mark.parametrize(
    ("html", "text"),
    [
        (
            "<p>A <b>blue</b> shirt.</p><ul><li>x</li><li>a&amp;b</li></ul>",
            "A blue shirt.\n\nx\na&b",
        ),
        ("one<br>two<br/>three", "one\ntwo\nthree"),
        ("<P>one\n line</P>", "one line"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a\nb"),
        ("<style>p {}</style><p>a</p><script>x</script>", "a"),
        ("If a<b and b>c, Vec<T> &amp; so", "If a<b and b>c, Vec<T> &amp; so"),
        ("<p>Vec<T> of x</p>", "Vec<T> of x"),
        ("<p>one</p>\\n<p>two</p>", "one\n\ntwo"),
        ("plain", "plain"),
    ],
)
def test_html_becomes_text_where_it_is_html(html: str, text: str) -> None:
    assert without_html(html)[0] == text


def test_images_of_html() -> None:
    text, images = without_html('<p>A <img src="a.png" alt="red"> b <img></p>')

    assert text == "A b"
    assert images == [{"path": "a.png", "caption": "red"}]


def test_texts_of_several_columns_are_joined_once_each() -> None:
    assert joined(["a", " ", "b", "a "]) == "a\n\nb"
