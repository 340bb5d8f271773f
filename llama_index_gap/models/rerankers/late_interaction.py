"""Late-interaction models, with a vector for each token and patch."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.modality import Kind, Modality
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Item, Joint, ModelError, PairScorer, check_at_least_one
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.fingerprint import fingerprint
from llama_index_gap.models.checkpoints.sbert import load_model, plain_text, saved_as
from llama_index_gap.models.rerankers.caches import DISK_BYTES, ByteCache, TensorFolder
from llama_index_gap.models.rerankers.items import content_key, decode_image

logger = logging.getLogger(__name__)

_LIBRARIES = ("transformers", "sentence-transformers", "pillow", "llama-index-gap")


def fits(checkpoint: Checkpoint) -> bool:
    """Whether the files say that this is a late-interaction model.

    Any other model would load too, but its projection would have random weights.
    """
    if (checkpoint.folder / "modules.json").is_file():
        return saved_as(checkpoint) in {"MultiVectorEncoder", "ColBERT"}
    return any(name.endswith("ForRetrieval") for name in checkpoint.architectures)


@dataclass
class _Prepared:
    """A prepared query or document.

    Attributes:
        key: identifies its content.
        read: gives the model's input; only called if vectors are missing.
        vectors: its vectors as a query and as a document, as far as they are computed.
    """

    key: str
    read: Callable[[], dict[str, Any]]
    vectors: dict[Kind, torch.Tensor]

    @property
    def is_text(self) -> bool:
        return self.key.startswith("text ")


class LateInteractionScorer(PairScorer):
    """A checkpoint run by sentence-transformers' ``MultiVectorEncoder``: ColPali, ColQwen2, ….

    A score is MaxSim (arXiv 2004.12832): for each query vector the best match among the document's
    vectors, summed, or averaged if the checkpoint says so. It grows with the query's length and is
    not a probability. transformers' own ColPali, ColQwen2 and ColModernVBert read documents as
    images only: they treat every text as a query.

    Args:
        checkpoint: a checkpoint that ``fits``.
        settings: how to load it.
        batch_size: number of documents embedded at a time; the longest come first.
        scale_to_pixels: scale larger images down to this; None leaves that to the model.
        vision_bytes: maximum size of the cache in main memory for vectors of documents; 0 for no
            cache. A page of ColQwen2 takes up to 0.2 MB (bfloat16).
        vision_folder: folder of a cache on disk for vectors of documents with an image, which other
            processes can use. Its keys cover the content and all that decides the vectors. None for
            no cache on disk.
        vision_disk_bytes: maximum size of the cache on disk; the least recently used go first.

    Raises:
        ModelError: the checkpoint is not a late-interaction model, or damaged or incomplete.
        ValueError: ``batch_size`` or ``scale_to_pixels`` is less than 1, a number of bytes is less
            than 0, or ``vision_folder`` is a file.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: LoadingSettings,
        *,
        batch_size: int = 8,
        scale_to_pixels: int | None = None,
        vision_bytes: int = 2**28,
        vision_folder: str | Path | None = None,
        vision_disk_bytes: int = DISK_BYTES,
    ) -> None:
        from sentence_transformers import MultiVectorEncoder

        if not fits(checkpoint):
            raise ModelError(
                f"{checkpoint.name} is not a late-interaction model: sentence-transformers did not "
                "save it as one, and config.json names no class …ForRetrieval; choose another model"
            )
        check_at_least_one(batch_size=batch_size, scale_to_pixels=scale_to_pixels)
        for name, value in (
            ("vision_bytes", vision_bytes),
            ("vision_disk_bytes", vision_disk_bytes),
        ):
            if value < 0:
                raise InvalidValueError(f"{name}={value}: must be at least 0")
        self.name = checkpoint.name
        self.licence = checkpoint.licence
        self._batch_size = batch_size
        self._scale_to_pixels = scale_to_pixels
        self._lock = threading.Lock()
        self._kept = ByteCache[torch.Tensor](vision_bytes, size=lambda vectors: vectors.nbytes)
        self._model, report = load_model(MultiVectorEncoder, checkpoint, settings)
        backbone: Any = self._model[0]
        self._renders_text_as_query = backbone.transformer_task == "retrieval"
        if self._renders_text_as_query:
            # The language model's last layer is not used for vectors.
            report.unexpected = {
                key for key in report.unexpected if not key.endswith("lm_head.weight")
            }
        report.raise_if_incomplete(self.name)
        if backbone.config.model_type == "colqwen2":
            backbone.register_forward_pre_hook(_add_positions)
        self.modalities = frozenset({"text", "image"} & set(self._model.modalities))  # type: ignore[arg-type]
        self.joint = self._model.supports(("image", "text"))
        self._plain = plain_text(self._model)
        self._disk: TensorFolder | None = None
        if vision_folder is not None and vision_disk_bytes and "image" in self.modalities:
            part = self._identity(checkpoint)
            try:
                self._disk = TensorFolder(Path(vision_folder), part, max_bytes=vision_disk_bytes)
            except NotADirectoryError as error:
                raise InvalidValueError(
                    f"vision_folder={vision_folder}: is not a folder"
                ) from error
            except OSError as error:  # a read-only home folder must not stop the load
                logger.warning(
                    "vision_folder=%s cannot be written (%s); vectors of images are kept in memory "
                    "only",
                    vision_folder,
                    error.strerror,
                )

    @property
    def document_modalities(self) -> frozenset[Modality]:
        """The modalities, without texts if the model treats every text as a query."""
        return self.modalities - {"text"} if self._renders_text_as_query else self.modalities

    def prepare(self, item: Item) -> Any:
        """Open an image whose vectors are not cached; the model resizes it in the batch."""
        self._refuse_unreadable(item)
        key = content_key(item)
        if (kept := self._recall(key)) is not None:
            return _Prepared(key, lambda: self._read(item), {"document": kept})
        content = self._read(item)
        return _Prepared(key, lambda: content, {})

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> VectorArray:
        """Score n prepared documents; returns shape (n,).

        Raises:
            ModelError: a document is a text, but the model treats every text as a query.
        """
        if self._renders_text_as_query and any(each.is_text for each in documents):
            raise ModelError(
                f"{self.name} reads documents as images only, since it treats every text as a "
                "query; pass the documents' images, or another reranker"
            )
        with self._lock:
            (of_query,) = self._vectors([query], "query")
            of_documents = self._vectors(documents, "document")
            scores = self._model.similarity([of_query], of_documents)[0]
        return np.asarray(scores, dtype=np.float32)

    def _read(self, item: Item) -> dict[str, Any]:
        if isinstance(item, str):
            return {"text": self._plain(item)}
        if isinstance(item, Joint):
            image = decode_image(item.image, self._scale_to_pixels)
            return {"image": image, "text": self._plain(item.text)}
        return {"image": decode_image(item, self._scale_to_pixels)}

    def _vectors(self, items: Sequence[_Prepared], kind: Kind) -> list[torch.Tensor]:
        new = [item for item in items if kind not in item.vectors]
        if new:
            encode: Any = {
                "query": self._model.encode_query,
                "document": self._model.encode_document,
            }[kind]
            contents = [item.read() for item in new]
            encoded = encode(contents, batch_size=self._batch_size, show_progress_bar=False)
            for item, vectors in zip(new, encoded, strict=True):
                item.vectors[kind] = vectors.cpu()
                if kind == "document":
                    self._kept.put(item.key, item.vectors[kind])
                    if self._disk is not None and not item.is_text:
                        self._disk.put(item.key, {"vectors": item.vectors[kind]})
        return [item.vectors[kind] for item in items]

    def _recall(self, key: str) -> torch.Tensor | None:
        """A document's cached vectors, from memory or from disk."""
        kept = self._kept.get(key)
        if kept is not None or self._disk is None:
            return kept
        stored = (self._disk.get(key) or {}).get("vectors")
        # Others may be able to write to the folder, so its content is checked like any input.
        if (
            stored is None
            or stored.ndim != 2
            or not len(stored)
            or stored.shape[1] != (self._model.get_embedding_dimension() or stored.shape[1])
            or not stored.is_floating_point()
            or not bool(stored.isfinite().all())
        ):
            return None
        self._kept.put(key, stored)
        return stored

    def _identity(self, checkpoint: Checkpoint) -> str:
        """A hash of all that decides an image's vectors, wherever the checkpoint lies."""
        facts = [
            fingerprint(checkpoint),
            str(next(self._model.parameters()).dtype),
            self._scale_to_pixels,
            *(f"{name} {version(name)}" for name in _LIBRARIES),
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _add_positions(backbone: Any, args: tuple[dict[str, Any]]) -> tuple[dict[str, Any]]:
    """Give ColQwen2 the rows and columns of its image patches.

    transformers 5 passes vectors instead of token ids to its language model, which then cannot
    compute these positions and just counts: vectors of length 1 are off by 0.6.
    """
    (features,) = args
    if "image_grid_thw" not in features:
        return args
    ids = features["input_ids"]
    model = backbone.model
    positions, _ = model.vlm.get_rope_index(
        ids,
        mm_token_type_ids=(ids == model.config.vlm_config.image_token_id).int(),
        image_grid_thw=features["image_grid_thw"],
        attention_mask=features["attention_mask"],
    )
    return ({**features, "position_ids": positions},)
