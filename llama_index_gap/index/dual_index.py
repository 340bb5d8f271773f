"""DualIndex: texts and images in Milvus collections of one database, one for each modality."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import json
import logging
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast, get_type_hints

import numpy as np
import numpy.typing as npt
import platformdirs
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.llms import LLM
from llama_index.core.memory import BaseMemory
from llama_index.core.node_parser import NodeParser
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    MetadataMode,
    Node,
    NodeRelationship,
    ObjectType,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import MetadataFilters
from PIL import Image
from tqdm import tqdm

from llama_index_gap.answers import DOCUMENTS, EngineSettings, query_engine
from llama_index_gap.embedding import DualEncoderEmbedding, warn_once_of_cuts
from llama_index_gap.errors import InvalidValueError, check_names, names_nearest
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.images.opening import ImageError, ImageSource, check_image, read_image
from llama_index_gap.modality import CollectionName, Modality
from llama_index_gap.models import ModelError, PairScorer
from llama_index_gap.nodes import GroupBy
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.readers.records import Skipped
from llama_index_gap.readers.splitting import default_splitter
from llama_index_gap.results import SearchResult
from llama_index_gap.search.fusion import RANK_CONSTANT, Combine, Normalize
from llama_index_gap.search.legs import Collection, ImageQueries
from llama_index_gap.search.rerank import MultiModalRerank
from llama_index_gap.search.retriever import IMAGES, PASSAGES, TOP_K, DualIndexRetriever, OnLegError
from llama_index_gap.store.milvus import MilvusStore, StoreError, _lite_path, _to_plain
from llama_index_gap.threads import in_thread

logger = logging.getLogger(__name__)

SAMPLE_SIZE = 300
"""Vectors of a side that stand for its background (a few hundred, as the fusion was measured)."""
MODELS_PROPERTY = "models"
"""Property of all collections that says which models made them."""
CALIBRATOR_PROPERTY = "calibrator"
"""Property of the text collection with what ``save_calibrator`` was given."""
_SIDES: tuple[CollectionName, ...] = ("text", "image")
_PASSES_PER_WRITE = 4
_WRITES_AHEAD = 2
# What decides where in its space a model puts something; device, batch size and such do not.
_IDENTITY = (
    "class_name",
    "model_name",
    "image_model_name",
    "dimensions",
    "query_prompt",
    "document_prompt",
    "max_text_tokens",
    "revision",
    "aligner",
)
_BAD_INPUT = (ImageError, ModelError, ValueError, OSError)
_Item = TypeVar("_Item")


@dataclass
class IndexReport:
    """What a call put into an index, and what it did not.

    Attributes:
        text_rows: rows written to the text collection.
        image_rows: rows written to the image collection.
        image_query_rows: rows written to the collection for image queries, where there is one.
        unchanged: rows that were there already, just so.
        skipped: what was left out, with its reason.
    """

    text_rows: int = 0
    image_rows: int = 0
    image_query_rows: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def summary(self) -> str:
        """The counts in one line."""
        again = f"{self.image_query_rows:,} for image queries, " if self.image_query_rows else ""
        return (
            f"{self.text_rows:,} texts and {self.image_rows:,} images written, {again}"
            f"{self.unchanged:,} unchanged, {len(self.skipped):,} skipped"
        )


class DualIndex:
    """Texts and images of documents, each in a Milvus collection of its own.

    The text collection holds every node that has a text (an image's caption counts), the image
    collection every image node, under the same id. Opened without models, an index builds the ones
    it was made with; opened with others, it refuses.

    A dual encoder was never trained to bring two images of one thing together. An encoder of
    images alone, such as DINOv2, may therefore embed every image once more, into a collection
    that image queries search instead of the image collection. An index that is there can gain it:
    its images are in it once they are inserted again, which embeds nothing else.

    Args:
        uri: a Milvus Lite file, or the URL of a Milvus server.
        name: the collections are ``{name}_text`` and ``{name}_image``, and, with a model for them,
            ``{name}_image_query``.
        embed_model: embeds texts; may be left out for an index that exists.
        image_embed_model: embeds images, and the texts that search them; by default the same.
        image_query_embed_model: embeds images once more, and the images that search them; by
            default the one that the index has, or none.
        token: for a server.
        storage_dir: where images that come as base64 are kept; by default beside a Lite file, or in
            the user's data folder for a server.
        index_config: Milvus' vector index; HNSW by default.
        search_config: its search parameters.
        overwrite: start empty.

    Raises:
        ValueError: no model for a new index, another model than the stored one, or settings that do
            not go together.
        StoreError: the database cannot be opened.
    """

    def __init__(
        self,
        uri: str = "./gap.db",
        name: str = "gap",
        embed_model: BaseEmbedding | None = None,
        image_embed_model: BaseEmbedding | None = None,
        *,
        image_query_embed_model: BaseEmbedding | None = None,
        token: str | None = None,
        storage_dir: str | Path | None = None,
        index_config: dict[str, Any] | None = None,
        search_config: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise InvalidValueError(
                f"name={name!r}: Milvus takes letters, digits and _, and no digit first"
            )
        if embed_model is None and image_embed_model is not None:
            raise InvalidValueError("image_embed_model without embed_model: pass both, or neither")

        def collection(
            side: CollectionName, dim: int | None, overwrite: bool = False
        ) -> MilvusStore:
            return MilvusStore(
                uri=uri,
                collection_name=f"{name}_{side}",
                dim=dim,
                token=token,
                overwrite=overwrite,
                index_config=index_config if dim is not None else None,
                search_config=search_config,
            )

        if embed_model is None:
            path = _lite_path(uri)
            if path is not None and not Path(path).exists():  # Milvus Lite would make it
                raise InvalidValueError(f"{uri}: no such database; pass embed_model to make one")
            text_store = collection("text", None)
            with text_store:
                properties = text_store.properties
            embed_model, image_embed_model = _stored_models(properties, uri, name)
        self.name, self.uri = name, uri
        if image_embed_model is not None and not _embeds(image_embed_model, "text"):
            raise InvalidValueError(
                f"{image_embed_model.model_name} embeds no texts, so that a text query could not "
                "search the images; pass it as image_query_embed_model"
            )
        self.embed_model: BaseEmbedding = embed_model
        self.image_embed_model: MultiModalEmbedding = _for_images(
            image_embed_model or embed_model, "image_embed_model"
        )
        self.image_query_embed_model: MultiModalEmbedding | None = None
        identities = _identities(self.embed_model, image_embed_model)
        self._stores: dict[CollectionName, MilvusStore] = {}
        try:
            for side in _SIDES:
                try:
                    self._stores[side] = collection(side, _dimension(self._model(side)), overwrite)
                except ValueError:
                    if not overwrite:  # if another model is the cause, say so
                        with collection(side, None) as existing:
                            self._compare(existing.properties, identities)
                    raise
            self._open_image_queries(image_query_embed_model, collection, identities, overwrite)
            self._claim(identities)
        except BaseException:
            self.close()
            raise
        self._images = ImageFolder(
            Path(storage_dir) if storage_dir is not None else default_storage(uri, name)
        )
        self.report = IndexReport()
        self._samples: dict[CollectionName, tuple[npt.NDArray[np.float32], int]] = {}
        self._lock = threading.Lock()
        self._rerankers: dict[str, MultiModalRerank] = {}

    @classmethod
    @names_nearest
    def from_documents(
        cls,
        documents: Corpus | Sequence[BaseNode],
        uri: str = "./gap.db",
        name: str = "gap",
        embed_model: BaseEmbedding | None = None,
        image_embed_model: BaseEmbedding | None = None,
        *,
        image_query_embed_model: BaseEmbedding | None = None,
        splitter: NodeParser | None = None,
        show_progress: bool = False,
        strict: bool = False,
        token: str | None = None,
        storage_dir: str | Path | None = None,
        index_config: dict[str, Any] | None = None,
        search_config: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> DualIndex:
        """Open an index and put documents into it; run again, it embeds only what is missing.

        What went in, and what did not, is then in ``index.report``. The other parameters are those
        of the class.

        Args:
            documents: a corpus, nodes, or LlamaIndex documents (whose texts are cut).
            uri: as for the class.
            name: as for the class.
            embed_model: as for the class.
            image_embed_model: as for the class.
            image_query_embed_model: as for the class.
            splitter: cuts the texts of documents; 512 tokens by default.
            show_progress: show progress bars.
            strict: raise at the first node that would be skipped.
            token: as for the class.
            storage_dir: as for the class.
            index_config: as for the class.
            search_config: as for the class.
            overwrite: as for the class.
        """
        index = cls(
            uri,
            name,
            embed_model,
            image_embed_model,
            image_query_embed_model=image_query_embed_model,
            token=token,
            storage_dir=storage_dir,
            index_config=index_config,
            search_config=search_config,
            overwrite=overwrite,
        )
        try:
            skipped = documents.skipped if isinstance(documents, Corpus) else []
            nodes = (
                documents.nodes if isinstance(documents, Corpus) else _as_nodes(documents, splitter)
            )
            report = index.insert_nodes(nodes, show_progress=show_progress, strict=strict)
        except BaseException:
            index.close()  # nobody else has it, and it would hold the file
            raise
        report.skipped[:0] = skipped
        index.report = report
        logger.info("%s", report.summary())
        return index

    # --- writing ---------------------------------------------------------------------------------

    def insert_nodes(
        self, nodes: Sequence[BaseNode], *, show_progress: bool = False, strict: bool = False
    ) -> IndexReport:
        """Put nodes into the index; those that are there already, just so, are left alone.

        A node whose id is there with another content replaces it; one that has lost its text or its
        image loses that side's row.

        Args:
            nodes: text nodes and image nodes; never changed.
            show_progress: show a progress bar.
            strict: raise at the first node that would be skipped.

        Returns:
            What was written, and what was skipped and why.
        """
        report = IndexReport()

        def skip(node: BaseNode, reason: str | Exception) -> None:
            if strict:
                raise InvalidValueError(f"node {node.node_id}: {reason} (strict=True)")
            report.skipped.append(Skipped(f"node {node.node_id}", str(reason)))

        told: set[tuple[str, str]] = set()

        def skip_once(node: BaseNode, reason: str | Exception) -> None:
            if (node.node_id, str(reason)) not in told:
                told.add((node.node_id, str(reason)))
                skip(node, reason)

        sides = self._by_side(nodes, skip)
        total = sum(map(len, sides.values()))
        writes: deque[Future[None]] = deque()
        try:
            with (
                warn_once_of_cuts(self.embed_model),
                tqdm(total=total, desc="Indexing", unit="node", disable=not show_progress) as bar,
                ThreadPoolExecutor(1, "milvus") as writer,
            ):
                for side, of_side in sides.items():
                    self._delete_lost(side, sides)
                    prints = self._fingerprints(side, of_side)
                    at_once = self._model(side).embed_batch_size * _PASSES_PER_WRITE
                    for batch in _chunks(of_side, at_once):
                        new = [node for node in batch if _fingerprint(node) not in prints]
                        report.unchanged += len(batch) - len(new)
                        rows = self._embedded(side, new, skip_once)
                        writes.append(
                            writer.submit(self._store_rows, side, rows, skip_once, report)
                        )
                        if len(writes) > _WRITES_AHEAD:
                            writes.popleft().result()
                        bar.update(len(batch))
                while writes:
                    writes.popleft().result()
        finally:
            self._samples.clear()
        if total:  # also where a killed build had written all: its rows may wait to be flushed
            for store in self._stores.values():
                store.finish()
        return report

    upsert_nodes = insert_nodes

    def delete_nodes(self, node_ids: Sequence[str]) -> None:
        """Delete nodes from all collections; ids that are not there are no error."""
        for side in self._stores:
            self._delete(side, list(node_ids))

    def delete_ref_doc(self, ref_doc_id: str) -> None:
        """Delete all nodes of a document."""
        self.delete_nodes(self._ids_of([ref_doc_id]))

    def refresh_ref_docs(self, nodes: Sequence[BaseNode], **settings: Any) -> IndexReport:
        """Bring documents up to date: nodes that they no longer have are deleted, others written.

        Args:
            nodes: all nodes of these documents, as a reader gives them.
            **settings: as for ``insert_nodes``.
        """
        documents = sorted({node.ref_doc_id for node in nodes if node.ref_doc_id})
        gone = set(self._ids_of(documents)) - {node.node_id for node in nodes}
        self.delete_nodes(sorted(gone))
        return self.insert_nodes(nodes, **settings)

    def clear(self) -> None:
        """Delete everything; the index can be filled again."""
        for store in self._stores.values():
            store.clear()
        self._images.clear()
        self._samples.clear()

    # --- reading ---------------------------------------------------------------------------------

    def get_nodes(self, node_ids: Sequence[str]) -> list[BaseNode]:
        """The nodes with these ids, in this order; ids that are not there are left out."""
        found: dict[str, BaseNode] = {}
        for store in self._stores.values():  # an image node comes as such from each
            found |= {node.node_id: node for node in store.get_nodes(list(node_ids))}
        return [found[node_id] for node_id in node_ids if node_id in found]

    def count(self) -> dict[CollectionName, int]:
        """How many rows each collection has."""
        return {side: store.count() for side, store in self._stores.items()}

    # --- searching -------------------------------------------------------------------------------

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
        combine: Combine = "evidence",
        weights: Mapping[str, float] | None = None,
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
            reranker: reads what was found, and ranks it anew: a ``MultiModalRerank``, a loaded
                scorer, or the name of a model, which is loaded at the first search and kept.
            similarity_top_k: nodes to take from each leg; by default 16, and at least ``top_k``.
            image_similarity_top_k: the same for the images alone.
            normalize: as for ``DualIndexRetriever``, like all that follow.
            combine: how the legs are brought together.
            weights: by modality.
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
            min_probability=min_probability,
            group_by=group_by,
            passages_per_document=passages_per_document,
            images_per_document=images_per_document,
            complete=complete,
            image_queries=image_queries,
            on_leg_error=on_leg_error,
        )
        query = QueryBundle((text or "").strip(), image_path=_query_image(image))
        reranks = None if reranker is None else self._reranker(reranker, top_k, group_by)
        result = replace(retriever.search(query), database=self.uri)
        if reranks is None:
            return result
        started = time.perf_counter()
        nodes = reranks.postprocess_nodes(result.nodes, query)
        timings = {**result.timings, "rerank": time.perf_counter() - started}
        return result.with_nodes(
            nodes, group_by=group_by, timings=timings, reranker=reranks.model_name
        )

    async def asearch(
        self, text: str | None = None, image: ImageSource | None = None, **settings: Any
    ) -> SearchResult:
        """As ``search``, without blocking the event loop."""
        return await in_thread(self.search, text, image, **settings)

    @names_nearest
    def as_retriever(
        self,
        *,
        similarity_top_k: int | None = None,
        image_similarity_top_k: int | None = None,
        top_k: int | None = None,
        normalize: Normalize = "background",
        combine: Combine = "evidence",
        weights: Mapping[str, float] | None = None,
        k: float = RANK_CONSTANT,
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
        """A retriever over this index; its parameters are those of ``DualIndexRetriever``."""
        return DualIndexRetriever(
            self,
            similarity_top_k=similarity_top_k,
            image_similarity_top_k=image_similarity_top_k,
            top_k=top_k,
            normalize=normalize,
            combine=combine,
            weights=weights,
            k=k,
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
        complete: bool = True,
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
            complete: as for ``DualIndexRetriever``: an answer wants a document's passage and its
                image, whichever of them was found.
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
        }
        given = [name for name, value in searching.items() if value is not None]
        check_names(
            "as_query_engine",
            settings,
            [
                *inspect.signature(self.as_query_engine).parameters,
                *get_type_hints(EngineSettings),
            ],
        )
        if retriever is None:
            if top_k is None and not node_postprocessors:
                searching["top_k"] = DOCUMENTS
            retriever = self.as_retriever(complete=complete, **searching)
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

    def models(self) -> str:
        """What the vectors were made with, in words; the ``source`` of a calibrator for it."""
        return _named(stored_identities(self._stores["text"].properties, self._of))

    def calibrator(self) -> RelevanceCalibrator | None:
        """The calibrator that was saved last, by any process; None if none was."""
        stored = self._stores["text"].properties.get(CALIBRATOR_PROPERTY)
        if stored is None:
            return None
        try:
            return RelevanceCalibrator.from_dict(json.loads(stored))
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{self._of}: its calibrator is damaged ({error}); save another one"
            ) from error

    def save_calibrator(self, calibrator: RelevanceCalibrator) -> None:
        """Keep a calibrator with the index, in place of the one before.

        ``as_retriever(min_probability=…)`` then uses it.

        Args:
            calibrator: fitted with ``source=index.models()``.

        Raises:
            ValueError: it was fitted for other models, or is larger than Milvus keeps.
        """
        calibrator.check_source(self.models())
        content = json.dumps(calibrator.to_dict(), separators=(",", ":"))
        self._stores["text"].set_properties({CALIBRATOR_PROPERTY: content})
        logger.info("saved a calibrator with %s: %s", self.name, calibrator.summary())

    def collections(self) -> dict[CollectionName, Collection]:
        """What a retriever searches."""
        if "image_query" in self._stores:
            rows = self.count()
            if rows["image_query"] < rows["image"]:
                logger.warning(
                    "%s: image queries find %d of %d images only; insert them again, which "
                    "embeds no more than is missing",
                    self.name,
                    rows["image_query"],
                    rows["image"],
                )
        return {
            name: Collection(
                store,
                self._model(name),
                sample=partial(self._sample, name),
                count=partial(self._size, name),
            )
            for name, store in self._stores.items()
        }

    @property
    def _of(self) -> str:
        return f"{self.uri}: {self.name}"

    def close(self) -> None:
        """Let go of the database."""
        for store in self._stores.values():
            store.close()

    def __enter__(self) -> DualIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- asynchronous forms ----------------------------------------------------------------------

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **settings: Any) -> IndexReport:
        """As ``insert_nodes``, without blocking the event loop."""
        return await asyncio.to_thread(self.insert_nodes, nodes, **settings)

    aupsert_nodes = ainsert_nodes

    async def adelete_nodes(self, node_ids: Sequence[str]) -> None:
        """As ``delete_nodes``, without blocking the event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids)

    async def adelete_ref_doc(self, ref_doc_id: str) -> None:
        """As ``delete_ref_doc``, without blocking the event loop."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id)

    async def arefresh_ref_docs(self, nodes: Sequence[BaseNode], **settings: Any) -> IndexReport:
        """As ``refresh_ref_docs``, without blocking the event loop."""
        return await asyncio.to_thread(self.refresh_ref_docs, nodes, **settings)

    async def aget_nodes(self, node_ids: Sequence[str]) -> list[BaseNode]:
        """As ``get_nodes``, without blocking the event loop."""
        return await asyncio.to_thread(self.get_nodes, node_ids)

    async def asave_calibrator(self, calibrator: RelevanceCalibrator) -> None:
        """As ``save_calibrator``, without blocking the event loop."""
        await asyncio.to_thread(self.save_calibrator, calibrator)

    async def acount(self) -> dict[CollectionName, int]:
        """As ``count``, without blocking the event loop."""
        return await asyncio.to_thread(self.count)

    async def aclear(self) -> None:
        """As ``clear``, without blocking the event loop."""
        await asyncio.to_thread(self.clear)

    # --- the steps of writing --------------------------------------------------------------------

    def _by_side(
        self, nodes: Sequence[BaseNode], skip: Callable[[BaseNode, str | Exception], None]
    ) -> dict[CollectionName, list[TextNode]]:
        """The rows of each collection, one for each id, images in files."""
        sides: dict[CollectionName, dict[str, TextNode]] = {"text": {}, "image": {}}
        last = {node.node_id: node for node in nodes}
        for node in nodes:
            if last[node.node_id] is not node:
                skip(node, "the same id comes again; the last one is taken")
                continue
            try:
                row = self._images.keep(_as_row(node))
            except _BAD_INPUT as error:
                skip(node, error)
                continue
            if row.text.strip():
                sides["text"][row.node_id] = row
            if isinstance(row, ImageNode) and (row.image_path or row.image_url):
                sides["image"][row.node_id] = row
            if not any(row.node_id in side for side in sides.values()):
                skip(node, "has neither a text nor an image")
        if "image_query" in self._stores:
            sides["image_query"] = sides["image"]
        return {side: list(rows.values()) for side, rows in sides.items()}

    def _delete_lost(
        self, side: CollectionName, sides: dict[CollectionName, list[TextNode]]
    ) -> None:
        """Delete this side's rows of nodes that now have other sides only."""
        here = {node.node_id for node in sides[side]}
        elsewhere = {node.node_id for nodes in sides.values() for node in nodes} - here
        self._delete(side, sorted(self._stores[side].existing_ids(sorted(elsewhere))))

    def _fingerprints(self, side: CollectionName, nodes: list[TextNode]) -> set[str]:
        """Of the stored rows with these ids; read in one go, since a server's first read waits."""
        stored = self._stores[side].get_nodes([node.node_id for node in nodes])
        return {_fingerprint(node) for node in stored}

    def _embedded(
        self,
        side: CollectionName,
        nodes: list[TextNode],
        skip: Callable[[BaseNode, str | Exception], None],
    ) -> list[TextNode]:
        """Copies of the nodes with their vectors; one that cannot be embedded is skipped."""
        try:
            vectors = self._embed(side, nodes)
        except _BAD_INPUT as error:
            if len(nodes) == 1:
                skip(nodes[0], error)
                return []
            return [row for node in nodes for row in self._embedded(side, [node], skip)]
        return [
            node.model_copy(update={"embedding": vector})
            for node, vector in zip(nodes, vectors, strict=True)
        ]

    def _embed(self, side: CollectionName, nodes: list[TextNode]) -> list[list[float]]:
        if side == "text":
            texts = [node.get_content(MetadataMode.EMBED) for node in nodes]
            return self.embed_model.get_text_embedding_batch(texts)
        images: list[Any] = [
            node.image_path or node.image_url for node in nodes if isinstance(node, ImageNode)
        ]
        return cast(MultiModalEmbedding, self._model(side)).get_image_embedding_batch(images)

    def _store_rows(
        self,
        side: CollectionName,
        rows: list[TextNode],
        skip: Callable[[BaseNode, str | Exception], None],
        report: IndexReport,
    ) -> None:
        if not rows:
            return
        try:
            self._stores[side].upsert(rows)
        except ValueError as error:  # refused before anything was written
            if len(rows) == 1:
                skip(rows[0], error)
                return
            for row in rows:
                self._store_rows(side, [row], skip, report)
            return
        match side:
            case "text":
                report.text_rows += len(rows)
            case "image_query":
                report.image_query_rows += len(rows)
            case "image":
                report.image_rows += len(rows)
                for row in rows:
                    self._images.settle(row.node_id, getattr(row, "image_path", None))

    def _delete(self, side: CollectionName, node_ids: list[str]) -> None:
        if not node_ids:
            return
        self._stores[side].delete_nodes(node_ids=node_ids)
        self._samples.clear()
        if side == "image":
            for node_id in node_ids:
                self._images.settle(node_id, None)

    def _model(self, side: CollectionName) -> BaseEmbedding:
        if side == "image_query":
            return cast(MultiModalEmbedding, self.image_query_embed_model)
        return self.embed_model if side == "text" else self.image_embed_model

    def _ids_of(self, ref_doc_ids: Sequence[str]) -> list[str]:
        return sorted(
            {
                node.node_id
                for store in self._stores.values()
                for node in store.get_nodes(ref_doc_ids=list(ref_doc_ids))
            }
        )

    def _sample(self, side: CollectionName) -> npt.NDArray[np.float32]:
        return self._sampled(side)[0]

    def _size(self, side: CollectionName) -> int:
        return self._sampled(side)[1]

    def _sampled(self, side: CollectionName) -> tuple[npt.NDArray[np.float32], int]:
        """Some vectors of a side, and how many there are; asked for once between writes."""
        with self._lock:
            if side not in self._samples:
                store = self._stores[side]
                self._samples[side] = store.sample(SAMPLE_SIZE), store.count()
            return self._samples[side]

    def _open_image_queries(
        self,
        model: BaseEmbedding | None,
        collection: Callable[..., MilvusStore],
        identities: dict[str, Any],
        overwrite: bool,
    ) -> None:
        """Open the third collection and note its model, if there is one, given or stored."""
        properties = self._stores["text"].properties
        stored = stored_identities(properties, self._of).get("image_query")
        if model is None and stored is None:
            if overwrite:
                with suppress(ValueError):  # there is none
                    collection("image_query", None).drop()
            return
        if model is None:
            model = _build(cast("dict[str, Any]", stored), self._of, "image_query_embed_model")
        self.image_query_embed_model = _for_images(model, "image_query_embed_model")
        identities["image_query"] = _identity(model)
        self._compare(properties, identities)
        self._stores["image_query"] = collection("image_query", _dimension(model), overwrite)

    def _claim(self, identities: dict[str, Any]) -> None:
        """Write down the models of a new index; refuse others than those of an old one."""
        for store in self._stores.values():
            properties = store.properties
            self._compare(properties, identities)
            stored = stored_identities(properties, self._of)
            if not identities.keys() <= stored.keys():
                claim = json.dumps(identities | stored, sort_keys=True)
                store.set_properties({MODELS_PROPERTY: claim})

    def _compare(self, properties: dict[str, str], identities: dict[str, Any]) -> None:
        stored = stored_identities(properties, self._of)
        if not stored:
            return
        # A model for image queries may join an index that has none.
        joins = "image_query" not in stored or "image_query" not in identities
        either = {"image_query": None} if joins else {}
        if _without_paths(stored | either) != _without_paths(identities | either):
            raise InvalidValueError(
                f"{self.uri} holds {self.name} made with {_named(stored)}, not with "
                f"{_named(identities)}; open it without models to take the stored ones, or pass "
                "another name, or overwrite=True to start anew"
            )


def _query_image(image: ImageSource | None) -> str | None:
    """An image to search by, as LlamaIndex' queries hold one: a path, or its content."""
    if image is None or isinstance(image, str):
        return image
    if isinstance(image, Path):
        return str(image)
    return f"data:;base64,{base64.b64encode(read_image(image)).decode()}"


# --- models --------------------------------------------------------------------------------------


def _dimension(model: BaseEmbedding) -> int:
    known = getattr(model, "dimension", None)
    return known if isinstance(known, int) else len(model.get_query_embedding("a"))


def _embeds(model: BaseEmbedding, modality: Modality) -> bool:
    return modality in getattr(model, "modalities", ("text", "image"))


def _for_images(model: BaseEmbedding, argument: str) -> MultiModalEmbedding:
    if not (isinstance(model, MultiModalEmbedding) and _embeds(model, "image")):
        raise InvalidValueError(
            f"{model.model_name} embeds no images; pass a MultiModalEmbedding "
            f"(such as DualEncoderEmbedding) as {argument}"
        )
    return model


def _identities(text: BaseEmbedding, image: BaseEmbedding | None) -> dict[str, Any]:
    return {
        "text": _identity(text),
        "image": None if image is None or image is text else _identity(image),
    }


def _identity(model: BaseEmbedding) -> dict[str, Any]:
    settings = model.to_dict()
    known = {key: settings[key] for key in _IDENTITY if settings.get(key) is not None}
    for key in ("model_name", "image_model_name"):
        # A folder is found again from another working directory.
        if key in known and Path(str(known[key])).is_dir():
            known[key] = str(Path(known[key]).resolve())
    if "aligner" in known and known["aligner"]["path"] is None:
        raise InvalidValueError(
            f"the aligner of {known['model_name']} is in memory only, and without it nothing finds "
            "what it moved: keep it with aligner.save(path), and pass that path as aligner"
        )
    return known


def _without_paths(identities: dict[str, Any]) -> dict[str, Any]:
    """A copy of an aligner's file is the same aligner."""
    return {
        side: identity and identity | {"aligner": identity.get("aligner", {}).get("fingerprint")}
        for side, identity in identities.items()
    }


def stored_identities(properties: dict[str, str], of: str) -> dict[str, Any]:
    """Read what a collection says of its models, as data that anybody may have written.

    Only what names a model is taken. Whether a model may run code of its own, read pickles or
    anything else is never taken from what is stored: that is for the caller to allow.

    Args:
        properties: of the collection.
        of: the index, for the message.

    Returns:
        For ``text``, ``image`` and, where there is one, ``image_query`` what identifies the model;
        None for an image model that is the text model. Empty where nothing is stored.

    Raises:
        StoreError: what is stored names no models.
    """
    if MODELS_PROPERTY not in properties:
        return {}
    try:
        stored = json.loads(properties[MODELS_PROPERTY])
        identities: dict[str, Any] = {"text": _known_settings(stored["text"]), "image": None}
        for key in ("image", "image_query"):
            if stored.get(key) is not None:
                identities[key] = _known_settings(stored[key])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise StoreError(
            f"{of}: its property {MODELS_PROPERTY!r} names no models ({_first_words(error)}); the "
            "index is damaged: pass another name, or overwrite=True to start anew"
        ) from error
    return identities


def _known_settings(stored: Any) -> dict[str, Any]:
    """The settings of ``_IDENTITY``, each of its type; whatever else is stored is left out."""
    known = {key: stored[key] for key in _IDENTITY if stored.get(key) is not None}
    for key, value in known.items():
        match key, value:
            case "dimensions" | "max_text_tokens", int() if not isinstance(value, bool):
                continue
            case "aligner", {"path": str(), "fingerprint": str(), **rest} if not rest:
                continue
            case _, str() if key not in {"dimensions", "max_text_tokens", "aligner"}:
                continue
        raise InvalidValueError(f"{key} is {str(value)[:60]!r}")
    if not {"class_name", "model_name"} <= known.keys():
        raise InvalidValueError("a model has a class_name and a model_name")
    return known


def _first_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _stored_models(
    properties: dict[str, str], uri: str, name: str
) -> tuple[BaseEmbedding, BaseEmbedding | None]:
    of = f"{uri}: {name}"
    identities = stored_identities(properties, of)
    if not identities:
        raise InvalidValueError(
            f"{uri} does not say which model {name} was made with; pass embed_model"
        )
    image = identities["image"]
    return (
        _build(identities["text"], of, "embed_model"),
        _build(image, of, "image_embed_model") if image else None,
    )


def _build(identity: dict[str, Any], of: str, argument: str) -> BaseEmbedding:
    if identity["class_name"] != DualEncoderEmbedding.class_name():
        raise InvalidValueError(
            f"{of} was made with {_named({'text': identity})}, which cannot be built from its name "
            f"alone; pass it as {argument}"
        )
    return DualEncoderEmbedding.from_dict(identity)


def _named(identities: dict[str, Any]) -> str:
    texts = []
    for side in ("text", "image", "image_query"):
        if identity := identities.get(side):
            rest = {k: v for k, v in identity.items() if k not in {"class_name", "model_name"}}
            extra = "".join(f", {key}={value!r}" for key, value in rest.items())
            what_for = " for image queries" if side == "image_query" else ""
            texts.append(f"{identity['class_name']}({identity['model_name']!r}{extra}){what_for}")
    return " and ".join(texts)


# --- nodes ---------------------------------------------------------------------------------------


def _as_nodes(documents: Sequence[BaseNode], splitter: NodeParser | None) -> list[BaseNode]:
    """LlamaIndex documents as nodes: texts cut, images as they are; nodes stay nodes."""
    splitter = splitter or default_splitter()
    nodes: list[BaseNode] = []
    for document in documents:
        if not isinstance(document, Document):
            nodes.append(document)
        elif document.image_resource is not None:
            row = _as_row(document)
            own_id = f"{document.node_id}#image"
            source = RelatedNodeInfo(node_id=document.node_id, node_type=ObjectType.DOCUMENT)
            relationships = {NodeRelationship.SOURCE: source}
            nodes.append(row.model_copy(update={"id_": own_id, "relationships": relationships}))
        else:
            stable = splitter.model_copy(update={"id_func": lambda i, doc: f"{doc.id_}#text-{i}"})
            nodes += stable.get_nodes_from_documents([document])
    return nodes


def _as_row(node: BaseNode) -> TextNode:
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


def _fingerprint(node: BaseNode) -> str:
    """Changes with whatever of a node is stored or embedded; the same before and after storing."""
    content = node.model_dump(
        mode="json",
        include={
            *("id_", "text", "image_path", "image_url", "metadata", "relationships"),
            *("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"),
        },
        fallback=_to_plain,
    )
    return json.dumps(content, sort_keys=True)


def _chunks(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


# --- images ------------------------------------------------------------------------------------


def default_storage(uri: str, name: str) -> Path:
    """Where an index keeps images that came as base64, if it is not told."""
    if "://" in uri:
        where = re.sub(r"\W+", "_", uri.split("://", 1)[1].rsplit("@", 1)[-1])
        return Path(platformdirs.user_data_path("llama-index-gap")) / where / name
    return Path(f"{uri}.images") / name


class ImageFolder:
    """Images that came as base64, each kept once, by its content.

    ``HASH.png`` is an image, ``HASH.png.users/NODE`` an empty file for each node that uses it, and
    ``nodes/NODE`` says which image a node uses. An image goes with its last user.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().resolve()

    def keep(self, node: TextNode) -> TextNode:
        """The node with its image in a file, if it came as base64; ``settle`` it once stored."""
        if not isinstance(node, ImageNode) or not node.image:
            return node
        check_image(node)
        data = base64.b64decode(node.image.partition(",")[2] or node.image)
        with Image.open(BytesIO(data)) as image:
            suffix = (image.format or "bin").lower()
        path = self._folder / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        users = self._users(path.name)
        users.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            partial_file = path.with_suffix(f".{threading.get_ident()}.partial")
            partial_file.write_bytes(data)
            partial_file.replace(path)
        (users / _user(node.node_id)).touch()
        return node.model_copy(update={"image": None, "image_path": str(path)})

    def settle(self, node_id: str, path: str | None) -> None:
        """Note which image a stored node uses, and let go of the one it used before."""
        used = self._folder / "nodes" / _user(node_id)
        before = used.read_text() if used.exists() else None
        kept = path is not None and Path(path).parent == self._folder
        now = Path(path).name if path is not None and kept else None
        if now == before:
            return
        if before is not None:
            users = self._users(before)
            (users / _user(node_id)).unlink(missing_ok=True)
            used.unlink()
            if users.is_dir() and not any(users.iterdir()):
                users.rmdir()
                (self._folder / before).unlink(missing_ok=True)
        if now is not None:
            used.parent.mkdir(parents=True, exist_ok=True)
            used.write_text(now)

    def clear(self) -> None:
        """Delete all images that were kept here, and nothing else that may lie here."""
        for users in self._folder.glob("*.users"):
            (self._folder / users.stem).unlink(missing_ok=True)
            shutil.rmtree(users)
        shutil.rmtree(self._folder / "nodes", ignore_errors=True)

    def _users(self, name: str) -> Path:
        return self._folder / f"{name}.users"


def _user(node_id: str) -> str:
    return hashlib.sha256(node_id.encode()).hexdigest()[:32]
