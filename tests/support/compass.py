"""A model whose vectors point in the direction that starts a text or an image's name."""

from __future__ import annotations

import numpy as np
from index_nodes import of_document
from llama_index.core.schema import ImageNode, TextNode
from named_vectors import NamedVectors


class Compass(NamedVectors):
    """A text or image name that begins with ``90`` points to 90 degrees; others are errors."""

    model_name: str = "compass"
    dimension: int = 2
    embedded: list[str] = []

    def vector_of(self, name: str) -> list[float]:
        self.embedded.append(name)
        if not name[0].isdigit():
            raise ValueError(f"{name!r} points nowhere")
        angle = np.deg2rad(float(name.split(maxsplit=1)[0]))
        return [float(np.cos(angle)), float(np.sin(angle))]


class Needle(Compass):
    """The same vectors under another name."""

    model_name: str = "needle"


def four_nodes() -> list[TextNode]:
    """Texts and images in four directions."""
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
