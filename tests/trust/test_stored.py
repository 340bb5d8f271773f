"""An index, a corpus and a checkpoint are data that somebody else may have made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import TextNode
from typer.testing import CliRunner

from llama_index_gap import DualEncoderEmbedding, DualIndex, MilvusStore, ModelError, StoreError
from llama_index_gap.cli.app import app
from llama_index_gap.index.dual_index import CALIBRATOR_PROPERTY
from llama_index_gap.index.models import MODELS_PROPERTY


@pytest.fixture
def uri(tiny_clip: Path, tmp_path: Path) -> str:
    """An index of one text."""
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)) as index:
        index.insert_nodes([TextNode(id_="a", text="a red bicycle")])
    return uri


def store_property(uri: str, name: str, value: str) -> None:
    for collection in ("gap_text", "gap_image"):
        with MilvusStore(uri=uri, collection_name=collection) as store:
            store.set_properties({name: value})


# --- the models that an index names -------------------------------------------------------------


@pytest.fixture
def hostile_model(tiny_clip: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint whose code writes a marker file when it runs, and that file."""
    folder, mark = tmp_path / "hostile", tmp_path / "it ran"
    shutil.copytree(tiny_clip, folder)
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "own.Own"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text("{}")
    return folder, mark


def test_the_hostile_model_runs_its_code_when_the_caller_allows_it(
    hostile_model: tuple[Path, Path],
) -> None:
    folder, mark = hostile_model

    with pytest.raises(ModelError):  # it is not a model
        DualEncoderEmbedding(model_name=folder, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize("role", ["text", "image", "image_query"])
def test_an_index_cannot_make_its_models_run_code(
    uri: str, tiny_clip: Path, hostile_model: tuple[Path, Path], role: str
) -> None:
    folder, mark = hostile_model
    harmless = {"class_name": "DualEncoderEmbedding", "model_name": str(tiny_clip)}
    hostile = harmless | {
        "model_name": str(folder),
        "trust_remote_code": True,
        "allow_pickle": True,
        "cache_folder": str(folder),
    }
    store_property(
        uri, MODELS_PROPERTY, json.dumps({"text": harmless, "image": None, role: hostile})
    )

    with pytest.raises(ModelError, match=r"third-party code|does not run by default"):
        DualIndex(uri)
    for command in (
        ["search", "a bicycle"],
        ["measure"],
        ["delete", "a"],
        ["info", "--name", "gap"],
        ["index", str(folder)],
    ):
        CliRunner().invoke(app, [*command, "--db", uri])
    assert not mark.exists()


@pytest.mark.parametrize(
    "stored",
    [
        '{"text": 5}',
        "[]",
        "no JSON",
        "{}",
        '{"text": null, "image": null}',
        '{"text": {"class_name": "DualEncoderEmbedding", "model_name": ["a"]}, "image": null}',
        '{"text": {"class_name": "DualEncoderEmbedding"}, "image": null}',
        '{"text": {"class_name": "A", "model_name": "b", "dimensions": true}, "image": null}',
        '{"text": {"class_name": "A", "model_name": "b", "aligner": "/dev/zero"}, "image": null}',
        "[" * 30_000,
        '{"text": ' * 10_000,
    ],
)
def test_what_names_no_models_is_an_error_of_the_store(uri: str, stored: str) -> None:
    store_property(uri, MODELS_PROPERTY, stored)

    with pytest.raises(StoreError, match="names no models"):
        DualIndex(uri)
    result = CliRunner().invoke(app, ["info", "--db", uri, "--name", "gap"])
    assert isinstance(result.exception, StoreError)


@pytest.mark.parametrize("stored", ["[]", '{"curves": 5}', "[" * 30_000, "no JSON"])
def test_a_damaged_calibrator_is_an_error_of_the_store(
    uri: str, tiny_clip: Path, stored: str
) -> None:
    store_property(uri, CALIBRATOR_PROPERTY, stored)

    with DualIndex(uri) as index, pytest.raises(StoreError, match="calibrator is damaged"):
        index.as_retriever(min_probability=0.5)


@pytest.mark.parametrize("content", ["no JSON", "[" * 30_000, "5", '{"metadata": 5}', None])
def test_a_damaged_row_is_named(uri: str, content: Any) -> None:
    with MilvusStore(uri=uri, collection_name="gap_text") as store:
        row = store._milvusclient.query("gap_text", filter='id == "a"', output_fields=["*"])[0]
        row |= {"_node_content": content, "_node_type": "TextNode"}
        store._milvusclient.insert("gap_text", [row])

        with pytest.raises(StoreError, match="row 'a' holds no LlamaIndex node"):
            store.get_nodes(["a"])


# --- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0.0, 1e-25, 1e30])
def test_a_vector_without_a_length_is_refused(tmp_path: Path, number: float) -> None:
    """Its direction would be NaN, and so would each score of a sample that holds it."""
    with MilvusStore(uri=str(tmp_path / "gap.db"), collection_name="nodes", dim=4) as store:
        with pytest.raises(ValueError, match="no direction; leave it out"):
            store.add([TextNode(id_="a", text="a", embedding=[number] * 4)])
        assert store.count() == 0
