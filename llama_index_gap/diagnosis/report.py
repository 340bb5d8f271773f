"""The gap report of an index: draws a sample, measures the gap, and recommends what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llama_index_gap.diagnosis.collect import Collector
from llama_index_gap.diagnosis.drawn import Drawn
from llama_index_gap.diagnosis.mitigations import (
    FEWEST_PAIRS,
    STORED,
    BeforeAfter,
    before_and_after,
    measure_drawn,
)
from llama_index_gap.diagnosis.recommendations import (
    THIN_QUERIES,
    Figures,
    Recommendation,
    recommend,
)
from llama_index_gap.gap.background import range_of_spreads
from llama_index_gap.gap.estimates import FEWEST, ROUNDS
from llama_index_gap.modality import MODALITIES, PLURAL
from llama_index_gap.progress import Progress

if TYPE_CHECKING:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor

    from llama_index_gap.evaluation.datasets import LabelledQuery
    from llama_index_gap.evaluation.metrics import Qrels
    from llama_index_gap.index.dual_index import DualIndex


@dataclass(frozen=True)
class Report:
    """The measurements of an index, and recommendations.

    Attributes:
        database: the file or URL of the database.
        name: the name of the index.
        models: the models that made its vectors.
        drawn: the numbers of ``texts``, ``images`` and ``pairs`` drawn.
        figures: the figures of the gap and of each mitigation.
        notes: how they were measured.
        recommendations: what to do.
    """

    database: str
    name: str
    models: str
    drawn: Mapping[str, int]
    figures: Figures
    notes: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything except the clouds, as plain JSON values."""
        content = asdict(self)
        for mitigation in content["figures"]["before_after"]["mitigations"].values():
            del mitigation["cloud"]
        return content


def report_gap(
    index: DualIndex,
    queries: Iterable[LabelledQuery] = (),
    qrels: Qrels | None = None,
    *,
    reranker: BaseNodePostprocessor | None = None,
    k: int = 10,
    rounds: int = ROUNDS,
    seed: int = 0,
    show_progress: bool = False,
) -> Report:
    """Measure the modality gap of an index, and the effect of each mitigation.

    Nothing is written. Of a large index, a sample is measured. It has the same nodes in both
    collections, so captions stay with their images, and modalities keep their shares.

    Args:
        index: an index with at least 10 texts and 10 images, or with only one modality.
        queries: labelled queries, from ``read_queries``; by default, stored vectors.
        qrels: their relevant documents.
        reranker: ``MultiModalRerank(top_n=None)``, to measure its gap too.
        k: the length of the rankings.
        rounds: the number of bootstrap rounds.
        seed: the seed of all random draws.
        show_progress: show progress bars.

    Raises:
        ValueError: the vectors are too few or too equal, or a query has no judgement.
        ImageError: a query image cannot be opened.
        StoreError: the database does not answer.
    """
    queries = list(queries)
    collector = Collector(index, seed, show_progress)
    drawn = collector.draw(queries, qrels or {})
    with Progress(desc="Measuring", unit="way", disable=not show_progress) as bar:
        before_after = before_and_after(drawn, k=k, rounds=rounds, seed=seed, progress=bar.update)
    stored = before_after.mitigations.get(STORED)
    gap = stored.gap if stored is not None else None
    if any(before_after.fitted_on.values()):  # otherwise the whole sample was measured already
        asking = drawn.queries["text"].vectors["text"] if "text" in drawn.queries else None
        gap = measure_drawn(drawn, asking, k=k, rounds=rounds, seed=seed)
    figures = Figures(
        stored=collector.stored,
        gap=gap,
        before_after=before_after,
        one_space=drawn.one_space,
        within=collector.recall_within(drawn, k, rounds),
        scorers={} if reranker is None else collector.scorers(reranker, queries, rounds),
        learnt=index.query_sample().texts,
        range_of_spreads=_range_of_spreads(drawn),
    )
    return Report(
        database=index.uri,
        name=index.name,
        models=index.models(),
        drawn=drawn.counts(),
        figures=figures,
        notes=(*collector.notes, *_notes(drawn, before_after)),
        recommendations=tuple(recommend(figures)),
    )


def _range_of_spreads(drawn: Drawn) -> float | None:
    """How much the legs' spreads vary among labelled text queries, if there are enough."""
    asking = drawn.queries.get("text")
    if asking is None or asking.relevant is None or len(asking) < THIN_QUERIES:
        return None
    if not (len(drawn.texts) and len(drawn.images)):
        return None
    return range_of_spreads(
        *(asking.vectors[each] @ drawn.of(each).vectors.T for each in MODALITIES)
    )


def _notes(drawn: Drawn, found: BeforeAfter) -> list[str]:
    """Notes on the queries and on what was searched."""
    notes = []
    for modality, count in found.queries.items():
        if modality in found.labelled:
            notes.append(f"Labelled {modality} queries: {count:,}.")
        else:
            notes.append(
                f"There are no labelled {modality} queries. {count:,} stored {PLURAL[modality]} "
                "stood in for them, without finding themselves. Real queries may differ."
            )
    if found.left_out:
        notes.append(
            "Labelled queries left out, since none of their relevant documents was searched: "
            f"{found.left_out:,}."
        )
    fitted, corpus = found.fitted_on, found.corpus
    if fitted["texts"]:
        notes.append(
            f"Aligners were fitted on one half of the documents ({fitted['texts']:,} texts, "
            f"{fitted['images']:,} images, {fitted['pairs']:,} pairs). The other half was searched "
            f"({corpus['texts']:,} texts, {corpus['images']:,} images)."
        )
        if fitted["pairs"] < FEWEST_PAIRS:
            notes.append(
                f"No linear map was fitted: it needs {FEWEST_PAIRS} pairs of a text and its image, "
                f"and there were {fitted['pairs']}."
            )
    elif drawn.aligned:
        notes.append(
            "The model's aligner has already moved the stored vectors, so no other was fitted."
        )
    elif drawn.one_space and len(drawn.texts) and len(drawn.images):
        notes.append(
            f"No aligner was fitted: each half of the documents needs {FEWEST} texts and {FEWEST} "
            "images."
        )
    return notes
