"""A hand-made result of an experiment, with its data set."""

from __future__ import annotations

from typing import Any

from llama_index.core.schema import ImageNode, NodeRelationship, RelatedNodeInfo, TextNode

from llama_index_gap.evaluation.datasets import Dataset, LabelledQuery
from llama_index_gap.evaluation.experiment_result import (
    ExperimentResult,
    MethodResult,
    OwnModality,
)
from llama_index_gap.evaluation.metrics import Comparison
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.readers.corpus import Corpus


def method(name: str, recall: float, comparison: Comparison | None = None) -> MethodResult:
    metrics = {
        "recall@10": Estimate(recall, recall - 0.1, recall + 0.1),
        "ndcg@10": Estimate(0.2, 0.1, 0.3),
        "mrr@10": Estimate(0.3, 0.2, 0.4),
    }
    return MethodResult(
        name=name,
        reranked=name.endswith("reranked"),
        metrics=metrics,
        by_kind={"headline": metrics, "image": metrics},
        against_default={}
        if comparison is None
        else {"recall@10": comparison, "ndcg@10": Comparison(Estimate(0.02, 0.01, 0.03), 0.004)},
    )


def result(**changes: Any) -> ExperimentResult:
    settings: dict[str, Any] = {
        "dataset": "ten",
        "models": "DualEncoderEmbedding('clip')",
        "reranker": None,
        "documents": 1234,
        "rows": {"text": 1234, "image": 1000},
        "queries": 4,
        "kinds": {"headline": ["1", "2"], "image": ["3", "4"]},
        "methods": [
            method("32 by text", 0.25, Comparison(Estimate(-0.25, -0.3, -0.2), 0.002)),
            method("16+16, RRF", 0.45, Comparison(Estimate(-0.05, -0.1, 0.05), 0.2)),
            method("16+16, default", 0.5),
        ],
        "legs": {"text_to_text": Estimate(0.25, 0.2, 0.3)},
        "own_modality": [OwnModality("text", Estimate(0.97, 0.9, 1), 0.5, 4)],
        "failed": {},
        "notes": ("something to know",),
        # The right answers are a for 1, b for 2 and 3, and c or d for 4.
        "runs": {
            "32 by text": {"1": ["a"], "2": ["a"], "3": ["a", "b"], "4": []},
            "16+16, RRF": {"1": ["a"], "2": ["c", "b"], "3": ["a"], "4": ["d"]},
            "16+16, default": {"1": ["a", "b"], "2": ["b"], "3": ["a"], "4": ["c"]},
        },
        "qrels": {"1": {"a": 3, "b": 2}, "2": {"b": 3}, "3": {"b": 3}, "4": {"c": 3, "d": 3}},
        "relevant_from": 3,
    }
    return ExperimentResult(**settings | changes)


def dataset(words: str = "words of {}", image: str | None = None) -> Dataset:
    nodes = []
    for document in "abcd":
        source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
        nodes.append(TextNode(text=words.format(document), relationships=source))
        nodes.append(ImageNode(image_path=image, relationships=source))
    nodes[0].metadata["title"] = "The title of a"
    queries = [
        LabelledQuery(number, words.format(f"query {number}"), kind=kind)
        for number, kind in zip("1234", ["headline"] * 2 + ["image"] * 2, strict=True)
    ]
    return Dataset("ten", Corpus(nodes, []), queries, result().qrels, 3)
