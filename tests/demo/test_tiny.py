from __future__ import annotations

import json
from pathlib import Path

import pytest

from llama_index_gap.demo.tiny import make_tiny_clip, make_tiny_dinov2
from llama_index_gap.models import load_encoder


@pytest.mark.parametrize("make", [make_tiny_clip, make_tiny_dinov2])
def test_the_same_seed_gives_the_same_weights(make: type, tmp_path: Path) -> None:
    weights = [
        (make(tmp_path / str(i), seed=seed) / "model.safetensors").read_bytes()
        for i, seed in enumerate([0, 0, 1])
    ]

    assert weights[0] == weights[1] != weights[2]


def test_the_hub_s_layout(tiny_clip: Path) -> None:
    config = json.loads((tiny_clip / "config.json").read_text())

    assert (config["model_type"], config["architectures"]) == ("clip", ["CLIPModel"])
    assert {file.name for file in tiny_clip.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_sizes_can_be_chosen(tmp_path: Path) -> None:
    folder = make_tiny_clip(tmp_path, vision_config={"image_size": 48}, projection_dim=24)

    assert load_encoder(str(folder)).dimension == 24
    assert json.loads((folder / "preprocessor_config.json").read_text())["crop_size"] == {
        "height": 48,
        "width": 48,
    }
