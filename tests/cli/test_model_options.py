"""Options for which models are loaded, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import gap, write_texts
from hub import Hub, use
from hub_layouts import CLIP, CONVERTED, make_repositories
from safetensors.torch import load_file
from tiny_vision_language import make_tiny_qwen2_vl

from llama_index_gap.demo.tiny import make_tiny_clip


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "docs.jsonl", 5)
    return tmp_path / "docs.jsonl"


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    folder = make_tiny_clip(tmp_path / "pickled")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    return folder


def test_pickles_are_read_of_the_models_that_are_named_and_of_no_others(
    corpus: Path, pickled: Path
) -> None:
    refused = gap("index", corpus, "--model", pickled)
    assert refused.code == 1
    assert "--allow-pickle" in refused.err
    assert gap("index", corpus, "--model", pickled, "--allow-pickle").code == 0
    stored = gap("search", "text")
    assert stored.code == 1
    assert "only pickled weights" in stored.err
    alone = gap("search", "text", "--allow-pickle")
    assert alone.code == 2
    assert "applies only to models that you name" in " ".join(alone.err.replace("│", "").split())
    found = gap("search", "text", "--model", pickled, "--allow-pickle", "--json")
    assert len(json.loads(found.out)["documents"]) == 5


def test_pooling_and_prompts_are_remembered(corpus: Path, tmp_path: Path) -> None:
    model = make_tiny_qwen2_vl(tmp_path / "vlm")
    refused = gap("index", corpus, "--model", model)
    assert (refused.code, "--pooling" in refused.err) == (1, True)
    options = ["--pooling", "last", "--query-prompt", "Find: "]
    assert gap("index", corpus, "--model", model, *options).code == 0
    settings = json.loads(gap("info", "--name", "gap", "--json").out)["models"]["text"]["settings"]
    assert (settings["pooling"], settings["query_prompt"]) == ("last", "Find: ")
    assert gap("search", "text").code == 0
    other = gap("search", "text", "--model", model, "--pooling", "mean")
    assert (other.code, "made with" in other.err) == (1, True)
    assert gap("search", "text", "--pooling", "mean").code == 2


def test_a_download_by_name_revision_and_cache(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub(make_repositories(tmp_path / "made")).serving() as hub:
        use(hub, monkeypatch, tmp_path / "unused")
        cache = tmp_path / "mine"
        given = ["--model", CLIP, "--revision", CONVERTED, "--cache-folder", cache]
        shown = gap("index", corpus, *given)
        assert shown.code == 0
        assert f"Downloading {CLIP}: " in shown.err
        hub.fetched.clear()
        # The index stores model and revision, but not the cache folder.
        assert gap("search", "text", "--cache-folder", cache, "--local-files-only").code == 0
        assert not hub.fetched
        assert not (tmp_path / "unused").exists()
        missing = gap("search", "text", "--reranker", "jina-m1")
        assert "did you mean 'jina-m0'?" in missing.err


def test_errors_of_settings_are_one_line(corpus: Path, tiny_clip: Path) -> None:
    shown = gap("index", corpus, "--model", tiny_clip, "--pooling", "mean")
    assert shown.code == 1
    assert shown.err.startswith(f"error: pooling='mean': {tiny_clip} states its own pooling")
    assert len(shown.err.splitlines()) == 1


def test_chunks(corpus: Path, tiny_clip: Path) -> None:
    corpus.write_text(json.dumps({"id": "a", "text": "a red bicycle " * 20}))
    cut = gap("index", corpus, "--model", tiny_clip)
    assert "1 texts were split into" in " ".join(cut.out.split())
    small = gap("index", corpus, "--model", tiny_clip, "--chunk-size", "9", "--db", "small.db")
    assert "were split into" not in small.out
