"""What decoding an image may cost, known from its file before it is decoded."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import IO, cast

from PIL import IcoImagePlugin, Image

MAX_PIXELS = 89_478_485
"""Most pixels that are decoded by default: Pillow's own limit, 256 MiB in RGB files."""
BYTES_PER_PIXEL = 3
"""Of these, most bytes for each pixel that is allowed: an image with more may have fewer pixels."""
MAX_SCANS = 100
"""Most scans of a JPEG image. Encoders write about 10; each goes over all pixels again."""
MAX_PLAIN_BYTES = 4 * 2**20
"""Of a PPM file that writes its numbers out, which are read one by one: some seconds."""
WORKING_BYTES = 9
"""Of memory for each pixel, at most, while an image is decoded and made RGB; measured."""
MEMORY = 512 * 2**20
"""Bytes that all images may take together while they are decoded; one alone may take more."""

_PNG = b"\x89PNG\r\n\x1a\n"
_UNUSED_CHUNKS = frozenset({b"iCCP", b"iTXt", b"tEXt", b"zTXt", b"eXIf"})


def costs_too_much(image: Image.Image, stream: IO[bytes], max_pixels: int) -> str | None:
    """Say what makes an image too expensive to decode; None if nothing does.

    Args:
        image: opened, not decoded.
        stream: its file; left at another place.
        max_pixels: how many pixels it may have. Its scans may go over ten times as many.
    """
    pixels = image.width * image.height
    if image.format == "ICO":  # the images in it may be larger than it says
        icons = cast("IcoImagePlugin.IcoImageFile", image).ico
        inside = icons.frame(icons.getentryindex(image.size))
        pixels = max(pixels, inside.width * inside.height)
    if pixels > max_pixels:
        size = f"{image.width}×{image.height}"
        return f"{size} is {pixels:,} pixels, more than max_pixels={max_pixels:,}"
    stored = pixels * _bytes_per_pixel(image)
    if stored > BYTES_PER_PIXEL * max_pixels:
        return (
            f"{pixels:,} pixels of {_bytes_per_pixel(image)} bytes are {stored:,} bytes, more than "
            f"max_pixels={max_pixels:,} times {BYTES_PER_PIXEL}"
        )
    if image.format in {"JPEG", "MPO", "TIFF"}:
        scans = _scans(image, stream)
        if scans > MAX_SCANS or scans * pixels > 10 * max_pixels:
            return f"{scans} scans over {pixels:,} pixels, where 10 are usual"
    if image.format == "PPM":
        stream.seek(0)
        if stream.read(2) in {b"P1", b"P2", b"P3"} and stream.seek(0, 2) > MAX_PLAIN_BYTES:
            return (
                f"a PPM file of numbers written out, of more than {MAX_PLAIN_BYTES // 2**20} MiB; "
                "save it in binary form"
            )
    return None


def _bytes_per_pixel(image: Image.Image) -> int:
    """As the file stores them: of 16 bits where the decoder's arguments say so."""
    depth = {"I": 4, "F": 4}.get(image.mode, 1)
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    named = arguments if isinstance(arguments, tuple) else (arguments,)
    if image.mode.startswith("I;16") or any("16" in str(each) for each in named):
        depth = 2
    return depth * len(image.getbands())


def _scans(image: Image.Image, stream: IO[bytes]) -> int:
    """How often the decoder goes over the pixels: the start-of-scan markers of the file.

    In compressed data a byte 255 is followed by 0, so the marker's two bytes mean nothing else. The
    strips or tiles of a TIFF image are JPEG images of their own.
    """
    stream.seek(0)
    markers, before = 0, b""
    while part := stream.read(2**20):
        markers += (before + part).count(b"\xff\xda")
        before = part[-1:]
    if image.format != "TIFF":
        return markers
    tags = getattr(image, "tag_v2", {})
    pieces = max((len(tags.get(tag) or ()) for tag in (273, 324)), default=0)  # strips, tiles
    return -(-markers // max(pieces, 1)) if "jpeg" in str(image.info.get("compression")) else 0


def without_unused_chunks(stream: IO[bytes]) -> BytesIO | None:
    """A PNG file without colour profile, texts and EXIF, for one of which it cannot be read.

    Args:
        stream: a file; left at another place.

    Returns:
        None if it is no PNG file, is damaged elsewhere, or has none of these.
    """
    stream.seek(0)
    if stream.read(len(_PNG)) != _PNG:
        return None
    kept, dropped = BytesIO(_PNG), False
    kept.seek(0, 2)
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if length > 2**31 - 1:
            return None
        body = stream.read(length + 4)
        if len(body) != length + 4:
            return None
        if kind in _UNUSED_CHUNKS:
            dropped = True
        elif zlib.crc32(kind + body[:-4]) != struct.unpack(">I", body[-4:])[0]:
            return None
        else:
            kept.write(head + body)
    kept.seek(0)
    return kept if dropped else None


class _Memory:
    """Bytes that are in use; who asks for more than is left waits, unless nothing is in use."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._most)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


_memory = _Memory(MEMORY)


@contextmanager
def memory_for(image: Image.Image) -> Iterator[None]:
    """Wait until an image can be decoded without taking too much memory beside the others.

    A thread that has memory never asks for more, so that threads cannot wait for each other.
    """
    with _memory.taken(WORKING_BYTES * image.width * image.height):
        yield
