"""Queries on which methods differ: what each put first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llama_index.core.schema import BaseNode, ImageNode, MetadataMode

from llama_index_gap.evaluation.datasets import Dataset, LabelledQuery
from llama_index_gap.evaluation.experiment import ExperimentResult
from llama_index_gap.nodes import document_key
from llama_index_gap.text import excerpt

_LONGEST_TITLE = 150


@dataclass(frozen=True)
class FirstPlace:
    """A document that methods put first.

    Attributes:
        methods: their names.
        document: its id; empty where they found nothing.
        title: its title, or else how its text begins.
        image: its first image; None if it has none.
        right: whether it is relevant.
    """

    methods: list[str]
    document: str
    title: str
    image: ImageNode | None
    right: bool


@dataclass(frozen=True)
class Example:
    """A query, and what was put first.

    Attributes:
        query: the query.
        kind: as in ``ExperimentResult.kinds``; None where all are alike.
        first: each document once, right ones before wrong ones.
    """

    query: LabelledQuery
    kind: str | None
    first: list[FirstPlace]


def pick_examples(
    result: ExperimentResult,
    dataset: Dataset,
    number: int = 6,
    *,
    between: Collection[str] | None = None,
) -> list[Example]:
    """The first queries of each kind on which some methods are right and others wrong.

    So they show where each fails, whichever it is, and not how often.

    Args:
        result: of the data set.
        dataset: what was asked.
        number: how many, shared among the kinds; fewer where the methods differ on fewer.
        between: names of the methods that have to differ; by default any do.
    """
    nodes: dict[str, list[BaseNode]] = defaultdict(list)
    for node in dataset.corpus.nodes:
        nodes[document_key(node, "document")].append(node)
    queries = {query.id: query for query in dataset.queries}
    kinds: list[tuple[str | None, list[str]]] = [*result.kinds.items()]
    examples = []
    kinds = kinds or [(None, list(result.qrels))]
    for kind, of_kind in kinds:
        differing = (query for query in of_kind if _differ(_verdicts(result, query), between))
        for _, query in zip(range(-(-number // len(kinds))), differing, strict=False):
            examples.append(Example(queries[query], kind, _first(result, query, nodes)))
    return examples


def _differ(verdicts: Mapping[str, bool], between: Collection[str] | None) -> bool:
    names = verdicts if between is None else between
    return len({verdicts[name] for name in names}) == 2


def _verdicts(result: ExperimentResult, query: str) -> dict[str, bool]:
    """Whether what each method put first is relevant."""
    grades = result.qrels[query]
    return {
        name: bool(run[query]) and grades.get(run[query][0], 0) >= result.relevant_from
        for name, run in result.runs.items()
    }


def _first(
    result: ExperimentResult, query: str, nodes: Mapping[str, Sequence[BaseNode]]
) -> list[FirstPlace]:
    methods: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for name, right in _verdicts(result, query).items():
        document = next(iter(result.runs[name][query]), "")
        methods[document, right].append(name)
    places = []
    for (document, right), names in methods.items():
        of_document = nodes.get(document, [])
        image = next((node for node in of_document if isinstance(node, ImageNode)), None)
        places.append(FirstPlace(names, document, _title(document, of_document), image, right))
    return sorted(places, key=lambda place: not place.right)


def _title(document: str, nodes: Sequence[BaseNode]) -> str:
    """A document's title, or how its first text begins, or its id."""
    titles = [str(node.metadata["title"]) for node in nodes if node.metadata.get("title")]
    texts = [node.get_content(MetadataMode.NONE) for node in nodes]
    shown = next((words for words in [*titles, *texts] if words.strip()), document)
    return excerpt(shown, _LONGEST_TITLE)
