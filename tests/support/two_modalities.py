"""Simulates documents with a text and an image, and measures how well fusions find them.

**The simulation.** Texts and images lie in two cones. Around the cone's mean, a vector has two
parts, each a random unit vector: the part of its subject that both modalities can express (22
dimensions), and the part that only its own modality can express (22 for texts, 22 for images).
Nothing was tuned to an outcome: the numbers of a plain ``World`` follow from measurements of CLIP
ViT-B/16 features of 500 COCO pairs, all after centring except the means:

- norms of the cones' means 0.72 (texts) and 0.73 (images), cosine 0.31: 0.85 apart;
- cosines of unrelated texts, and of unrelated images: standard deviation 0.154;
- cosines of unrelated texts and images: standard deviation 0.092. This gives the 22 dimensions, and
  a share of 0.427 of the squared length for the shared part;
- cosine of a text and its image: 0.315. This gives the correlation 0.738 between two descriptions
  of one subject. Two texts on one subject were not measured; they are assumed to agree just as
  well, also in the part that only texts can express.

A document is a headline and an image on different subjects. Queries are texts about the image,
the headline, or both (the mean of two descriptions). A query has one relevant document.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from llama_index_gap.evaluation.metrics import ndcg, recall
from llama_index_gap.gap.arrays import FloatArray, IntArray
from llama_index_gap.search.fusion import Fusion, ScoredLeg, fuse

Fuse: TypeAlias = Callable[[Mapping[str, ScoredLeg]], Fusion]

SHARED = OWN = 22  # dimensions
CANDIDATES, BACKGROUND, TOP = 16, 300, 10

KINDS = ("image", "headline", "both")
METHODS: dict[str, Fuse] = {
    "raw max": partial(fuse, normalize="none", combine="max"),
    "raw sum": partial(fuse, normalize="none", combine="sum"),
    "RRF": partial(fuse, normalize="rank", combine="sum"),
    "min-max sum": partial(fuse, normalize="minmax", combine="sum"),
    "z max": partial(fuse, normalize="background", combine="max"),
    "z sum": partial(fuse, normalize="background", combine="sum"),
    "evidence": partial(fuse, normalize="background", combine="evidence"),
}


def unsized(legs: Mapping[str, ScoredLeg]) -> Fusion:
    """The default fusion, without the sizes of the legs."""
    return fuse({name: replace(leg, size=None) for name, leg in legs.items()})


# --- the simulation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The parameters of a simulation.

    Attributes:
        documents: number of documents.
        imaged: the share of documents with an image.
        norms: norms of the means of the two cones, of texts and of images.
        cosine_of_means: cosine between these means; 0.31 puts them 0.85 apart, 0.84 puts them
            0.41 apart.
        shared: the shared part's share of a vector's squared length around its cone's mean.
        of_headlines: correlation of a query with the headline that it is about.
        of_images: correlation of a query with the shared part of the image that it is about.
        alike: the number of documents with the same subjects; each describes them differently,
            and a query asks for all of them.
    """

    documents: int = 4_000
    imaged: float = 1.0
    norms: tuple[float, float] = (0.72, 0.73)
    cosine_of_means: float = 0.31
    shared: float = 0.427
    of_headlines: float = 0.738
    of_images: float = 0.738
    alike: int = 1


class Simulation:
    """Documents with a text and an image, and queries for one or both of them."""

    def __init__(self, seed: int | list[int], world: World = World()) -> None:
        self.rng, self.world = np.random.default_rng(seed), world
        n = world.documents
        subjects = n // world.alike
        self.headline, self.image = (
            {"shared": self.unit(subjects, SHARED), "own": self.unit(subjects, OWN)}
            for _ in range(2)
        )
        self.imaged = round(n * world.imaged)
        headlines = self.told(self.headline, world.of_headlines)
        images = self.told(self.image, world.of_images)
        self.texts = self.as_text(headlines["shared"], headlines["own"])
        self.images = self.as_image(images["shared"], images["own"])[: self.imaged]
        sample = self.rng.choice(n, min(n, BACKGROUND), replace=False)
        self.samples = {"text": sample, "image": sample}
        if self.imaged < n:
            some = self.rng.choice(self.imaged, min(self.imaged, BACKGROUND), replace=False)
            self.samples["image"] = some

    def told(self, subjects: dict[str, FloatArray], agreement: float) -> dict[str, FloatArray]:
        """Each document's description of its subject; a unique document describes it exactly."""
        if self.world.alike == 1:
            return subjects
        return {
            part: self.told_again(np.repeat(rows, self.world.alike, axis=0), np.sqrt(agreement))
            for part, rows in subjects.items()
        }

    def unit(self, *shape: int) -> FloatArray:
        return unit(self.rng.normal(size=shape))

    def told_again(self, subject: FloatArray, agreement: float) -> FloatArray:
        noise = self.unit(*subject.shape)
        return agreement * subject + np.sqrt(1 - agreement**2) * noise

    def subjects(self, kind: str, queries: int) -> IntArray:
        """The subjects of queries; a subject without an image is only for its headline."""
        among = self.world.documents if kind == "headline" else self.imaged
        return self.rng.choice(among // self.world.alike, queries, replace=False)

    def relevant(self, subject: int) -> set[int]:
        """The documents on a subject."""
        alike = self.world.alike
        return set(range(subject * alike, (subject + 1) * alike))

    def queries(self, kind: str, subjects: IntArray) -> FloatArray:
        agreements = np.array([self.world.of_headlines, self.world.of_images])
        # If both are new descriptions, the correlation of query and document is the product.
        of_headlines, of_images = agreements if self.world.alike == 1 else np.sqrt(agreements)
        of_image = self.told_again(self.image["shared"][subjects], of_images)
        of_headline = self.told_again(self.headline["shared"][subjects], of_headlines)
        headline_own = self.told_again(self.headline["own"][subjects], of_headlines)
        own = self.unit(len(subjects), OWN)  # the text-only part of a text about an image
        match kind:
            case "image":
                return self.as_text(of_image, own)
            case "headline":
                return self.as_text(of_headline, headline_own)
            case _:
                return self.as_text(of_image + of_headline, own + headline_own)

    def as_text(self, shared: FloatArray, own: FloatArray) -> FloatArray:
        mean = self.world.norms[0] * np.array([1.0, 0.0])
        return self.in_cone(mean, shared, own, np.zeros_like(own))

    def as_image(self, shared: FloatArray, own: FloatArray) -> FloatArray:
        cosine = self.world.cosine_of_means
        mean = self.world.norms[1] * np.array([cosine, np.sqrt(1 - cosine**2)])
        return self.in_cone(mean, shared, np.zeros_like(own), own)

    def in_cone(self, mean: FloatArray, shared: FloatArray, *own: FloatArray) -> FloatArray:
        """Unit vectors: the cone's mean plus a vector's parts."""
        weight = self.world.shared
        content = np.hstack(
            [
                np.sqrt(weight) * unit(shared),
                *(np.sqrt(1 - weight) * unit(part) for part in own),
            ]
        )
        means = np.broadcast_to(mean, (len(content), 2))
        return np.hstack([means, np.sqrt(1 - mean @ mean) * content])


def unit(rows: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


# --- the experiment ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collection:
    """The vectors of one modality.

    Attributes:
        vectors: shape (n, d).
        documents: the document of each vector, shape (n,).
        background: a sample of such vectors, shape (m, d).
    """

    vectors: FloatArray
    documents: IntArray
    background: FloatArray


@dataclass(frozen=True)
class Outcome:
    """Figures of each method for each query: shape (queries,), by method."""

    ndcg: Mapping[str, FloatArray]
    recall: Mapping[str, FloatArray]


def evaluate(
    queries: FloatArray,
    collections: Mapping[str, Collection],
    relevant: Sequence[Set[int]],
    methods: Mapping[str, Fuse] = METHODS,
) -> Outcome:
    """Search both collections with every query, 16 candidates each, and fuse by every method.

    Args:
        queries: shape (q, d).
        collections: by name; each alone is also a method, called ``"{name} leg"``.
        relevant: the relevant documents of each query.
        methods: by name.

    Returns:
        nDCG@10 and recall@10.
    """
    names = [*(f"{name} leg" for name in collections), *methods]
    ndcgs, recalls = ({name: np.zeros(len(queries)) for name in names} for _ in range(2))
    scores = {name: queries @ each.vectors.T for name, each in collections.items()}
    backgrounds = {name: queries @ each.background.T for name, each in collections.items()}
    for number, documents in enumerate(relevant):
        wanted = dict.fromkeys(documents, 1)
        legs = {}
        for name, collection in collections.items():
            of_leg = scores[name][number]
            top = np.argpartition(-of_leg, min(CANDIDATES, len(of_leg)) - 1)[:CANDIDATES]
            top = top[np.argsort(-of_leg[top], kind="stable")]
            keys, background = collection.documents[top].tolist(), backgrounds[name][number]
            legs[name] = ScoredLeg(keys, of_leg[top], background, len(of_leg))
        rankings = {f"{name} leg": list(dict.fromkeys(leg.keys)) for name, leg in legs.items()}
        for name, method in methods.items():
            rankings[name] = [document.key for document in method(legs).documents]
        for name, ranked in rankings.items():
            ndcgs[name][number] = ndcg(ranked, wanted, TOP)
            recalls[name][number] = recall(ranked, wanted, TOP)
    return Outcome(ndcgs, recalls)


def ask(
    simulation: Simulation,
    kind: str,
    queries: int,
    methods: Mapping[str, Fuse] = METHODS,
) -> Outcome:
    """Search simulated documents with queries of one kind."""
    vectors = {"text": simulation.texts, "image": simulation.images}
    collections = {
        name: Collection(rows, np.arange(len(rows)), rows[simulation.samples[name]])
        for name, rows in vectors.items()
    }
    subjects = simulation.subjects(kind, queries)
    relevant = [simulation.relevant(subject) for subject in subjects.tolist()]
    return evaluate(simulation.queries(kind, subjects), collections, relevant, methods)
