"""What pdfium says of a file, page by page; runs in a process that ``process.py`` starts.

pdfium is not thread safe, cannot be interrupted, and is written in C++: a hostile file may crash it
or make it swell. So it runs in a process of its own, which the system stops at its limits of time
and memory. This file imports nothing that is slow to import.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pypdfium2
import pypdfium2.raw as pdfium
from PIL import Image

from llama_index_gap.files import write_at_once

try:
    import resource
except ImportError:  # Windows: the process that waits stops this one, by the clock
    resource = None  # type: ignore[assignment]

MEMORY = 2 * 2**30
"""Most bytes of address space that the process may take."""
MOST_CHARACTERS = 300_000
"""Most characters of a page."""
MOST_OBJECTS = 30_000
"""Most images and drawings of a page that are looked at."""
_MOST_DEPTH = 12
_MOST_FIELDS = 2_000
_LONGEST_FIELD = 10_000
_JPEG_QUALITY = 90
_RTL = frozenset([*range(0x590, 0x900), *range(0xFB1D, 0xFE00), *range(0xFE70, 0xFF00)])
_LINE_BREAKS = frozenset([0, 10, 13])
_HYPHENS = frozenset([0x2, 0xFFFE])
_TEXT_FIELDS = {
    pdfium.FPDF_FORMFIELD_TEXTFIELD,
    pdfium.FPDF_FORMFIELD_COMBOBOX,
    pdfium.FPDF_FORMFIELD_LISTBOX,
}
_BOXES = {pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON}
_XFA = {pdfium.FORMTYPE_XFA_FULL}

Box = tuple[float, float, float, float]


class Engine:
    """One open file; each method answers one request with what JSON can hold."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._document: pypdfium2.PdfDocument | None = None
        self._page: tuple[int, pypdfium2.PdfPage] | None = None

    def open(self, path: str, identity: list[int], passwords: list[str]) -> dict[str, Any]:
        """Open a file; the one that was open is closed.

        Args:
            path: without links.
            identity: the device and the number of the file that was found there.
            passwords: are tried in turn.
        """
        self.close()
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        )
        self._file = os.fdopen(descriptor, "rb")
        status = os.fstat(descriptor)
        if [status.st_dev, status.st_ino] != identity:
            return {"error": "was replaced while it was read"}
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        problem = "is damaged"
        for password in [None, *passwords]:
            self._file.seek(0)
            try:
                self._document = pypdfium2.PdfDocument(self._file, password=password)
                break
            except pypdfium2.PdfiumError as error:
                code = error.err_code
                if code == pdfium.FPDF_ERR_SECURITY:
                    return {"error": "is encrypted in a way that is not read"}
                if code != pdfium.FPDF_ERR_PASSWORD:
                    return {"error": "is damaged, or no PDF file; pdfium cannot open it"}
                problem = (
                    "is encrypted, and none of passwords= opens it"
                    if passwords
                    else ("is encrypted; pass its password with passwords=[…]")
                )
        document = self._document
        if document is None:
            return {"error": problem}
        form = document.get_formtype()
        if form:
            document.init_forms()
        names = ("Title", "Author", "CreationDate", "ModDate")
        return {
            "digest": digest,
            "engine": str(pypdfium2.version.PDFIUM_INFO),
            "pages": len(document),
            "about": {name: document.get_metadata_value(name)[:2_000] for name in names},
            "attachments": pdfium.FPDFDoc_GetAttachmentCount(document),
            "xfa": form in _XFA,
        }

    def close(self) -> None:
        """Close the file, if one is open."""
        self._leave_page()
        if self._document is not None:
            self._document.close()
        if self._file is not None:
            self._file.close()
        self._document = self._file = None

    def page(self, index: int) -> dict[str, Any]:
        """The texts, images and drawings of a page, where they stand if the page is upright.

        All boxes are left, top, right, bottom, in points from the top left corner.
        """
        page = self._load(index)
        text = pdfium.FPDFText_LoadPage(page)
        try:
            turn, segments, counts = _segments(page, text)
        finally:
            pdfium.FPDFText_ClosePage(text)
        area = _area(page)
        frame = _Frame(area, turn)
        for segment in segments:
            segment[1] = frame.of(segment[1])
        images: list[Any] = []
        drawings: list[Any] = []
        seen = 0
        for kind, raw, box in _objects(page, area):
            seen += 1
            if seen > MOST_OBJECTS:
                break
            if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
                images.append([frame.of(box), *_pixels(raw), _fingerprint(raw)])
            else:
                drawings.append(frame.of(box))
        return {
            "size": frame.size,
            "turn": turn,
            "label": self._label(index),
            "segments": segments,
            "images": images,
            "drawings": drawings,
            "fields": self._fields(page),
            "cut": counts["all"] > MOST_CHARACTERS or seen > MOST_OBJECTS,
            "unknown": counts["unknown"],
            "characters": min(counts["all"], MOST_CHARACTERS),
            "hidden": counts["hidden"],
        }

    def render(
        self, index: int, turn: int, box: list[float], scale: float, path: str, photo: bool
    ) -> dict[str, Any]:
        """Write a part of a page as an image file.

        Args:
            index: of the page, from 0.
            turn: as ``page`` gave it.
            box: as ``page`` gives boxes.
            scale: pixels per point.
            path: of the file to write, whole or not at all.
            photo: as JPEG instead of PNG.
        """
        page = self._load(index)
        rotation = pdfium.FPDFPage_GetRotation(page)
        area = _area(page)
        whole = [max(1, round(side * scale)) for side in _Frame(area, turn).size]
        left, top = round(box[0] * scale), round(box[1] * scale)
        width = max(1, round(box[2] * scale) - left)
        height = max(1, round(box[3] * scale) - top)
        bitmap = pypdfium2.PdfBitmap.new_native(width, height, pdfium.FPDFBitmap_BGR)
        bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
        place = (-left, -top, *whole, (turn - rotation) % 4)
        flags = pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER
        pdfium.FPDF_RenderPageBitmap(bitmap, page, *place, flags)
        if self._document is not None and self._document.formenv:
            pdfium.FPDF_FFLDraw(self._document.formenv, bitmap, page, *place, flags)
        image = Image.frombuffer(
            "RGB", (width, height), bitmap.buffer, "raw", "RGB", bitmap.stride, 1
        )
        if image.getextrema() == ((255, 255),) * 3:
            return {"blank": True}
        data = BytesIO()
        if photo:
            image.save(data, "JPEG", quality=_JPEG_QUALITY)
        else:
            image.save(data, "PNG", compress_level=3)
        write_at_once(Path(path), data.getvalue())
        return {"blank": False}

    def _load(self, index: int) -> pypdfium2.PdfPage:
        if self._page is None or self._page[0] != index:
            self._leave_page()
            assert self._document is not None
            self._page = (index, self._document[index])
        return self._page[1]

    def _leave_page(self) -> None:
        if self._page is not None:
            self._page[1].close()
        self._page = None

    def _label(self, index: int) -> str:
        assert self._document is not None
        return (self._document.get_page_label(index) or "").strip()[:100]

    def _fields(self, page: pypdfium2.PdfPage) -> list[list[str]]:
        """The names and values of a page's form fields that are filled in."""
        environment = self._document.formenv if self._document is not None else None
        if not environment:
            return []
        fields: dict[str, str] = {}
        for index in range(min(pdfium.FPDFPage_GetAnnotCount(page), _MOST_FIELDS)):
            annotation = pdfium.FPDFPage_GetAnnot(page, index)
            if not annotation:
                continue
            try:
                kind = pdfium.FPDFAnnot_GetFormFieldType(environment, annotation)
                if kind not in _TEXT_FIELDS | _BOXES:
                    continue
                names = (
                    _read_text(get, environment, annotation)
                    for get in (
                        pdfium.FPDFAnnot_GetFormFieldAlternateName,
                        pdfium.FPDFAnnot_GetFormFieldName,
                    )
                )
                name = next(filter(None, names), "")
                if kind in _BOXES:
                    if not pdfium.FPDFAnnot_IsChecked(environment, annotation):
                        continue
                    value = _read_text(
                        pdfium.FPDFAnnot_GetFormFieldExportValue, environment, annotation
                    )
                else:
                    value = _read_text(pdfium.FPDFAnnot_GetFormFieldValue, environment, annotation)
                if value:
                    fields.setdefault(name, value)
            finally:
                pdfium.FPDFPage_CloseAnnot(annotation)
        return [[name, value] for name, value in fields.items()]


class _Frame:
    """Turns a page's own coordinates into those of the page as it is read.

    Args:
        area: of the page that is shown: left, bottom, right, top.
        turn: quarter turns clockwise that make its text upright.
    """

    def __init__(self, area: Box, turn: int) -> None:
        self._area, self._turn = area, turn
        width, height = area[2] - area[0], area[3] - area[1]
        self.size = [height, width] if turn % 2 else [width, height]

    def of(self, box: Box) -> list[float]:
        left, bottom, right, top = box
        x0, y0, x1, y1 = self._area
        match self._turn:
            case 0:
                turned = (left - x0, y1 - top, right - x0, y1 - bottom)
            case 1:
                turned = (bottom - y0, left - x0, top - y0, right - x0)
            case 2:
                turned = (x1 - right, bottom - y0, x1 - left, top - y0)
            case _:
                turned = (y1 - top, x1 - right, y1 - bottom, x1 - left)
        return [round(each, 2) for each in turned]


def _area(page: pypdfium2.PdfPage) -> Box:
    rect = pdfium.FS_RECTF()
    pdfium.FPDF_GetPageBoundingBox(page, rect)
    return rect.left, rect.bottom, rect.right, rect.top


def _segments(page: pypdfium2.PdfPage, text: Any) -> tuple[int, list[list[Any]], Counter[str]]:
    """A page's text in pieces that stand on one line without a wide gap.

    Returns:
        Quarter turns that make it upright; for each piece its text, its box, whether it is
        hidden, whether it runs another way than most; counts of characters.
    """
    count = pdfium.FPDFText_CountChars(text)
    counts: Counter[str] = Counter(all=max(count, 0))
    pieces: list[tuple[list[str], list[float], int, bool]] = []
    rect = pdfium.FS_RECTF()
    before: tuple[float, float, float, float, bool] | None = None
    direction, hidden, broken = 0, False, True
    latest: Any = None
    for index in range(min(count, MOST_CHARACTERS)):
        code = pdfium.FPDFText_GetUnicode(text, index)
        if code in _LINE_BREAKS:
            counts["unknown"] += code == 0
            broken = True
            continue
        if pdfium.FPDFText_IsGenerated(text, index) == 1:
            if pieces and code == 0x20:
                pieces[-1][0].append(" ")
            continue
        item = pdfium.FPDFText_GetTextObject(text, index)
        address = ctypes.cast(item, ctypes.c_void_p).value
        if address != latest:
            latest = address
            angle = pdfium.FPDFText_GetCharAngle(text, index)
            direction = round(angle / (math.pi / 2)) % 4
            hidden = (
                pdfium.FPDFTextObj_GetTextRenderMode(item) == pdfium.FPDF_TEXTRENDERMODE_INVISIBLE
            )
        counts[f"turned {direction}"] += 1
        counts["hidden"] += hidden
        counts["unknown"] += pdfium.FPDFText_HasUnicodeMapError(text, index) == 1
        pdfium.FPDFText_GetLooseCharBox(text, index, rect)
        box = (rect.left, rect.bottom, rect.right, rect.top)
        rtl = code in _RTL
        along = _along(box, direction)
        if broken or before is None or direction != pieces[-1][2] or _apart(before, along, rtl):
            pieces.append(([], list(box), direction, hidden))
        letters, around, *_ = pieces[-1]
        letters.append("\u00ad" if code in _HYPHENS else chr(code))
        if code != 0x20:
            around[:2] = [min(a, b) for a, b in zip(around[:2], box[:2], strict=True)]
            around[2:] = [max(a, b) for a, b in zip(around[2:], box[2:], strict=True)]
        before, broken = (*along, rtl), False
    turns = Counter({turn: counts.pop(f"turned {turn}", 0) for turn in range(4)})
    most = max(turns, key=lambda turn: (turns[turn], -turn))
    turn = (-most) % 4 if turns[most] else pdfium.FPDFPage_GetRotation(page)
    segments = [
        ["".join(letters), tuple(box), hidden, direction != most]
        for letters, box, direction, hidden in pieces
        if "".join(letters).strip()
    ]
    return turn, segments, counts


def _along(box: Box, direction: int) -> tuple[float, float, float, float]:
    """A character's start and end along its line, and its extent across it."""
    left, bottom, right, top = box
    match direction:
        case 0:
            return left, right, bottom, top
        case 1:
            return -top, -bottom, left, right
        case 2:
            return -right, -left, -top, -bottom
        case _:
            return bottom, top, -right, -left


def _apart(
    before: tuple[float, float, float, float, bool],
    now: tuple[float, float, float, float],
    rtl: bool,
) -> bool:
    """Whether a character stands on another line than the one before, or after a wide gap."""
    start, end, low, high, was_rtl = before
    height = max(high - low, now[3] - now[2], 1.0)
    shared = min(high, now[3]) - max(low, now[2])
    if shared < 0.3 * min(high - low, now[3] - now[2]):
        return True
    if was_rtl != rtl:  # runs of both directions are not in the order of their places
        return False
    gap = start - now[1] if rtl else now[0] - end
    return gap > 0.9 * height or gap < -3 * height


def _objects(page: pypdfium2.PdfPage, area: Box) -> Iterator[tuple[int, Any, Box]]:
    """The visible images, drawings and shadings of a page, those in forms too, and their boxes."""
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
            # Shadings are cut to a shape that is not asked for; pages cut what leaves them.
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


def _pixels(image: Any) -> tuple[int, int]:
    width, height = ctypes.c_uint(), ctypes.c_uint()
    pdfium.FPDFImageObj_GetImagePixelSize(image, width, height)
    return width.value, height.value


def _fingerprint(image: Any) -> str:
    """Tells whether two images are the same: by their size in the file and its beginning."""
    size = pdfium.FPDFImageObj_GetImageDataRaw(image, None, 0)
    if size > 2**20:
        return str(size)
    data = ctypes.create_string_buffer(max(size, 1))
    pdfium.FPDFImageObj_GetImageDataRaw(image, data, size)
    return hashlib.sha256(data.raw).hexdigest()[:16]


def _read_text(get: Any, environment: Any, annotation: Any) -> str:
    size = min(get(environment, annotation, None, 0), 2 * _LONGEST_FIELD)
    if size <= 2:
        return ""
    data = ctypes.create_string_buffer(size)
    get(environment, annotation, ctypes.cast(data, ctypes.POINTER(pdfium.FPDF_WCHAR)), size)
    return data.raw[: size // 2 * 2].decode("utf-16-le", "replace").rstrip("\x00").strip()


def _limit(seconds: float) -> None:
    """Let the system end this process where it takes more processor time than this from now."""
    if resource is not None:
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _lower(resource.RLIMIT_CPU, math.ceil(used + seconds))


def _lower(limit: int, value: int) -> None:
    _, most = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if most < 0 else min(value, most), most))


def main() -> None:
    """Answer requests, one JSON object a line, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    answers = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "wb") as nowhere:  # whatever prints writes into no answer
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    if resource is not None:
        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_AS, MEMORY)
    answers.write(b"ready\n")
    answers.flush()
    engine = Engine()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        method = {"open": engine.open, "page": engine.page, "render": engine.render}[
            request.pop("do")
        ]
        _limit(request.pop("seconds"))
        try:
            answer = method(**request)
        except MemoryError:
            answer = {"error": f"takes more than {MEMORY // 2**20:,} MiB of memory"}
        except Exception as error:  # whatever a damaged file makes of pdfium or of Pillow
            answer = {"error": f"is damaged ({type(error).__name__}: {str(error)[:200]})"}
        if resource is not None:
            answer["used"] = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
