"""Vectors of texts and images with the same content, with a gap between them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode

VectorArray = npt.NDArray[np.float32]


def two_clouds(n: int, *, shared: int = 6, own: int = 0) -> tuple[VectorArray, VectorArray]:
    """Unit vectors; row i is a text and its image. The two means are far apart.

    Args:
        n: number of texts, and of images.
        shared: dimensions of the content that both share, with some noise.
        own: dimensions of the content of texts only, and likewise of images only.
    """
    rng = np.random.default_rng(0)
    told = rng.normal(size=(n, shared))
    clouds = []
    for sign in (1, -1):
        rows = np.zeros((n, shared + 2 * own + 1))
        rows[:, :shared] = told + 0.3 * rng.normal(size=told.shape)
        start = shared if sign == 1 else shared + own
        rows[:, start : start + own] = 2 * rng.normal(size=(n, own))
        rows[:, -1] = sign * 2 * np.linalg.norm(rows, axis=1)
        clouds.append(unit(rows))
    return clouds[0], clouds[1]


def unit(rows: npt.ArrayLike) -> VectorArray:
    vectors = np.asarray(rows, dtype=np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Numbered(MultiModalEmbedding):
    """Embeds a text or an image by the row that the number in its text or file name gives."""

    model_name: str = "numbered"
    _texts: VectorArray = PrivateAttr()
    _images: VectorArray = PrivateAttr()

    def __init__(self, texts: npt.ArrayLike, images: npt.ArrayLike, **fields: Any) -> None:
        super().__init__(**fields)
        self._texts, self._images = unit(texts), unit(images)

    @property
    def dimension(self) -> int:
        return self._texts.shape[1]

    def _get_text_embedding(self, text: str) -> list[float]:
        return _row(self._texts, text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return _row(self._texts, query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return _row(self._images, Path(img_file_path).stem)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)


def _row(rows: VectorArray, words: str) -> list[float]:
    return rows[int(re.findall(r"\d+", words)[-1])].tolist()


def text(number: int, document: str | None = None) -> TextNode:
    """A passage whose vector is the row of its number."""
    return TextNode(
        id_=f"text {number}",
        text=f"passage {number}",
        relationships=_of(document or f"document {number}"),
    )


def image(number: int, document: str | None = None, caption: bool = True) -> ImageNode:
    """An image whose vector, like its caption's, is the row of its number."""
    return ImageNode(
        id_=f"image {number}",
        text=f"caption {number}" if caption else "",
        image_path=f"/images/{number}.png",
        relationships=_of(document or f"document {number}"),
    )


def _of(document: str) -> dict[NodeRelationship, RelatedNodeInfo]:
    return {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
