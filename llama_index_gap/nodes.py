"""Nodes as this package returns them, and the documents that they belong to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping, Sequence
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path
from types import GeneratorType
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

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.images.opening import ImageError, check_image, for_chat_models

GroupBy: TypeAlias = Literal["document", "node"]

# A server's own limits, kept on Milvus Lite too: a corpus that fits one fits the other.
MOST_TEXT_BYTES = 65_535
"""Most bytes of a node's text, and of its id, in a new collection."""
MOST_METADATA_BYTES = 65_536
"""Most bytes of all else that is stored of a node: its metadata, twice, and its relationships."""

# What no text has, but for tabs, line ends, form feeds and terminals' escapes; or what decoders put
# where they read nothing.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_CONTROLS_PER_BINARY = 10  # at least one in ten characters
_SHORTEST_BINARY = 20


class ScoredNode(NodeWithScore):
    """A node with its document's fused score, and where that score comes from.

    Legs of text queries are named after what they find (``text``, ``image``), those of image
    queries ``text_by_image`` and ``image_by_image``. For each leg that found the document,
    ``scores`` holds

    - ``text``: its best raw score;
    - ``text_sigma``: standard deviations above the mean, if the fusion computes them;
    - ``text_evidence``: what the leg adds to the fused score;
    - ``text_probability``: how probable the score makes the document, if there is a calibrator.

    ``MultiModalRerank`` adds ``rerank_text``, ``rerank_image`` or ``rerank_joint``, and
    ``rerank_first_stage`` where the first stage counts too. It keeps the fused score as
    ``retrieval``. ``partial`` says that a reranker ran out of time before it had read all
    documents. ``log_odds`` is the fused score where that is log odds (``combine="intent"``), else
    None.
    """

    scores: dict[str, float] = Field(default_factory=dict)
    partial: bool = False
    log_odds: float | None = None

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

        The image is PNG, JPEG, GIF or WebP, whatever its file is (``for_chat_models``).

        Args:
            metadata_mode: which metadata goes first; none by default.

        Raises:
            ImageError: its image_path is no file, or the file, or its own data, is no image.
        """
        blocks = self.get_metadata_content_blocks(metadata_mode)
        if self.text:
            blocks.append(TextBlock(text=self.text))
        if self.image or self.image_path:
            path = Path(self.image_path or "")
            if not self.image and self.image_folders is None and not path.is_file():
                raise ImageError(f"node {self.node_id} ({path})", "no such file")
            # Not what the name or the node says: LlamaIndex guesses by the name, knows no .jpeg,
            # and then takes the image for a path; and chat models take four formats only.
            encoded, kind = for_chat_models(
                self if self.image or self.image_folders is not None else path
            )
            if encoded is not None:
                blocks.append(ImageBlock(image=encoded, image_mimetype=kind))
            elif self.image:
                data = self.image.rpartition(",")[2]  # of a data URI
                blocks.append(ImageBlock(image=data.encode(), image_mimetype=kind))
            else:
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


def each_node(nodes: Iterable[BaseNode]) -> Iterator[BaseNode]:
    """Nodes or documents one by one; what is no iterable of them is refused at once.

    Args:
        nodes: any iterable.

    Raises:
        ValueError: it is none; says what to pass.
    """
    if isinstance(nodes, AsyncIterable):
        raise InvalidValueError(
            f"nodes are {_shown(nodes)}, which only asynchronous code can take; collect them in a "
            "list, or pass a plain generator: the asynchronous methods run it in a thread"
        )
    if isinstance(nodes, BaseNode):
        raise InvalidValueError(f"nodes are one node, {_shown(nodes)}; pass a list, [node]")
    if isinstance(nodes, Mapping):
        raise InvalidValueError("nodes are a mapping, which gives its keys; pass its .values()")
    if isinstance(nodes, str | bytes) or not isinstance(nodes, Iterable):
        raise InvalidValueError(
            f"nodes are {_shown(nodes)}; pass an iterable of nodes, such as a list, a generator or "
            "what read_corpus gives"
        )
    if isinstance(nodes, GeneratorType) and getgeneratorstate(nodes) == GEN_CLOSED:
        raise InvalidValueError(
            f"nodes are a generator that is used up, {_shown(nodes)}; make it anew, or pass a list"
        )
    return _each_checked(nodes)


def _each_checked(nodes: Iterable[BaseNode]) -> Iterator[BaseNode]:
    for place, node in enumerate(nodes):
        if not isinstance(node, BaseNode):
            raise InvalidValueError(
                f"nodes[{place}] is {_shown(node)}, and no LlamaIndex node or document"
            )
        yield node


def as_ids(ids: Iterable[str], what: str) -> list[str]:
    """Ids as a list, each as it is; a single text is an error, for it would be read by its letters.

    Args:
        ids: any iterable.
        what: the parameter's name, for the message.

    Raises:
        ValueError: it is no iterable of texts.
    """
    if isinstance(ids, str | bytes):
        raise InvalidValueError(f"{what}={str(ids)[:60]!r}: is one text; pass a list, [{what}]")
    if not isinstance(ids, Iterable):
        raise InvalidValueError(f"{what} is {_shown(ids)}; pass an iterable of ids, such as a list")
    found = list(ids)
    for each in found:
        if not isinstance(each, str):
            raise InvalidValueError(f"{what} holds {_shown(each)}, and ids are texts")
    return [str(each) for each in found]  # those of NumPy's arrays are texts of its own


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


def not_a_text(text: str) -> str:
    """Say why something is no text but a file's bytes; "" where it is one.

    LlamaIndex's ``SimpleDirectoryReader`` decodes whatever it has no reader for.

    Args:
        text: of a node or of a document.
    """
    if "\x00" in text:
        return "holds a NUL character, which is not text"
    controls = len(_CONTROLS.findall(text)) if len(text) >= _SHORTEST_BINARY else 0
    if controls * _CONTROLS_PER_BINARY > len(text):
        return (
            f"{controls:,} of its {len(text):,} characters are control characters: it is binary "
            "data, such as an image's file, and not text"
        )
    return ""


def texts_of_bytes(
    nodes: Sequence[BaseNode], documents: dict[str, str] | None = None
) -> dict[str, str]:
    """The nodes that hold no text but a file's bytes, by their ids, and why.

    Where one passage of a document is binary, all of its nodes are: between two control characters
    chance makes words.

    Args:
        nodes: of whole documents, or as much of them as is at hand.
        documents: those that are known to be binary, by ``document_key``; more are added.
    """
    found: dict[str, str] = {}
    documents = {} if documents is None else documents
    for node in nodes:
        text = node.get_content(MetadataMode.NONE)
        if reason := not_a_text(text):
            found[node.node_id] = reason
            if not_a_text(text.replace("\x00", "\x01")):
                documents[document_key(node, "document")] = reason
    for node in nodes if documents else ():
        if document_key(node, "document") in documents and node.node_id not in found:
            found[node.node_id] = "is a part of a document that is binary data, and not text"
    return found


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


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"
