"""The files of a repository that make the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.layout import needed_files, refuse_other_libraries


def needed(folder: Path, files: list[str], **allowed: bool) -> list[str]:
    return needed_files(files, Checkpoint("x", folder), LoadingSettings(**allowed))


def modules(folder: Path, *paths: str, kind: str = "sentence_transformers.models.Any") -> None:
    listed = [{"idx": 0, "name": "0", "path": path, "type": kind} for path in paths]
    (folder / "modules.json").write_text(json.dumps(listed))


def test_folders_of_modules(tmp_path: Path) -> None:
    modules(tmp_path, "", "1_Pooling", "2_Dense")
    files = ["modules.json", "config.json", "model.safetensors", "README.md"]
    inner = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    others = ["images/a.json", "onnx/model.onnx", "onnx/config.json", "2_Dense/pytorch_model.bin"]
    others += ["checkpoint-10/model.safetensors", ".git/config.json", "eval/results.txt"]
    assert needed(tmp_path, [*files, *inner, *others]) == sorted([*files, *inner])


def test_a_small_module_in_pickle_format(tmp_path: Path) -> None:
    modules(tmp_path, "", "2_Dense")
    files = ["modules.json", "model.safetensors", "2_Dense/pytorch_model.bin"]
    with pytest.raises(ModelError, match=r"2_Dense/pytorch_model\.bin holds pickled weights"):
        needed(tmp_path, files)
    assert needed(tmp_path, files, allow_pickle=True) == sorted(files)


def test_a_router_keeps_its_modules_below(tmp_path: Path) -> None:
    modules(tmp_path, "")
    files = ["modules.json", "router_config.json", "query_0_Static/model.safetensors"]
    assert needed(tmp_path, files) == sorted(files)


@pytest.mark.parametrize(
    ("files", "shard"),
    [
        (["model.safetensors.index.json", "model-1.safetensors", "pytorch_model.bin"], "model-1"),
        (["model.safetensors", "model.safetensors.index.json", "model-1.safetensors"], None),
        (["model.safetensors", "model.fp16.safetensors", "consolidated.safetensors"], None),
        (["model.safetensors", "open_clip_model.safetensors", "rust_model.ot"], None),
    ],
)
def test_one_of_several_formats(tmp_path: Path, files: list[str], shard: str | None) -> None:
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    kept = [f"{shard}.safetensors", "model.safetensors.index.json"] if shard else None
    assert needed(tmp_path, files) == (kept or ["model.safetensors"])


def test_pickles_where_they_are_allowed(tmp_path: Path) -> None:
    files = ["config.json", "pytorch_model.bin", "training_args.bin", "optimizer.pt"]
    assert needed(tmp_path, files, allow_pickle=True) == ["config.json", "pytorch_model.bin"]
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    shards = ["pytorch_model-1.bin", "pytorch_model.bin.index.json"]
    assert needed(tmp_path, shards, allow_pickle=True) == shards
    with pytest.raises(ModelError, match="only pickled weights"):
        needed(tmp_path, shards)


def test_code_is_taken_only_where_it_may_run(tmp_path: Path) -> None:
    modules(tmp_path, "", kind="custom_st.Transformer")
    files = ["modules.json", "custom_st.py", "model.safetensors", "adapters/adapter.safetensors"]
    with pytest.raises(
        ModelError, match=r"modules\.json names custom_st\.Transformer, the model's own code"
    ):
        needed(tmp_path, files)
    assert needed(tmp_path, files, trust_remote_code=True) == sorted(files)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.ckpt"], r"only pickled weights \(model\.ckpt\)"),
        (
            ["weights.safetensors"],
            r"holds no model\.safetensors, and transformers does not read weights\.safetensors",
        ),
        (["tf_model.h5"], r"only for TensorFlow"),
        (["flax_model.msgpack", "tf_model.h5"], r"only for TensorFlow and Flax"),
        (["openvino/openvino_model.xml", "openvino/openvino_model.bin"], r"only for OpenVINO"),
        (["config.json"], r"holds no weights"),
    ],
)
def test_what_is_there_instead(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        needed(tmp_path, files)


def test_adapters_beside_a_whole_model_are_no_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "adapter_config.json").write_text("{}")
    files = ["config.json", "adapter_config.json", "adapter_model.safetensors"]
    checkpoint = Checkpoint("x", tmp_path)
    with pytest.raises(ModelError, match="holds only adapters"):
        refuse_other_libraries(files, checkpoint)
    refuse_other_libraries([*files, "model.safetensors"], checkpoint)
    assert "adapter_model.safetensors" in needed(tmp_path, [*files, "model.safetensors"])
