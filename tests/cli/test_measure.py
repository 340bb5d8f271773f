from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import gap


def write_queries(folder: Path) -> Path:
    queries = [
        {"query": "a ship in the harbour", "relevant": ["ferry"]},
        {"image": "corpus/images/tram.png", "relevant": ["tram"]},
    ]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, queries)))
    return folder / "q.jsonl"


def test_a_measurement_fits_80_columns_and_says_what_to_do(demo: Path) -> None:
    shown = gap("measure", "--db", demo / "gap.db")

    assert shown.code == 0, shown.err
    assert max(map(len, shown.out.splitlines())) <= 80
    assert shown.out.startswith("gap in ")
    assert "23 texts, 11 images" in " ".join(shown.out.split())
    assert "one index, as stored" in shown.out
    assert "1. There is little data" in shown.out
    assert "23 stored texts stood in for" in shown.out


def test_a_measurement_with_queries_as_json_and_as_a_page(demo: Path, tmp_path: Path) -> None:
    queries, page = write_queries(demo), tmp_path / "report.html"
    shown = gap("measure", "--db", demo / "gap.db", "--queries", queries, "--html", page, "--json")
    found = json.loads(shown.out)

    assert found["figures"]["before_after"]["labelled"] == ["text", "image"]
    assert found["figures"]["gap"]["measured"] == {
        **{"texts": 23, "images": 11, "queries": 0, "pairs": 11}
    }
    assert found["recommendations"][0]["title"] in page.read_text("utf-8")


def test_a_reranker_is_measured_too(demo: Path, reranker: Path) -> None:
    shown = gap(
        *("measure", "--db", demo / "gap.db", "--queries", write_queries(demo)),
        *("--reranker", reranker, "--json"),
    )

    scorers = json.loads(shown.out)["figures"]["scorers"]
    assert list(scorers) == ["embedder", "reranker"]
    assert scorers["reranker"]["counts"] == {"text": 12, "image": 11}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--db", "no.db"), "no.db: no such database"),
        (("--queries", "no.jsonl"), "no.jsonl: no such file"),
        (("--html", "nowhere/a.html"), "there is no folder nowhere"),
        (("--reranker", "nowhere/model"), "nowhere/model"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    demo: Path, arguments: tuple[str, str], message: str
) -> None:
    shown = gap("measure", "--db", demo / "gap.db", *arguments)

    assert shown.code == 1
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_an_empty_index_cannot_be_measured(own_db: Path) -> None:
    gap("delete", "--all", "--yes", "--db", own_db)

    shown = gap("measure", "--db", own_db)

    assert (shown.code, shown.out) == (1, "")
    assert shown.err == f"error: {own_db}: gap is empty; put a corpus into it first\n"
