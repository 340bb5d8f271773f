"""Which folders image files must lie in, where nodes name the files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import platformdirs

KEPT_IMAGE = re.compile(r"[0-9a-f]{64}\.[a-z0-9]{1,10}")
"""The name of an image that is kept by its content: its SHA-256, and the format."""
_LEVELS = 5  # stored by whomever: a path may have thousands


def count_kept(folder: Path) -> int:
    """How many images lie in a storage, which need not be there."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as entries:
        return sum(KEPT_IMAGE.fullmatch(entry.name) is not None for entry in entries)


_KEPT_DAYS = 30


def made_images() -> Path:
    """Where readers write the images that they make, each named by what it is made from.

    It is a cache of this user's: an index that takes such an image in keeps its own copy.
    """
    return Path(platformdirs.user_cache_path("llama-index-gap")) / "images"


def is_made(path: str | Path) -> bool:
    """Whether a path is that of an image that a reader made."""
    place = Path(path)
    return KEPT_IMAGE.fullmatch(place.name) is not None and place.parent == made_images().resolve()


def forget_old_images() -> None:
    """Delete the images that readers made, and nobody read again for 30 days; and parts of them."""
    folder = made_images()
    oldest = time.time() - _KEPT_DAYS * 24 * 3600
    for file in folder.iterdir() if folder.is_dir() else ():
        ours = KEPT_IMAGE.fullmatch(file.name) or file.name.endswith(".partial")
        if ours and file.lstat().st_mtime < oldest:
            file.unlink(missing_ok=True)


class ImageFolders:
    """The folders that an index's images must lie in, links followed.

    Args:
        allowed: folders whose images may be opened.
        known: folders that images lay in when they were indexed. They open nothing: where an image
            is no longer in its place, they tell which part of its path to look for below the
            allowed folders.
        storage: folder of images that are named by their content, and found by that name; nothing
            else that lies in it is opened.
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
        """Open images below these folders, too."""
        self.allowed += [folder for folder in folders if folder not in self.allowed]
        self.__dict__.pop("_resolved", None)

    @cached_property
    def _resolved(self) -> list[Path]:
        return [folder.resolve() for folder in self.allowed]

    def keep(self, path: Path) -> bool:
        """Whether a path, without links, is that of an image in the storage."""
        return path.parent == self.storage and KEPT_IMAGE.fullmatch(path.name) is not None

    def hold(self, path: Path) -> bool:
        """Whether a file lies below one of the folders, wherever links on its path lead.

        Args:
            path: of the file.

        Raises:
            OSError: the path cannot be followed.
            ValueError: it is no path.
        """
        file = path.resolve()
        return self.keep(file) or any(file.is_relative_to(each) for each in self._resolved)

    def find(self, path: str) -> str:
        """Where an image lies now: at its path, or at the same place below an allowed folder.

        Args:
            path: as it was stored, by whomever.
        """
        place = Path(path)
        if place.is_absolute() and any(place.is_relative_to(each) for each in self.allowed):
            return path
        below = [place] if not place.is_absolute() else []
        inside = [each for each in self.known if place.is_relative_to(each)]
        below += [place.relative_to(each) for each in inside]
        # Only the images' own folder may be known, and one above it be named.
        below += [place.relative_to(up) for each in inside for up in list(each.parents)[:_LEVELS]]
        moved = [folder / each for each in below for folder in self.allowed]
        if self.storage is not None and KEPT_IMAGE.fullmatch(place.name):
            moved.append(self.storage / place.name)
        for candidate in moved:
            try:
                if candidate.is_file() and self.hold(candidate):
                    return str(candidate)
            except (OSError, ValueError, RuntimeError):  # stored by whomever: too long, a NUL, …
                continue
        return path

    def __str__(self) -> str:
        first = [str(folder) for folder in self.allowed[:3]]
        rest = len(self.allowed) - len(first)
        return ", ".join([*first, *([f"… and {rest} more"] if rest else [])]) or "none"
