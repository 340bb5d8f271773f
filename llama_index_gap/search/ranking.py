"""Ranking: the legs' hits become one ranking of documents, with passages and images."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_gap.gap.arrays import unit_rows
from llama_index_gap.gap.background import Background
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.images.opening import has_image
from llama_index_gap.modality import LEGS, Leg
from llama_index_gap.nodes import GroupBy, ScoredNode, document_key
from llama_index_gap.results import FusionUsed, LegSummary, SearchResult, documents_of
from llama_index_gap.search.asking import Wanted
from llama_index_gap.search.fusion import (
    Combine,
    FusedDocument,
    Fusion,
    Normalize,
    ScoredLeg,
    fuse,
)
from llama_index_gap.search.legs import Collections, LegHits, searched_collection, unit_query
from llama_index_gap.search.tracing import in_span

if TYPE_CHECKING:
    from llama_index_gap.store.milvus import MilvusStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranking:
    """How a retriever ranks the hits of its legs; the settings are those of the retriever.

    Attributes:
        owner: the retriever, for the trace.
        collections: the collections that were searched.
        wanted: how many nodes and documents to take from each leg.
        top_k: documents to return; None for all.
        normalize: see ``fuse``.
        combine: see ``fuse``.
        weights: by the leg's target modality.
        k: see ``fuse``.
        hubs: strength of the hub correction (α).
        filters: on metadata; for nodes that ``complete`` fetches.
        calibrator: gives the hits' probabilities.
        min_probability: less probable hits are left out.
        most: the most passages, and the most images, to return for a document.
        complete: fetch the passage or image that a document lacks.
    """

    owner: object
    collections: Collections
    wanted: Wanted
    top_k: int | None
    normalize: Normalize
    combine: Combine
    weights: Mapping[str, float]
    k: float
    hubs: float
    filters: MetadataFilters | None
    calibrator: RelevanceCalibrator | None
    min_probability: float
    most: tuple[int, int]
    complete: bool

    @property
    def group_by(self) -> GroupBy:
        """What counts as a document."""
        return self.wanted.group_by

    def ranked(
        self,
        legs: Mapping[Leg, LegHits],
        errors: Mapping[Leg, Exception],
        timings: dict[str, float],
        query: QueryBundle,
    ) -> SearchResult:
        """Rank the documents that the hits of all legs belong to.

        Args:
            legs: the hits of each leg.
            errors: of the legs that failed.
            timings: seconds by step; this method adds its steps.
            query: the query.
        """
        hits: dict[Leg, LegHits] = {}
        summaries = {leg: LegSummary(0, error=str(error)) for leg, error in errors.items()}
        for leg, found in legs.items():
            first = self.wanted.first(leg, found, self.hubs)
            hits[leg] = self._probable(leg, first)
            kept, note = len(hits[leg].nodes), self.wanted.note(leg, first)
            if note:
                logger.info("the %s leg was %s", leg.name, note)
            summaries[leg] = LegSummary(
                kept, improbable=len(first.nodes) - kept, asked=first.asked, note=note
            )
        with timed(timings, "fuse"):
            fusion, nodes = in_span(self.owner, "fuse", lambda: self._fused(hits))
        if fusion.note:
            logger.info("%s", fusion.note)
        documents = fusion.documents[: self.top_k]
        exact: dict[str, dict[str, float]] = {}
        if self.complete and self.group_by == "document":
            with timed(timings, "complete"):
                exact = in_span(
                    self.owner, "complete", lambda: self._add_missing(documents, nodes, hits)
                )
        probabilities = self._probabilities(documents)
        scored: list[NodeWithScore] = []
        for document in documents:
            scores = exact.get(document.key, {}) | _origin(document, fusion.normalize)
            scores |= probabilities[document.key]
            odds = document.score if fusion.combine == "intent" else None
            scored += [
                ScoredNode(node=node, score=document.score, scores=scores, log_odds=odds)
                for node in self._shown(nodes[document.key])
            ]
        return SearchResult(
            documents_of(scored, self.group_by),
            text=query.query_str,
            image=query.image_path,
            fusion=FusionUsed(
                fusion.normalize, fusion.combine, fusion.note, *self._corrections(hits)
            ),
            legs=summaries,
            timings=timings,
        )

    def _corrections(self, hits: Mapping[Leg, LegHits]) -> tuple[dict[str, float], int]:
        """The hub correction of each leg (α · ρ), and the number of sample queries."""
        strengths = {
            leg.name: self.hubs * found.hubs.reliability
            for leg, found in hits.items()
            if found.hubs is not None and self.hubs
        }
        backgrounds = [self._background(leg) for leg, found in hits.items() if found.nodes]
        queries = [len(each.queries) for each in backgrounds if each and each.queries is not None]
        return strengths, max(queries, default=0)

    def _probable(self, leg: Leg, hits: LegHits) -> LegHits:
        """The hits that reach ``min_probability``."""
        if self.calibrator is None:
            return hits
        probabilities = self.calibrator.probability(leg.pair, hits.scores)
        return hits[np.flatnonzero(probabilities >= self.min_probability).tolist()]

    def _fused(
        self, hits: Mapping[Leg, LegHits]
    ) -> tuple[Fusion, defaultdict[str, list[BaseNode]]]:
        """The documents' ranking, and each document's nodes, best first."""
        by_node = self._scored_nodes(hits)
        by_document = {
            leg.name: replace(
                by_node[leg.name], keys=[document_key(node, self.group_by) for node in found.nodes]
            )
            for leg, found in hits.items()
        }
        fusion = fuse(
            by_document,
            normalize=self.normalize,
            combine=self.combine,
            weights={leg.name: self.weights.get(leg.target, 1.0) for leg in hits},
            k=self.k,
        )
        return fusion, self._nodes_by_document(hits, by_node)

    def _scored_nodes(self, hits: Mapping[Leg, LegHits]) -> dict[str, ScoredLeg]:
        """The legs' hits in the form that ``fuse`` takes, each node as its own document."""
        scored: dict[str, ScoredLeg] = {}
        for leg, found in hits.items():
            keys = [node.node_id for node in found.nodes]
            strength = 0.0 if found.hubness is None else self.hubs
            hubs = None if found.hubness is None else strength * found.hubness
            background = self._background(leg) if found.nodes else None
            if background is None:
                scored[leg.name] = ScoredLeg(keys, found.scores, hubs=hubs)
                continue
            scored[leg.name] = ScoredLeg(
                keys,
                found.scores,
                background.scores(unit_query(found.query), strength),
                background.size,
                background.places(keys),
                background.spread(strength),
                hubs,
            )
        return scored

    def _background(self, leg: Leg) -> Background | None:
        """The background of a leg, if the fusion needs one."""
        if self.normalize != "background":
            return None
        collection = self.collections[searched_collection(leg, self.collections)]
        return collection.background(leg.query)

    def _nodes_by_document(
        self, hits: Mapping[Leg, LegHits], by_node: Mapping[str, ScoredLeg]
    ) -> defaultdict[str, list[BaseNode]]:
        """The nodes of each document, best first by their fused score over all legs."""
        found = {node.node_id: node for each in hits.values() for node in each.nodes}
        nodes: defaultdict[str, list[BaseNode]] = defaultdict(list)
        fusion = fuse(by_node, normalize=self.normalize, combine=self.combine, k=self.k)
        for ranked in fusion.documents:
            node = found[ranked.key]
            nodes[document_key(node, self.group_by)].append(node)
        return nodes

    def _shown(self, nodes: Sequence[BaseNode]) -> list[BaseNode]:
        """The nodes to return for a document: passages, then images; at least one node."""
        passages = [node for node in nodes if not has_image(node)]
        images = [node for node in nodes if has_image(node)]
        most_passages, most_images = self.most
        return [*passages[:most_passages], *images[:most_images]] or list(nodes[:1])

    def _probabilities(self, documents: Sequence[FusedDocument]) -> dict[str, dict[str, float]]:
        """Each document's probability of relevance, by leg."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        if self.calibrator is None:
            return found
        pairs = {leg.name: leg.pair for leg in LEGS}
        for name in {name: None for document in documents for name in document.scores}:
            leg_scores = {d.key: d.scores[name] for d in documents if name in d.scores}
            values = self.calibrator.probability(pairs[name], list(leg_scores.values()))
            for key, value in zip(leg_scores, values.tolist(), strict=True):
                found[key][f"{name}_probability"] = value
        return found

    def _add_missing(
        self,
        documents: Sequence[FusedDocument],
        nodes: dict[str, list[BaseNode]],
        hits: Mapping[Leg, LegHits],
    ) -> dict[str, dict[str, float]]:
        """Fetch missing nodes, one query per collection; returns their documents' exact scores."""
        exact: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for name, collection in self.collections.items():
            legs = [leg for leg in hits if searched_collection(leg, self.collections) == name]
            if name == "text":
                missing = [d for d in documents if all(map(has_image, nodes[d.key]))]
            else:
                missing = [d for d in documents if not any(leg.name in d.scores for leg in legs)]
            if not missing or (name != "text" and not legs):
                continue
            store = cast("MilvusStore", collection.store)
            fetched = store.nodes_of_documents([d.key for d in missing], filters=self.filters)
            found = [node for node, _ in fetched]
            rows = unit_rows([vector for _, vector in fetched])
            scored = {leg: hits[leg].of(found, rows) for leg in legs if found}
            if scored:
                best = self._nodes_by_document(scored, self._scored_nodes(scored))
            else:  # no scores say which passage fits best: take the document's first one
                best = defaultdict(list)
                for node in sorted(found, key=_place_in_text):
                    best[document_key(node, "document")].append(node)
            for document in missing:
                for node in best[document.key]:
                    if has_image(node) == (name != "text"):
                        nodes[document.key].append(node)
                        break
            for leg, scored_leg in scored.items():
                for node, score in zip(found, scored_leg.scores, strict=True):
                    scores = exact[document_key(node, "document")]
                    scores[leg.name] = max(score, scores.get(leg.name, score))
        return exact


@contextmanager
def timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Record how long a step takes.

    Args:
        timings: seconds by step.
        step: its name.
    """
    started = time.perf_counter()
    yield
    timings[step] = time.perf_counter() - started


def _place_in_text(node: BaseNode) -> tuple[int, str]:
    return getattr(node, "start_char_idx", None) or 0, node.node_id


def _origin(document: FusedDocument, normalize: Normalize) -> dict[str, float]:
    """The parts of a document's score, under the names of ``ScoredNode``."""
    sigmas = document.normalized if normalize in {"zscore", "background"} else {}
    return {
        **document.scores,
        **{f"{name}_hub": value for name, value in document.hubs.items()},
        **{f"{name}_sigma": value for name, value in sigmas.items()},
        **{f"{name}_evidence": value for name, value in document.evidence.items()},
    }
