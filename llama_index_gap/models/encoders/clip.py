"""CLIP with the same vectors as transformers, to the bit, but without its slow imports."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from safetensors import SafetensorError
from torch import Tensor

from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Encoder, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, first_line, quiet_transformers
from llama_index_gap.models.checkpoints.tokens import text_limit
from llama_index_gap.models.checkpoints.weights import read_weights
from llama_index_gap.models.encoders.clip_layout import (
    ClipLayout,
    ImageSettings,
    TowerSettings,
    clip_layout,
    stored_shapes,
)
from llama_index_gap.models.encoders.layers import concatenate, split_heads, to_numpy
from llama_index_gap.models.runtime import placement

if TYPE_CHECKING:
    from PIL.Image import Image

_LONGEST_STRIP = 100


class ClipEncoder(Encoder):
    """CLIP (arXiv 2103.00020), as OpenAI and others publish it for transformers.

    transformers' own class, and sentence-transformers around it, take seconds to import. This class
    gives the same vectors, bit for bit, and uses only the tokenizer of transformers.

    Args:
        layout: a checkpoint in the layout of openai/clip-vit-base-patch32; sentence-transformers
            loads all others.
        settings: how to load it.
        max_text_tokens: cut texts earlier than the checkpoint does.
        query_prompt: put before each query; nothing by default.
        document_prompt: put before each document; nothing by default.

    Raises:
        ModelError: files are damaged.
        ValueError: ``max_text_tokens`` is more than the checkpoint reads.
    """

    def __init__(
        self,
        layout: ClipLayout,
        settings: LoadingSettings,
        *,
        max_text_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
    ) -> None:
        checkpoint = layout.checkpoint
        self.name, self.licence = checkpoint.name, checkpoint.licence
        self.modalities: frozenset[Modality] = frozenset({"text", "image"})
        self.dimension = layout.dimension
        self._tokenizer = _tokenizer(checkpoint)
        self.max_text_tokens = text_limit(
            max_text_tokens,
            [self._tokenizer.model_max_length, layout.text.positions],
            self.name,
        )
        self._prompts: dict[Kind, str] = {
            "query": query_prompt or "",
            "document": document_prompt or "",
        }
        self._images = layout.images
        device, dtype = placement(settings)
        weights = read_weights(checkpoint)
        self._model = _Clip(
            layout, {key: weights[key].to(device, dtype) for key in layout.expected_shapes()}
        )
        self._device, self._dtype = device, dtype
        self._lock = threading.Lock()

    def encode_text(self, texts: Sequence[str], kind: Kind) -> VectorArray:
        """Encode n texts; returns shape (n, dimension), rows of length 1."""
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        with self._lock, torch.inference_mode():
            tokens = self._tokenizer(
                self._prompted(texts, kind),
                padding=True,
                truncation=True,
                max_length=self.max_text_tokens,
                return_tensors="pt",
            )
            ids, mask = tokens["input_ids"], tokens["attention_mask"]
            features = self._model.text(ids.to(self._device), mask.to(self._device))
            return unit_rows(to_numpy(features))

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> list[int]:
        """Count the tokens of each text, including prompt and special tokens."""
        if not texts:
            return []
        with self._lock:
            tokens = self._tokenizer(self._prompted(texts, kind), truncation=False, verbose=False)
        return [len(ids) for ids in tokens["input_ids"]]

    def prepare_image(self, image: Image) -> dict[str, Tensor]:
        """Scale, crop and normalize one RGB image, as the checkpoint says."""
        return {"pixel_values": torch.from_numpy(_pixels(image, self._images))[None]}

    def encode_prepared(self, prepared: Sequence[dict[str, Tensor]]) -> VectorArray:
        """Encode n prepared images; returns shape (n, dimension), rows of length 1."""
        if not prepared:
            return np.empty((0, self.dimension), np.float32)
        pixels = concatenate(prepared, self.name)["pixel_values"].to(self._device, self._dtype)
        with self._lock, torch.inference_mode():
            return unit_rows(to_numpy(self._model.images(pixels)))

    def _prompted(self, texts: Sequence[str], kind: Kind) -> list[str]:
        return [self._prompts[kind] + text for text in texts]


def usual_layout(checkpoint: Checkpoint) -> ClipLayout | None:
    """The layout of a checkpoint that ``ClipEncoder`` can load; None for any other.

    Other checkpoints may be fine too. sentence-transformers loads them, and reports their faults.

    Args:
        checkpoint: a checkpoint of the family ``clip`` that passed ``check_files``.
    """
    layout = clip_layout(checkpoint)
    if layout is None:
        return None
    try:
        return layout if stored_shapes(checkpoint) == layout.expected_shapes() else None
    except (ModelError, OSError, SafetensorError):
        return None


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import CLIPTokenizer

    try:
        with quiet_transformers():
            return CLIPTokenizer.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the tokenizers library raises no narrower class
        raise ModelError(
            f"{checkpoint.name}: its tokenizer does not load ({first_line(error)})"
        ) from error


def _pixels(image: Image, settings: ImageSettings) -> VectorArray:
    """Prepare an image in the steps and number formats of transformers' PIL-based processor."""
    image, size = image.convert("RGB"), settings.size
    short, long = sorted(image.size)
    if long > _LONGEST_STRIP * short:
        # Scaled as a whole, a strip of 1 × 50,000 pixels takes gigabytes; the crop keeps 1 MB.
        sides = [min(side, _LONGEST_STRIP * short) for side in image.size]
        image = _crop_centre(image, *sides)
        long = _LONGEST_STRIP * short
    scaled = {short: settings.shortest_edge, long: int(settings.shortest_edge * long / short)}
    if short == long:
        scaled = {short: settings.shortest_edge}
    image = image.resize((scaled[image.width], scaled[image.height]), settings.resample)
    array = np.asarray(_crop_centre(image, size, size))
    numbers = (array.astype(np.float64) * settings.factor).astype(np.float32)
    mean, std = (np.array(each, np.float32) for each in (settings.mean, settings.std))
    normalized = (numbers - mean) / std
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))


def _crop_centre(image: Image, width: int, height: int) -> Image:
    """Crop the centre; pixels outside of the image are black."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


# --- the model -----------------------------------------------------------------------------------


class _Clip:
    """The two transformers, as functions over named weights.

    torch's modules would first be filled with random numbers, or, on the meta device, import
    torch's compiler. Either takes longer than a search.

    Args:
        layout: the sizes.
        weights: by their names in the checkpoint.
    """

    def __init__(self, layout: ClipLayout, weights: Mapping[str, Tensor]) -> None:
        self._layout, self._weights = layout, weights

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask (n, length) → (n, dimension)."""
        settings, length = self._layout.text, ids.shape[1]
        hidden = F.embedding(ids, self._weights["text_model.embeddings.token_embedding.weight"])
        places = self._weights["text_model.embeddings.position_embedding.weight"]
        hidden = hidden + places[:length]
        allowed = None
        if not bool(mask.all()):
            positions = torch.arange(length, device=ids.device)
            causal = positions[None, :] <= positions[:, None]
            allowed = (causal & mask.bool()[:, None, :])[:, None]
        hidden = self._layers("text_model", settings, hidden, allowed, causal=allowed is None)
        hidden = self._norm("text_model.final_layer_norm", hidden, settings.eps)
        # The end token may also be the padding token, so the first one counts. OpenAI's
        # configurations say 2, which was never right; they mean the highest id.
        ends = ids if settings.end_token == 2 else (ids == settings.end_token).int()
        at_end = hidden[torch.arange(len(ids), device=ids.device), ends.argmax(dim=-1)]
        return self._linear("text_projection", at_end)

    def images(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, size, size) → (n, dimension)."""
        settings, named = self._layout.vision, "vision_model.embeddings"
        kernel = self._weights[f"{named}.patch_embedding.weight"]
        patches = F.conv2d(pixels, kernel, stride=settings.patch).flatten(2).transpose(1, 2)
        first = self._weights[f"{named}.class_embedding"].expand(len(pixels), 1, -1)
        hidden = torch.cat([first, patches], dim=1)
        hidden = hidden + self._weights[f"{named}.position_embedding.weight"]
        hidden = self._norm("vision_model.pre_layrnorm", hidden, settings.eps)
        hidden = self._layers("vision_model", settings, hidden, None, causal=False)
        pooled = self._norm("vision_model.post_layernorm", hidden[:, 0, :], settings.eps)
        return self._linear("visual_projection", pooled)

    def _layers(
        self,
        tower: str,
        settings: TowerSettings,
        hidden: Tensor,
        allowed: Tensor | None,
        *,
        causal: bool,
    ) -> Tensor:
        for number in range(settings.layers):
            layer = f"{tower}.encoder.layers.{number}"
            normed = self._norm(f"{layer}.layer_norm1", hidden, settings.eps)
            query, key, value = (
                split_heads(self._linear(f"{layer}.self_attn.{part}_proj", normed), settings.heads)
                for part in "qkv"
            )
            seen = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=allowed,
                is_causal=causal and query.shape[2] > 1,
                scale=query.shape[3] ** -0.5,
            )
            seen = seen.transpose(1, 2).reshape(hidden.shape)
            hidden = hidden + self._linear(f"{layer}.self_attn.out_proj", seen)
            normed = self._norm(f"{layer}.layer_norm2", hidden, settings.eps)
            inner = self._linear(f"{layer}.mlp.fc1", normed)
            quick = settings.activation == "quick_gelu"
            inner = inner * torch.sigmoid(1.702 * inner) if quick else F.gelu(inner)
            hidden = hidden + self._linear(f"{layer}.mlp.fc2", inner)
        return hidden

    def _linear(self, name: str, vectors: Tensor) -> Tensor:
        return F.linear(vectors, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))

    def _norm(self, name: str, vectors: Tensor, eps: float) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(vectors, weight.shape, weight, bias, eps)
