"""The nodes that this package returns, and the documents that they belong to."""

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

# A Milvus server's limits. They hold on Milvus Lite too, so that a corpus that fits one fits both.
MOST_TEXT_BYTES = 65_535
"""Maximum bytes of a node's text, and of its id, in a new collection."""
MOST_METADATA_BYTES = 65_536
"""Maximum bytes of a node's other stored data: its metadata (stored twice) and relationships."""

# Characters that no text has: control characters, except tabs, line ends, form feeds and terminal
# escapes; and U+FFFD, which decoders write for bytes that they cannot read.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_CONTROLS_PER_BINARY = 10  # at least one in ten characters
_SHORTEST_BINARY = 20


class ScoredNode(NodeWithScore):
    """A node with its document's fused score, and the parts of that score.

    The legs of a text query are named after their target: ``text`` and ``image``. The legs of an
    image query are ``text_by_image`` and ``image_by_image``. For each leg that found the document,
    such as ``text``, ``scores`` holds

    - ``text``: its best raw score;
    - ``text_sigma``: standard deviations above the mean, if the fusion computes them;
    - ``text_evidence``: what the leg adds to the fused score;
    - ``text_probability``: the document's probability of relevance, if there is a calibrator.

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
    """An image node whose content is its caption and its image; it never fetches a URL.

    An index returns nodes of this class. Such a node opens its file only in the folders that the
    index may read, whatever code asks for the image.
    """

    # Private, so that no stored data can set them.
    _image_folders: ImageFolders | None = PrivateAttr(default=None)
    _stored_path: str | None = PrivateAttr(default=None)

    @property
    def image_folders(self) -> ImageFolders | None:
        """The folders that must hold the image's file; None if it may be anywhere.

        They apply to the path that the index stored, not to a path that a program sets later.
        """
        return self._image_folders if self.image_path == self._stored_path else None

    def get_content_blocks(
        self, metadata_mode: MetadataMode = MetadataMode.NONE
    ) -> list[BaseContentBlock]:
        """Give metadata, caption and image as blocks for a chat model.

        The image is PNG, JPEG, GIF or WebP; other formats are converted (``for_chat_models``).

        Args:
            metadata_mode: which metadata goes first; none by default.

        Raises:
            ImageError: there is no file at ``image_path``, or the file or the node's data is not
                an image.
        """
        blocks = self.get_metadata_content_blocks(metadata_mode)
        if self.text:
            blocks.append(TextBlock(text=self.text))
        if self.image or self.image_path:
            path = Path(self.image_path or "")
            if not self.image and self.image_folders is None and not path.is_file():
                raise ImageError(f"node {self.node_id} ({path})", "no such file")
            # The format comes from the bytes. LlamaIndex guesses it from the file's name, does not
            # know .jpeg, and then reads the image as a path. Chat models take only four formats.
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
            ImageError: the node has only a URL, or its file must not be opened.
        """
        if not self.image and self.image_path and self.image_folders is not None:
            check_image(self)
        if self.image is None and self.image_path is None and self.image_url is not None:
            raise ImageError(
                f"node {self.node_id}",
                "its URL is not fetched; use llama_index_gap.open_image(node, allow_urls=True)",
            )
        return super().resolve_image()


def each_node(nodes: Iterable[BaseNode]) -> Iterator[BaseNode]:
    """Nodes or documents one by one; anything but an iterable is refused at once.

    Args:
        nodes: any iterable of nodes.

    Raises:
        ValueError: ``nodes`` is not an iterable of nodes; the message says what to pass.
    """
    if isinstance(nodes, AsyncIterable):
        raise InvalidValueError(
            f"nodes is {_shown(nodes)}, which only asynchronous code can read; collect the nodes "
            "in a list, or pass a plain generator: the asynchronous methods run it in a thread"
        )
    if isinstance(nodes, BaseNode):
        raise InvalidValueError(f"nodes is a single node, {_shown(nodes)}; pass a list, [node]")
    if isinstance(nodes, Mapping):
        raise InvalidValueError("nodes is a mapping, which gives its keys; pass its .values()")
    if isinstance(nodes, str | bytes) or not isinstance(nodes, Iterable):
        raise InvalidValueError(
            f"nodes is {_shown(nodes)}; pass an iterable of nodes, such as a list, a generator or "
            "the result of read_corpus"
        )
    if isinstance(nodes, GeneratorType) and getgeneratorstate(nodes) == GEN_CLOSED:
        raise InvalidValueError(
            f"nodes is a generator that is used up, {_shown(nodes)}; make a new one, or pass a list"
        )
    return _each_checked(nodes)


def _each_checked(nodes: Iterable[BaseNode]) -> Iterator[BaseNode]:
    for place, node in enumerate(nodes):
        if not isinstance(node, BaseNode):
            raise InvalidValueError(
                f"nodes[{place}] is {_shown(node)}, not a LlamaIndex node or document"
            )
        yield node


def as_ids(ids: Iterable[str], what: str) -> list[str]:
    """Ids as a list. A single string is an error: its letters would be read as ids.

    Args:
        ids: any iterable.
        what: the parameter's name, for the message.

    Raises:
        ValueError: ``ids`` is not an iterable of strings.
    """
    if isinstance(ids, str | bytes):
        raise InvalidValueError(f"{what}={str(ids)[:60]!r}: is one string; pass a list, [{what}]")
    if not isinstance(ids, Iterable):
        raise InvalidValueError(f"{what} is {_shown(ids)}; pass an iterable of ids, such as a list")
    found = list(ids)
    for each in found:
        if not isinstance(each, str):
            raise InvalidValueError(f"{what} holds {_shown(each)}; ids must be strings")
    return [str(each) for each in found]  # NumPy's arrays hold a subclass of str


def as_row(node: BaseNode) -> TextNode:
    """Convert a node of any class to the text node or image node that is stored."""
    if isinstance(node, TextNode):
        return node
    if not isinstance(node, Node):
        raise TypeError(f"{type(node).__name__} is neither a text node nor an image node")
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
    """A stored node as an index returns it: its image is opened only in these folders.

    The maker of an index may have stored nodes of any class. These can name files in other ways
    too: audio and video are left out, and the node inside an index node is confined as well.

    Args:
        node: as it was stored.
        folders: the folders that must hold its image; a moved image is looked for there.
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
    """Say why a string is a binary file's bytes and not a text; "" if it is a text.

    LlamaIndex's ``SimpleDirectoryReader`` decodes every file that it has no reader for.

    Args:
        text: the text of a node or document.
    """
    if "\x00" in text:
        return (
            "holds a NUL character: it is binary data, such as an image file, not text; "
            "SimpleDirectoryReader reads images with file_extractor= and ImageFileReader"
        )
    controls = len(_CONTROLS.findall(text)) if len(text) >= _SHORTEST_BINARY else 0
    if controls * _CONTROLS_PER_BINARY > len(text):
        return (
            f"{controls:,} of its {len(text):,} characters are control characters: it is binary "
            "data, such as an image file, not text; SimpleDirectoryReader reads images with "
            "file_extractor= and ImageFileReader"
        )
    return ""


def texts_of_bytes(
    nodes: Sequence[BaseNode], documents: dict[str, str] | None = None
) -> dict[str, str]:
    """The nodes whose text is a binary file's bytes: the reason for each, by id.

    If one passage of a document is binary, all its nodes count as binary: a stretch of random bytes
    without control characters can look like a text.

    Args:
        nodes: the nodes of whole documents, or as many of them as are at hand.
        documents: the reasons for documents that are known to be binary, by ``document_key``; this
            function adds to it.
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
            found[node.node_id] = "is part of a document that is binary data, not text"
    return found


def by_document(hits: Sequence[NodeWithScore], group_by: GroupBy) -> list[list[NodeWithScore]]:
    """The hits of each document, in their original order; each node once."""
    documents: defaultdict[str, dict[str, NodeWithScore]] = defaultdict(dict)
    for hit in hits:
        documents[document_key(hit.node, group_by)].setdefault(hit.node_id, hit)
    return [list(of_document.values()) for of_document in documents.values()]


def document_key(node: BaseNode, group_by: GroupBy) -> str:
    """The document that a node belongs to; with ``"node"``, each node counts as a document."""
    if group_by == "node":
        return node.node_id
    return node.ref_doc_id or node.node_id


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:60]}{'…' if len(text) > 60 else ''}"
