"""Indexes and models for the commands in these tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import gap, write_texts
from demo_corpus import write_demo_corpus
from tiny_rerankers import make_tiny_qwen_reranker

from llama_index_gap.demo.tiny import make_tiny_clip


@pytest.fixture(scope="session")
def demo(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's corpus and its index."""
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
    """A copy of that index that a test may change."""
    shutil.copytree(demo / "gap.db", tmp_path / "gap.db")
    return tmp_path / "gap.db"


@pytest.fixture(scope="session")
def big(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with enough rows for a background, and with untrusted titles."""
    folder = tmp_path_factory.mktemp("big")
    write_texts(folder / "docs.jsonl", 60, title="\x1b[31mred [bold]\u202e")
    shown = gap("index", folder, "--db", folder / "gap.db", "--model", tiny_clip)
    assert shown.code == 0, shown.err
    return folder / "gap.db"


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_clip(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_reranker(tmp_path_factory.mktemp("judge"))


@pytest.fixture
def names(demo: Path, tiny_clip: Path, other_clip: Path) -> dict[str, Path]:
    """The values for placeholders in the tests of errors."""
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
