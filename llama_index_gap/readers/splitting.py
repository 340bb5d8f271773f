"""Splitters that cut long texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.node_parser import NodeParser, SentenceSplitter
from llama_index.core.node_parser.text.utils import split_by_sentence_tokenizer

from llama_index_gap.errors import InvalidValueError

_LONG_WORD = re.compile(r"((?<!\S)\S{256,})")
_MOST_MARKS = 100


def default_splitter(chunk_size: int | None = None) -> NodeParser:
    """LlamaIndex's ``SentenceSplitter`` with chunks that overlap by an eighth.

    Args:
        chunk_size: the most tokens of a chunk, as LlamaIndex counts them; 512 by default.

    Raises:
        ValueError: ``chunk_size`` is below 1.
    """
    size = 512 if chunk_size is None else chunk_size
    if size < 1:
        raise InvalidValueError(f"chunk_size={size}: must be at least 1")
    return splitter_of(size)


def chosen_splitter(splitter: NodeParser | None, chunk_size: int | None) -> NodeParser:
    """The given splitter, or the default one.

    Raises:
        ValueError: both arguments are given.
    """
    if splitter is None:
        return default_splitter(chunk_size)
    if chunk_size is not None:
        raise InvalidValueError(
            f"chunk_size={chunk_size} and splitter= both set how texts are cut; pass one of them"
        )
    return splitter


def splitter_of(
    chunk_size: int, tokenizer: Callable[[str], Sequence[Any]] | None = None
) -> SentenceSplitter:
    """A ``SentenceSplitter`` whose chunks overlap by an eighth.

    Args:
        chunk_size: the most tokens of a chunk.
        tokenizer: splits a text into tokens; by default LlamaIndex's tokenizer.
    """
    own: dict[str, Any] = {} if tokenizer is None else {"tokenizer": tokenizer}
    return SentenceSplitter(
        chunk_size=chunk_size,
        chunk_overlap=chunk_size // 8,
        chunking_tokenizer_fn=_sentences,
        **own,
    )


def _sentences(text: str) -> list[str]:
    """The sentences that LlamaIndex finds in a text, except in words such as ``!!!!…``.

    For such a word, LlamaIndex removes a mark at each end and calls itself with the rest: the time
    grows with the square of the word's length, until Python's stack overflows.
    """
    find = split_by_sentence_tokenizer()
    sentences: list[str] = []
    between = ""
    for part in _LONG_WORD.split(text):
        if _LONG_WORD.match(part) and sum(map(part.count, ".?!")) > _MOST_MARKS:
            sentences += [*(find(between) if between else []), part]
            between = ""
        else:
            between += part
    return sentences + (find(between) if between else [])
