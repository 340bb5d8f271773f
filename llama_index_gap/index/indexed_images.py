"""Decides which images of an index may be opened: in folders that the user named or indexed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import platformdirs

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.store.addresses import is_server
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore

logger = logging.getLogger(__name__)

IMAGES_PROPERTY = "images"
"""Property of the image collection: the index's random id, and the folders of its images."""
MOST_FOLDERS = 100
_MOST_CHARACTERS = 100_000
ImageRoot: TypeAlias = str | Path | Sequence[str | Path]


class IndexedImages:
    """The folders in which images of an index may be opened.

    An index cannot be trusted with this: it may come from anybody, and name any file of this
    machine. So the allowed folders are noted outside the index, in the user's data folder. Whenever
    the user inserts images, a record there notes their folders, under the database (its resolved
    path or URL), the name and the random id of the index. An index from elsewhere, or one that has
    replaced ours, has no such record. Its images are opened only below the folders that
    ``image_root`` names. The folders that the index itself stores allow nothing. They only tell
    which part of a path to look for below ``image_root`` after a corpus was moved.

    Args:
        store: the image collection.
        uri: the database.
        name: the name of the index.
        image_root: folders that the caller names, in place of the noted ones.
        storage: the folder of images that came as base64.

    Raises:
        ValueError: a folder does not exist.
        StoreError: the property is damaged.
    """

    def __init__(
        self, store: MilvusStore, uri: str, name: str, image_root: ImageRoot | None, storage: Path
    ) -> None:
        self._store = store
        self._database = f"{uri.rstrip('/') if is_server(uri) else Path(uri).resolve()}\n{name}"
        self._of = f"{uri}: {name}"
        self.named = None if image_root is None else named_folders(image_root)
        self.id, known = self._stored(store.initial_properties)
        allowed = self._noted() if self.named is None else self.named
        self.folders = ImageFolders(allowed, known, storage)

    def note(self, images: Iterable[Path], root: Path | None = None) -> None:
        """Note the folders of images that the user is about to insert.

        Args:
            images: the image files.
            root: the folder that all of them were read below; by default the folder of each image.
        """
        files = [path.resolve() for path in images]
        found = dict.fromkeys(file.parent for file in files if not self.folders.keep(file))
        folders = self.named or ([root.resolve()] if root is not None else list(found))
        if not found:
            folders = []
        self.id, known = self._stored(self._store.properties())
        stored = _outermost([*map(Path, known), *folders])
        if self.id is None or stored != list(map(Path, known)):
            self.id = self.id or secrets.token_hex(16)
            value = json.dumps({"id": self.id, "folders": list(map(str, stored))})
            # With too many long paths none are stored, and a moved corpus is not found again.
            if len(value) > _MOST_CHARACTERS:
                value = json.dumps({"id": self.id, "folders": []})
            self._store.set_properties({IMAGES_PROPERTY: value})
        self.folders.known = stored
        new = self.remember(folders)
        if self.named is None:
            self.folders.allow(new)

    def remember(self, folders: Sequence[Path]) -> list[Path]:
        """Note on this machine that images below these folders may be opened.

        Args:
            folders: folders with links resolved.

        Returns:
            The folders that were not noted before.
        """
        noted = self._noted()
        new = [each for each in _outermost([*noted, *folders]) if each not in noted]
        try:
            for folder in new:
                self._record.mkdir(parents=True, exist_ok=True)
                name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]
                (self._record / name).write_bytes(os.fsencode(folder))
        except OSError as error:
            logger.warning(
                "%s: cannot note the folders of its images in %s (%s); later, images open only "
                "below folders that image_root names",
                self._of,
                self._record,
                error,
            )
        return new

    def forget(self) -> None:
        """Delete what this machine noted about the index."""
        if self.id is not None:
            shutil.rmtree(self._record, ignore_errors=True)

    @property
    def _record(self) -> Path:
        """A folder with a file for each image folder, so that no process overwrites another's."""
        key = hashlib.sha256(f"{self._database}\n{self.id}".encode(errors="surrogateescape"))
        folder = Path(platformdirs.user_data_path("llama-index-gap"))
        return folder / "image-folders" / key.hexdigest()[:32]

    def _noted(self) -> list[Path]:
        if self.id is None or not self._record.is_dir():
            return []
        return [Path(os.fsdecode(file.read_bytes())) for file in sorted(self._record.iterdir())]

    def _stored(self, properties: dict[str, str]) -> tuple[str | None, list[str]]:
        """The id and the folders that the index stores, as untrusted data."""
        if IMAGES_PROPERTY not in properties:
            return None, []
        try:
            stored = json.loads(properties[IMAGES_PROPERTY])
            own_id, folders = stored["id"], stored["folders"]
            if not re.fullmatch("[0-9a-f]{32}", own_id):
                raise InvalidValueError("its id is not 32 hexadecimal digits")
            if not (isinstance(folders, list) and all(isinstance(each, str) for each in folders)):
                raise InvalidValueError("its folders are not a list of texts")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError(
                f"{self._of}: its property {IMAGES_PROPERTY!r} is damaged ({str(error)[:200]}); "
                "pass another name, or overwrite=True to start over"
            ) from error
        return own_id, list(dict.fromkeys(folders))[:MOST_FOLDERS]


def kept_images(
    stores: Iterable[MilvusStore], folders: ImageFolders, node_ids: Sequence[str]
) -> dict[str, set[str]]:
    """The names of the stored images that nodes use, by node id.

    This also works after the storage was moved, although rows name its old place.

    Args:
        stores: the collections of texts and of images.
        folders: the folders of the index, including its storage.
        node_ids: ids of the nodes; unknown ones are ignored.
    """
    names: dict[str, set[str]] = {}
    for store in stores:
        for node_id, path in store.image_paths(node_ids).items():
            found = Path(folders.find(path))
            if folders.keep(found):
                names.setdefault(node_id, set()).add(found.name)
    return names


def named_folders(image_root: ImageRoot) -> list[Path]:
    """The folders that a caller names, with links resolved.

    Raises:
        ValueError: a folder does not exist.
    """
    given = [image_root] if isinstance(image_root, str | Path) else list(image_root)
    folders = [Path(folder).expanduser() for folder in given]
    for folder in folders:
        if not folder.is_dir():
            raise InvalidValueError(f"image_root={folder}: no such folder")
    return [folder.resolve() for folder in folders]


def _outermost(folders: Sequence[Path]) -> list[Path]:
    """The folders that lie in no other; if very many, their common parent if that is narrow."""
    kept = {Path(folder) for folder in folders}
    outermost = [each for each in dict.fromkeys(folders) if not kept.intersection(each.parents)]
    if len(outermost) <= MOST_FOLDERS:
        return outermost
    shared = Path(os.path.commonpath(outermost))
    if shared.parent != shared and not Path.home().is_relative_to(shared):
        return [shared]
    logger.warning(
        "images lie in %d folders with no narrower common folder than %s, and only %d of them are "
        "noted; name the others with image_root= (--image-root) to show their images",
        len(outermost),
        shared,
        MOST_FOLDERS,
    )
    return outermost[:MOST_FOLDERS]
