"""Tries what learning from queries would gain: each half is judged with the other as sample."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.evaluation.datasets import LabelledQuery
from llama_index_gap.evaluation.metrics import Qrels, compare, judge
from llama_index_gap.index.queries import FEWEST_QUERIES, MOST_QUERIES
from llama_index_gap.search.retriever import DualIndexRetriever

if TYPE_CHECKING:
    from llama_index_gap.index.dual_index import DualIndex


class SampleTrial:
    """Searches with a sample of queries that never contains the query itself.

    The text queries are split into two halves. Each half is searched as if the index had learnt
    from the other. Nothing is written, and no judgement is used.

    Args:
        index: an index that has learnt from no text queries.
        queries: the labelled queries; image queries are left out, and too few texts are not tried.
        settings: settings of the retriever.
    """

    def __init__(
        self, index: DualIndex, queries: Sequence[LabelledQuery], settings: Mapping[str, Any]
    ) -> None:
        self._index, self._settings = index, settings
        texts = list(dict.fromkeys(query.text.strip() for query in queries if not query.image_path))
        if len(texts) > (most := 2 * MOST_QUERIES):
            texts = [texts[int(place * len(texts) / most)] for place in range(most)]
        enough = len(texts) >= 2 * FEWEST_QUERIES
        self._halves = (texts[::2], texts[1::2]) if enough else ((), ())
        self._half = {text: number for number, half in enumerate(self._halves) for text in half}
        self._known = hashlib.sha256(json.dumps(self._halves).encode()).hexdigest()[:16]
        self._retriever = cache(self._made)

    def asks(self, query: LabelledQuery) -> bool:
        """Whether a query is tried."""
        return not query.image_path and query.text.strip() in self._half

    def key(self, query: LabelledQuery) -> str:
        """The key of a query's record in the results cache; changes with the sample."""
        return json.dumps(["sample", self._known, query.text])

    def found(self, query: LabelledQuery) -> list[BaseNode] | None:
        """What the index finds with the other half as its sample; None if that half is too small.

        Args:
            query: a query that is tried.
        """
        retriever = self._retriever(1 - self._half[query.text.strip()])
        if retriever is None:
            return None
        return [hit.node for hit in retriever.retrieve(query.bundle)]

    def _made(self, half: int) -> DualIndexRetriever | None:
        try:
            collections = self._index.as_if_learnt(self._halves[half])
        except InvalidValueError:  # too few of them could be embedded
            return None
        return DualIndexRetriever(collections, **self._settings)


def trial_in_words(
    default: Mapping[str, Sequence[str]],
    sampled: Mapping[str, Sequence[str]],
    qrels: Qrels,
    relevant_from: int,
) -> str:
    """The gain from a sample of queries, in words.

    Args:
        default: what was found without a sample, by query.
        sampled: what was found with a sample, for the queries that were tried.
        qrels: the judgements.
        relevant_from: the lowest grade that counts as relevant.
    """
    how = "let it learn from 100 to 300 queries that are not judged: llama-gap learn"
    asked = {query: grades for query, grades in qrels.items() if query in sampled}
    if len(asked) < FEWEST_QUERIES:
        return f"the index has learnt from no queries; {how}"
    before, after = (
        judge(run, asked, ["ndcg@10"], relevant_from=relevant_from)["ndcg@10"]
        for run in (default, sampled)
    )
    found = compare(before, after)
    gain = found.difference
    return (
        f"the index has learnt from no queries. With a sample of them, nDCG@10 of the default is "
        f"{after.mean():.3f} instead of {before.mean():.3f} ({gain.value:+.3f}, {gain.low:+.3f} "
        f"to {gain.high:+.3f}, {found.verdict}) on {len(asked):,} text queries, where each half "
        f"was searched with the other half as its sample; {how}"
    ).replace("-0.", "−0.")
