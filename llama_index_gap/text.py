"""Prepares texts for people, terminals and models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from unicodedata import category

# Invisible characters: control and format characters, spaces, those that Unicode lets a font ignore
# (Default_Ignorable_Code_Point), and those whose name says that they are blank.
_INVISIBLE_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp"}
_OTHER_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
_UNUSUAL = re.compile(r"[^\x20-\x7e\n]")
_LONGEST_ERROR = 1000
_JOINERS = "\u200c\u200d"  # Persian, Hindi, other languages and some emojis need them
# From a path's start to its last slash. Names of folders may contain spaces.
_FOLDERS = re.compile(
    r"""(?<![\w/\\.…~])(?<!:(?=//))                      # not in the middle of a word or a URL
    (?: file:/*[^\n"'<>;:]{0,500}/ | ~?/(?:[^\n"'<>;:]{0,500}/)?     # POSIX
      | (?:[A-Za-z]:[\\/]|\\\\)(?:[^\n"'<>;:]{0,500}[\\/])? ) # Windows
    (?=[^\s/\\])""",
    re.VERBOSE | re.IGNORECASE,
)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: it has only spaces, control and invisible characters."""
    return all(
        category(each) in _INVISIBLE_CATEGORIES or _OTHER_INVISIBLE.match(each) for each in text
    )


def visible(text: str) -> str:
    """Escape those characters of untrusted text that control a terminal or are invisible."""
    return _escaped(text, ascii)


def quoted(value: Any) -> str:
    """Write an untrusted text or other value as JSON on one line, escaped as ``visible`` does.

    Raises:
        ValueError: the value cannot be written as JSON.
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
    """Shorten each absolute path in a text to its last part."""
    return _FOLDERS.sub("…/", text)


def excerpt(text: str, longest: int) -> str:
    """The beginning of a text, on one line, cut between words if possible.

    Args:
        text: any text.
        longest: maximum number of characters.
    """
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    cut = line[: longest - 1]
    words = cut.rpartition(" ")[0]
    return (words if len(words) > longest // 2 else cut).rstrip(" ,.;:–-") + "…"


def error_in_words(error: object) -> str:
    """An error as a model is told it: one line, without this machine's folders."""
    return visible(without_folders(excerpt(str(error), _LONGEST_ERROR)))


def as_bytes(text: str) -> bytes:
    """Encode a text for SQLite, including lone surrogates, which its text columns refuse."""
    return text.encode(errors="surrogatepass")


def duration(seconds: float) -> str:
    """A duration in words, such as ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
