"""Turns images into vectors for Qwen2-VL's language model, and caches them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, first_line, quiet_transformers
from llama_index_gap.models.checkpoints.weights import check_settings, setting
from llama_index_gap.models.rerankers.caches import ByteCache, TensorFolder, digest
from llama_index_gap.models.rerankers.packing import in_batches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREPROCESSOR = "preprocessor_config.json"
# In a pass; more than the largest image has. Far larger passes are 17 % slower on a processor.
_MOST_PATCHES = 4096


@dataclass(frozen=True)
class Scene:
    """An image as vectors for the language model.

    Attributes:
        vectors: vectors that replace token embeddings, shape (rows * columns, width).
        grid: rows and columns.
    """

    vectors: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class Patches:
    """An image cut into patches for the vision tower.

    Attributes:
        pixels: pixel values, shape (rows * columns, numbers in a patch).
        grid: rows and columns; several patches become one vector of a ``Scene``.
    """

    pixels: Tensor
    grid: tuple[int, int]


@dataclass(frozen=True)
class PreparedImage:
    """An image that is ready for the vision tower, or already cached.

    Attributes:
        key: identifies its content.
        open: decodes it, in case the cache has dropped it by the time it is needed.
        patches: its patches; None if it was not decoded.
    """

    key: str
    open: Callable[[], Image]
    patches: Patches | None


class QwenVision:
    """The vision tower of a Qwen2-VL checkpoint, with a cache of its results.

    Methods may be called from several threads.

    Args:
        checkpoint: has the settings.
        tower: the loaded vision tower.
        lock: held while the tower runs.
        scale_to_pixels: scale larger images down to this; None for the checkpoint's own limit.
        max_bytes: maximum size of the cache in memory.
        folder: folder of a cache on disk, with a subfolder for each model; None for no such cache.
        disk_bytes: maximum size of the cache on disk.

    Raises:
        ModelError: the settings contradict each other.
        ValueError: ``scale_to_pixels`` is outside of the checkpoint's limits.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tower: PreTrainedModel,
        lock: threading.Lock,
        *,
        scale_to_pixels: int | None,
        max_bytes: int,
        folder: Path | None,
        disk_bytes: int,
    ) -> None:
        self._name, self._tower, self._lock = checkpoint.name, tower, lock
        self._processor = _load_processor(checkpoint, tower, scale_to_pixels)
        parameter = next(tower.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._memory = ByteCache[Scene](max_bytes, size=lambda scene: scene.vectors.nbytes)
        self._folder: TensorFolder | None = None
        if folder is not None and disk_bytes:
            self._folder = TensorFolder(folder, self._identity(checkpoint), max_bytes=disk_bytes)

    def cut_up(self, image: Image) -> Patches:
        """Scale an image and cut it into patches.

        Raises:
            ModelError: one side is more than 200 times as long as the other.
        """
        try:
            # Like the reference; the processor would put transparent images on white.
            found = self._processor([image.convert("RGB")], return_tensors="pt")
        except ValueError as error:
            raise ModelError(
                f"{self._name} cannot read an image of {image.width}×{image.height}: {error}"
            ) from error
        _, rows, columns = found["image_grid_thw"][0].tolist()
        return Patches(found["pixel_values"].to(self._dtype), (rows, columns))

    def see(self, images: Sequence[PreparedImage]) -> list[Scene]:
        """The scenes of n images; each image that is not cached runs through the tower once."""
        scenes: dict[str, Scene] = {}
        unseen: dict[str, Patches] = {}
        for image in images:
            if image.key in scenes or image.key in unseen:
                continue
            if scene := self._recall(image.key):
                scenes[image.key] = scene
            else:
                unseen[image.key] = image.patches or self.cut_up(image.open())
        for batch in in_batches(
            unseen.items(), lambda item: len(item[1].pixels), most_weight=_MOST_PATCHES
        ):
            keys, patches = zip(*batch, strict=True)
            for key, scene in zip(keys, self._look(patches), strict=True):
                scenes[key] = scene
                self._keep(key, scene)
        return [scenes[image.key] for image in images]

    def __contains__(self, key: str) -> bool:
        return key in self._memory or (self._folder is not None and key in self._folder)

    def _look(self, patches: Sequence[Patches]) -> list[Scene]:
        merge: int = self._processor.merge_size
        pixels = torch.cat([each.pixels for each in patches]).to(self._device)
        grids = torch.tensor([(1, *each.grid) for each in patches], device=self._device)
        with self._lock, torch.inference_mode():
            vectors: Tensor = self._tower(pixels, grid_thw=grids).pooler_output
        lengths = [len(each.pixels) // merge**2 for each in patches]
        return [
            # Copied, because a slice would keep the tensors of the whole batch in memory.
            Scene(part.clone(), (each.grid[0] // merge, each.grid[1] // merge))
            for part, each in zip(torch.split(vectors, lengths), patches, strict=True)
        ]

    def _recall(self, key: str) -> Scene | None:
        if (scene := self._memory.get(key)) is not None:
            return scene
        if self._folder is None or (stored := self._folder.get(key)) is None:
            return None
        rows, columns = stored["grid"].tolist()
        scene = Scene(stored["vectors"].to(self._device), (rows, columns))
        self._memory.put(key, scene)
        return scene

    def _keep(self, key: str, scene: Scene) -> None:
        self._memory.put(key, scene)
        if self._folder is not None:
            self._folder.put(key, {"vectors": scene.vectors, "grid": torch.tensor(scene.grid)})

    def _identity(self, checkpoint: Checkpoint) -> str:
        """A hash of all that decides the tower's results, wherever the checkpoint lies."""
        settings = [
            setting(checkpoint, "vision_config"),
            checkpoint.read_json(_PREPROCESSOR),
            self._processor.size["longest_edge"],
            digest(self._tower.state_dict()),
        ]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def _load_processor(
    checkpoint: Checkpoint, tower: PreTrainedModel, scale_to_pixels: int | None
) -> Any:
    from transformers import AutoImageProcessor

    load: Any = AutoImageProcessor.from_pretrained  # has no types
    needed = {
        "patch_size": tower.config.patch_size,
        "temporal_patch_size": tower.config.temporal_patch_size,
        "merge_size": tower.config.spatial_merge_size,
    }
    check_settings(checkpoint, needed, file=_PREPROCESSOR)
    try:
        with quiet_transformers():
            # PIL gives the same bits as the processor that the checkpoint was published with.
            processor = load(
                checkpoint.folder, backend="pil", local_files_only=True, trust_remote_code=False
            )
        smallest, largest = (
            int(processor.size[f"{which}_edge"]) for which in ("shortest", "longest")
        )
    except Exception as error:  # transformers raises many classes
        raise ModelError(
            f"{checkpoint.name}: its {_PREPROCESSOR} does not load ({first_line(error)})"
        ) from error
    if scale_to_pixels is not None:
        if not smallest <= scale_to_pixels <= largest:
            raise InvalidValueError(
                f"scale_to_pixels={scale_to_pixels}: {checkpoint.name} takes {smallest} to "
                f"{largest} pixels; pass a number in this range, or leave it out for the largest"
            )
        processor.size = {"shortest_edge": smallest, "longest_edge": scale_to_pixels}
    return processor
