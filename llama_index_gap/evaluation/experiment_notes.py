"""Notes of an experiment on the size of its corpus and of its index."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

from llama_index.core.schema import BaseNode, ImageNode

from llama_index_gap.evaluation.datasets import Dataset
from llama_index_gap.index.fitting import parts_of
from llama_index_gap.modality import MODALITIES, PLURAL, Modality

_TOP = 10


def notes_on_size(
    dataset: Dataset,
    rows: Mapping[str, int],
    existing: Callable[[Modality, Iterable[str]], Collection[str]],
) -> list[str]:
    """Explain why an index has more or fewer rows than a data set, and how few documents there are.

    Args:
        dataset: the data set.
        rows: the number of the index's rows of each modality.
        existing: returns which of some node ids the index has in this modality's collection.
    """
    nodes = dataset.corpus.nodes
    expected: dict[Modality, list[BaseNode]] = {
        "text": [node for node in nodes if getattr(node, "text", "").strip()],
        "image": [node for node in nodes if isinstance(node, ImageNode)],
    }
    notes = []
    others = 0
    for name in MODALITIES:
        if rows[name] != len(expected[name]):
            reasons, of_others = _why(expected[name], rows[name], partial(existing, name))
            others += of_others
            notes.append(
                f"the index has {rows[name]:,} {PLURAL[name]}, the data set "
                f"{len(expected[name]):,}: {'; '.join(reasons)}"
            )
    documents = len(dataset.corpus.document_ids)
    if documents <= _TOP and not others:
        named = "1 document" if documents == 1 else f"{documents} documents"
        notes.append(f"recall@10 says little with {named}: compare nDCG@10")
    return notes


def _why(
    nodes: Iterable[BaseNode], rows: int, existing: Callable[[Iterable[str]], Collection[str]]
) -> tuple[list[str], int]:
    """Why an index has another number of rows than these nodes, and its rows of other documents."""
    ids = {node.node_id for node in nodes}
    parts = parts_of(ids, lambda asked: set(existing(asked))) - ids
    here = existing(ids)
    others = max(rows - len(here) - len(parts), 0)
    reasons = []
    if parts:
        reasons.append("long texts were split into parts")
    if others:
        reasons.append(f"{others:,} from other documents")
    if missing := len(ids) - len(here):
        reasons.append(f"{missing:,} of the data set not in the index")
    return reasons or ["the data set has some of them twice"], others
