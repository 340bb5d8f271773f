"""The gap report of an index: what is drawn from it, what is measured, and what to do."""

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
    """What was measured of an index, and what to do.

    Attributes:
        database: file or address.
        name: of the index.
        models: the models that made its vectors.
        drawn: how many ``texts``, ``images`` and ``pairs`` were drawn.
        figures: of the gap and of each mitigation.
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
        """Everything but the clouds, as JSON."""
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
    """Measure the modality gap of an index, and what each mitigation would bring.

    Nothing is written. A sample of a large index is measured. It has the same nodes from each
    collection, so captions stay with their images, and modalities keep their shares.

    Args:
        index: with at least 10 texts and 10 images, or with one modality only.
        queries: labelled ones, as ``read_queries`` gives them; by default, stored vectors.
        qrels: their relevant documents.
        reranker: ``MultiModalRerank(top_n=None)``, to measure its own gap.
        k: places of a ranking.
        rounds: of the bootstrap.
        seed: of all that is drawn.
        show_progress: show progress bars.

    Raises:
        ValueError: the index has too few vectors, or too equal ones, or a query has no judgement.
        ImageError: a query's image cannot be opened.
        StoreError: the database does not answer.
    """
    queries = list(queries)
    collector = Collector(index, seed, show_progress)
    drawn = collector.draw(queries, qrels or {})
    with Progress(desc="Measuring", unit="way", disable=not show_progress) as bar:
        before_after = before_and_after(drawn, k=k, rounds=rounds, seed=seed, progress=bar.update)
    stored = before_after.mitigations.get(STORED)
    gap = stored.gap if stored is not None else None
    if any(before_after.fitted_on.values()):  # else all that was drawn was searched
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
    """How much the spreads of the legs differ among labelled text queries, if there are enough."""
    asking = drawn.queries.get("text")
    if asking is None or asking.relevant is None or len(asking) < THIN_QUERIES:
        return None
    if not (len(drawn.texts) and len(drawn.images)):
        return None
    return range_of_spreads(
        *(asking.vectors[each] @ drawn.of(each).vectors.T for each in MODALITIES)
    )


def _notes(drawn: Drawn, found: BeforeAfter) -> list[str]:
    """Which queries there were, and what was searched."""
    notes = []
    for modality, count in found.queries.items():
        if modality in found.labelled:
            notes.append(f"Labelled {modality} queries: {count:,}.")
        else:
            notes.append(
                f"There are no labelled {modality} queries: {count:,} stored {PLURAL[modality]} "
                "stood in for them, and did not find themselves. Real queries may differ from them."
            )
    if found.left_out:
        notes.append(
            "Labelled queries that were left out, since none of their relevant documents is among "
            f"those that were searched: {found.left_out:,}."
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
                f"No linear map was fitted: it takes {FEWEST_PAIRS} pairs of a text and its image, "
                f"and there were {fitted['pairs']}."
            )
    elif drawn.aligned:
        notes.append(
            "The model's own aligner has already moved the stored vectors, so no other aligner was "
            "fitted."
        )
    elif drawn.one_space and len(drawn.texts) and len(drawn.images):
        notes.append(
            f"No aligner was fitted: it takes {FEWEST} texts and {FEWEST} images in each half of "
            "the documents."
        )
    return notes
