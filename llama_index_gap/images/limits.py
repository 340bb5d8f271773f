"""Limits on the cost of decoding an image, checked before it is decoded."""

from __future__ import annotations

import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import IO, cast

from PIL import BmpImagePlugin, IcoImagePlugin, Image, PngImagePlugin

from llama_index_gap.images import jpeg2000
from llama_index_gap.images.jpeg import segments_and_scans

MAX_PIXELS = 89_478_485
"""The most pixels that are decoded by default: Pillow's limit, 256 MiB in RGB files."""
BYTES_PER_PIXEL = 3
"""Stored bytes for each allowed pixel; an image with more bytes per pixel may have fewer pixels."""
WORKING_BYTES = 16
"""Bytes of memory for each allowed pixel while an image is decoded: 1.4 GB by default. A format
that takes more may have fewer pixels."""
MAX_SCANS = 100
"""The most scans of a JPEG image. Encoders write about 10; each goes over all pixels again."""
MAX_SLOW_BYTES = 4 * 2**20
"""The most bytes of a file that Pillow decodes in Python: 16-bit or plain-text PPM, packed BMP.
So many bytes, or four times as many pixels, take a few seconds."""
MEMORY = 512 * 2**20
"""Bytes that all images together may take while they are decoded; a single one may take more."""

# Bytes of memory per pixel until an image is RGB, measured by tests/trust/test_images.py: for the
# decoder, the image, and a copy.
_WORKING = {"AVIF": 24, "ICO": 24, "JPEG": 14, "MPO": 14, "TIFF": 16, "WEBP": 24}
_WORKING_OF_OTHERS = 12
_WORKING_OF_JPEG2000, _WORKING_OF_A_JPEG2000_BAND = 4, 10  # plus this for each band
# This allows any number of code blocks of 16×16 pixels, or a few layers of larger ones.
_MOST_JPEG2000_PIECES, _PIXELS_OF_A_PIECE = 50_000, 30
_STRIPS, _STRIP_SIZES, _TILES, _TILE_SIZES = 273, 279, 324, 325

_PNG = b"\x89PNG\r\n\x1a\n"
_TRANSPARENCY, _PIXELS, _LAST = b"tRNS", b"IDAT", b"IEND"
_ANCILLARY = 32  # this bit makes a chunk name's first letter lower case


def costs_too_much(
    image: Image.Image, stream: IO[bytes], max_pixels: int, scans: int = 0
) -> str | None:
    """Why an image is too expensive to decode; None if it is not.

    Args:
        image: opened, not decoded.
        stream: its file; the position changes.
        max_pixels: the most pixels it may have. Its scans may go over ten times as many.
        scans: number of scans, for a JPEG file.
    """
    if image.format == "ICO" and (problem := costs_too_much(_in_icon(image), stream, max_pixels)):
        return problem
    pixels, limit = image.width * image.height, f"more than max_pixels={max_pixels:,}"
    if pixels > max_pixels:
        return f"{image.width}×{image.height} is {pixels:,} pixels, {limit}"
    stored = pixels * _bytes_per_pixel(image)
    if stored > BYTES_PER_PIXEL * max_pixels:
        return (
            f"{pixels:,} pixels of {_bytes_per_pixel(image)} bytes are {stored:,} bytes, "
            f"{limit} times {BYTES_PER_PIXEL}"
        )
    if working_bytes(image) > WORKING_BYTES * max_pixels:
        return (
            f"decoding {pixels:,} pixels of {image.format} takes {working_bytes(image):,} bytes "
            f"of memory, {limit} times {WORKING_BYTES}"
        )
    match image.format:
        case "JPEG" | "MPO":
            return _too_many_scans(scans, pixels, max_pixels)
        case "TIFF":
            return _strips_cost_too_much(image, stream, max_pixels)
        case "JPEG2000":
            most = _MOST_JPEG2000_PIECES + pixels // _PIXELS_OF_A_PIECE
            if jpeg2000.pieces(stream, most) > most:
                return f"more than {most:,} tiles, layers and blocks for {pixels:,} pixels"
    slow = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
    if slow and max(_size(stream), pixels // 4) > MAX_SLOW_BYTES:
        return (
            f"a {image.format} file of a kind that decodes slowly (16-bit, plain-text or packed), "
            f"of more than {MAX_SLOW_BYTES // 2**20} MiB; save it as PNG"
        )
    return None


def working_bytes(image: Image.Image) -> int:
    """The most bytes of memory that an image takes until it is RGB."""
    pixels = image.width * image.height
    each = _WORKING.get(str(image.format), _WORKING_OF_OTHERS)
    if image.format == "JPEG2000":
        each = _WORKING_OF_JPEG2000 + _WORKING_OF_A_JPEG2000_BAND * len(image.getbands())
    if image.format == "ICO":
        with suppress(Exception):  # damaged: decoding it reports so
            inside = _in_icon(image)
            pixels = max(pixels, inside.width * inside.height)
    return each * pixels


def _in_icon(image: Image.Image) -> Image.Image:
    """The image in an icon, not decoded; it may be larger than the icon's header claims."""
    icons = cast("IcoImagePlugin.IcoImageFile", image).ico
    icons.buf.seek(icons.entry[icons.getentryindex(image.size)].offset)
    start = icons.buf.read(len(_PNG))
    icons.buf.seek(-len(start), 1)
    if start == _PNG:
        return PngImagePlugin.PngImageFile(icons.buf)
    return BmpImagePlugin.DibImageFile(icons.buf)  # twice as high, because of its mask


def _bytes_per_pixel(image: Image.Image) -> int:
    """Bytes per pixel as the file stores them; the decoder's arguments may tell of 16 bits."""
    depth = {"I": 4, "F": 4}.get(image.mode, 1)
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    named = arguments if isinstance(arguments, tuple) else (arguments,)
    if image.mode.startswith("I;16") or any(";16" in each for each in named if type(each) is str):
        depth = 2
    return depth * len(image.getbands())


def _too_many_scans(scans: int, pixels: int, max_pixels: int) -> str | None:
    if scans > MAX_SCANS or scans * pixels > 10 * max_pixels:
        return f"{scans} scans over {pixels:,} pixels, where 10 are usual"
    return None


def _strips_cost_too_much(image: Image.Image, stream: IO[bytes], max_pixels: int) -> str | None:
    """Check a TIFF file, whose strips or tiles may all point to the same bytes."""
    tags = getattr(image, "tag_v2", {})
    places = (*tags.get(_STRIPS, ()), *tags.get(_TILES, ()))
    sizes = (*tags.get(_STRIP_SIZES, ()), *tags.get(_TILE_SIZES, ()))
    in_file, together = _size(stream), sum(sizes)
    if together > max(in_file, BYTES_PER_PIXEL * max_pixels):
        return f"{len(sizes):,} strips or tiles of {together:,} bytes in a file of {in_file:,}"
    if image.info.get("compression") != "jpeg":
        return None
    most = 0
    for place, size in set(zip(places, sizes, strict=False)):  # each is a separate JPEG image
        stream.seek(place)
        most = max(most, segments_and_scans(BytesIO(stream.read(size)))[1])
    return _too_many_scans(most, image.width * image.height, max_pixels)


def _size(stream: IO[bytes]) -> int:
    return stream.seek(0, 2)


def without_unused_chunks(stream: IO[bytes]) -> BytesIO | None:
    """Copy a PNG file without the chunks that its pixels do not need.

    A damaged colour profile, text, EXIF block or other chunk may be all that makes a file
    unreadable.

    Args:
        stream: a file; its position changes.

    Returns:
        The copy; None if it is not a PNG file, is damaged elsewhere, or has no such chunks.
    """
    stream.seek(0)
    if stream.read(len(_PNG)) != _PNG:
        return None
    kept, dropped, pixels, kind = BytesIO(_PNG), False, False, b""
    kept.seek(0, 2)
    while kind != _LAST and len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if length > 2**31 - 1:
            return None
        body = stream.read(length + 4)
        if len(body) != length + 4:
            if not (kind[0] & _ANCILLARY and pixels):
                return None
            dropped = True  # truncated, but after all pixels
            break
        pixels = pixels or kind == _PIXELS
        if kind[0] & _ANCILLARY and kind != _TRANSPARENCY:
            dropped = True
        elif zlib.crc32(kind + body[:-4]) != struct.unpack(">I", body[-4:])[0]:
            return None
        else:
            kept.write(head + body)
    kept.seek(0)
    return kept if dropped else None


class _Memory:
    """Bytes in use; a thread that needs more than is free waits, unless nothing is in use."""

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                # In turn, or many small images would keep a large one waiting for ever.
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._has(size))
                self._used += size
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()

    def _has(self, size: int) -> bool:
        return not self._used or self._used + size <= self._most


_memory = _Memory(MEMORY)


@contextmanager
def memory_for(image: Image.Image) -> Iterator[None]:
    """Wait until there is memory to decode an image beside the others.

    A thread that holds memory never asks for more, so threads cannot deadlock.
    """
    with _memory.taken(working_bytes(image)):
        yield
