"""DualIndexRetriever: each modality searched by itself, then one ranking of documents."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    MetadataFilters,
    VectorStoreQuery,
)

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.nodes import GroupBy, ScoredNode, document_key
from llama_index_gap.search.fusion import (
    RANK_CONSTANT,
    Combine,
    FusedDocument,
    Fusion,
    Leg,
    Normalize,
    check_method,
    fuse,
)
from llama_index_gap.search.tracing import in_span

if TYPE_CHECKING:
    from llama_index.core.indices import MultiModalVectorStoreIndex
    from llama_index.core.storage.docstore import BaseDocumentStore

    from llama_index_gap.agents.tool import MultiModalSearchTool
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.store.milvus import MilvusStore

logger = logging.getLogger(__name__)

OnLegError: TypeAlias = Literal["raise", "degrade"]
Side: TypeAlias = Literal["text", "image", "image_query"]
Sampler: TypeAlias = Callable[[], npt.NDArray[np.float32] | None]


@dataclass(frozen=True)
class SearchSide:
    """A vector store of one modality, and the model that its queries are embedded with.

    Attributes:
        store: holds one modality's vectors.
        embed_model: embeds the queries.
        sample: gives an (m, d) sample of the stored vectors, of length 1; None where none can be
            had.
        count: gives how many vectors there are; None where that cannot be told.
        nodes: gives the nodes with these ids, for a store that keeps only vectors.
    """

    store: BasePydanticVectorStore
    embed_model: BaseEmbedding
    sample: Sampler = lambda: None
    count: Callable[[], int | None] = lambda: None
    nodes: Callable[[list[str]], list[BaseNode]] | None = None


@dataclass(frozen=True)
class LegHits:
    """What one leg finds, best first.

    Attributes:
        nodes: the n nodes.
        scores: their raw scores, n of them.
        query: the vector that it was asked with, shape (d,).
    """

    nodes: list[BaseNode]
    scores: list[float]
    query: npt.NDArray[np.float32]


class DualIndexRetriever(BaseRetriever):
    """Searches texts and images side by side, and ranks the documents behind the hits together.

    A query is a text, an image (``QueryBundle("", image_path=…)``), or both. An image asks the
    text side only where both sides share a model that embeds images; a text and an image are two
    searches per side, whose evidence is added.

    Where there is a side ``image_query``, an image asks it *instead of* the image side. Both hold
    the same images, so that to ask both would count what is one piece of evidence twice; and that
    side's model is there because it compares images better.

    LlamaIndex' instrumentation shows a span for each step: ``embed_query``, one for each leg
    (``search_text``, ``search_image``, ``search_image_by_image``, …), ``fuse`` and ``complete``.

    Args:
        index: what to search; or its sides: ``text``, ``image`` and, for images that are searched
            by an image, ``image_query``.
        similarity_top_k: text nodes to take from the search.
        image_similarity_top_k: image nodes to take from the search.
        top_k: documents to return; None for all that were found.
        normalize: see ``fuse``.
        combine: see ``fuse``.
        weights: by side (``text``, ``image``, which counts for ``image_query`` too); see ``fuse``.
        k: see ``fuse``.
        filters: on metadata; apply to both sides.
        calibrator: gives each hit its probability of relevance, from its score and its pair of
            modalities. One fitted for other models than the index's is refused; over other stores
            nobody knows.
        min_probability: leave out hits that are less probable, before anything is ranked; a
            document goes with its last hit. With the index's own calibrator if none is given.
        group_by: ``"document"`` ranks documents and returns the best text node and the best image
            node of each; ``"node"`` ranks every node for itself.
        complete: fetch, for a document found on one side only, its best node on the other side
            with its exact score. It is returned with it, however improbable, but adds no evidence:
            to fill in what was not found brings in noise.
        on_leg_error: ``"raise"``, or ``"degrade"``: log the error and rank by the other side.
        callback_manager: as in LlamaIndex.
        **kwargs: as in LlamaIndex' ``BaseRetriever``.

    Raises:
        ValueError: an argument is out of range, methods do not go together, or there is no
            calibrator that fits; later, when a query needs a pair that it was not fitted for.
    """

    def __init__(
        self,
        index: DualIndex | Mapping[Side, SearchSide],
        *,
        similarity_top_k: int = 16,
        image_similarity_top_k: int = 16,
        top_k: int | None = None,
        normalize: Normalize = "background",
        combine: Combine = "evidence",
        weights: Mapping[str, float] | None = None,
        k: float = RANK_CONSTANT,
        filters: MetadataFilters | None = None,
        calibrator: RelevanceCalibrator | None = None,
        min_probability: float | None = None,
        group_by: GroupBy = "document",
        complete: bool = False,
        on_leg_error: OnLegError = "raise",
        callback_manager: CallbackManager | None = None,
        **kwargs: Any,
    ) -> None:
        sides = index if isinstance(index, Mapping) else index.sides()
        check_method(normalize, combine, k=k)
        for name, value, least in (
            ("similarity_top_k", similarity_top_k, 0),
            ("image_similarity_top_k", image_similarity_top_k, 0),
            ("top_k", top_k, 1),
        ):
            if value is not None and value < least:
                raise InvalidValueError(f"{name}={value}: must be at least {least}")
        if similarity_top_k == image_similarity_top_k == 0:
            raise InvalidValueError("similarity_top_k and image_similarity_top_k are both 0")
        for what, chosen, known in (
            ("group_by", group_by, ("document", "node")),
            ("on_leg_error", on_leg_error, ("raise", "degrade")),
        ):
            if chosen not in known:
                raise InvalidValueError(f"{what}={chosen!r}: must be one of {', '.join(known)}")
        if complete and not all(hasattr(side.store, "get_vectors") for side in sides.values()):
            raise InvalidValueError(
                "complete=True needs stores that give their vectors: a DualIndex"
            )
        for name, weight in (weights or {}).items():
            if name not in ("text", "image"):
                raise InvalidValueError(f"weights name {name!r}; the sides are text, image")
            if not (np.isfinite(weight) and weight >= 0):
                raise InvalidValueError(f"the weight of {name} is {weight}: must be at least 0")
        self._sides = dict(sides)
        self._top_ks: dict[Side, int] = {
            "text": similarity_top_k,
            "image": image_similarity_top_k,
        }
        self._top_k = top_k
        self._normalize, self._combine, self._k = normalize, combine, k
        self._weights: dict[str, float] = dict(weights or {})
        self._filters = filters
        self._calibrator = _calibrator_of(index, calibrator, min_probability)
        self._min_probability = min_probability or 0.0
        self._check_pairs()
        self._group_by = group_by
        self._complete = complete
        self._on_leg_error = on_leg_error
        super().__init__(callback_manager=callback_manager, **kwargs)

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
        """Search two vector stores of any kind.

        They cannot be sampled, so the default fusion here is ``rank`` × ``sum``.

        Args:
            text_store: holds text nodes.
            image_store: holds image nodes.
            embed_model: embeds queries for the text store.
            image_embed_model: embeds queries for the image store; the same by default.
            docstore: holds the nodes, for stores that keep only their vectors.
            **settings: as for the class.
        """
        nodes = None if docstore is None else docstore.get_nodes
        sides: dict[Side, SearchSide] = {
            "text": SearchSide(text_store, embed_model, nodes=nodes),
            "image": SearchSide(image_store, image_embed_model or embed_model, nodes=nodes),
        }
        return cls(sides, **{"normalize": "rank", "combine": "sum", **settings})

    @classmethod
    def from_index(cls, index: MultiModalVectorStoreIndex, **settings: Any) -> DualIndexRetriever:
        """Search an existing ``MultiModalVectorStoreIndex``; as ``from_stores``."""
        return cls.from_stores(
            index.vector_store,
            index.image_vector_store,
            index._embed_model,
            index._image_embed_model,
            docstore=index.docstore,
            **settings,
        )

    def as_tool(self, **settings: Any) -> MultiModalSearchTool:
        """A tool for agents that searches with this retriever.

        Args:
            **settings: as for ``MultiModalSearchTool``.
        """
        from llama_index_gap.agents.tool import MultiModalSearchTool

        return MultiModalSearchTool.from_defaults(self, **settings)

    def filtered(self, filters: MetadataFilters) -> DualIndexRetriever:
        """A copy over the same stores that finds only what fits these filters, too.

        Args:
            filters: on metadata; this retriever's own hold beside them.
        """
        other = copy(self)
        other._filters = filters if self._filters is None else _both(self._filters, filters)
        return other

    def get_image(self, node_id: str) -> BaseNode | None:
        """The node of the image side with this id; None if there is none that fits the filters.

        Args:
            node_id: its id.
        """
        store = self._sides["image"].store
        return next(iter(store.get_nodes([node_id], filters=self._filters)), None)

    def search_legs(self, query: str | QueryBundle) -> dict[str, LegHits]:
        """What each leg finds with its raw scores, before anything is left out or ranked."""
        bundle = QueryBundle(query) if isinstance(query, str) else query
        return self._search(in_span(self, "embed_query", lambda: self._embed(bundle)))

    def rank_legs(self, legs: Mapping[str, LegHits]) -> list[NodeWithScore]:
        """Rank what ``search_legs`` found, also of another retriever over the same index.

        So several settings can be compared over one search. Of each leg the first hits are taken,
        as many as this retriever takes from a search of its own.
        """
        hits = {}
        for name, found in legs.items():
            if top_k := self._top_ks[_side(name)]:
                first = LegHits(found.nodes[:top_k], found.scores[:top_k], found.query)
                hits[name] = self._probable(name, first)
        return in_span(self, "fuse", lambda: self._fused(hits))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.rank_legs(self.search_legs(query_bundle))

    # --- the query -------------------------------------------------------------------------------

    def _embed(self, query: QueryBundle) -> dict[str, npt.NDArray[np.float32]]:
        """The vector of each search, by leg; a query is embedded once per model."""
        vectors: dict[str, list[float]] = {}
        text, image = self._sides["text"].embed_model, self._sides["image"].embed_model
        asked = {side for side, top_k in self._top_ks.items() if top_k}
        if query.embedding_strs or query.embedding is not None:
            if "text" in asked:
                vectors["text"] = query.embedding or _embed_text(text, query)
            if "image" in asked:
                given = vectors.get("text") or query.embedding if image is text else None
                vectors["image"] = given or _embed_text(image, query)
        if query.image_path is not None:
            by_image = self._sides[self._searched("image_by_image")].embed_model
            if "image" in asked:
                vectors["image_by_image"] = _embed_image(by_image, query.image_path)
            if "text" in asked and text is image:
                given = vectors.get("image_by_image") if by_image is image else None
                vectors["text_by_image"] = given or _embed_image(image, query.image_path)
        if not vectors:
            raise InvalidValueError("the query is empty: pass a text, an image_path, or both")
        return {name: np.asarray(vector, dtype=np.float32) for name, vector in vectors.items()}

    def _check_pairs(self) -> None:
        """Refuse a calibrator that serves no query: one by text asks other pairs than an image."""
        if self._calibrator is None:
            return
        asked = [side for side, top_k in self._top_ks.items() if top_k]
        shared = self._sides["text"].embed_model is self._sides["image"].embed_model
        by_text = [f"text_to_{side}" for side in asked]
        by_image = [f"image_to_{side}" for side in asked if side == "image" or shared]
        fitted = self._calibrator.curves.keys()
        if not any(pairs and fitted >= set(pairs) for pairs in (by_text, by_image)):
            raise InvalidValueError(
                f"the calibrator was fitted for {', '.join(fitted)}, but a query needs "
                + " or ".join(" and ".join(pairs) for pairs in (by_text, by_image) if pairs)
            )

    # --- the search ------------------------------------------------------------------------------

    def _search(self, vectors: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, LegHits]:
        """Ask all legs, side by side where their stores gain by it."""

        def ask(name: str) -> LegHits | Exception:
            try:
                return in_span(
                    self, f"search_{name}", lambda: self._search_leg(name, vectors[name])
                )
            except Exception as error:  # a leg's failure, of whatever kind, is that leg's
                return error

        first, *others = vectors
        stores = [side.store for side in self._sides.values()]
        if not others or all(getattr(store, "one_at_a_time", False) for store in stores):
            outcomes = {name: ask(name) for name in vectors}
        else:
            with ThreadPoolExecutor(len(others), "leg") as pool:
                # The context goes along, so that traces know whose these searches are.
                futures = {name: pool.submit(copy_context().run, ask, name) for name in others}
                outcomes = {first: ask(first)}
                outcomes |= {name: future.result() for name, future in futures.items()}
        hits = {name: found for name, found in outcomes.items() if isinstance(found, LegHits)}
        errors = {name: found for name, found in outcomes.items() if isinstance(found, Exception)}
        if errors and (self._on_leg_error == "raise" or not hits):
            raise next(iter(errors.values()))
        for name, error in errors.items():
            logger.warning("the %s leg failed and is left out of the ranking: %s", name, error)
        return hits

    def _searched(self, leg: str) -> Side:
        """Where a leg's vectors are."""
        if leg == "image_by_image" and "image_query" in self._sides:
            return "image_query"
        return _side(leg)

    def _search_leg(self, name: str, vector: npt.NDArray[np.float32]) -> LegHits:
        side = self._sides[self._searched(name)]
        found = side.store.query(
            VectorStoreQuery(
                query_embedding=vector.tolist(),
                similarity_top_k=self._top_ks[_side(name)],
                filters=self._filters,
            )
        )
        nodes, scores, ids = found.nodes or [], found.similarities or [], found.ids or []
        if ids and not nodes and side.nodes is not None:
            nodes = side.nodes(ids)
        if len(nodes) != len(scores):
            raise InvalidValueError(
                f"the {_side(name)} store returned {len(nodes)} nodes and {len(scores)} scores for "
                f"{len(ids)} ids; pass the docstore that holds its nodes"
            )
        return LegHits(list(nodes), [float(score) for score in scores], vector)

    def _probable(self, name: str, hits: LegHits) -> LegHits:
        """The hits that are probable enough."""
        if self._calibrator is None:
            return hits
        probabilities = self._calibrator.probability(pair_of(name), hits.scores)
        kept = np.flatnonzero(probabilities >= self._min_probability)
        if len(kept) < len(hits.nodes):
            logger.info(
                "%d of %d hits of the %s leg are less probable than %s and were left out",
                len(hits.nodes) - len(kept),
                len(hits.nodes),
                name,
                self._min_probability,
            )
        return LegHits([hits.nodes[i] for i in kept], [hits.scores[i] for i in kept], hits.query)

    def _leg(self, name: str, hits: LegHits) -> Leg:
        background = size = None
        if self._normalize == "background" and hits.nodes:
            side = self._sides[self._searched(name)]
            sample, size = side.sample(), side.count()
            background = None if sample is None else sample @ _unit(hits.query)
        return Leg([self._key(node) for node in hits.nodes], hits.scores, background, size)

    def _key(self, node: BaseNode) -> str:
        return document_key(node, self._group_by)

    # --- the answer ------------------------------------------------------------------------------

    def _fused(self, hits: Mapping[str, LegHits]) -> list[NodeWithScore]:
        legs = {name: self._leg(name, found) for name, found in hits.items()}
        fusion = fuse(
            legs,
            normalize=self._normalize,
            combine=self._combine,
            weights={name: self._weights.get(_side(name), 1.0) for name in hits},
            k=self._k,
        )
        if fusion.note:
            logger.info("%s", fusion.note)
        return self._nodes(fusion, hits, legs)

    def _nodes(
        self, fusion: Fusion, hits: Mapping[str, LegHits], legs: Mapping[str, Leg]
    ) -> list[NodeWithScore]:
        best: dict[str, dict[Side, tuple[float, BaseNode]]] = defaultdict(dict)
        for name, found in hits.items():
            values = self._of_nodes(fusion, found, legs[name])
            for node in found.nodes:
                score = values[node.node_id]
                of_document = best[self._key(node)]
                before = of_document.get(_side(name))
                if before is None or score > before[0]:
                    of_document[_side(name)] = (score, node)
        documents = fusion.documents[: self._top_k]
        exact: dict[str, dict[str, float]] = {}
        if self._complete and self._group_by == "document":
            exact = in_span(
                self, "complete", lambda: self._add_missing(fusion, documents, best, hits)
            )
        probabilities = self._probabilities(documents)
        returned: list[NodeWithScore] = []
        for document in documents:
            of_document = best[document.key]
            scores = _where_from(document, fusion.normalize) | probabilities[document.key]
            scores |= exact.get(document.key, {})
            nodes = [of_document[side][1] for side in self._sides if side in of_document]
            returned += [
                ScoredNode(node=node, score=document.score, scores=scores)
                for node in {node.node_id: node for node in nodes}.values()
            ]
        return returned

    def _of_nodes(self, fusion: Fusion, hits: LegHits, leg: Leg) -> dict[str, float]:
        """What each node of a leg is worth, on the documents' scale.

        So an image that a text found can be compared with one that an image found.
        """
        of_nodes = replace(leg, keys=[node.node_id for node in hits.nodes])
        found = fuse({"": of_nodes}, normalize=fusion.normalize, combine=fusion.combine, k=self._k)
        return {node.key: node.score for node in found.documents}

    def _probabilities(self, documents: Sequence[FusedDocument]) -> dict[str, dict[str, float]]:
        """What each document's score in each leg makes of it."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        if self._calibrator is None:
            return found
        for leg in {leg: None for document in documents for leg in document.scores}:
            of_leg = {d.key: d.scores[leg] for d in documents if leg in d.scores}
            values = self._calibrator.probability(pair_of(leg), list(of_leg.values()))
            for key, value in zip(of_leg, values.tolist(), strict=True):
                found[key][f"{leg}_probability"] = value
        return found

    def _add_missing(
        self,
        fusion: Fusion,
        documents: Sequence[FusedDocument],
        best: dict[str, dict[Side, tuple[float, BaseNode]]],
        hits: Mapping[str, LegHits],
    ) -> dict[str, dict[str, float]]:
        """Fetch what documents lack; gives the raw scores of what was fetched."""
        exact: dict[str, dict[str, float]] = defaultdict(dict)
        for searched, search in self._sides.items():
            side = _side(searched)
            asked = {n: found for n, found in hits.items() if self._searched(n) == searched}
            missing = [document.key for document in documents if side not in best[document.key]]
            if not asked or not missing:
                continue
            store = cast("MilvusStore", search.store)
            nodes = {
                node.node_id: node
                for node in [
                    *store.get_nodes(ref_doc_ids=missing, filters=self._filters),
                    *store.get_nodes(node_ids=missing, filters=self._filters),
                ]
            }
            vectors = store.get_vectors(list(nodes))
            for name, found in asked.items():
                query = _unit(found.query)
                scores = [float(_unit(vector) @ query) for vector in vectors.values()]
                fetched = LegHits([nodes[node_id] for node_id in vectors], scores, found.query)
                values = self._of_nodes(fusion, fetched, self._leg(name, fetched))
                for node, score in zip(fetched.nodes, scores, strict=True):
                    key, value = self._key(node), values[node.node_id]
                    if side not in best[key] or value > best[key][side][0]:
                        best[key][side], exact[key][side] = (value, node), score
        return exact


def _calibrator_of(
    index: DualIndex | Mapping[Side, SearchSide],
    calibrator: RelevanceCalibrator | None,
    min_probability: float | None,
) -> RelevanceCalibrator | None:
    """The one that was given; else, where one is needed, the index's own."""
    dual = None if isinstance(index, Mapping) else index
    if min_probability is not None:
        if not 0 <= min_probability <= 1:
            raise InvalidValueError(f"min_probability={min_probability}: must lie between 0 and 1")
        if calibrator is None and dual is not None:
            calibrator = dual.calibrator()
        if calibrator is None:
            raise InvalidValueError(
                f"min_probability={min_probability} needs a calibrator: fit one on labelled "
                "queries, RelevanceCalibrator.fit(collect_scores(index, queries), "
                "source=index.models()), and pass it, or save it with index.save_calibrator"
            )
    if calibrator is not None and dual is not None:
        calibrator.check_source(dual.models())
    return calibrator


def pair_of(leg: str) -> str:
    """The pair of modalities that a leg searches, as calibrators name it."""
    return f"{'image' if leg.endswith('_by_image') else 'text'}_to_{_side(leg)}"


def _both(first: MetadataFilters, second: MetadataFilters) -> MetadataFilters:
    """Filters that hold where both do; flat where they can be, for stores that know no nesting."""
    parts = [
        part
        for group in (first, second)
        for part in (group.filters if group.condition in (None, FilterCondition.AND) else [group])
    ]
    return MetadataFilters(filters=parts, condition=FilterCondition.AND)


def _side(leg: str) -> Side:
    """The side whose nodes a leg finds."""
    return "text" if leg.startswith("text") else "image"


def _embed_text(model: BaseEmbedding, query: QueryBundle) -> list[float]:
    texts = query.embedding_strs
    if not texts:
        raise InvalidValueError(
            f"the query has an embedding but no text, and {model.model_name} needs one: the given "
            "embedding is of the text side's model"
        )
    return list(model.get_agg_embedding_from_queries(texts))


def _embed_image(model: BaseEmbedding, image: str) -> list[float]:
    if not isinstance(model, MultiModalEmbedding):
        raise InvalidValueError(
            f"the query is an image, but {model.model_name} embeds no images; "
            "pass a MultiModalEmbedding for the image side"
        )
    return model.get_image_embedding(image)


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector


def _where_from(document: FusedDocument, normalize: Normalize) -> dict[str, float]:
    sigmas = document.normalized if normalize in {"zscore", "background"} else {}
    return {
        **document.scores,
        **{f"{name}_sigma": value for name, value in sigmas.items()},
        **{f"{name}_evidence": value for name, value in document.evidence.items()},
    }
