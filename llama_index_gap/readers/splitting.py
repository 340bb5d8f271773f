"""How long texts are cut where nobody says how."""

from __future__ import annotations

from llama_index.core.node_parser import NodeParser, SentenceSplitter


def default_splitter() -> NodeParser:
    """LlamaIndex's ``SentenceSplitter`` with chunks of 512 tokens that overlap by 64."""
    return SentenceSplitter(chunk_size=512, chunk_overlap=64)
