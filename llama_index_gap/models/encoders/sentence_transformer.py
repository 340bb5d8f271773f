"""Encoders that sentence-transformers runs: SigLIP, SigLIP 2, unusual CLIPs and others."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.modality import Kind
from llama_index_gap.model_settings import LoadingSettings, Pooling
from llama_index_gap.models.base import Encoder, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.layout import MODULES, needs_pooling
from llama_index_gap.models.checkpoints.sbert import load_model
from llama_index_gap.models.checkpoints.tokens import text_limit
from llama_index_gap.models.encoders.layers import concatenate

_PROMPT_NAMES: dict[Kind, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}


class SentenceTransformerEncoder(Encoder):
    """A checkpoint run by sentence-transformers.

    Args:
        checkpoint: a sentence-transformers model, or a plain transformers model such as CLIP.
        settings: how to load it.
        max_text_tokens: cut texts earlier than the checkpoint does.
        query_prompt: put before each query; None for the checkpoint's own.
        document_prompt: put before each document; None for the checkpoint's own.
        pooling: how token vectors become one vector; needed if the checkpoint does not state it.

    Raises:
        ModelError: the files are damaged or incomplete, do not state the pooling, or hold a model
            that sentence-transformers cannot load.
        ValueError: ``max_text_tokens`` or ``pooling`` does not fit the checkpoint.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: LoadingSettings,
        *,
        max_text_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        pooling: Pooling | None = None,
    ) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = checkpoint.name
        self.licence = checkpoint.licence
        self._lock = threading.Lock()
        self._model: Any
        self._model, report = load_model(SentenceTransformer, checkpoint, settings)
        report.raise_if_incomplete(self.name, pooler_unused=self._pools(checkpoint, pooling))
        self.modalities = frozenset({"text", "image"} & set(self._model.modalities))  # type: ignore[arg-type]
        if not self.modalities:
            raise ModelError(
                f"{self.name} encodes {', '.join(map(str, self._model.modalities))}, but neither "
                "texts nor images; choose another model"
            )
        family = getattr(self._model.config, "model_type", None)
        self._is_siglip = family in {"siglip", "siglip2"}
        self._is_naflex = family == "siglip2"  # SigLIP 2 of a fixed resolution says "siglip"
        if self._is_siglip and self._model.tokenizer is not None:
            # SigLIP was trained this way and reads its padding; a tokenizer file may say "left".
            self._model.tokenizer.padding_side = "right"
            self._model.tokenizer.truncation_side = "right"
        self.max_text_tokens = self._limit(max_text_tokens)
        self._prompts = {
            "query": self._prompt("query", query_prompt),
            "document": self._prompt("document", document_prompt),
        }
        self._around: dict[Kind, int] = {}
        self._wraps_texts = hasattr(self._model[0], "modality_config")
        # Models that take images through a chat template build one sequence for the whole batch.
        self._one_by_one = self._wraps_texts and "message" not in self._model[0].modality_config
        self.dimension = self._model.get_embedding_dimension()
        if not self.dimension:
            sample = "a" if "text" in self.modalities else Image.new("RGB", (64, 64))
            self.dimension = int(self._forward(self._model.preprocess([sample])).shape[1])

    def encode_text(self, texts: Sequence[str], kind: Kind) -> VectorArray:
        """Encode n texts; returns shape (n, dimension), rows of length 1."""
        self._require("text")
        inputs: list[Any] = self._as_trained(texts)
        if self._wraps_texts:
            # sentence-transformers would fetch a bare "https://…/cat.jpg" as an image.
            inputs = [{"text": text} for text in inputs]
        with self._lock:
            features = self._model.preprocess(
                inputs,
                prompt=self._prompts[kind] or None,
                task=kind,
                # SigLIP reads its padding: in training, every text was padded to the full length
                # without an attention mask (model card of google/siglip-base-patch16-224).
                processing_kwargs={
                    "text": {
                        "padding": "max_length",
                        "max_length": self.max_text_tokens,
                        "truncation": True,
                        "return_attention_mask": False,
                    }
                }
                if self._is_siglip
                else None,
            )
            return self._forward(features)

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> list[int] | None:
        """Count the tokens of each text, including prompt and special tokens.

        The tokens of a chat template count too, if the model reads texts through one. Returns None
        if the model has no tokenizer.
        """
        self._require("text")
        tokenizer = self._model.tokenizer
        if tokenizer is None:
            return None
        if not texts:
            return []
        prompted = [self._prompts[kind] + text for text in self._as_trained(texts)]
        with self._lock:
            ids = tokenizer(prompted, truncation=False, verbose=False)["input_ids"]
        return [len(each) + self._template_tokens(kind) for each in ids]

    def _template_tokens(self, kind: Kind) -> int:
        """The number of tokens that a chat template adds to a text."""
        if kind not in self._around:
            self._around[kind] = 0
            if self._wraps_texts and "message" in self._model[0].modality_config:
                prompt = self._prompts[kind]
                with self._lock:
                    whole = self._model.preprocess(
                        [{"text": "a"}], prompt=prompt or None, task=kind
                    )
                    plain = self._model.tokenizer(prompt + "a", verbose=False)["input_ids"]
                self._around[kind] = int(whole["input_ids"].shape[-1]) - len(plain)
        return self._around[kind]

    def prepare_image(self, image: Image.Image) -> Any:
        """Resize and normalize an RGB image; models with a chat template do so in the batch."""
        self._require("image")
        if not self._one_by_one:
            return image
        options: dict[str, Any] | None = None
        if self._is_naflex:
            # transformers' Siglip2Processor would replace the checkpoint's settings by its own.
            own = self._model.processor.image_processor
            options = {"patch_size": own.patch_size, "max_num_patches": own.max_num_patches}
        return self._model.preprocess(
            [image], processing_kwargs=None if options is None else {"image": options}
        )

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

    def _pools(self, checkpoint: Checkpoint, wanted: Pooling | None) -> bool:
        """Whether the model pools token vectors; set the caller's pooling, and never guess one."""
        from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

        modules = [module for module in self._model if isinstance(module, PoolingModule)]
        if (checkpoint.folder / MODULES).is_file():
            return bool(modules)
        if modules and wanted is None:
            raise ModelError(needs_pooling(self.name))
        if wanted is not None:
            if not modules:
                raise InvalidValueError(
                    f"pooling={wanted!r}: {self.name} states its own pooling; leave pooling out "
                    "(on the command line, --pooling)"
                )
            modules[0].pooling_mode = "lasttoken" if wanted == "last" else wanted
        return bool(modules)

    def _forward(self, features: dict[str, Any]) -> VectorArray:
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
                f"{self.name} does not encode {modality}s; pass a dual encoder (CLIP, SigLIP, …), "
                "or a second model for them"
            )

    def _as_trained(self, texts: Sequence[str]) -> list[str]:
        # SigLIP was trained on lower case, but the Gemma tokenizer of SigLIP 2 keeps capitals
        # (model card of google/siglip2-base-patch16-224; huggingface/transformers).
        return [text.lower() for text in texts] if self._is_siglip else list(texts)

    def _limit(self, wanted: int | None) -> int | None:
        if "text" not in self.modalities:
            return None
        tokenizer_limit = self._model.max_seq_length
        config = self._model.config
        text_config = getattr(config, "text_config", config)
        position_limit = getattr(text_config, "max_position_embeddings", None)
        limits = [tokenizer_limit, position_limit]
        own = text_limit(None, limits, self.name)
        limit = text_limit(wanted, limits, self.name)
        if self._is_siglip and limit != own:
            raise InvalidValueError(
                f"max_text_tokens={wanted}: {self.name} needs every text padded to {own} tokens, "
                "as in its training; leave max_text_tokens out"
            )
        if limit is not None:
            self._model.max_seq_length = limit
        return limit

    def _prompt(self, kind: Kind, given: str | None) -> str:
        if given is not None:
            return given
        stored = self._model.prompts
        names = [*_PROMPT_NAMES[kind], self._model.default_prompt_name]
        return next((stored[name] for name in names if stored.get(name)), "")
