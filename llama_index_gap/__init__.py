"""Multimodal retrieval for LlamaIndex over Milvus, with the modality gap measured and closed."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_gap.calibration import collect_scores
    from llama_index_gap.embedding import DualEncoderEmbedding, aligner_from_nodes
    from llama_index_gap.gap.align import (
        CenterAligner,
        LinearAligner,
        OffsetAligner,
        load_aligner,
    )
    from llama_index_gap.gap.calibrate import RelevanceCalibrator
    from llama_index_gap.images import ImageError, open_image
    from llama_index_gap.index import DualIndex, IndexReport
    from llama_index_gap.models import ModelError, PairScorer
    from llama_index_gap.readers import Corpus, CorpusError, Skipped, read_corpus
    from llama_index_gap.rerank import MultiModalRerank
    from llama_index_gap.retriever import DualIndexRetriever, ScoredNode
    from llama_index_gap.store import MilvusStore, StoreError
    from llama_index_gap.tool import MultiModalSearchTool

__version__ = version("llama-index-gap")
__all__ = [
    "CenterAligner",
    "Corpus",
    "CorpusError",
    "DualEncoderEmbedding",
    "DualIndex",
    "DualIndexRetriever",
    "ImageError",
    "IndexReport",
    "LinearAligner",
    "MilvusStore",
    "ModelError",
    "MultiModalRerank",
    "MultiModalSearchTool",
    "OffsetAligner",
    "PairScorer",
    "RelevanceCalibrator",
    "ScoredNode",
    "Skipped",
    "StoreError",
    "aligner_from_nodes",
    "collect_scores",
    "load_aligner",
    "open_image",
    "read_corpus",
]

# Imported when first asked for: who only reads a corpus need not wait for Milvus' client.
_HOMES = {
    "calibration": ("collect_scores",),
    "embedding": ("DualEncoderEmbedding", "aligner_from_nodes"),
    "gap.align": ("CenterAligner", "LinearAligner", "OffsetAligner", "load_aligner"),
    "gap.calibrate": ("RelevanceCalibrator",),
    "images": ("ImageError", "open_image"),
    "index": ("DualIndex", "IndexReport"),
    "models": ("ModelError", "PairScorer"),
    "readers": ("Corpus", "CorpusError", "Skipped", "read_corpus"),
    "rerank": ("MultiModalRerank",),
    "retriever": ("DualIndexRetriever", "ScoredNode"),
    "store": ("MilvusStore", "StoreError"),
    "tool": ("MultiModalSearchTool",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
