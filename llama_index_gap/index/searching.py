"""Searches an index, and makes retrievers, query engines and chat engines over it."""

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

from llama_index_gap.answers import DOCUMENTS, EngineSettings, check_llm, query_engine
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
        uri: the file or URL of the database, for results.
    """

    uri: str

    def __init__(self) -> None:
        self._rerankers: dict[str, MultiModalRerank] = {}

    # An index is one database and can serve several threads, so a copy is the index itself.
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
            text: the query text.
            image: the query image, as for ``open_image``.
            top_k: the number of documents to return.
            filters: metadata filters.
            reranker: reranks the documents: a ``MultiModalRerank``, whose ``top_n`` and
                ``group_by`` are replaced by ``top_k`` and ``group_by`` here; a loaded scorer; or
                the name of a model, which is loaded at the first search and kept.
            similarity_top_k: nodes to take from each leg; by default 16, or ``top_k`` if that is
                larger.
            image_similarity_top_k: the same for the images alone.
            normalize: as for ``DualIndexRetriever``, like all following parameters.
            combine: how to combine the legs.
            weights: weights by modality.
            hubs: the strength of the hub correction.
            min_probability: leave out less probable hits.
            group_by: return documents, or single nodes.
            passages_per_document: the most passages of a document.
            images_per_document: the most images of a document.
            complete: fetch a document's best passage or image if none was found.
            image_queries: what an image without a text searches.
            on_leg_error: whether a failing leg fails the search.

        Returns:
            Documents, best first, and how they were found.

        Raises:
            ValueError: neither a text nor an image is given, or settings conflict.
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
        """Like ``search``, without blocking the event loop."""
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
        """Make a retriever over this index; for the parameters see ``DualIndexRetriever``."""
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
        """Make a LlamaIndex query engine that answers from texts and images.

        The passages, caption and image of a document reach the model together, with documents in
        their order. If they need more than one call, an image stays with the texts before it. This
        holds for the response modes ``compact`` (the default), ``compact_accumulate`` and
        ``tree_summarize``. ``refine`` and ``accumulate`` make one call for each node, and
        ``simple_summarize`` leaves out, and logs, what does not fit one call. Images that cannot be
        opened are left out and logged.

        Args:
            llm: a chat model that reads images; by default ``Settings.llm``.
            node_postprocessors: such as ``MultiModalRerank``.
            retriever: finds the nodes; by default one over this index with the settings below. For
                other settings, make one with ``index.as_retriever(…)``.
            top_k: the number of documents; by default 5, or all if postprocessors choose.
            similarity_top_k: as for ``DualIndexRetriever``.
            image_similarity_top_k: as for ``DualIndexRetriever``.
            filters: as for ``DualIndexRetriever``.
            min_probability: as for ``DualIndexRetriever``.
            complete: as for ``DualIndexRetriever``, but True by default, since an answer needs both
                a document's passage and its image.
            citations: make a ``CitationQueryEngine``, which numbers a caption and its image as two
                sources.
            multimodal: show images; otherwise only texts and captions.
            allow_urls: fetch images that have only a URL.
            callback_manager: as in LlamaIndex.
            **settings: settings of LlamaIndex's ``get_response_synthesizer``, such as
                ``streaming``, and of ``CitationQueryEngine``.

        Raises:
            ValueError: ``llm`` is no LLM of LlamaIndex or not a chat model, or a retriever is
                passed with search settings.
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
                f"retriever with {', '.join(given)}: a retriever already has its settings; pass "
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
        """Make a chat engine over ``as_query_engine``, which rewrites messages to full questions.

        It is the only LlamaIndex chat engine that shows captions and images together:
        ``ContextChatEngine`` and ``CondensePlusContextChatEngine`` show no images, and
        ``MultiModalContextChatEngine`` shows no captions. Its limits: earlier messages reach the
        model only as far as the rewritten question repeats them; images of earlier answers are not
        shown again; and a message is a text, never an image.

        Args:
            llm: rewrites the questions and answers them; by default ``Settings.llm``.
            memory: the earlier messages.
            query_engine: answers the questions; by default ``as_query_engine(llm)``.

        Raises:
            ValueError: ``llm`` is no LLM of LlamaIndex, or not a chat model.
        """
        check_llm(llm)
        engine = query_engine or self.as_query_engine(llm)
        return CondenseQuestionChatEngine.from_defaults(engine, memory=memory, llm=llm)

    def _reranker(
        self,
        reranker: MultiModalRerank | PairScorer | str | Path,
        top_n: int,
        group_by: GroupBy,
    ) -> MultiModalRerank:
        """The reranker for a search; a model that is given by name is loaded only once."""
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
    """A query image in the form of LlamaIndex queries: a path, or a data URI."""
    if image is None or isinstance(image, str):
        return image
    if isinstance(image, Path):
        return str(image)
    return data_uri(image)
