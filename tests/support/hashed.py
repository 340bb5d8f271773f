"""A model without cost: vectors from a hash of the text, or of the image file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from index_nodes import as_base64, of_document
from llama_index.core.schema import ImageNode, TextNode
from named_vectors import NamedVectors


class Hashed(NamedVectors):
    """Another ``model_name`` gives other vectors."""

    model_name: str = "hashed"
    dimension: int = 8
    embedded: list[str] = []

    def vector_of(self, name: str) -> list[float]:
        self.embedded.append(name)
        seed = list(hashlib.sha256(f"{self.model_name} {name}".encode()).digest())
        return [float(x) for x in np.random.default_rng(seed).normal(size=self.dimension)]

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        path = Path(str(img_file_path))
        return self.vector_of(hashlib.sha256(path.read_bytes()).hexdigest())


def mixed_nodes(files: list[str]) -> list[TextNode]:
    """Three documents: with images that the index must keep, one of them twice, and with files."""
    awkward = {"price": 1.5, "tags": ["a", "ü"], "deep": {"a": [True, None, 2**60]}, "none": None}
    return [
        TextNode(id_="a1", text="a red bicycle", metadata=awkward, relationships=of_document("a")),
        ImageNode(id_="a2", text="kept", image=as_base64(files[0]), relationships=of_document("a")),
        ImageNode(id_='b"1\\', image=as_base64(files[0]), relationships=of_document("b")),
        ImageNode(id_="b2", image=as_base64(files[1]), relationships=of_document("b")),
        ImageNode(id_="c1", text="a file", image_path=files[2], relationships=of_document("c")),
    ]
