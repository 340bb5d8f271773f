"""Models that turn inputs into vectors or scores; one file for each family of checkpoints."""

from llama_index_gap.modality import Kind
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Encoder, Joint, LazyImage, ModelError, PairScorer
from llama_index_gap.models.loading import load_encoder, load_scorer

__all__ = [
    "Encoder",
    "Joint",
    "Kind",
    "LazyImage",
    "LoadingSettings",
    "ModelError",
    "PairScorer",
    "load_encoder",
    "load_scorer",
]
