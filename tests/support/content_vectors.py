"""A model whose vectors depend only on content, and which records its inputs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.embeddings import MultiModalEmbedding
from pydantic import Field


class ContentVectors(MultiModalEmbedding):
    """Makes a vector from a text, or from the content of an image file.

    Attributes:
        embedded: the texts and image names so far, in order.
    """

    model_name: str = "content vectors"
    embedded: list[str] = Field(default_factory=list)

    def _direction(self, content: bytes) -> list[float]:
        seed = list(hashlib.sha256(content).digest())
        return [float(x) for x in np.random.default_rng(seed).normal(size=16)]

    def _get_text_embedding(self, text: str) -> list[float]:
        self.embedded.append(text)
        return self._direction(text.encode())

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        path = Path(str(img_file_path))
        self.embedded.append(path.name)
        return self._direction(path.read_bytes())

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._direction(query.encode())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)
