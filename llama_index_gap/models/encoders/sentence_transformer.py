"""Any checkpoint that sentence-transformers loads: CLIP, SigLIP, SigLIP 2 and many more."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.modality import Kind
from llama_index_gap.models.base import Encoder, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.sbert import load_model
from llama_index_gap.models.layers import concatenate

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_PROMPT_NAMES: dict[Kind, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
_NO_LIMIT = 1_000_000  # tokenizers without a limit say 10**30


class SentenceTransformerEncoder(Encoder):
    """A checkpoint run by sentence-transformers.

    Args:
        checkpoint: a sentence-transformers model, or a plain transformers one such as CLIP.
        device: a torch device.
        dtype: number format of the weights.
        max_text_tokens: cut texts earlier than the checkpoint does.
        query_prompt: put before each query; None for the checkpoint's own.
        document_prompt: put before each document; None for the checkpoint's own.
        trust_remote_code: run Python code that comes with the checkpoint.
        allow_pickle: read weights in pickle format where there are no safetensors.

    Raises:
        ModelError: the files are damaged, incomplete or of a kind that cannot be loaded.
        ValueError: ``max_text_tokens`` does not fit the checkpoint.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        dtype: torch.dtype,
        max_text_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        self.name = checkpoint.name
        self.licence = checkpoint.licence
        self._lock = threading.Lock()
        self._model = _load(
            checkpoint,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        self.modalities = frozenset({"text", "image"} & set(self._model.modalities))  # type: ignore[arg-type]
        if not self.modalities:
            raise ModelError(
                f"{self.name} encodes {', '.join(map(str, self._model.modalities))}, "
                "neither texts nor images"
            )
        self.dimension = self._model.get_embedding_dimension() or self._probe_dimension()
        family = getattr(self._model.config, "model_type", None)
        self._is_siglip = family in {"siglip", "siglip2"}
        self._is_naflex = family == "siglip2"  # fixed resolutions of SigLIP 2 say "siglip"
        self.max_text_tokens = self._limit(max_text_tokens)
        self._prompts = {
            "query": self._prompt("query", query_prompt),
            "document": self._prompt("document", document_prompt),
        }
        self._wraps_texts = hasattr(self._model[0], "modality_config")
        # Models that take images through a chat template build one sequence for the whole batch.
        self._one_by_one = self._wraps_texts and "message" not in self._model[0].modality_config

    def encode_text(self, texts: Sequence[str], kind: Kind) -> VectorArray:
        """Encode n texts; returns shape (n, dimension), rows of length 1."""
        self._require("text")
        inputs: list[Any] = self._as_trained(texts)
        if self._wraps_texts:
            # A bare "https://…/cat.jpg" would be taken for an image, and fetched.
            inputs = [{"text": text} for text in inputs]
        with self._lock:
            features = self._model.preprocess(
                inputs,
                prompt=self._prompts[kind] or None,
                task=kind,
                processing_kwargs=self._text_options(),
            )
            return self._forward(features)

    def count_truncated(self, texts: Sequence[str], kind: Kind) -> int:
        """How many of these texts are longer than ``max_text_tokens``, prompt included.

        For models that read texts through a chat template, its few tokens are not counted.
        """
        tokenizer = self._model.tokenizer
        if self.max_text_tokens is None or tokenizer is None:
            return 0
        prompted = [self._prompts[kind] + text for text in self._as_trained(texts)]
        with self._lock:
            lengths = map(len, tokenizer(prompted, truncation=False, verbose=False)["input_ids"])
            return sum(length > self.max_text_tokens for length in lengths)

    def prepare_image(self, image: Image) -> Any:
        """Resize and normalize one RGB image (models with a chat template do it in the batch)."""
        self._require("image")
        if not self._one_by_one:
            return image
        return self._model.preprocess([image], processing_kwargs=self._image_options())

    def encode_prepared(self, prepared: Sequence[Any]) -> VectorArray:
        """Encode n prepared images; returns shape (n, dimension), rows of length 1."""
        self._require("image")
        with self._lock:
            if self._one_by_one:
                features = concatenate(prepared, self.name)
            else:
                features = self._model.preprocess(
                    list(prepared), prompt=self._prompts["document"] or None, task="document"
                )
            return self._forward(features)

    def _forward(self, features: dict[str, Any]) -> VectorArray:
        import torch

        device = self._model.device
        moved = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        with torch.inference_mode():
            vectors = self._model(moved)["sentence_embedding"]
            return unit_rows(vectors.float().cpu().numpy())

    def _require(self, modality: str) -> None:
        if modality not in self.modalities:
            raise ModelError(
                f"{self.name} encodes {' and '.join(sorted(self.modalities))} only; "
                f"for {modality}s pass a dual encoder (CLIP, SigLIP, …), or a model for each side"
            )

    def _as_trained(self, texts: Sequence[str]) -> list[str]:
        # SigLIP was trained on lower case, but the Gemma tokenizer that comes with SigLIP 2
        # keeps capitals (model card of google/siglip2-base-patch16-224; huggingface/transformers).
        return [text.lower() for text in texts] if self._is_siglip else list(texts)

    def _text_options(self) -> dict[str, dict[str, Any]] | None:
        if not self._is_siglip:
            return None
        # SigLIP reads its padding: it was trained with every text padded to the full length and
        # without an attention mask (model card of google/siglip-base-patch16-224).
        return {
            "text": {
                "padding": "max_length",
                "max_length": self.max_text_tokens,
                "truncation": True,
                "return_attention_mask": False,
            }
        }

    def _image_options(self) -> dict[str, dict[str, Any]] | None:
        if not self._is_naflex:
            return None
        # transformers' Siglip2Processor puts numbers of its own in place of the checkpoint's.
        image_processor = self._model.processor.image_processor
        return {
            "image": {
                "patch_size": image_processor.patch_size,
                "max_num_patches": image_processor.max_num_patches,
            }
        }

    def _limit(self, wanted: int | None) -> int | None:
        if "text" not in self.modalities:
            return None
        tokenizer_limit = self._model.max_seq_length
        config = self._model.config
        text_config = getattr(config, "text_config", config)
        position_limit = getattr(text_config, "max_position_embeddings", None)
        limits = [
            limit for limit in (tokenizer_limit, position_limit) if limit and 0 < limit < _NO_LIMIT
        ]
        own = min(limits, default=None)
        if wanted is not None:
            if wanted < 1 or (own is not None and wanted > own):
                raise InvalidValueError(
                    f"max_text_tokens={wanted}: {self.name} reads 1 to {own} tokens; "
                    "pass a number in this range, or leave it out"
                )
            if self._is_siglip and wanted != own:
                raise InvalidValueError(
                    f"max_text_tokens={wanted}: {self.name} needs every text padded to {own} "
                    "tokens, as it was trained; leave it out"
                )
        limit = wanted or own
        if limit is not None:
            self._model.max_seq_length = limit
        return limit

    def _prompt(self, kind: Kind, given: str | None) -> str:
        if given is not None:
            return given
        stored = self._model.prompts
        names = [*_PROMPT_NAMES[kind], self._model.default_prompt_name]
        return next((stored[name] for name in names if stored.get(name)), "")

    def _probe_dimension(self) -> int:
        from PIL import Image

        sample = "a" if "text" in self.modalities else Image.new("RGB", (64, 64))
        return int(self._forward(self._model.preprocess([sample])).shape[1])


def _load(checkpoint: Checkpoint, **options: Any) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    model, report = load_model(SentenceTransformer, checkpoint, **options)
    pooled = any(isinstance(module, Pooling) for module in model)
    report.raise_if_incomplete(checkpoint.name, pooler_unused=pooled)
    return model
