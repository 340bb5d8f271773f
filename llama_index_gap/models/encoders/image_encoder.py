"""Encoders for images only, which compare images with images: DINOv2 and similar models."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray, unit_rows
from llama_index_gap.modality import Kind
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Encoder, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, first_line, load_report
from llama_index_gap.models.checkpoints.limits import WithinStoredWeights, stored_weights
from llama_index_gap.models.checkpoints.weights import refuse_broken_numbers
from llama_index_gap.models.encoders.layers import concatenate, to_numpy
from llama_index_gap.models.runtime import placement

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageEncoder(Encoder):
    """A vision transformer that was trained on images only, run by transformers.

    The vector is the class token's after the final layer norm. It represents the image in the
    vision transformer (arXiv 2010.11929), and the authors of DINO (arXiv 2104.14294), DINOv2 (arXiv
    2304.07193, and its model card) and DINOv3 (arXiv 2508.10104) compare images by it. A
    checkpoint's pooler, which serves classification, is not used.

    Args:
        checkpoint: a folder in the layout of facebook/dinov2-base.
        settings: how to load it.
        max_text_tokens: must be None, since there are no texts.
        query_prompt: must be None.
        document_prompt: must be None.

    Raises:
        ModelError: files are missing or damaged, or the weights do not fit the configuration.
        ValueError: an option for texts is set.
    """

    shares_text_space = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: LoadingSettings,
        *,
        max_text_tokens: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
    ) -> None:
        if any(option is not None for option in (max_text_tokens, query_prompt, document_prompt)):
            raise InvalidValueError(
                "max_text_tokens, query_prompt and document_prompt are for texts, and "
                f"{checkpoint.name} encodes images only; leave them out"
            )
        self.name = checkpoint.name
        self.licence = checkpoint.licence
        self.modalities = frozenset({"image"})
        self.max_text_tokens = None
        self._forward = threading.Lock()
        self._load(checkpoint, settings)
        self.dimension = self._model.config.hidden_size

    def _load(self, checkpoint: Checkpoint, settings: LoadingSettings) -> None:
        import transformers

        auto: Any = transformers  # has types in part
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        device, dtype = placement(settings)
        stored = stored_weights(checkpoint)
        with load_report() as report:
            try:
                # As in sbert.py, PIL gives the same bits as the processors that these models were
                # published with. DINOv3 has no PIL processor; transformers then uses torchvision.
                self._processor = auto.AutoImageProcessor.from_pretrained(
                    checkpoint.folder, backend="pil", **local
                )
                with WithinStoredWeights(checkpoint.name, stored):
                    model = auto.AutoModel.from_pretrained(
                        checkpoint.folder,
                        dtype=dtype,
                        use_safetensors=None if settings.allow_pickle else True,
                        **local,
                    )
            except ModelError:
                raise
            # transformers raises its own classes for a checkpoint that it cannot read.
            except Exception as error:
                reason = first_line(error)
                if isinstance(error, ImportError) and "torchvision" in reason.lower():
                    reason = "its image processor needs torchvision; run: pip install torchvision"
                raise ModelError(
                    f"{checkpoint.name}: transformers cannot load it: {reason}"
                ) from error
        report.raise_if_incomplete(checkpoint.name, pooler_unused=True)
        refuse_broken_numbers(model.state_dict(), checkpoint.name)
        self._model = model.to(device).eval()

    def encode_text(self, texts: Sequence[str], kind: Kind) -> NoReturn:
        """Raise ModelError, since this encoder reads no texts."""
        raise ModelError(
            f"{self.name} encodes images only; for texts pass a dual encoder (CLIP, SigLIP, …), "
            "and this model as image_query_embed_model of a DualIndex"
        )

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> NoReturn:
        """Raise ModelError, since this encoder reads no texts."""
        self.encode_text(texts, kind)

    count_truncated = count_tokens

    def prepare_image(self, image: Image) -> Any:
        """Resize and normalize one RGB image, as the checkpoint says."""
        return self._processor(images=image, return_tensors="pt")

    def encode_prepared(self, prepared: Sequence[Any]) -> VectorArray:
        """Encode n prepared images; returns shape (n, dimension), rows of length 1."""
        if not prepared:
            return np.empty((0, self.dimension), np.float32)
        pixels = concatenate(prepared, self.name)["pixel_values"]
        with self._forward, torch.inference_mode():
            tokens = self._model(pixels.to(self._model.device, self._model.dtype)).last_hidden_state
            return unit_rows(to_numpy(tokens[:, 0]))
