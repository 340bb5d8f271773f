"""Reads documents from folders: pages with the images that they show, or images alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from llama_index_gap.files import MAX_BYTES, FileError, open_file, read_text
from llama_index_gap.readers.content import Page
from llama_index_gap.readers.front_matter import IMAGE_SUFFIXES, is_draft
from llama_index_gap.readers.html import words
from llama_index_gap.readers.html_page import decode_html, parse_html
from llama_index_gap.readers.markdown import parse_markdown
from llama_index_gap.readers.pdf.reader import PdfReader
from llama_index_gap.readers.records import (
    TOO_DEEP,
    CorpusError,
    ImageReference,
    Note,
    Record,
    Records,
    Skipped,
    known_field,
    record_from_fields,
)
from llama_index_gap.readers.references import References
from llama_index_gap.readers.sites import Site

PDF_SUFFIX = ".pdf"
_MARKDOWN = frozenset([".md", ".markdown", ".mdx", ".mdown", ".mkd", ".mkdn", ".qmd"])
_HTML = frozenset([".html", ".htm", ".xhtml"])
PAGE_SUFFIXES = _MARKDOWN | _HTML | {".txt"}
"""Suffixes of the files that are read as pages."""
_NOTES = words("readme about license licence contributing changelog credits notes")
_NEVER_PAGES = frozenset(
    ["robots.txt", "humans.txt", "security.txt", "requirements.txt", "ads.txt"]
)
_PACKAGES = frozenset(["node_modules", "bower_components", "__pycache__"])
_OFFICE = "convert it to PDF or HTML (soffice --headless --convert-to html FILE), or to Markdown"
_WAYS_OUT = {
    **dict.fromkeys((".heic", ".heif"), "is HEIC, which is not read; convert it to JPEG or PNG"),
    ".svg": "is SVG, a drawing without pixels; convert it to PNG",
    **dict.fromkeys(
        (".docx", ".doc", ".odt", ".rtf"),
        f"is an office document, which is not read; {_OFFICE}",
    ),
    **dict.fromkeys((".pptx", ".ppt", ".odp"), f"is a presentation, which is not read; {_OFFICE}"),
    **dict.fromkeys(
        (".xlsx", ".xls", ".ods"),
        "is a spreadsheet, which is not read; save it as CSV, and pass that file",
    ),
    **dict.fromkeys(
        (".rst", ".adoc", ".asciidoc", ".org", ".textile", ".tex", ".ipynb"),
        "is in a markup that is not read; convert it to Markdown (pandoc), or pass its HTML",
    ),
    **dict.fromkeys(
        (".epub", ".mobi", ".chm", ".mhtml", ".mht"),
        "is a book or an archive of pages, which is not read; convert it to HTML",
    ),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z", ".rar", ".tgz"), "is an archive; unpack it"),
    **dict.fromkeys(
        (".csv", ".tsv", ".jsonl"),
        "is a table, which is not read in a folder of pages; pass it on its own",
    ),
    **dict.fromkeys(
        (".mp4", ".webm", ".mov", ".mp3", ".wav", ".ogg", ".m4a", ".avi"),
        "is sound or film, which is not read",
    ),
    **dict.fromkeys(
        (
            ".css",
            ".js",
            ".mjs",
            ".ts",
            ".jsx",
            ".tsx",
            ".scss",
            ".sass",
            ".less",
            ".map",
            ".json",
            ".yml",
            ".yaml",
            ".toml",
            ".lock",
            ".xml",
            ".woff",
            ".woff2",
            ".ttf",
            ".eot",
            ".otf",
            ".ico",
            ".rb",
            ".py",
            ".sh",
            ".njk",
            ".liquid",
            ".vue",
            ".svelte",
            ".astro",
            ".cfg",
            ".ini",
        ),
        "belongs to a site's code or settings, and holds no page",
    ),
}
_JUDGED = re.compile(r"queries(-.+)?\.jsonl")  # beside a corpus, for llama-gap evaluate
_OF_DRAFT = "only a draft shows this image; drafts=True (--drafts) reads it"
_BY_RULE = frozenset([_WAYS_OUT[".css"], _OF_DRAFT])
_UNSHOWN = "no page shows this image; pass the folder of the images to read them without pages"


def read_folder(
    folder: Path,
    root: Path,
    *,
    pdfs: PdfReader,
    site: Site | None = None,
    drafts: bool = False,
) -> Records:
    """The documents of a folder.

    Args:
        folder: the folder to read; links in it may also lead to folders below the root.
        root: folder that images, texts and links must lie in.
        pdfs: reads PDF files.
        site: the site that the folder is part of, if the site's root lies above the folder.
        drafts: whether to read unpublished pages too.
    """
    files, left_out = _walked(folder, root)
    suffixes = {file.suffix.lower() for file in files}
    has_images = bool(suffixes & IMAGE_SUFFIXES)
    documents = _MARKDOWN | _HTML | {PDF_SUFFIX}
    if suffixes & documents or (".txt" in suffixes and not has_images):
        pages = _Pages(folder, root, files, site, pdfs=pdfs, drafts=drafts)
        return chain(left_out, pages.records())
    if has_images:
        return chain(left_out, _read_images(folder, files, root))
    raise CorpusError(
        f"{folder}: holds no docs.jsonl, docs.csv, docs.tsv, no Markdown, HTML or PDF files "
        "and no images"
        + "".join(f"; {skip.source} {skip.reason}" for skip in left_out[:1])
        + "".join(
            f"; {file.name} {why}"
            for file in files[:1]
            if (why := _WAYS_OUT.get(file.suffix.lower()))
        )
    )


def read_page(file: Path, root: Path, *, site: Site | None = None, drafts: bool = False) -> Records:
    """The document of a single page."""
    return _Pages(file.parent, root, [file], site, drafts=drafts).records()


def _walked(folder: Path, root: Path) -> tuple[list[Path], list[Skipped]]:
    """The files of a folder, and its subfolders that are not read."""
    files: list[Path] = []
    left_out: list[Skipped] = []
    walked: set[Path] = set()

    def refused(error: OSError) -> None:
        name = os.path.relpath(error.filename, folder)
        left_out.append(Skipped(Path(name).as_posix(), f"cannot be listed ({error.strerror})"))

    allowed = (folder.resolve(), root.resolve())
    sites = References(folder, root, [], None)
    for parent, folders, names in os.walk(folder, onerror=refused, followlinks=True):
        place = Path(parent).resolve()
        if not any(place.is_relative_to(each) for each in allowed):
            name = Path(parent).relative_to(folder).as_posix()
            reason = f"lies outside root={root}; only folders below it are read"
            left_out.append(Skipped(name, reason))
            folders.clear()
            continue
        if place in walked:  # a link led back here
            folders.clear()
            continue
        walked.add(place)
        site = sites.site_of(Path(parent))
        kept = []
        for name in folders:
            why = _no_pages(Path(parent, name).absolute(), site, names)
            if why:
                place_of = Path(parent, name).relative_to(folder).as_posix()
                left_out.append(Skipped(place_of, why, by_rule=True))
            elif not name.startswith("."):
                kept.append(name)
        folders[:] = kept
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    files = sorted(
        file for file in files if file.parent != folder or not _JUDGED.fullmatch(file.name)
    )
    left_out.sort(key=lambda skip: skip.source)
    return files, left_out


def _no_pages(folder: Path, site: Site, beside: Sequence[str]) -> str:
    """Why a folder is skipped; empty if it is read."""
    if folder.name in _PACKAGES:
        return "holds software packages, no pages"
    if folder.is_relative_to(site.folder.absolute()):
        inside = folder.relative_to(site.folder.absolute()).as_posix()
        if inside in site.generator.templates:
            return f"holds templates or output of {site.generator.name}, no pages"
    if folder.name == "_sources" and "searchindex.js" in beside:
        return "holds copies of the pages' sources"
    return ""


class _Pages:
    """Reads the pages of a folder, then reports the images and files that no page uses."""

    def __init__(
        self,
        folder: Path,
        root: Path,
        files: Sequence[Path],
        site: Site | None,
        *,
        pdfs: PdfReader | None = None,
        drafts: bool,
    ) -> None:
        self._folder, self._root, self._files, self._drafts = folder, root, files, drafts
        self._references = References(folder, root, files, site)
        self._site, self._pdfs = site, pdfs
        self._used: set[Path] = set()
        self._of_drafts: set[Path] = set()
        self._saved = {
            file.with_name(file.stem + ending)
            for file in files
            if file.suffix.lower() in _HTML
            for ending in ("_files", ".files", "-Dateien", "_fichiers", "_archivos")
        }

    def records(self) -> Records:
        """Each page as a document, and everything that is left out."""
        if self._site is not None:
            name = self._site.generator.name
            yield Note(
                f"images may lie in the site that holds this folder: {self._site.folder} ({name})"
            )
        pages = [file for file in self._files if self._is_page(file)]
        alone = self._captions_of_images(pages)
        read: set[Path] = set()
        for file in pages:
            if file in alone:
                continue
            read.add(file)
            name = file.relative_to(self._folder).as_posix()
            if any(parent in self._saved for parent in file.parents):
                yield Skipped(name, "is a part of a saved page", by_rule=True)
                continue
            try:
                yield self._record(file, name)
            except RecursionError:
                yield Skipped(name, TOO_DEEP)
            except ValueError as error:
                yield Skipped(name, str(error))
        for file in self._files:
            if self._pdfs is not None and file.suffix.lower() == PDF_SUFFIX:
                read.add(file)
                yield self._pdfs.read(file, file.relative_to(self._folder).as_posix(), self._root)
        yield from self._others([file for file in pages if file not in alone], read)

    def _is_page(self, file: Path) -> bool:
        return file.suffix.lower() in PAGE_SUFFIXES and file.name.lower() not in _NEVER_PAGES

    def _captions_of_images(self, pages: Sequence[Path]) -> set[Path]:
        """Text files named like an image beside them."""
        images = {file for file in self._files if file.suffix.lower() in IMAGE_SUFFIXES}
        stems = {file.with_suffix("") for file in images}
        return {
            file
            for file in pages
            if file.suffix.lower() == ".txt"
            and (file.with_suffix("") in stems or file.with_suffix("") in images)
        }

    def _record(self, file: Path, name: str) -> Record | Skipped:
        page = self._parsed(file)
        draft = is_draft(page.metadata)
        if not draft and "_drafts" in file.relative_to(self._folder).parts[:-1]:
            draft = "it lies in _drafts"
        record = _record_of(page, name, self._references.site_of(file.parent))
        images: list[ImageReference] = []
        shown: set[Path] = set()
        for image in record.images:
            files = self._references.files(image, file)
            shown |= files
            images += self._references.resolve(image, file)
        for image in page.around:
            shown |= self._references.files(image, file)
        shown.update(_resolved(image.folder / image.path) for image in images if image.folder)
        if draft and not self._drafts:
            self._of_drafts |= shown
            reason = f"is a draft; {draft}; drafts=True (--drafts) reads it"
            return Skipped(name, reason, by_rule=True)
        self._used |= shown
        return replace(record, images=_once(images))

    def _parsed(self, file: Path) -> Page:
        suffix = file.suffix.lower()
        if suffix == ".txt":
            return Page(read_text(file, self._root))
        if suffix in _HTML:
            with open_file(file, self._root) as stream:
                data = stream.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise FileError(f"is larger than {MAX_BYTES:,} bytes")
            source, problem = decode_html(data)
            page = parse_html(source)
            return replace(page, problems=[*page.problems, problem]) if problem else page
        site = self._references.site_of(file.parent)
        return parse_markdown(
            read_text(file, self._root), mdx=suffix == ".mdx", variables=site.variables
        )

    def _others(self, pages: Sequence[Path], read: set[Path]) -> Iterator[Record | Skipped | Note]:
        """Report the files that are not pages, unless a page shows them."""
        rest = [file for file in self._files if file not in read]
        unshown = [
            file
            for file in rest
            if file.suffix.lower() in IMAGE_SUFFIXES and _resolved(file) not in self._used
        ]
        if self._are_photos(pages, unshown):
            beside = [
                file for file in rest if file in set(unshown) or file.suffix.lower() == ".txt"
            ]
            yield Note(
                f"{len(unshown):,} images that no page shows are separate documents: the pages "
                "beside them only describe the folder"
            )
            yield from _read_images(self._folder, beside, self._root)
            rest = [file for file in rest if file not in set(beside)]
        for file in rest:
            if _resolved(file) in self._used:
                continue
            suffix = file.suffix.lower()
            reason = _WAYS_OUT.get(suffix, "is neither a page nor an image by its suffix")
            if suffix in IMAGE_SUFFIXES:
                reason = _UNSHOWN
                if _resolved(file) in self._of_drafts:
                    reason = _OF_DRAFT
            elif suffix == ".txt":
                reason = (
                    "is named like an image, and is read as a caption only in a folder of images"
                )
            name = file.relative_to(self._folder).as_posix()
            yield Skipped(name, reason, by_rule=reason in _BY_RULE)

    def _are_photos(self, pages: Sequence[Path], unshown: Sequence[Path]) -> bool:
        """Whether the images are separate documents, and the pages only describe them.

        This holds if no page shows any image and there are at least as many images as pages, or if
        all pages are files such as README and LICENSE and most images are not shown.
        """
        if self._references.site_of(self._folder).generator.name or not unshown:
            return False
        notes = all(page.stem.lower() in _NOTES for page in pages)
        shown = len(self._used | self._of_drafts)
        return (notes and len(unshown) > shown) or (not shown and len(unshown) >= len(pages))


def _record_of(page: Page, name: str, site: Site) -> Record:
    fields = {known_field(key): value for key, value in page.metadata.items()}
    problems = [
        f"looks like an image but is not valid Markdown; {unread}" for unread in page.unread
    ]
    problems += page.problems
    if "text" in fields:
        problems.append("its front matter has a field text; the page's own text is used")
        del fields["text"]
    if isinstance(fields.get("title"), bool | int | float):  # YAML reads "title: 2024" as a number
        fields["title"] = str(fields["title"])
    identifier = fields.get("id")
    if site.generator.name == "Docusaurus" and isinstance(identifier, str):
        fields["id"] = f"{name.rpartition('/')[0]}/{identifier}".lstrip(
            "/"
        )  # ids repeat across folders
    record = record_from_fields({"id": name, **fields}, name)
    return replace(
        record,
        title=record.title or page.heading,
        # If the heading becomes the title, the text does not repeat it.
        text=page.text if record.title else page.text.removeprefix(page.heading).lstrip(),
        images=[*record.images, *page.images],
        problems=[*record.problems, *problems],
        decoration=page.decoration,
    )


def _once(images: Sequence[ImageReference]) -> list[ImageReference]:
    """Drop the optional images, such as those for search engines, that a page shows anyway."""
    shown = {(image.folder, image.path) for image in images if not image.optional}
    return [i for i in images if not (i.optional and (i.folder, i.path) in shown)]


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a NUL: reported later
        return path


def _read_images(folder: Path, files: Sequence[Path], root: Path) -> Records:
    captions = {file for file in files if file.suffix.lower() == ".txt"}
    used: set[Path] = set()
    for file in files:
        name = file.relative_to(folder).as_posix()
        if file in captions:
            continue
        suffix = file.suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            yield Skipped(name, _WAYS_OUT.get(suffix, "is not an image by its suffix"))
            continue
        # name.jpg.txt belongs to one image, name.txt to all images of that name
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
