"""Texts as people and terminals are shown them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from unicodedata import category

# Characters that leave no mark on paper: control and format characters, spaces, and those that
# Unicode lets a font ignore (Default_Ignorable_Code_Point) or that are blank by their name.
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}
_ALSO_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_UNUSUAL = re.compile(r"[^\x20-\x7e\n]")
_LONGEST_ERROR = 1000
_JOINERS = "\u200c\u200d"  # Persian, Hindi and others are written with them, and some emojis
# From a path's start to its last slash; over spaces, too, for these may be in names of folders.
_FOLDERS = re.compile(
    r"""(?<![\w/\\.…~])(?<!:(?=//))                      # not in the middle of a word or a URL
    (?: file:/*[^\n"'<>;:]{0,500}/ | ~?/(?:[^\n"'<>;:]{0,500}/)?     # POSIX
      | (?:[A-Za-z]:[\\/]|\\\\)(?:[^\n"'<>;:]{0,500}[\\/])? ) # Windows
    (?=[^\s/\\])""",
    re.VERBOSE | re.IGNORECASE,
)


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be seen: spaces, control and invisible characters."""
    return all(category(each) in _UNSEEN or _ALSO_UNSEEN.match(each) for each in text)


def visible(text: str) -> str:
    """Text of somebody else's, without the characters that steer a terminal or cannot be seen."""
    return _escaped(text, ascii)


def quoted(value: Any) -> str:
    """A text of somebody else's, or another value, as JSON on one line, escaped as by ``visible``.

    Raises:
        ValueError: it cannot be written as JSON.
    """
    return _escaped(json.dumps(value, ensure_ascii=False, allow_nan=False), json.dumps)


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    def shown(match: re.Match[str]) -> str:
        character = match[0]
        if character.isprintable() or category(character) == "Zs":
            return character
        if character in _JOINERS and text[match.start() - 1 : match.start()] > "\x7f":
            return character
        return escape(character)[1:-1]

    return _UNUSUAL.sub(shown, text)


def without_folders(text: str) -> str:
    """Text in which absolute paths of files are reduced to their last names."""
    return _FOLDERS.sub("…/", text)


def excerpt(text: str, longest: int) -> str:
    """The beginning of a text on one line, cut between words where there is a space to cut at.

    Args:
        text: any text.
        longest: most characters.
    """
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    cut = line[: longest - 1]
    words = cut.rpartition(" ")[0]
    return (words if len(words) > longest // 2 else cut).rstrip(" ,.;:–-") + "…"


def error_in_words(error: object) -> str:
    """What a model is told of an error: one line, without the folders of this machine."""
    return visible(without_folders(excerpt(str(error), _LONGEST_ERROR)))


def as_bytes(text: str) -> bytes:
    """A text as SQLite's tables have it; half a character, which no database takes, too."""
    return text.encode(errors="surrogatepass")


def duration(seconds: float) -> str:
    """A time in words."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
