"""The images and drawings that pdfium finds on a page."""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Iterator
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from llama_index_gap.readers.pdf.places import Box

MOST_OBJECTS = 30_000
"""The most images and drawings that are read from a page."""
_MOST_DEPTH = 12
_MOST_HASHED = 32 * 2**20  # bytes of an image; larger ones are not compared


def objects_of(page: pypdfium2.PdfPage, area: Box) -> Iterator[tuple[int, Any, Box]]:
    """The visible images, drawings and shadings of a page and of its forms, with their boxes."""
    forms: list[tuple[Any, tuple[float, ...], int]] = []

    def inner(parent: Any, matrix: tuple[float, ...], depth: int) -> Iterator[tuple[int, Any, Box]]:
        within = depth > 0
        count = (
            pdfium.FPDFFormObj_CountObjects(parent)
            if within
            else pdfium.FPDFPage_CountObjects(parent)
        )
        get = pdfium.FPDFFormObj_GetObject if within else pdfium.FPDFPage_GetObject
        for index in range(count):
            raw = get(parent, index)
            kind = pdfium.FPDFPageObj_GetType(raw)
            if kind == pdfium.FPDF_PAGEOBJ_TEXT:
                continue
            if kind == pdfium.FPDF_PAGEOBJ_FORM:
                if depth < _MOST_DEPTH:
                    own = pdfium.FS_MATRIX()
                    pdfium.FPDFPageObj_GetMatrix(raw, own)
                    values = (own.a, own.b, own.c, own.d, own.e, own.f)
                    forms.append((raw, _product(values, matrix), depth + 1))
                continue
            if kind == pdfium.FPDF_PAGEOBJ_PATH and not _is_drawn(raw):
                continue
            sides = [ctypes.c_float() for _ in range(4)]
            if not pdfium.FPDFPageObj_GetBounds(raw, *sides):
                continue
            box = _moved([side.value for side in sides], matrix)
            # A shading's clip path is not read; a page clips everything to its area.
            box = (
                max(box[0], area[0]),
                max(box[1], area[1]),
                min(box[2], area[2]),
                min(box[3], area[3]),
            )
            if box[0] <= box[2] and box[1] <= box[3]:
                yield kind, raw, box

    yield from inner(page, (1, 0, 0, 1, 0, 0), 0)
    visited = 0
    while forms and visited < MOST_OBJECTS:
        visited += 1
        yield from inner(*forms.pop(0))


def _is_drawn(path: Any) -> bool:
    fill, stroke = ctypes.c_int(), ctypes.c_int()
    pdfium.FPDFPath_GetDrawMode(path, fill, stroke)
    return bool(fill.value or stroke.value)


def _product(first: tuple[float, ...], then: tuple[float, ...]) -> tuple[float, ...]:
    a, b, c, d, e, f = first
    g, h, i, j, k, m = then
    return (
        *(a * g + b * i, a * h + b * j, c * g + d * i, c * h + d * j),
        *(e * g + f * i + k, e * h + f * j + m),
    )


def _moved(box: list[float], matrix: tuple[float, ...]) -> Box:
    a, b, c, d, e, f = matrix
    corners = [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
    xs = [a * x + c * y + e for x, y in corners]
    ys = [b * x + d * y + f for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def pixels_of(image: Any) -> tuple[int, int]:
    """An image's width and height from its header."""
    width, height = ctypes.c_uint(), ctypes.c_uint()
    pdfium.FPDFImageObj_GetImagePixelSize(image, width, height)
    return width.value, height.value


def fingerprint_of(image: Any) -> str:
    """A fingerprint of an image's bytes in the file; equal images have equal fingerprints."""
    size = pdfium.FPDFImageObj_GetImageDataRaw(image, None, 0)
    if size > _MOST_HASHED:
        return f"unlike any other: {os.urandom(8).hex()}"
    data = ctypes.create_string_buffer(max(size, 1))
    pdfium.FPDFImageObj_GetImageDataRaw(image, data, size)
    return hashlib.sha256(data.raw).hexdigest()[:16]
