"""Reads from an index what the gap report needs: vectors, pairs, queries, and scores of hits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from llama_index.core.schema import MetadataMode, QueryBundle

from llama_index_gap.diagnosis.drawn import Drawn, Queries, Rows
from llama_index_gap.diagnosis.mitigations import FEWEST_PAIRS
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import IntArray, VectorArray, unit_rows
from llama_index_gap.gap.estimates import FEWEST
from llama_index_gap.gap.neighbours import RecallComparison, compare_recall
from llama_index_gap.gap.scores import ScoreComparison, compare_scores
from llama_index_gap.modality import MODALITIES, PLURAL, Modality
from llama_index_gap.nodes import document_key
from llama_index_gap.progress import Progress

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
"""Nodes to draw from the smaller collection, for two halves of 500; more from the larger."""
MOST = 10_000
"""The most nodes to draw from both collections together, even if this leaves fewer than ENOUGH."""
LEAST = 200
"""The fewest nodes to draw from each collection, even beyond MOST."""
MOST_QUERIES = 500
"""The most labelled queries to use."""
PARTNERS = 500
"""Images whose documents are read, for their texts or their other images."""
RERANKED = 16
"""Queries whose hits a reranker scores."""

_Documents = dict[Modality, dict[str, str]]
"""For each modality, the document of each node."""


class Collector:
    """Reads the data to measure from an index; its notes say how the data was chosen."""

    def __init__(self, index: DualIndex, seed: int, show_progress: bool) -> None:
        collections = index.collections()
        self.index, self.seed, self.show_progress = index, seed, show_progress
        self.stores: dict[str, MilvusStore] = {
            name: cast("MilvusStore", each.store) for name, each in collections.items()
        }
        self.text_model: BaseEmbedding = index.embed_model
        self.image_model: MultiModalEmbedding = index.image_embed_model
        self.image_query_model = index.image_query_embed_model or index.image_embed_model
        self.one_space = self.text_model is self.image_model
        self.stored: dict[Modality, int] = {name: self.stores[name].count() for name in MODALITIES}
        self.notes: list[str] = []
        if not any(self.stored.values()):
            raise InvalidValueError(
                f"{index.uri}: {index.name} is empty; put a corpus into it first"
            )
        if 0 < min(self.stored.values()) < FEWEST:
            raise InvalidValueError(
                f"{index.uri}: {index.name} has {self.stored['text']:,} texts and "
                f"{self.stored['image']:,} images; measuring the gap takes {FEWEST} of each: put "
                "more into it"
            )

    def draw(self, queries: Sequence[LabelledQuery], qrels: Qrels) -> Drawn:
        """Draw nodes from both collections, and add all that are relevant to a query."""
        unjudged = [query.id for query in queries if query.id not in qrels]
        if unjudged:
            raise InvalidValueError(
                f"no judgement for query {unjudged[0]!r}; qrels must have every query"
            )
        asking = self._asking(queries)
        documents = self._sample()
        drawn = {each for of_modality in documents.values() for each in of_modality.values()}
        relevant = {
            each for query in asking for each, grade in qrels[query.id].items() if grade > 0
        }
        for modality, of_modality in documents.items():
            if relevant and len(of_modality) < self.stored[modality]:
                store = self.stores[modality]
                ids = [node.node_id for node in store.get_nodes(ref_doc_ids=sorted(relevant))]
                of_modality.update(store.documents_of([*ids, *sorted(relevant)]))
        added = {each for found in documents.values() for each in found.values()} - drawn
        if missing := relevant - drawn - added:
            self.notes.append(
                f"Relevant documents that are not in the index: {len(missing):,} of "
                f"{len(relevant):,}."
            )
        shuffled = np.random.default_rng(self.seed).permutation(sorted(drawn)).tolist()
        place = {document: i for i, document in enumerate([*shuffled, *sorted(added)])}
        nodes = {
            modality: sorted(found.items(), key=lambda item: (place[item[1]], item[0]))
            for modality, found in documents.items()
        }
        ids_of = {modality: [node for node, _ in found] for modality, found in nodes.items()}
        texts, images = (
            Rows(self._vectors(modality, ids_of[modality]), [d for _, d in nodes[modality]])
            for modality in MODALITIES
        )
        return Drawn(
            texts=texts,
            images=images,
            pairs=self._pairs(nodes),
            one_space=self.one_space,
            aligned=getattr(self.text_model, "aligner", None) is not None,
            queries=self._embedded(asking, qrels),
            added=frozenset(added),
            by_image=self._vectors("image_query", ids_of["image"])
            if "image_query" in self.stores
            else None,
        )

    def _sample(self) -> _Documents:
        """Random nodes; the same ones in both modalities, if that gives enough of each."""
        counts = [count for count in self.stored.values() if count]
        share = min(1.0, ENOUGH / min(counts), MOST / sum(counts))
        documents: _Documents = {}
        for modality, count in self.stored.items():
            ids = self.stores[modality].sample_ids(max(share, LEAST / max(count, LEAST)), self.seed)
            documents[modality] = self.stores[modality].documents_of(ids)
            if len(ids) < count:
                self.notes.append(
                    f"The sample has {len(ids):,} of {count:,} {PLURAL[modality]}. Searching it is "
                    "easier than searching the whole index. So compare the methods with each "
                    "other, not their recall with that of the whole index."
                )
        if share == 1 or len(documents["text"].keys() & documents["image"]) >= 2 * FEWEST_PAIRS:
            return documents
        # By chance, hardly any text in the sample shares its document with an image.
        lonely = sorted({*documents["image"].values()} - {*documents["text"].values()})
        wanted = np.random.default_rng(self.seed).permutation(lonely)[:PARTNERS].tolist()
        firsts: dict[str, str] = {}
        for node in self.stores["text"].get_nodes(ref_doc_ids=wanted) if wanted else ():
            firsts.setdefault(str(node.ref_doc_id), node.node_id)
        documents["text"] |= {node: document for document, node in firsts.items()}
        if firsts:
            self.notes.append(
                f"To have pairs, {len(firsts):,} texts were added whose documents have an image in "
                "the sample."
            )
        return documents

    def _vectors(self, collection: str, ids: Sequence[str]) -> VectorArray:
        """Vectors of length 1, one for each node; NaN if a node has none."""
        store = self.stores[collection]
        found = store.get_vectors(ids)
        nothing = np.full(store.dim or 0, np.nan, dtype=np.float32)
        rows = np.array([found.get(each, nothing) for each in ids], dtype=np.float32)
        return unit_rows(rows.reshape(-1, store.dim or 0))

    def _pairs(self, nodes: Mapping[Modality, Sequence[tuple[str, str]]]) -> IntArray:
        """Rows of captions and their images, or else of a document's first text and first image."""

        def matched(column: int) -> IntArray:
            """Rows of a text and an image of the same node or document, shape (n, 2)."""
            first: dict[Modality, dict[str, int]] = {"text": {}, "image": {}}
            for modality, of_modality in nodes.items():
                for row, keys in enumerate(of_modality):
                    first[modality].setdefault(keys[column], row)
            images = first["image"]
            pairs = [(row, images[key]) for key, row in first["text"].items() if key in images]
            return np.array(pairs, dtype=np.int64).reshape(-1, 2)

        captions = matched(0)
        if len(captions) >= FEWEST:
            return captions
        pairs = matched(1)
        if len(pairs):
            self.notes.append(
                "There are hardly any captions. So a pair is the first text and the first image of "
                "a document, whose contents may differ."
            )
        return pairs

    # --- the queries -----------------------------------------------------------------------------

    def _asking(self, queries: Sequence[LabelledQuery]) -> list[LabelledQuery]:
        """The labelled queries that can be measured, at most ``MOST_QUERIES``."""
        one = [query for query in queries if not (query.text.strip() and query.image_path)]
        if len(one) < len(queries):
            self.notes.append(
                "Queries with both a text and an image, left out because a mixed index needs a "
                f"single vector: {len(queries) - len(one):,}."
            )
        asking = one[:: max(1, -(-len(one) // MOST_QUERIES))]
        if len(asking) < len(one):
            self.notes.append(
                f"Labelled queries used: {len(asking):,} of {len(one):,}, spread evenly."
            )
        return asking

    def _embedded(self, asking: Sequence[LabelledQuery], qrels: Qrels) -> dict[Modality, Queries]:
        vectors: dict[Modality, list[dict[Modality, list[float]]]] = {"text": [], "image": []}
        relevant: dict[Modality, list[Mapping[str, int]]] = {"text": [], "image": []}
        for query in Progress(asking, desc="Asking", disable=not (self.show_progress and asking)):
            modality: Modality = "text" if query.text.strip() else "image"
            vectors[modality].append(self._embed(query))
            relevant[modality].append(qrels[query.id])
        return {
            modality: Queries(
                {target: unit_rows([each[target] for each in found]) for target in found[0]},
                relevant[modality],
            )
            for modality, found in vectors.items()
            if found
        }

    def _embed(self, query: LabelledQuery) -> dict[Modality, list[float]]:
        """A query's vector for each collection that it can search."""
        if query.image_path and not query.text.strip():
            image = self.image_query_model.get_image_embedding(query.image_path)
            if not self.one_space:
                return {"image": image}
            same = self.image_query_model is self.image_model
            text = image if same else self.image_model.get_image_embedding(query.image_path)
            return {"text": text, "image": image}
        text = self.text_model.get_query_embedding(query.text)
        other = text if self.one_space else self.image_model.get_query_embedding(query.text)
        return {"text": text, "image": other}

    # --- documents and rerankers -----------------------------------------------------------------

    def recall_within(self, drawn: Drawn, k: int, rounds: int) -> RecallComparison | None:
        """How well images find others of their document, by both encoders of images."""
        if "image_query" not in self.stores:
            return None
        documents = sorted(set(drawn.images.documents[:PARTNERS]))
        store = self.stores["image"]
        of_node = store.documents_of(
            [node.node_id for node in store.get_nodes(ref_doc_ids=documents)]
        )
        vectors = self._vectors("image", list(of_node))
        reference = self._vectors("image_query", list(of_node))
        present = np.isfinite(reference).all(axis=1)
        labels = np.array(list(of_node.values()))[present]
        _, counts = np.unique(labels, return_counts=True)
        if counts[counts > 1].sum() < FEWEST or len(labels) <= k:
            self.notes.append(
                "How well images find images was not measured: hardly any document has several "
                "images."
            )
            return None
        return compare_recall(
            vectors[present], reference[present], labels, k, rounds=rounds, seed=self.seed
        )

    def scorers(
        self, reranker: BaseNodePostprocessor, queries: Sequence[LabelledQuery], rounds: int
    ) -> dict[str, ScoreComparison]:
        """The scores that the embedder and a reranker give to texts and images of the same hits."""
        retriever = self.index.as_retriever(complete=True)  # documents with both text and image
        found: list[tuple[int, dict[str, float]]] = []
        bar = Progress(self._texts(queries), desc="Reranking", disable=not self.show_progress)
        for i, (text, document) in enumerate(bar):
            hits = [
                hit
                for hit in retriever.retrieve(text)
                if document_key(hit.node, "document") != document
            ]
            ranked = reranker.postprocess_nodes(hits, query_bundle=QueryBundle(text))
            of_documents = {document_key(hit.node, "document"): hit for hit in ranked}.values()
            found += [(i, cast("ScoredNode", hit).scores) for hit in of_documents]
        of_queries, of_hits = {}, {}
        for modality in MODALITIES:
            scored = [(i, s) for i, s in found if {modality, f"rerank_{modality}"} <= s.keys()]
            of_queries[modality] = [i for i, _ in scored]
            of_hits[modality] = [scores for _, scores in scored]
        if min(map(len, of_hits.values())) < FEWEST:
            self.notes.append(
                f"The reranker was not measured: {len(of_hits['text'])} texts and "
                f"{len(of_hits['image'])} images got a score, and {FEWEST} of each are needed."
            )
            return {}
        return {
            scorer: compare_scores(
                [scores[f"{prefix}text"] for scores in of_hits["text"]],
                [scores[f"{prefix}image"] for scores in of_hits["image"]],
                text_queries=of_queries["text"],
                image_queries=of_queries["image"],
                rounds=rounds,
                seed=self.seed,
            )
            for scorer, prefix in (("embedder", ""), ("reranker", "rerank_"))
        }

    def _texts(self, queries: Sequence[LabelledQuery]) -> list[tuple[str, str | None]]:
        """Queries for a reranker; a stored text with its document."""
        labelled = [query.text for query in queries if query.text.strip() and not query.image_path]
        if labelled:
            return [(text, None) for text in labelled[:: -(-len(labelled) // RERANKED)]]
        ids = self.stores["text"].sample_ids(RERANKED / max(self.stored["text"], 1), self.seed)
        nodes = self.stores["text"].get_nodes(node_ids=ids[:RERANKED])
        self.notes.append(f"The reranker's queries were {len(nodes)} stored texts.")
        return [
            (node.get_content(MetadataMode.NONE), document_key(node, "document")) for node in nodes
        ]
