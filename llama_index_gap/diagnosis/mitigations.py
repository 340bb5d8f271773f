"""Measures the effect of each mitigation for the modality gap on vectors of one index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from llama_index_gap.diagnosis.drawn import Drawn, Queries, Rows
from llama_index_gap.evaluation.metrics import judge
from llama_index_gap.gap.align import Aligner, CenterAligner, LinearAligner, OffsetAligner
from llama_index_gap.gap.arrays import FloatArray, VectorArray
from llama_index_gap.gap.estimates import FEWEST, ROUNDS, Estimate, bootstrap
from llama_index_gap.gap.measure import GapReport, measure_gap
from llama_index_gap.modality import MODALITIES, Kind, Modality
from llama_index_gap.search.fusion import Combine, Normalize, ScoredLeg, fuse

MEASURED = 300
"""The most vectors of a modality to measure the gap on, or to use in place of queries."""
FEWEST_PAIRS = 50
"""With fewer pairs, a linear map gains little more than centring (CLIP's features of COCO)."""
FEWEST_QUERIES = 50
"""With fewer text queries, centring subtracts the mean of the texts instead of the queries'."""
CANDIDATES = 16
"""Hits to take from each leg for fusion, as the retriever does by default."""
BACKGROUND = 300
"""Vectors of a collection in its background, as many as an index draws."""
STORED = "stored"
FUSIONS: Mapping[str, tuple[Normalize, Combine]] = {
    "rank": ("rank", "sum"),
    "intent": ("background", "intent"),
}


# --- results -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cloud:
    """Texts and images along the two directions in which they spread most.

    Attributes:
        texts: coordinates of the texts, shape (n, 2).
        images: coordinates of the images, shape (m, 2).
        shown: the share of the variance in these directions.
    """

    texts: FloatArray
    images: FloatArray
    shown: float


@dataclass(frozen=True)
class Asked:
    """The results of queries of one modality.

    Attributes:
        bias: the mean share of the query's modality among the best k vectors; None if the queries
            can search only one collection.
        recall: recall@k of documents; None without labelled queries.
        ndcg: nDCG@k of documents; None without labelled queries.
    """

    bias: Estimate | None = None
    recall: Estimate | None = None
    ndcg: Estimate | None = None


@dataclass(frozen=True)
class Mitigation:
    """One way to search the same corpus.

    Attributes:
        asked: the results by modality of the queries.
        gap: the gap between the compared vectors; None for two fused indexes, which compare none.
        bias_closed: by which share the distance between ``bias`` and the corpus' share shrank, over
            all queries; below 0 if it grew; None if it was 0 before.
        only_means: whether more than half of the distance between the means is gone, but less than
            half of the bias. The mitigation then moves the means without closing the gap.
        note: what fusion did instead, if it could not do what the name says.
        cloud: the vectors of ``gap``, for a drawing.
    """

    asked: Mapping[Modality, Asked]
    gap: GapReport | None = None
    bias_closed: float | None = None
    only_means: bool = False
    note: str | None = None
    cloud: Cloud | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class BeforeAfter:
    """The results of all mitigations on one corpus.

    Attributes:
        k: the length of the rankings.
        fitted_on: the numbers of ``texts``, ``images`` and ``pairs`` that the aligners were fitted
            on, none of them in the corpus; all 0 if none was fitted.
        corpus: the numbers of ``texts``, ``images`` and ``pairs`` searched.
        corpus_share: the share of each modality among them.
        queries: the number of queries, by modality.
        labelled: the modalities with labelled queries; the other queries are stored vectors.
        left_out: the number of labelled queries without a relevant document in the corpus.
        mitigations: the results by name: ``stored``, ``offset``, ``centred`` and ``linear`` are one
            mixed index, ``rank`` and ``intent`` are two fused ones. Those that cannot be measured
            are missing.
    """

    k: int
    fitted_on: Mapping[str, int]
    corpus: Mapping[str, int]
    corpus_share: Mapping[Modality, float]
    queries: Mapping[Modality, int]
    labelled: tuple[Modality, ...]
    left_out: int
    mitigations: Mapping[str, Mitigation]


# --- measuring -----------------------------------------------------------------------------------


def before_and_after(
    drawn: Drawn,
    *,
    k: int = 10,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> BeforeAfter:
    """Measure one mixed index before and after each aligner, and two fused indexes.

    The documents are split into two random halves. Aligners are fitted on one half; every
    mitigation searches the other half, exactly. If no aligner can be fitted, all documents are
    searched.

    Args:
        drawn: at least 10 texts and 10 images, or only one modality.
        k: the length of the rankings.
        rounds: the number of bootstrap rounds.
        seed: the seed of all random draws.
        progress: called after each mitigation.

    Raises:
        ValueError: the vectors are too few or too equal, as for ``measure_gap``.
    """
    documents = sorted({*drawn.texts.documents, *drawn.images.documents} - drawn.added)
    order = np.random.default_rng(seed).permutation(len(documents))
    fitted, rest = (frozenset(documents[i] for i in half) for half in np.array_split(order, 2))
    fit, corpus = drawn.among(fitted), drawn.among(rest | drawn.added)
    aligners = _aligners(fit, corpus)
    if not aligners:
        corpus = drawn
    counts = corpus.counts()
    total = counts["texts"] + counts["images"]
    share = {modality: len(corpus.of(modality)) / total for modality in MODALITIES}
    queries = _queries(corpus)
    mitigations: dict[str, Mitigation] = {}

    def add(name: str, found: Mapping[Modality, _Found], **others: Any) -> None:
        asked = {
            modality: _asked(each, queries[modality].relevant, k, rounds, seed)
            for modality, each in found.items()
        }
        note = next((each.note for each in found.values() if each.note), None)
        mitigations[name] = Mitigation(asked, note=note, **others)
        progress()

    if corpus.one_space:
        for name, aligner in {STORED: None, **aligners}.items():
            moved, asking = _in_one_space(aligner, corpus, queries)
            texts = asking.get("text")
            labelled = texts.vectors["text"] if texts and texts.relevant is not None else None
            gap = measure_drawn(moved, labelled, k=k, rounds=rounds, seed=seed)
            found = {each: _one_index(moved, each, asking[each], k) for each in asking}
            add(name, found, gap=gap, cloud=None if gap is None else _cloud(moved))
    if all(share.values()):
        for name, method in FUSIONS.items():
            fused = {
                modality: _two_indexes(drawn, corpus, modality, each, method=method, k=k)
                for modality, each in queries.items()
            }
            add(name, fused)
    answered = {each: len(queries[each]) for each in queries if queries[each].relevant is not None}
    return BeforeAfter(
        k=k,
        fitted_on=fit.counts() if aligners else dict.fromkeys(counts, 0),
        corpus=counts,
        corpus_share=share,
        queries={modality: len(each) for modality, each in queries.items()},
        labelled=tuple(answered),
        left_out=sum(map(len, drawn.queries.values())) - sum(answered.values()),
        mitigations=_compared(mitigations, share),
    )


def measure_drawn(
    drawn: Drawn, queries: VectorArray | None = None, *, k: int, rounds: int, seed: int
) -> GapReport | None:
    """All figures of the gap between the first 300 texts and the first 300 images.

    See ``measure_gap``; too few ``queries`` are ignored. None if there is only one modality, or no
    common space.
    """
    if not (drawn.one_space and len(drawn.texts) and len(drawn.images)):
        return None
    return measure_gap(
        drawn.texts.vectors[:MEASURED],
        drawn.images.vectors[:MEASURED],
        pairs=drawn.pairs[(drawn.pairs < MEASURED).all(axis=1)],
        queries=None if queries is None or len(queries) < FEWEST else queries[:MEASURED],
        k=k,
        rounds=rounds,
        seed=seed,
    )


def _cloud(drawn: Drawn) -> Cloud:
    """Project the vectors on their first principal components, with texts on the left."""
    texts, images = (
        drawn.of(modality).vectors[:MEASURED].astype(np.float64) for modality in MODALITIES
    )
    rows = np.vstack([texts, images])
    rows -= rows.mean(axis=0)
    _, spread, axes = np.linalg.svd(rows, full_matrices=False)
    texts, images = np.split(rows @ axes[:2].T, [len(texts)])
    if texts[:, 0].mean() > images[:, 0].mean():
        texts, images = -texts, -images
    return Cloud(texts, images, float(np.square(spread[:2]).sum() / np.square(spread).sum()))


# --- the aligners and the queries ----------------------------------------------------------------


def _aligners(fit: Drawn, corpus: Drawn) -> dict[str, Aligner]:
    """The aligners that can be fitted, if each half has enough vectors."""
    least = min(len(half.of(modality)) for half in (fit, corpus) for modality in MODALITIES)
    if least < FEWEST or not fit.one_space or fit.aligned:
        return {}
    texts, images = fit.texts.vectors, fit.images.vectors
    given = fit.queries["text"].vectors["text"] if "text" in fit.queries else ()
    queries = given if len(given) >= FEWEST_QUERIES else None
    aligners: dict[str, Aligner] = {
        "offset": OffsetAligner.fit(texts, images),
        "centred": CenterAligner.fit(texts, images, queries=queries),
    }
    if len(fit.pairs) >= FEWEST_PAIRS:
        text, image = fit.pairs.T
        aligners["linear"] = LinearAligner.fit(texts[text], images[image], queries=queries)
    return aligners


def _queries(corpus: Drawn) -> dict[Modality, Queries]:
    """For each modality, the queries with a relevant document, or else stored vectors."""
    present = {*corpus.texts.documents, *corpus.images.documents}
    queries: dict[Modality, Queries] = {}
    for modality in MODALITIES:
        given = corpus.queries.get(modality)
        relevant = [
            {document: grade for document, grade in grades.items() if document in present}
            for grades in (given.relevant if given and given.relevant else ())
        ]
        at = [i for i, grades in enumerate(relevant) if max(grades.values(), default=0) > 0]
        if given and at:
            vectors = {target: rows[at] for target, rows in given.vectors.items()}
            queries[modality] = Queries(vectors, [relevant[i] for i in at])
        elif corpus.one_space and len(corpus.texts) and len(corpus.images):
            stored = dict.fromkeys(MODALITIES, corpus.of(modality).vectors[:MEASURED])
            stored[modality] = _searched(corpus, modality, modality)[:MEASURED]
            queries[modality] = Queries(stored)
    return queries


def _in_one_space(
    aligner: Aligner | None, corpus: Drawn, queries: Mapping[Modality, Queries]
) -> tuple[Drawn, dict[Modality, Queries]]:
    """The aligned corpus and queries; each query has one vector for both modalities."""

    def moved(vectors: VectorArray, modality: Modality, kind: Kind = "document") -> VectorArray:
        return vectors if aligner is None else aligner.apply(vectors, modality, kind)

    texts, images = (
        Rows(moved(corpus.of(modality).vectors, modality), corpus.of(modality).documents)
        for modality in MODALITIES
    )
    asking = {}
    for modality, each in queries.items():
        kind: Kind = "document" if each.relevant is None else "query"
        vectors = moved(each.vectors["text"], modality, kind)
        asking[modality] = replace(each, vectors=dict.fromkeys(MODALITIES, vectors))
    return replace(corpus, texts=texts, images=images), asking


# --- rankings ------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """The rankings of queries of one modality.

    ``own`` is the share of the query's modality among its best k vectors, shape (q,).
    ``documents`` are the first k of each query, if queries are labelled.
    """

    own: FloatArray | None
    documents: Sequence[Sequence[str]]
    note: str | None = None


def _one_index(corpus: Drawn, modality: Modality, queries: Queries, k: int) -> _Found:
    """Rank all vectors together by their scores."""
    scores = [
        _scores(queries, modality, target, corpus.of(target).vectors) for target in MODALITIES
    ]
    order = np.argsort(-np.hstack(scores), axis=1, kind="stable")
    documents = [*corpus.texts.documents, *corpus.images.documents]
    found = [
        list(islice(dict.fromkeys(documents[row] for row in rows), k))
        for rows in (order if queries.relevant is not None else ())
    ]
    if not (len(corpus.texts) and len(corpus.images)):
        return _Found(None, found)
    is_own = (order[:, :k] < len(corpus.texts)) == (modality == "text")
    return _Found(is_own.mean(axis=1), found)


def _two_indexes(
    drawn: Drawn,
    corpus: Drawn,
    modality: Modality,
    queries: Queries,
    *,
    method: tuple[Normalize, Combine],
    k: int,
) -> _Found:
    """Search each collection separately and fuse; the backgrounds come from the whole sample."""
    normalize, combine = method
    scores: dict[Modality, FloatArray] = {}
    backgrounds: dict[Modality, VectorArray] = {}
    for target, vectors in queries.vectors.items():
        scores[target] = _scores(queries, modality, target, _searched(corpus, modality, target))
        behind = _searched(drawn, modality, target)
        backgrounds[target] = vectors @ behind[np.isfinite(behind).all(axis=1)][:BACKGROUND].T
    own, found, note = [], [], None
    for i in range(len(queries)):
        by_vector: dict[str, ScoredLeg] = {}
        by_document: dict[str, ScoredLeg] = {}
        for target, of_target in scores.items():
            best = np.argsort(-of_target[i], kind="stable")[:CANDIDATES]
            rows = best[np.isfinite(of_target[i, best])].tolist()
            every = corpus.of(target)
            leg = ScoredLeg(
                [f"{target} {row}" for row in rows],
                of_target[i, rows],
                backgrounds[target][i],
                size=len(every),
            )
            by_vector[target] = leg
            by_document[target] = replace(leg, keys=[every.documents[row] for row in rows])
        fused = fuse(by_vector, normalize=normalize, combine=combine)
        first = [vector.key for vector in fused.documents[:k]]
        own.append(np.mean([key.startswith(f"{modality} ") for key in first]))
        note = note or fused.note
        if queries.relevant is not None:
            fused = fuse(by_document, normalize=normalize, combine=combine)
            found.append([document.key for document in fused.documents[:k]])
    return _Found(np.array(own) if len(scores) == len(MODALITIES) else None, found, note)


def _scores(
    queries: Queries, modality: Modality, target: Modality, rows: VectorArray
) -> FloatArray:
    """Cosines with vectors of a modality, shape (q, n); −∞ for vectors that cannot be found."""
    cosines = queries.vectors[target].astype(np.float64) @ rows.astype(np.float64).T
    if queries.relevant is None and target == modality:
        np.fill_diagonal(cosines, -np.inf)  # a stored vector does not find itself
    return np.where(np.isnan(cosines), -np.inf, cosines)


def _searched(drawn: Drawn, query: Modality, target: Modality) -> VectorArray:
    """The vectors of the target modality that queries of a modality are compared with."""
    if query == target == "image" and drawn.by_image is not None:
        return drawn.by_image
    return drawn.of(target).vectors


def _asked(
    found: _Found,
    relevant: Sequence[Mapping[str, int]] | None,
    k: int,
    rounds: int,
    seed: int,
) -> Asked:
    """Means over the queries, with their intervals."""
    values: dict[str, FloatArray] = {} if found.own is None else {"bias": found.own}
    if relevant is not None:
        names = [str(i) for i in range(len(relevant))]
        run = dict(zip(names, found.documents, strict=True))
        qrels = dict(zip(names, relevant, strict=True))
        metrics = {"recall": f"recall@{k}", "ndcg": f"ndcg@{k}"}
        judged = judge(run, qrels, list(metrics.values()))
        values |= {name: judged[metric] for name, metric in metrics.items()}
    if not values:
        return Asked()

    def means(counts: FloatArray) -> dict[str, float]:
        return {name: float(counts @ each / counts.sum()) for name, each in values.items()}

    n = len(next(iter(values.values())))
    return Asked(**bootstrap(means, np.zeros(n), rounds=rounds, seed=seed))


def _compared(
    mitigations: Mapping[str, Mitigation], share: Mapping[Modality, float]
) -> dict[str, Mitigation]:
    """Add to each mitigation which share of the stored bias it closes."""
    before = mitigations.get(STORED)
    if before is None:
        return dict(mitigations)

    def bias(mitigation: Mitigation) -> float:
        """The distance of the own modality's share from its corpus share, over all queries."""
        return sum(
            abs(asked.bias.value - share[modality])
            for modality, asked in mitigation.asked.items()
            if asked.bias
        )

    compared = {STORED: before}
    for name, after in mitigations.items():
        if name != STORED:
            closed = 1 - bias(after) / bias(before) if bias(before) else None
            moved = (
                before.gap is not None
                and after.gap is not None
                and after.gap.distance.value < before.gap.distance.value / 2
            )
            only_means = moved and closed is not None and closed < 0.5
            compared[name] = replace(after, bias_closed=closed, only_means=only_means)
    return compared
