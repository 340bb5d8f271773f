"""The base of embeddings of texts and images, wherever their model runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import field_validator
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, ImageNode, ImageType, MetadataMode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.modality import Kind
from llama_index_gap.threads import in_thread


class EmbeddingBase(MultiModalEmbedding):
    """LlamaIndex's methods, built on one method for texts and one for images.

    Asynchronous methods run in a thread and never block the event loop.
    """

    @abstractmethod
    def _embed_texts(self, texts: list[str], kind: Kind) -> list[Embedding]:
        """Embed n texts."""

    @abstractmethod
    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        """Embed n images."""

    @field_validator("embeddings_cache")
    @classmethod
    def _no_cache(cls, value: Any) -> None:
        # LlamaIndex's key is the text only, so queries would get the vectors of documents, and
        # other settings would get the vectors of these.
        if value is not None:
            raise InvalidValueError(
                "embeddings_cache cannot tell queries from documents, or one model from another; "
                "cache with an IngestionPipeline instead"
            )

    # --- nodes -----------------------------------------------------------------------------------

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed nodes, as a step of an ``IngestionPipeline``.

        Args:
            nodes: n nodes; never changed.
            **kwargs: as for ``get_text_embedding_batch``.

        Returns:
            n copies with vectors. An image node has its image's vector as ``embedding`` and its
            caption's as ``text_embedding``; any other node has its text's vector as ``embedding``.
        """
        nodes = list(nodes)
        images = [node for node in nodes if isinstance(node, ImageNode)]
        texts = [node for node in nodes if not isinstance(node, ImageNode) or node.text]
        text_vectors = self.get_text_embedding_batch(
            [node.get_content(metadata_mode=MetadataMode.EMBED) for node in texts], **kwargs
        )
        sources: list[Any] = list(images)
        image_vectors = self.get_image_embedding_batch(sources, kwargs.get("show_progress", False))
        of_text = {id(node): vector for node, vector in zip(texts, text_vectors, strict=True)}
        of_image = {id(node): vector for node, vector in zip(images, image_vectors, strict=True)}
        return [
            node.model_copy(
                update={"embedding": of_image[id(node)], "text_embedding": of_text.get(id(node))}
            )
            if id(node) in of_image
            else node.model_copy(update={"embedding": of_text[id(node)]})
            for node in nodes
        ]

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed nodes as a call does, without blocking the event loop."""
        return await in_thread(self, nodes, **kwargs)

    # --- texts -----------------------------------------------------------------------------------

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._embed_texts([query], "query")[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await in_thread(self._get_query_embedding, query)

    def get_query_embedding_batch(self, queries: list[str]) -> list[Embedding]:
        """Embed queries in batches, each like ``get_query_embedding``.

        Args:
            queries: n texts.
        """
        return self._embed_texts(queries, "query")

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._embed_texts([text], "document")[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return await in_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._embed_texts(texts, "document")

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await in_thread(self._get_text_embeddings, texts)

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Like ``get_text_embedding_batch``, without blocking the event loop."""
        return await in_thread(self.get_text_embedding_batch, texts, show_progress, **kwargs)

    # --- images ----------------------------------------------------------------------------------

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return await in_thread(self._get_image_embedding, img_file_path)

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return await in_thread(self._get_image_embeddings, img_file_paths)

    async def aget_image_embedding_batch(
        self, img_file_paths: list[ImageType], show_progress: bool = False
    ) -> list[Embedding]:
        """Like ``get_image_embedding_batch``, without blocking the event loop."""
        return await in_thread(self.get_image_embedding_batch, img_file_paths, show_progress)


def refuse_what_is_no_text(texts: Sequence[Any]) -> None:
    """Reject anything that is not a text, such as an image, which a model would embed by its name.

    Args:
        texts: the inputs of a text method.

    Raises:
        ValueError: an input is not a text.
    """
    for text in texts:
        if not isinstance(text, str):
            raise InvalidValueError(f"{text!r} is not a text; pass images to the image methods")
