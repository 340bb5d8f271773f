"""Documents in tables: JSONL, CSV and TSV."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.files import MAX_BYTES, FileError, not_utf8, open_file
from llama_index_gap.readers.records import (
    TOO_DEEP,
    CorpusError,
    Records,
    Skipped,
    known_field,
    record_from_fields,
    shown,
)

_MOST_DIGITS = 100
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, root: Path | None = None) -> Records:
    """The documents of a JSONL, CSV or TSV file, which must lie below the root, links followed."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _read_jsonl(path, root)
    if suffix in _DELIMITERS:
        return _read_csv(path, root, _DELIMITERS[suffix])
    raise CorpusError(
        f"{path}: {suffix or 'a file without a suffix'} is not read; pass .jsonl, .csv, .tsv, "
        "or a folder of Markdown files or images"
    )


def _read_jsonl(path: Path, root: Path | None) -> Records:
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
                fields = json.loads(
                    line.decode("utf-8-sig" if number == 1 else "utf-8"),
                    parse_float=_finite,
                    parse_int=_integer,
                    parse_constant=_finite,
                    object_pairs_hook=_without_doubles,
                )
                if not isinstance(fields, dict):
                    raise InvalidValueError(f"is a JSON {type(fields).__name__}, not an object")
                yield record_from_fields(fields, source)
            except RecursionError:
                yield Skipped(source, TOO_DEEP)
            except UnicodeDecodeError as error:
                yield Skipped(source, not_utf8(error))
            except json.JSONDecodeError as error:
                yield Skipped(source, f"is not JSON; {error.msg} at column {error.colno}")
            except ValueError as error:
                yield Skipped(source, str(error))


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
        raise InvalidValueError(f"holds {text}, which is not a number that JSON can say")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        doubled = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise InvalidValueError(f"says {doubled} twice")
    return fields


def _read_csv(path: Path, root: Path | None, delimiter: str) -> Records:
    limit = csv.field_size_limit(MAX_BYTES)  # the module's own, 131,072, is less than a report
    line = 1
    try:
        with TextIOWrapper(_open(path, root), encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
            _check_header(path, rows.fieldnames, delimiter)
            for row in rows:
                line = rows.line_num
                source = f"{path.name}:{line}"
                try:
                    yield record_from_fields(_cells(row), source)
                except ValueError as error:
                    yield Skipped(source, str(error))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: {not_utf8(error)}; save it as UTF-8") from error
    except csv.Error as error:
        kind = path.suffix[1:].upper()
        raise CorpusError(f"{path}: is not {kind} after line {line}; {error}") from error
    finally:
        csv.field_size_limit(limit)


def _check_header(path: Path, header: Iterable[str] | None, delimiter: str) -> None:
    columns = list(header or [])
    known = {"title", "text", "image", "images"}
    if not known & {known_field(name) for name in columns}:
        found = ", ".join(columns) or "nothing"
        hint = f"; separate the columns by {delimiter!r}" if len(columns) == 1 else ""
        raise CorpusError(
            f"{path}: its first line names no column that is read ({', '.join(sorted(known))}); "
            f"it has {found[:80]}{hint}"
        )
    for name, count in Counter(known_field(name) for name in columns if name).items():
        if count > 1:
            raise CorpusError(f"{path}: the column {name!r} stands twice in its first line")


def _cells(row: dict[str | None, Any]) -> dict[str, Any]:
    """One row as the fields of a JSONL line would be; an empty cell is a field left out."""
    if None in row:
        raise InvalidValueError(f"has {len(row[None])} cells more than the first line has columns")
    if None in row.values():
        missing = sum(value is None for value in row.values())
        raise InvalidValueError(f"has {missing} cells fewer than the first line has columns")
    fields: dict[str, Any] = {known_field(str(name)): value for name, value in row.items() if value}
    if "" in fields:
        raise InvalidValueError(f"has {shown(fields[''])} in a column without a name")
    if "images" in fields:
        paths = [path for path in _split(fields["images"]) if path]
        names = ("captions", "caption", "alts", "alt")
        cells = (fields.pop(name) for name in names if name in fields)
        captions = _split(next(cells, "")) or [""] * len(paths)
        if len(captions) != len(paths):
            raise InvalidValueError(f"has {len(paths)} images but {len(captions)} captions")
        fields["images"] = [
            {"path": path, "caption": caption}
            for path, caption in zip(paths, captions, strict=True)
        ]
    return fields


def _split(cell: str) -> list[str]:
    return [part.strip() for part in cell.split("|")] if cell else []
