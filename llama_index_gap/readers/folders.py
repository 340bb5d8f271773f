"""Documents in folders: Markdown pages with the images that they show, or images alone."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain
from pathlib import Path

from llama_index_gap.files import read_text
from llama_index_gap.readers.markdown import parse_markdown
from llama_index_gap.readers.pdf.reader import PdfReader
from llama_index_gap.readers.records import (
    TOO_DEEP,
    CorpusError,
    ImageReference,
    Record,
    Records,
    Skipped,
    known_field,
    record_from_fields,
)

_MARKDOWN_SUFFIXES = frozenset([".md", ".markdown"])
_PDF_SUFFIX = ".pdf"
_PAGE_SUFFIXES = _MARKDOWN_SUFFIXES | {_PDF_SUFFIX}
_IMAGE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp"]
)
_NO_IMAGE = dict.fromkeys(
    (".heic", ".heif"), "is HEIC, which is not read; convert it to JPEG or PNG"
)


def read_folder(folder: Path, root: Path, text_root: Path, pdfs: PdfReader) -> Records:
    """The documents of a folder; images and links to folders may lead to the root, too."""
    files: list[Path] = []
    outside: list[Skipped] = []
    walked: set[Path] = set()
    allowed = (folder.resolve(), root.resolve())
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = Path(parent).resolve()
        if not any(place.is_relative_to(each) for each in allowed):
            name = Path(parent).relative_to(folder).as_posix()
            reason = f"lies outside root={root}; only folders below it are read, links followed"
            outside.append(Skipped(name, reason))
            folders.clear()
        elif place in walked:  # a link that leads back
            folders.clear()
        else:
            walked.add(place)
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [Path(parent, name) for name in names if not name.startswith(".")]
    files.sort()
    suffixes = {file.suffix.lower() for file in files}
    if suffixes & _PAGE_SUFFIXES:
        return chain(outside, _read_pages(folder, files, text_root, pdfs))
    if suffixes & _IMAGE_SUFFIXES:
        return chain(outside, _read_images(folder, files, text_root))
    raise CorpusError(
        f"{folder}: holds no docs.jsonl, docs.csv, docs.tsv, no PDF files, no Markdown files and "
        "no images" + "".join(f"; {skip.source} {skip.reason}" for skip in outside[:1])
    )


def _read_pages(folder: Path, files: list[Path], root: Path, pdfs: PdfReader) -> Records:
    used: set[Path] = set()
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() == _PDF_SUFFIX:
            yield pdfs.read(file, name, root)
        if file.suffix.lower() not in _MARKDOWN_SUFFIXES:
            continue
        try:
            record = _page(read_text(file, root), name, folder, file.parent)
        except RecursionError:
            yield Skipped(name, TOO_DEEP)
        except ValueError as error:
            yield Skipped(name, str(error))
        else:
            used.update(_resolved(p.folder / p.path) for p in record.images if p.folder)
            yield record
    for file in files:
        suffix = file.suffix.lower()
        if suffix in _PAGE_SUFFIXES or _resolved(file) in used:
            continue
        reason = (
            "no page shows this image; a folder with Markdown files is read as pages, so keep "
            "images of their own in another"
            if suffix in _IMAGE_SUFFIXES
            else _NO_IMAGE.get(suffix, "is neither a page nor an image by its suffix")
        )
        yield Skipped(file.relative_to(folder).as_posix(), reason)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL: reported later
        return path


def _page(source: str, name: str, site: Path, folder: Path) -> Record:
    page = parse_markdown(source)
    fields = {known_field(key): value for key, value in page.metadata.items()}
    problems = [f"looks like an image, but is no Markdown; {unread}" for unread in page.unread]
    if "text" in fields:
        problems.append("its front matter says text; the page's own is taken")
        del fields["text"]
    if isinstance(fields.get("title"), bool | int | float):  # as YAML reads "title: 2024"
        fields["title"] = str(fields["title"])
    record = record_from_fields({"id": name, **fields}, name)
    images: list[ImageReference] = []
    for image in [*record.images, *page.images]:
        if image.path.startswith("//"):  # a URL
            images.append(image)
        elif image.path.startswith("/"):  # the site's root, as the generators of sites have it
            images.append(ImageReference(image.path.lstrip("/"), image.caption, site))
        else:
            images.append(replace(image, folder=folder))
    return replace(
        record,
        title=record.title or page.heading,
        # Where the heading becomes the title, it need not stand in the text too.
        text=page.text if record.title else page.text.removeprefix(page.heading).lstrip(),
        images=images,
        problems=[*record.problems, *problems],
    )


def _read_images(folder: Path, files: list[Path], root: Path) -> Records:
    captions = {file for file in files if file.suffix.lower() == ".txt"}
    used: set[Path] = set()
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file in captions:
            continue
        if file.suffix.lower() not in _IMAGE_SUFFIXES:
            reason = _NO_IMAGE.get(file.suffix.lower(), "is not an image by its suffix")
            yield Skipped(name, reason)
            continue
        # name.jpg.txt for one image, name.txt for all of that name
        beside = [file.with_name(file.name + ".txt"), file.with_suffix(".txt")]
        caption = ""
        for caption_file in [each for each in beside if each in captions][:1]:
            used.add(caption_file)
            try:
                caption = read_text(caption_file, root).strip()
            except ValueError as error:
                yield Skipped(caption_file.relative_to(folder).as_posix(), str(error))
        yield Record(name, name, images=[ImageReference(name, caption)])
    for caption_file in sorted(captions - used):
        yield Skipped(caption_file.relative_to(folder).as_posix(), "no image has this name")
