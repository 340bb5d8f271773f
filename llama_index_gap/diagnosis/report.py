"""The gap report of a live index: what is drawn from it, what is measured, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llama_index_gap.diagnosis.collect import Collector
from llama_index_gap.diagnosis.mitigations import (
    FEWEST_PAIRS,
    STORED,
    BeforeAfter,
    Drawn,
    before_and_after,
    measure_drawn,
)
from llama_index_gap.diagnosis.recommendations import Figures, Recommendation, recommend
from llama_index_gap.gap.measure import FEWEST, ROUNDS

if TYPE_CHECKING:
    from llama_index.core.postprocessor.types import BaseNodePostprocessor

    from llama_index_gap.evaluation.datasets import LabelledQuery
    from llama_index_gap.evaluation.metrics import Qrels
    from llama_index_gap.index.dual_index import DualIndex

_NAMES = {"text": "texts", "image": "images"}


@dataclass(frozen=True)
class Report:
    """What was measured of an index, and what to do.

    Attributes:
        database: file or address.
        name: of the index.
        models: what its vectors were made with.
        drawn: how many ``texts``, ``images`` and ``pairs`` of them were drawn.
        figures: what was measured.
        notes: what a reader of the figures should know.
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
        """Everything as JSON knows it, but for the clouds, which are there to be drawn."""
        content = asdict(self)
        for mitigation in content["figures"]["before_after"]["mitigations"].values():
            del mitigation["cloud"]
        return content


def report_gap(
    index: DualIndex,
    queries: Sequence[LabelledQuery] = (),
    qrels: Qrels | None = None,
    *,
    reranker: BaseNodePostprocessor | None = None,
    k: int = 10,
    rounds: int = ROUNDS,
    seed: int = 0,
    show_progress: bool = False,
) -> Report:
    """Measure the modality gap of an index, and what each mitigation would bring there.

    Nothing is written. Of a large index a part is drawn: from each collection the same nodes, so
    that captions stay with their images, and modalities keep their shares.

    Args:
        index: at least 10 texts and 10 images, or one of them only.
        queries: labelled ones, as ``read_queries`` gives them; without, stored vectors ask.
        qrels: their relevant documents.
        reranker: one whose own gap is to be measured: ``MultiModalRerank(top_n=None)``.
        k: places of a ranking.
        rounds: of the bootstrap.
        seed: of all that is drawn.
        show_progress: show progress bars.

    Raises:
        ValueError: there is too little to measure, vectors are too equal for it, or a query has no
            judgement.
        ImageError: a query's image cannot be opened.
        StoreError: the database does not answer.
    """
    collector = Collector(index, seed, show_progress)
    drawn = collector.draw(queries, qrels or {})
    with tqdm(desc="Measuring", unit="way", disable=not show_progress) as bar:
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


def _notes(drawn: Drawn, found: BeforeAfter) -> list[str]:
    """Who asked, and what was searched."""
    notes = []
    for side, count in found.queries.items():
        kind = _NAMES[side].removesuffix("s")
        if side in found.labelled:
            notes.append(f"Labelled {kind} queries that asked: {count:,}.")
        else:
            notes.append(
                f"No labelled {kind} queries asked: {count:,} stored {_NAMES[side]} stood in for "
                "them, each asking for what else there is. Real queries may read differently."
            )
    if found.left_out:
        notes.append(
            "Labelled queries that did not ask, since none of their relevant documents is among "
            f"those that were searched: {found.left_out:,}."
        )
    fitted, corpus = found.fitted_on, found.corpus
    if fitted["texts"]:
        notes.append(
            f"Aligners were fitted on one half of the documents ({fitted['texts']:,} texts, "
            f"{fitted['images']:,} images, {fitted['pairs']:,} pairs); everything was searched "
            f"in the other half ({corpus['texts']:,} texts, {corpus['images']:,} images)."
        )
    elif drawn.aligned:
        notes.append(
            "The model moves its vectors by an aligner already, so that what is stored comes after "
            "that mitigation; no other was fitted on top of it."
        )
    elif drawn.one_space and len(drawn.texts) and len(drawn.images):
        notes.append(
            f"No aligner was fitted: it takes {FEWEST} texts and {FEWEST} images in each half of "
            "the documents."
        )
    if fitted["texts"] and fitted["pairs"] < FEWEST_PAIRS:
        notes.append(
            f"No linear map was fitted: it takes {FEWEST_PAIRS} pairs of a text and its image, "
            f"and there were {fitted['pairs']}."
        )
    return notes
