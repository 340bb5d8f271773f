"""What turns a checkpoint into vectors: one file per family, found by ``model_type``."""

from llama_index_gap.models.base import Encoder, Kind, ModelError
from llama_index_gap.models.loading import load_encoder

__all__ = ["Encoder", "Kind", "ModelError", "load_encoder"]
