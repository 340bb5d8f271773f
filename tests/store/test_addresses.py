from __future__ import annotations

from pathlib import Path

import pytest

from llama_index_gap.store.addresses import is_server, lite_path


@pytest.mark.parametrize(
    "uri", ["http://host:19530", "https://host", "tcp://host:19530", "unix:/tmp/milvus.sock"]
)
def test_the_addresses_of_servers(uri: str) -> None:
    assert is_server(uri)
    assert lite_path(uri) is None


@pytest.mark.parametrize("uri", ["gap.db", "/tmp/gap.db", "./unix/gap.db", "http.db"])
def test_the_paths_of_files(uri: str) -> None:
    assert not is_server(uri)
    assert lite_path(uri) == str(Path(uri).absolute())
