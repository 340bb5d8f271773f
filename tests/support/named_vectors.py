"""A model of both modalities whose vectors depend on the text or on the image's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.embeddings import MultiModalEmbedding


class NamedVectors(MultiModalEmbedding):
    """Passes texts, queries and image names to ``vector_of``, which a subclass defines."""

    def vector_of(self, name: str) -> list[float]:
        raise NotImplementedError

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.vector_of(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.vector_of(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self.vector_of(query)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return self.vector_of(Path(str(img_file_path)).name)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)
