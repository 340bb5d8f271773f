from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from transformers import AutoModel, PreTrainedModel

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models import ModelError
from llama_index_gap.models.checkpoints.checkpoint import (
    Checkpoint,
    LoadReport,
    find_checkpoint,
    list_some,
    load_report,
)


def test_finds_a_folder(tiny_clip: Path) -> None:
    checkpoint = find_checkpoint(str(tiny_clip))

    assert checkpoint.folder == tiny_clip.resolve()
    assert checkpoint.model_type == "clip"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "no such folder, and not a hub name"),
        ("a/b/c", "no such folder, and not a hub name"),
        ("", "is a folder|no such folder"),
        ("https://example.com/model", "no such folder, and not a hub name"),
    ],
)
def test_refuses_names(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "":
        assert find_checkpoint(name).folder == tmp_path.resolve()  # Path("") is the working folder
        return
    with pytest.raises(ModelError, match=message):
        find_checkpoint(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelError, match="is a file, but a model is a folder"):
        find_checkpoint(str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"is a file, .*; pass {tmp_path}$"):
        find_checkpoint(str(tmp_path / "config.json"))


def test_a_path_is_a_folder_and_nothing_else(tmp_path: Path, tiny_clip: Path) -> None:
    assert find_checkpoint(Path(tiny_clip)).name == str(tiny_clip)
    for path in (tmp_path / "none", Path("owner/model")):
        with pytest.raises(ModelError, match=rf"{path}: no such folder; pass a hub name as text"):
            find_checkpoint(path)


def test_deep_files_are_errors_that_name_them(tmp_path: Path) -> None:
    deep = "[" * 100_000
    (tmp_path / "config.json").write_text(f'{{"model_type": {deep}')
    (tmp_path / "README.md").write_text(f"---\nlicense: {deep}\n---\n")
    checkpoint = find_checkpoint(tmp_path)

    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        _ = checkpoint.config
    assert checkpoint.licence is None


def test_without_a_hub_it_says_so_in_one_line_and_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    start = time.monotonic()

    with pytest.raises(
        ModelError, match=r"owner/model: not a folder here.*cannot be reached"
    ) as caught:
        find_checkpoint("owner/model", LoadingSettings(cache_folder=tmp_path))

    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)
    assert "llama-gap demo" in str(caught.value)


def unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("[Errno -2] Name or service not known")


def test_without_a_hub_the_download_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    snapshot = tmp_path / "models--owner--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "clip"}')
    refs = tmp_path / "models--owner--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)

    checkpoint = find_checkpoint("owner/model", LoadingSettings(cache_folder=tmp_path))

    assert checkpoint.folder == snapshot
    assert checkpoint.model_type == "clip"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# Model", "mit"),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\n: [\n---\n", None),
        ("no front matter", None),
    ],
)
def test_the_licence_is_the_model_card_s(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)

    assert Checkpoint("x", tmp_path).licence == licence


@pytest.mark.parametrize("config", ["{", "[1]"])
def test_refuses_a_broken_config(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)

    with pytest.raises(ModelError, match=r"x: config\.json"):
        _ = Checkpoint("x", tmp_path).config


def test_a_report_lists_what_does_not_fit() -> None:
    report = LoadReport(missing={"a.pooler.dense", "b"}, unexpected={"c", "d.position_ids"})

    with pytest.raises(ModelError, match=r"missing: a\.pooler\.dense, b; unexpected: c$"):
        report.raise_if_incomplete("x")
    with pytest.raises(ModelError, match=r"missing: b; unexpected: c$"):
        report.raise_if_incomplete("x", pooler_unused=True)
    LoadReport(missing={"pooler.dense"}).raise_if_incomplete("x", pooler_unused=True)


def test_long_lists_are_cut() -> None:
    assert list_some({"b", "a"}) == "a, b"
    assert list_some({f"key{i:02}" for i in range(12)}, limit=2) == "key00, key01 and 10 more"


def test_other_threads_load_as_ever(tiny_clip: Path) -> None:
    original = PreTrainedModel.__dict__["from_pretrained"]
    loaded: list[object] = []
    with load_report() as report:
        thread = threading.Thread(
            target=lambda: loaded.append(
                AutoModel.from_pretrained(tiny_clip, output_loading_info=True)
            )
        )
        thread.start()
        thread.join()
        AutoModel.from_pretrained(tiny_clip)

    assert isinstance(loaded[0], tuple)
    assert (report.missing, report.unexpected) == (set(), set())
    assert PreTrainedModel.__dict__["from_pretrained"] is original


def test_the_patch_is_gone_after_an_error() -> None:
    original = PreTrainedModel.__dict__["from_pretrained"]

    with pytest.raises(KeyError), load_report():
        raise KeyError

    assert PreTrainedModel.__dict__["from_pretrained"] is original
