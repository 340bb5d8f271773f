from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.markdown import Page, parse_markdown
from llama_index_gap.readers.records import ImageReference


def test_takes_a_page_apart() -> None:
    page = parse_markdown(
        "---\ntitle: A day out\ndate: 2024-05-01\ntags: [sea, sun]\n---\n"
        "# At the sea\n\nWe saw a *ship*\nand [a tower](tower.html).\n\n"
        '![a white ship](images/ship.png "Ship")\n\n- first\n- second\n\n```sh\nmake\n```\n'
    )

    assert page == Page(
        text="At the sea\n\nWe saw a ship\nand a tower.\n\nfirst\n\nsecond\n\nmake",
        heading="At the sea",
        images=[ImageReference("images/ship.png", "a white ship")],
        metadata={"title": "A day out", "date": "2024-05-01", "tags": ["sea", "sun"]},
    )


@pytest.mark.parametrize(
    ("source", "image"),
    [
        ("![x](a.png)", ImageReference("a.png", "x")),
        ("![](a.png)", ImageReference("a.png", "")),
        ("![x][r]\n\n[r]: a.png", ImageReference("a.png", "x")),
        ("![a *bold* word](a.png)", ImageReference("a.png", "a bold word")),
        ("![x](my%20cat.png)", ImageReference("my cat.png", "x")),
        ("![x](<my cat.png>)", ImageReference("my cat.png", "x")),
        ("![x](a.png?v=2#top)", ImageReference("a.png", "x")),
        ("![x](/img/a.png)", ImageReference("/img/a.png", "x")),
        ("![x](https://e.com/a.png?v=2)", ImageReference("https://e.com/a.png?v=2", "x")),
        ("[![x](a.png)](page.html)", ImageReference("a.png", "x")),
        ('<img src="a.png" alt="x &amp; y">', ImageReference("a.png", "x & y")),
        ('text <img alt="x" src="a.png"/> text', ImageReference("a.png", "x")),
        ("<p align=center>\n<img src=a.png>\n</p>", ImageReference("a.png", "")),
        ("![[a.png]]", ImageReference("a.png", "")),
        ("![[img/a b.png|a ship]]", ImageReference("img/a b.png", "a ship")),
        ("![[a.png|300x200]]", ImageReference("a.png", "")),
        ("![x](//cdn/a.png)", ImageReference("//cdn/a.png", "x")),
    ],
)
def test_finds_images(source: str, image: ImageReference) -> None:
    assert parse_markdown(source).images == [image]


@pytest.mark.parametrize("source", ["`![x](a.png)`", "```\n![x](a.png)\n```", "<img alt='x'>"])
def test_what_only_looks_like_an_image(source: str) -> None:
    assert parse_markdown(source).images == []


def test_html_gives_its_text_without_scripts() -> None:
    page = parse_markdown("<div>Hello &amp; <b>bye</b><script>alert(1)</script></div>\n")

    assert page.text == "Hello & bye"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a<br>b", "a b"),
        ("<table><tr><td>one</td><td>two</td></tr></table>", "one two"),
        ("bye <script>inline</script> after", "bye after"),
        ("un<b>believ</b>able", "unbelievable"),
    ],
)
def test_html_parts_words_where_a_page_does(source: str, text: str) -> None:
    assert parse_markdown(source).text == text


def test_what_was_meant_as_an_image_is_told() -> None:
    page = parse_markdown("![x](my pic.png) and ![y]({{ base }}/a.png)\n\n`![x](my pic.png)`")

    assert page.unread == ["![x](my pic.png)"]
    assert page.images == [ImageReference("/a.png", "y")]


def test_the_first_heading_counts() -> None:
    assert parse_markdown("# One\n\n# Two\n\n## Three").heading == "One"


def test_tables_give_their_cells() -> None:
    assert parse_markdown("| a | b |\n|---|---|\n| 1 | 2 |\n").text == "a\n\nb\n\n1\n\n2"


@pytest.mark.parametrize(
    ("source", "metadata", "text"),
    [
        ("just text", {}, "just text"),
        ("---\n---\ntext", {}, "text"),
        ("---\ra: 1", {}, "a: 1"),
        ("---\r\na: 1\r\n---\r\ntext", {"a": 1}, "text"),
        ("text\n\n---\n\nmore", {}, "text\n\nmore"),
        ("---\n1: one\n---\n", {"1": "one"}, ""),
        ("---\nprose between rules\n---\n", {}, "prose between rules"),
        (
            '+++\ntitle = "T"\ndate = 2024-05-01\n+++\ntext',
            {"title": "T", "date": "2024-05-01"},
            "text",
        ),
    ],
)
def test_front_matter(source: str, metadata: dict[str, object], text: str) -> None:
    page = parse_markdown(source)

    assert page.metadata == metadata
    assert page.text == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("---\na: [\n---\n", "front matter cannot be read as YAML"),
        ("---\n- a\n---\n", "not a mapping"),
        ("---\na: &x [1]\nb: *x\n---\n", "aliases .* are not read"),
        ("---\na: &a [*a]\n---\n", "aliases .* are not read"),
        ("---\na: " + "[" * 3000 + "]" * 3000 + "\n---\n", "read as YAML"),
        ("---\na: !!binary aGk=\n---\n", "holds a bytes as a"),
        ("---\na: !!set {x}\n---\n", "holds a set as a"),
        ("---\na: [.nan]\n---\n", "has a: nan, which is not a number"),
        ("+++\na = \n+++\n", "read as TOML"),
        ("---\ndate: 2024-02-31\n---\n", "read as YAML"),
        ("---\na: !!python/object/apply:os.system [ls]\n---\n", "read as YAML"),
    ],
)
def test_refuses_front_matter(source: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        parse_markdown(source)


@given(
    st.text(alphabet=st.sampled_from(list("![](<>)`#*-_|~=&;:'\"/\\ \n\tabimgsrc=1")), max_size=120)
)
def test_any_text_is_a_page(source: str) -> None:
    page = parse_markdown(source) if not source.startswith("---") else Page("")

    assert all(image.path for image in page.images)


@pytest.mark.parametrize(
    "source",
    [
        "<script> tags load.",
        "<style> is for looks.",
        "<title> is what a tab shows.",
        "A <script> tag loads the rest.",
        "The <script> tag, and its </script> end.",
        "If a<b and b>c, copy <source> to <target>; Vec<T>.",
        "Map<String, List<Integer>> and Option<i> and <K> here",
        "git clone <url> <folder> && cd <path>",
        "Wrap it in <div> or <main>, then </source>.",
        "A <!note b> and <? c",
        "<!-- never closed",
        "a <!-- never closed",
        "<![CDATA[ never closed",
        "<?php never closed",
        "mail <ann at x.org> or <b and c>",
        "<input> and <link> and <meta> alone",
    ],
)
def test_prose_that_looks_like_html_stays(source: str) -> None:
    page = parse_markdown(f"{source}\n\nThe next paragraph.\n\n![x](a.png)")

    assert page.text == f"{source}\n\nThe next paragraph."
    assert [image.path for image in page.images] == ["a.png"]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<script>\nlet a = 1;\n\nlet b;\n</script>\n\ntext", "text"),
        ("<script src=x></script>\ntext", "text"),
        ("<!-- a\n\nb -->\n\ntext", "text"),
        ("<div hidden>a</div>\n\ntext", "text"),
        ("<div style='display:none'>a\n\ntext", "text"),
        ("x<template>a</template>y", "xy"),
        ("<b>bold</b> <a name='x'></a><br>text", "bold text"),
        ("<details>\n<summary>More</summary>\n\nInside\n\n</details>", "More\n\nInside"),
        ("<kbd>Ctrl</kbd> <sub>2</sub> <unknown>x</unknown>", "Ctrl 2 <unknown>x</unknown>"),
    ],
)
def test_html_that_is_html_is_read_as_such(source: str, text: str) -> None:
    assert parse_markdown(source).text == text


@pytest.mark.parametrize(
    "source",
    [
        "<div>\n![A](a.png)\n</div>",
        "<div>\n\n![A](a.png)\n\n</div>",
        '<p align="center"><img src="a.png" alt="A"></p>',
        "<table><tr><td>\n<img src='a.png' alt='A'></td></tr></table>",
        "<figure>\n\n![](a.png)\n\n<figcaption>A</figcaption>\n</figure>",
        "<figure>\n![x](a.png)\n<figcaption>A</figcaption></figure>",
        "<details><summary>s</summary>![[a.png|A]]</details>",
        "- <img src=a.png alt=A>",
    ],
)
def test_an_image_within_html_is_read(source: str) -> None:
    assert [(i.path, i.caption) for i in parse_markdown(source).images] == [("a.png", "A")]


@pytest.mark.parametrize("mark", ["* ", "> ", "1. ", "* > "])
@pytest.mark.parametrize("depth", [12, 60])
def test_what_is_nested_deeply_is_read_in_full(mark: str, depth: int) -> None:
    page = parse_markdown(f"{mark * depth}deep ![x](a.png)\n\nafter")

    assert page.text.split()[-2:] == ["deep", "after"]
    assert [image.path for image in page.images] == ["a.png"]


def test_what_is_nested_too_deeply_is_read_as_text_and_told() -> None:
    page = parse_markdown(f"{'* ' * 300}deep ![x](a.png)\n\nafter")

    assert page.text.split()[-2:] == ["deep", "after"]
    assert [image.path for image in page.images] == ["a.png"]
    (problem,) = page.problems
    assert problem.startswith("is nested deeper than 100 levels")


@pytest.mark.parametrize(
    "source", ["\\![x](my a.png)", "`![x](my a.png)`", "\\!\\[x](my a.png)", "``![[x y]]``"]
)
def test_code_and_escapes_only_look_like_images(source: str) -> None:
    page = parse_markdown(source)

    assert page.unread == []
    assert page.images == []


def test_footnotes_of_one_word_stay() -> None:
    page = parse_markdown("a[^1] b[^n]\n\n[^1]: word\n[^n]: two words")

    assert page.text == "a[^1] b[^n]\n\n[^1]: word\n[^n]: two words"


@pytest.mark.parametrize(
    ("source", "images"),
    [
        ("[![A](s.png)](a.png)", [("a.png", "A", ("s.png",))]),
        ("[![A](s.png)](a.html)", [("s.png", "A", ())]),
        ("![](a.png 'A')", [("a.png", "A", ())]),
        ("![[a.png#center|A|300]]", [("a.png", "A", ())]),
        ("![A][a b]\n\n[a b]: <a.png> 'T'", [("a.png", "A", ())]),
    ],
)
def test_forms_of_images(source: str, images: list[tuple[str, str, tuple[str, ...]]]) -> None:
    found = parse_markdown(source).images

    assert [(image.path, image.caption, image.others) for image in found] == images


def test_embeds_of_notes_are_counted() -> None:
    page = parse_markdown("![[note]] ![[a.pdf]] text")

    assert page.text == "text"
    assert page.problems == ["embeds other than images are left out; ![[…]] ×2"]
