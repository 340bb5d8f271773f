"""Turns rows of a table into documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.cells import caption_list, image_list, joined, without_html
from llama_index_gap.readers.column_types import Value
from llama_index_gap.readers.columns import Columns, listed, metadata_name
from llama_index_gap.readers.records import (
    Note,
    Record,
    Records,
    Skipped,
    check_depth,
    known_field,
    record_from_fields,
    shown,
)


class RowReader:
    """Makes records from rows, and counts its changes for the summary.

    Args:
        columns: the role of each column.
        types: the types of the metadata columns, from ``ColumnType.found``; None for JSON, whose
            values have types already.
    """

    def __init__(
        self,
        columns: Columns,
        types: Mapping[str, tuple[Callable[[str], Value] | None, str, str]] | None = None,
    ) -> None:
        self.columns = columns
        self._types = types or {}
        self._of_table = types is not None
        parts = {*columns.id, *columns.text, *columns.image, *columns.caption.values()}
        self._parts = parts | ({columns.title} if columns.title else set())
        self._ids: Counter[str] = Counter()
        self._again = self._repeated = self._merged = self._merged_images = 0
        self._html = False
        self._left_out: Counter[str] = Counter()

    @property
    def plain(self) -> bool:
        """Whether the rows are JSON and all columns have the names of this package's format."""
        columns = self.columns
        parts = [
            (columns.id, {"id"}),
            ((columns.title,) if columns.title else (), {"title"}),
            (columns.text, {"text"}),
            (columns.image, {"image", "images"}),
            (columns.caption.values(), {"caption", "alt"}),
        ]
        return not self._of_table and all(
            known_field(name) in own for names, own in parts for name in names
        )

    def record(self, fields: Mapping[str, Any], source: str) -> Record:
        """Make a document from a row.

        Args:
            fields: its cells, without the empty ones.
            source: its file and line.

        Raises:
            InvalidValueError: a field is wrong; the message names it.
        """
        if self.plain:
            return record_from_fields(fields, source)
        check_depth(fields)
        own: dict[str, Any] = {}
        if self.columns.id and all(fields.get(name) is not None for name in self.columns.id):
            own["id"] = self._identifier(fields)
        if self.columns.title:
            own["title"] = _text(fields.get(self.columns.title), "title")
        texts, images = self._texts(fields)
        own["text"] = texts
        references, problems = self._images(fields)
        own["images"] = [*references, *images]
        record = record_from_fields(own, source)
        metadata = self._metadata(fields)
        return replace(record, metadata=metadata, problems=[*problems, *record.problems])

    def _identifier(self, fields: Mapping[str, Any]) -> Any:
        values = [fields[name] for name in self.columns.id]
        value = values[0] if len(values) == 1 else "/".join(map(str, values))
        return value.strip() if isinstance(value, str) and self._of_table else value

    def _texts(self, fields: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
        texts: list[str] = []
        images: list[dict[str, str]] = []
        for name in self.columns.text:
            text = _text(fields.get(name), name)
            if known_field(name) != "text":
                shorter, shown_in = without_html(text)
                self._html = self._html or shorter is not text
                text = shorter
                images += shown_in
            texts.append(text)
        return (texts[0] if len(texts) == 1 else joined(texts)), images

    def _images(self, fields: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
        """The images of all columns; an image that an earlier column has too is read once."""
        found: list[Any] = []
        problems: list[str] = []
        paths: set[str] = set()
        for column in self.columns.image:
            value = fields.get(column)
            if value is None or value == "":
                continue
            items = image_list(value) if isinstance(value, str) else value
            items = items if isinstance(items, list) else [items]
            captions = self._captions(fields.get(self.columns.caption.get(column, "")), len(items))
            if captions and len(captions) != len(items):
                problems.append(
                    f"has {len(items)} images but {len(captions)} captions; the images are read "
                    "without them"
                )
                captions = []
            captions = captions or [""] * len(items)
            new = [
                {"path": item, "caption": caption} if isinstance(item, str) else item
                for item, caption in zip(items, captions, strict=True)
                if not (isinstance(item, str) and item in paths)
            ]
            self._repeated += len(items) - len(new)
            found += new
            paths.update(item for item in items if isinstance(item, str))
        return found, problems

    def _captions(self, value: Any, images: int) -> list[str]:
        if isinstance(value, list):
            return [_text(each, "caption") for each in value]
        return caption_list(_text(value, "caption"), images)

    def _metadata(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for name, value in fields.items():
            if name in self._parts:
                continue
            convert, _, currency = self._types.get(name, (None, "", ""))
            key = metadata_name(name)
            metadata[key] = convert(value) if convert and value.strip() else value
            if currency and f"{name}_currency" not in fields:
                metadata[f"{key}_currency"] = currency
        return metadata

    def documents(
        self, rows: Iterable[tuple[str, Mapping[str, Any]] | Skipped]
    ) -> Iterator[Record | Skipped]:
        """Make documents from rows; a row that repeats the previous row's id may continue it.

        Args:
            rows: the rows, each with its file and line.
        """
        before: Record | None = None
        for row in rows:
            if isinstance(row, Skipped):
                yield row
                continue
            source, fields = row
            try:
                record = self.record(fields, source)
            except (ValueError, RecursionError) as error:
                yield Skipped(source, str(error))
                continue
            named = record.id != source
            if before is not None and named and record.id == before.id and _goes_on(before, record):
                before = self._with(before, record)
                continue
            if before is not None:
                yield self._numbered(before)
            before = record
        if before is not None:
            yield self._numbered(before)

    def _with(self, before: Record, record: Record) -> Record:
        """Add the images of another row to a document; the metadata of its first row stays."""
        self._merged += 1
        self._merged_images += len(record.images)
        for name, value in record.metadata.items():
            if before.metadata.get(name) != value:
                self._left_out[name] += 1
        return replace(
            before,
            images=[*before.images, *record.images],
            problems=[*before.problems, *record.problems],
        )

    def _numbered(self, record: Record) -> Record:
        """Number the repetitions of a guessed id: ``A``, ``A~2``, ``A~3``."""
        if not self.columns.id_is_guessed:
            return record
        self._ids[record.id] += 1
        if self._ids[record.id] == 1:
            return record
        self._again += 1
        return replace(record, id=f"{record.id}~{self._ids[record.id]}")

    def notes(self, name: str) -> Records:
        """Notes for the summary.

        Args:
            name: the name of the table.
        """
        typed = [
            f"{listed([column])}: {said}"
            for column, (convert, said, _) in self._types.items()
            if convert
        ]
        untyped = [
            f"{listed([column])}: {said}"
            for column, (convert, said, _) in self._types.items()
            if said and not convert
        ]
        renamed = [each for each in self.columns.metadata if metadata_name(each) != each]
        said = [
            ("typed", "; ".join(typed)),
            ("not typed", "; ".join(untyped)),
            ("renamed, since an index reserves these names", listed(map(metadata_name, renamed))),
        ]
        if self._html:
            said.append(("HTML", "its tags are left out of texts"))
        if self._merged:
            left_out = f"; their {listed(self._left_out)} left out" if self._left_out else ""
            said.append(
                (
                    "rows that repeat the previous id",
                    f"{self._merged:,}, added to the same documents, "
                    f"with {self._merged_images:,} images" + left_out,
                )
            )
        if self._again:
            which = self.columns.id[0]
            said.append((f"{which} repeated", f"{self._again:,} documents, numbered like A~2"))
        if self._repeated:
            said.append(("images that two columns name", f"{self._repeated:,}, read once"))
        yield from (Note(f"{name}: {part}: {what}") for part, what in said if what)


def _goes_on(before: Record, record: Record) -> bool:
    """Whether a row with the same id continues a document: it has no text, or adds an image."""
    if not (record.title or record.text.strip()):
        return True
    known = {image.path for image in before.images}
    return (
        record.title in {"", before.title}
        and record.text in {"", before.text}
        and any(image.path not in known for image in record.images)
    )


def _text(value: Any, name: str) -> str:
    """A text, several texts as lines, or a number as text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "\n".join(value)
    raise InvalidValueError(f"its {name} is {shown(value)}, not a text")
