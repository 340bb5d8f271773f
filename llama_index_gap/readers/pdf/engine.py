"""Reads a file with pdfium, page by page, in a process that ``process.py`` starts.

pdfium is not thread-safe, cannot be interrupted, and is written in C++: a hostile file may crash it
or make it use much memory. So it runs in a separate process, which the system stops at its limits
of time and memory. This file imports only modules that load fast.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pypdfium2
import pypdfium2.raw as pdfium
from PIL import Image

from llama_index_gap.files import write_at_once
from llama_index_gap.processes import answers_to_parent
from llama_index_gap.readers.pdf import repair
from llama_index_gap.readers.pdf.characters import MOST_CHARACTERS, segments_of
from llama_index_gap.readers.pdf.objects import MOST_OBJECTS, fingerprint_of, objects_of, pixels_of
from llama_index_gap.readers.pdf.places import Box, Frame, area_of

try:
    import resource
except ImportError:  # Windows: the waiting process stops this one after a time limit
    resource = None  # type: ignore[assignment]

_MOST_FIELDS = 2_000
_LONGEST_FIELD = 10_000
_JPEG_QUALITY = 90
_TEXT_FIELDS = {
    pdfium.FPDF_FORMFIELD_TEXTFIELD,
    pdfium.FPDF_FORMFIELD_COMBOBOX,
    pdfium.FPDF_FORMFIELD_LISTBOX,
}
_BOXES = {pdfium.FPDF_FORMFIELD_CHECKBOX, pdfium.FPDF_FORMFIELD_RADIOBUTTON}
_DAMAGED = "is damaged or not a PDF file; pdfium cannot open it"
_XFA = {pdfium.FORMTYPE_XFA_FULL}


class Engine:
    """One open file; each method answers one request with values that JSON can hold."""

    def __init__(self) -> None:
        self._file: BinaryIO | None = None
        self._document: pypdfium2.PdfDocument | None = None
        self._page: tuple[int, pypdfium2.PdfPage] | None = None

    def open(self, path: str, identity: list[int], passwords: list[str]) -> dict[str, Any]:
        """Open a file, and close the one that was open.

        Args:
            path: the file's path, without links.
            identity: the device and inode number of the file that was found there.
            passwords: passwords to try in turn.
        """
        self.close()
        # The file may have been replaced: follow no link, and wait for no FIFO.
        safe = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
        flags = sum(getattr(os, each, 0) for each in safe)
        descriptor = os.open(path, os.O_RDONLY | flags)
        self._file = os.fdopen(descriptor, "rb")
        status = os.fstat(descriptor)
        if [status.st_dev, status.st_ino] != identity:
            return {"error": "was replaced while it was read"}
        digest = hashlib.file_digest(self._file, "sha256").hexdigest()
        document, problem = _opened(self._file, passwords)
        was_repaired = False
        if document is None and problem == _DAMAGED and status.st_size <= repair.MOST_BYTES:
            self._file.seek(0)
            if data := repair.repaired(self._file.read()):
                document, _ = _opened(data, [])
                was_repaired = document is not None
        if document is None:
            return {"error": problem}
        self._document = document
        form = document.get_formtype()
        if form:
            document.init_forms()
        names = ("Title", "Author", "CreationDate", "ModDate")
        return {
            "digest": digest,
            "engine": str(pypdfium2.version.PDFIUM_INFO),
            "pages": len(document),
            "repaired": was_repaired,
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
        """The texts, images and drawings of a page, with their places on the upright page.

        All boxes are left, top, right, bottom, in points from the top left corner.
        """
        page = self._load(index)
        text = pdfium.FPDFText_LoadPage(page)
        try:
            turn, segments, counts = segments_of(page, text)
        finally:
            pdfium.FPDFText_ClosePage(text)
        area = area_of(page)
        frame = Frame(area, turn)
        for segment in segments:
            segment[1] = frame.of(segment[1])
        images: list[Any] = []
        drawings: list[Any] = []
        seen = 0
        for kind, raw, box in objects_of(page, area):
            seen += 1
            if seen > MOST_OBJECTS:
                break
            if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
                images.append([frame.of(box), *pixels_of(raw), fingerprint_of(raw)])
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
        self, *, index: int, turn: int, box: list[float], scale: float, path: str, photo: bool
    ) -> dict[str, Any]:
        """Write a part of a page as an image file.

        Args:
            index: number of the page, from 0.
            turn: quarter turns, as ``page`` returns them.
            box: the part to write, in the coordinates of ``page``.
            scale: pixels per point.
            path: the file to write; it is written whole or not at all.
            photo: whether to write JPEG instead of PNG.
        """
        page = self._load(index)
        rotation = pdfium.FPDFPage_GetRotation(page)
        area = area_of(page)
        whole = [max(1, round(side * scale)) for side in Frame(area, turn).size]
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
            return {"shows": "damage" if _cannot_be_decoded(page, area) else "nothing"}
        data = BytesIO()
        if photo:
            image.save(data, "JPEG", quality=_JPEG_QUALITY)
        else:
            image.save(data, "PNG", compress_level=3)
        write_at_once(Path(path), data.getvalue())
        return {"shows": "something"}

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
        """The names and values of the filled-in form fields of a page."""
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


def _opened(
    source: BinaryIO | bytes, passwords: list[str]
) -> tuple[pypdfium2.PdfDocument | None, str]:
    """The open document, or None and the reason."""
    problem = _DAMAGED
    for password in [None, *passwords]:
        try:
            return pypdfium2.PdfDocument(source, password=password), ""
        except pypdfium2.PdfiumError as error:
            if error.err_code == pdfium.FPDF_ERR_SECURITY:
                return None, "is encrypted in a way that is not read"
            if error.err_code != pdfium.FPDF_ERR_PASSWORD:
                return None, _DAMAGED
            problem = "is encrypted; pass its password with passwords=[…]"
            if passwords:
                problem = "is encrypted, and no password in passwords= opens it"
    return None, problem


def _cannot_be_decoded(page: pypdfium2.PdfPage, area: Box) -> bool:
    for number, (kind, raw, _) in enumerate(objects_of(page, area)):
        if number > MOST_OBJECTS:
            break
        if kind == pdfium.FPDF_PAGEOBJ_IMAGE:
            bitmap = pdfium.FPDFImageObj_GetBitmap(raw)
            if not bitmap:
                return True
            pdfium.FPDFBitmap_Destroy(bitmap)
    return False


def _read_text(get: Any, environment: Any, annotation: Any) -> str:
    size = min(get(environment, annotation, None, 0), 2 * _LONGEST_FIELD)
    if size <= 2:
        return ""
    data = ctypes.create_string_buffer(size)
    get(environment, annotation, ctypes.cast(data, ctypes.POINTER(pdfium.FPDF_WCHAR)), size)
    return data.raw[: size // 2 * 2].decode("utf-16-le", "replace").rstrip("\x00").strip()


def _limit(seconds: float) -> None:
    """Let the system end this process if it uses more processor time than this from now on."""
    if resource is not None:
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        _lower(resource.RLIMIT_CPU, math.ceil(used + seconds))


def _lower(limit: int, value: int) -> None:
    _, most = resource.getrlimit(limit)
    with suppress(ValueError, OSError):  # macOS refuses to set some limits
        resource.setrlimit(limit, (value if most < 0 else min(value, most), most))


def main(most_memory: str) -> None:
    """Answer requests, one JSON object per line, until the input ends.

    Args:
        most_memory: the most bytes of address space for the process.
    """
    memory = int(most_memory)
    with Path(os.devnull).open("wb") as nowhere:  # after the start, nobody reads stderr
        os.dup2(nowhere.fileno(), 2)
    answers = answers_to_parent()
    if resource is not None:
        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_AS, memory)
    answers.write(b"ready\n")
    answers.flush()
    engine = Engine()
    methods: dict[str, Callable[..., dict[str, Any]]] = {
        "open": engine.open,
        "page": engine.page,
        "render": engine.render,
    }
    for line in sys.stdin.buffer:
        request = json.loads(line)
        method = methods[request.pop("do")]
        _limit(request.pop("seconds"))
        try:
            answer = method(**request)
        except MemoryError:
            answer = {"error": f"takes more than {memory // 2**20:,} MiB of memory"}
        except Exception as error:  # a damaged file may cause any error in pdfium or Pillow
            answer = {"error": f"is damaged ({type(error).__name__}: {str(error)[:200]})"}
        if resource is not None:
            answer["used"] = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
