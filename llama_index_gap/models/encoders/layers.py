"""Functions and layers that the native vision and text towers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.models.base import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image


def pixel_values(image: Image, mean: Sequence[float], std: Sequence[float]) -> VectorArray:
    """Turn an RGB image of size (w, h) into normalized numbers of shape (3, h, w)."""
    scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
    normalized = (scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1))


def concatenate(prepared: Sequence[Mapping[str, Any]], model: str) -> dict[str, Any]:
    """Join the features of n images along their first axis.

    Args:
        prepared: the image processor's output for each image.
        model: the checkpoint, for the message.

    Raises:
        ModelError: the features have different shapes.
    """
    joined = dict(prepared[0])
    for name, value in joined.items():
        if not isinstance(value, Tensor):
            continue
        shapes = {tuple(features[name].shape[1:]) for features in prepared}
        if len(shapes) > 1:
            raise ModelError(
                f"{model}: its {name} have the shapes {' and '.join(map(str, sorted(shapes)))} for "
                "different images, which cannot share a batch; pass embed_batch_size=1"
            )
        joined[name] = torch.cat([features[name] for features in prepared])
    return joined


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of (n, length, d) token vectors where the (n, length) mask is not 0; (n, d), float32."""
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)


def to_numpy(features: Tensor) -> VectorArray:
    """Turn a tensor on any device into a float32 array."""
    array: VectorArray = features.float().cpu().numpy()
    return array


class PatchRotation(nn.Module):
    """Rotary position embedding of a square of image patches (EVA-02, arXiv 2303.11331).

    Neighbouring numbers of a head form a pair. The first half of the pairs rotates with the patch's
    row, the second half with its column. The class token, which comes first, is unchanged.

    Args:
        patches: number of patches on a side of the square.
        head_dim: length of a head's vector; a multiple of 4.
        extent: length of a side in positions, whatever the number of patches: the number of patches
            on a side in pretraining.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, patches: int, head_dim: int, extent: float) -> None:
        super().__init__()
        frequencies = 10000.0 ** -(torch.arange(0, head_dim, 4) / head_dim)
        angles = torch.outer(torch.arange(patches) / patches * extent, frequencies)
        rows = angles.repeat_interleave(patches, dim=0)
        columns = angles.repeat(patches, 1)
        pairs = torch.cat([rows, columns], dim=1).repeat_interleave(2, dim=1)
        self.register_buffer("cosine", pairs.cos(), persistent=False)
        self.register_buffer("sine", pairs.sin(), persistent=False)

    def forward(self, heads: Tensor) -> Tensor:
        """Rotate vectors of shape (n, heads, 1 + patches², head_dim)."""
        fixed, turning = heads[:, :, :1], heads[:, :, 1:]
        quarter = torch.stack([-turning[..., 1::2], turning[..., ::2]], dim=-1).flatten(-2)
        turned = turning * self.cosine + quarter * self.sine
        return torch.cat([fixed, turned.to(heads.dtype)], dim=2)


def split_heads(vectors: Tensor, heads: int) -> Tensor:
    """(n, length, heads * head_dim) → (n, heads, length, head_dim)."""
    n, length, width = vectors.shape
    return vectors.reshape(n, length, heads, width // heads).transpose(1, 2)
