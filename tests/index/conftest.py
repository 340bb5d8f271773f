from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from index_nodes import of_document
from llama_index.core.schema import (
    ImageNode,
    TextNode,
)

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.index.dual_index import DualIndex


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(model_name=tiny_clip, dtype="float32")


@pytest.fixture
def index(clip: DualEncoderEmbedding, tmp_path: Path) -> Iterator[DualIndex]:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=clip) as opened:
        yield opened


@pytest.fixture
def nodes(noise_files: list[str]) -> list[TextNode]:
    """A document with a text and a captioned image, and one with a bare image."""
    return [
        TextNode(id_="a1", text="a red bicycle", relationships=of_document("a")),
        ImageNode(
            id_="a2", text="a caption", image_path=noise_files[0], relationships=of_document("a")
        ),
        ImageNode(id_="b1", image_path=noise_files[1], relationships=of_document("b")),
    ]
