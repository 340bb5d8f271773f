"""Counts the segments of a JPEG file, and removes its metadata, without decoding it."""

from __future__ import annotations

import re
from io import BytesIO
from typing import IO

MAX_SEGMENTS = 1000
"""The most segments of a JPEG file: metadata in pieces of up to 64 kB, tables and scans."""

_START = b"\xff\xd8\xff"
_SCAN, _END = 0xDA, 0xD9
# Not a stuffed byte (0), a fill byte (255), or a marker inside compressed data.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_BLOCK = 2**16
_APP0, _APP1, _APP14, _APP15, _COMMENT = 0xE0, 0xE1, 0xEE, 0xEF, 0xFE
_EXIF, _ADOBE_BYTES = b"Exif\x00\x00", 12


def is_jpeg(stream: IO[bytes]) -> bool:
    """Whether a stream holds a JPEG file; its position changes."""
    stream.seek(0)
    return stream.read(len(_START)) == _START


def segments_and_scans(stream: IO[bytes]) -> tuple[int, int]:
    """Count a JPEG file's segments, and those of them that are scans over the pixels.

    The contents of segments are skipped, as is all data after the end of the image: the video of a
    motion photo, or another image. Counting stops at ``MAX_SEGMENTS`` + 1.

    Args:
        stream: a JPEG file; its position changes.
    """
    position = segments = scans = 0
    while segments <= MAX_SEGMENTS:
        stream.seek(position)
        block = stream.read(_BLOCK)
        found = _MARKER.search(block)
        if found is None:
            if len(block) < _BLOCK:
                break
            position += len(block) - 1  # its last byte may begin a marker
            continue
        kind = found[0][1]
        if kind == _END:
            break
        segments += 1
        scans += kind == _SCAN
        position += found.end()
        if kind >= 0xC0 and kind != _START[1]:  # the others have no length
            stream.seek(position)
            position += max(int.from_bytes(stream.read(2), "big"), 2)
    return segments, scans


def without_metadata(stream: IO[bytes]) -> BytesIO | None:
    """Copy a JPEG file with only its pixels, its EXIF block and its colour encoding.

    A damaged part before the pixels, such as a truncated colour profile or another program's
    header, may be all that makes a file unreadable.

    Args:
        stream: a file; its position changes.

    Returns:
        The copy; None if it is not a JPEG file, has nothing to remove, or has too many segments.
    """
    if not is_jpeg(stream):
        return None
    stream.seek(2)
    kept, dropped = BytesIO(_START[:2]), False
    kept.seek(0, 2)
    for _ in range(MAX_SEGMENTS):
        head = stream.read(4)
        if len(head) < 4 or head[0] != _START[0]:
            return None
        kind, size = head[1], int.from_bytes(head[2:], "big") - 2
        body = stream.read(max(size, 0))
        metadata = _APP0 <= kind <= _APP15 or kind == _COMMENT
        needed = (kind == _APP1 and body.startswith(_EXIF)) or (
            kind == _APP14 and size >= _ADOBE_BYTES
        )
        if metadata and not needed:
            dropped = True
            continue
        kept.write(head + body)
        if kind == _SCAN:
            kept.write(stream.read())
            kept.seek(0)
            return kept if dropped else None
    return None
