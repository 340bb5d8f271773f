"""Settings and weights are read; those that are damaged or do not fit are rejected."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.weights import (
    check_settings,
    load_module,
    read_weights,
    rename,
    setting,
    split_qkv,
)

WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, 2.0])}
WHERE = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.json").write_text('{"width": 3, "text": {"layers": null}}')
    (tmp_path / "other.json").write_text('{"size": 8}')
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    return Checkpoint("tiny", tmp_path)


def shard(checkpoint):
    (checkpoint.folder / "model.safetensors").unlink()
    files = {key: f"model-{key}.safetensors" for key in WEIGHTS}
    for key, file in files.items():
        save_file({key: WEIGHTS[key]}, checkpoint.folder / file)
    index = checkpoint.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": files}))


class WithBuffer(nn.Linear):
    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("angles", torch.arange(3) / 3, persistent=False)


def test_setting(checkpoint):
    assert setting(checkpoint, "width") == 3
    assert setting(checkpoint, "text.layers", 5) is None
    assert setting(checkpoint, "text.heads", 5) == 5
    assert setting(checkpoint, "size", file="other.json") == 8


def test_setting_that_is_missing(checkpoint):
    with pytest.raises(ModelError, match=r"tiny: config.json does not set text.heads"):
        setting(checkpoint, "text.heads")
    with pytest.raises(ModelError, match=r"tiny: absent.json is missing"):
        setting(checkpoint, "size", file="absent.json")


@pytest.mark.parametrize(("content", "why"), [("{", "is not JSON"), ("[]", "holds no JSON object")])
def test_setting_in_a_broken_file(checkpoint, content, why):
    (checkpoint.folder / "other.json").write_text(content)
    with pytest.raises(ModelError, match=f"tiny: other.json {why}"):
        setting(checkpoint, "size", file="other.json")


def test_check_settings(checkpoint):
    check_settings(checkpoint, {"width": 3, "depth": 7})
    with pytest.raises(ModelError, match=r"config.json says width=3 \(supported: 4\)"):
        check_settings(checkpoint, {"width": 4, "depth": 7})


def test_read_weights_from_one_file_and_from_shards(checkpoint):
    whole = read_weights(checkpoint)
    shard(checkpoint)
    sharded = read_weights(checkpoint)
    for tensors in (whole, sharded):
        assert tensors.keys() == WEIGHTS.keys()
        assert all(tensors[key].equal(WEIGHTS[key]) for key in WEIGHTS)


def test_missing_weights_are_named(checkpoint):
    shard(checkpoint)
    (checkpoint.folder / "model-bias.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights are missing: model-bias\.safetensors;"):
        read_weights(checkpoint)
    (checkpoint.folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"weights are missing: model\.safetensors;"):
        read_weights(checkpoint)


@pytest.mark.parametrize("weight_map", [None, ["model.safetensors"]])
def test_index_without_a_weight_map(checkpoint, weight_map):
    shard(checkpoint)
    index = checkpoint.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        ModelError, match=r"weight_map in model\.safetensors\.index\.json is not a JSON"
    ):
        read_weights(checkpoint)


@pytest.mark.parametrize("kept", [0, 20, -4])
def test_truncated_file(checkpoint, kept):
    path = checkpoint.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"tiny: model\.safetensors cannot be read"):
        read_weights(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(checkpoint, value):
    broken = {**WEIGHTS, "bias": torch.tensor([1.0, value])}
    save_file(broken, checkpoint.folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"NaN or infinity in the weights bias;"):
        read_weights(checkpoint)


def test_load_module_fills_parameters_and_keeps_buffers_precise():
    module = load_module(WithBuffer, WEIGHTS, "tiny", device="cpu", dtype=torch.bfloat16)
    assert module.weight.equal(WEIGHTS["weight"].bfloat16())
    assert module.bias.equal(WEIGHTS["bias"].bfloat16())
    assert module.angles.equal(torch.arange(3) / 3)
    assert not module.training
    assert not module.weight.requires_grad


def test_load_module_allocates_nothing_before_the_weights_are_there():
    made = []
    load_module(
        lambda: made.append(nn.Linear(3, 2).weight.is_meta) or WithBuffer(),
        WEIGHTS,
        "tiny",
        **WHERE,
    )
    assert made == [True]


def test_load_module_lists_what_does_not_fit():
    tensors = {"wieght": WEIGHTS["weight"], "bias": torch.zeros(3)}
    with pytest.raises(
        ModelError,
        match=r"missing: weight; unexpected: wieght; wrongly shaped: bias \(3,\) for \(2,\)",
    ):
        load_module(WithBuffer, tensors, "tiny", **WHERE)


def test_rename():
    assert rename("a.norm1.bias", {".norm1.": ".first.", "b.": "c."}) == "a.first.bias"


def test_split_qkv():
    parts = split_qkv("layers.0.attn.Wqkv.bias", "attn.Wqkv", torch.arange(6))
    assert {key: part.tolist() for key, part in parts.items()} == {
        "layers.0.self_attn.q_proj.bias": [0, 1],
        "layers.0.self_attn.k_proj.bias": [2, 3],
        "layers.0.self_attn.v_proj.bias": [4, 5],
    }
    assert split_qkv("norm.bias", "attn.Wqkv", torch.ones(1)).keys() == {"norm.bias"}
