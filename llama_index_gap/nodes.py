"""Nodes as this package returns them, and the documents that they belong to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llama_index.core.base.llms.types import BaseContentBlock, ImageBlock, TextBlock
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)

from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.images.opening import ImageError, check_image, mime_type

GroupBy: TypeAlias = Literal["document", "node"]

# A server's own limits, kept on Milvus Lite too: a corpus that fits one fits the other.
MOST_TEXT_BYTES = 65_535
"""Most bytes of a node's text, and of its id, in a new collection."""
MOST_METADATA_BYTES = 65_536
"""Most bytes of all else that is stored of a node: its metadata, twice, and its relationships."""


class ScoredNode(NodeWithScore):
    """A node with its document's fused score, and where that score comes from.

    Legs of text queries are named after what they find (``text``, ``image``), those of image
    queries ``text_by_image`` and ``image_by_image``. For each leg that found the document,
    ``scores`` holds

    - ``text``: its best raw score;
    - ``text_sigma``: standard deviations above the mean, if the fusion computes them;
    - ``text_evidence``: what the leg adds to the fused score;
    - ``text_probability``: how probable the score makes the document, if there is a calibrator.

    ``MultiModalRerank`` adds ``rerank_text``, ``rerank_image`` or ``rerank_joint``, and keeps the
    fused score as ``retrieval``. ``partial`` says that a reranker ran out of time before it had
    read all documents.
    """

    scores: dict[str, float] = Field(default_factory=dict)
    partial: bool = False

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the node."""
        return "ScoredNode"


class CaptionedImageNode(ImageNode):
    """An image node whose content is its caption and its image; it fetches no URL by itself.

    One that an index returns opens its file only where the index may, whoever asks for it.
    """

    # Private, so that nothing that is stored can set them.
    _image_folders: ImageFolders | None = PrivateAttr(default=None)
    _stored_path: str | None = PrivateAttr(default=None)

    @property
    def image_folders(self) -> ImageFolders | None:
        """The folders that the image's file must lie in; None for anywhere.

        Of an index's node they hold for the path that was stored, not for one that a program sets.
        """
        return self._image_folders if self.image_path == self._stored_path else None

    def get_content_blocks(
        self, metadata_mode: MetadataMode = MetadataMode.NONE
    ) -> list[BaseContentBlock]:
        """Give metadata, caption and image as blocks for a chat model.

        Args:
            metadata_mode: which metadata goes first; none by default.

        Raises:
            ImageError: its image_path is no file, or the file is no image.
        """
        blocks = self.get_metadata_content_blocks(metadata_mode)
        if self.text:
            blocks.append(TextBlock(text=self.text))
        if self.image:
            blocks.append(ImageBlock(image=self.image.encode(), image_mimetype=self.image_mimetype))
        elif self.image_path:
            path = Path(self.image_path)
            if self.image_folders is not None:
                check_image(self)
            elif not path.is_file():
                raise ImageError(f"node {self.node_id} ({path})", "no such file")
            # LlamaIndex guesses by the name, knows no .jpeg, and then takes the image for a path.
            kind = self.image_mimetype or mime_type(path)
            blocks.append(ImageBlock(path=path, image_mimetype=kind))
        elif self.image_url:
            blocks.append(ImageBlock(url=self.image_url, image_mimetype=self.image_mimetype))
        return blocks

    def resolve_image(self) -> Any:
        """Give the image's path, or its bytes as a stream.

        Raises:
            ImageError: the node knows only a URL, or its file must not be opened.
        """
        if not self.image and self.image_path and self.image_folders is not None:
            check_image(self)
        if self.image is None and self.image_path is None and self.image_url is not None:
            raise ImageError(
                f"node {self.node_id}",
                "its URL is not fetched here; use "
                "llama_index_gap.open_image(node, allow_urls=True)",
            )
        return super().resolve_image()


def as_row(node: BaseNode) -> TextNode:
    """A node of any class as the text node or image node that is stored."""
    if isinstance(node, TextNode):
        return node
    if not isinstance(node, Node):
        raise TypeError(f"{type(node).__name__} is neither a text nor an image node")
    common = {
        "id_": node.node_id,
        "text": node.get_content(MetadataMode.NONE),
        "metadata": node.metadata,
        "excluded_embed_metadata_keys": node.excluded_embed_metadata_keys,
        "excluded_llm_metadata_keys": node.excluded_llm_metadata_keys,
        "relationships": node.relationships,
    }
    image = node.image_resource
    if image is None:
        return TextNode(**common)
    return ImageNode(
        **common,
        image=image.data.decode() if image.data else None,
        image_path=str(image.path) if image.path else None,
        image_url=str(image.url) if image.url else None,
        image_mimetype=image.mimetype,
    )


def confined(node: BaseNode, folders: ImageFolders) -> BaseNode:
    """A stored node as an index returns it: its image is opened below these folders only.

    Whoever made the index may have stored a node of any class. What names files in another way
    (a node's sound and film, the node inside an index node) is left out or confined as well.

    Args:
        node: as it was stored.
        folders: where its image must lie; a moved image is found there.
    """
    if isinstance(node, IndexNode) and isinstance(node.obj, BaseNode):
        return node.model_copy(update={"obj": confined(node.obj, folders)})
    if isinstance(node, Node):
        node = as_row(node)
    if not isinstance(node, ImageNode):
        return node
    if not isinstance(node, CaptionedImageNode):
        node = CaptionedImageNode.model_validate(node.model_dump())
    found = folders.find(node.image_path) if node.image_path else None
    node = node.model_copy(update={"image_path": found})
    node._image_folders, node._stored_path = folders, found
    return node


def by_document(hits: Sequence[NodeWithScore], group_by: GroupBy) -> list[list[NodeWithScore]]:
    """The hits of each document, each node once, all in the order they came in."""
    documents: defaultdict[str, dict[str, NodeWithScore]] = defaultdict(dict)
    for hit in hits:
        documents[document_key(hit.node, group_by)].setdefault(hit.node_id, hit)
    return [list(of_document.values()) for of_document in documents.values()]


def document_key(node: BaseNode, group_by: GroupBy) -> str:
    """The document that a node belongs to; by ``"node"`` each node counts as a document."""
    if group_by == "node":
        return node.node_id
    return node.ref_doc_id or node.node_id
