"""Before and after: what each mitigation for the modality gap brings, on vectors of one index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from llama_index_gap.evaluation.metrics import judge
from llama_index_gap.gap.align import Aligner, CenterAligner, LinearAligner, OffsetAligner
from llama_index_gap.gap.arrays import FloatArray, IntArray, VectorArray
from llama_index_gap.gap.estimates import FEWEST, ROUNDS, Estimate, bootstrap
from llama_index_gap.gap.measure import GapReport, measure_gap
from llama_index_gap.modality import MODALITIES, Kind, Modality
from llama_index_gap.search.fusion import Combine, Leg, Normalize, fuse

MEASURED = 300
"""Vectors of each side that the gap is measured on, and stored vectors that ask, at most."""
FEWEST_PAIRS = 50
"""On CLIP's features of COCO, a linear map of fewer pairs brings little more than centring."""
FEWEST_QUERIES = 50
"""From so many text queries on, centring subtracts their own mean; before, that of the texts."""
CANDIDATES = 16
"""Hits of each side that are fused: what the retriever takes by default."""
BACKGROUND = 300
"""Vectors of a side that stand for its background: as many as an index draws."""
STORED = "stored"
FUSIONS: Mapping[str, tuple[Normalize, Combine]] = {
    "rank": ("rank", "sum"),
    "evidence": ("background", "evidence"),
}


# --- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Vectors of one side of an index.

    Attributes:
        vectors: shape (n, d), of length 1.
        documents: the document of each, n of them.
    """

    vectors: VectorArray
    documents: Sequence[str]

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True, eq=False)
class Queries:
    """Labelled queries of one modality.

    Attributes:
        vectors: for each side what asks it, shape (q, d), of length 1; without a side that they
            cannot ask.
        relevant: for each query its relevant documents, with their grades.
    """

    vectors: Mapping[Modality, VectorArray]
    relevant: Sequence[Mapping[str, int]]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn from an index, in random order.

    Attributes:
        texts: of the text side.
        images: of the image side.
        pairs: rows of a text and of an image that belong together, shape (l, 2).
        one_space: whether one model made both sides, so that a text can be held against an image.
        aligned: whether an aligner moved them already, so that no other is fitted.
        queries: labelled ones, by their modality; of a modality without any, stored vectors ask.
        added: documents that were not drawn, but are relevant to a query.
        by_image: the images' vectors by the encoder that serves image queries, shape (m, e);
            NaN where it has none. None where there is no such encoder.
    """

    texts: Rows
    images: Rows
    pairs: IntArray
    one_space: bool = True
    aligned: bool = False
    queries: Mapping[Modality, Queries] = field(default_factory=dict)
    added: frozenset[str] = frozenset()
    by_image: VectorArray | None = None

    def side(self, side: Modality) -> Rows:
        """One side by its name."""
        return self.texts if side == "text" else self.images

    def counts(self) -> dict[str, int]:
        """How many ``texts``, ``images`` and ``pairs`` there are."""
        return {"texts": len(self.texts), "images": len(self.images), "pairs": len(self.pairs)}

    def among(self, documents: frozenset[str]) -> Drawn:
        """What belongs to some of the documents, in the same order; queries stay."""
        kept = {
            side: np.flatnonzero([each in documents for each in self.side(side).documents])
            for side in MODALITIES
        }
        texts, images = (
            Rows(self.side(side).vectors[at], [self.side(side).documents[i] for i in at.tolist()])
            for side, at in kept.items()
        )
        both = np.isin(self.pairs[:, 0], kept["text"]) & np.isin(self.pairs[:, 1], kept["image"])
        pairs = [
            np.searchsorted(kept[side], self.pairs[both, i]) for i, side in enumerate(MODALITIES)
        ]
        by_image = None if self.by_image is None else self.by_image[kept["image"]]
        return replace(
            self,
            texts=texts,
            images=images,
            pairs=np.column_stack(pairs),
            by_image=by_image,
        )


# --- what is found -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cloud:
    """Both sides' vectors, seen along the two directions in which all of them spread most.

    Attributes:
        texts: shape (n, 2).
        images: shape (m, 2).
        shown: the share of the variance that lies in these directions.
    """

    texts: FloatArray
    images: FloatArray
    shown: float


@dataclass(frozen=True)
class Asked:
    """What queries of one modality get.

    Attributes:
        bias: the mean share of the best k vectors that has the query's modality; None where only
            one side can be asked.
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
        asked: by modality of the queries.
        gap: between the vectors as they are compared; None where two indexes are fused, which
            compares none.
        bias_closed: the share of the distance of ``bias`` from the corpus' share that went, over
            all modalities that ask; below 0 where it grew. None where there was none before.
        only_means: whether more than half of the distance between the means went, and less than
            half of the bias: then it has moved the means, and closed no gap.
        note: what it did otherwise than its name says.
        cloud: the vectors of ``gap``, to be drawn.
    """

    asked: Mapping[Modality, Asked]
    gap: GapReport | None = None
    bias_closed: float | None = None
    only_means: bool = False
    note: str | None = None
    cloud: Cloud | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class BeforeAfter:
    """All mitigations over one corpus.

    Attributes:
        k: places of a ranking.
        fitted_on: how many ``texts``, ``images`` and ``pairs`` the aligners were fitted on, none of
            them in the corpus; all 0 where none was fitted.
        corpus: how many ``texts``, ``images`` and ``pairs`` were searched.
        corpus_share: the share of each modality among them.
        queries: how many asked, by modality.
        labelled: the modalities whose queries are labelled; of the others stored vectors asked.
        left_out: labelled queries that have no relevant document in the corpus.
        mitigations: by name: ``stored``, ``offset``, ``centred`` and ``linear`` are one mixed
            index, ``rank`` and ``evidence`` two that are fused; without those that cannot be
            measured.
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
    """Measure one mixed index before and after each aligner, and two indexes that are fused.

    The documents are halved at random: aligners are fitted on one half, and the other is searched,
    in all ways alike and exactly. Where no aligner can be fitted, all are searched.

    Args:
        drawn: texts and images, at least 10 of each; or of one only.
        k: places of a ranking.
        rounds: of the bootstrap.
        seed: of all that is drawn.
        progress: called after each mitigation.

    Raises:
        ValueError: vectors that are too few or too equal, as for ``measure_gap``.
    """
    fit, rest = _halves(drawn, seed)
    aligners = _aligners(fit, rest)
    corpus = rest if aligners else drawn
    counts = corpus.counts()
    share = {
        side: len(corpus.side(side)) / (counts["texts"] + counts["images"]) for side in MODALITIES
    }
    askings = _askings(corpus)
    mitigations: dict[str, Mitigation] = {}

    def add(name: str, found: Sequence[_Found], **others: Any) -> None:
        asked = {
            one.modality: _asked(each, one.relevant, k, rounds, seed)
            for one, each in zip(askings, found, strict=True)
        }
        notes = [each.note for each in found if each.note]
        mitigations[name] = Mitigation(asked, note=notes[0] if notes else None, **others)
        progress()

    if corpus.one_space:
        for name, aligner in {STORED: None, **aligners}.items():
            moved, asking = _in_one_space(aligner, corpus, askings)
            gap = measure_drawn(moved, _text_queries(asking), k=k, rounds=rounds, seed=seed)
            found = [_one_index(moved, one, k) for one in asking]
            add(name, found, gap=gap, cloud=None if gap is None else _seen(moved))
    if all(share.values()):
        for name, method in FUSIONS.items():
            add(name, [_two_indexes(drawn, corpus, one, method, k) for one in askings])
    return BeforeAfter(
        k=k,
        fitted_on=fit.counts() if aligners else dict.fromkeys(counts, 0),
        corpus=counts,
        corpus_share=share,
        queries={one.modality: len(one) for one in askings},
        labelled=tuple(one.modality for one in askings if one.relevant is not None),
        left_out=sum(len(given.relevant) for given in drawn.queries.values())
        - sum(len(one) for one in askings if one.relevant is not None),
        mitigations=_compared(mitigations, share),
    )


def measure_drawn(
    drawn: Drawn, queries: VectorArray | None = None, *, k: int, rounds: int, seed: int
) -> GapReport | None:
    """All figures of the gap between texts and images, of the first 300 of each.

    Args:
        drawn: texts and images, at least 10 of each; or of one only.
        queries: texts that ask, shape (q, d); by default, or where they are too few, the texts do.
        k: places of a ranking.
        rounds: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The figures; None where there is only one modality, or no space that both share.

    Raises:
        ValueError: as for ``measure_gap``.
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


def _seen(drawn: Drawn) -> Cloud:
    """By principal components, texts to the left."""
    sides = [drawn.side(side).vectors[:MEASURED].astype(np.float64) for side in MODALITIES]
    rows = np.vstack(sides)
    rows -= rows.mean(axis=0)
    _, spread, axes = np.linalg.svd(rows, full_matrices=False)
    texts, images = np.split(rows @ axes[:2].T, [len(sides[0])])
    if texts[:, 0].mean() > images[:, 0].mean():
        texts, images = -texts, -images
    return Cloud(texts, images, float(np.square(spread[:2]).sum() / np.square(spread).sum()))


# --- the corpus, the aligners, and who asks ------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Asking:
    """Queries of one modality, or stored vectors in their place.

    ``itself`` is the row of its own side that each stored vector is, and does not find.
    """

    modality: Modality
    vectors: Mapping[Modality, VectorArray]
    relevant: Sequence[Mapping[str, int]] | None = None
    itself: IntArray | None = None

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))

    def scores(self, side: Modality, rows: VectorArray) -> FloatArray:
        """Cosines with a side's vectors, shape (q, n); −∞ for what cannot be found."""
        cosines = self.vectors[side].astype(np.float64) @ rows.astype(np.float64).T
        if self.itself is not None and side == self.modality:
            cosines[np.arange(len(self)), self.itself] = np.nan
        return np.where(np.isnan(cosines), -np.inf, cosines)


def _halves(drawn: Drawn, seed: int) -> tuple[Drawn, Drawn]:
    """What to fit on, and what to search; no document in both."""
    documents = sorted({*drawn.texts.documents, *drawn.images.documents} - drawn.added)
    order = np.random.default_rng(seed).permutation(len(documents))
    fit, rest = (frozenset(documents[i] for i in half) for half in np.array_split(order, 2))
    return drawn.among(fit), drawn.among(rest | drawn.added)


def _aligners(fit: Drawn, corpus: Drawn) -> dict[str, Aligner]:
    """Those that can be fitted, if enough is left to measure them."""
    least = min(len(half.side(side)) for half in (fit, corpus) for side in MODALITIES)
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


def _askings(corpus: Drawn) -> list[_Asking]:
    """For each modality its queries that can be answered; or else stored vectors."""
    there = {*corpus.texts.documents, *corpus.images.documents}
    askings = []
    for modality in MODALITIES:
        if (given := corpus.queries.get(modality)) is not None:
            relevant = [
                {document: grade for document, grade in grades.items() if document in there}
                for grades in given.relevant
            ]
            at = [i for i, grades in enumerate(relevant) if max(grades.values(), default=0) > 0]
            if at:
                vectors = {side: rows[at] for side, rows in given.vectors.items()}
                askings.append(_Asking(modality, vectors, [relevant[i] for i in at]))
                continue
        if corpus.one_space and len(corpus.texts) and len(corpus.images):
            own = corpus.side(modality).vectors[:MEASURED]
            images = own
            if modality == "image" and corpus.by_image is not None:
                images = corpus.by_image[:MEASURED]
            itself = np.arange(len(own))
            askings.append(_Asking(modality, {"text": own, "image": images}, itself=itself))
    return askings


def _text_queries(askings: Sequence[_Asking]) -> VectorArray | None:
    labelled = [one for one in askings if one.modality == "text" and one.relevant is not None]
    return labelled[0].vectors["text"] if labelled else None


def _in_one_space(
    aligner: Aligner | None, corpus: Drawn, askings: Sequence[_Asking]
) -> tuple[Drawn, list[_Asking]]:
    """The corpus and who asks it, moved; of each query the one vector that can ask both sides."""

    def moved(vectors: VectorArray, modality: Modality, kind: Kind = "document") -> VectorArray:
        return vectors if aligner is None else aligner.apply(vectors, modality, kind)

    texts, images = (
        Rows(moved(corpus.side(side).vectors, side), corpus.side(side).documents)
        for side in MODALITIES
    )
    asking = []
    for one in askings:
        kind: Kind = "document" if one.relevant is None else "query"
        vectors = moved(one.vectors["text"], one.modality, kind)
        asking.append(replace(one, vectors={"text": vectors, "image": vectors}))
    return replace(corpus, texts=texts, images=images), asking


# --- rankings ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """What queries of one modality find.

    ``own`` is the share of each one's best k vectors that has its modality, shape (q,);
    ``documents`` are the first k of each, where queries are labelled.
    """

    own: FloatArray | None
    documents: Sequence[Sequence[str]]
    note: str | None = None


def _one_index(corpus: Drawn, asking: _Asking, k: int) -> _Found:
    """One ranking of all vectors by their scores."""
    scores = np.hstack([asking.scores(side, corpus.side(side).vectors) for side in MODALITIES])
    order = np.argsort(-scores, axis=1, kind="stable")
    is_text = order[:, :k] < len(corpus.texts)
    documents = [*corpus.texts.documents, *corpus.images.documents]
    found = [
        list(islice(dict.fromkeys(documents[row] for row in rows), k))
        for rows in (order if asking.relevant is not None else ())
    ]
    own = is_text if asking.modality == "text" else ~is_text
    one_side = not (len(corpus.texts) and len(corpus.images))
    return _Found(None if one_side else own.mean(axis=1), found)


def _two_indexes(
    drawn: Drawn, corpus: Drawn, asking: _Asking, method: tuple[Normalize, Combine], k: int
) -> _Found:
    """Each side searched by itself; its background is of all that was drawn."""
    normalize, combine = method
    scores: dict[Modality, FloatArray] = {}
    backgrounds: dict[Modality, VectorArray] = {}
    for side, queries in asking.vectors.items():
        scores[side] = asking.scores(side, _answering(corpus, asking.modality, side))
        behind = _answering(drawn, asking.modality, side)
        backgrounds[side] = queries @ behind[np.isfinite(behind).all(axis=1)][:BACKGROUND].T
    own, found, note = [], [], None
    for i in range(len(asking)):
        hits = {side: _best(of_side[i]) for side, of_side in scores.items()}
        legs: dict[str, Leg] = {
            side: Leg(
                [f"{side} {row}" for row in rows],
                scores[side][i, rows],
                backgrounds[side][i],
                size=len(corpus.side(side)),
            )
            for side, rows in hits.items()
        }
        by_vector = fuse(legs, normalize=normalize, combine=combine)
        first = [vector.key for vector in by_vector.documents[:k]]
        own.append(np.mean([key.startswith(f"{asking.modality} ") for key in first]))
        note = note or by_vector.note
        if asking.relevant is not None:
            named: dict[str, Leg] = {
                side: replace(legs[side], keys=[corpus.side(side).documents[row] for row in rows])
                for side, rows in hits.items()
            }
            by_document = fuse(named, normalize=normalize, combine=combine)
            found.append([document.key for document in by_document.documents[:k]])
    return _Found(np.array(own) if len(scores) == len(MODALITIES) else None, found, note)


def _answering(drawn: Drawn, modality: Modality, side: Modality) -> VectorArray:
    """The vectors of a side that queries of a modality are held against."""
    if modality == side == "image" and drawn.by_image is not None:
        return drawn.by_image
    return drawn.side(side).vectors


def _best(scores: FloatArray) -> list[int]:
    best = np.argsort(-scores, kind="stable")[:CANDIDATES]
    rows: list[int] = best[np.isfinite(scores[best])].tolist()
    return rows


def _asked(
    found: _Found,
    relevant: Sequence[Mapping[str, int]] | None,
    k: int,
    rounds: int,
    seed: int,
) -> Asked:
    """Means over the queries, with intervals."""
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
    """With what each has closed of what there is before."""
    before = mitigations.get(STORED)
    if before is None:
        return dict(mitigations)
    compared = {STORED: before}
    for name, after in mitigations.items():
        if name == STORED:
            continue
        off, still_off = (_off(each, share) for each in (before, after))
        closed = 1 - still_off / off if off else None
        moved = (
            before.gap is not None
            and after.gap is not None
            and after.gap.distance.value < before.gap.distance.value / 2
        )
        only_means = moved and closed is not None and closed < 0.5
        compared[name] = replace(after, bias_closed=closed, only_means=only_means)
    return compared


def _off(mitigation: Mitigation, share: Mapping[Modality, float]) -> float:
    """How far the shares of the own modality lie from the corpus', over all that ask."""
    biases = {side: asked.bias.value for side, asked in mitigation.asked.items() if asked.bias}
    return sum(abs(bias - share[side]) for side, bias in biases.items())
