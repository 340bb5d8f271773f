"""jina-clip-v2 without its remote code, which computes NaN or garbage on transformers 5."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Encoder, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, list_some
from llama_index_gap.models.checkpoints.tokens import PromptedTokenizer
from llama_index_gap.models.checkpoints.weights import (
    check_settings,
    load_module,
    read_weights,
    rename,
    setting,
    split_qkv,
)
from llama_index_gap.models.encoders.layers import (
    PatchRotation,
    masked_mean,
    pixel_values,
    split_heads,
    to_numpy,
)
from llama_index_gap.models.runtime import placement

if TYPE_CHECKING:
    from PIL.Image import Image

# config.json of jinaai/jina-embeddings-v3, the base of the text tower; a checkpoint of jina-clip
# names it and states only the differences (``hf_model_config_kwargs``).
_TEXT_BASE: dict[str, Any] = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 8194,
    "type_vocab_size": 1,
    "rotary_emb_base": 20000.0,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_TEXT_OVERRIDES = "text_config.hf_model_config_kwargs"
_TEXT_OVERRIDES_ELSEWHERE = {"lora_adaptations", "lora_alpha", "lora_rank", "task_instructions"}
_TEXT_OVERRIDES_FOR_TRAINING = {
    "load_trained_adapters",
    "lora_dropout_p",
    "lora_main_params_trainable",
    "use_flash_attn",
}
_TEXT_NAMES = {
    "emb_ln.": "embeddings.LayerNorm.",
    "encoder.layers.": "layers.",
    ".mixer.out_proj.": ".self_attn.o_proj.",
    ".norm1.": ".post_attention_layernorm.",
    ".norm2.": ".post_mlp_layernorm.",
}
_SUPPORTED = {
    "add_projections": False,
    "text_config.hf_model_name_or_path": "jinaai/jina-embeddings-v3",
    "text_config.pooler_type": "mean_pooler",
    "text_config.proj_type": None,
    "vision_config.intp_freq": True,
    "vision_config.ls_init_value": None,
    "vision_config.naive_swiglu": True,
    "vision_config.post_norm": False,
    "vision_config.proj_type": None,
    "vision_config.qkv_bias": True,
    "vision_config.rope_embeddings": True,
    "vision_config.subln": True,
}
_PREPROCESSOR = "preprocessor_config.json"
_SUPPORTED_PREPROCESSING = {"interpolation": "bicubic", "resize_mode": "shortest"}
_VISION_EPS = 1e-6  # for EVA-02's layer norms; from the reference's code, not its config.json
_LONGEST_STRIP = 100


class JinaClipEncoder(Encoder):
    """jina-clip-v2: embeds texts in 89 languages and images into one space (arXiv 2412.08802).

    Args:
        checkpoint: a folder in the layout of jinaai/jina-clip-v2.
        settings: how to load it.
        max_text_tokens: cut texts to this length, to save time; by default the checkpoint's limit.
        query_prompt: put before queries; the checkpoint's own instruction by default.
        document_prompt: put before documents; nothing by default.

    Raises:
        ModelError: files are missing or damaged, or the weights do not fit the configuration.
        ValueError: ``max_text_tokens`` is more than the checkpoint reads, or leaves no room after a
            prompt.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: LoadingSettings,
        *,
        max_text_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
    ) -> None:
        check_settings(checkpoint, _SUPPORTED)
        check_settings(checkpoint, _SUPPORTED_PREPROCESSING, file=_PREPROCESSOR)
        text_settings = _text_settings(checkpoint)
        self.dimension = setting(checkpoint, "vision_config.width")
        if text_settings["hidden_size"] != self.dimension:
            raise ModelError(
                f"{checkpoint.name}: its text vectors have {text_settings['hidden_size']} "
                f"dimensions and its image vectors {self.dimension}, so they share no space; "
                "download the checkpoint again"
            )
        if query_prompt is None:
            instructions = setting(checkpoint, f"{_TEXT_OVERRIDES}.task_instructions", None) or {}
            query_prompt = instructions.get("retrieval.query", "")
        self._tokenizer = PromptedTokenizer(
            checkpoint,
            {"query": query_prompt, "document": document_prompt or ""},
            # RoBERTa reserves its first two positions for padding.
            longest=text_settings["max_position_embeddings"] - 2,
            max_text_tokens=max_text_tokens,
        )
        self._image_size = setting(checkpoint, "vision_config.image_size")
        size = setting(checkpoint, "size", file=_PREPROCESSOR)
        if size != self._image_size:
            raise ModelError(
                f"{checkpoint.name}: {_PREPROCESSOR} scales images to {size}, but config.json says "
                f"image_size={self._image_size}; download the checkpoint again"
            )
        self._mean = setting(checkpoint, "mean", file=_PREPROCESSOR)
        self._std = setting(checkpoint, "std", file=_PREPROCESSOR)

        device, dtype = placement(settings)
        tensors = read_weights(checkpoint)
        # The scale of the training loss, the only weight that belongs to neither tower.
        tensors.pop("logit_scale", None)
        text = _merge_lora(checkpoint, tensors, dtype)
        vision = {key: text.pop(key) for key in list(text) if key.startswith("vision_model.")}
        self._text = load_module(
            lambda: _make_text_model(text_settings),
            {
                name: part
                for key, tensor in text.items()
                for name, part in split_qkv(
                    rename(key.removeprefix("text_model.transformer.roberta."), _TEXT_NAMES),
                    "mixer.Wqkv",
                    tensor,
                ).items()
            },
            checkpoint.name,
            device=device,
            dtype=dtype,
        )
        self._vision = load_module(
            lambda: _VisionTower.from_settings(checkpoint),
            {key.removeprefix("vision_model."): tensor for key, tensor in vision.items()},
            checkpoint.name,
            device=device,
            dtype=dtype,
        )
        self._device, self._dtype = device, dtype
        self._forward = threading.Lock()
        self.name, self.licence = checkpoint.name, checkpoint.licence
        self.modalities: frozenset[Modality] = frozenset({"text", "image"})
        self.max_text_tokens = self._tokenizer.max_text_tokens

    def encode_text(self, texts: Sequence[str], kind: Kind) -> VectorArray:
        """Encode n texts; returns shape (n, dimension), rows of length 1."""
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        ids = self._tokenizer(texts, kind)["input_ids"].to(self._device)
        # Like the reference, mask the padding token even where a text spells it out, which the
        # tokenizer's own mask does not do.
        mask = ids != self._tokenizer.pad_token_id
        with self._forward, torch.inference_mode():
            hidden = self._text(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            return unit_rows(to_numpy(masked_mean(hidden, mask)))

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> list[int]:
        """Count the tokens of each text, including prompt and special tokens."""
        return self._tokenizer.count_tokens(texts, kind)

    def prepare_image(self, image: Image) -> VectorArray:
        """Scale and crop an image to the model's input; returns shape (3, size, size)."""
        return pixel_values(_centre_square(image, self._image_size), self._mean, self._std)

    def encode_prepared(self, prepared: Sequence[VectorArray]) -> VectorArray:
        """Encode n results of ``prepare_image``; returns shape (n, dimension), rows of length 1."""
        if not len(prepared):
            return np.empty((0, self.dimension), np.float32)
        pixels = torch.from_numpy(np.stack(prepared)).to(self._device, self._dtype)
        with self._forward, torch.inference_mode():
            return unit_rows(to_numpy(self._vision(pixels)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.inner_attn_ln = nn.LayerNorm(width, eps=_VISION_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotate: PatchRotation) -> Tensor:
        query = split_heads(self.q_proj(x) + self.q_bias, self.heads)
        key = split_heads(self.k_proj(x), self.heads)
        value = split_heads(self.v_proj(x) + self.v_bias, self.heads)
        mixed = F.scaled_dot_product_attention(rotate(query), rotate(key), value)
        out: Tensor = self.proj(self.inner_attn_ln(mixed.transpose(1, 2).flatten(2)))
        return out


class _SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(width, hidden)
        self.ffn_ln = nn.LayerNorm(hidden, eps=_VISION_EPS)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w3(self.ffn_ln(F.silu(self.w1(x)) * self.w2(x)))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_VISION_EPS)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_VISION_EPS)
        self.mlp = _SwiGLU(width, hidden)

    def forward(self, x: Tensor, rotate: PatchRotation) -> Tensor:
        x = x + self.attn(self.norm1(x), rotate)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _VisionTower(nn.Module):
    """EVA-02 (arXiv 2303.11331): pixels (n, 3, size, size) → the class token's vector (n, width).

    Modules are named as in the checkpoint.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        size: int,
        patch: int,
        extent: int,
    ) -> None:
        super().__init__()
        patches = size // patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches**2, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.rotate = PatchRotation(patches, width // heads, extent)
        self.blocks = nn.ModuleList(_Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=_VISION_EPS)

    @classmethod
    def from_settings(cls, checkpoint: Checkpoint) -> _VisionTower:
        width = setting(checkpoint, "vision_config.width")
        return cls(
            width=width,
            layers=setting(checkpoint, "vision_config.layers"),
            heads=width // setting(checkpoint, "vision_config.head_width"),
            hidden=int(width * setting(checkpoint, "vision_config.mlp_ratio")),
            size=setting(checkpoint, "vision_config.image_size"),
            patch=setting(checkpoint, "vision_config.patch_size"),
            extent=setting(checkpoint, "vision_config.pt_hw_seq_len"),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, self.rotate)
        out: Tensor = self.norm(x[:, 0])
        return out


def _text_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    overrides = setting(checkpoint, _TEXT_OVERRIDES, None) or {}
    known = _TEXT_BASE.keys() | _TEXT_OVERRIDES_ELSEWHERE | _TEXT_OVERRIDES_FOR_TRAINING
    if unknown := overrides.keys() - known:
        raise ModelError(
            f"{checkpoint.name}: this variant cannot be loaded; {_TEXT_OVERRIDES} in config.json "
            f"has unknown settings: {list_some(unknown)}"
        )
    return {key: overrides.get(key, value) for key, value in _TEXT_BASE.items()}


def _make_text_model(settings: Mapping[str, Any]) -> nn.Module:
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    rope = {"rope_type": "default", "rope_theta": settings["rotary_emb_base"]}
    rest = {key: value for key, value in settings.items() if key != "rotary_emb_base"}
    config = JinaEmbeddingsV3Config(**rest, rope_parameters=rope)
    return JinaEmbeddingsV3Model(config, add_pooling_layer=False)


def _merge_lora(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Add the default task's low-rank update to each weight that has one (arXiv 2106.09685).

    A linear layer becomes W + B·A·α/r with A (tasks, r, in) and B (tasks, out, r). An embedding is
    stored the other way round: W + A·B·α/r with A (tasks, rows, r) and B (tasks, r, width). An
    incomplete pair is left unchanged, and is reported as unexpected later.
    """
    merged = dict(tensors)
    for original in tensors:
        stem = original.removesuffix(".parametrizations.weight.original")
        a_key, b_key = (f"{stem}.parametrizations.weight.0.lora_{which}" for which in "AB")
        if stem == original or a_key not in tensors or b_key not in tensors:
            continue
        tasks = setting(checkpoint, f"{_TEXT_OVERRIDES}.lora_adaptations") or []
        task = setting(checkpoint, "text_config.default_lora_task")
        alpha = setting(checkpoint, f"{_TEXT_OVERRIDES}.lora_alpha")
        rank = setting(checkpoint, f"{_TEXT_OVERRIDES}.lora_rank")
        if task not in tasks:
            raise ModelError(
                f"{checkpoint.name}: config.json says default_lora_task={task!r}, which is not one "
                f"of its lora_adaptations {tasks}; download the checkpoint again"
            )
        weight, a, b = merged.pop(original), merged.pop(a_key), merged.pop(b_key)
        left, right = (a, b) if ".embeddings." in stem else (b, a)
        fits = (left.shape, right.shape) == (
            (len(tasks), *weight.shape[:1], rank),
            (len(tasks), rank, *weight.shape[1:]),
        )
        if not fits:
            raise ModelError(
                f"{checkpoint.name}: wrongly shaped: {a_key} {tuple(a.shape)} and {b_key} "
                f"{tuple(b.shape)} for rank {rank}, {len(tasks)} tasks and weights "
                f"{tuple(weight.shape)}; download the checkpoint again"
            )
        # In float32: bfloat16 is too coarse for the small update.
        update = left[tasks.index(task)].float() @ right[tasks.index(task)].float()
        merged[f"{stem}.weight"] = torch.add(weight, update, alpha=alpha / rank).to(dtype)
    return merged


def _centre_square(image: Image, size: int) -> Image:
    """Scale the shorter side to ``size`` and crop the longer one's centre, as torchvision does."""
    from PIL.Image import Resampling

    image = image.convert("RGB")
    short, long = sorted(image.size)
    if long > _LONGEST_STRIP * short:
        # Scaled as a whole, a strip of 1 × 50,000 pixels takes 40 GB; the crop keeps 1 MB.
        image = _crop_centre(image, *(min(side, _LONGEST_STRIP * short) for side in image.size))
        long = _LONGEST_STRIP * short
    # int here, not round; and round in the crop, not //. Otherwise each is one pixel off.
    scaled = {short: size, long: int(size * long / short)}
    image = image.resize((scaled[image.width], scaled[image.height]), Resampling.BICUBIC)
    return _crop_centre(image, size, size)


def _crop_centre(image: Image, width: int, height: int) -> Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
