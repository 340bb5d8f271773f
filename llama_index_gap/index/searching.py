"""Searching an index, and handing out what searches it: a retriever, query and chat engines."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self, Unpack, get_type_hints

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.llms import LLM
from llama_index.core.memory import BaseMemory
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_gap.answers import DOCUMENTS, EngineSettings, query_engine
from llama_index_gap.errors import (
    InvalidValueError,
    NotPicklableError,
    check_names,
    names_nearest,
)
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.images.opening import ImageSource, data_uri
from llama_index_gap.models import PairScorer
from llama_index_gap.nodes import GroupBy
from llama_index_gap.results import SearchResult
from llama_index_gap.search.fusion import RANK_CONSTANT, Combine, Normalize
from llama_index_gap.search.legs import ImageQueries, Searchable
from llama_index_gap.search.rerank import MultiModalRerank
from llama_index_gap.search.retriever import IMAGES, PASSAGES, TOP_K, DualIndexRetriever, OnLegError
from llama_index_gap.store.patience import one_search
from llama_index_gap.text import is_blank
from llama_index_gap.threads import in_thread


class SearchedIndex(Searchable):
    """The part of ``DualIndex`` that searches.

    Attributes:
        uri: file or address, for results.
    """

    uri: str

    def __init__(self) -> None:
        self._rerankers: dict[str, MultiModalRerank] = {}

    # It is one database, and may be used by several threads: a copy is the index itself.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise NotPicklableError(type(self).__name__)

    @names_nearest
    def search(
        self,
        text: str | None = None,
        image: ImageSource | None = None,
        *,
        top_k: int = 10,
        filters: MetadataFilters | None = None,
        reranker: MultiModalRerank | PairScorer | str | Path | None = None,
        similarity_top_k: int | None = None,
        image_similarity_top_k: int | None = None,
        normalize: Normalize = "background",
        combine: Combine = "intent",
        weights: Mapping[str, float] | None = None,
        hubs: bool | float = True,
        min_probability: float | None = None,
        group_by: GroupBy = "document",
        passages_per_document: int = PASSAGES,
        images_per_document: int = IMAGES,
        complete: bool = True,
        image_queries: ImageQueries = "images",
        on_leg_error: OnLegError = "raise",
    ) -> SearchResult:
        """Search by a text, an image, or both.

        Args:
            text: what to search for.
            image: an image to search by, as for ``open_image``.
            top_k: documents to return.
            filters: on metadata.
            reranker: reads what was found, and ranks it anew: a ``MultiModalRerank``, whose
                ``top_n`` and ``group_by`` give way to ``top_k`` and ``group_by`` here; a loaded
                scorer; or the name of a model, which is loaded at the first search and kept.
            similarity_top_k: nodes to take from each leg; by default 16, or ``top_k`` if that is
                larger.
            image_similarity_top_k: the same for the images alone.
            normalize: as for ``DualIndexRetriever``, like all that follow.
            combine: how the legs are brought together.
            weights: by modality.
            hubs: how much of a hub is taken off its score.
            min_probability: leave out what is less probable.
            group_by: documents, or single nodes.
            passages_per_document: most passages of a document.
            images_per_document: most images of a document.
            complete: fetch a document's best passage and image where none was found.
            image_queries: what an image without a text asks.
            on_leg_error: whether a leg that fails fails the search.

        Returns:
            Documents, best first, and how they were found.

        Raises:
            ValueError: neither a text nor an image is given, or settings do not go together.
            ImageError: the image cannot be opened.
        """
        if similarity_top_k is None:
            similarity_top_k = max(TOP_K, top_k)
        retriever = self.as_retriever(
            top_k=top_k if reranker is None else None,
            similarity_top_k=similarity_top_k,
            image_similarity_top_k=image_similarity_top_k,
            filters=filters,
            normalize=normalize,
            combine=combine,
            weights=weights,
            hubs=hubs,
            min_probability=min_probability,
            group_by=group_by,
            passages_per_document=passages_per_document,
            images_per_document=images_per_document,
            complete=complete,
            image_queries=image_queries,
            on_leg_error=on_leg_error,
        )
        if reranker is not None:
            retriever = retriever.for_documents(top_k)
        text = "" if text is None or is_blank(text) else text.strip()
        query = QueryBundle(text, image_path=_query_image(image))
        result = replace(retriever.search(query), database=self.uri)
        if reranker is None:
            return result
        return rerank_result(result, query, self._reranker(reranker, top_k, group_by))

    async def asearch(
        self, text: str | None = None, image: ImageSource | None = None, **settings: Any
    ) -> SearchResult:
        """As ``search``, without blocking the event loop."""
        with one_search():
            return await in_thread(self.search, text, image, **settings)

    @names_nearest
    def as_retriever(
        self,
        *,
        similarity_top_k: int | None = None,
        image_similarity_top_k: int | None = None,
        top_k: int | None = None,
        normalize: Normalize = "background",
        combine: Combine = "intent",
        weights: Mapping[str, float] | None = None,
        k: float = RANK_CONSTANT,
        hubs: bool | float = True,
        filters: MetadataFilters | None = None,
        calibrator: RelevanceCalibrator | None = None,
        min_probability: float | None = None,
        group_by: GroupBy = "document",
        passages_per_document: int = PASSAGES,
        images_per_document: int = IMAGES,
        complete: bool = False,
        image_queries: ImageQueries = "images",
        on_leg_error: OnLegError = "raise",
        callback_manager: CallbackManager | None = None,
    ) -> DualIndexRetriever:
        """A retriever over this index; the parameters are described at ``DualIndexRetriever``."""
        return DualIndexRetriever(
            self,
            similarity_top_k=similarity_top_k,
            image_similarity_top_k=image_similarity_top_k,
            top_k=top_k,
            normalize=normalize,
            combine=combine,
            weights=weights,
            k=k,
            hubs=hubs,
            filters=filters,
            calibrator=calibrator,
            min_probability=min_probability,
            group_by=group_by,
            passages_per_document=passages_per_document,
            images_per_document=images_per_document,
            complete=complete,
            image_queries=image_queries,
            on_leg_error=on_leg_error,
            callback_manager=callback_manager,
        )

    def as_query_engine(
        self,
        llm: LLM | None = None,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        *,
        retriever: BaseRetriever | None = None,
        top_k: int | None = None,
        similarity_top_k: int | None = None,
        image_similarity_top_k: int | None = None,
        filters: MetadataFilters | None = None,
        min_probability: float | None = None,
        complete: bool | None = None,
        citations: bool = False,
        multimodal: bool = True,
        allow_urls: bool = False,
        callback_manager: CallbackManager | None = None,
        **settings: Unpack[EngineSettings],
    ) -> BaseQueryEngine:
        """A query engine of LlamaIndex's that answers from texts and images.

        A document's passages, caption and image reach the model one after the other, documents in
        their order, and where they take more than one call, no image is parted from the texts
        before it. That holds for the response modes ``compact`` (the default),
        ``compact_accumulate`` and ``tree_summarize``; ``refine`` and ``accumulate`` ask once for
        each node, and ``simple_summarize`` leaves out, and logs, what one call does not hold.
        Images that cannot be opened are left out and logged.

        Args:
            llm: a chat model that reads images; by default ``Settings.llm``.
            node_postprocessors: such as ``MultiModalRerank``.
            retriever: finds the nodes; by default one over this index, with the settings that
                follow. For other settings make one: ``index.as_retriever(…)``.
            top_k: documents; by default 5, or all where there are postprocessors to choose.
            similarity_top_k: as for ``DualIndexRetriever``.
            image_similarity_top_k: as for ``DualIndexRetriever``.
            filters: as for ``DualIndexRetriever``.
            min_probability: as for ``DualIndexRetriever``.
            complete: as for ``DualIndexRetriever``, but True by default: an answer wants a
                document's passage and its image, whichever of them was found.
            citations: make a ``CitationQueryEngine``, which numbers a caption and its image as two
                sources.
            multimodal: show images; else texts and captions only.
            allow_urls: fetch images that are only known by their URL.
            callback_manager: as in LlamaIndex.
            **settings: of LlamaIndex' ``get_response_synthesizer``, such as ``streaming``, and of
                ``CitationQueryEngine``.

        Raises:
            ValueError: the model is no chat model, or a retriever comes with settings of its own.
            TypeError: there is no such setting.
        """
        searching: dict[str, Any] = {
            "top_k": top_k,
            "similarity_top_k": similarity_top_k,
            "image_similarity_top_k": image_similarity_top_k,
            "filters": filters,
            "min_probability": min_probability,
            "complete": complete,
        }
        given = [name for name, value in searching.items() if value is not None]
        parameters = inspect.signature(self.as_query_engine).parameters
        named = [name for name in parameters if name != "settings"]
        check_names("as_query_engine", settings, [*named, *get_type_hints(EngineSettings)])
        if retriever is None:
            if top_k is None and not node_postprocessors:
                searching["top_k"] = DOCUMENTS
            retriever = self.as_retriever(**{**searching, "complete": complete is not False})
            kept = [getattr(each, "top_n", None) or 0 for each in node_postprocessors or ()]
            retriever = retriever.for_documents(max([DOCUMENTS, *kept]))
        elif given:
            raise InvalidValueError(
                f"retriever, and {', '.join(given)}: the retriever has settings of its own; pass "
                "these to index.as_retriever"
            )
        return query_engine(
            retriever,
            llm,
            node_postprocessors,
            citations=citations,
            allow_urls=allow_urls,
            multimodal=multimodal,
            callback_manager=callback_manager,
            **settings,
        )

    def as_chat_engine(
        self,
        llm: LLM | None = None,
        memory: BaseMemory | None = None,
        *,
        query_engine: BaseQueryEngine | None = None,
    ) -> CondenseQuestionChatEngine:
        """A chat over ``as_query_engine``: each message becomes a question that stands alone.

        Of LlamaIndex' chat engines it is the only one that shows captions and images together:
        ``ContextChatEngine`` and ``CondensePlusContextChatEngine`` show no images, and
        ``MultiModalContextChatEngine`` no captions. Its limits: what was said before reaches the
        model only as far as the question, rewritten by the model, repeats it; images of earlier
        answers are not shown again; and a message is a text, never an image.

        Args:
            llm: rewrites the questions and answers them; by default ``Settings.llm``.
            memory: what was said before.
            query_engine: answers the questions; by default ``as_query_engine(llm)``.
        """
        engine = query_engine or self.as_query_engine(llm)
        return CondenseQuestionChatEngine.from_defaults(engine, memory=memory, llm=llm)

    def _reranker(
        self,
        reranker: MultiModalRerank | PairScorer | str | Path,
        top_n: int,
        group_by: GroupBy,
    ) -> MultiModalRerank:
        """The reranker that a search names; one that is named by its model is loaded once."""
        if isinstance(reranker, str | Path):
            name = str(reranker)
            if name not in self._rerankers:
                self._rerankers[name] = MultiModalRerank(model=name)
            reranker = self._rerankers[name]
        elif isinstance(reranker, PairScorer):
            reranker = MultiModalRerank(model=reranker)
        return reranker.model_copy(update={"top_n": top_n, "group_by": group_by})


def rerank_result(
    result: SearchResult, query: QueryBundle, reranker: MultiModalRerank
) -> SearchResult:
    """The same search with its documents reranked, and with the time that this took.

    Args:
        result: of a search.
        query: what was searched for.
        reranker: its ``top_n`` and ``group_by`` hold.
    """
    started = time.perf_counter()
    nodes = reranker.postprocess_nodes(result.nodes, query)
    return result.with_nodes(
        nodes,
        group_by=reranker.group_by,
        timings={**result.timings, "rerank": time.perf_counter() - started},
        reranker=reranker.model_name,
    )


def _query_image(image: ImageSource | None) -> str | None:
    """An image to search by, as LlamaIndex' queries hold one: a path, or its content."""
    if image is None or isinstance(image, str):
        return image
    if isinstance(image, Path):
        return str(image)
    return data_uri(image)
