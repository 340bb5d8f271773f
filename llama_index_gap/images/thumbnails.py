"""Small images for pages and notebooks."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from llama_index_gap.images.opening import ImageError, ImageSource, scaled_jpeg

LARGE = 800
"""The longest side in pixels, for pages that show an image small and enlarge it on a click."""


@dataclass(frozen=True)
class Thumbnail:
    """A small image as a data URI, or why there is none."""

    uri: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""


def thumbnail(source: ImageSource, longest: int = 320) -> Thumbnail:
    """Make a small image for a page; if that fails, the result holds the reason.

    Args:
        source: as for ``open_image``.
        longest: the most pixels of a side.
    """
    try:
        data, size = scaled_jpeg(source, longest)
    except ImageError as error:
        return Thumbnail(problem=error.reason)
    return Thumbnail(f"data:image/jpeg;base64,{base64.b64encode(data).decode()}", *size)
