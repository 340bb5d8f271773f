"""Multimodal retrieval for LlamaIndex over Milvus, with the modality gap measured and closed."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_index_gap.agents.tool import MultiModalSearchTool
    from llama_index_gap.diagnosis.calibration import collect_scores
    from llama_index_gap.distributed.ingestion import ingest_with_ray
    from llama_index_gap.embedding import (
        DualEncoderEmbedding,
        EmbeddingService,
        aligner_from_nodes,
    )
    from llama_index_gap.errors import GapError
    from llama_index_gap.gap.align import CenterAligner, LinearAligner, OffsetAligner, load_aligner
    from llama_index_gap.gap.calibrate import RelevanceCalibrator
    from llama_index_gap.images.opening import ImageError, open_image
    from llama_index_gap.index.copying import CopyReport
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.index.queries import LearntQueries
    from llama_index_gap.index.reembedding import ReembedReport
    from llama_index_gap.index.tenants import list_tenants
    from llama_index_gap.index.writing import IndexReport
    from llama_index_gap.models import ModelError, PairScorer
    from llama_index_gap.nodes import ScoredNode
    from llama_index_gap.readers.corpus import Corpus, read_corpus
    from llama_index_gap.readers.records import CorpusError, Skipped
    from llama_index_gap.results import SearchResult
    from llama_index_gap.search.rerank import MultiModalRerank
    from llama_index_gap.search.retriever import DualIndexRetriever
    from llama_index_gap.store.connection import StoreError
    from llama_index_gap.store.milvus import MilvusStore

__version__ = version("llama-index-gap")
__all__ = [
    "CenterAligner",
    "CopyReport",
    "Corpus",
    "CorpusError",
    "DualEncoderEmbedding",
    "DualIndex",
    "DualIndexRetriever",
    "EmbeddingService",
    "GapError",
    "ImageError",
    "IndexReport",
    "LearntQueries",
    "LinearAligner",
    "MilvusStore",
    "ModelError",
    "MultiModalRerank",
    "MultiModalSearchTool",
    "OffsetAligner",
    "PairScorer",
    "ReembedReport",
    "RelevanceCalibrator",
    "ScoredNode",
    "SearchResult",
    "Skipped",
    "StoreError",
    "aligner_from_nodes",
    "collect_scores",
    "ingest_with_ray",
    "list_tenants",
    "load_aligner",
    "open_image",
    "read_corpus",
]

# Imported on first use: a program that only reads a corpus need not wait for Milvus' client.
_HOMES = {
    "agents.tool": ("MultiModalSearchTool",),
    "diagnosis.calibration": ("collect_scores",),
    "distributed.ingestion": ("ingest_with_ray",),
    "embedding": ("DualEncoderEmbedding", "EmbeddingService", "aligner_from_nodes"),
    "errors": ("GapError",),
    "gap.align": ("CenterAligner", "LinearAligner", "OffsetAligner", "load_aligner"),
    "gap.calibrate": ("RelevanceCalibrator",),
    "images.opening": ("ImageError", "open_image"),
    "index.copying": ("CopyReport",),
    "index.dual_index": ("DualIndex",),
    "index.queries": ("LearntQueries",),
    "index.reembedding": ("ReembedReport",),
    "index.tenants": ("list_tenants",),
    "index.writing": ("IndexReport",),
    "models": ("ModelError", "PairScorer"),
    "nodes": ("ScoredNode",),
    "readers.corpus": ("Corpus", "read_corpus"),
    "readers.records": ("CorpusError", "Skipped"),
    "results": ("SearchResult",),
    "search.rerank": ("MultiModalRerank",),
    "search.retriever": ("DualIndexRetriever",),
    "store.connection": ("StoreError",),
    "store.milvus": ("MilvusStore",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
