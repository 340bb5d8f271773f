"""Caches of limited size, in memory and on disk."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llama_index_gap.files import write_at_once

logger = logging.getLogger(__name__)

DISK_BYTES = 2**31
"""Default size of the cache on disk: some 5,000 to 10,000 pages of ColQwen2."""
_UNCHECKED_SHARE = 1 / 64  # of the limit: after that many new bytes, the folder is checked again
_CACHE_FILE = re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.safetensors\.\d+-\d+\.partial")

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Values by key, up to a number of bytes; the least recently used go first.

    Several threads may use it.

    Args:
        max_bytes: maximum size; 0 keeps nothing.
        size: gives the bytes of a value.
    """

    def __init__(self, max_bytes: int, size: Callable[[Value], int]) -> None:
        self.max_bytes = max_bytes
        self._size = size
        self._lock = threading.Lock()
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> Value | None:
        """The value, which now counts as used; None if it is not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: Value) -> None:
        """Keep a value, unless it alone is larger than ``max_bytes``."""
        size = self._size(value)
        if size > self.max_bytes:
            return
        with self._lock:
            if key in self._values:
                self._bytes -= self._size(self._values.pop(key))
            self._values[key] = value
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, oldest = self._values.popitem(last=False)
                self._bytes -= self._size(oldest)

    def __contains__(self, key: str) -> bool:
        with self._lock:
            return key in self._values

    def __len__(self) -> int:
        with self._lock:
            return len(self._values)

    @property
    def nbytes(self) -> int:
        """Current size in bytes."""
        with self._lock:
            return self._bytes


class TensorFolder:
    """Named tensors by key, with a safetensors file for each key.

    Several threads and processes may use it, since files are written atomically. The least recently
    used files are deleted first. Each process checks the folder from time to time, so several
    processes together may exceed the limit by a few per cent.

    Args:
        folder: created if it does not exist, readable by this user only.
        part: a subfolder for this use; all subfolders share the limit.
        max_bytes: maximum size of the folder with all its subfolders; None for any size.
    """

    def __init__(self, folder: Path, part: str = "", *, max_bytes: int | None = None) -> None:
        self._root, self._folder, self.max_bytes = folder, folder / part, max_bytes
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.mkdir(exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._unchecked = max_bytes or 0  # bytes since the last check; there was none yet

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors, on the CPU; None if they are not cached, or damaged, which is logged."""
        path = self._path(key)
        try:
            if not path.is_file():
                return None
            if self.max_bytes is not None and path.stat().st_size > self.max_bytes:
                logger.warning("%s is larger than the cache's limit; it is computed again", path)
                return None
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                stated = (file.metadata() or {}).get("digest")
        except FileNotFoundError:  # another process has just deleted it
            return None
        except (SafetensorError, OSError) as error:
            logger.warning("%s cannot be read (%s); it is computed again", path, error)
            return None
        if stated != digest(tensors):
            logger.warning("%s is damaged; it is computed again", path)
            return None
        if self.max_bytes is not None:
            with suppress(OSError):
                os.utime(path)  # it now counts as used
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors; a failure to write is logged, and is not an error."""
        path = self._path(key)
        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        data = save(on_cpu, metadata={"digest": digest(on_cpu)})
        if self.max_bytes is not None and len(data) > self.max_bytes:
            return
        try:
            write_at_once(path, data)
            self._make_room(len(data))
        except OSError as error:
            logger.warning("%s cannot be written (%s); it is not kept", path, error)

    def _make_room(self, added: int) -> None:
        if self.max_bytes is None:
            return
        with self._lock:
            self._unchecked += added
            if self._unchecked <= self.max_bytes * _UNCHECKED_SHARE:
                return
            self._unchecked = 0
            files: list[tuple[float, int, Path]] = []
            for path in [*self._root.glob("*"), *self._root.glob("*/*")]:
                # Delete only cache files, whatever else is in the folder.
                if _CACHE_FILE.fullmatch(path.name):
                    with suppress(OSError):  # another process was faster
                        known = path.lstat()
                        files.append((known.st_mtime, known.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total <= self.max_bytes:
                    break
                path.unlink(missing_ok=True)
                total -= size

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    def _path(self, key: str) -> Path:
        # Unlike a file name, a key may have any characters and any length.
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def user_cache_folder() -> Path:
    """The default folder for this user's vectors of images."""
    return Path(platformdirs.user_cache_path("llama-index-gap")) / "vectors"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors: their names, number formats, shapes and numbers."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
