"""Example queries on which methods differ, with the document that each method ranked first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llama_index.core.schema import BaseNode, ImageNode, MetadataMode

from llama_index_gap.evaluation.datasets import Dataset, LabelledQuery
from llama_index_gap.evaluation.experiment_result import ExperimentResult
from llama_index_gap.nodes import document_key
from llama_index_gap.text import excerpt

_LONGEST_TITLE = 150


@dataclass(frozen=True)
class FirstPlace:
    """A document that some methods ranked first.

    Attributes:
        methods: the names of these methods.
        document: the id of the document; empty if they found nothing.
        title: its title, or else the beginning of its text.
        image: its first image, if any.
        right: whether it is relevant.
    """

    methods: list[str]
    document: str
    title: str
    image: ImageNode | None
    right: bool


@dataclass(frozen=True)
class Example:
    """A query, and the documents ranked first for it.

    Attributes:
        query: the query.
        kind: its kind, as in ``ExperimentResult.kinds``; None if there is only one kind.
        first: the documents, each once, right ones before wrong ones.
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
    """Pick the first queries of each kind that some methods get right and others wrong.

    They show how methods fail, not how often.

    Args:
        result: the results of an experiment on the data set.
        dataset: the queries and documents.
        number: the number of examples, shared among the kinds; fewer if methods differ on fewer.
        between: the names of the methods that must differ; by default any.
    """
    nodes: dict[str, list[BaseNode]] = defaultdict(list)
    for node in dataset.corpus.nodes:
        nodes[document_key(node, "document")].append(node)
    queries = {query.id: query for query in dataset.queries}
    kinds: list[tuple[str | None, list[str]]] = [*result.kinds.items()]
    kinds = kinds or [(None, list(result.qrels))]
    wanted = -(-number // len(kinds))  # rounded up
    examples = []
    for kind, of_kind in kinds:
        picked: list[Example] = []
        for query in of_kind:
            if len(picked) == wanted:
                break
            first = _first_places(result, query, nodes)
            verdicts = {
                place.right
                for place in first
                if between is None or not set(between).isdisjoint(place.methods)
            }
            if len(verdicts) == 2:
                picked.append(Example(queries[query], kind, first))
        examples += picked
    return examples


def _first_places(
    result: ExperimentResult, query: str, nodes: Mapping[str, Sequence[BaseNode]]
) -> list[FirstPlace]:
    methods: dict[str, list[str]] = defaultdict(list)
    for name, run in result.runs.items():
        methods[next(iter(run[query]), "")].append(name)
    places = []
    for document, names in methods.items():
        right = result.qrels[query].get(document, 0) >= result.relevant_from
        of_document = nodes.get(document, [])
        image = next((node for node in of_document if isinstance(node, ImageNode)), None)
        titles = [str(node.metadata.get("title") or "") for node in of_document]
        texts = [node.get_content(MetadataMode.NONE) for node in of_document]
        title = next((words for words in [*titles, *texts] if words.strip()), document)
        places.append(FirstPlace(names, document, excerpt(title, _LONGEST_TITLE), image, right))
    return sorted(places, key=lambda place: not place.right)
