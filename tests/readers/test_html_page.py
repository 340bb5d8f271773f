from __future__ import annotations

from pathlib import Path

import pytest
from native_sites import write
from small_corpora import write_image

from llama_index_gap.readers.corpus import read_corpus
from llama_index_gap.readers.html_page import decode_html, parse_html


def test_an_article_without_what_stands_around_it() -> None:
    page = parse_html(
        "<!DOCTYPE html><html><head><title>T &amp; U</title>"
        '<meta name="description" content="About it"><meta name="author" content="Ann">'
        '<meta property="article:published_time" content="2024-01-01">'
        "<script>x('<p>no</p>')</script><style>p{}</style></head><body><nav>Home</nav>"
        "<header>Site</header><main><h1>One</h1><p>A <b>b</b>c<br>d<ul><li>e<li>f</ul>"
        "<table><tr><th>g<th>h<tr><td>i<td>j</table><pre>k\n  l</pre><!-- m -->"
        "<p hidden>n</p><p style='display: none'>o</p></main><footer>p</footer></body></html>"
    )

    assert page.text == "One\n\nA bc\nd\n\ne\n\nf\n\ng h\n\ni j\n\nk\n  l"
    assert page.heading == "One"
    assert page.metadata == {
        "title": "T & U",
        "description": "About it",
        "author": "Ann",
        "date": "2024-01-01",
    }


@pytest.mark.parametrize(
    ("html", "image"),
    [
        ('<img src="a.png" alt="A">', ("a.png", "A")),
        ('<img src="a.png" title="A">', ("a.png", "A")),
        ('<img src="s.png" srcset="m.png 300w, a.png 900w" alt="A">', ("a.png", "A")),
        ('<img src="s.png" srcset="m.png 1x,a.png 2x" alt="A">', ("a.png", "A")),
        ('<img src="data:image/gif;base64,R0" data-src="a.png" alt="A">', ("a.png", "A")),
        ('<picture><source srcset="a.webp"><img src="a.png" alt="A"></picture>', ("a.webp", "A")),
        ('<a href="a.png"><img src="s.png" alt="A"></a>', ("a.png", "A")),
        ('<a href="a.html"><img src="a.png" alt="A"></a>', ("a.png", "A")),
        ('<figure><img src="a.png" alt="x"><figcaption>A</figcaption></figure>', ("a.png", "A")),
        ('<figure><figcaption>A</figcaption><img src="a.png"></figure>', ("a.png", "A")),
        ('<video poster="a.png" title="A"></video>', ("a.png", "A")),
        ('<base href="/sub/"><img src="a.png" alt="A">', ("/sub/a.png", "A")),
        ('<img src="a%20b.png?v=2" alt="A">', ("a b.png", "A")),
    ],
)  # fmt: skip
def test_images(html: str, image: tuple[str, str]) -> None:
    page = parse_html(f"<p>x</p>{html}")

    assert [(each.path, each.caption) for each in page.images] == [image]
    assert page.text == "x"


def test_a_caption_of_several_images_leaves_each_its_own() -> None:
    page = parse_html(
        '<figure><img src="a.png" alt="A"><img src="b.png"><figcaption>Both</figcaption></figure>'
        "<figure><pre>code</pre><figcaption>Of code</figcaption></figure>"
    )

    assert [image.caption for image in page.images] == ["A", "Both"]
    assert page.text == "code\n\nOf code"


@pytest.mark.parametrize(
    ("html", "text", "problem"),
    [
        ("<p>a</p><script>b", "a", "its <script> does not end; the text after it is not read"),
        ("<p>a</p><nav>b<p>c", "a", "its <nav> does not end; the text after it is not read"),
        ("<p>a <iframe src=x></iframe>", "a", "embedded media are left out; iframe"),
        ("<head><title>t</title><p>a", "a", ""),
        (
            f"<meta name=author content={'x' * 5_000}>a",
            "a",
            "its author has 5,000 characters; it is left out",
        ),
        ("<main></main><p>a</p>", "a", ""),
        ("<p>a</p><article>b</article>", "b", ""),
        ("<p>a long text</p><article>b</article>", "a long text\n\nb", ""),
        ("<nav><img src=a.png></nav>a", "a", "images around its article are left out; 1 of them"),
    ],
)
def test_what_is_not_read_is_told(html: str, text: str, problem: str) -> None:
    page = parse_html(html)

    assert page.text == text
    assert page.problems + page.decoration == [problem] * bool(problem)


@pytest.mark.parametrize(
    ("data", "text", "problem"),
    [
        ("é".encode(), "é", ""),
        (b"\xef\xbb\xbf" + "é".encode(), "é", ""),
        ("é".encode("utf-16"), "é", ""),
        ("<meta charset=iso-8859-1>é’".encode("cp1252"), "<meta charset=iso-8859-1>é’", ""),
        ('<meta charset="koi8-r">я'.encode("koi8-r"), '<meta charset="koi8-r">я', ""),
        ('<?xml version="1.0" encoding="shift_jis"?>日'.encode("shift_jis"), None, ""),
        (b"caf\xe9", "café", ""),
        (b"<meta charset=utf-8>caf\xe9", "<meta charset=utf-8>café", "is not utf-8 as it claims"),
        (b"<meta charset=rot13>a", "<meta charset=rot13>a", "'rot13', which is not read"),
        (b"<meta charset=hex>a", "<meta charset=hex>a", "'hex', which is not read"),
    ],
)
def test_encodings(data: bytes, text: str | None, problem: str) -> None:
    decoded, said = decode_html(data)

    assert decoded == (data.decode("shift_jis") if text is None else text)
    assert problem in said
    assert bool(said) == bool(problem)


def test_a_page_with_front_matter_is_a_generator_s(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    write(
        tmp_path,
        {
            "_config.yml": "",
            "a.html": "---\ntitle: T\n---\n<p>{% if x %}a{% endif %}</p>"
            '<img src="{{ site.baseurl }}/a.png" alt="A">',
            "b.html": "---\npublished: false\n---\n<p>b</p>",
        },
    )  # fmt: skip

    corpus = read_corpus(tmp_path)

    assert [node.get_content() for node in corpus.text_nodes] == ["a"]
    assert [node.text for node in corpus.image_nodes] == ["A"]
    assert corpus.nodes[0].metadata == {"title": "T"}


def test_the_image_for_other_sites_is_read_where_it_is_there(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    head = '<meta property="og:image" content="{}"><meta property="og:image:alt" content="A">'
    write(
        tmp_path,
        {
            "a.html": head.format("/a.png") + "<p>x",
            "b.html": head.format("https://cdn.example/a.png") + "<p>x",
            "c.html": head.format("a.png") + "<p>x<img src=a.png alt=B>",
        },
    )

    corpus = read_corpus(tmp_path)

    assert [(n.ref_doc_id, n.text) for n in corpus.image_nodes] == [
        ("a.html", "A"),
        ("c.html", "B"),
    ]
    assert corpus.skipped == []
