"""Texts as people and terminals are shown them."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text of somebody else's, without the characters that steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


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
