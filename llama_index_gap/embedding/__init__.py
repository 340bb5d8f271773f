"""LlamaIndex embeddings of texts and images, by a local model or by a service."""

from llama_index_gap.embedding.dual_encoder import DualEncoderEmbedding
from llama_index_gap.embedding.fitting_aligners import aligner_from_nodes
from llama_index_gap.embedding.service import EmbeddingService

__all__ = ["DualEncoderEmbedding", "EmbeddingService", "aligner_from_nodes"]
