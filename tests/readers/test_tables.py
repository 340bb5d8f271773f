from __future__ import annotations

import csv
from pathlib import Path

import pytest
from llama_index.core.schema import MetadataMode
from small_corpora import GOOD, jsonl, write_image

from llama_index_gap.readers.corpus import Corpus, read_corpus
from llama_index_gap.readers.records import CorpusError, Skipped


def test_csv(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    path = tmp_path / "catalogue.csv"
    path.write_text(
        "id,title,text,images,captions,price\n"
        '1,Lamp,"A lamp,\nwith a shade.",a.png | b.png,front|back,9.50\n'
        "2,Chair,,,,\n",
        encoding="utf-8-sig",
    )

    corpus = read_corpus(path)

    assert corpus.document_ids == ["1", "2"]
    assert [node.text for node in corpus.image_nodes] == ["front", "back"]
    assert corpus.nodes[0].get_content() == "A lamp,\nwith a shade."
    assert corpus.nodes[0].metadata == {"title": "Lamp", "price": 9.5}


def test_csv_with_one_image_column(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "docs.csv").write_text("image,caption\na.png,red\n")

    assert [node.text for node in read_corpus(tmp_path).image_nodes] == ["red"]


def test_csv_leaves_the_module_s_limit_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    before = csv.field_size_limit()

    read_corpus(tmp_path / "a.csv")

    assert csv.field_size_limit() == before


def test_csv_columns_without_a_name_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,,\none,,\ntwo,,3\n")

    corpus = read_corpus(tmp_path / "a.csv")

    assert len(corpus.nodes) == 1
    assert corpus.skipped == [Skipped("a.csv:3", "has '3' in a column without a name")]


def test_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\nx\thello, world\n")

    assert read_corpus(tmp_path / "a.tsv").nodes[0].get_content() == "hello, world"


def test_csv_with_long_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "word " * 50_000 + "\n")

    assert len(read_corpus(tmp_path / "a.csv").nodes) > 10


def test_a_line_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    path = jsonl(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() + b'\n{"text": "caf\xe9"}\n{"id": "last", "text": "x"}')

    corpus = read_corpus(path)

    assert corpus.document_ids == ["good", "last"]
    assert corpus.skipped[0].reason == "is not UTF-8; byte 0xe9 at position 13"


def test_rows_of_another_length_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,one\n2,two,extra\n3\n4,four\n5,,\n")

    corpus = read_corpus(path)

    assert corpus.document_ids == ["1", "4"]
    assert [skip.reason for skip in corpus.skipped] == [
        "has 1 more cells than the first line has columns",
        "has 1 fewer cells than the first line has columns",
        "has 1 more cells than the first line has columns",
    ]


def test_captions_must_match_images_in_number(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / name)
    (tmp_path / "a.csv").write_text("text,images,captions\nok,,\nt,a.png|b.png,one\n")

    corpus = read_corpus(tmp_path / "a.csv")

    assert [node.text for node in corpus.image_nodes] == ["", ""]
    assert "has 2 images but 1 captions; the images are" in corpus.skipped[0].reason


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.csv", "docs.tsv"])
def test_a_table_that_links_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('text\n{"text": "a password"}\n')
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / "secret")

    with pytest.raises(CorpusError, match=rf"{name}: lies outside root="):
        read_corpus(folder)
    assert read_corpus(folder, root=tmp_path).nodes
    assert read_corpus(folder / name).nodes  # named by the user, not by the corpus


def test_a_line_that_is_too_long_costs_that_document_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_gap.readers.tables.MAX_BYTES", 100)
    path = jsonl(tmp_path, GOOD, {"text": "x" * 250}, {"id": "last", "text": "x"})

    corpus = read_corpus(path)

    assert corpus.document_ids == ["good", "last"]
    assert corpus.skipped == [Skipped("docs.jsonl:2", "is longer than 100 bytes")]


def test_a_cell_that_is_too_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_index_gap.readers.tables.MAX_BYTES", 100)
    (tmp_path / "a.csv").write_text("text\n" + "x" * 101)

    with pytest.raises(CorpusError, match=r"after line 1; field larger than field limit \(100\)"):
        read_corpus(tmp_path / "a.csv")


def test_brackets_in_a_cell_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,extra\na," + "[" * 30_000)

    (node,) = read_corpus(tmp_path / "a.csv").nodes

    assert node.metadata["extra"] == "[" * 30_000


# --- catalogues ----------------------------------------------------------------------------------

IMAGES = ("a.png", "b c.png", "media/m/c1.png")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name in IMAGES:
        write_image(tmp_path / name)
    return tmp_path


def table(folder: Path, text: str | bytes, name: str = "shop.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def images_of(corpus: Corpus, folder: Path) -> list[tuple[str, str]]:
    """The place of each image, and its caption."""
    return [
        (Path(str(node.image_path)).relative_to(folder.resolve()).as_posix(), node.text)
        for node in corpus.image_nodes
    ]


def test_rows_of_shopify_s_that_repeat_a_handle_are_one_document(shop: Path) -> None:
    rows = (
        "Handle,Title,Body (HTML),Variant SKU,Variant Price,Image Src,Image Alt Text\n"
        'shirt,Shirt,"<p>A <b>blue</b>\nshirt.</p>",S,19.90,a.png,front\n'
        "shirt,,,M,20.90,,\n"
        'shirt,,,,,b%20c.png,"back, folded"\n'
        "lamp,Lamp,,L,5.00,,\n"
    )

    corpus = read_corpus(table(shop, rows))

    assert corpus.document_ids == ["shirt", "lamp"]
    assert corpus.nodes[0].get_content() == "A blue shirt."
    assert corpus.nodes[0].metadata == {"title": "Shirt", "Variant SKU": "S", "Variant Price": 19.9}
    assert images_of(corpus, shop) == [("a.png", "front"), ("b c.png", "back, folded")]
    assert corpus.skipped == []
    summary = corpus.summary()
    assert "id: Handle; title: Title; text: Body (HTML); images: Image Src; captions: Im" in summary
    assert (
        "2, added to the same documents, with 1 images; their Variant SKU, Variant Price" in summary
    )


def test_a_row_that_repeats_an_id_and_a_text_with_another_image(shop: Path) -> None:
    corpus = read_corpus(table(shop, "id,text,image\n1,t,a.png\n1,t,b c.png\n1,t,a.png\n1,u,\n"))

    assert len(corpus.text_nodes) == 1
    assert [path for path, _ in images_of(corpus, shop)] == ["a.png", "b c.png"]
    assert len(corpus.skipped) == 2  # one row adds nothing, one contradicts


def test_a_guessed_id_that_comes_again_was_none(tmp_path: Path) -> None:
    corpus = read_corpus(table(tmp_path, "sku,review\nA,good\nA,bad\nB,fine\nA,so-so\n"))

    assert corpus.document_ids == ["A", "A~2", "B", "A~3"]
    assert "sku repeated: 2 documents, numbered like A~2" in corpus.summary()


def test_magento_s_columns_name_one_image_in_several_sizes(shop: Path) -> None:
    rows = (
        "sku\tname\tbase_image\tbase_image_label\tsmall_image\tadditional_images\tprice\tzip\n"
        '24-MB01\tBag\t/m/c1.png\tFront\t/m/c1.png\t"/m/c1.png,/m/x.png"\t12.50\t01234\n'
    )
    path = table(shop, rows, "export.tsv")

    corpus = read_corpus(path, root=shop / "media")

    assert images_of(corpus, shop) == [("media/m/c1.png", "Front")]
    assert corpus.text_nodes[0].metadata == {"title": "Bag", "price": 12.5, "zip": "01234"}
    assert [skip.source for skip in corpus.skipped] == ["export.tsv:2, image /m/x.png"]
    assert "images that two columns name: 2, read once" in corpus.summary()
    assert f"pass root={shop}/media (--root" in read_corpus(path).skipped[0].reason


def test_a_catalogue_as_european_shops_export_it(shop: Path) -> None:
    rows = (
        'ID;Name;Description;Images;Preis;Datum\r\n1;Stuhl;"Grün,\r\nHolz";a.png, b c.png;'
        '"1.299,00 €";31.12.2024\r\n2;Tisch;;;"5,50 €";1.2.2025\r\n'
    )

    corpus = read_corpus(table(shop, rows.encode("cp1252")))

    assert corpus.nodes[0].get_content() == "Grün,\r\nHolz"
    assert corpus.nodes[0].metadata == {
        "title": "Stuhl",
        "Preis": 1299.0,
        "Preis_currency": "€",
        "Datum": "2024-12-31",
    }
    assert len(corpus.image_nodes) == 2
    assert "Windows-1252" in corpus.summary()
    assert "cells between ';'" in corpus.summary()
    assert "typed: Preis: number in € (3,5 is 3.5); Datum: date (day, month, year)" in (
        corpus.summary()
    )


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_separator_is_found(separator: str, name: str, tmp_path: Path) -> None:
    rows = [["id", "title", "text"], ["1", "T", "a; b, c | d"], ["2", "U", "x"]]
    with (tmp_path / name).open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)

    corpus = read_corpus(tmp_path / name)

    assert corpus.document_ids == ["1", "2"]
    assert corpus.nodes[0].get_content() == "a; b, c | d"


@pytest.mark.parametrize("first", ["sep=;\n", ""])
def test_excel_s_line_that_names_the_separator(first: str, tmp_path: Path) -> None:
    corpus = read_corpus(table(tmp_path, f"{first}id;text\n1;one,two\n"))

    assert corpus.document_ids == ["1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_the_encoding_is_found(encoding: str, tmp_path: Path) -> None:
    corpus = read_corpus(table(tmp_path, "id,text\n1,Ä café.\n".encode(encoding)))

    assert corpus.nodes[0].get_content() == "Ä café."


def test_quotes_that_are_characters(tmp_path: Path) -> None:
    flickr = 'image_name| comment_number| comment\n1.jpg| 0| A 5" pipe\n1.jpg| 1|"Two" men .\n'

    corpus = read_corpus(table(tmp_path, flickr))

    assert [node.get_content() for node in corpus.text_nodes] == ['A 5" pipe', '"Two" men .']
    assert "quotes are ordinary characters" in corpus.summary()


def test_quotes_after_backslashes(tmp_path: Path) -> None:
    corpus = read_corpus(table(tmp_path, 'id,text\n1,"He said \\"no\\", twice"\n'))

    assert corpus.nodes[0].get_content() == 'He said "no", twice'


def test_the_row_numbers_of_pandas_are_left_out(tmp_path: Path) -> None:
    corpus = read_corpus(table(tmp_path, ",title,rating\n0,One,4\n1,Two,5\n"))

    assert corpus.nodes[0].metadata == {"title": "One", "rating": 4}
    assert corpus.skipped == []
    assert "the first column, row numbers without a name, is left out" in corpus.summary()


def test_one_cell_that_is_no_number_leaves_its_column_text(tmp_path: Path) -> None:
    corpus = read_corpus(table(tmp_path, "text,year,size\na,2005,1\nb,soon,2\n"))

    assert [node.metadata["year"] for node in corpus.nodes] == ["2005", "soon"]
    assert [node.metadata["size"] for node in corpus.nodes] == [1, 2]
    assert "year: text, since line 3 has 'soon', which is not a number" in corpus.summary()


def test_named_columns(shop: Path) -> None:
    path = table(shop, "nr,kind,label,pic,id\n7,x,a lamp,a.png,q\n")

    corpus = read_corpus(path, text_field=["label", "kind"], image_field="pic", id_field="nr")

    assert corpus.document_ids == ["7"]
    assert corpus.nodes[0].get_content() == "a lamp\n\nx"
    assert corpus.nodes[0].metadata == {"id_column": "q"}
    assert len(corpus.image_nodes) == 1
    assert read_corpus(path, text_field="label", id_field=["kind", "nr"]).document_ids == ["x/7"]


@pytest.mark.parametrize("name", ["shop.csv", "docs.jsonl"])
def test_a_name_used_as_the_id_is_still_searched(name: str, tmp_path: Path) -> None:
    rows = {"shop.csv": "name,description\nLamp,It glows.\n"}
    path = table(tmp_path, rows.get(name, '{"name": "Lamp", "description": "It glows."}'), name)

    corpus = read_corpus(path, id_field="name")

    assert corpus.document_ids == ["Lamp"]
    assert corpus.nodes[0].get_content(MetadataMode.EMBED) == "title: Lamp\n\nIt glows."
    assert "id: name; title: name; text: description" in corpus.summary()


@pytest.mark.parametrize("name", ["shop.csv", "docs.jsonl", "shop.json"])
def test_a_named_column_that_is_not_there(name: str, tmp_path: Path) -> None:
    rows = {"shop.csv": "sku,text\n1,a\n", "docs.jsonl": '{"sku": 1, "text": "a"}'}
    path = table(tmp_path, rows.get(name, '[{"sku": 1, "text": "a"}]'), name)

    with pytest.raises(
        CorpusError, match="text_field='txt' names no column; it has sku, text; did"
    ):
        read_corpus(path, text_field="txt")


@pytest.mark.parametrize("name", ["shop.csv", "docs.jsonl"])
def test_a_file_of_which_nothing_is_embedded_is_an_error(name: str, tmp_path: Path) -> None:
    row = "ean,price\n1,2\n" if name == "shop.csv" else '{"ean": 1, "price": 2}'

    with pytest.raises(CorpusError, match=r"it has ean, price; name them with text_field=.*--text"):
        read_corpus(table(tmp_path, row, name))


def test_columns_are_named_for_tables_only(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("A page.")

    with pytest.raises(CorpusError, match="name columns of a table, but this is a folder"):
        read_corpus(tmp_path, text_field="text")


def test_jsonl_with_a_shop_s_names(shop: Path) -> None:
    product = {
        "sku": "A",
        "name": "N",
        "features": ["f1", "f2"],
        "description": "<p>D</p>",
        "additional_images": "a.png,b c.png",
        "price": 5,
    }

    corpus = read_corpus(jsonl(shop, product))

    assert corpus.document_ids == ["A"]
    assert corpus.nodes[0].get_content() == "f1\nf2\n\nD"
    assert corpus.nodes[0].metadata == {"title": "N", "price": 5}
    assert len(corpus.image_nodes) == 2


@pytest.mark.parametrize("around", ["%s", '{"products": %s, "page": 1}'])
def test_a_json_file_of_a_list(around: str, shop: Path) -> None:
    products = '[{"id": 1, "title": "T", "images": [{"src": "a.png", "alt": "red"}]}, 5]'

    corpus = read_corpus(table(shop, around % products, "products.json"))

    assert corpus.document_ids == ["1"]
    assert images_of(corpus, shop) == [("a.png", "red")]
    assert corpus.skipped == [Skipped("products.json:2", "is a JSON int, not an object")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("5", "holds no list of objects"),
        ('{"a": [], "b": []}', "holds no list of objects"),
        ('{"id": 1}\n{"id": 2}', "is it JSONL"),
        ("[" * 100_000, "nested too deeply"),
        ("", "is not JSON; Expecting value at line 1"),
    ],
)
def test_other_json_files_are_refused(content: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=reason):
        read_corpus(table(tmp_path, content, "a.json"))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("metadata.csv", "file_name,text,label\na.png,a dog,3\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a dog", "label": 3}'),
    ],
)
def test_a_folder_of_images_with_their_metadata(name: str, rows: str, shop: Path) -> None:
    table(shop, rows, name)

    corpus = read_corpus(shop)

    assert images_of(corpus, shop) == [("a.png", "")]
    assert corpus.text_nodes[0].get_content() == "a dog"
    assert corpus.text_nodes[0].metadata == {"label": 3}


def test_a_metadata_file_of_something_else_does_not_hide_the_images(shop: Path) -> None:
    table(shop, "camera,lens\nx,y\n", "metadata.csv")

    assert len(read_corpus(shop).image_nodes) == 3


@pytest.mark.parametrize("case", ["semicolon", "comma", "shopify", "products"])
def test_the_shared_cases(case: str, gap_shared: Path) -> None:
    folder = gap_shared / "cases" / "csv-slash"
    root = folder / "media" if case == "products" else None

    corpus = read_corpus(folder / f"{case}.csv", root=root)

    assert corpus.document_ids == ["A"]
    images = {"semicolon": 0, "comma": 2, "shopify": 2, "products": 1}
    assert len(corpus.image_nodes) == images[case]
    assert corpus.skipped == []


def test_the_shared_reviews(gap_shared: Path) -> None:
    corpus = read_corpus(gap_shared / "cases" / "csv-review" / "reviews.csv")

    assert corpus.nodes[0].get_content().startswith("The zipper broke")
    assert "id: sku; title: title; text: review" in corpus.summary()
