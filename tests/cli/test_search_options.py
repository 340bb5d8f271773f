"""Filters, a single modality, and weights on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import gap
from PIL import Image

RECORDS = [
    {
        "id": "one",
        "text": "a ship",
        "year": 2019,
        "desk": "local",
        "zip": "00501",
        "day": "2019-05-01",
    },
    {
        "id": "two",
        "text": "a boat",
        "year": 2020,
        "desk": "local",
        "size": "95",
        "day": "2020-01-31",
    },
    {"id": "three", "text": "a raft", "year": 2021, "desk": "the sea", "size": "1000", "hot": True},
    {"id": "four", "text": "a car", "code": "2020", "hot": False, "tags": ["road", "2020"]},
    {"id": "five", "text": "a bus", "code": 2020, "desk": "2020 = good", "tags": ["road"]},
]


@pytest.fixture(scope="module")
def db(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five documents with metadata; one has an image."""
    folder = tmp_path_factory.mktemp("narrowed")
    Image.new("RGB", (40, 30), "red").save(folder / "ship.png")
    first = {**RECORDS[0], "image": "ship.png"}
    lines = "\n".join(map(json.dumps, [first, *RECORDS[1:]]))
    (folder / "docs.jsonl").write_text(lines, encoding="utf-8")
    shown = gap("index", folder / "docs.jsonl", "--db", folder / "gap.db", "--model", tiny_clip)
    assert shown.code == 0, shown.err
    return folder / "gap.db"


def found(db: Path, *options: object) -> set[str]:
    shown = gap("search", "ship", "--db", db, "--top-k", 9, "--json", *options)
    assert shown.code == 0, shown.err
    return {each["id"] for each in json.loads(shown.out)["documents"]}


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        (["desk=local"], {"one", "two"}),
        (["desk==local"], {"one", "two"}),
        (["desk = local "], {"one", "two"}),
        (["desk=the sea"], {"three"}),
        (["desk=local", "year=2020"], {"two"}),
        (['desk="2020 = good"'], {"five"}),
        (["desk!=local"], {"three", "four", "five"}),
        (["desk~oca"], {"one", "two"}),
        (["year=2020"], {"two"}),
        (["year=2020.0"], {"two"}),
        (["year>=2020"], {"two", "three"}),
        (["year>2020"], {"three"}),
        (["year<2020"], {"one"}),
        (["year<=2019.5"], {"one"}),
        (["year!=2020"], {"one", "three", "four", "five"}),
        (["code=2020"], {"four", "five"}),  # a text, and a number
        (['code="2020"'], {"four"}),
        (["code='2020'"], {"four"}),
        (["code!=2020"], {"one", "two", "three"}),
        (["zip=00501"], {"one"}),
        (["zip=501"], set()),
        (["hot=true"], {"three"}),
        (["hot=False"], {"four"}),
        (["day>=2020"], {"two"}),
        (["day<2019-12-31"], {"one"}),
        (["size=95"], {"two"}),
        (["tags=road"], {"four", "five"}),
        (["tags=2020"], {"four"}),
        (["tags!=2020"], {"one", "two", "three", "five"}),
        (["desk="], {"four"}),
        (["year!="], {"one", "two", "three"}),
        (["doc_id=two"], {"two"}),
        (["doc_id!=two"], {"one", "three", "four", "five"}),
    ],
)
def test_a_value_matches_as_what_the_index_stores(
    db: Path, conditions: Sequence[str], wanted: set[str]
) -> None:
    options = [part for condition in conditions for part in ("--filter", condition)]

    assert found(db, *options) == wanted


@pytest.mark.parametrize(
    ("condition", "code", "message"),
    [
        ("dsk=local", 1, "no document has the field .*desk.*did you mean .*desk"),
        ("Year!=2020", 1, "no document has the field .*did you mean .*year"),
        ("size>=100", 1, "size holds numbers as texts. .*'95'.*size=95"),
        ("year>spring", 1, "year holds numbers, such as .*'spring'.*give a number"),
        ("local", 2, "'local' is not a condition; write key=value"),
        ("=local", 2, "not a condition"),
        ("year>", 2, "'year>' has no value"),
        ("year=>2020", 2, "two signs"),
        ("embedding=1", 1, "vectors are searched, not filtered"),
        ("desk~50%", 1, "wildcards"),
    ],
)
def test_a_condition_that_means_nothing_says_what_would(
    db: Path, condition: str, code: int, message: str
) -> None:
    shown = gap("search", "ship", "--db", db, "--filter", condition)
    words = " ".join(shown.err.replace("│", " ").lower().split())

    assert (shown.code, shown.out) == (code, "")
    assert re.search(message.lower(), words), words


def test_the_documents_show_what_the_filters_matched(db: Path) -> None:
    filtered = gap("search", "ship", "--db", db, "--filter", "desk=local", "--filter", "year<2020")

    assert "desk: local, year: 2019" in filtered.out
    assert "desk:" not in gap("search", "ship", "--db", db).out


def test_what_no_document_has_is_said_with_what_they_have(db: Path) -> None:
    shown = gap("search", "ship", "--db", db, "--filter", "year=1999", "--filter", "desk=local")
    as_json = gap("search", "ship", "--db", db, "--filter", "year=1999", "--json")

    assert shown.code == as_json.code == 0
    words = " ".join(shown.out.split())
    assert words.startswith(
        "Nothing matches year=1999 and desk=local. Values of year in the index: 20"
    )
    assert '"the sea"' in words
    assert json.loads(as_json.out)["documents"] == []
    assert "Nothing matches year=1999" in as_json.err


@pytest.mark.parametrize(
    ("only", "wanted"), [("text", {"one", "two", "three", "four", "five"}), ("image", {"one"})]
)
def test_one_modality_alone(db: Path, only: str, wanted: set[str]) -> None:
    shown = gap("search", "ship", "--db", db, "--top-k", 9, "--only", only, "--json")
    documents = json.loads(shown.out)["documents"]

    assert {each["id"] for each in documents} == wanted
    assert {leg for each in documents for leg in each["legs"]} == {only}


def test_an_image_can_search_texts_alone(db: Path) -> None:
    image = db.parent / "ship.png"
    shown = gap("search", "--image", image, "--db", db, "--only", "text", "--json")
    (leg,) = {leg for each in json.loads(shown.out)["documents"] for leg in each["legs"]}

    assert leg == "text_by_image"


def test_an_index_without_images_says_so(big: Path) -> None:
    assert "the index has no images" in gap("search", "ship", "--db", big, "--only", "image").out


def test_weights_change_what_counts(demo: Path) -> None:
    def evidence(*options: str) -> list[tuple[float, float]]:
        shown = gap(*("search", "ship", "--db", demo / "gap.db", "--top-k", 12, "--json"), *options)
        legs = {each["id"]: each["legs"] for each in json.loads(shown.out)["documents"]}
        both = [each for _, each in sorted(legs.items()) if len(each) == 2]
        return [tuple(each[leg]["evidence"] for leg in ("text", "image")) for each in both]

    plain, weighed = evidence(), evidence("--weights", "image=2")
    # Doubling the odds adds log 2 to their logarithm.
    for (text, image), (same, more) in zip(plain, weighed, strict=True):
        assert text == pytest.approx(same)
        assert image + 0.6931 == pytest.approx(more, abs=1e-3)
    assert evidence("--weights", "text=1,image=1") == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "image=2", "--only", "text"], "--only text searches one modality; leave"),
        (["--weights", "image=2", "--reranker", "x"], "--reranker scores all hits"),
        (["--weights", "image"], "write text=1,image=2"),
        (["--weights", "image=much"], "write text=1,image=2"),
        (["--weights", ""], "write text=1,image=2"),
        (["--weights", "nan"], "write text=1,image=2"),
        (["--weights", "video=2"], "weights name 'video'; the modalities are text, image"),
        (["--weights", "image=-1"], "must be a number of at least 0"),
        (["--weights", "image=inf"], "must be a number of at least 0"),
        (["--weights", "image=1,image=2"], "weighs image twice"),
        (["--weights", "image=0"], "image=0 ignores image hits; .* use --only text"),
        (["--only", "video"], "'video'"),
    ],
)
def test_what_means_nothing_is_refused(db: Path, options: list[str], message: str) -> None:
    shown = gap("search", "ship", "--db", db, *options)
    words = " ".join(shown.err.replace("│", " ").split())

    assert shown.code == 2
    assert re.search(message, words), words


def test_an_image_alone_has_nothing_to_be_weighed(db: Path) -> None:
    shown = gap("search", "--image", db.parent / "ship.png", "--db", db, "--weights", "image=2")

    assert shown.code == 2
    assert "add a TEXT" in " ".join(shown.err.replace("│", " ").split())
