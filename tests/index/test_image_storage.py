from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest
from index_nodes import as_base64
from llama_index.core.schema import (
    ImageNode,
)

from llama_index_gap import DualEncoderEmbedding, open_image
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.image_storage import ImageStorage, default_storage


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


def test_base64_images_are_kept_once_and_go_with_their_last_node(
    clip: DualEncoderEmbedding, tmp_path: Path, noise_files: list[str]
) -> None:
    storage = tmp_path / "images"
    data = as_base64(noise_files[0])
    with DualIndex(str(tmp_path / "gap.db"), embed_model=clip, storage_dir=storage) as index:
        index.insert_nodes([ImageNode(id_=name, image=data) for name in ("a", "b")])

        found = index.get_nodes(["a", "b"])
        paths = {node.image_path for node in found}
        assert len(paths) == 1
        (path,) = map(Path, paths)
        assert path.parent == storage
        assert path.read_bytes() == Path(noise_files[0]).read_bytes()
        assert [node.image for node in found] == [None, None]
        assert index.insert_nodes([ImageNode(id_="a", image=data)]).unchanged == 1

        index.delete_nodes(["a"])
        assert path.exists()
        index.upsert_nodes([ImageNode(id_="b", image=as_base64(noise_files[1]))])  # another image
        assert not path.exists()
        (other,) = index.get_nodes(["b"])
        assert Path(other.image_path).exists()
        index.upsert_nodes([ImageNode(id_="b", image_path=noise_files[2])])  # a file of the user
        assert [path for path in storage.rglob("*") if path.is_file()] == []
        assert Path(noise_files[2]).exists()


def test_images_lie_beside_a_lite_file(
    index: DualIndex, tmp_path: Path, noise_files: list[str]
) -> None:
    index.insert_nodes(
        [ImageNode(id_="a", image=f"data:image/png;base64,{as_base64(noise_files[0])}")]
    )

    (node,) = index.get_nodes(["a"])
    assert Path(node.image_path).parent == tmp_path / "gap.db.images" / "gap"
    assert open_image(node).tobytes() == open_image(noise_files[0]).tobytes()
    precious = Path(node.image_path).with_name("precious.txt")
    precious.write_text("not ours")
    index.clear()
    assert not Path(node.image_path).exists()
    assert precious.exists()


@pytest.mark.parametrize("written", ["nodes", "pending", "users"])
def test_what_a_killed_insert_wrote_by_half_goes(
    written: str,
    clip: DualEncoderEmbedding,
    tmp_path: Path,
    noise_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = tmp_path / "images"
    nodes = [ImageNode(id_="a", image=as_base64(noise_files[0]))]
    with DualIndex(str(tmp_path / "gap.db"), embed_model=clip, storage_dir=storage) as index:
        with monkeypatch.context() as killed:  # before the insert has finished its images
            killed.setattr(ImageStorage, "tidy", lambda _: None)
            index.insert_nodes(nodes)
        (users,) = storage.glob("*.users")
        folder = users if written == "users" else storage / written
        folder.mkdir(exist_ok=True)
        (folder / ".gap-x1.partial").write_text("a")

        index.insert_nodes(nodes)

    assert list(storage.rglob("*.partial")) == []
    assert len(list(storage.glob("*.png"))) == 1
