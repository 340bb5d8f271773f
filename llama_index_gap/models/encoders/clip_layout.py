"""Reads the layout of a CLIP checkpoint if it is like the published ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from safetensors import safe_open

from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.limits import shard_names

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PREPROCESSOR = "preprocessor_config.json"
# Files of sentence-transformers or of a newer processor, with settings that are not read here.
_SAY_MORE = (
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "processor_config.json",
)
_UNUSUAL = ("auto_map", "quantization_config", "text_config_dict", "vision_config_dict")
_ATTENTION = re.compile(r".*attn_implementation.*")
_TOKENIZERS = (None, "CLIPTokenizer", "CLIPTokenizerFast")
_ACTIVATIONS = ("quick_gelu", "gelu")
_PROCESSORS = {"CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorFast"}
_IMAGE_KEYS = {
    *("crop_size", "image_mean", "image_std", "resample", "rescale_factor", "size"),
    *("image_processor_type", "feature_extractor_type", "processor_class"),
}
_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
# The defaults of transformers for config.json.
_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
}
# Unused weights: the temperature of the loss, and position numbers of old checkpoints.
_NOT_RUN = re.compile(r"logit_scale|(text|vision)_model\.embeddings\.position_ids")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class TowerSettings:
    """The sizes of one of the two transformers.

    Attributes:
        width: length of a token's vector.
        inner: length of the vector between a layer's two linear maps.
        layers: number of layers.
        heads: number of attention heads.
        positions: maximum number of tokens; for images, the number of patches and one.
        activation: ``"quick_gelu"`` or ``"gelu"``.
        eps: epsilon of the layer norms.
        vocabulary: number of distinct tokens; texts only.
        end_token: id of the token that ends a text; texts only.
        patch: pixels on a side of a patch; images only.
    """

    width: int
    inner: int
    layers: int
    heads: int
    positions: int
    activation: str
    eps: float
    vocabulary: int = 0
    end_token: int = 0
    patch: int = 0


@dataclass(frozen=True)
class ImageSettings:
    """How an image becomes numbers.

    Attributes:
        size: pixels on a side of the model's input.
        shortest_edge: pixels on the shorter side, after scaling and before the crop.
        resample: Pillow's number for the filter.
        factor: scales values from 0 to 255 to values from 0 to 1.
        mean: subtracted from each colour.
        std: each colour is divided by it.
    """

    size: int
    shortest_edge: int
    resample: int
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ClipLayout:
    """A checkpoint whose files hold only settings that are known here.

    Attributes:
        checkpoint: has the files.
        dimension: length of a vector.
        text: the transformer for texts.
        vision: the transformer for images.
        images: how to prepare images.
    """

    checkpoint: Checkpoint
    dimension: int
    text: TowerSettings
    vision: TowerSettings
    images: ImageSettings

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight, by its name in the checkpoint."""
        text, vision = self.text, self.vision
        shapes: dict[str, tuple[int, ...]] = {
            "text_model.embeddings.token_embedding.weight": (text.vocabulary, text.width),
            "text_model.embeddings.position_embedding.weight": (text.positions, text.width),
            "vision_model.embeddings.class_embedding": (vision.width,),
            "vision_model.embeddings.patch_embedding.weight": (
                *(vision.width, 3),
                *(vision.patch, vision.patch),
            ),
            "vision_model.embeddings.position_embedding.weight": (vision.positions, vision.width),
            "text_projection.weight": (self.dimension, text.width),
            "visual_projection.weight": (self.dimension, vision.width),
        }

        def both(name: str, *shape: int) -> None:
            """Add a weight and its bias."""
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

        both("text_model.final_layer_norm", text.width)
        both("vision_model.pre_layrnorm", vision.width)
        both("vision_model.post_layernorm", vision.width)
        for tower, sizes in (("text_model", text), ("vision_model", vision)):
            for number in range(sizes.layers):
                layer = f"{tower}.encoder.layers.{number}"
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    both(f"{layer}.self_attn.{part}", sizes.width, sizes.width)
                both(f"{layer}.layer_norm1", sizes.width)
                both(f"{layer}.layer_norm2", sizes.width)
                both(f"{layer}.mlp.fc1", sizes.inner, sizes.width)
                both(f"{layer}.mlp.fc2", sizes.width, sizes.inner)
        return shapes


class _OtherLayoutError(Exception):
    """A setting in the files is unusual."""


def clip_layout(checkpoint: Checkpoint) -> ClipLayout | None:
    """Read the layout of a CLIP checkpoint; None if any setting in its files is unusual.

    Args:
        checkpoint: a checkpoint of the family ``clip`` that passed ``check_files``.
    """
    try:
        return _read(checkpoint)
    except (_OtherLayoutError, ModelError):
        return None


def _read(checkpoint: Checkpoint) -> ClipLayout:
    folder, config = checkpoint.folder, checkpoint.config
    _require(not any((folder / name).exists() for name in _SAY_MORE))
    _require((folder / "tokenizer.json").is_file())
    _require(checkpoint.read_json("tokenizer_config.json").get("tokenizer_class") in _TOKENIZERS)
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    for settings in (config, text, vision):
        _require(isinstance(settings, dict))
        _require(not any(settings.get(name) for name in _UNUSUAL))
        _require(not any(_ATTENTION.fullmatch(name) and settings[name] for name in settings))
    dimension = _number(config, "projection_dim", 512)
    side, patch = (_number(vision, each, _VISION[each]) for each in ("image_size", "patch_size"))
    _require(_number(vision, "num_channels", 3) == 3 and 0 < patch <= side)
    return ClipLayout(
        checkpoint,
        dimension,
        _tower(
            text,
            _TEXT,
            positions=_number(text, "max_position_embeddings", _TEXT["max_position_embeddings"]),
            vocabulary=_number(text, "vocab_size", _TEXT["vocab_size"]),
            end_token=_number(text, "eos_token_id", _TEXT["eos_token_id"]),
        ),
        _tower(vision, _VISION, positions=(side // patch) ** 2 + 1, patch=patch),
        _image_settings(checkpoint, side),
    )


def _tower(settings: dict[str, Any], usual: Mapping[str, int], **others: int) -> TowerSettings:
    width, inner, layers, heads = (
        _number(settings, name, usual[name])
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
    )
    activation = settings.get("hidden_act", "quick_gelu")
    _require(activation in _ACTIVATIONS and heads > 0 and width % heads == 0)
    eps = _number(settings, "layer_norm_eps", 1e-5)
    return TowerSettings(width, inner, layers, heads, activation=activation, eps=eps, **others)


def _image_settings(checkpoint: Checkpoint, side: int) -> ImageSettings:
    given = checkpoint.read_json(_PREPROCESSOR)
    kinds = {
        given[key] for key in ("image_processor_type", "feature_extractor_type") if given.get(key)
    }
    _require(bool(kinds) and kinds <= _PROCESSORS)
    for key, value in given.items():
        _require(key in _IMAGE_KEYS or (value is True if key in _STEPS else value is None))
    size, crop = given.get("size", 224), given.get("crop_size", 224)
    if isinstance(size, dict):
        _require(size.keys() == {"shortest_edge"})
        size = size["shortest_edge"]
    if isinstance(crop, dict):
        _require(crop.keys() == {"height", "width"} and crop["height"] == crop["width"])
        crop = crop["height"]
    resample = given.get("resample", 3)
    _require(type(size) is int and size > 0 and type(crop) is int and crop == side)
    _require(type(resample) is int and 0 <= resample <= 5)
    mean, std = _colours(given, "image_mean"), _colours(given, "image_std")
    _require(all(std))
    return ImageSettings(crop, size, resample, _number(given, "rescale_factor", 1 / 255), mean, std)


def _colours(given: Mapping[str, Any], name: str) -> tuple[float, ...]:
    value = given.get(name)
    if not isinstance(value, list) or len(value) != 3:
        raise _OtherLayoutError
    _require(all(type(each) in {int, float} and math.isfinite(each) for each in value))
    return tuple(map(float, value))


def stored_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Read the shape of each stored tensor that the model uses, from the files' headers.

    Args:
        checkpoint: has the files.

    Raises:
        ModelError: the list of files is damaged.
        OSError: a file is missing.
        SafetensorError: a file cannot be read.
    """
    folder, names = checkpoint.folder, [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file():
        names = shard_names(checkpoint, _INDEX, checkpoint.read_json(_INDEX))
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        with safe_open(folder / name, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 (it is not a mapping)
                if not _NOT_RUN.fullmatch(key):
                    shapes[key] = tuple(file.get_slice(key).get_shape())
    return shapes


def _require(usual: bool) -> None:
    if not usual:
        raise _OtherLayoutError


def _number(settings: Mapping[str, Any], name: str, usual: _Number) -> _Number:
    value = settings.get(name, usual)
    _require(type(value) is int or (type(value) is float and isinstance(usual, float)))
    _require(value > 0 and math.isfinite(value))
    return type(usual)(value)
