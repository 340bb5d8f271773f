"""Which images of an index may be opened: those below folders that this user named, or indexed."""

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
"""Property of the image collection: the index's random id, and the folders that images lay in."""
MOST_FOLDERS = 100
_MOST_CHARACTERS = 100_000
ImageRoot: TypeAlias = str | Path | Sequence[str | Path]


class IndexedImages:
    """The folders that an index's images may lie in.

    What an index says of itself cannot be trusted: it may come from anybody, and name any file of
    this machine. So what may be opened is kept apart from it, in this user's data folder: whenever
    the user inserts images, a record there notes their folders, for this database (its resolved
    path or address), this name, and the random id that the index was given. An index from
    elsewhere, or one that was put in the place of ours, has no such record, and its images are
    opened only below the folders that ``image_root`` names. The folders that the index itself
    stores open nothing. They tell which part of a path to look for below ``image_root`` after the
    corpus was moved.

    Args:
        store: the image collection.
        uri: the database.
        name: of the index.
        image_root: folders that the caller names; they hold instead of those that were noted.
        storage: folder of images that came as base64.

    Raises:
        ValueError: a folder is not there.
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
        """Note where images lie that the user is about to insert.

        Args:
            images: their files.
            root: folder that all of them were read below; by default each image's own folder.
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
            if len(value) > _MOST_CHARACTERS:  # very long paths: a moved corpus is not found again
                value = json.dumps({"id": self.id, "folders": []})
            self._store.set_properties({IMAGES_PROPERTY: value})
        self.folders.known = stored
        new = self.remember(folders)
        if self.named is None:
            self.folders.allow(new)

    def remember(self, folders: Sequence[Path]) -> list[Path]:
        """Note on this machine that the user wants images below these folders to be opened.

        Args:
            folders: links followed.

        Returns:
            Those that were not noted before.
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
                "%s: cannot note in %s where its images lie (%s); later they are shown only below "
                "folders that image_root names",
                self._of,
                self._record,
                error,
            )
        return new

    def forget(self) -> None:
        """Delete what was noted of this index on this machine."""
        if self.id is not None:
            shutil.rmtree(self._record, ignore_errors=True)

    @property
    def _record(self) -> Path:
        """A folder with a file for each folder of images, so that no process undoes another's."""
        key = hashlib.sha256(f"{self._database}\n{self.id}".encode(errors="surrogateescape"))
        folder = Path(platformdirs.user_data_path("llama-index-gap"))
        return folder / "image-folders" / key.hexdigest()[:32]

    def _noted(self) -> list[Path]:
        if self.id is None or not self._record.is_dir():
            return []
        return [Path(os.fsdecode(file.read_bytes())) for file in sorted(self._record.iterdir())]

    def _stored(self, properties: dict[str, str]) -> tuple[str | None, list[str]]:
        """What the index says: its id, and folders; written by whomever."""
        if IMAGES_PROPERTY not in properties:
            return None, []
        try:
            stored = json.loads(properties[IMAGES_PROPERTY])
            own_id, folders = stored["id"], stored["folders"]
            if not re.fullmatch("[0-9a-f]{32}", own_id):
                raise InvalidValueError("its id is no 32 hexadecimal digits")
            if not (isinstance(folders, list) and all(isinstance(each, str) for each in folders)):
                raise InvalidValueError("its folders are no list of texts")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError(
                f"{self._of}: its property {IMAGES_PROPERTY!r} is damaged ({str(error)[:200]}); "
                "pass another name, or overwrite=True to start anew"
            ) from error
        return own_id, list(dict.fromkeys(folders))[:MOST_FOLDERS]


def kept_images(
    stores: Iterable[MilvusStore], folders: ImageFolders, node_ids: Sequence[str]
) -> dict[str, set[str]]:
    """The names of the images in an index's storage that stored nodes use, by node id.

    A storage that was moved holds them, too, though rows name its old place.

    Args:
        stores: the collections of texts and of images.
        folders: of the index, with its storage.
        node_ids: of the nodes; unknown ones are passed over.
    """
    names: dict[str, set[str]] = {}
    for store in stores:
        for node_id, path in store.image_paths(node_ids).items():
            found = Path(folders.find(path))
            if folders.keep(found):
                names.setdefault(node_id, set()).add(found.name)
    return names


def named_folders(image_root: ImageRoot) -> list[Path]:
    """Folders that a caller names, links followed.

    Raises:
        ValueError: one is not there.
    """
    given = [image_root] if isinstance(image_root, str | Path) else list(image_root)
    folders = [Path(folder).expanduser() for folder in given]
    for folder in folders:
        if not folder.is_dir():
            raise InvalidValueError(f"image_root={folder}: no such folder")
    return [folder.resolve() for folder in folders]


def _outermost(folders: Sequence[Path]) -> list[Path]:
    """Those that lie in no other; of very many the one that they share, if that is narrow."""
    kept = {Path(folder) for folder in folders}
    outermost = [each for each in dict.fromkeys(folders) if not kept.intersection(each.parents)]
    if len(outermost) <= MOST_FOLDERS:
        return outermost
    shared = Path(os.path.commonpath(outermost))
    if shared.parent != shared and not Path.home().is_relative_to(shared):
        return [shared]
    logger.warning(
        "images lie in %d folders that share none but %s, and of these only %d are noted; name the "
        "folders of the others with image_root= (--image-root) to show their images",
        len(outermost),
        shared,
        MOST_FOLDERS,
    )
    return outermost[:MOST_FOLDERS]
