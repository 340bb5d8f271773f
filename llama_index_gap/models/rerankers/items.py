"""Prepares items for scorers."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from llama_index_gap.models.base import Item, Joint, LazyImage

if TYPE_CHECKING:
    from PIL.Image import Image


def decode_image(source: Image | LazyImage, scale_to_pixels: int | None = None) -> Image:
    """Decode an image, and scale it down with its aspect ratio to at most ``scale_to_pixels``.

    Args:
        source: an RGB image, which is not changed, or a lazy one.
        scale_to_pixels: maximum of width × height; None for any size.
    """
    image = source.open() if isinstance(source, LazyImage) else source
    if scale_to_pixels is None or image.width * image.height <= scale_to_pixels:
        return image
    scale = math.sqrt(scale_to_pixels / (image.width * image.height))
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def content_key(item: Item) -> str:
    """The key of an item's content in caches: equal keys mean equal content."""
    if isinstance(item, str):
        return f"text {hashlib.sha256(item.encode('utf-8', 'surrogatepass')).hexdigest()}"
    if isinstance(item, LazyImage):
        return f"image {item.key}"
    if isinstance(item, Joint):
        return f"{content_key(item.image)} and {content_key(item.text)}"
    pixels = hashlib.sha256(repr(item.size).encode())
    pixels.update(item.convert("RGB").tobytes())
    return f"pixels {pixels.hexdigest()}"
