"""A model whose vectors are directions that a text or an image's name begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from index_nodes import of_document
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageNode, TextNode


class Compass(MultiModalEmbedding):
    """A text or an image's name that begins with ``90`` points to 90 degrees, or is no query."""

    model_name: str = "compass"
    dimension: int = 2
    embedded: list[str] = []

    def _vector(self, text: str) -> list[float]:
        name = Path(text).name
        self.embedded.append(name)
        if not name[0].isdigit():
            raise ValueError(f"{name!r} points nowhere")
        angle = np.deg2rad(float(name.split()[0]))
        return [float(np.cos(angle)), float(np.sin(angle))]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._vector(str(img_file_path))

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._vector(str(img_file_path))


class Needle(Compass):
    """The same vectors by another name."""

    model_name: str = "needle"


def four_nodes() -> list[TextNode]:
    """Texts and images in the four directions."""
    return [
        node
        for angle in (0, 90, 180, 270)
        for node in (
            TextNode(id_=f"t{angle}", text=f"{angle} text", relationships=of_document(f"{angle}")),
            ImageNode(
                id_=f"i{angle}",
                image_path=f"/nowhere/{angle} image",
                relationships=of_document(f"{angle}"),
            ),
        )
    ]
