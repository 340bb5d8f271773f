"""What the gap report reads from a live index: vectors, pairs, queries, and scores of hits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import MetadataMode, QueryBundle
from tqdm import tqdm

from llama_index_gap.diagnosis.mitigations import FEWEST_PAIRS, Drawn, Queries, Rows
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import IntArray, VectorArray
from llama_index_gap.gap.estimates import FEWEST
from llama_index_gap.gap.neighbours import RecallComparison, compare_recall
from llama_index_gap.gap.scores import ScoreComparison, compare_scores
from llama_index_gap.modality import MODALITIES, Modality
from llama_index_gap.nodes import document_key

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.embeddings import MultiModalEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor

    from llama_index_gap.evaluation.datasets import LabelledQuery
    from llama_index_gap.evaluation.metrics import Qrels
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.nodes import ScoredNode
    from llama_index_gap.store.milvus import MilvusStore

ENOUGH = 1_000
"""Nodes to draw of the smaller side, for two halves of 500; of the larger one in proportion."""
MOST = 10_000
"""Nodes to draw of both sides together, whatever the smaller one then has."""
LEAST = 200
"""Nodes to draw of each side even so."""
MOST_QUERIES = 500
"""Labelled queries to ask."""
PARTNERS = 500
"""Images whose documents are read again: for their texts, or for their other images."""
RERANKED = 16
"""Queries whose hits a reranker scores."""
_NAMES = {"text": "texts", "image": "images"}

_Documents = dict[Modality, dict[str, str]]
"""For each side the document of each node."""


class Collector:
    """Reads from an index what is to be measured; its notes say how that was chosen."""

    def __init__(self, index: DualIndex, seed: int, show_progress: bool) -> None:
        sides = index.sides()
        self.index, self.seed, self.show_progress = index, seed, show_progress
        self.stores = {side: cast("MilvusStore", each.store) for side, each in sides.items()}
        self.text_model: BaseEmbedding = index.embed_model
        self.image_model: MultiModalEmbedding = index.image_embed_model
        self.image_query_model = index.image_query_embed_model or index.image_embed_model
        self.one_space = self.text_model is self.image_model
        self.stored: dict[Modality, int] = {side: self.stores[side].count() for side in MODALITIES}
        self.notes: list[str] = []
        if not any(self.stored.values()):
            raise InvalidValueError(
                f"{index.uri}: {index.name} is empty; put a corpus into it first"
            )
        if 0 < min(self.stored.values()) < FEWEST:
            raise InvalidValueError(
                f"{index.uri}: {index.name} holds {self.stored['text']:,} texts and "
                f"{self.stored['image']:,} images; it takes {FEWEST} of each to measure the gap "
                "between them: put more into it"
            )

    def draw(self, queries: Sequence[LabelledQuery], qrels: Qrels) -> Drawn:
        """Draw nodes of both collections, and all that are relevant to a query."""
        unjudged = [query.id for query in queries if query.id not in qrels]
        if unjudged:
            raise InvalidValueError(
                f"no judgement for query {unjudged[0]!r}; qrels must have every query"
            )
        asking = self._asking(queries)
        documents = self._sample()
        drawn = _all(documents)
        relevant = {
            each for query in asking for each, grade in qrels[query.id].items() if grade > 0
        }
        self._add_relevant(documents, sorted(relevant))
        added = _all(documents) - drawn
        if missing := relevant - drawn - added:
            self.notes.append(
                f"Relevant documents that are not in the index: {len(missing):,} of "
                f"{len(relevant):,}."
            )
        shuffled = np.random.default_rng(self.seed).permutation(sorted(drawn)).tolist()
        place = {document: i for i, document in enumerate([*shuffled, *sorted(added)])}
        nodes = {
            side: sorted(of_side.items(), key=lambda item: (place[item[1]], item[0]))
            for side, of_side in documents.items()
        }
        rows = {
            side: Rows(self._vectors(side, [node for node, _ in of_side]), [d for _, d in of_side])
            for side, of_side in nodes.items()
        }
        by_image = None
        if "image_query" in self.stores:
            by_image = self._vectors("image_query", [node for node, _ in nodes["image"]])
        return Drawn(
            texts=rows["text"],
            images=rows["image"],
            pairs=self._pairs(nodes),
            one_space=self.one_space,
            aligned=getattr(self.text_model, "aligner", None) is not None,
            queries=self._embedded(asking, qrels),
            added=frozenset(added),
            by_image=by_image,
        )

    def _sample(self) -> _Documents:
        """Nodes at random; the same ones of both sides, as far as each then has enough."""
        counts = [count for count in self.stored.values() if count]
        share = min(1.0, ENOUGH / min(counts), MOST / sum(counts))
        documents: _Documents = {}
        for side, count in self.stored.items():
            of_side = max(share, LEAST / max(count, LEAST))
            ids = self.stores[side].sample_ids(of_side, self.seed)
            documents[side] = self.stores[side].documents_of(ids)
            if len(ids) < count:
                self.notes.append(
                    f"{len(ids):,} of {count:,} {_NAMES[side]} were drawn. What is searched is "
                    "easier than the whole index: compare the ways to search, not their recall "
                    "with that of the index."
                )
        if share < 1 and len(documents["text"].keys() & documents["image"]) < 2 * FEWEST_PAIRS:
            self._add_partners(documents)
        return documents

    def _add_partners(self, documents: _Documents) -> None:
        """A text of the document of each image: by chance hardly any was drawn."""
        lonely = sorted({*documents["image"].values()} - {*documents["text"].values()})
        wanted = np.random.default_rng(self.seed).permutation(lonely)[:PARTNERS].tolist()
        if not wanted:
            return
        firsts: dict[str, str] = {}
        for node in self.stores["text"].get_nodes(ref_doc_ids=wanted):
            firsts.setdefault(str(node.ref_doc_id), node.node_id)
        documents["text"] |= {node: document for document, node in firsts.items()}
        if firsts:
            self.notes.append(
                f"{len(firsts):,} texts were added because an image of their document was drawn, "
                "so that there are pairs."
            )

    def _add_relevant(self, documents: _Documents, relevant: list[str]) -> None:
        """All nodes of documents that answer queries, where not all of a side was drawn."""
        for side in MODALITIES:
            if relevant and len(documents[side]) < self.stored[side]:
                store = self.stores[side]
                ids = [node.node_id for node in store.get_nodes(ref_doc_ids=relevant)]
                documents[side] |= store.documents_of([*ids, *relevant])

    def _vectors(self, side: str, ids: Sequence[str]) -> VectorArray:
        """Of length 1, one for each node; NaN where there is none."""
        store = self.stores[cast(Any, side)]
        found = store.get_vectors(ids)
        nothing = np.full(store.dim or 0, np.nan, dtype=np.float32)
        rows = np.array([found.get(each, nothing) for each in ids], dtype=np.float32)
        return _unit(rows.reshape(-1, store.dim or 0))

    def _pairs(self, nodes: Mapping[Modality, Sequence[tuple[str, str]]]) -> IntArray:
        """Rows of images and their captions; or else of the first of each in a document."""
        by_node, by_document = (
            {side: _first_rows(each[at] for each in of_side) for side, of_side in nodes.items()}
            for at in (0, 1)
        )
        captions = _matched(by_node)
        if len(captions) >= FEWEST:
            return captions
        pairs = _matched(by_document)
        if len(pairs):
            self.notes.append(
                "There are no captions to speak of: a pair is the first text and the first image "
                "of a document, which need not tell the same."
            )
        return pairs

    # --- the queries -----------------------------------------------------------------------------

    def _asking(self, queries: Sequence[LabelledQuery]) -> list[LabelledQuery]:
        """The labelled queries that can be measured, not too many."""
        one = [query for query in queries if not (query.text.strip() and query.image_path)]
        if len(one) < len(queries):
            self.notes.append(
                "Queries of a text and an image, which did not ask, since one mixed index has no "
                f"single vector for them: {len(queries) - len(one):,}."
            )
        asking = one[:: max(1, -(-len(one) // MOST_QUERIES))]
        if len(asking) < len(one):
            self.notes.append(
                f"{len(asking):,} of {len(one):,} labelled queries were taken, spread evenly."
            )
        return asking

    def _embedded(self, asking: Sequence[LabelledQuery], qrels: Qrels) -> dict[Modality, Queries]:
        vectors: dict[Modality, list[dict[Modality, list[float]]]] = {"text": [], "image": []}
        relevant: dict[Modality, list[Mapping[str, int]]] = {"text": [], "image": []}
        for query in tqdm(asking, desc="Asking", disable=not (self.show_progress and asking)):
            modality: Modality = "text" if query.text.strip() else "image"
            vectors[modality].append(self._embed(query))
            relevant[modality].append(qrels[query.id])
        return {
            modality: Queries(
                {side: _unit([each[side] for each in of_modality]) for side in of_modality[0]},
                relevant[modality],
            )
            for modality, of_modality in vectors.items()
            if of_modality
        }

    def _embed(self, query: LabelledQuery) -> dict[Modality, list[float]]:
        """What asks each side."""
        if query.image_path and not query.text.strip():
            image = self.image_query_model.get_image_embedding(query.image_path)
            if not self.one_space:
                return {"image": image}
            if self.image_query_model is self.image_model:
                return {"text": image, "image": image}
            return {
                "text": self.image_model.get_image_embedding(query.image_path),
                "image": image,
            }
        text = self.text_model.get_query_embedding(query.text)
        other = text if self.one_space else self.image_model.get_query_embedding(query.text)
        return {"text": text, "image": other}

    # --- what needs more than vectors ------------------------------------------------------------

    def recall_within(self, drawn: Drawn, k: int, rounds: int) -> RecallComparison | None:
        """How well images find others of their document, against the encoder of images."""
        if "image_query" not in self.stores:
            return None
        documents = sorted(set(drawn.images.documents[:PARTNERS]))
        store = self.stores["image"]
        of_node = store.documents_of(
            [node.node_id for node in store.get_nodes(ref_doc_ids=documents)]
        )
        vectors, reference = (
            self._vectors(side, list(of_node)) for side in ("image", "image_query")
        )
        there = np.isfinite(reference).all(axis=1)
        labels = np.array(list(of_node.values()))[there]
        _, counts = np.unique(labels, return_counts=True)
        if counts[counts > 1].sum() < FEWEST or len(labels) <= k:
            self.notes.append(
                "How well images find images was not measured: hardly any document has several."
            )
            return None
        return compare_recall(
            vectors[there], reference[there], labels, k, rounds=rounds, seed=self.seed
        )

    def scorers(
        self, reranker: BaseNodePostprocessor, queries: Sequence[LabelledQuery], rounds: int
    ) -> dict[str, ScoreComparison]:
        """What texts and images of the same hits get of the embedder and of a reranker."""
        asked = self._texts(queries)
        retriever = self.index.as_retriever(complete=True)  # so that both sides of a hit have one
        found: list[tuple[int, dict[str, float]]] = []
        bar = tqdm(asked, desc="Reranking", disable=not self.show_progress)
        for i, (text, document) in enumerate(bar):
            hits = [
                hit
                for hit in retriever.retrieve(text)
                if document_key(hit.node, "document") != document
            ]
            ranked = reranker.postprocess_nodes(hits, query_bundle=QueryBundle(text))
            of_documents = {document_key(hit.node, "document"): hit for hit in ranked}.values()
            found += [(i, cast("ScoredNode", hit).scores) for hit in of_documents]
        compared = {}
        for scorer, prefix in (("embedder", ""), ("reranker", "rerank_")):
            rows = {
                side: [
                    (i, scores[prefix + side])
                    for i, scores in found
                    if {side, f"rerank_{side}"} <= scores.keys()
                ]
                for side in MODALITIES
            }
            if min(map(len, rows.values())) < FEWEST:
                self.notes.append(
                    f"The reranker was not measured: {len(rows['text'])} texts and "
                    f"{len(rows['image'])} images got a score, and it takes {FEWEST} of each."
                )
                return {}
            (of_text, texts), (of_image, images) = (
                zip(*rows[side], strict=True) for side in MODALITIES
            )
            compared[scorer] = compare_scores(
                texts,
                images,
                text_queries=of_text,
                image_queries=of_image,
                rounds=rounds,
                seed=self.seed,
            )
        return compared

    def _texts(self, queries: Sequence[LabelledQuery]) -> list[tuple[str, str | None]]:
        """What a reranker is asked; of a stored text also its document."""
        labelled = [query.text for query in queries if query.text.strip() and not query.image_path]
        if labelled:
            return [(text, None) for text in labelled[:: -(-len(labelled) // RERANKED)]]
        ids = self.stores["text"].sample_ids(RERANKED / max(self.stored["text"], 1), self.seed)
        nodes = self.stores["text"].get_nodes(node_ids=ids[:RERANKED])
        self.notes.append(f"The reranker was asked with {len(nodes)} stored texts.")
        return [
            (node.get_content(MetadataMode.NONE), document_key(node, "document")) for node in nodes
        ]


def _all(documents: _Documents) -> set[str]:
    return {document for of_side in documents.values() for document in of_side.values()}


def _first_rows(keys: Iterable[str]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, row)
    return rows


def _matched(rows: Mapping[Modality, Mapping[str, int]]) -> IntArray:
    """The rows of a text and an image with the same key, shape (n, 2)."""
    pairs = [(row, rows["image"][key]) for key, row in rows["text"].items() if key in rows["image"]]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _unit(vectors: npt.ArrayLike) -> VectorArray:
    rows = np.asarray(vectors, dtype=np.float32)
    unit: VectorArray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
