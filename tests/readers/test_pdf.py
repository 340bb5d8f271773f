"""PDF files of more than ten kinds: the parts that are read, left out and counted."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pdf_files as files
import pytest
from llama_index.core.schema import MetadataMode
from PIL import Image
from small_corpora import write_image

from llama_index_gap import Corpus, CorpusError, DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.cli.app import main
from llama_index_gap.images.folders import made_images
from llama_index_gap.images.opening import open_image
from llama_index_gap.readers.pdf import process


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The pages that images were made of."""
    pages: list[int] = []
    ask = process.PdfProcess.ask

    def noting(self: process.PdfProcess, do: str, **request: Any) -> dict[str, Any]:
        if do == "render":
            pages.append(request["index"] + 1)
        return ask(self, do, **request)

    monkeypatch.setattr(process.PdfProcess, "ask", noting)
    return pages


def read(folder: Path, data: bytes, **settings: Any) -> Corpus:
    (folder / "a.pdf").write_bytes(data)
    return read_corpus(folder / "a.pdf", **settings)


def text_of(corpus: Corpus, page: int = 1) -> str:
    """A page's text; its passages do not overlap here."""
    nodes = [node for node in corpus.text_nodes if node.metadata["page"] == page]
    return "\n".join(node.get_content(MetadataMode.NONE) for node in nodes)


def reasons(corpus: Corpus) -> list[str]:
    return [skip.reason for skip in corpus.skipped]


def in_order(text: str, *parts: str) -> bool:
    places = [text.index(part) for part in parts]
    return places == sorted(places)


# --- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_first", [False, True])
def test_columns_are_read_one_after_the_other(tmp_path: Path, rows_first: bool) -> None:
    corpus = read(tmp_path, files.two_columns(rows_first))

    text = text_of(corpus)
    columns = [f"{side} {number} " for side in ("left", "right") for number in range(12)]
    assert in_order(text, "On columns", "Abstract.", *columns)
    assert corpus.skipped == []
    assert corpus.text_nodes[0].metadata["title"] == "On columns"


def test_words_that_lines_break_are_whole(tmp_path: Path) -> None:
    page = files.Page()
    lines = [
        "A well-known exam-",
        "ple of a hyphen: it is a well-",
        "known thing in its win-",
        "dow.",
    ]
    page.lines(50, 700, lines)

    text = text_of(read(tmp_path, page.finished()))

    assert text == "A well-known example of a hyphen: it is a well-known thing in its window."


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    corpus = read(tmp_path, files.drawings())

    cells = [f"cell {row}{column}" for row in range(3) for column in range(3)]
    assert in_order(text_of(corpus), "Table 1: Harvests", *cells)


def test_arabic_is_in_the_order_of_speech(tmp_path: Path) -> None:
    lines = ["هذا نص عربي قصير", "والسطر الثاني هنا"]

    assert text_of(read(tmp_path, files.arabic(lines))) == " ".join(lines)


def test_chinese_lines_are_joined_without_spaces(tmp_path: Path) -> None:
    data = files.chinese(
        ["人工智能的发展很", "快。第二行文字。"], files.photo(5), "图 3：人工智能的发展"
    )

    corpus = read(tmp_path, data)

    assert text_of(corpus).startswith("人工智能的发展很快。第二行文字。")
    assert [node.text for node in corpus.image_nodes] == ["图 3：人工智能的发展"]


def test_what_stands_on_most_pages_is_left_out_and_counted(tmp_path: Path) -> None:
    corpus = read(tmp_path, files.report(12))

    assert [node.metadata["page"] for node in corpus.text_nodes] == list(range(1, 13))
    for number in range(1, 13):
        text = text_of(corpus, number)
        assert text.startswith(f"Page {number} begins.")
        assert "Annual report" not in text
        assert f"– {number} –" not in text
    assert Counter(reason.split(";")[0] for reason in reasons(corpus)) == {
        "is a header or footer": 2,
        "is decoration, too small for a figure": 1,
        "is a drawing without a figure's caption": 1,
    }
    assert "is a header or footer; 'Annual report of the orchard Chapter 1' on 12 pages" in (
        reasons(corpus)
    )
    assert all(skip.by_rule for skip in corpus.skipped)


def test_a_forms_values_are_text(tmp_path: Path) -> None:
    text = text_of(read(tmp_path, files.form()))

    assert text == "Application\n\nFull name: Ada Lovelace\nMember: Yes\nCity: Oslo"


def test_hidden_text_without_a_scan_is_not_read(tmp_path: Path) -> None:
    page = files.Page()
    page.drawString(50, 700, "What people see")
    hidden = page.beginText(50, 600)
    hidden.setTextRenderMode(3)
    hidden.textLine("What only machines see")
    page.drawText(hidden)

    corpus = read(tmp_path, page.finished())

    assert text_of(corpus) == "What people see"
    assert reasons(corpus) == ["holds invisible text, which is not read; page 1"]


def test_metadata_is_that_of_the_file(tmp_path: Path) -> None:
    data = files.with_pypdf(
        files.report(1),
        lambda writer: writer.add_metadata({"/CreationDate": "D:20240131120000+01'00'"}),
    )

    (node,) = read(tmp_path, data).text_nodes

    assert node.metadata == {
        "title": "A long report",
        "author": "Ada Lovelace",
        "date": "2024-01-31T12:00:00+01:00",
        "page": 1,
        "page_label": "1",
    }
    assert node.get_content(MetadataMode.EMBED).startswith("title: A long report\n\n")
    assert node.ref_doc_id == "a.pdf"


# --- figures -------------------------------------------------------------------------------------


def test_figures_have_their_captions(tmp_path: Path) -> None:
    corpus = read(tmp_path, files.figures())

    assert [(node.node_id, node.text) for node in corpus.image_nodes] == [
        ("a.pdf#page-1-figure-1", "Figure 1: A lantern in the harbour."),
        ("a.pdf#page-1-figure-2", "Fig. 2. A violin beside the window, seen from the garden."),
        ("a.pdf#page-2-figure-1", "The station at night"),  # the nearest text
    ]
    assert {node.ref_doc_id for node in corpus.nodes} == {"a.pdf"}
    first = corpus.image_nodes[0]
    assert (first.metadata["page"], first.metadata["image_kind"]) == (1, "figure")
    small = [image.resize((8, 6)) for image in (open_image(first), files.photo(1))]
    colours = [list(image.get_flattened_data()) for image in small]
    far = [abs(a - b) for pair in zip(*colours, strict=True) for a, b in zip(*pair, strict=True)]
    assert max(far) < 40  # it is this photo


def test_a_drawing_with_a_caption_is_a_figure(tmp_path: Path) -> None:
    corpus = read(tmp_path, files.drawings())

    (node,) = corpus.image_nodes
    assert node.text == "Abb. 3: Ernten nach Jahren"
    image = open_image(node)
    # The bars, and the text of the axis below them; neither the text above nor the caption.
    assert image.width > image.height > 300
    dark = image.convert("L").point(lambda value: 255 * (value < 128)).getbbox()
    assert dark is not None
    assert dark[3] > image.height - 40
    assert reasons(corpus) == ["is a drawing without a figure's caption; 2"]


def test_captions_above_their_figures_stay_with_them(tmp_path: Path) -> None:
    page = files.Page()
    for number in (1, 2, 3):
        page.drawString(150, 760 - 200 * number + 160, f"Figure {number}: number {number}")
        page.image(files.photo(number), 150, 760 - 200 * number, 200, 150)

    corpus = read(tmp_path, page.finished())

    assert [node.text for node in corpus.image_nodes] == [
        f"Figure {number}: number {number}" for number in (1, 2, 3)
    ]


def test_two_images_share_a_caption_and_strips_are_one(tmp_path: Path) -> None:
    page = files.Page()
    page.image(files.photo(1), 80, 500, 180, 130)
    page.image(files.photo(2), 320, 500, 180, 130)
    page.drawString(150, 480, "Figure 4: On the left one, on the right another one of them")
    whole = files.photo(3, (200, 150))
    for strip in range(10):
        page.image(
            whole.crop((0, 15 * strip, 200, 15 * strip + 15)), 100, 385 - 15 * strip, 200, 15
        )
    page.drawString(100, 230, "Figure 5: In strips")

    corpus = read(tmp_path, page.finished())

    captions = [node.text[:9] for node in corpus.image_nodes]
    assert captions == ["Figure 4:", "Figure 4:", "Figure 5:"]
    assert open_image(corpus.image_nodes[2]).size == (300, 225)


def test_an_image_on_several_pages_is_decoration(tmp_path: Path) -> None:
    page = files.Page()
    logo = files.photo(8)
    for number in range(3):
        page.drawString(50, 700, f"Text {number}")
        page.image(logo, 50, 300, 200, 150)
        page.showPage()

    corpus = read(tmp_path, page.finished())

    assert corpus.image_nodes == []
    assert reasons(corpus) == ["is decoration, the same image on several pages; 3"]


def test_large_images_of_the_same_length_are_different_ones(tmp_path: Path) -> None:
    """Uncompressed scans all have the same number of bytes."""
    page = files.Page(pageCompression=0)
    for number in range(3):
        page.drawString(50, 750, f"Text {number}")
        page.image(files.photo(number, (800, 600)), 50, 300, 400, 300)
        page.showPage()
    data = page.finished()
    assert len(data) > 3 * 2**20

    assert len(read(tmp_path, data).image_nodes) == 3


# --- pages ---------------------------------------------------------------------------------------


def test_scanned_pages_are_images_with_their_hidden_text(tmp_path: Path) -> None:
    corpus = read(tmp_path, files.scanned("recognised words"), strict=True)

    assert [node.node_id for node in corpus.image_nodes] == ["a.pdf#page-1", "a.pdf#page-2"]
    assert {node.metadata["image_kind"] for node in corpus.image_nodes} == {"page"}
    assert [text_of(corpus, page) for page in (1, 2)] == ["", "recognised words"]
    assert open_image(corpus.image_nodes[0]).size == (1250, 1667)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_rotated_pages_are_upright(tmp_path: Path, turn: int) -> None:
    corpus = read(tmp_path, files.rotated(turn), pages=True)

    text = "The first line stands above. The second line follows it.\n\nFigure 7: red above blue"
    assert text_of(corpus) == text
    page, figure = (open_image(node) for node in corpus.image_nodes)
    for image in (figure, page.crop((125, 625, 438, 938))):
        middle = image.width // 2
        top, bottom = (image.getpixel((middle, image.height * part // 8)) for part in (1, 7))
        assert isinstance(top, tuple)
        assert isinstance(bottom, tuple)
        assert (top[0] > 200, bottom[2] > 200) == (True, True)
    assert corpus.image_nodes[1].text == "Figure 7: red above blue"


def test_every_page_is_an_image_on_request(tmp_path: Path) -> None:
    corpus = read(tmp_path, files.report(5), pages=True)

    kinds = [(n.metadata["page"], n.metadata["image_kind"]) for n in corpus.image_nodes]
    assert kinds == [*((page, "page") for page in range(1, 6)), (5, "figure")]


def test_images_are_made_once(tmp_path: Path, rendered: list[int]) -> None:
    first = read(tmp_path, files.figures(), pages=True)
    assert rendered == [1, 1, 1, 2, 2]
    again = read_corpus(tmp_path / "a.pdf", pages=True)

    assert rendered == [1, 1, 1, 2, 2]
    assert [node.image_path for node in again.image_nodes] == [
        node.image_path for node in first.image_nodes
    ]


def test_ids_and_hashes_stay_until_the_file_changes(tmp_path: Path) -> None:
    def named(corpus: Corpus) -> list[tuple[str, str | None]]:
        return [(n.node_id, n.source_node.hash if n.source_node else None) for n in corpus.nodes]

    (tmp_path / "old").mkdir()
    before = named(read(tmp_path / "old", files.report(5)))
    shutil.move(tmp_path / "old", tmp_path / "new")
    shutil.rmtree(made_images())

    assert named(read_corpus(tmp_path / "new" / "a.pdf")) == before
    changed = files.with_pypdf(
        files.report(5), lambda writer: writer.add_metadata({"/Keywords": "b"})
    )
    after = named(read(tmp_path / "new", changed))
    assert [node_id for node_id, _ in after] == [node_id for node_id, _ in before]
    assert not {digest for _, digest in after} & {digest for _, digest in before}


def test_an_index_keeps_the_images_by_their_content(tiny_clip: Path, tmp_path: Path) -> None:
    corpus = read(tmp_path, files.figures(), pages=True)
    model = DualEncoderEmbedding(model_name=tiny_clip)
    # Like the command line: images lie below the corpus' folder, except images made by the reader.
    with DualIndex(str(tmp_path / "gap.db"), embed_model=model, image_root=corpus.root) as index:
        report = index.insert_nodes(corpus.nodes)
        assert (report.image_rows, report.skipped) == (5, [])
        shutil.rmtree(made_images())

        hits = index.search("a lantern in the harbour", top_k=1)
        images = [image for document in hits for image in document.images]
        kept = sorted(Path(f"{tmp_path}/gap.db.images/gap").glob("*.*"))
        report = index.refresh_ref_docs(read_corpus(tmp_path / "a.pdf", pages=True).nodes)

    assert images
    assert open_image(images[0]).width > 100
    assert len([file for file in kept if file.is_file()]) == 5
    assert (report.text_rows, report.image_rows) == (0, 0)


# --- unreadable files ----------------------------------------------------------------------------


def test_an_encrypted_file_needs_its_password(tmp_path: Path) -> None:
    (tmp_path / "open.pdf").write_bytes(files.encrypted("", owner="only to change it"))
    (tmp_path / "shut.pdf").write_bytes(files.encrypted("secret"))

    corpus = read_corpus(tmp_path)
    assert corpus.document_ids == ["open.pdf"]
    assert [(skip.source, skip.reason) for skip in corpus.skipped] == [
        ("shut.pdf", "is encrypted; pass its password with passwords=[…]")
    ]
    wrong = read_corpus(tmp_path, passwords=["wrong"])
    assert reasons(wrong) == ["is encrypted, and no password in passwords= opens it"]
    both = read_corpus(tmp_path, passwords=["wrong", "secret"])
    assert both.document_ids == ["open.pdf", "shut.pdf"]
    with pytest.raises(CorpusError, match=r"shut.pdf: is encrypted; .*strict=True"):
        read_corpus(tmp_path, strict=True)


@pytest.mark.parametrize("left", [1, 3, 6])
def test_a_file_that_breaks_off_is_read_as_far_as_it_goes(tmp_path: Path, left: int) -> None:
    whole = files.report(6)
    contents = [match.start() for match in re.finditer(b"endstream", whole)][-6:]
    (tmp_path / "cut.pdf").write_bytes(whole[: contents[left] if left < 6 else -20])

    corpus = read_corpus(tmp_path)

    assert [node.metadata["page"] for node in corpus.text_nodes] == list(range(1, left + 1))
    assert all(f"Page {page} begins." in text_of(corpus, page) for page in range(1, left + 1))
    # If the trailer is intact, pdfium finds the objects without help.
    told = [reason for reason in reasons(corpus) if reason.startswith("is damaged;")]
    assert told == ["is damaged; 6 of its pages were found and are read"] * (left < 6)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.2])
def test_of_a_file_with_nothing_left_this_is_reported(tmp_path: Path, part: float) -> None:
    whole = files.report(6)
    (tmp_path / "good.pdf").write_bytes(files.figures())
    (tmp_path / "cut.pdf").write_bytes(whole[: int(len(whole) * part)])

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["good.pdf"]
    assert corpus.skipped[0].source == "cut.pdf"
    assert corpus.skipped[0].reason.startswith("is damaged")


def test_without_the_extra_a_pdf_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "find_spec", lambda name: None)
    (tmp_path / "page.md").write_text("A text.")
    (tmp_path / "a.pdf").write_bytes(files.figures())

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["page.md"]
    assert reasons(corpus) == [
        "is a PDF file, which needs pypdfium2: pip install 'llama-index-gap[pdf]'"
    ]


def test_a_folder_of_pdf_files_and_pages_is_read_in_full(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.PDF").write_bytes(files.figures())
    (tmp_path / "page.md").write_text("A text. ![seen](seen.png)")
    for name in ("seen", "unseen"):
        write_image(tmp_path / f"{name}.png")

    corpus = read_corpus(tmp_path)

    assert corpus.document_ids == ["page.md", "sub/a.PDF"]
    assert [skip.source for skip in corpus.skipped] == ["unseen.png"]
    assert len(corpus.image_nodes) == 4
    (tmp_path / "page.md").unlink()
    assert "sub/a.PDF" in read_corpus(tmp_path).document_ids


def test_the_command_line_makes_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pdf").write_bytes(files.report(3))
    monkeypatch.setattr(sys, "argv", ["llama-gap", "read", str(tmp_path), "--pages"])

    with pytest.raises(SystemExit) as stopped:
        main()

    assert stopped.value.code == 0
    assert "1 documents: 3 passages, 3 images" in capsys.readouterr().out


@pytest.mark.slow
def test_five_hundred_pages(tmp_path: Path) -> None:
    corpus = read(tmp_path, files.report(500))

    assert [node.metadata["page"] for node in corpus.text_nodes] == list(range(1, 501))
    assert [node.text for node in corpus.image_nodes] == [
        f"Figure {number}: The view of page {number}." for number in range(5, 501, 5)
    ]
    assert all(skip.by_rule for skip in corpus.skipped)
    assert isinstance(open_image(corpus.image_nodes[-1]), Image.Image)
