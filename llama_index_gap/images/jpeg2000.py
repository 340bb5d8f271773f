"""Estimates the cost of decoding a JPEG2000 file, besides its pixels, without decoding it."""

from __future__ import annotations

import struct
from typing import IO, NamedTuple

_CODE_STREAM, _SIZES, _CODING, _CODING_OF_ONE = b"\xff\x4f", b"\xff\x51", b"\xff\x52", b"\xff\x53"
_TILE_PART, _DATA, _END = b"\xff\x90", b"\xff\x93", b"\xff\xd9"
_HAS_PRECINCTS = 1
_MOST_COMPONENTS = 4


class _Sizes(NamedTuple):
    """The sizes of the whole image and its tiles, in pixels of the reference grid."""

    width: int
    height: int
    left: int
    top: int
    tile_width: int
    tile_height: int
    tile_left: int
    tile_top: int
    components: int


class _Coding(NamedTuple):
    """How a tile is divided into pieces; all sizes are exponents of two."""

    layers: int
    levels: int
    block: tuple[int, int]
    precincts: list[tuple[int, int]]


def pieces(stream: IO[bytes], most: int) -> int:
    """Count the packets and blocks of an image: each takes time and memory, even if it is empty.

    Args:
        stream: a JPEG2000 file; its position changes.
        most: counting may stop above this number.

    Raises:
        Exception: the file is damaged; the type varies.
    """
    position = _code_stream(stream) + 2
    sizes, layers, tile_end, count = None, 1, 0, 0
    while count <= most:
        stream.seek(position)
        marker = stream.read(2)
        if len(marker) < 2 or marker == _END:
            break
        if marker == _DATA:
            if not tile_end:  # it extends to the end of the file
                break
            if tile_end <= position:
                raise ValueError("a tile ends before its data")
            position = tile_end
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        if marker[0] != 255 or length < 2:
            raise ValueError(f"no marker at byte {position}")
        body = stream.read(length - 2)
        count += 1
        if marker == _SIZES:
            sizes = _Sizes(*struct.unpack(">8IH", body[2:36]))
            if not 0 < sizes.components <= _MOST_COMPONENTS:
                raise ValueError(f"{sizes.components} components")
        elif marker == _TILE_PART:
            (size,) = struct.unpack(">I", body[2:6])
            tile_end = position + size if size else 0
        elif marker in {_CODING, _CODING_OF_ONE} and sizes is not None:
            # A single tile may have its own coding; it is counted as if all tiles had it.
            if marker == _CODING:
                (layers,) = struct.unpack(">H", body[2:4])
            flags, start = (body[0], 5) if marker == _CODING else (body[1], 2)
            coding = _coding(body[start:], layers, with_precincts=bool(flags & _HAS_PRECINCTS))
            count = max(count, _pieces(sizes, coding))
        position += 2 + length
    return count


def _code_stream(stream: IO[bytes]) -> int:
    """The place where the code stream begins: at the start, or in a box."""
    stream.seek(0)
    if stream.read(2) == _CODE_STREAM:
        return 0
    position = 0
    while True:
        stream.seek(position)
        size, kind = struct.unpack(">I4s", stream.read(8))
        head = 8
        if size == 1:  # a 64-bit size
            (size,), head = struct.unpack(">Q", stream.read(8)), 16
        if kind == b"jp2c":
            return position + head
        if size < head:
            raise ValueError("no code stream")
        position += size


def _coding(body: bytes, layers: int, *, with_precincts: bool) -> _Coding:
    levels, across, down = body[0], body[1] + 2, body[2] + 2
    precincts = [(15, 15)] * (levels + 1)
    if with_precincts:
        precincts = [(size & 15, size >> 4) for size in body[5 : 6 + levels]]
    return _Coding(layers, levels, (across, down), precincts)


def _pieces(sizes: _Sizes, coding: _Coding) -> int:
    width = min(sizes.tile_width, sizes.width - sizes.left)
    height = min(sizes.tile_height, sizes.height - sizes.top)
    tiles = _parts(sizes.width - sizes.tile_left, sizes.tile_width) * _parts(
        sizes.height - sizes.tile_top, sizes.tile_height
    )
    of_a_tile = 0
    for level in range(coding.levels + 1):
        scale = 2 ** (coding.levels - level)
        across, down = coding.precincts[level]
        wide, high = _parts(width, scale), _parts(height, scale)
        precincts = _parts(wide, 2**across) * _parts(high, 2**down)
        bands, half = (3, 1) if level else (1, 0)  # bands are half the level's size
        blocks = _parts(wide, 2 ** (min(coding.block[0], max(across - half, 0)) + half)) * _parts(
            high, 2 ** (min(coding.block[1], max(down - half, 0)) + half)
        )
        of_a_tile += precincts * coding.layers + bands * max(blocks, precincts)
    return tiles * sizes.components * of_a_tile


def _parts(length: int, size: int) -> int:
    return -(-length // size)
