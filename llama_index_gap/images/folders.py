"""The folders that image files must lie in if nodes name them, and folders of kept images."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import platformdirs

KEPT_IMAGE = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,10}")
"""The name of an image that is kept by content: its SHA-256 and its format."""
_LEVELS = 5  # an untrusted path may have thousands


def count_kept(folder: Path) -> int:
    """The number of images in a storage folder; 0 if it does not exist."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(KEPT_IMAGE.fullmatch(entry.name) is not None for entry in entries)


_KEPT_DAYS = 30


def made_images() -> Path:
    """The folder where readers write the images that they make, named by a hash of their source.

    It is a cache of the user: an index that receives such an image keeps its own copy.
    """
    return Path(platformdirs.user_cache_path("llama-index-gap")) / "images"


def is_made(path: str | Path) -> bool:
    """Whether a path belongs to an image that a reader made."""
    place = Path(path)
    return KEPT_IMAGE.fullmatch(place.name) is not None and place.parent == made_images().resolve()


def forget_old_images() -> None:
    """Delete images and partial files that readers made and nobody has read for 30 days."""
    folder = made_images()
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for file in folder.iterdir() if folder.is_dir() else ():
        ours = KEPT_IMAGE.fullmatch(file.name) or file.name.endswith(".partial")
        if ours and file.lstat().st_mtime < oldest:
            file.unlink(missing_ok=True)


class ImageFolders:
    """The folders that an index's images must lie in, after links are resolved.

    Args:
        allowed: folders whose images may be opened.
        known: folders that images lay in when they were indexed. They do not allow opening images:
            if an image has moved, they show which part of its path to look for below the allowed
            folders.
        storage: folder of images that are named by their content and found by that name; no other
            file in it is opened.
    """

    def __init__(
        self,
        allowed: Iterable[str | Path],
        known: Iterable[str | Path] = (),
        storage: Path | None = None,
    ) -> None:
        self.allowed = [Path(folder).absolute() for folder in allowed]
        self.known = [Path(folder) for folder in known]
        self.storage = storage

    def allow(self, folders: Iterable[Path]) -> None:
        """Also open images below these folders."""
        self.allowed += [folder for folder in folders if folder not in self.allowed]
        self.__dict__.pop("_resolved", None)

    @cached_property
    def _resolved(self) -> list[Path]:
        return [folder.resolve() for folder in self.allowed]

    def keep(self, path: Path) -> bool:
        """Whether a path, without links, belongs to an image in the storage."""
        return path.parent == self.storage and KEPT_IMAGE.fullmatch(path.name) is not None

    def hold(self, path: Path) -> bool:
        """Whether a file lies below one of the folders, wherever links on its path lead.

        Args:
            path: the file's path.

        Raises:
            OSError: the path cannot be followed.
            ValueError: it is not a path.
        """
        file = path.resolve()
        return self.keep(file) or any(file.is_relative_to(each) for each in self._resolved)

    def find(self, path: str) -> str:
        """The current place of an image: its path, or the same place below an allowed folder.

        Args:
            path: the stored path, which is not trusted.
        """
        place = Path(path)
        if place.is_absolute() and any(place.is_relative_to(each) for each in self.allowed):
            return path
        below = [place] if not place.is_absolute() else []
        inside = [each for each in self.known if place.is_relative_to(each)]
        below += [place.relative_to(each) for each in inside]
        # Perhaps only the images' own folder is known, and a folder above it is allowed.
        below += [place.relative_to(up) for each in inside for up in list(each.parents)[:_LEVELS]]
        moved = [folder / each for each in below for folder in self.allowed]
        if self.storage is not None and KEPT_IMAGE.fullmatch(place.name):
            moved.append(self.storage / place.name)
        for candidate in moved:
            try:
                if candidate.is_file() and self.hold(candidate):
                    return str(candidate)
            except (OSError, ValueError, RuntimeError):  # an untrusted path: too long, a NUL, …
                continue
        return path

    def __str__(self) -> str:
        first = [str(folder) for folder in self.allowed[:3]]
        rest = len(self.allowed) - len(first)
        return ", ".join([*first, *([f"… and {rest} more"] if rest else [])]) or "none"
