from __future__ import annotations

import pytest

from llama_index_gap.text import excerpt, visible


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("short\n\n text", "short text"),
        ("one two three four", "one two…"),
        ("ninechars", "ninechars"),
        ("一二三四五六七八九十一二", "一二三四五六七八九…"),
    ],
)
def test_excerpts_are_cut_between_words_where_there_are_any(words: str, shown: str) -> None:
    assert excerpt(words, 10) == shown
    assert len(shown) <= 10


def test_characters_that_steer_a_terminal_are_shown() -> None:
    assert visible("a\x1b[31m\nb") == "a\\x1b[31m\nb"
