"""What scorers do with a picture before their model sees it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from llama_index_gap.models.base import Picture

if TYPE_CHECKING:
    from PIL.Image import Image


def open_picture(picture: Image | Picture, max_pixels: int | None = None) -> Image:
    """Decode a picture, and scale it down, in its own shape, to at most so many pixels.

    Args:
        picture: an RGB image, which is left as it is, or what opens one.
        max_pixels: width × height; None for any size.
    """
    image = picture.open() if isinstance(picture, Picture) else picture
    if max_pixels is None or image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))
