"""MultiModalSearchTool: lets an agent search, and see the images that it finds."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ContentBlock, ImageBlock, TextBlock
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.tools import AsyncBaseTool, ToolMetadata, ToolOutput
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_gap.agents.filter_advice import mistaken_filters, values_of
from llama_index_gap.agents.quoting import name_of
from llama_index_gap.agents.shown import (
    Answer,
    Images,
    ShownDocument,
    heading,
    image_line,
    text_of,
)
from llama_index_gap.agents.tool_arguments import (
    DESCRIPTION,
    MAX_TOP_K,
    NAME,
    TOP_K,
    check_arguments,
    filters_of,
    given_arguments,
    images_to_name,
    search_arguments,
)
from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError, names_nearest
from llama_index_gap.images.opening import (
    ImageError,
    check_image,
    data_uri,
    describe,
)
from llama_index_gap.results import SearchResult, documents_of
from llama_index_gap.text import error_in_words, is_blank
from llama_index_gap.threads import in_thread

logger = logging.getLogger(__name__)

_REMEMBERED = 1000


@runtime_checkable
class NarrowableRetriever(Protocol):
    """What the tool needs of a ``DualIndexRetriever``, beyond what any retriever has."""

    def filtered(self, filters: MetadataFilters) -> BaseRetriever:
        """A copy that these filters narrow further."""

    def get_image(self, node_id: str) -> BaseNode | None:
        """The image node with this id, if the retriever may find it."""

    def for_documents(self, documents: int) -> BaseRetriever:
        """A copy that finds enough for so many documents."""

    def examples(self, field: str | None = None) -> Sequence[BaseNode] | None:
        """Some nodes with a metadata field; None if the stores cannot tell."""

    def query_cut_at(self, query: str) -> int | None:
        """How many tokens of a query the model reads; None if it reads all."""


class MultiModalSearchTool(AsyncBaseTool):
    """Lets an agent search with any retriever, and see the images that it finds.

    The agent passes a ``query`` and may pass ``top_k``. With a ``DualIndexRetriever`` it may also
    pass ``filters`` on metadata, which narrow the retriever's own and never replace them, and an
    ``image`` to search by: the id of an image that a search returned; with ``image_root`` a path
    below that folder; with ``allow_urls`` a URL. No other file is read.

    The tool returns documents, best first: for each a text block (title, score and its parts,
    metadata that chat models may see, passages, images with their ids and captions), then its
    images as JPEG blocks. Agents that pass text only, such as ``ReActAgent``, get the text blocks.
    Passages are quoted line by line, all else of a document as JSON strings, so that nothing in it
    can pass for the tool's own words. Outside passages and captions, absolute paths are reduced to
    their last names. ``raw_output`` holds the nodes.

    An error in the arguments, a file, a model or the database comes back as a ``ToolOutput`` with
    ``is_error``. Its text says what to do, and it is logged. Other exceptions are bugs, and are
    raised.

    Args:
        retriever: finds the documents. How many it looks for is its own setting.
        node_postprocessors: applied in this order to the hits, before ``top_k`` documents are
            taken. A reranker's own ``top_n`` holds, too.
        name: letters, digits, ``_`` and ``-``.
        description: tells the agent what it can search here; best with the names and values of
            the metadata that it may filter by.
        top_k: documents to return by default.
        max_top_k: most documents that the agent may ask for.
        filter_fields: metadata fields that the agent may filter by; by default any, even one that
            is hidden from chat models; empty for none.
        image_root: folder below which query images may be named by their paths.
        allow_urls: fetch images from http(s) URLs, of queries and of nodes.
        max_images: most images in one answer; further ones are only named.
        max_image_side: longest side of an image in pixels; larger ones are scaled down.
        max_characters: most characters of one passage.

    Raises:
        ValueError: a setting is out of range, or does not fit the retriever.
    """

    @names_nearest
    def __init__(
        self,
        retriever: BaseRetriever,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        *,
        name: str = NAME,
        description: str = DESCRIPTION,
        top_k: int = TOP_K,
        max_top_k: int = MAX_TOP_K,
        filter_fields: Sequence[str] | None = None,
        image_root: str | Path | None = None,
        allow_urls: bool = False,
        max_images: int = 5,
        max_image_side: int = 768,
        max_characters: int = 4000,
    ) -> None:
        for setting, value, least in (
            ("top_k", top_k, 1),
            ("max_top_k", max_top_k, top_k),
            ("max_images", max_images, 0),
            ("max_image_side", max_image_side, 1),
            ("max_characters", max_characters, 1),
        ):
            if value < least:
                raise InvalidValueError(f"{setting}={value}: must be at least {least}")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            raise InvalidValueError(
                f"name={name!r}: chat models take up to 64 letters, digits, _ and -"
            )
        if image_root is not None and not Path(image_root).is_dir():
            raise InvalidValueError(f"image_root={image_root}: no such folder")
        ours = isinstance(retriever, NarrowableRetriever)
        if not ours and (image_root is not None or filter_fields):
            raise InvalidValueError(
                "image_root and filter_fields are for a DualIndexRetriever; "
                f"{type(retriever).__name__} may know neither images nor filters"
            )
        self.retriever = retriever
        self.node_postprocessors = list(node_postprocessors or [])
        self.image_root = image_root
        self.allow_urls = allow_urls
        self.max_images = max_images
        self.max_image_side = max_image_side
        self.max_characters = max_characters
        self._images = images_to_name(image_root, allow_urls) if ours else None
        self._metadata = ToolMetadata(
            description,
            name,
            search_arguments(
                top_k=top_k,
                max_top_k=max_top_k,
                images=self._images,
                filter_fields=filter_fields if ours else (),
            ),
        )
        # The images that searches returned, by the ids that agents saw.
        self._returned: deque[tuple[str, BaseNode]] = deque(maxlen=_REMEMBERED)

    @classmethod
    def from_defaults(
        cls,
        retriever: BaseRetriever,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        **settings: Any,
    ) -> MultiModalSearchTool:
        """Make a tool, in the way of LlamaIndex's own tools.

        Args:
            retriever: as for the class.
            node_postprocessors: as for the class.
            **settings: as for the class.
        """
        return cls(retriever, node_postprocessors, **settings)

    @property
    def metadata(self) -> ToolMetadata:
        """Name, description and arguments, as agents see them."""
        return self._metadata

    # Agents pass arguments by name. LlamaIndex's own tools have this signature, their base has not.
    def call(self, query: str = "", **arguments: Any) -> ToolOutput:  # type: ignore[override]
        """Search.

        Args:
            query: what to look for.
            **arguments: ``top_k``, ``filters``, ``image``; None for the default.

        Returns:
            The documents, or an error that an agent can read.
        """
        try:
            search = self._prepare(query, arguments)
            hits = found = search.retriever.retrieve(search.bundle)
            for each in self.node_postprocessors:
                hits = each.postprocess_nodes(hits, query_bundle=search.bundle)
            return self._output(query, arguments, self._answer(search, found, hits))
        except EXPECTED_ERRORS as error:
            return self._failure(query, arguments, error)

    async def acall(  # type: ignore[override]
        self, query: str = "", **arguments: Any
    ) -> ToolOutput:
        """As ``call``, without blocking the event loop."""
        try:
            return self._output(query, arguments, await self.aanswer(query, **arguments))
        except EXPECTED_ERRORS as error:
            return self._failure(query, arguments, error)

    async def aanswer(self, query: str = "", **arguments: Any) -> Answer:
        """What ``acall`` puts into blocks.

        Args:
            query: as for ``call``.
            **arguments: as for ``call``.

        Raises:
            Exception: one of ``EXPECTED_ERRORS``, whose words an agent can read.
        """
        search = await in_thread(self._prepare, query, arguments)
        hits = found = await search.retriever.aretrieve(search.bundle)
        for each in self.node_postprocessors:
            hits = await each.apostprocess_nodes(hits, query_bundle=search.bundle)
        return await in_thread(self._answer, search, found, hits)

    def find_image(self, name: str) -> BaseNode | None:
        """An image that may be found, or that a search has returned; None if there is none.

        Args:
            name: its id, as agents are told it.
        """
        if isinstance(self.retriever, NarrowableRetriever):
            node = self.retriever.get_image(name)
            if node is not None:
                return node
        return dict(self._returned).get(name)

    # --- the question ----------------------------------------------------------------------------

    def _prepare(self, query: str, arguments: Mapping[str, Any]) -> _Search:
        given = given_arguments(query, arguments)
        assert self._metadata.fn_schema is not None
        asked = check_arguments(self._metadata.fn_schema, given)
        image = getattr(asked, "image", "")
        text = "" if is_blank(asked.query) else asked.query.strip()
        if not text and not image:
            also = ", an image, or both" if self._images else ""
            raise InvalidValueError(f"the query is empty: pass a query{also}")
        retriever, filters = self.retriever, filters_of(asked)
        if filters is not None:
            assert isinstance(retriever, NarrowableRetriever)
            retriever = retriever.filtered(filters)
        if isinstance(retriever, NarrowableRetriever):
            retriever = retriever.for_documents(asked.top_k)
        bundle = QueryBundle(text, image_path=self._query_image(image) if image else None)
        return _Search(retriever, bundle, filters, asked.top_k)

    def _query_image(self, image: str) -> str:
        """The image's content as a data URI; of a file below ``image_root`` the path."""
        source: BaseNode | str | None = self.find_image(image)
        if source is None:
            if self.allow_urls and "://" in image:
                source = image
            elif self.image_root is not None:
                path = Path(self.image_root, image)
                check_image(path, root=self.image_root)
                return str(path.resolve())
            else:
                raise ImageError(describe(image), f"no such image here; pass {self._images}")
        # Not the path: a model would open it without regard to the folders that the index allows.
        return data_uri(source, allow_urls=self.allow_urls)

    # --- the answer ------------------------------------------------------------------------------

    def _answer(
        self, search: _Search, found: Sequence[NodeWithScore], hits: Sequence[NodeWithScore]
    ) -> Answer:
        result = SearchResult(documents_of(hits)[: search.top_k])
        if not result:
            return Answer([], [self._why_nothing(search, found)], self.max_characters)
        images = Images(self.max_images, self.max_image_side, self.allow_urls)
        documents = [
            ShownDocument(document, [images.show(node) for node in document.images])
            for document in result
        ]
        self._returned.extend(
            (name_of(node.node_id), node) for document in result for node in document.images
        )
        notes = [
            *images.notes(),
            *self._cut(search),
            *mistaken_filters(search.filters, result.nodes, self._examples),
        ]
        return Answer(documents, notes, self.max_characters)

    def _cut(self, search: _Search) -> list[str]:
        if not isinstance(self.retriever, NarrowableRetriever) or not search.bundle.query_str:
            return []
        tokens = self.retriever.query_cut_at(search.bundle.query_str)
        said = f"The query is too long: the search went by its first {tokens} tokens only."
        return [] if tokens is None else [said]

    def _why_nothing(self, search: _Search, found: Sequence[NodeWithScore]) -> str:
        if found:
            return "What was found is not relevant enough to be returned."
        if search.filters is None:
            return "Nothing was found."
        hits = self.retriever.retrieve(search.bundle)
        if not hits:
            return "Nothing was found, nor is there without the filters."
        if mistakes := mistaken_filters(search.filters, hits, self._examples):
            raise InvalidValueError(f"filters: {' '.join(mistakes)}")
        return " ".join(
            ["Nothing fits the filters.", *values_of(search.filters, hits, self._examples)]
        )

    def _examples(self, field: str | None) -> Sequence[BaseNode] | None:
        """Some nodes with a field; None if the stores cannot tell."""
        assert isinstance(self.retriever, NarrowableRetriever)
        return self.retriever.examples(field)

    def _failure(self, query: str, arguments: Mapping[str, Any], error: Exception) -> ToolOutput:
        name = self._metadata.get_name()
        logger.warning("the tool %s could not answer: %s", name, error)
        return ToolOutput(
            tool_name=name,
            content=f"Error: {error_in_words(error)}",
            raw_input=given_arguments(query, arguments),
            is_error=True,
            exception=error,
        )

    def _output(self, query: str, arguments: Mapping[str, Any], answer: Answer) -> ToolOutput:
        blocks: list[ContentBlock] = []
        if answer.documents:
            blocks.append(TextBlock(text=heading(len(answer.documents))))
        for document in answer.documents:
            blocks.append(TextBlock(text=text_of(document, answer.max_characters, image_line)))
            blocks += [
                ImageBlock(image=image.data, image_mimetype="image/jpeg")
                for image in document.images
                if image.data is not None
            ]
        if answer.notes:
            blocks.append(TextBlock(text=" ".join(answer.notes)))
        return ToolOutput(
            tool_name=self._metadata.get_name(),
            blocks=blocks,
            raw_input=given_arguments(query, arguments),
            raw_output=answer.nodes,
        )


@dataclass(frozen=True)
class _Search:
    """A call of the tool, checked."""

    retriever: BaseRetriever
    bundle: QueryBundle
    filters: MetadataFilters | None
    top_k: int
