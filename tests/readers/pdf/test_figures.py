"""Which parts of a page are figures, and which lines are their captions."""

from __future__ import annotations

import pytest

from llama_index_gap.readers.pdf.figures import (
    FoundFigures,
    drawing_regions,
    find_figures,
    image_regions,
)
from llama_index_gap.readers.pdf.layout import Box, Line

SIZE = (600.0, 800.0)
IMAGE: Box = (100, 100, 300, 250)
NONE: frozenset[str] = frozenset()


def below(text: str, box: Box = IMAGE) -> list[Line]:
    return [Line(text, (box[0], box[3] + 8, box[2], box[3] + 20))]


def found(*images: Box, text: list[list[Line]], repeated: frozenset[str] = NONE) -> FoundFigures:
    stored = [(box, 400, 300, str(number)) for number, box in enumerate(images)]
    return find_figures(image_regions(stored, SIZE), [], text, SIZE, repeated)


@pytest.mark.parametrize(
    "label",
    [
        "Figure 3: A lake",
        "FIGURE 3. A lake",
        "Fig. 3 A lake",
        "Fig 3.2a – A lake",
        "Figure S1 | A lake",
        "Figure IV. A lake",
        "Supplementary Figure 2: A lake",
        "Abb. 3: Ein See",
        "Abbildung 12 Ein See",
        "Рис. 3. Озеро",
        "图 3：湖",
        "图3 湖",
        "図 3　湖",
        "그림 2. 호수",
        "شكل ٣: بحيرة",
        "الشكل 3: بحيرة",
        "Figura 2. Un lago",
    ],
)
def test_labels_of_many_languages_are_captions(label: str) -> None:
    far = [Line("A text that is nearer to the image than its caption", (100, 255, 300, 265))]

    (figure,) = found(IMAGE, text=[far, [Line(label, (100, 290, 300, 302))]]).figures

    assert figure.caption == " ".join(label.split())


@pytest.mark.parametrize(
    "sentence",
    [
        "Figure 3 shows a lake.",
        "Figures are rare.",
        "Figured out",
        "Table 3: Lakes",
        "Maps 3 and 4",
    ],
)
def test_sentences_about_figures_are_no_captions(sentence: str) -> None:
    drawing = drawing_regions([IMAGE, (110, 110, 200, 200)], SIZE)

    assert find_figures([], drawing, [below(sentence)], SIZE, NONE).figures == []
    assert find_figures([], drawing, [below(sentence)], SIZE, NONE).drawings == 1


def test_without_a_label_the_nearest_text_is_the_caption() -> None:
    texts = [below("The text below"), [Line("One above", (100, 40, 300, 52))]]

    assert found(IMAGE, text=texts).figures[0].caption == "The text below"
    assert found(IMAGE, text=[]).figures[0].caption == ""


def test_size_and_repetition_tell_decoration() -> None:
    kept = found((10, 10, 30, 30), IMAGE, (400, 100, 590, 250), text=[], repeated=frozenset("2"))

    assert [figure.region.box for figure in kept.figures] == [IMAGE]
    assert (kept.small, kept.repeated) == (1, 1)


def test_one_image_over_the_page_is_the_page() -> None:
    assert found((5, 5, 595, 795), text=[]).page
    background = found((0, 0, 600, 800), text=[below("Text")], repeated=frozenset("0"))
    assert (background.page, background.repeated) == (False, 1)


def test_figures_beside_each_other_have_their_own_captions() -> None:
    left, right = (50, 100, 280, 250), (320, 100, 550, 250)
    texts = [below("Figure 1: Left", left), below("Figure 2: Right", right)]

    assert [figure.caption for figure in found(left, right, text=texts).figures] == [
        "Figure 1: Left",
        "Figure 2: Right",
    ]


def test_text_between_parts_an_image_from_a_caption() -> None:
    text = [
        [Line("word " * 30, (100, 256, 300, 300))],
        [Line("Figure 1: Far", (100, 310, 300, 322))],
    ]

    assert found(IMAGE, text=text).figures[0].caption.startswith("word")


def test_many_parts_are_joined_in_linear_time() -> None:
    boxes: list[Box] = [
        (x % 600, x // 600 * 8, x % 600 + 9, x // 600 * 8 + 9) for x in range(60_000)
    ]

    assert len(drawing_regions(boxes, SIZE)) == 1
