"""Documents quoted for an agent, so that nothing in them passes for the tool's own words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from llama_index.core.schema import BaseNode

from llama_index_gap.text import excerpt, quoted, visible, without_folders

LONGEST_LINE = 300
"""Most characters of a title, a caption or a value."""
_LONGEST_FACTS = 1000
_DEEPEST = 8


def facts(metadata: Mapping[str, Any]) -> str:
    """Metadata as one line of JSON; fields that find no room are counted."""
    shown = _with_room(metadata)
    rest = len(metadata) - len(shown)
    written = ", ".join(f"{key}: {value}" for key, value in shown)
    return f"metadata {{{written}}}" + (f" ({rest:,} more are left out)" if rest else "")


def data_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata for programs: the fields that ``facts`` shows, without invisible characters."""
    return {
        _visible(json.loads(key)): _visible(json.loads(value))
        for key, value in _with_room(metadata)
    }


def _with_room(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first fields and their values as JSON, as many as find room."""
    shown: list[tuple[str, str]] = []
    length = 0
    for key, value in metadata.items():
        field = (quote(key), as_json(value))
        length += len(field[0]) + len(field[1]) + 2
        if length > _LONGEST_FACTS:
            break
        shown.append(field)
    return shown


def _visible(value: Any) -> Any:
    match value:
        case str():
            return visible(value)
        case list():
            return [_visible(each) for each in value]
        case dict():
            return {visible(key): _visible(each) for key, each in value.items()}
    return value


def lines_of(text: str, longest: int) -> list[str]:
    """A passage, with each line marked as a quotation."""
    rest = len(text) - longest
    cut = [f"({rest:,} more characters are left out)"] if rest > 0 else []
    lines = text[:longest].expandtabs(4).splitlines()
    return [*(f"> {visible(line)}" for line in lines), *cut]


def name_of(key: str) -> str:
    """An id as agents see it and may pass it; a shortened one ends in a hash, so it is unique."""
    name = without_folders(excerpt(key, LONGEST_LINE))
    return (
        name
        if name == key
        else f"{name}#{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:8]}"
    )


def quote(text: str, longest: int = LONGEST_LINE) -> str:
    """A text as one JSON string, without absolute paths.

    Args:
        text: from a document.
        longest: most characters.
    """
    return quoted(without_folders(excerpt(str(text), longest)))


def plain(text: str) -> str:
    """A text on one line for programs, without absolute paths and invisible characters."""
    return visible(without_folders(excerpt(str(text), LONGEST_LINE)))


def as_json(value: Any, longest: int = LONGEST_LINE) -> str:
    """A metadata value as JSON on one line; a string where it is too long, or not JSON."""
    try:
        written = quoted(_shortened(value))
    except ValueError:  # NaN, or a number of thousands of digits
        return quote(f"<{type(value).__name__}>")
    return written if len(written) <= longest else quoted(excerpt(written, longest))


def _shortened(value: Any, deepest: int = _DEEPEST) -> Any:
    """A value without absolute paths, cut below some levels."""
    match value:
        case str():
            return without_folders(excerpt(value, LONGEST_LINE))
        case Mapping() | list() | tuple() if not deepest:
            return "…"
        case Mapping():
            items = islice(value.items(), LONGEST_LINE)
            return {_shortened(str(key)): _shortened(each, deepest - 1) for key, each in items}
        case list() | tuple():
            return [_shortened(each, deepest - 1) for each in value[:LONGEST_LINE]]
        case None | bool() | int() | float():
            return value
        case _:
            return _shortened(str(value))


def visible_metadata(node: BaseNode) -> dict[str, Any]:
    """The metadata of a node that chat models may see.

    Args:
        node: any node.
    """
    return {k: v for k, v in node.metadata.items() if k not in node.excluded_llm_metadata_keys}
