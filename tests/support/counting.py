"""An embedding that records its inputs."""

from __future__ import annotations

from typing import Any

from llama_index_gap import DualEncoderEmbedding


class CountingEmbedding(DualEncoderEmbedding):
    """Records the inputs that it embedded for the index."""

    @property
    def embedded(self) -> list[Any]:
        return self.__dict__.setdefault("seen", [])

    def get_text_embedding_batch(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        self.embedded.extend(texts)
        return super().get_text_embedding_batch(texts, *args, **kwargs)

    def get_image_embedding_batch(self, images: list[Any], *args: Any, **kwargs: Any) -> Any:
        self.embedded.extend(images)
        return super().get_image_embedding_batch(images, *args, **kwargs)
