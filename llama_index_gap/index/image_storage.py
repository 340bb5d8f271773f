"""Stores images that came as base64, or that a reader made."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs
from llama_index.core.schema import ImageNode, TextNode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.files import FileError, open_file
from llama_index_gap.images.folders import KEPT_IMAGE, is_made
from llama_index_gap.images.opening import (
    ImageError,
    check_image,
    describe,
    image_digest,
    image_format,
    read_image,
)
from llama_index_gap.store.addresses import is_server

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_KEY = re.compile(r"[0-9a-f]{32}")
_PARTIAL = re.compile(r"\.gap-\w+\.partial")
_LONGEST_RECORD = 2**20
_ONE_THREAD = threading.Lock()


def default_storage(uri: str, name: str) -> Path:
    """The default folder for the stored images of an index.

    Args:
        uri: the database; images lie beside a file, or for a server in the user's data folder.
        name: the name of the index.
    """
    if not is_server(uri):
        return Path(f"{uri}.images") / name
    address = re.sub(r"^\w+:/*", "", uri).rsplit("@", 1)[-1]
    where = re.sub(r"\W+", "_", address)
    return Path(platformdirs.user_data_path("llama-index-gap")) / where / name


def storage_folder(uri: str, name: str, storage_dir: str | Path | None) -> Path:
    """The folder for the stored images of an index, with links resolved.

    Args:
        uri: the database.
        name: the name of the index.
        storage_dir: the folder that the user names; by default ``default_storage``.

    Raises:
        ValueError: the default folder is a link; it may have come with the database.
    """
    folder = default_storage(uri, name)
    if storage_dir is not None:
        return Path(storage_dir).expanduser().resolve()
    for each in (folder, folder.parent):
        if each.is_symlink():
            raise InvalidValueError(
                f"{each}: is a link, by which the maker of the index could choose where images are "
                "written and deleted; put a folder in its place, or pass storage_dir="
            )
    return folder.resolve()


def _is_made(node: ImageNode) -> bool:
    """Whether a reader made the image, such as a page of a PDF file."""
    return not node.image and node.image_path is not None and is_made(node.image_path)


class ImageStorage:
    """Images that came as base64, or that a reader made, each stored once, under its hash.

    - ``HASH.png`` is an image. The folder ``HASH.png.users``, made before it, is the record that
      this class wrote the image; it contains a file ``KEY`` for each node that uses the image.
    - ``nodes/KEY`` names the image that a stored node uses.
    - ``pending/KEY`` names a node and the images that it may not yet, or no longer, use. It is
      written before anything else. ``tidy`` asks the database which of them the node's row uses,
      and releases the others.

    ``KEY`` is a hash of the index's id and the node's id. An image is deleted with its last user.
    Only regular files with such names and records are ever deleted, and links are never followed:
    other files in the folder are not ours. A killed insert leaves its nodes pending for the next
    insert or deletion. Each insert holds a shared lock on the folder, and ``tidy`` does nothing
    while another process holds it. (Windows has no such lock: there, only one process at a time
    may write.)

    Args:
        folder: the folder of the stored images, from ``storage_folder``.
        owner: returns the id of the index, which tells it from others with the same folder; None
            if it has not stored an image yet.
        in_use: returns the names of the images that the rows of some nodes use, by node id. A node
            has two if an insert was killed after it replaced one of the node's rows.
    """

    def __init__(
        self,
        folder: Path,
        owner: Callable[[], str | None],
        in_use: Callable[[Sequence[str]], dict[str, set[str]]],
    ) -> None:
        self.folder = folder
        self._owner, self._in_use = owner, in_use

    def concerns(self, node: TextNode) -> bool:
        """Whether an image of this node has to be stored, or was stored."""
        if not isinstance(node, ImageNode):
            return False
        if node.image or (node.image_path and Path(node.image_path).parent == self.folder):
            return True
        if _is_made(node):
            return True
        return self._image_of(self._key(node.node_id)) is not None

    @contextmanager
    def inserting(self) -> Iterator[None]:
        """The context in which images are stored and the rows of their nodes written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tidy()
        with _lock(self.folder, exclusive=False):
            yield
        self.tidy()

    @contextmanager
    def deleting(self, node_ids: Iterable[str]) -> Iterator[None]:
        """The context in which rows are deleted; at its end, unused images are deleted too."""
        if self._has_records():
            with self._one_at_a_time():
                for node_id in node_ids:
                    if self._image_of(self._key(node_id)) is not None:
                        self._note_pending(node_id)
        yield
        self.tidy()

    def keep(self, node: TextNode) -> TextNode:
        """Store the image of a node if needed, and return the node with its path.

        Call it only within ``inserting``.

        Raises:
            ImageError: it is not an image, or another file is in its place.
        """
        if not self.concerns(node):
            return node
        assert isinstance(node, ImageNode)
        if not node.image and not _is_made(node):
            path = Path(node.image_path or "")
            kept = path.parent == self.folder and self._is_ours(path.name)
            with self._one_at_a_time():
                self._note_pending(node.node_id, *([path.name] if kept else []))
            return node
        path, data = self._named(node)
        with self._one_at_a_time():
            same = path.is_file() and not path.is_symlink() and path.read_bytes() == data
            if self._is_ours(path.name) or not (
                os.path.lexists(path) or os.path.lexists(self._users(path.name))
            ):
                self._note_pending(node.node_id, path.name)
                if not same:
                    _write(path, data, self._users(path.name))
            elif not same:
                raise ImageError(
                    describe(node),
                    f"{path} is in the way and was not written here; pass another storage_dir",
                )
            # Otherwise it is the user's own file, which is used and never deleted.
        return node.model_copy(update={"image": None, "image_path": str(path)})

    def kept_as(self, node: TextNode) -> TextNode:
        """The node as ``keep`` would return it, without writing anything.

        Raises:
            ImageError: it is not an image.
        """
        if not isinstance(node, ImageNode) or not (node.image or _is_made(node)):
            return node
        path, _ = self._named(node)
        return node.model_copy(update={"image": None, "image_path": str(path)})

    def _named(self, node: ImageNode) -> tuple[Path, bytes]:
        """The path under which to store an image, and its content."""
        if _is_made(node):
            data = read_image(Path(str(node.image_path)))
        else:
            check_image(node)
            written = str(node.image)
            data = base64.b64decode(written.partition(",")[2] or written)
        name = f"{hashlib.sha256(data).hexdigest()}.{image_format(data).lower()}"
        return self.folder / name, data

    def adopt(self, node_id: str, image: Path) -> bool:
        """Store a copy of another index's stored image for a node; only within ``inserting``.

        Args:
            node_id: the id of the node, which is about to be stored.
            image: the file in the other index's storage, named by its hash.

        Returns:
            Whether a file was written; it may have been there already.

        Raises:
            ImageError: its content does not match its name, or another file is in its new place.
        """
        path = self.folder / image.name
        with self._one_at_a_time():
            key = self._key(node_id)
            exists = path.is_file() and not path.is_symlink()
            if not self._is_ours(path.name) and (
                os.path.lexists(path) or os.path.lexists(self._users(path.name))
            ):
                if exists and path.stem == image_digest(path):
                    return False  # the user's own file, which is used and never deleted
                raise ImageError(
                    str(image), f"{path} is in the way and was not written here; move it away"
                )
            known = _pending(self.folder / "pending" / key) or ["", str(self._image_of(key))]
            if path.name not in known[1:]:
                self._note_pending(node_id, path.name)
            if not exists:
                _copy(image, path, self._users(path.name))
            return not exists

    def tidy(self) -> None:
        """Release pending images that no row uses, unless an insert is running in any process."""
        if not self._has_records() or not _files(self.folder / "pending"):
            return
        with _lock(self.folder, exclusive=True, wait=False) as alone, self._one_at_a_time():
            if not alone:
                return
            pending = self._unfinished()
            used = self._in_use(list(pending)) if pending else {}
            for node_id, names in pending.items():
                key = self._key(node_id)
                before = self._image_of(key)
                uses = [
                    each for each in used.get(node_id, ()) if (self._users(each) / key).is_file()
                ]
                if len(uses) > 1:  # stays pending until the node is inserted again or deleted
                    continue
                now = uses[0] if uses else None
                # The record goes last, so that after a kill the image can still be found.
                for name in {*names, *([before] if before else [])} - {now}:
                    self._release(name, key)
                if now is not None and now != before:
                    self._write_record("nodes", key, now)
                if now is None and before is not None:
                    (self.folder / "nodes" / key).unlink()
                (self.folder / "pending" / key).unlink()

    def _unfinished(self) -> dict[str, list[str]]:
        """Names of pending images, by node id; half-written files are deleted."""
        for kind in ("pending", "nodes"):
            for partial in _files(self.folder / kind, _PARTIAL):
                partial.unlink()
        pending: dict[str, list[str]] = {}
        for file in _files(self.folder / "pending"):
            node_id, *names = _pending(file) or [""]
            if self._key(node_id) == file.name:  # otherwise it belongs to another index
                pending[node_id] = names
            for name in names:
                for partial in _files(self._users(name), _PARTIAL):
                    partial.unlink()
        return pending

    def clear(self, *, all_owners: bool = False) -> None:
        """Delete all images that this index stored here, and nothing else.

        Args:
            all_owners: delete those of every index that stored images here.
        """
        owner = self._owner()
        if (owner is None and not all_owners) or not self._has_records():
            return
        with _lock(self.folder, exclusive=True, wait=False) as alone, self._one_at_a_time():
            for users in self.folder.glob("*.users"):
                for user in _files(users, _KEY):
                    pending = self.folder / "pending" / user.name
                    if not all_owners and _read(user) != owner:
                        continue
                    if _pending(pending) and not alone:
                        continue
                    if self._image_of(user.name) is not None:
                        (self.folder / "nodes" / user.name).unlink()
                    self._release(users.stem, user.name)
                    if _pending(pending):
                        pending.unlink()

    # --- records ---------------------------------------------------------------------------------

    def _key(self, node_id: str) -> str:
        return hashlib.sha256(json.dumps([self._owner(), node_id]).encode()).hexdigest()[:32]

    def _users(self, name: str) -> Path:
        return self.folder / f"{name}.users"

    def _has_records(self) -> bool:
        return _is_folder(self.folder / "nodes")

    def _is_ours(self, name: str) -> bool:
        """Whether this class wrote the image with this name, or was about to."""
        return KEPT_IMAGE.fullmatch(name) is not None and _is_folder(self._users(name))

    def _image_of(self, key: str) -> str | None:
        """The image that a stored node uses."""
        name = _read(self.folder / "nodes" / key)
        return name if name is not None and KEPT_IMAGE.fullmatch(name) else None

    def _note_pending(self, node_id: str, *names: str) -> None:
        """Record that a node may use these images."""
        key = self._key(node_id)
        known = _pending(self.folder / "pending" / key) or [node_id]
        record = [node_id, *dict.fromkeys([*known[1:], *names])]
        self._write_record("pending", key, json.dumps(record))
        for name in names:
            self._users(name).mkdir(exist_ok=True)
            _write(self._users(name) / key, str(self._owner()).encode(), self._users(name))

    def _release(self, name: str, key: str) -> None:
        """Remove a user of an image; the image is deleted with its last user."""
        if not self._is_ours(name):
            return
        path, users = self.folder / name, self._users(name)
        if not any(user.name != key for user in _files(users, _KEY)):
            if path.is_file() and not path.is_symlink():
                path.unlink()
            for partial in _files(users, _PARTIAL):
                partial.unlink()
        if _read(users / key) is not None:
            (users / key).unlink()
        with suppress(OSError):  # it has other users, or files that are not ours
            users.rmdir()

    def _write_record(self, kind: str, key: str, content: str) -> None:
        folder = self._records(kind)
        _write(folder / key, content.encode(), folder)

    def _records(self, kind: str) -> Path:
        """A folder of records, created if it is missing."""
        folder = self.folder / kind
        if not _is_folder(folder):
            if os.path.lexists(folder):
                raise ImageError(str(folder), "is not our folder; pass another storage_dir")
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Allow one change at a time, across all threads and processes."""
        with _ONE_THREAD, _lock(self._records("nodes"), exclusive=True):
            yield


def _pending(path: Path) -> list[str] | None:
    """The id of a node and the names of images in a file ``pending/KEY``; None if damaged."""
    try:
        record = json.loads(_read(path) or "null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, list) or not record or not all(isinstance(x, str) for x in record):
        return None
    return record if all(KEPT_IMAGE.fullmatch(name) for name in record[1:]) else None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _read(path: Path) -> str | None:
    """The content of a record, a small regular file in a folder that is not a link."""
    if not _is_folder(path.parent) or path.is_symlink() or not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(_LONGEST_RECORD)


def _files(folder: Path, name: re.Pattern[str] | None = None) -> list[Path]:
    """The regular files with matching names in a folder that is not a link."""
    if not _is_folder(folder):
        return []
    return [
        Path(entry)
        for entry in os.scandir(folder)
        if entry.is_file(follow_symlinks=False) and (name is None or name.fullmatch(entry.name))
    ]


def _write(path: Path, data: bytes, partial_in: Path) -> None:
    """Write a file atomically; a link in its place is replaced, never followed."""
    descriptor, partial = tempfile.mkstemp(".partial", ".gap-", partial_in)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    Path(partial).replace(path)


def _copy(image: Path, path: Path, partial_in: Path) -> None:
    """Copy an image that is named by its hash, completely or not at all."""
    descriptor, partial = tempfile.mkstemp(".partial", ".gap-", partial_in)
    digest = hashlib.sha256()
    try:
        with os.fdopen(descriptor, "wb") as file, open_file(image, image.parent) as source:
            while block := source.read(2**20):
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != image.stem:
            raise ImageError(str(image), "does not match the hash in its name; insert it again")
        Path(partial).replace(path)
    except FileError as error:
        raise ImageError(str(image), str(error)) from error
    finally:
        Path(partial).unlink(missing_ok=True)


@contextmanager
def _lock(folder: Path, *, exclusive: bool, wait: bool = True) -> Iterator[bool]:
    """Hold a lock on a folder, which ends with the process; yields whether it was acquired."""
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
            held = True
        except OSError:  # another process has it, or the file system has no locks
            held = False
        yield held
    finally:
        os.close(descriptor)
