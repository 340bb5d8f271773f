"""Multimodal retrieval for LlamaIndex over Milvus, with the modality gap measured and closed."""

from importlib.metadata import version

from llama_index_gap.embedding import DualEncoderEmbedding
from llama_index_gap.images import ImageError, open_image
from llama_index_gap.readers import Corpus, CorpusError, Skipped, read_corpus

__version__ = version("llama-index-gap")
__all__ = [
    "Corpus",
    "CorpusError",
    "DualEncoderEmbedding",
    "ImageError",
    "Skipped",
    "open_image",
    "read_corpus",
]
