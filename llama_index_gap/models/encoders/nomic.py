"""nomic-embed-text-v1.5 and nomic-embed-vision-v1.5: two checkpoints that share one space."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Encoder, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
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

# From the model card of nomic-ai/nomic-embed-text-v1.5; no file in the checkpoint states them.
_QUERY_PROMPT = "search_query: "
_DOCUMENT_PROMPT = "search_document: "

_SUPPORTED = {
    "activation_function": "swiglu",
    "causal": False,
    "parallel_block": False,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "use_rms_norm": False,
}
_SUPPORTED_TEXT = {**_SUPPORTED, "prenorm": False, "rotary_emb_fraction": 1.0}
_SUPPORTED_NATIVE = {
    "hidden_act": "silu",
    "rope_parameters.partial_rotary_factor": 1.0,
    "rope_parameters.rope_type": "default",
}
_NATIVE_TEXT_SETTINGS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "type_vocab_size", "layer_norm_eps"),
)
_SUPPORTED_VISION = {
    **_SUPPORTED,
    "learned_pos_embedding": False,
    "no_cls_token": False,
    "no_embed_class": False,
    "no_last_ln": True,
    "num_channels": 3,
    "prenorm": True,
    "register_tokens": 0,
    "sinusoidal_pos_embedding": False,
    "use_pos_embed": True,
    "use_rotary_pos_emb": True,
}
_POOLING = "1_Pooling/config.json"  # from sentence-transformers; not every checkpoint has it
_SUPPORTED_POOLING = {
    "pooling_mode": "mean",
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
}
_TEXT_NAMES = {
    "emb_ln.": "embeddings.LayerNorm.",
    "encoder.layers.": "layers.",
    ".attn.out_proj.": ".self_attn.o_proj.",
    ".fc11.": ".up_proj.",
    ".fc12.": ".gate_proj.",
    ".fc2.": ".down_proj.",
    ".norm1.": ".post_attention_layernorm.",
    ".norm2.": ".post_mlp_layernorm.",
}
_PREPROCESSOR = "preprocessor_config.json"
_BICUBIC = 3  # Pillow's number, which the file uses
_SUPPORTED_PREPROCESSING = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "resample": _BICUBIC,
    "rescale_factor": 1 / 255,
}
_MLP_EPS = 1e-5  # for the norm in the SwiGLU; from the reference's code, not its config.json


class NomicEncoder(Encoder):
    """Nomic Embed's text model, its vision model, or both (arXiv 2402.01613, 2406.18587).

    Text vectors may be shortened after encoding: take the first d numbers and scale them to length
    1. The reference has one more step, a layer norm, which is done here too, before the cut.

    Args:
        text: a folder in the layout of nomic-ai/nomic-embed-text-v1.5, or None.
        vision: a folder in the layout of nomic-ai/nomic-embed-vision-v1.5, or None.
        settings: how to load them.
        max_text_tokens: cut texts to this length, to save time; by default the longest texts of the
            training (2048).
        query_prompt: put before queries; ``"search_query: "`` by default.
        document_prompt: put before documents; ``"search_document: "`` by default.

    Raises:
        ModelError: files are missing or damaged, the weights do not fit the configuration, or text
            and vision checkpoints are exchanged.
        ValueError: ``max_text_tokens`` is more than the checkpoint reads, or leaves no room after a
            prompt; there is no checkpoint; or a text option is set without a text checkpoint.
    """

    def __init__(
        self,
        text: Checkpoint | None,
        vision: Checkpoint | None,
        settings: LoadingSettings,
        *,
        max_text_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
    ) -> None:
        if text is None and vision is None:
            raise InvalidValueError(
                "NomicEncoder needs a text checkpoint, a vision checkpoint, or both"
            )
        options = (max_text_tokens, query_prompt, document_prompt)
        if text is None and any(option is not None for option in options):
            raise InvalidValueError(
                "max_text_tokens, query_prompt and document_prompt are for texts; pass a text "
                "checkpoint too, or leave them out"
            )
        if text is not None and is_vision(text):
            raise ModelError(f"{text.name} is a vision checkpoint; pass it as vision=")
        if vision is not None and not is_vision(vision):
            raise ModelError(f"{vision.name} is a text checkpoint; pass it as text=")
        checkpoints = [checkpoint for checkpoint in (text, vision) if checkpoint is not None]
        self.name = " + ".join(checkpoint.name for checkpoint in checkpoints)
        dimensions = [_width(checkpoint) for checkpoint in checkpoints]
        if len(set(dimensions)) > 1:
            raise ModelError(
                f"{self.name}: their vectors have {dimensions[0]} and {dimensions[1]} dimensions, "
                "so they share no space; pass two checkpoints of the same version"
            )
        self.dimension = dimensions[0]
        licences = list(dict.fromkeys(checkpoint.licence for checkpoint in checkpoints))
        self.licence = licences[0] if len(licences) == 1 else " + ".join(map(str, licences))
        prompts: dict[Kind, str] = {
            "query": _QUERY_PROMPT if query_prompt is None else query_prompt,
            "document": _DOCUMENT_PROMPT if document_prompt is None else document_prompt,
        }
        modalities: set[Modality] = set()
        self._text: _TextModel | None = None
        self._vision: _VisionModel | None = None
        self.max_text_tokens = None
        if text is not None:
            self._text = _TextModel(text, settings, prompts, max_text_tokens)
            self.max_text_tokens = self._text.tokenizer.max_text_tokens
            modalities.add("text")
        if vision is not None:
            self._vision = _VisionModel(vision, settings)
            modalities.add("image")
        self.modalities = frozenset(modalities)

    def encode_text(self, texts: Sequence[str], kind: Kind) -> VectorArray:
        """Encode n texts; returns shape (n, dimension), rows of length 1.

        Raises:
            ModelError: there is no text checkpoint.
        """
        model = self._text_model()
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        tokens = model.tokenizer(texts, kind)
        return unit_rows(model.features(tokens["input_ids"], tokens["attention_mask"]))

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> list[int]:
        """Count the tokens of each text, including prompt and special tokens.

        Raises:
            ModelError: there is no text checkpoint.
        """
        return self._text_model().tokenizer.count_tokens(texts, kind)

    def prepare_image(self, image: Image) -> VectorArray:
        """Resize an image to the model's square, without a crop; returns shape (3, size, size).

        Raises:
            ModelError: there is no vision checkpoint.
        """
        return self._vision_model().prepare(image)

    def encode_prepared(self, prepared: Sequence[VectorArray]) -> VectorArray:
        """Encode n results of ``prepare_image``; returns shape (n, dimension), rows of length 1.

        Raises:
            ModelError: there is no vision checkpoint.
        """
        model = self._vision_model()
        if not len(prepared):
            return np.empty((0, self.dimension), np.float32)
        return unit_rows(model.features(np.stack(prepared)))

    def _text_model(self) -> _TextModel:
        if self._text is None:
            raise ModelError(
                f"{self.name} is a vision checkpoint and reads no text; also pass the text "
                "checkpoint that shares its space (nomic-ai/nomic-embed-text-v1.5)"
            )
        return self._text

    def _vision_model(self) -> _VisionModel:
        if self._vision is None:
            raise ModelError(
                f"{self.name} is a text checkpoint and reads no images; also pass the vision "
                "checkpoint that shares its space (nomic-ai/nomic-embed-vision-v1.5)"
            )
        return self._vision


def is_vision(checkpoint: Checkpoint) -> bool:
    """Whether a Nomic checkpoint is the vision model, whose ``config.json`` has no vocabulary.

    Both checkpoints have the model type ``nomic_bert``.
    """
    return not setting(checkpoint, "vocab_size", 0)


def _is_native(checkpoint: Checkpoint) -> bool:
    """Whether ``config.json`` uses transformers' names, as in some revisions of the text model."""
    return "hidden_size" in checkpoint.config and "n_embd" not in checkpoint.config


def _width(checkpoint: Checkpoint) -> int:
    width: int = setting(checkpoint, "hidden_size" if _is_native(checkpoint) else "n_embd")
    return width


def _text_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The text model's settings by transformers' names, since transformers ignores Nomic's names.

    The reference reads up to n_positions (8192) tokens. It scales rotary frequencies only beyond
    max_trained_positions (``rotary_scaling_factor``), so up to there both compute the same.
    """
    trained = setting(checkpoint, "max_trained_positions", 2048)
    if _is_native(checkpoint):
        check_settings(checkpoint, _SUPPORTED_NATIVE)
        # Older files have the base of the rotation among the other settings.
        theta = setting(checkpoint, "rope_parameters.rope_theta", None) or setting(
            checkpoint, "rope_theta", 1000.0
        )
        positions = setting(checkpoint, "max_position_embeddings")
        settings = {name: setting(checkpoint, name) for name in _NATIVE_TEXT_SETTINGS}
    else:
        check_settings(checkpoint, _SUPPORTED_TEXT)
        theta = setting(checkpoint, "rotary_emb_base")
        positions = setting(checkpoint, "n_positions")
        multiple = setting(checkpoint, "pad_vocab_size_multiple")
        settings = {
            "vocab_size": math.ceil(setting(checkpoint, "vocab_size") / multiple) * multiple,
            "hidden_size": setting(checkpoint, "n_embd"),
            "num_hidden_layers": setting(checkpoint, "n_layer"),
            "num_attention_heads": setting(checkpoint, "n_head"),
            "intermediate_size": int(setting(checkpoint, "n_inner")),
            "type_vocab_size": setting(checkpoint, "type_vocab_size"),
            "layer_norm_eps": setting(checkpoint, "layer_norm_epsilon"),
        }
    return {
        **settings,
        "max_position_embeddings": int(min(trained, positions)),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(theta)},
    }


class _TextModel:
    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: LoadingSettings,
        prompts: Mapping[Kind, str],
        max_text_tokens: int | None,
    ) -> None:
        from transformers import NomicBertConfig, NomicBertModel

        if (checkpoint.folder / _POOLING).is_file():  # models of this architecture may differ
            check_settings(checkpoint, _SUPPORTED_POOLING, file=_POOLING)
        config = NomicBertConfig(**_text_settings(checkpoint))
        self.tokenizer = PromptedTokenizer(
            checkpoint,
            prompts,
            longest=config.max_position_embeddings,
            max_text_tokens=max_text_tokens,
        )
        tensors: dict[str, Tensor] = {}
        for key, tensor in read_weights(checkpoint).items():
            tensors |= split_qkv(rename(key, _TEXT_NAMES), "attn.Wqkv", tensor)
        self._device, dtype = placement(settings)
        self._model: nn.Module = load_module(
            lambda: NomicBertModel(config),
            tensors,
            checkpoint.name,
            device=self._device,
            dtype=dtype,
        )
        self._forward = threading.Lock()

    def features(self, ids: Tensor, mask: Tensor) -> VectorArray:
        """Token ids and mask (n, length) → (n, d), not yet scaled to length 1."""
        ids, mask = ids.to(self._device), mask.to(self._device)
        with self._forward, torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = masked_mean(hidden, mask)
            return to_numpy(F.layer_norm(pooled, pooled.shape[-1:]))


class _VisionModel:
    def __init__(self, checkpoint: Checkpoint, settings: LoadingSettings) -> None:
        check_settings(checkpoint, _SUPPORTED_VISION)
        check_settings(checkpoint, _SUPPORTED_PREPROCESSING, file=_PREPROCESSOR)
        self._size = setting(checkpoint, "img_size")
        size = setting(checkpoint, "size", file=_PREPROCESSOR)
        if size != {"height": self._size, "width": self._size}:
            raise ModelError(
                f"{checkpoint.name}: {_PREPROCESSOR} scales images to {size}, but config.json says "
                f"img_size={self._size}"
            )
        self._mean = setting(checkpoint, "image_mean", file=_PREPROCESSOR)
        self._std = setting(checkpoint, "image_std", file=_PREPROCESSOR)
        self._device, self._dtype = placement(settings)
        self._tower = load_module(
            lambda: _VisionTower.from_settings(checkpoint),
            read_weights(checkpoint),
            checkpoint.name,
            device=self._device,
            dtype=self._dtype,
        )
        self._forward = threading.Lock()

    def prepare(self, image: Image) -> VectorArray:
        from PIL.Image import Resampling

        square = image.convert("RGB").resize((self._size, self._size), Resampling.BICUBIC)
        return pixel_values(square, self._mean, self._std)

    def features(self, pixels: VectorArray) -> VectorArray:
        on_device = torch.from_numpy(pixels).to(self._device, self._dtype)
        with self._forward, torch.inference_mode():
            return to_numpy(self._tower(on_device)[:, 0])


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotate: PatchRotation) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.Wqkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(rotate(query), rotate(key), value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int, *, norm: bool) -> None:
        super().__init__()
        self.fc11 = nn.Linear(width, hidden)
        self.fc12 = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=_MLP_EPS) if norm else nn.Identity()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.norm(self.fc11(x) * F.silu(self.fc12(x))))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float, *, norm: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = _SwiGLU(width, hidden, norm=norm)

    def forward(self, x: Tensor, rotate: PatchRotation) -> Tensor:
        x = x + self.attn(self.norm1(x), rotate)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _PoolingAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.empty(1, 1, width))
        self.Wq = nn.Linear(width, width)
        self.Wkv = nn.Linear(width, 2 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query = split_heads(self.Wq(self.latent.expand(len(x), -1, -1)), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.Wkv(x).chunk(2, -1))
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Selector(nn.Module):
    """One learned query attends to all tokens (n, length, d); the result is added to each token."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attn = _PoolingAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = _SwiGLU(width, hidden, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.norm1(self.attn(x)))
        return out


class _Embeddings(nn.Module):
    def __init__(self, width: int, patch: int, patches: int) -> None:
        super().__init__()
        self.patch = patch
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + patches**2, width))
        self.proj = nn.Linear(3 * patch**2, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)
        class_token = self.cls_token.expand(len(pixels), -1, -1)
        out: Tensor = torch.cat([class_token, self.proj(patches)], dim=1) + self.pos_embed
        return out


class _VisionTower(nn.Module):
    """Pixels (n, 3, size, size) → token vectors (n, 1 + patches², d); the first is the image's.

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
        extent: float,
        eps: float,
        norm: bool,
    ) -> None:
        super().__init__()
        self.embeddings = _Embeddings(width, patch, size // patch)
        self.rotate = PatchRotation(size // patch, width // heads, extent)
        self.layers = nn.ModuleList(
            _Block(width, heads, hidden, eps, norm=norm) for _ in range(layers)
        )
        self.selector = _Selector(width, heads, hidden, eps)

    @classmethod
    def from_settings(cls, checkpoint: Checkpoint) -> _VisionTower:
        match setting(checkpoint, "ref_feat_shape"):  # rows and columns of patches in pretraining
            case [int() | float() as extent, int() | float() as columns] if extent == columns:
                pass
            case shape:
                raise ModelError(
                    f"{checkpoint.name}: this variant cannot be loaded; config.json says "
                    f"ref_feat_shape={shape!r} (supported: two equal numbers)"
                )
        return cls(
            width=setting(checkpoint, "n_embd"),
            layers=setting(checkpoint, "n_layer"),
            heads=setting(checkpoint, "n_head"),
            hidden=int(setting(checkpoint, "n_inner")),
            size=setting(checkpoint, "img_size"),
            patch=setting(checkpoint, "patch_size"),
            extent=extent,
            eps=setting(checkpoint, "layer_norm_epsilon"),
            norm=setting(checkpoint, "norm_mlp"),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.layers:
            x = layer(x, self.rotate)
        out: Tensor = self.selector(x)
        return out
