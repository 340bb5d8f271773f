"""Where an index keeps images that came as base64."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import threading
from io import BytesIO
from pathlib import Path

import platformdirs
from llama_index.core.schema import ImageNode, TextNode
from PIL import Image

from llama_index_gap.images.opening import check_image
from llama_index_gap.store.addresses import is_server


def default_storage(uri: str, name: str) -> Path:
    """Where an index keeps images that came as base64, if it is not told.

    Args:
        uri: of its database; images lie beside a file, and in the user's data folder for a server.
        name: of the index.
    """
    if not is_server(uri):
        return Path(f"{uri}.images") / name
    address = re.sub(r"^\w+:/*", "", uri).rsplit("@", 1)[-1]
    where = re.sub(r"\W+", "_", address)
    return Path(platformdirs.user_data_path("llama-index-gap")) / where / name


class ImageStorage:
    """Images that came as base64, each kept once, by its content.

    ``HASH.png`` is an image, ``HASH.png.users/NODE`` an empty file for each node that uses it, and
    ``nodes/NODE`` says which image a node uses. An image goes with its last user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().resolve()

    def keep(self, node: TextNode) -> TextNode:
        """The node with its image in a file, if it came as base64; ``settle`` it once stored."""
        if not isinstance(node, ImageNode) or not node.image:
            return node
        check_image(node)
        data = base64.b64decode(node.image.partition(",")[2] or node.image)
        with Image.open(BytesIO(data)) as image:
            suffix = (image.format or "bin").lower()
        path = self._folder / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        users = self._users(path.name)
        users.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial_file = path.with_suffix(f".{threading.get_ident()}.partial")
            partial_file.write_bytes(data)
            partial_file.replace(path)
        (users / _user(node.node_id)).touch()
        return node.model_copy(update={"image": None, "image_path": str(path)})

    def settle(self, node_id: str, path: str | None) -> None:
        """Note which image a stored node uses, and let go of the one it used before."""
        used = self._folder / "nodes" / _user(node_id)
        before = used.read_text() if used.exists() else None
        kept = path is not None and Path(path).parent == self._folder
        now = Path(path).name if path is not None and kept else None
        if now == before:
            return
        if before is not None:
            users = self._users(before)
            (users / _user(node_id)).unlink(missing_ok=True)
            used.unlink()
            if users.is_dir() and not any(users.iterdir()):
                users.rmdir()
                (self._folder / before).unlink(missing_ok=True)
        if now is not None:
            used.parent.mkdir(parents=True, exist_ok=True)
            used.write_text(now)

    def clear(self) -> None:
        """Delete all images that were kept here, and nothing else that may lie here."""
        for users in self._folder.glob("*.users"):
            (self._folder / users.stem).unlink(missing_ok=True)
            shutil.rmtree(users)
        shutil.rmtree(self._folder / "nodes", ignore_errors=True)

    def _users(self, name: str) -> Path:
        return self._folder / f"{name}.users"


def _user(node_id: str) -> str:
    return hashlib.sha256(node_id.encode()).hexdigest()[:32]
