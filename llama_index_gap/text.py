"""What terminals are sent."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text of somebody else's, without the characters that steer a terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )
