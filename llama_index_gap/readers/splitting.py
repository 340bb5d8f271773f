"""How long texts are cut where nobody says how."""

from __future__ import annotations

import re

from llama_index.core.node_parser import NodeParser, SentenceSplitter
from llama_index.core.node_parser.text.utils import split_by_sentence_tokenizer

_LONG_WORD = re.compile(r"((?<!\S)\S{256,})")
_MOST_MARKS = 100


def default_splitter() -> NodeParser:
    """LlamaIndex's ``SentenceSplitter`` with chunks of 512 tokens that overlap by 64."""
    return SentenceSplitter(chunk_size=512, chunk_overlap=64, chunking_tokenizer_fn=_sentences)


def _sentences(text: str) -> list[str]:
    """A text's sentences, as LlamaIndex finds them, but for words such as ``!!!!…``.

    Of these it takes a mark at each end, calls itself with the rest, and so on: its time grows
    with the square of their length, until Python's stack is full.
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
