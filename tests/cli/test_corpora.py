from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import gap, llama_gap, rows, write_texts
from demo_corpus import write_demo_corpus

from llama_index_gap import DualEncoderEmbedding


def test_read_reports_what_is_skipped(tmp_path: Path) -> None:
    shown = llama_gap("read", str(write_demo_corpus(tmp_path)))

    assert shown.returncode == 0
    assert "12 documents: 12 passages, 11 images (11 with a caption); 1 skipped" in shown.stdout
    assert "docs.jsonl:12" in shown.stdout
    assert "images/budget.png" in shown.stdout


def test_read_lists_the_first_or_all(tmp_path: Path) -> None:
    lines = ['{"id": "good", "text": "t"}', *["[nonsense] with [bold]markup"] * 12]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    some = llama_gap("read", str(tmp_path / "a.jsonl")).stdout
    everything = llama_gap("read", str(tmp_path / "a.jsonl"), "--all").stdout

    assert "12: a.jsonl:2; a.jsonl:3; a.jsonl:4 …" in " ".join(some.split())
    assert "… and 9 more: --all lists them" in some
    assert "a.jsonl:13" not in some
    assert "a.jsonl:13" in everything


def test_read_says_once_where_the_pictures_lie(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name in "abcde":
        (tmp_path / "pictures" / f"{name}.png").touch()
    rows = "".join(f"{name},{name}.png\n" for name in "abcde")
    (tmp_path / "shop.csv").write_text(f"name,image\n{rows}")

    words = gap("read", tmp_path / "shop.csv").out

    assert words.count("--root") == 1
    assert "5 × no such file" in words
    assert "… and 2 more: --all lists them" in words


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
    stored = json.loads(gap("info", "--name", "gap", "--db", db, "--json").out)

    names = {role: model["name"] for role, model in stored["models"].items()}
    assert names == {"text": str(tiny_siglip), "image": str(tiny_clip)}
    assert [held["dimension"] for held in stored["collections"].values()] == [32, 16]


def test_a_model_for_image_queries(
    own_db: Path, demo: Path, tiny_clip: Path, tiny_dinov2: Path
) -> None:
    image = demo / "corpus" / "images" / "ferry.png"
    options = ("--db", own_db, "--image-query-model", tiny_dinov2)

    shown = gap("index", demo / "corpus", *options)  # an existing index gains the collection

    assert (shown.code, shown.err) == (0, "")
    assert "0 images written, 11 for image queries, 34 unchanged" in " ".join(shown.out.split())
    info = gap("info", "--name", "gap", "--db", own_db)
    words = " ".join(info.out.split())
    assert max(map(len, info.out.splitlines())) <= 80
    assert "image queries 11 rows of 32 dimensions in gap_image_query" in words
    assert "model of image queries" in words
    models = json.loads(gap("info", "--name", "gap", "--db", own_db, "--json").out)["models"]
    names = {role: model["name"] for role, model in models.items()}
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
    documents = [{"id": "long", "text": "ä", "kind": "x"}]
    (tmp_path / "docs.jsonl").write_text("\n".join(map(json.dumps, documents)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_index_gap.store.rows.MOST_METADATA_BYTES", 10)
        shown = gap("index", tmp_path, "--db", tmp_path / "gap.db", "--model", tiny_clip)

    assert shown.code == 1
    assert "more than Milvus' 10" in " ".join(shown.out.split())
    assert f"error: {tmp_path}: nothing in it could be indexed\n" in shown.err


def test_columns_are_named_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("nr,label,kind\n7,a lamp,x\n")

    named = ("--text-field", "label", "--text-field", "kind", "--id-field", "nr")
    shown = gap("read", tmp_path / "a.csv", *named)
    wrong = gap("read", tmp_path / "a.csv", "--text-field", "labels")

    assert shown.code == 0
    assert "id: nr; text: label, kind" in " ".join(shown.out.split())
    assert wrong.code == 1
    assert "did you mean 'label'?" in " ".join(wrong.err.split())


def test_ray_needs_a_server(tmp_path: Path) -> None:
    shown = gap("index", tmp_path, "--db", tmp_path / "gap.db", "--ray", "auto", "--model", "clip")
    assert shown.code == 2
    assert "needs a Milvus server as --db" in " ".join(shown.err.replace("│", "").split())

    shown = gap("index", tmp_path, "--ray-actors", "2", "--model", "clip")
    assert shown.code == 2
    assert "needs --ray" in shown.err
