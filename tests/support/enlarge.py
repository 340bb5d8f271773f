"""Makes the tiny reference checkpoints in their real sizes, with random weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Shape = tuple[int, ...]


def enlarged_shapes(
    source: Path, lengths: Mapping[int, int], layers: int, exceptions: Mapping[str, Shape] = {}
) -> dict[str, Shape]:
    """Names and shapes of the tensors that a checkpoint would have in another size.

    Args:
        source: a checkpoint in which each length in a shape has one meaning.
        lengths: the new lengths, by old length; others stay unchanged.
        layers: the number of copies of the first layer.
        exceptions: shapes of tensors to which this does not apply.
    """
    shapes: dict[str, Shape] = {}
    for key, tensor in load_file(source / "model.safetensors").items():
        shape = exceptions.get(key, tuple(lengths.get(length, length) for length in tensor.shape))
        layer = re.search(r"(layers|blocks)\.(\d+)\.", key)
        if layer is None:
            shapes[key] = shape
        elif layer[2] == "0":
            for number in range(layers):
                shapes[key.replace(layer[0], f"{layer[1]}.{number}.")] = shape
    return shapes


def write_enlarged(
    source: Path,
    folder: Path,
    shapes: Mapping[str, Shape],
    settings: Mapping[str, Mapping[str, Any]],
) -> Path:
    """Write a checkpoint in bfloat16.

    Args:
        source: the checkpoint with the other files.
        folder: where to write.
        shapes: the shapes of its tensors.
        settings: changes by file; nested keys are joined by dots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json"):
        if path.name != "parity.json":
            shutil.copy(path, folder)
    for name, changes in settings.items():
        content = _changed(folder / name, changes)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        is_gain = len(shape) == 1 and name.endswith("weight")  # a layer norm's gain is around 1
        tensors[name] = torch.randn(shape, dtype=torch.bfloat16) * 0.02 + is_gain
    save_file(tensors, folder / "model.safetensors")
    return folder


def _changed(file: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    return content


JINA_LENGTHS = {
    64: 1024,  # width
    192: 3 * 1024,  # Wqkv
    128: 4096,  # the text tower's feed-forward
    170: 2730,  # the vision tower's, 1024 * 2.6667
    17: 1 + 36**2,  # class token and patches
}
JINA_VOCABULARY = {320: 250002}
JINA_SETTINGS = {
    "config.json": {
        "projection_dim": 1024,
        "text_config.embed_dim": 1024,
        "text_config.hf_model_config_kwargs.hidden_size": 1024,
        "text_config.hf_model_config_kwargs.intermediate_size": 4096,
        "text_config.hf_model_config_kwargs.max_position_embeddings": 8194,
        "text_config.hf_model_config_kwargs.num_attention_heads": 16,
        "vision_config.embed_dim": 1024,
        "vision_config.head_width": 64,
        "vision_config.image_size": 512,
        "vision_config.width": 1024,
    },
    "preprocessor_config.json": {"size": 512},
    "tokenizer_config.json": {"model_max_length": 8194},
}

M0_SETTINGS = {
    "config.json": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_hidden_layers": 28,
        "num_key_value_heads": 2,
        "rope_scaling.mrope_section": [16, 24, 24],
        "vocab_size": 151936,
        "vision_config.depth": 32,
        "vision_config.embed_dim": 1280,
        "vision_config.hidden_size": 1536,
        "vision_config.mlp_ratio": 4,
        "vision_config.num_heads": 16,
    }
}
# A quarter of the width, with all layers. Heads keep their real width, since attention is slower in
# narrow heads; so there are three and four heads, and one pair of keys and values.
M0_QUARTER_SETTINGS = {
    "config.json": {
        **M0_SETTINGS["config.json"],
        "hidden_size": 384,
        "intermediate_size": 2240,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "vocab_size": 512,
        "vision_config.embed_dim": 320,
        "vision_config.hidden_size": 384,
        "vision_config.num_heads": 4,
    }
}


def m0_shapes(source: Path, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Shape]:
    """Names and shapes of the tensors of jina-reranker-m0 with these settings."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    config = _changed(source / "config.json", settings["config.json"])
    with torch.device("meta"):
        model = Qwen2VLModel(Qwen2VLConfig(**config))
    shapes = {
        key.removeprefix("language_"): tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
    }
    width = config["hidden_size"]
    return shapes | {
        "score.0.weight": (width, width),
        "score.0.bias": (width,),
        "score.2.weight": (1, width),
        "score.2.bias": (1,),
    }
