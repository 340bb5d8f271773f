"""Reads documents from tables: JSONL, JSON, CSV and TSV."""

from __future__ import annotations

import csv
import json
import math
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.files import MAX_BYTES, FileError, not_utf8, open_file, read_text
from llama_index_gap.readers.column_types import ColumnType
from llama_index_gap.readers.columns import OPTIONS, NamedFields, find_columns, listed
from llama_index_gap.readers.dialects import SEPARATORS, Dialect, find_dialects, find_encoding
from llama_index_gap.readers.records import (
    TOO_DEEP,
    CorpusError,
    Note,
    Record,
    Records,
    Skipped,
    known_field,
    shown,
)
from llama_index_gap.readers.rows import RowReader

MOST_COLUMNS = 10_000
"""The most columns that a table may have."""
_MOST_DIGITS = 100
_SAMPLES = 200  # rows that decide the roles of the columns
_LIMIT = threading.Lock()
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}


def read_table(path: Path, root: Path | None = None, named: NamedFields | None = None) -> Records:
    """The documents of a JSONL, JSON, CSV or TSV file.

    Args:
        path: the file; it must lie below the root, after links are resolved.
        root: the folder that the file must lie in; None: any.
        named: the columns that the user names.
    """
    suffix = path.suffix.lower()
    named = named or NamedFields()
    if suffix == ".jsonl":
        return read_objects(_lines_of_json(path, root), named, path.name, str(path))
    if suffix == ".json":
        return read_objects(_list_of_json(path, root), named, path.name, str(path))
    if suffix in _DELIMITERS:
        return _read_csv(path, root, _DELIMITERS[suffix], named)
    raise CorpusError(
        f"{path}: {suffix or 'a file without a suffix'} is not read; pass .jsonl, .json, .csv, "
        ".tsv, or a folder of Markdown files or images"
    )


def names_files(path: Path, root: Path | None) -> bool:
    """Whether a file is a table with ``file_name`` near its beginning, as in data sets."""
    if not path.is_file():
        return False
    with _open(path, root) as file:
        return b"file_name" in file.read(2**16)


# --- objects -------------------------------------------------------------------------------------


def read_objects(
    objects: Iterable[tuple[str, Mapping[str, Any]] | Skipped],
    named: NamedFields,
    name: str,
    path: str,
) -> Records:
    """Make documents from objects, whose fields are like a table's columns.

    Args:
        objects: the objects, each with its place. The first 200 decide the roles of the fields.
        named: the fields that the user names.
        name: the name of the file, for the summary; "" for none.
        path: the path for error messages.

    Raises:
        CorpusError: a field that the user names does not exist, or nothing would be embedded.
    """
    objects = iter(objects)
    first = list(islice(objects, _SAMPLES))
    samples: dict[str, list[Any]] = {}
    for each in first:
        for key, value in () if isinstance(each, Skipped) else each[1].items():
            if len(samples) < MOST_COLUMNS or key in samples:
                samples.setdefault(str(key), []).append(value)
    try:
        columns = find_columns(list(samples), samples, named)
    except InvalidValueError as error:
        raise CorpusError(f"{path}: {error}") from error
    if samples and not columns.embedded:
        raise CorpusError(_nothing_embedded(path, "it names no field", samples))
    reader = RowReader(columns)
    if name and not reader.plain:
        yield Note(f"{name}: {columns.in_words()}")
    for each in chain(first, objects):
        if isinstance(each, Skipped):
            yield each
            continue
        source, fields = each
        try:
            yield reader.record(fields, source)
        except RecursionError:
            yield Skipped(source, TOO_DEEP)
        except ValueError as error:
            yield Skipped(source, str(error))
    yield from reader.notes(name)


def _nothing_embedded(path: str, how: str, names: Iterable[str]) -> str:
    return (
        f"{path}: {how} that can be searched (title, text, image, images, or a usual one, such as "
        f"name, description, review, image_path); it has {listed(names) or 'nothing'}; {OPTIONS}"
    )


def _lines_of_json(
    path: Path, root: Path | None
) -> Iterator[tuple[str, Mapping[str, Any]] | Skipped]:
    number = 0
    with _open(path, root) as file:
        while line := file.readline(MAX_BYTES + 1):
            number += 1
            source = f"{path.name}:{number}"
            if len(line) > MAX_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_BYTES)
                yield Skipped(source, f"is longer than {MAX_BYTES:,} bytes")
                continue
            if not line.strip():
                continue
            try:
                yield (
                    source,
                    _object(_decoded_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))),
                )
            except RecursionError:
                yield Skipped(source, TOO_DEEP)
            except UnicodeDecodeError as error:
                yield Skipped(source, not_utf8(error))
            except json.JSONDecodeError as error:
                yield Skipped(source, f"is not JSON; {error.msg} at column {error.colno}")
            except ValueError as error:
                yield Skipped(source, str(error))


def _list_of_json(
    path: Path, root: Path | None
) -> Iterator[tuple[str, Mapping[str, Any]] | Skipped]:
    """The objects of a list, or of an object's only list, as in exports of shops."""
    try:
        found = _decoded_json(read_text(path, root))
    except (FileError, RecursionError) as error:
        why = TOO_DEEP if isinstance(error, RecursionError) else str(error)
        raise CorpusError(f"{path}: {why}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        hint = "; is it JSONL? Then name it .jsonl" if error.msg == "Extra data" else ""
        raise CorpusError(f"{path}: is not JSON; {error.msg} at {where}{hint}") from error
    except ValueError as error:
        raise CorpusError(f"{path}: {error}") from error
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else found
    if not isinstance(found, list):
        raise CorpusError(
            f"{path}: holds no list of objects; save it as JSONL, one object per line"
        )
    for number, each in enumerate(found, start=1):
        source = f"{path.name}:{number}"
        try:
            yield source, _object(each)
        except ValueError as error:
            yield Skipped(source, str(error))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidValueError(f"is a JSON {type(value).__name__}, not an object")
    return value


def _decoded_json(text: str) -> Any:
    return json.loads(
        text,
        parse_float=_finite,
        parse_int=_integer,
        parse_constant=_finite,
        object_pairs_hook=_without_doubles,
    )


def _open(path: Path, root: Path | None) -> IO[bytes]:
    try:
        return open_file(path, root)
    except FileError as error:
        raise CorpusError(f"{path}: {error}") from error


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise InvalidValueError(f"holds a number of {len(text):,} digits; write it as text")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidValueError(f"holds {text}, which is not a number in JSON")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        doubled = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise InvalidValueError(f"has {doubled} twice")
    return fields


# --- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Survey:
    """The findings of a first pass over all rows, in memory that does not grow with them."""

    dialect: Dialect
    header: list[str]
    samples: dict[str, list[str]]
    types: list[ColumnType]
    even: bool  # whether all rows are as long as the first


def _read_csv(path: Path, root: Path | None, usual: str, named: NamedFields) -> Records:
    """The documents of rows, which may be longer than the ``csv`` module allows."""
    records = _records_of_csv(path, root, usual, named)
    with closing(records):
        while True:
            # The module's default limit, 131,072, is too small for a report. The limit is global,
            # and the consumer of the records may read other tables between two of them.
            with _LIMIT:
                limit = csv.field_size_limit(MAX_BYTES)
                try:
                    record = next(records, None)
                finally:
                    csv.field_size_limit(limit)
            if record is None:
                return
            yield record


def _records_of_csv(
    path: Path, root: Path | None, usual: str, named: NamedFields
) -> Generator[Record | Skipped | Note, None, None]:
    with _open(path, root) as file:
        survey = _survey_of(path, file, usual)
        reader, index = _row_reader(path, survey, named)
        yield Note(f"{path.name} ({survey.dialect.in_words()}): {reader.columns.in_words()}")
        with closing(survey.dialect.rows(file, 2 * MAX_BYTES)) as rows:
            next(rows, None)
            documents = (
                _cells(survey.header, row, f"{path.name}:{line}", index) for line, row in rows
            )
            yield from reader.documents(documents)
        if index:
            yield Note(f"{path.name}: the first column, row numbers without a name, is left out")
        yield from reader.notes(path.name)


def _survey_of(path: Path, file: IO[bytes], usual: str) -> _Survey:
    try:
        encoding = find_encoding(file)
    except InvalidValueError as error:
        raise CorpusError(f"{path}: {error}") from error
    first_error: CorpusError | None = None
    for dialect in find_dialects(file, encoding, usual):
        line = 1
        try:
            survey = _survey_in(path, file, dialect)
        except _NotRowsError as error:
            line = error.line
            kind = path.suffix[1:].upper()
            first_error = first_error or CorpusError(
                f"{path}: is not {kind} after line {line}; {error}"
            )
            continue
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}: is not {encoding.upper()} ({error.reason})") from error
        if first_error is None or survey.even:
            return survey
    assert first_error is not None  # there is at least one dialect
    raise first_error


class _NotRowsError(Exception):
    """After a line, the quotes of a file do not fit the dialect."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line


def _survey_in(path: Path, file: IO[bytes], dialect: Dialect) -> _Survey:
    line = 1
    with closing(dialect.rows(file, 2 * MAX_BYTES)) as rows:
        try:
            _, header = next(rows, (0, []))
            header = [name.strip() for name in header]
            _check_header(path, header, dialect.separator)
            types = [ColumnType(comma_separates=dialect.separator == ",") for _ in header]
            samples: dict[str, list[str]] = {name: [] for name in header}
            even = True
            for number, (line, row) in enumerate(rows):
                even = even and len(row) == len(header)
                for name, kind, cell in zip(header, types, map(str.strip, row), strict=False):
                    if cell:
                        kind.see(cell, line)
                        samples[name] += [cell] if number < _SAMPLES else []
        except csv.Error as error:
            raise _NotRowsError(str(error), line) from error
    return _Survey(dialect, header, samples, types, even)


def _check_header(path: Path, header: Sequence[str], separator: str) -> None:
    if len(header) > MOST_COLUMNS:
        raise CorpusError(
            f"{path}: its first line names {len(header):,} columns between "
            f"{SEPARATORS[separator]}; at most {MOST_COLUMNS:,} are read"
        )
    for name, count in Counter(known_field(name) for name in header if name).items():
        if count > 1:
            raise CorpusError(f"{path}: its first line has the column {name!r} twice")


def _row_reader(path: Path, survey: _Survey, named: NamedFields) -> tuple[RowReader, bool]:
    """The reader of the rows, and whether the first column only numbers them and is left out."""
    header = survey.header
    try:
        columns = find_columns([name for name in header if name], survey.samples, named)
    except InvalidValueError as error:
        raise CorpusError(f"{path}: {error}") from error
    if not columns.embedded:
        how = "its first line names no column"
        raise CorpusError(_nothing_embedded(str(path), how, filter(None, header)))
    types = {
        name: kind.found()
        for name, kind in zip(header, survey.types, strict=True)
        if name in columns.metadata
    }
    index = header[0] == "" and survey.types[0].found()[1] == "whole number"
    return RowReader(columns, types), index


def _cells(
    header: Sequence[str], row: Sequence[str], source: str, index: bool
) -> tuple[str, Mapping[str, Any]] | Skipped:
    """One row as the fields that a JSONL line would have, without the empty cells."""
    if len(row) > len(header):
        return Skipped(
            source, f"has {len(row) - len(header)} more cells than the first line has columns"
        )
    if len(row) < len(header):
        return Skipped(
            source, f"has {len(header) - len(row)} fewer cells than the first line has columns"
        )
    fields = {name: cell for name, cell in zip(header, row, strict=True) if cell and name}
    nameless = [cell for name, cell in zip(header, row, strict=True) if cell and not name]
    if nameless[1 if index and row[0] else 0 :]:
        return Skipped(source, f"has {shown(nameless[-1])} in a column without a name")
    return source, fields
