from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from llama_index_gap.index.image_folder import default_storage


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("http://localhost:19530", "localhost_19530"),
        ("https://me@milvus.example.com:443", "milvus_example_com_443"),
        ("unix:/var/run/milvus.sock", "var_run_milvus_sock"),
    ],
)
def test_images_of_a_server_lie_in_the_user_s_folder(uri: str, folder: str) -> None:
    assert default_storage(uri, "news") == (
        Path(platformdirs.user_data_path("llama-index-gap")) / folder / "news"
    )


def test_images_of_a_file_lie_beside_it() -> None:
    assert default_storage("a/gap.db", "news") == Path("a/gap.db.images/news")
