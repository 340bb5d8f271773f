from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import gap, llama_gap

from llama_index_gap.cli.app import app
from llama_index_gap.store.milvus import MilvusStore


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
    [[], *([each.callback.__name__] for each in app.registered_commands if each.callback)],
)
def test_help_fits_80_columns(command: list[str]) -> None:
    shown = gap(*command, "--help")

    assert shown.code == 0
    assert "Usage" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_help_waits_for_no_library() -> None:
    code = "import llama_index_gap.cli.app, sys; print({'llama_index', 'PIL'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "set()"


def test_version() -> None:
    assert llama_gap("--version").stdout.strip() == "0.2.0"


def test_warnings_are_one_line_each(tmp_path: Path, tiny_clip: Path) -> None:
    # With such a long title, no part of the text fits the model.
    titled = {"id": "a", "title": "word " * 100, "text": "word"}
    (tmp_path / "docs.jsonl").write_text(json.dumps(titled))

    shown = gap("index", tmp_path, "--db", tmp_path / "gap.db", "--model", tiny_clip)

    assert shown.err.startswith("warning: 1 of 1 texts are longer than")
    assert len(shown.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "x", "--db", "no.db"], 1, "error: no.db: no such database; create it with"),
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
        (["index", "{corpus}", "--model", "no/such/model"], 1, "not a hub name"),
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
    assert [path.name for path in here.iterdir()] == ["text.db"]  # no other database was created


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


def test_debug_shows_where_an_error_comes_from() -> None:
    shown = gap("--debug", "search", "ship", "--db", "no.db")

    assert shown.code == 1
    assert "Traceback" in shown.err
    assert "FileNotFoundError: no.db: no such database" in shown.err


def test_a_mistake_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("llama_index_gap.cli.options.open_index", broken)

    shown = gap("search", "ship", "--db", "http://localhost")

    assert shown.code == 1
    assert shown.err.startswith("error: KeyError: 'x' (a bug in llama-gap: please report it")
