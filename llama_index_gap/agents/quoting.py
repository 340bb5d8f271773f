"""Documents as an agent is shown them: quoted, so that nothing passes for the tool's own words."""

from __future__ import annotations

import hashlib
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
    """Metadata as one line of JSON, as far as there is room for it."""
    shown: list[str] = []
    for key, value in metadata.items():
        shown.append(f"{quote(key)}: {as_json(value)}")
        if sum(map(len, shown)) > _LONGEST_FACTS:
            shown.pop()
            break
    rest = len(metadata) - len(shown)
    return f"metadata {{{', '.join(shown)}}}" + (f" ({rest:,} more are left out)" if rest else "")


def lines_of(text: str, longest: int) -> list[str]:
    """A passage, each of its lines marked as such."""
    rest = len(text) - longest
    cut = [f"({rest:,} more characters are left out)"] if rest > 0 else []
    lines = text[:longest].expandtabs(4).splitlines()
    return [*(f"> {visible(line)}" for line in lines), *cut]


def name_of(key: str) -> str:
    """An id as agents are told it, and may pass it; unique where it had to be shortened, too."""
    name = without_folders(excerpt(key, LONGEST_LINE))
    return (
        name
        if name == key
        else f"{name}#{hashlib.sha256(key.encode(errors='replace')).hexdigest()[:8]}"
    )


def quote(text: str, longest: int = LONGEST_LINE) -> str:
    """A text as one JSON string, without absolute paths.

    Args:
        text: of somebody else's.
        longest: most characters.
    """
    return quoted(without_folders(excerpt(str(text), longest)))


def as_json(value: Any, longest: int = LONGEST_LINE) -> str:
    """A value of metadata as JSON on one line; one that is too long or no JSON as a string."""
    try:
        written = quoted(_shortened(value))
    except ValueError:  # NaN, or a number of thousands of digits
        return quote(f"<{type(value).__name__}>")
    return written if len(written) <= longest else quoted(excerpt(written, longest))


def _shortened(value: Any, deepest: int = _DEEPEST) -> Any:
    """A value without absolute paths, and without what lies too deep to be shown."""
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
    """What chat models may see of a node's metadata.

    Args:
        node: any node.
    """
    return {k: v for k, v in node.metadata.items() if k not in node.excluded_llm_metadata_keys}
