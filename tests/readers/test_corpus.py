from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.node_parser import TokenTextSplitter
from small_corpora import GOOD, jsonl, write_image

from llama_index_gap.readers.corpus import Corpus, read_corpus
from llama_index_gap.readers.records import CorpusError


def test_jsonl(tmp_path: Path) -> None:
    write_image(tmp_path / "img" / "ship.png")
    path = jsonl(
        tmp_path,
        {
            "id": "a",
            "title": "Harbour",
            "text": "A ship left.",
            "images": [{"path": "img/ship.png", "alt": "a white ship", "size": [4, 3]}],
            "year": 2024,
        },
    )

    corpus = read_corpus(path)
    text, image = corpus.nodes

    assert (text.node_id, text.ref_doc_id, text.get_content()) == ("a#text-0", "a", "A ship left.")
    assert (image.node_id, image.ref_doc_id) == ("a#image-img/ship.png", "a")
    assert corpus.image_nodes[0].text == "a white ship"
    assert corpus.image_nodes[0].image_path == str(tmp_path / "img" / "ship.png")
    assert corpus.image_nodes[0].image_mimetype == "image/png"
    assert text.metadata == image.metadata == {"title": "Harbour", "year": 2024}
    assert corpus.skipped == []


def test_a_folder_with_docs_jsonl_is_read_as_that_file(tmp_path: Path) -> None:
    jsonl(tmp_path, GOOD)
    (tmp_path / "README.md").write_text("not a document")

    assert read_corpus(tmp_path).document_ids == ["good"]


def test_another_splitter_can_be_given(tmp_path: Path) -> None:
    splitter = TokenTextSplitter(chunk_size=5, chunk_overlap=0)
    path = jsonl(tmp_path, {"id": "a", "text": "one two three four five six seven eight"})

    nodes = read_corpus(path, splitter=splitter).nodes

    assert [node.node_id for node in nodes] == ["a#text-0", "a#text-1", "a#text-2"]
    assert nodes[0].get_content() == "one two three"


def test_a_folder_of_two_tables_is_ambiguous(tmp_path: Path) -> None:
    jsonl(tmp_path, GOOD)
    (tmp_path / "docs.csv").write_text("text\na\n")

    with pytest.raises(CorpusError, match=r"holds docs\.jsonl and docs\.csv; pass the one"):
        read_corpus(tmp_path)


def test_images_elsewhere_are_read_when_the_root_allows_it(tmp_path: Path) -> None:
    write_image(tmp_path / "shared" / "a.png")
    (tmp_path / "docs").mkdir()
    path = jsonl(tmp_path / "docs", {"id": "x", "text": "t", "images": ["../shared/a.png"]})

    assert read_corpus(path).image_nodes == []
    (node,) = read_corpus(path, root=tmp_path).image_nodes
    assert node.node_id == "x#image-shared/a.png"


def test_a_relative_path_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "c" / "a.png")
    jsonl(tmp_path / "c", {"id": "x", "images": ["a.png"]})
    monkeypatch.chdir(tmp_path)

    (node,) = read_corpus("c").image_nodes

    assert Path(str(node.image_path)).is_absolute()


def test_summary_counts_everything(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    path = jsonl(tmp_path, {"id": "x", "text": "t", "images": ["a.png", "no.png"]}, "nonsense")

    assert read_corpus(path).summary() == (
        "1 documents: 1 passages, 1 images (0 with a caption); 2 skipped\n"
        "  1 × no such file\n"
        "  1 × is not JSON"
    )


def a_file(name: str, content: bytes = b"") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def a_folder(folder: Path) -> Path:
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "no", "no such file or folder"),
    "unknown suffix": (a_file("a.xyz"), r"\.xyz is not read"),
    "no suffix": (a_file("corpus"), "a file without a suffix is not read"),
    "one image": (a_file("a.png"), r"\.png is not read"),
    "empty folder": (a_folder, "no Markdown, HTML or PDF files and no images"),
    "empty JSONL": (a_file("a.jsonl"), "no document could be read .it holds none"),
    "JSONL of blank lines": (a_file("a.jsonl", b"\n \n"), "no document could be read"),
    "JSONL of nonsense": (a_file("a.jsonl", b"x\ny\n"), r"\(a\.jsonl:1: is not JSON"),
    "empty CSV": (a_file("a.csv"), "names no column that can be searched .*it has nothing"),
    "CSV without known columns": (
        a_file("a.csv", b"ean,price\n1,2\n"),
        "it has ean, price; name them with text_field=.*--text-field",
    ),
    "CSV with a column twice": (
        a_file("a.csv", b"text,text\n1,2\n"),
        "has the column 'text' twice",
    ),
    "CSV in UTF-8 with a broken character": (
        a_file("a.csv", "text\ncafés, naïve".encode() + b"\xe9\n"),
        "is not UTF-8; byte 0xe9 at position 19; save it as UTF-8",
    ),
    "CSV in neither UTF-8 nor Windows-1252": (a_file("a.csv", b"text\n\x81\n"), "is not UTF-8"),
    "CSV with an open quote": (
        a_file("a.csv", b'text\n"abc\n'),
        "is not CSV after line 1; unexpected end",
    ),
    "CSV of a header": (a_file("a.csv", b"id,text\n"), "no document could be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_cannot_be_read(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]

    with pytest.raises(CorpusError, match=message):
        read_corpus(make(tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


FIELDS = st.dictionaries(
    st.sampled_from(["id", "title", "text", "image", "images", "caption", "alt", "year"]), JSON
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(FIELDS, max_size=4))
def test_whatever_stands_in_the_fields_is_read_or_reported(
    tmp_path: Path, documents: list[dict[str, Any]]
) -> None:
    write_image(tmp_path / "a.png")
    corpus = read_corpus(jsonl(tmp_path, GOOD, *documents))

    ids = [node.node_id for node in corpus.nodes]
    assert len(ids) == len(set(ids))
    read = len(corpus.document_ids)
    reported = {skip.source.split(",")[0] for skip in corpus.skipped}
    assert read + len(reported) >= 1 + len(documents)
    assert all(node.ref_doc_id for node in corpus.nodes)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "tsv", "md"]))
def test_whatever_stands_in_a_file_is_read_or_refused(
    tmp_path: Path, data: bytes, suffix: str
) -> None:
    path = tmp_path / suffix / f"a.{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    try:
        assert read_corpus(path.parent if suffix == "md" else path).nodes
    except CorpusError as error:
        assert str(path.parent) in str(error)


@pytest.fixture(scope="module")
def blog(gap_shared: Path) -> Corpus:
    return read_corpus(gap_shared / "data" / "18f_blog")


def test_the_whole_blog_is_read_twice_with_the_same_ids(blog: Corpus, gap_shared: Path) -> None:
    again = read_corpus(gap_shared / "data" / "18f_blog")

    assert len(blog.document_ids) == 508
    assert [node.node_id for node in blog.nodes] == [node.node_id for node in again.nodes]
    assert [node.hash for node in blog.nodes] == [node.hash for node in again.nodes]
    assert len({node.node_id for node in blog.nodes}) == len(blog.nodes)


def test_the_blog_s_images_have_their_captions(blog: Corpus) -> None:
    assert len(blog.image_nodes) == 390
    assert len({node.image_path for node in blog.image_nodes}) == 367
    assert sum(not node.text for node in blog.image_nodes) == 11
    assert blog.skipped == []


def test_a_damaged_copy_of_the_blog_reports_what_it_lost(
    blog: Corpus, gap_shared: Path, tmp_path: Path
) -> None:
    source = gap_shared / "data" / "18f_blog"
    files = sorted((source / "images").iterdir())
    gone = {file.name for file in random.Random(0).sample(files, 20)}
    (tmp_path / "images").mkdir()
    for file in files:
        if file.name not in gone:
            (tmp_path / "images" / file.name).symlink_to(file)
    lines = (source / "docs.jsonl").read_text(encoding="utf-8").splitlines()
    lines[5] = lines[5][:100]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines), encoding="utf-8")

    corpus = read_corpus(tmp_path, root="/")

    lost = [node for node in blog.image_nodes if Path(str(node.image_path)).name in gone]
    assert len(corpus.document_ids) == 507
    assert len(corpus.skipped) == len(lost) + 1
    assert len(corpus.image_nodes) == 390 - len(lost)
