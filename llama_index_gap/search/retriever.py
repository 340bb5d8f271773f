"""DualIndexRetriever: searches each modality separately, then ranks the documents together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_gap.agents.filter_advice import why_nothing_fits
from llama_index_gap.agents.tool import MultiModalSearchTool
from llama_index_gap.errors import GapError, InvalidValueError, names_nearest
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.gap.hubs import hub_strength
from llama_index_gap.modality import MODALITIES, Leg
from llama_index_gap.nodes import GroupBy
from llama_index_gap.results import SearchResult
from llama_index_gap.search.asking import Wanted, ask_legs
from llama_index_gap.search.fusion import (
    RANK_CONSTANT,
    Combine,
    Normalize,
    check_method,
    check_weights,
)
from llama_index_gap.search.legs import (
    Collections,
    ImageQueries,
    LegHits,
    Searchable,
    SearchedCollection,
    asked_legs,
    embed_query,
)
from llama_index_gap.search.ranking import Ranking, timed
from llama_index_gap.search.tracing import in_span
from llama_index_gap.store.patience import one_search
from llama_index_gap.text import is_blank
from llama_index_gap.threads import in_thread

if TYPE_CHECKING:
    from llama_index.core.indices import MultiModalVectorStoreIndex
    from llama_index.core.storage.docstore import BaseDocumentStore


logger = logging.getLogger(__name__)

OnLegError: TypeAlias = Literal["raise", "degrade"]
TOP_K = 16
"""Nodes to take from each leg."""
DOCUMENTS = 5
"""Documents that each leg must find, if the caller sets no number."""
PASSAGES = 3
"""Passages to return for each document."""
IMAGES = 1
"""Images to return for each document."""
_EXAMPLES = 1_000  # nodes of each modality, to tell which metadata fields there are


class DualIndexRetriever(BaseRetriever):
    """Searches texts and images separately, and ranks the found documents together.

    A query is a text, an image (``QueryBundle("", image_path=…)``), or both. A text searches both
    modalities. An image alone searches the images. With ``image_queries="also_texts"``, or together
    with a text, it searches the texts too, if one model embeds both. The fusion combines all legs.

    A document comes back as its found passages, best first, and then its best images. A caption
    counts for the document's score, but never takes a passage's place.

    LlamaIndex's instrumentation shows a span for each step: ``embed_query``, one for each leg
    (``search_text``, ``search_image``, ``search_image_by_image``, …), ``fuse`` and ``complete``.

    Args:
        index: a ``DualIndex``; or its collections ``text``, ``image`` and, if image queries search
            their own collection of images, ``image_query``.
        similarity_top_k: nodes to take from each leg; by default 16, or ``top_k`` if that is more.
            Applies only to texts if ``image_similarity_top_k`` is given too. 0 leaves the texts
            out. If all these nodes belong to few documents, the leg is searched again (see
            ``top_k``), but not if you ask for fewer nodes than documents.
        image_similarity_top_k: nodes to take from each leg that searches images; 0 leaves the
            images out.
        top_k: documents to return; None for all that were found. Each leg is searched again, at
            most 16 times in all, until it has found this many documents or there are no more. If
            neither ``top_k`` nor a ``similarity_top_k`` is given, it must find 5.
        normalize: see ``fuse``.
        combine: see ``fuse``.
        weights: by the leg's target modality (``text``, ``image``); see ``fuse``.
        k: see ``fuse``.
        hubs: strength of the hub correction, 0 to 1; True for 0.6, False for none. A hub is a
            vector that is near to all queries, see ``gap.hubs``. For an index without hubs, scores
            do not change, and no further nodes are fetched.
        filters: on metadata; apply to all collections. If nothing is found because no document has
            a field, or its values have another type, a warning is logged.
        calibrator: gives each hit its probability of relevance, from its score and its leg. A
            calibrator that was fitted for other models than the index's is refused; for other
            vector stores this cannot be checked.
        min_probability: leave out less probable hits before the ranking; a document without a
            remaining hit is left out. If ``calibrator`` is None, the index's calibrator is used.
        group_by: ``"document"`` ranks documents; ``"node"`` ranks each node separately.
        passages_per_document: maximum passages to return for a document.
        images_per_document: maximum images to return for a document.
        complete: fetch the best passage of a document that was found without one, and its best
            image if no image leg found it, with their exact scores. They are returned however
            improbable they are, but add no evidence, since that would add noise.
        image_queries: what an image without a text searches: ``"images"``, or ``"also_texts"``.
        on_leg_error: ``"raise"``; or ``"degrade"``: log the error and rank by the other legs.
        callback_manager: as in LlamaIndex.
        objects: as in LlamaIndex, like all parameters below.
        object_map: objects behind index nodes.
        verbose: print what is retrieved.

    Raises:
        ValueError: an argument is out of range, methods do not go together, or no calibrator fits;
            later, if a query needs a leg that the calibrator was not fitted for.
    """

    @names_nearest
    def __init__(
        self,
        index: Searchable | Collections,
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
        objects: list[IndexNode] | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        collections = index if isinstance(index, Mapping) else index.collections()
        default_top_k = max(TOP_K, top_k or 0)
        self._uses_default_top_ks = similarity_top_k is None and image_similarity_top_k is None
        if image_similarity_top_k is None:
            image_similarity_top_k = similarity_top_k or default_top_k
        if similarity_top_k is None:
            similarity_top_k = default_top_k
        check_method(normalize, combine, k=k)
        for name, value, least in (
            ("similarity_top_k", similarity_top_k, 0),
            ("image_similarity_top_k", image_similarity_top_k, 0),
            ("top_k", top_k, 1),
            ("passages_per_document", passages_per_document, 0),
            ("images_per_document", images_per_document, 0),
        ):
            if value is not None and value < least:
                raise InvalidValueError(f"{name}={value}: must be at least {least}")
        if similarity_top_k == image_similarity_top_k == 0:
            raise InvalidValueError(
                "similarity_top_k and image_similarity_top_k are both 0, so nothing would be "
                "searched; raise one of them"
            )
        for name, chosen, known in (
            ("group_by", group_by, get_args(GroupBy)),
            ("image_queries", image_queries, get_args(ImageQueries)),
            ("on_leg_error", on_leg_error, get_args(OnLegError)),
        ):
            if chosen not in known:
                raise InvalidValueError(f"{name}={chosen!r}: must be one of {', '.join(known)}")
        stores = [each.store for each in collections.values()]
        if complete and not all(hasattr(store, "nodes_of_documents") for store in stores):
            raise InvalidValueError(
                "complete=True needs stores that give vectors; pass a DualIndex, or complete=False"
            )
        check_weights(weights or {}, "modalities", MODALITIES)
        self._collections = dict(collections)
        self._wanted = Wanted(
            {"text": similarity_top_k, "image": image_similarity_top_k},
            top_k or (DOCUMENTS if self._uses_default_top_ks else 0),
            group_by,
        )
        self._top_k = top_k
        self._hubs = hub_strength(hubs)
        self._filters = filters
        self._image_queries = image_queries
        self._calibrator = _calibrator_of(index, calibrator, min_probability)
        self._check_calibrator()
        self._on_leg_error = on_leg_error
        self._ranked_by: dict[str, Any] = {
            "normalize": normalize,
            "combine": combine,
            "weights": dict(weights or {}),
            "k": k,
            "min_probability": min_probability or 0.0,
            "most": (passages_per_document, images_per_document),
            "complete": complete,
        }
        super().__init__(
            callback_manager=callback_manager,
            objects=objects,
            object_map=object_map,
            verbose=verbose,
        )

    @classmethod
    def from_stores(
        cls,
        text_store: BasePydanticVectorStore,
        image_store: BasePydanticVectorStore,
        embed_model: BaseEmbedding,
        image_embed_model: BaseEmbedding | None = None,
        *,
        docstore: BaseDocumentStore | None = None,
        **settings: Any,
    ) -> DualIndexRetriever:
        """Make a retriever for two vector stores of any kind.

        Such stores cannot be sampled, so the default fusion here is ``rank`` × ``sum``.

        Args:
            text_store: holds text nodes.
            image_store: holds image nodes.
            embed_model: embeds queries for the text store.
            image_embed_model: embeds queries for the image store; by default ``embed_model``.
            docstore: holds the nodes of stores that keep only vectors.
            **settings: as for the class.
        """
        nodes = None if docstore is None else docstore.get_nodes
        collections: Collections = {
            "text": SearchedCollection(text_store, embed_model, nodes=nodes),
            "image": SearchedCollection(image_store, image_embed_model or embed_model, nodes=nodes),
        }
        return cls(collections, **{"normalize": "rank", "combine": "sum", **settings})

    @classmethod
    def from_index(cls, index: MultiModalVectorStoreIndex, **settings: Any) -> DualIndexRetriever:
        """Make a retriever for an existing ``MultiModalVectorStoreIndex``; see ``from_stores``."""
        return cls.from_stores(
            index.vector_store,
            index.image_vector_store,
            index._embed_model,
            index._image_embed_model,
            docstore=index.docstore,
            **settings,
        )

    def as_tool(self, **settings: Any) -> MultiModalSearchTool:
        """Make a tool with which agents search this retriever.

        Args:
            **settings: as for ``MultiModalSearchTool``.
        """
        return MultiModalSearchTool(self, **settings)

    def filtered(self, filters: MetadataFilters) -> DualIndexRetriever:
        """A copy that searches the same stores with further filters.

        Args:
            filters: on metadata; added to the filters of this retriever.
        """
        other = copy(self)
        other._filters = filters if self._filters is None else _both(self._filters, filters)
        return other

    def __copy__(self) -> DualIndexRetriever:
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> DualIndexRetriever:
        """A copy with the same database and callbacks, but with settings of its own."""
        memo[id(self.callback_manager)] = self.callback_manager
        memo[id(self)] = other = copy(self)
        vars(other).update(deepcopy(vars(self), memo))
        return other

    def for_documents(self, documents: int) -> DualIndexRetriever:
        """A copy that finds enough documents for a caller, such as a reranker or an agent's tool.

        A ``top_k`` or ``similarity_top_k`` that was given to this retriever takes precedence.

        Args:
            documents: how many documents each leg must find.
        """
        if self._top_k is not None:
            return self
        other, nodes = copy(self), self._wanted.nodes
        if self._uses_default_top_ks:
            nodes = {modality: max(most, documents) for modality, most in nodes.items()}
        other._wanted = replace(self._wanted, nodes=nodes, documents=documents)
        return other

    def get_image(self, node_id: str) -> BaseNode | None:
        """The image node with this id; None if no such node fits the filters.

        Args:
            node_id: the node's id.
        """
        store = self._collections["image"].store
        return next(iter(store.get_nodes([node_id], filters=self._filters)), None)

    def examples(self, field: str | None = None) -> list[BaseNode] | None:
        """Some of the nodes that searches can find; None if the stores cannot give any.

        Args:
            field: give only nodes whose metadata has this field; None for any nodes.
        """
        filters = self._filters
        if field is not None:
            empty = MetadataFilter(key=field, operator=FilterOperator.IS_EMPTY, value=None)
            there = MetadataFilters(filters=[empty], condition=FilterCondition.NOT)
            filters = there if filters is None else _both(filters, there)
        found: dict[str, BaseNode] = {}
        for modality in MODALITIES:
            store = self._collections[modality].store
            if not hasattr(store, "some_nodes"):
                return None
            most = _EXAMPLES if field is None else _EXAMPLES // 10
            found |= {node.node_id: node for node in store.some_nodes(most, filters)}
        return list(found.values())

    def query_cut_at(self, query: str) -> int | None:
        """The number of tokens of this query that the models read; None if they read all."""
        models = {id(each.embed_model): each.embed_model for each in self._collections.values()}
        cuts = [
            model.query_cut_at(query) for model in models.values() if hasattr(model, "query_cut_at")
        ]
        return min((cut for cut in cuts if cut is not None), default=None)

    # --- searching -------------------------------------------------------------------------------

    def search(self, query: str | QueryBundle) -> SearchResult:
        """Search, and tell how the documents were found; ``retrieve`` gives only their nodes.

        Args:
            query: a text; or a bundle with an image, or with both.
        """
        return self.search_with_legs(query)[0]

    async def asearch(self, query: str | QueryBundle) -> SearchResult:
        """Like ``search``, without blocking the event loop."""
        with one_search():
            return await in_thread(self.search, query)

    def search_with_legs(self, query: str | QueryBundle) -> tuple[SearchResult, dict[Leg, LegHits]]:
        """As ``search``, with what each leg found, for ``rank_legs``; the query is embedded once.

        Args:
            query: a text, or a bundle with an image or both.
        """
        bundle = QueryBundle(query) if isinstance(query, str) else query
        timings: dict[str, float] = {}
        with one_search():
            legs, errors = self._search(bundle, timings)
            if self._filters and not errors and not any(hits.nodes for hits in legs.values()):
                self._warn_of_filters()
            return self._ranking().ranked(legs, errors, timings, bundle), legs

    def search_legs(
        self, query: str | QueryBundle, *, for_others: bool = False
    ) -> dict[Leg, LegHits]:
        """The hits of each leg with their raw scores, before any is left out or ranked.

        Args:
            query: a text; or a bundle with an image, or with both.
            for_others: include the best hits both with and without hub correction, so that
                ``rank_legs`` of other retrievers finds theirs.
        """
        with one_search():
            legs = self._search(QueryBundle(query) if isinstance(query, str) else query, {})[0]
        if for_others:
            return legs
        return {leg: self._wanted.first(leg, hits, self._hubs) for leg, hits in legs.items()}

    def rank_legs(self, legs: Mapping[Leg, LegHits]) -> SearchResult:
        """Rank the hits of ``search_legs``, which another retriever of the same index may give.

        So one search serves to compare several settings. From each leg come the first hits, as many
        as this retriever would take from its own search.
        """
        asked = {leg: hits for leg, hits in legs.items() if self._wanted.nodes[leg.target]}
        return self._ranking().ranked(asked, {}, {}, QueryBundle(""))

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.search(query_bundle).nodes

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        with one_search():
            return await in_thread(self._retrieve, query_bundle)

    def _search(
        self, query: QueryBundle, timings: dict[str, float]
    ) -> tuple[dict[Leg, LegHits], dict[Leg, Exception]]:
        has_text = query.embedding is not None or not all(map(is_blank, query.embedding_strs))
        has_query_image = query.image_path is not None
        if not (has_text or has_query_image):
            raise InvalidValueError("the query is empty: pass a text, an image_path, or both")
        legs = self._asked_legs(text=has_text, image=has_query_image)
        if not legs:
            raise InvalidValueError(
                "an image query cannot search these texts: no model embeds both images and texts; "
                "raise image_similarity_top_k to search the images (--only image)"
            )
        with timed(timings, "embed"):
            vectors = in_span(
                self, "embed_query", lambda: embed_query(query, legs, self._collections)
            )
        with timed(timings, "search"):
            hits, errors = ask_legs(
                self,
                vectors,
                self._collections,
                self._wanted,
                self._filters,
                hubs=self._hubs,
            )
        if errors and (self._on_leg_error == "raise" or not hits):
            raise next(iter(errors.values()))
        for leg, error in errors.items():
            logger.warning("the %s leg failed and is left out of the ranking: %s", leg.name, error)
        return hits, errors

    def _warn_of_filters(self) -> None:
        """Log which filters are mistaken, after a search that found nothing."""
        unfiltered = copy(self)
        unfiltered._filters = None
        try:
            mistakes = why_nothing_fits(self._filters, unfiltered.examples)
        except GapError as error:
            mistakes = [f"why is unknown: {error}"]
        if mistakes:
            logger.warning("nothing fits the filters: %s", " ".join(mistakes))

    def _ranking(self) -> Ranking:
        return Ranking(
            owner=self,
            collections=self._collections,
            wanted=self._wanted,
            top_k=self._top_k,
            hubs=self._hubs,
            filters=self._filters,
            calibrator=self._calibrator,
            **self._ranked_by,
        )

    def _asked_legs(self, *, text: bool, image: bool) -> list[Leg]:
        return asked_legs(
            self._collections,
            self._wanted.nodes,
            text=text,
            image=image,
            image_queries=self._image_queries,
        )

    def _check_calibrator(self) -> None:
        """Refuse a calibrator that covers neither text nor image queries."""
        if self._calibrator is None:
            return
        needed = [
            [leg.pair for leg in self._asked_legs(text=not image, image=image)]
            for image in (False, True)
        ]
        self._calibrator.check_pairs([pairs for pairs in needed if pairs])


def _calibrator_of(
    index: Searchable | Collections,
    calibrator: RelevanceCalibrator | None,
    min_probability: float | None,
) -> RelevanceCalibrator | None:
    """The given calibrator; else, if one is needed, the index's."""
    searchable = None if isinstance(index, Mapping) else index
    if min_probability is not None:
        if not 0 <= min_probability <= 1:
            raise InvalidValueError(f"min_probability={min_probability}: must lie between 0 and 1")
        if calibrator is None and searchable is not None:
            calibrator = searchable.calibrator()
        if calibrator is None:
            raise InvalidValueError(
                f"min_probability={min_probability} needs a calibrator: fit one on labelled "
                "queries, RelevanceCalibrator.fit(collect_scores(index, queries, qrels), "
                "source=index.models()), and pass it, or save it with index.save_calibrator"
            )
    if calibrator is not None and searchable is not None:
        calibrator.check_source(searchable.models())
    return calibrator


def _both(first: MetadataFilters, second: MetadataFilters) -> MetadataFilters:
    """Both filters joined by AND; flat if possible, for stores that do not support nesting."""
    parts = [
        part
        for group in (first, second)
        for part in (group.filters if group.condition in (None, FilterCondition.AND) else [group])
    ]
    return MetadataFilters(filters=parts, condition=FilterCondition.AND)
