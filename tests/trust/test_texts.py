"""No text makes a reader hang, stop or use much memory: its time is linear, or it is skipped."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import Document, ImageNode, TextNode
from small_corpora import GOOD, jsonl, write_image

from llama_index_gap import DualEncoderEmbedding, DualIndex
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.corpus import read_corpus
from llama_index_gap.readers.html_page import parse_html
from llama_index_gap.readers.markdown import parse_markdown
from llama_index_gap.readers.splitting import default_splitter

SLOW = [
    *("![[", "![[a", "![[a|", "[!["),  # images as Obsidian writes them
    *("<!--", "<!---", "a <!-- --->", "<![CDATA[", "<?", "</a"),
    *("<a ", "<a b='", '<a b="> " ', '<img src="a" alt="', "<a/", "<div\n", "<script"),
    *("[a](<b", "<http://", "](", "&#"),
    *("<script> a", "<style> b </style>", "<b>", "</b>", "<figure>", "<a href=a.png>"),
]
TEMPLATES = [
    *(
        "{{< ",
        "{{% a",
        "{{",
        "{%",
        "{{</*",
        "{{/*",
        "{% raw %}",
        "{% highlight x %}",
        "{% comment %}",
    ),
    *("{{< figure src='a.png' ", "({{ x", '="{{ a }}', "[caption]", "[caption id=1]x", "`", "``` "),
    *("a]{.b", "x {#", "{:", "- ", "> - ", "```\n", "{{ 'a' | prepend: b | append: c"),
]
COMPONENTS = ["<A b={", "<A b={c} ", "{", "{a}", "}", "<A b='", "`{", "- ", "import a from 'b'\n"]
HTML = [
    *("<p><li>", "<div hidden>", "<picture><source srcset='a 1x, b 2x'>", "<main>", "<title>"),
    *("<figure><figcaption>", "<head><body>", "<table><tr><td>", "<pre>\n", "<nav>", "&amp;"),
]


def seconds(work: Callable[[], Any]) -> float:
    """The least of three times of this thread alone, without other threads and processes."""
    least = float("inf")
    for _ in range(3):
        started = time.thread_time()
        work()
        least = min(least, time.thread_time() - started)
    return least


@pytest.mark.parametrize("before", ["", "<div>\n"])
@pytest.mark.parametrize("form", SLOW)
def test_a_page_takes_time_as_its_length(form: str, before: str) -> None:
    """Each of these was quadratic, or would be: 4 times as long, 16 times as slow."""
    short, long = (before + form * (length // len(form)) for length in (4_000, 16_000))

    took = seconds(lambda: parse_markdown(short))

    assert seconds(lambda: parse_markdown(long)) < 9 * took + 0.2


@pytest.mark.parametrize("form", TEMPLATES + COMPONENTS + HTML)
def test_a_page_of_a_site_takes_time_as_its_length(form: str) -> None:
    read: list[Callable[[str], Any]] = [parse_markdown]
    if form in COMPONENTS:
        read = [lambda page: parse_markdown(page, mdx=True)]
    if form in HTML:
        read = [parse_html, lambda page: parse_html(f"---\na: 1\n---\n{page}")]
    short, long = (form * (length // len(form)) for length in (4_000, 16_000))
    for parse in read:
        took = seconds(partial(parse, short))

        assert seconds(partial(parse, long)) < 9 * took + 0.2


def test_the_sizes_of_an_image_take_time_as_their_length() -> None:
    for form in ("a ", "a,", "a 1x,", ",", "a 1.1.1w "):
        short, long = (f"<img srcset='{form * (n // len(form))}'>" for n in (4_000, 16_000))

        assert seconds(partial(parse_html, long)) < 9 * seconds(partial(parse_html, short)) + 0.2


def test_long_runs_of_marks_are_cut_in_linear_time() -> None:
    """The splitter called itself for every two marks."""
    for form in ("!", "?!", "-…!@"):
        text = form * (12_000 // len(form))
        nodes = default_splitter().get_nodes_from_documents([Document(text=text)])
        assert len(nodes) > 5


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("---\na: !!bool x\n---\n", "read as YAML"),
        ("---\na: !!timestamp x\n---\n", "read as YAML"),
        ("---\na: !!int ''\n---\n", "read as YAML"),
        ("---\na: " + "1:" * 3_000 + "1.5\n---\n", "read as YAML"),
        ("---\na: " + "1:" * 3_000 + "1\n---\n", "more than 100 digits"),
        ("---\na: " + "x" * 100_000 + "\n---\n", "has 100,004 characters; at most 65,536"),
        ("+++\n" + "a." * 16_000 + "a = 1\n+++\n", "nested too deeply"),
        ("*a" * 1_000_001, "1,000,001; at most 1,000,000 are read"),
        (("|a" * 256 + "\n" + "|-" * 256 + "\n" + "|\n" * 256), "and table cells"),
    ],
)
def test_a_page_that_would_swell_is_refused(page: str, reason: str) -> None:
    with pytest.raises(InvalidValueError, match=reason):
        parse_markdown(page)


def test_a_page_of_too_many_tags_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="1,000,001; at most 1,000,000"):
        parse_html("<b>" * 1_000_001)


def test_a_page_is_told_of_in_one_short_line() -> None:
    (unread,) = parse_markdown("![x](my\npic " + "a" * 10_000 + ")").unread

    assert unread.startswith("![x](my pic a")
    assert len(unread) <= 200


@pytest.mark.parametrize("html", ["<![a[", "<![", "<!", "<a b='c", "&#" + "9" * 5_000 + ";"])
def test_no_html_stops_the_reading(html: str, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"<div>\n{html}\nA text.")
    (tmp_path / "b.md").write_text("A text.")

    assert read_corpus(tmp_path).document_ids == ["a.md", "b.md"]


LARGE: dict[str, tuple[dict[str, Any] | str, str]] = {
    "an id": ({"id": "i" * 20_000, "text": "t"}, "its id, title and metadata take"),
    "a title": ({"title": "t" * 100_000}, "its id, title and metadata take"),
    "metadata": ({"text": "t", "m": ["ä"] * 20_000}, "its id, title and metadata take"),
    "many columns": (dict.fromkeys(map(str, range(10_000)), 1) | {"text": "t"}, "metadata take"),
    "a number": ('{"text": "t", "m": ' + "9" * 5_000 + "}", "a number of 5,000 digits"),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_no_index_takes_is_skipped_by_the_reader(case: str, tmp_path: Path) -> None:
    document, reason = LARGE[case]

    corpus = read_corpus(jsonl(tmp_path, GOOD, document))

    assert corpus.document_ids == ["good"]
    (skipped,) = corpus.skipped
    assert skipped.source == "docs.jsonl:2"
    assert re.search(reason, skipped.reason)
    assert len(skipped.reason) < 300


def test_an_image_is_read_without_a_caption_that_is_too_long(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    image = {"path": "a.png", "caption": "ä" * 40_000}

    corpus = read_corpus(jsonl(tmp_path, {"id": "x", "images": [image]}))

    assert [node.text for node in corpus.image_nodes] == [""]
    assert "its caption has 80,000 bytes, but an index accepts 65,535" in corpus.skipped[0].reason


def test_images_beyond_ten_thousand_are_counted(tmp_path: Path) -> None:
    corpus = read_corpus(jsonl(tmp_path, {"text": "t", "images": ["data:"] * 10_010}))

    assert len(corpus.skipped) == 10_001
    assert corpus.skipped[0].reason.startswith("shows 10,010 images; only the first 10,000")


def test_what_cannot_be_stored_is_not_embedded(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(tmp_path / "a.png")
    bad = [
        TextNode(id_="metadata", text="a", metadata={"m": "a" * 100_000}),
        ImageNode(id_="caption", text="a " * 100_000, image_path=str(image)),
        TextNode(id_="number", text="a", metadata={"m": 2**64}),
    ]
    model = DualEncoderEmbedding(model_name=tiny_clip)
    embedded: list[str] = []
    embed = DualEncoderEmbedding.get_text_embedding_batch
    monkeypatch.setattr(
        DualEncoderEmbedding,
        "get_text_embedding_batch",
        lambda self, texts, **kwargs: embedded.extend(texts) or embed(self, texts, **kwargs),
    )
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
        report = index.insert_nodes([*bad, TextNode(id_="good", text="a good text")])

    assert embedded == ["a good text"]
    assert {skip.source for skip in report.skipped} == {f"node {node.node_id}" for node in bad}
    assert report.text_rows == 1
