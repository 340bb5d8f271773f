"""Finds the images that a table names, however shops and other programs write the paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

# Folders of shops: the image paths in their exports start here.
_MEDIA = ("media", "media/catalog/product", "pub/media", "pub/media/catalog/product")
_BELOW_ROOT = ("", *_MEDIA, "catalog/product")
_NO_PATH = re.compile(r"\x00|://|^//|^data:", re.I)
_MOST_FOLDERS, _MOST_HINTS = 200, 100


class ImagePaths:
    """Finds images by the paths in a table.

    A path is tried from the table's folder, then from the root. If the user names a root, a path
    that starts with ``/`` starts at the root or at one of Magento's media folders below it.

    Args:
        folder: the table's folder.
        root: the folder that images must lie in.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._written = folder
        self._folder, self._root = folder.resolve(), root.resolve()
        self._hints = 0

    def find(self, path: str) -> Path:
        """The file that a path means; if it does not exist, the most likely place for it.

        Args:
            path: as written in the table, perhaps with backslashes, percent escapes, or accents in
                another Unicode form.
        """
        written = self._folder / path
        if ".." in written.parts or (written.is_relative_to(self._root) and _is_file(written)):
            return written
        for form in _forms(path):
            if ".." in Path(form).parts:
                continue
            places = [self._folder, self._root]
            if form.startswith("/"):
                places = [self._root / each for each in self._media_roots]
            for place in places:
                if _is_file(found := place / form.lstrip("/")):
                    return found
        named = self._root != self._folder and not written.is_relative_to(self._root)
        return self._root / path.lstrip("/") if named else written

    @property
    def _media_roots(self) -> tuple[str, ...]:
        return _BELOW_ROOT if self._root != self._folder else ("",)

    def hint(self, path: str) -> str:
        """A hint for a path that leads nowhere: which root would make it work.

        Args:
            path: as written in the table.
        """
        if _NO_PATH.search(path) or ".." in Path(path).parts:
            return ""
        if self._root != self._folder:
            return ""
        if self._hints < _MOST_HINTS:
            self._hints += 1
            for folder in self._folders:
                for form in _forms(path):
                    if _is_file(self._folder / folder / form.lstrip("/")):
                        place = self._written / folder
                        return f"; it lies below {folder}: pass root={place} (--root {place})"
        if path.startswith(("/", "\\")):
            return (
                "; if such paths start at a shop's folder, such as media, pass that folder as "
                "root= (--root)"
            )
        return ""

    @cached_property
    def _folders(self) -> list[str]:
        with os.scandir(self._folder) as entries:
            found = sorted(
                entry.name
                for _, entry in zip(range(_MOST_FOLDERS), entries, strict=False)
                if entry.is_dir() and not entry.name.startswith(".")
            )
        return [*found, *(each for each in _MEDIA if "/" in each)]


def _forms(path: str) -> Iterator[str]:
    """A path as written, and as other systems write it."""
    seen: set[str] = set()
    for slashes in (path, path.replace("\\", "/")):
        for form in (slashes, re.sub(r"[?#].*$", "", slashes), unquote(slashes)):
            for text in (form.strip(), normalize("NFC", form), normalize("NFD", form)):
                if text and "\x00" not in text and text not in seen:
                    seen.add(text)
                    yield text


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that is too long, or a loop of links
        return False
