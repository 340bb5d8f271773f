"""Reads images for LlamaIndex's ``SimpleDirectoryReader``, which otherwise reads them as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.readers.base import BaseReader
from llama_index.core.schema import Document, ImageDocument

from llama_index_gap.images.limits import MAX_PIXELS
from llama_index_gap.images.opening import check_image

_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff"),
    ".webp",
)


class ImageFileReader(BaseReader):
    """Makes an image document from a file, which is checked but neither decoded nor copied.

    Args:
        max_pixels: refuse images with more pixels than this.
    """

    def __init__(self, max_pixels: int = MAX_PIXELS) -> None:
        self._max_pixels = max_pixels

    def load_data(
        self, file: str | Path, extra_info: dict[str, Any] | None = None, **_: Any
    ) -> list[Document]:
        """Read one file.

        Args:
            file: an image file on this machine.
            extra_info: its metadata.

        Raises:
            ImageError: the file is not an image that can be read. ``SimpleDirectoryReader`` then
                prints the error and skips the file; with ``raise_on_error=True`` it stops.
        """
        check_image(Path(file), max_pixels=self._max_pixels)
        path = str(Path(file).absolute())
        return [ImageDocument(image_path=path, metadata=dict(extra_info or {}))]

    @classmethod
    def by_suffix(cls, max_pixels: int = MAX_PIXELS) -> dict[str, BaseReader]:
        """A reader for each image suffix, for ``SimpleDirectoryReader(file_extractor=…)``.

        Args:
            max_pixels: refuse images with more pixels than this.
        """
        return dict.fromkeys(_SUFFIXES, cls(max_pixels))
