from __future__ import annotations

import pytest

from llama_index_gap.text import excerpt, is_blank, visible


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


def test_blank_is_what_leaves_no_mark() -> None:
    for text in ("", " \n", "\u200b\ufeff\u2060\u00ad", "\x00\x1b", "\ufe0f", "\u3164\u2800"):
        assert is_blank(text), ascii(text)
    # A joiner within a word, a mark on a letter, an emoji with its variation, a lone accent.
    for text in ("a", ".", "\u0645\u06cc\u200c\u062e", "e\u0301", "\u2764\ufe0f", "\u0301", "漢"):
        assert not is_blank(text), ascii(text)
