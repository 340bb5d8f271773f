"""jina-reranker-m0 without its remote code, which loads random weights on transformers 5.

In its prompt the document comes before the query, and attention only looks back. So a document's
keys and values do not depend on the query, and are cached for later queries.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.modality import Modality
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Item, LazyImage, ModelError, PairScorer, check_at_least_one
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, first_line
from llama_index_gap.models.checkpoints.tokens import load_plain_tokenizer
from llama_index_gap.models.checkpoints.weights import (
    check_settings,
    load_module,
    read_weights,
    setting,
)
from llama_index_gap.models.rerankers.caches import DISK_BYTES, ByteCache
from llama_index_gap.models.rerankers.items import content_key, decode_image
from llama_index_gap.models.rerankers.packing import (
    Piece,
    Prefix,
    in_batches,
    run_packed,
    use_packing,
)
from llama_index_gap.models.rerankers.qwen_vision import PreparedImage, QwenVision, Scene
from llama_index_gap.models.runtime import placement

if TYPE_CHECKING:
    from PIL.Image import Image

# Constants from the reference's code (modeling.py of jinaai/jina-reranker-m0); no other file has
# them.
DOCUMENT, QUERY = "**Document**:\n", "**Query**:\n"
SCORE_TOKEN_ID = 100
LOGIT_BIAS = 2.65
_MAX_LENGTH = 10240
_QUERY_LENGTH = 512  # tokens that remain for the query when a document is cut

_SUPPORTED = {"architectures": ["JinaVLForRanking"], "use_sliding_window": False}
_MOST_TOKENS = 4096  # in a pass; larger passes are slightly slower on a processor


@dataclass(frozen=True)
class PreparedText:
    """A prepared text.

    Attributes:
        key: identifies its content.
        text: the text, unchanged.
    """

    key: str
    text: str


@dataclass(frozen=True)
class _Part:
    """A query or a document in the prompt.

    Attributes:
        ids: ids of its tokens; an image has placeholders.
        scenes: the image that replaces the placeholders; empty for a text.
    """

    ids: list[int]
    scenes: list[Scene]


@dataclass(frozen=True)
class _Candidate:
    """A document to score.

    Attributes:
        place: its place in the caller's list.
        key: identifies its content.
        is_image: whether it is an image.
        past: its cached keys and values; None if there are none.
        part: its part of the prompt; empty if it is cached.
    """

    place: int
    key: str
    is_image: bool
    past: Prefix | None
    part: _Part


class JinaRerankerScorer(PairScorer):
    """jina-reranker-m0: reads texts in many languages and images, as queries and as documents.

    Scores are those of the model card: sigmoid(logit − 2.65), from 0 to 1. Special tokens that are
    spelled out in a text count as text.

    Args:
        checkpoint: a folder in the layout of jinaai/jina-reranker-m0.
        settings: how to load it.
        scale_to_pixels: scale larger images down to this, to save time; must be within the
            checkpoint's limits.
        max_length: longest prompt, in tokens. A document that leaves less than 512 tokens is cut;
            then the query is cut to the rest.
        batch_size: maximum number of documents in a pass.
        prefix_bytes: maximum size of the cache on the device for keys and values of documents; 0
            for no cache. A token takes 28 kB in the real model (bfloat16), a photo of 640×480
            11 MB.
        vision_bytes: maximum size of the cache on the device for the vision tower's results; 0 for
            no cache. A photo of 640×480 takes 1.2 MB.
        vision_folder: folder of a cache on disk for the same; None for no such cache.
        vision_disk_bytes: maximum size of the cache on disk; the least recently used go first.

    Raises:
        ModelError: files are missing or damaged, or the weights do not fit the configuration.
        ValueError: a number is outside of its range.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: LoadingSettings,
        *,
        scale_to_pixels: int | None = None,
        max_length: int = _MAX_LENGTH,
        batch_size: int = 32,
        prefix_bytes: int = 2**30,
        vision_bytes: int = 2**28,
        vision_folder: str | Path | None = None,
        vision_disk_bytes: int = DISK_BYTES,
    ) -> None:
        _check_range("max_length", max_length, 2 * _QUERY_LENGTH, _MAX_LENGTH)
        check_at_least_one(batch_size=batch_size)
        _check_range("prefix_bytes", prefix_bytes, 0)
        _check_range("vision_bytes", vision_bytes, 0)
        _check_range("vision_disk_bytes", vision_disk_bytes, 0)
        check_settings(checkpoint, _SUPPORTED)
        self._image_id: int = setting(checkpoint, "image_token_id")
        self._image_start: int = setting(checkpoint, "vision_start_token_id")
        self._image_end: int = setting(checkpoint, "vision_end_token_id")
        self._tokenizer = load_plain_tokenizer(checkpoint)
        self._device, dtype = placement(settings)
        self._model, self._head = _load_model(checkpoint, device=self._device, dtype=dtype)
        self._forward = threading.Lock()
        self._vision = QwenVision(
            checkpoint,
            self._model.visual,
            self._forward,
            scale_to_pixels=scale_to_pixels,
            max_bytes=vision_bytes,
            folder=None if vision_folder is None else Path(vision_folder),
            disk_bytes=vision_disk_bytes,
        )
        self._prefixes = ByteCache[Prefix](prefix_bytes, size=lambda prefix: prefix.nbytes)
        self._max_length, self._batch_size = max_length, batch_size
        self.name, self.licence = checkpoint.name, checkpoint.licence
        self.modalities: frozenset[Modality] = frozenset({"text", "image"})

    def prepare(self, item: Item) -> PreparedText | PreparedImage:
        """Prepare a text or an image for ``score_prepared``.

        Raises:
            ModelError: the item is both, or one side of the image is more than 200 times as long as
                the other.
        """
        self._refuse_unreadable(item)
        key = content_key(item)
        if isinstance(item, str):
            return PreparedText(key, item)

        def decode() -> Image:
            return decode_image(cast("Image | LazyImage", item))

        kept = key in self._prefixes or key in self._vision
        return PreparedImage(key, decode, None if kept else self._vision.cut_up(decode()))

    def score_prepared(
        self,
        query: PreparedText | PreparedImage,
        documents: Sequence[PreparedText | PreparedImage],
    ) -> VectorArray:
        """Score n prepared documents against a query; returns shape (n,), from 0 to 1."""
        scores = np.empty(len(documents), np.float32)
        with torch.inference_mode():
            (asked,) = self._parts(QUERY, [query], "")
            for batch in in_batches(
                self._candidates(documents),
                lambda candidate: len(candidate.part.ids) + len(asked.ids),
                most_weight=_MOST_TOKENS,
                most_items=self._batch_size,
            ):
                logits = self._logits(asked, batch)
                scores[[each.place for each in batch]] = (
                    torch.sigmoid(logits - LOGIT_BIAS).float().cpu().numpy()
                )
        return scores

    def to_probability(self, scores: VectorArray) -> VectorArray:
        """The scores, which are probabilities already."""
        return scores

    def _candidates(self, documents: Sequence[PreparedText | PreparedImage]) -> list[_Candidate]:
        """The documents in order: cached ones, then texts, then images, each by length.

        This order makes the rounding in batches independent of the caller's order.
        """
        kept = [self._prefixes.get(document.key) for document in documents]
        new = [document for document, past in zip(documents, kept, strict=True) if past is None]
        parts = iter(self._parts(DOCUMENT, new, "\n"))
        candidates = [
            _Candidate(
                place,
                document.key,
                isinstance(document, PreparedImage),
                past,
                next(parts) if past is None else _Part([], []),
            )
            for place, (document, past) in enumerate(zip(documents, kept, strict=True))
        ]
        return sorted(
            candidates,
            key=lambda each: (each.past is None, each.is_image, len(each.part.ids), each.key),
        )

    def _parts(
        self, before: str, items: Sequence[PreparedText | PreparedImage], after: str
    ) -> list[_Part]:
        """Put the prompt's words around items."""
        images = [item for item in items if isinstance(item, PreparedImage)]
        scenes = iter(self._vision.see(images))
        parts = []
        for item in items:
            if isinstance(item, PreparedText):
                text = self._cut(item.text) if before == DOCUMENT else item.text
                parts.append(_Part(self._encode(before + text + after), []))
            else:
                scene = next(scenes)
                placeholders = [self._image_id] * len(scene.vectors)
                image = [self._image_start, *placeholders, self._image_end]
                ids = [*self._encode(before), *image, *self._encode(after)]
                parts.append(_Part(ids, [scene]))
        return parts

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _cut(self, document: str) -> str:
        most = self._max_length - _QUERY_LENGTH
        ids = self._encode(document)
        if len(ids) < most:
            return document
        # Through text, like the reference: a character that is cut in half becomes another one.
        return self._tokenizer.decode(ids[:most], skip_special_tokens=False)

    def _logits(self, asked: _Part, batch: Sequence[_Candidate]) -> Tensor:
        pieces = [self._piece(asked, candidate) for candidate in batch]
        with self._forward:
            last = run_packed(self._model.language_model, pieces)
            logits: Tensor = self._head(last.float())[:, 0]
        for candidate, piece in zip(batch, pieces, strict=True):
            if piece.keep:
                self._prefixes.put(candidate.key, piece.kept)
        return logits

    def _piece(self, asked: _Part, candidate: _Candidate) -> Piece:
        """The part of a prompt that is not cached, cut to ``max_length``."""
        past, ids = candidate.past, candidate.part.ids
        length = len(ids) if past is None else past.length
        most = self._max_length - 1  # the score token comes last, always
        # As in the reference, the end of a prompt is cut. If the end is an image, which cannot be
        # cut, the text before it is cut instead.
        room = most - len(asked.ids) if asked.scenes else most
        keep = len(ids) if self._prefixes.max_bytes and length <= room else 0
        if length > room:
            if candidate.is_image:
                raise ModelError(
                    f"{self.name}: the images of query and document take "
                    f"{length + len(asked.ids)} tokens, but max_length={self._max_length} allows "
                    f"{most}; pass a larger max_length or a smaller scale_to_pixels"
                )
            past, ids, length = past and past.cut(room), ids[:room], room
        new = torch.tensor([*ids, *asked.ids[: most - length], SCORE_TOKEN_ID])
        scenes = [*candidate.part.scenes, *asked.scenes]
        start = 0 if past is None else past.next_position
        return Piece(self._embed(new, scenes), self._positions(new, scenes) + start, past, keep)

    def _embed(self, ids: Tensor, scenes: Sequence[Scene]) -> Tensor:
        embeddings: Tensor = self._model.get_input_embeddings()(ids.to(self._device))
        if scenes:
            is_image = (ids == self._image_id).to(self._device)
            embeddings[is_image] = torch.cat([scene.vectors for scene in scenes])
        return embeddings

    def _positions(self, ids: Tensor, scenes: Sequence[Scene]) -> Tensor:
        merge = self._model.visual.spatial_merge_size
        grids = [(1, rows * merge, columns * merge) for rows, columns in (s.grid for s in scenes)]
        positions, _ = self._model.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids == self._image_id)[None].int(),
            image_grid_thw=torch.tensor(grids) if grids else None,
        )
        return cast("Tensor", positions[:, 0].to(self._device))


def _load_model(
    checkpoint: Checkpoint, *, device: str, dtype: torch.dtype
) -> tuple[Any, nn.Module]:
    """Load the backbone, and the head that turns the last token into a logit."""
    from transformers import Qwen2VLConfig, Qwen2VLModel

    try:
        config: Any = Qwen2VLConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    except Exception as error:  # transformers raises many classes
        raise ModelError(
            f"{checkpoint.name}: its config.json does not load ({first_line(error)})"
        ) from error
    width = config.text_config.hidden_size
    tensors = read_weights(checkpoint)
    # The reference does not use the language model's own head.
    tensors.pop("lm_head.weight", None)
    head = {key: tensors.pop(key) for key in list(tensors) if key.startswith("score.")}
    backbone = {
        f"language_{key}" if key.startswith("model.") else key: tensor
        for key, tensor in tensors.items()
    }
    model = load_module(
        lambda: Qwen2VLModel(config), backbone, checkpoint.name, device=device, dtype=dtype
    )
    use_packing(model.language_model)
    # In float32: around the bias, bfloat16 has steps of 0.016, so scores would tie.
    scores = load_module(
        lambda: nn.ModuleDict(
            {"score": nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))}
        ),
        head,
        checkpoint.name,
        device=device,
        dtype=torch.float32,
    )
    return model, scores["score"]


def _check_range(name: str, value: int, least: int, most: int | None = None) -> None:
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise InvalidValueError(f"{name}={value}: must be {limits}")
