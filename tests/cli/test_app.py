from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from demo_corpus import write_demo_corpus
from mcp import Client
from paths import PARITY
from PIL import Image
from rich.console import Console
from tiny_rerankers import make_tiny_qwen_reranker

import llama_index_gap
from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.cli import app as cli
from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.gap.calibrate import Curve, RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.search.retriever import DualIndexRetriever
from llama_index_gap.store.milvus import MilvusStore


def llama_gap(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the installed command as a person does, in a terminal of 80 columns."""
    command = Path(sys.executable).with_name("llama-gap")
    return subprocess.run(
        [command, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb"},
        check=False,
        **options,
    )


class Shown(NamedTuple):
    code: int
    out: str
    err: str


def gap(*arguments: object, answer: str = "") -> Shown:
    """Run the command in this process: shows what a process of its own would, in less time."""
    out, err = StringIO(), StringIO()
    code: Any = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "argv", ["llama-gap", *map(str, arguments)])
        patch.setattr(sys, "stdin", StringIO(answer))
        patch.setattr(cli, "_output", Console(highlight=False, width=80))
        patch.setattr(cli, "_errors", Console(stderr=True, highlight=False, width=80))
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        finally:
            logging.getLogger("llama_index_gap").handlers.clear()
    return Shown(int(code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def demo(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's corpus and an index of it."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo_corpus(folder / "corpus")
    shown = gap("index", folder / "corpus", "--db", folder / "gap.db", "--model", tiny_clip)
    assert shown.code == 0, shown.err
    assert "Read 12 documents: 12 passages, 11 images (11 with a caption)" in shown.out
    assert "23 texts and 11 images written, 0 unchanged, 0 skipped" in shown.out
    assert "images/budget.png" in shown.out
    return folder


@pytest.fixture
def own_db(demo: Path, tmp_path: Path) -> Path:
    """A copy of that index, to be changed."""
    shutil.copytree(demo / "gap.db", tmp_path / "gap.db")
    return tmp_path / "gap.db"


@pytest.fixture(scope="module")
def big(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with enough rows to draw a background from, and titles of somebody else's."""
    folder = tmp_path_factory.mktemp("big")
    write_texts(folder / "docs.jsonl", 60, title="\x1b[31mred [bold]\u202e")
    shown = gap("index", folder, "--db", folder / "gap.db", "--model", tiny_clip)
    assert shown.code == 0, shown.err
    return folder / "gap.db"


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_reranker(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def names(demo: Path, tiny_clip: Path, other_clip: Path) -> dict[str, Path]:
    """What commands in the tests of errors name."""
    return {
        "db": demo / "gap.db",
        "corpus": demo / "corpus",
        "model": tiny_clip,
        "other": other_clip,
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_texts(file: Path, count: int, title: str = "a title") -> None:
    documents = (
        {"id": f"doc-{i}", "title": f"{title} {i}", "text": f"text number {i}"}
        for i in range(count)
    )
    file.write_text("\n".join(map(json.dumps, documents)))


def rows(db: Path) -> dict[str, int]:
    with DualIndex(str(db)) as index:
        return dict(index.count())


def test_read_reports_what_is_skipped(tmp_path: Path) -> None:
    shown = llama_gap("read", str(write_demo_corpus(tmp_path)))

    assert shown.returncode == 0
    assert "12 documents: 12 passages, 11 images (11 with a caption); 1 skipped" in shown.stdout
    assert "docs.jsonl:12" in shown.stdout
    assert "images/budget.png" in shown.stdout


def test_read_lists_ten_or_all(tmp_path: Path) -> None:
    lines = ['{"id": "good", "text": "t"}', *["[nonsense] with [bold]markup"] * 12]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    some = llama_gap("read", str(tmp_path / "a.jsonl")).stdout
    everything = llama_gap("read", str(tmp_path / "a.jsonl"), "--all").stdout

    assert "… and 2 more: --all lists them" in some
    assert "a.jsonl:13" not in some
    assert "a.jsonl:13" in everything


def test_what_steers_a_terminal_is_shown_and_not_sent(tmp_path: Path) -> None:
    document = {"text": "t", "images": ["\x1b[31mred\x1b]0;title\x07\u202e.png"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(document))

    shown = llama_gap("read", str(tmp_path / "a.jsonl"))
    failed = llama_gap("read", "x\x1b[31m")

    assert "\\x1b[31mred" in shown.stdout
    assert not {"\x1b", "\x07", "\u202e"} & set(shown.stdout + failed.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["read", "/no/such/corpus"], "error: /no/such/corpus: no such file or folder"),
        (["read", "{here}"], "holds no docs.jsonl"),
    ],
)
def test_expected_errors_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    shown = llama_gap(*(argument.format(here=tmp_path) for argument in arguments))

    assert shown.returncode == 1
    assert message in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in ("read", "index", "search", "info", "delete", "evaluate", "demo"))],
)
def test_help_fits_80_columns(command: list[str]) -> None:
    shown = gap(*command, "--help")

    assert shown.code == 0
    assert "Usage" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_version() -> None:
    assert llama_gap("--version").stdout.strip() == "0.1.0"


# --- indexing -----------------------------------------------------------------------------------


def test_indexing_again_needs_no_model_and_writes_nothing(demo: Path) -> None:
    shown = gap("index", demo / "corpus", "--db", demo / "gap.db")

    assert shown.code == 0
    assert "0 texts and 0 images written, 34 unchanged" in shown.out


def test_indexing_a_changed_corpus_takes_away_what_is_gone(
    own_db: Path, tmp_path: Path, tiny_clip: Path
) -> None:
    write_demo_corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / "images" / "ferry.png").unlink()

    shown = gap("index", tmp_path / "corpus", "--db", own_db, "--model", tiny_clip, "--all")

    assert shown.code == 0
    assert "images/ferry.png" in shown.out
    assert rows(own_db) == {"text": 22, "image": 10}


def test_overwrite_starts_anew(own_db: Path, tmp_path: Path, tiny_clip: Path) -> None:
    write_texts(tmp_path / "docs.jsonl", 3)

    shown = gap("index", tmp_path, "--db", own_db, "--model", tiny_clip, "--overwrite")

    assert shown.code == 0
    assert rows(own_db) == {"text": 3, "image": 0}


def test_another_model_for_images(tmp_path: Path, tiny_clip: Path, tiny_siglip: Path) -> None:
    db = tmp_path / "gap.db"
    corpus = write_demo_corpus(tmp_path / "corpus")
    models = ("--model", tiny_siglip, "--image-model", tiny_clip)

    assert gap("index", corpus, "--db", db, *models).code == 0
    stored = json.loads(gap("info", "--db", db, "--json").out)

    names = {side: model["name"] for side, model in stored["models"].items()}
    assert names == {"text": str(tiny_siglip), "image": str(tiny_clip)}
    assert [side["dimension"] for side in stored["collections"].values()] == [32, 16]


def test_a_model_for_image_queries(
    own_db: Path, demo: Path, tiny_clip: Path, tiny_dinov2: Path
) -> None:
    image = demo / "corpus" / "images" / "ferry.png"
    options = ("--db", own_db, "--image-query-model", tiny_dinov2)

    shown = gap("index", demo / "corpus", *options)  # an index that is there gains it

    assert (shown.code, shown.err) == (0, "")
    assert "0 images written, 11 for image queries, 34 unchanged" in " ".join(shown.out.split())
    info = gap("info", "--db", own_db)
    words = " ".join(info.out.split())
    assert max(map(len, info.out.splitlines())) <= 80
    assert "image queries 11 rows of 32 numbers in gap_image_query" in words
    assert "model of image queries" in words
    models = json.loads(gap("info", "--db", own_db, "--json").out)["models"]
    names = {side: model["name"] for side, model in models.items()}
    assert names == {"text": str(tiny_clip), "image_query": str(tiny_dinov2)}
    search = ("search", "--image", image, "--db", own_db, "--top-k", 12, "--json")
    found = json.loads(gap(*search).out)
    legs = {document["id"]: document["legs"] for document in found["documents"]}
    assert legs["ferry"]["image_by_image"]["cosine"] == pytest.approx(1, abs=1e-3)
    assert rows(own_db)["image_query"] == 11


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_what_the_next_run_completes(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "docs.jsonl", 300)
    command = ("index", tmp_path, "--db", tmp_path / "gap.db", "--model", tiny_clip)
    embed, calls = DualEncoderEmbedding.get_text_embedding_batch, []

    def interrupted(self: DualEncoderEmbedding, texts: list[str], **options: Any) -> Any:
        calls.append(len(texts))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return embed(self, texts, **options)

    with monkeypatch.context() as patch:
        patch.setattr(DualEncoderEmbedding, "get_text_embedding_batch", interrupted)
        stopped = gap(*command)
    again = gap(*command)

    assert stopped.code == 130
    assert "run the same command again to complete it" in stopped.err
    assert len(stopped.err.splitlines()) == 1
    assert again.code == 0
    assert f"{300 - calls[0]} texts and 0 images written, {calls[0]} unchanged" in again.out
    assert rows(tmp_path / "gap.db") == {"text": 300, "image": 0}


def test_nothing_that_could_be_indexed_is_an_error(tmp_path: Path, tiny_clip: Path) -> None:
    documents = [{"id": "long", "text": "ä"}]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, documents)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_index_gap.store.rows._MOST_DYNAMIC_BYTES", 10)
        shown = gap("index", tmp_path, "--db", tmp_path / "gap.db", "--model", tiny_clip)

    assert shown.code == 1
    assert "more than Milvus' 10" in " ".join(shown.out.split())
    assert f"error: {tmp_path}: nothing of it could be indexed\n" in shown.err


def test_warnings_are_one_line_each(tmp_path: Path, tiny_clip: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(json.dumps({"id": "a", "text": "word " * 100}))

    shown = gap("index", tmp_path, "--db", tmp_path / "gap.db", "--model", tiny_clip)

    assert shown.err.startswith("warning: 1 of 1 texts are longer than")
    assert len(shown.err.splitlines()) == 1


# --- searching ----------------------------------------------------------------------------------


def test_a_search_is_a_table_of_80_columns(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)

    shown = gap("search", "a white ship", "--top-k", 12)

    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert shown.out.split()[:5] == ["#", "document", "score", "text", "image"]
    for words in ("12 Council passes the budget", "A ferry for the old harbour"):
        assert words in " ".join(shown.out.split())
    assert "corpus/images/ferry.png" in [line.strip() for line in shown.out.splitlines()]


def test_top_k_counts_documents(demo: Path) -> None:
    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 2, "--json")

    assert [document["rank"] for document in json.loads(shown.out)["documents"]] == [1, 2]


def test_json_holds_what_scripts_need(big: Path) -> None:
    shown = gap("search", "text number 7", "--db", big, "--json")
    found = json.loads(shown.out)

    assert found["query"] == {"text": "text number 7", "image": None}
    assert found["note"] is None
    first = found["documents"][0]
    assert first["score"] == pytest.approx(first["legs"]["text"]["evidence"])
    assert first["text"]["node_id"] == f"{first['id']}#text-0"
    assert first["image"] is None
    assert first["metadata"]["title"] == first["title"]


def test_what_one_side_did_not_find_is_shown_all_the_same(demo: Path) -> None:
    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 12, "--json")
    documents = json.loads(shown.out)["documents"]

    assert [len(document["legs"]) for document in documents].count(2) == 11
    assert sum(document["image"] is not None for document in documents) == 11
    evidence = [document["legs"]["text"]["evidence"] for document in documents]
    assert None in evidence  # a text that was not among the best


def test_an_image_finds_itself(demo: Path) -> None:
    image = demo / "corpus" / "images" / "ferry.png"

    shown = gap("search", "--image", image, "--db", demo / "gap.db", "--top-k", 12, "--json")
    documents = json.loads(shown.out)["documents"]
    (ferry,) = (document for document in documents if document["id"] == "ferry")

    assert ferry["legs"]["image_by_image"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert ferry["image"]["path"] == str(image)


def test_explain_shows_each_leg_and_the_reason(big: Path, demo: Path) -> None:
    by_evidence = gap("search", "text number 7", "--db", big, "--explain", "--top-k", 2)
    image = demo / "corpus" / "images" / "ferry.png"
    by_rank = gap("search", "ship", "--image", image, "--db", demo / "gap.db", "--explain")

    words = " ".join(by_evidence.out.split())
    assert "leg cosine above usual evidence text 0." in words
    assert ": all of it from text" in words
    assert "between them lies the modality gap" in words
    words = " ".join(by_rank.out.split())
    assert "Ranked by place" in words
    assert "no background of at least 50 scores" in words
    assert all(leg in words for leg in ("image by image", "text by image"))
    assert "σ" not in words
    for shown in (by_evidence, by_rank):
        assert max(map(len, shown.out.splitlines())) <= 80


def test_a_reranker_has_the_last_word(
    demo: Path, reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reranker.parent)
    search = ("search", "a white ship", "--db", demo / "gap.db", "--reranker", reranker.name)

    documents = json.loads(gap(*search, "--top-k", 12, "--json").out)["documents"]
    plain = gap(*search, "--top-k", 2)
    explained = gap(*search, "--top-k", 2, "--explain")

    assert [d["score"] for d in documents] == sorted((d["score"] for d in documents), reverse=True)
    first = documents[0]
    assert first["score"] == pytest.approx(np.mean(list(first["reranked"].values())))
    assert first["fused"] > 0
    for shown in (plain, explained):
        assert max(map(len, shown.out.splitlines())) <= 80
    assert f"score = mean of text and image, as {reranker.name} rates" in plain.out
    assert f"score {first['score']:.3f}: text" in explained.out
    assert f"{reranker.name} has read what was found" in explained.out
    assert f"found with {first['fused']:.4f}" in explained.out


def test_what_is_too_improbable_is_left_out(own_db: Path) -> None:
    (without,) = gap("search", "ship", "--db", own_db, "--min-probability", 0.5).err.splitlines()
    even = Curve(scores=(0.0,), log_odds=(0.0,), precision=(0.5,), relevant=1, irrelevant=1)
    curves = {"text_to_text": even, "text_to_image": even}
    with DualIndex(str(own_db)) as index:
        index.save_calibrator(RelevanceCalibrator(curves, "isotonic", index.models()))

    some = gap("search", "ship", "--db", own_db, "--min-probability", 0.5, "--json")
    none = gap("search", "ship", "--db", own_db, "--min-probability", 1)

    assert "needs a calibrator" in without
    assert json.loads(some.out)["documents"]
    assert none.out == "Nothing was found with a probability of 1.0 or more.\n"


def test_explain_says_where_raw_scores_would_put_a_document(demo: Path) -> None:
    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 12, "--explain")
    found = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 12, "--json")

    documents = json.loads(found.out)["documents"]
    highest = [max(leg["cosine"] for leg in d["legs"].values()) for d in documents]
    places = [1 + sorted(highest, reverse=True).index(score) for score in highest]
    moved = [place for rank, place in enumerate(places, 1) if place != rank]
    said = [line.split()[-3] for line in shown.out.splitlines() if "by its highest" in line]
    assert moved
    assert said == [str(place) for place in moved]


def test_html_is_written(demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"

    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 1, "--html", page)

    assert shown.code == 0
    assert "<article>" in page.read_text("utf-8")
    assert "data:image/jpeg;base64," in page.read_text("utf-8")


def test_titles_cannot_steer_the_terminal(big: Path) -> None:
    for form in ([], ["--explain"], ["--json"]):
        shown = gap("search", "text", "--db", big, *form)
        assert shown.code == 0
        assert not {"\x1b", "\u202e"} & set(shown.out + shown.err)
        assert "[31mred [bold]" in shown.out


# --- measuring ----------------------------------------------------------------------------------


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
    assert "1. The data is thin" in shown.out
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
        (("--queries", "no.jsonl"), "no.jsonl: No such file"),
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


# --- looking after an index ---------------------------------------------------------------------


def test_info_loads_no_model(demo: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_gap.index.models.DualEncoderEmbedding", None)

    shown = gap("info", "--db", f"{demo / 'gap.db'}/")  # as a shell completes a folder's name
    facts = json.loads(gap("info", "--db", demo / "gap.db", "--json").out)

    assert shown.code == 0
    assert "23 rows of 16 numbers in gap_text" in shown.out
    assert "11 rows of 16 numbers in gap_image" in shown.out
    assert facts["database"] == str(demo / "gap.db")
    assert facts["collections"]["image"] == {"name": "gap_image", "rows": 11, "dimension": 16}
    assert [(side, model["name"]) for side, model in facts["models"].items()] == [
        ("text", str(tiny_clip))
    ]
    assert facts["images"] == "their own files"


def test_licences_are_known_without_loading(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")

    assert cli._licence(str(tmp_path)) == "cc0-1.0"
    assert cli._licence("jinaai/jina-clip-v2") == cli._licence("jina") == "CC BY-NC 4.0"
    assert cli._licence("no/such") is None


def test_delete_by_id(own_db: Path) -> None:
    shown = gap("delete", "ferry", "nope", "--db", own_db)

    assert (shown.code, shown.out) == (1, "3 rows deleted\n")
    assert shown.err == "error: no such document: nope\n"
    assert rows(own_db) == {"text": 21, "image": 10}


def test_delete_all_asks(own_db: Path) -> None:
    refused = gap("delete", "--all", "--db", own_db, answer="n\n")
    assert refused.code == 1
    assert "Delete all 34 rows of gap" in refused.err
    assert rows(own_db) == {"text": 23, "image": 11}

    assert gap("delete", "--all", "--db", own_db, "--yes").out == "34 rows deleted\n"
    assert rows(own_db) == {"text": 0, "image": 0}
    assert "Nothing was found" in gap("search", "ship", "--db", own_db).out


# --- experiments --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def edis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty headlines, each with a picture of one colour, and two queries, in EDIS's files."""
    folder = tmp_path_factory.mktemp("evaluate") / "edis"
    folder.mkdir()
    pool = []
    for number in range(60):
        Image.new("RGB", (32, 32), (4 * number, 0, 90)).save(folder / f"{number}.png")
        headline = f"headline number {number}"
        pool.append({"id": f"d{number}", "image": f"{number}.png", "headline": headline})
    (folder / "EDIS_candidates_1m.json").write_text(json.dumps(pool))
    candidates = [{"candidate_id": each["id"], "score": 3} for each in pool[:20]]
    queries = [{"query": query, "candidates": candidates} for query in ("number 7", "a colour")]
    (folder / "EDIS_test.json").write_text(json.dumps(queries))
    return folder


@pytest.mark.usefixtures("ctrl_c")
def test_evaluate_prints_the_table_and_goes_on_where_it_stopped(
    edis: Path, tiny_clip: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, asked = DualIndexRetriever.search_legs, []

    def interrupted(self: DualIndexRetriever, query: Any) -> Any:
        asked.append(query.query_str)
        if len(asked) == 2:
            signal.raise_signal(signal.SIGINT)
        return search(self, query)

    monkeypatch.setattr(DualIndexRetriever, "search_legs", interrupted)
    stopped = gap("evaluate", edis, "--model", tiny_clip)
    files = {"--html": here / "out.html", "--runs": here / "runs"}
    shown = gap("evaluate", edis, *(part for pair in files.items() for part in pair))

    assert stopped.code == 130
    assert "run the same command again to complete it" in stopped.err
    assert shown.code == 0, shown.err
    assert asked == ["number 7", "a colour", "a colour"]
    assert max(map(len, shown.out.splitlines())) <= 80
    words = " ".join(shown.out.split())
    assert words.startswith("edis: 60 documents, 2 queries DualEncoderEmbedding('")
    assert "100% are texts, where 50% of all rows are." in words
    assert "<h1>What each method finds: <bdi>edis</bdi></h1>" in files["--html"].read_text("utf-8")
    assert len(list(files["--runs"].iterdir())) == 1 + 6
    (results,) = here.glob("edis-*.jsonl")
    assert len(results.read_text().splitlines()) == 1 + 2


def test_evaluate_gives_json_and_asks_so_many(edis: Path, tiny_clip: Path, tmp_path: Path) -> None:
    command = ("evaluate", edis, "--db", tmp_path / "e.db", "--model", tiny_clip, "--limit", 1)

    found = json.loads(gap(*command, "--json").out)

    assert found["queries"] == 1
    assert "1 of 2 queries, spread evenly" in found["notes"]
    assert [method["name"] for method in found["methods"]][-1] == "16+16, default"
    assert 0 <= found["methods"][-1]["metrics"]["ndcg@10"]["mean"] <= 1
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".db", ".jsonl"]


def test_evaluate_reranks(edis: Path, tiny_clip: Path, tmp_path: Path) -> None:
    """With a random-weight jina-reranker-m0, which reads texts and images."""
    reranker = PARITY / "jina_m0_tiny"
    command = ("evaluate", edis, "--db", tmp_path / "e.db", "--model", tiny_clip, "--limit", 1)

    shown = gap(*command, "--reranker", reranker)

    assert shown.code == 0, shown.err
    assert f"('{tiny_clip.name}'), reranked by jina_m0_tiny\n" in shown.out
    assert shown.out.index("16+16, default") < shown.out.index("16+16, mean of both")


def test_the_demo_measures_and_shows(tmp_path: Path) -> None:
    command = ("demo", "--folder", tmp_path, "--articles", 100, "--queries", 4)

    shown, again = gap(*command), gap(*command)

    assert (shown.code, again.code) == (0, 0), shown.err + again.err
    words = " ".join(shown.out.split())
    assert "trained on such newsrooms only" in words
    assert "100 texts and 100 images written" in words
    assert "newsroom: 100 documents, 12 queries" in words
    assert "✓ right" in words
    assert max(map(len, shown.out.splitlines()[:-1])) <= 80
    assert "data:image/jpeg;base64," in (tmp_path / "newsroom.html").read_text("utf-8")
    assert "0 texts and 0 images written, 200 unchanged" in " ".join(again.out.split())
    smaller = gap("demo", "--folder", tmp_path, "--articles", 101)
    assert "is not this newsroom's; choose another folder" in smaller.err


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "x", "--db", "no.db"], 1, "error: no.db: no such database; make one with"),
        (["info", "--db", "no.db"], 1, "error: no.db: no such database"),
        (["delete", "x", "--db", "no.db"], 1, "error: no.db: no such database"),
        (["search", "x", "--db", "no"], 2, "'no' is neither a file that ends in .db"),
        (["search"], 2, "pass a text, or an image with --image"),
        (["search", "x", "--image", "no.png"], 1, "error: no.png: no such file"),
        (["search", "x", "--html", "no/a.html"], 1, "error: no/a.html: there is no folder no"),
        (["search", "x", "--db", "text.db"], 1, "error: text.db: cannot be opened"),
        (["search", "x", "--db", "{db}", "--name", "other"], 1, "'other_text'"),
        (["index", "no", "--model", "{model}"], 1, "error: no: no such file or folder"),
        (["index", "."], 2, "a new index in gap.db needs a model"),
        (["index", ".", "--image-model", "m"], 2, "needs --model too"),
        (["index", "{corpus}", "--model", "no/such/model"], 1, "no hub name"),
        (["index", "{corpus}", "--model", "{model}", "--db", "no/a.db"], 1, "no folder no"),
        (["index", "{corpus}", "--model", "{other}", "--db", "{db}"], 1, "made with"),
        (["delete"], 2, "pass ids of documents, or --all"),
        (["delete", "x", "--all"], 2, "pass ids of documents, or --all"),
        (["evaluate", "no", "--model", "{model}"], 1, "error: no: no such folder"),
        (["evaluate", "{corpus}", "--model", "{model}"], 1, "neither EDIS_test.json nor queries"),
        (["evaluate", "{corpus}"], 2, "a new index in corpus.db needs a model"),
        (["evaluate", "{corpus}", "--image-model", "m"], 2, "needs --model too"),
        (
            ["evaluate", "{corpus}", "--html", "no/a.html"],
            1,
            "error: no/a.html: there is no folder",
        ),
    ],
)
def test_a_clear_line_for_each_mistake(
    arguments: list[str],
    code: int,
    message: str,
    names: dict[str, Path],
    here: Path,
) -> None:
    (here / "text.db").write_text("no database")

    shown = gap(*(argument.format(**names) for argument in arguments))

    assert shown.code == code
    assert message in " ".join(shown.err.replace("│", " ").split())
    assert code == 2 or len(shown.err.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["text.db"]  # nothing was made


def test_an_unknown_model_is_one_line(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    db = tmp_path / "gap.db"

    shown = gap("index", demo / "corpus", "--db", db, "--model", "nobody/nothing")

    assert shown.code == 1
    assert shown.err.startswith("error: nobody/nothing: not a folder here")
    assert len(shown.err.splitlines()) == 1
    assert not db.exists()


def test_a_database_in_use_is_one_line(own_db: Path) -> None:
    with MilvusStore(uri=own_db, collection_name="gap_text"):
        shown = llama_gap("search", "ship", "--db", str(own_db))

    assert shown.returncode == 1
    assert shown.stderr.startswith(f"error: {own_db}: is open in another process")
    assert len(shown.stderr.splitlines()) == 1


def test_a_server_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_index_gap.store.connection._CONNECT_SECONDS", 0.5)

    shown = gap("search", "ship", "--db", "http://127.0.0.1:1")

    assert shown.code == 1
    assert shown.err.startswith("error: http://127.0.0.1:1: ")
    assert "is the server running" in shown.err
    assert len(shown.err.splitlines()) == 1


def test_passwords_go_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    def refuse(*_: object, **settings: Any) -> None:
        opened.append(settings)
        raise ValueError("enough")

    monkeypatch.setattr(llama_index_gap, "DualIndex", refuse)
    monkeypatch.setenv("MILVUS_TOKEN", "root:secret")

    in_the_url = gap("search", "ship", "--db", "http://root:secret@localhost:19530")
    assert in_the_url.code == 2
    assert "MILVUS_TOKEN" in in_the_url.err
    assert "secret" not in in_the_url.err
    assert gap("search", "ship", "--db", "http://localhost:19530").err == "error: enough\n"
    assert opened == [{"token": "root:secret"}]


def test_debug_shows_where_an_error_comes_from() -> None:
    with pytest.raises(FileNotFoundError, match="no such database"):
        gap("--debug", "search", "ship", "--db", "no.db")


def test_a_mistake_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(cli, "_open_index", broken)

    shown = gap("search", "ship", "--db", "http://localhost")

    assert shown.code == 1
    assert shown.err.startswith("error: KeyError: 'x' (a mistake in llama-gap: 'llama-gap --debug")


# --- serving ------------------------------------------------------------------------------------


def test_mcp_serves_an_index_with_its_reranker(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("llama_index_gap.agents.mcp_server.serve", served.append)
    reranker = make_tiny_qwen_reranker(tmp_path / "reranker")

    shown = gap("mcp", "--db", demo / "gap.db", "--reranker", reranker, "--about", "Some news.")

    async def ask() -> Any:
        async with Client(served[0]) as client:
            search, _ = (await client.list_tools()).tools
            return search, await client.call_tool("search", {"query": "ferry", "top_k": 7})

    search, found = asyncio.run(ask())
    assert shown == (0, "", "")
    assert search.description.startswith("Some news. Search documents")
    texts = [content.text for content in found.content if content.type == "text"]
    assert texts[0].startswith("7 documents, best first.")
    assert "rerank_text" in texts[1]
    assert [content.type for content in found.content].count("image") == 5


def test_mcp_says_at_once_what_is_wrong(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such database" in gap("mcp", "--db", tmp_path / "no.db").err
    folder = gap("mcp", "--db", demo / "gap.db", "--image-root", tmp_path / "no")
    assert folder == (1, "", f"error: {tmp_path / 'no'}: no such folder\n")

    monkeypatch.delitem(sys.modules, "llama_index_gap.agents.mcp_server")
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    missing = gap("mcp", "--db", demo / "gap.db")
    assert missing.code == 1
    assert "pip install 'llama-index-gap[mcp]'" in missing.err


# --- a real corpus ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_blog_from_the_shell(gap_shared: Path, tiny_clip: Path, tmp_path: Path) -> None:
    corpus = gap_shared / "data" / "18f_blog"

    indexed = llama_gap("index", str(corpus), "--model", str(tiny_clip), cwd=tmp_path)
    found = llama_gap("search", "open source", "--html", "out.html", "--json", cwd=tmp_path)

    assert indexed.returncode == 0, indexed.stderr
    assert "508 documents" in indexed.stdout
    assert "390 images written" in indexed.stdout
    assert len(json.loads(found.stdout)["documents"]) == 5
    assert (tmp_path / "out.html").read_text("utf-8").count("<article>") == 5
