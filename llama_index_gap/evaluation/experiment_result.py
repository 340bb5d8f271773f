"""The results of an experiment as plain data, which can be written as JSON or TREC files."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llama_index_gap.evaluation.metrics import Comparison, Qrels
from llama_index_gap.evaluation.trec import write_qrels, write_run
from llama_index_gap.gap.estimates import Estimate
from llama_index_gap.search.first_stage import FirstStage


@dataclass(frozen=True)
class MethodResult:
    """The figures of one method.

    Attributes:
        name: as in ``FIRST_STAGE`` or ``RERANKED``; or ``BOTH_STAGES`` or ``BOTH_LEARNT``.
        reranked: whether a reranker had a part in it.
        metrics: over all queries, by metric.
        by_kind: over the queries of each kind, by kind and metric.
        against_default: by metric, the difference from ``DEFAULT``, or for a reranked method from
            ``DEFAULT_RERANKED``; empty for these two themselves.
    """

    name: str
    reranked: bool
    metrics: dict[str, Estimate]
    by_kind: dict[str, dict[str, Estimate]]
    against_default: dict[str, Comparison]


@dataclass(frozen=True)
class OwnModality:
    """How far one mixed index prefers the query's own modality.

    Li et al. call it the intra-modal bias rate (arXiv 2507.19054).

    Attributes:
        modality: the modality of the queries.
        share: the share of this modality among the 10 hits with the highest raw scores.
        corpus_share: the share of this modality among all rows.
        queries: the number of queries measured.
    """

    modality: str
    share: Estimate
    corpus_share: float
    queries: int


@dataclass(frozen=True)
class ExperimentResult:
    """The results of an experiment.

    Attributes:
        dataset: the name of the data set.
        models: the index's models; of a local folder, only its name.
        reranker: the name of the reranker's model, likewise; None if there is none.
        documents: the number of documents in the data set.
        rows: the number of rows in each collection of the index.
        queries: the number of queries judged.
        kinds: the queries of each kind; empty if there is only one kind.
        methods: the figures of each method, those of ``FIRST_STAGE`` first.
        legs: recall@10 of each leg alone, by pair of modalities, such as ``text_to_image``.
        own_modality: which modality one mixed index prefers; empty if the legs share no space.
        failed: why queries could not be answered, by query id; these queries are not counted.
        notes: what a reader of the figures should know.
        runs: the documents found, best first, by method and query.
        qrels: the judgements of these queries.
        relevant_from: the lowest grade that counts as relevant.
        first_stage: what the first stage should count beside the reranker, if that was learnt.
    """

    dataset: str
    models: str
    reranker: str | None
    documents: int
    rows: dict[str, int]
    queries: int
    kinds: dict[str, list[str]]
    methods: list[MethodResult]
    legs: dict[str, Estimate]
    own_modality: list[OwnModality]
    failed: dict[str, str]
    notes: tuple[str, ...]
    runs: dict[str, dict[str, list[str]]]
    qrels: Qrels
    relevant_from: int
    first_stage: FirstStage | None = None

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON values; ``write_runs`` writes the rankings."""
        fields = asdict(replace(self, runs={}, qrels={}))
        del fields["runs"], fields["qrels"]
        return {**fields, "kinds": {kind: len(queries) for kind, queries in self.kinds.items()}}

    def write_runs(self, folder: str | Path) -> None:
        """Write each method's rankings, and ``qrels.txt``, in TREC's formats.

        Raises:
            ValueError: an id is empty or contains white space.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_qrels(self.qrels, folder / "qrels.txt")
        for name, run in self.runs.items():
            tag = re.sub(r"[^a-z0-9]+", "-", name.lower())
            write_run(run, folder / f"{tag}.run", tag=tag)
