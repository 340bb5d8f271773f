from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_nodes import DIM

from llama_index_gap.store.milvus import MilvusStore


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "index.db")


@pytest.fixture
def store(uri: str) -> Iterator[MilvusStore]:
    with MilvusStore(uri=uri, collection_name="nodes", dim=DIM) as opened:
        yield opened
