"""Where the image lies that a table names, as shops and other programs write paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote

# Where shops keep the images that their exports name from there on.
_MEDIA = ("media", "media/catalog/product", "pub/media", "pub/media/catalog/product")
_BELOW_ROOT = ("", *_MEDIA, "catalog/product")
_NO_PATH = re.compile(r"\x00|://|^//|^data:", re.I)
_MOST_FOLDERS, _MOST_HINTS = 200, 100


class ImagePaths:
    """Finds images by the paths of tables.

    A path counts from the table's folder, then from the root. One that starts with ``/`` counts
    from the root, if the user names one: from its own, or from what Magento calls its media.

    Args:
        folder: of the table.
        root: what images must lie in.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._written = folder
        self._folder, self._root = folder.resolve(), root.resolve()
        self._hints = 0

    def find(self, path: str) -> Path:
        """The file that a path means; where there is none, the one that would be it.

        Args:
            path: as it is written: with backslashes, percent signs, or another form of accents.
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
        """What to say of a path that leads nowhere: how to name the folder where it starts.

        Args:
            path: as it is written.
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
                "; if such paths start at a folder of a shop's, such as media, pass that folder as "
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
    """A path as it is written, and as other systems write it."""
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
    except (OSError, ValueError, RuntimeError):  # a name too long, a loop of links
        return False
