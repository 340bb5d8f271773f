"""Simulates CLIP-like vectors of texts and images for any number of documents; no model, no data.

A vector is its modality's mean, plus a part that the document's text and image share, plus a part
of its modality alone, scaled to length 1. Each part is the sum of a topic, a story of that topic,
and the document's own contribution; the sizes of topics follow Zipf's law. Every part has its own
basis, with the same falling variances.

The parameters were fitted to published CLIP ViT-B/16 features of 500 pairs of COCO (Liang et al.
2022, *Mind the Gap*). ``python benchmarks/simulated.py`` prints statistics of as many simulated
pairs; with FEATURES, a file of shape (2, 500, 512), images first, it prints both.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import BaseNode, ImageNode, NodeRelationship, RelatedNodeInfo, TextNode

from llama_index_gap.gap.arrays import FloatArray, VectorArray, unit_rows
from llama_index_gap.gap.hubs import reliability
from llama_index_gap.modality import MODALITIES, Modality

DIMENSION = 512
MEAN_LENGTHS = {"text": 0.718, "image": 0.730}
MEAN_COSINE = 0.309  # between the means of the modalities, which are 0.85 apart
SHARED = 0.31  # share of the variance around the means that a text and its image have in common
TOPICS, STORIES = 150, 64  # stories of each topic
SHARES = (0.7, 0.1, 0.2)  # of a part's variance: topic, story, document
ZIPF = 10  # the frequency of topic number n is proportional to 1/(n + ZIPF)
TAIL = 200  # the variance in direction number n is exp(−n/TAIL)/(n + 2), scaled
CENTRAL = 0.15  # variation of the length along the mean: the longest are hubs
BLOCK = 5_000  # documents made at once, from a separate seed
TEXT = "The mayor opened the new bridge on Monday, and the first to cross it was a milkman. " * 5

_VARIANCES = np.exp(-np.arange(DIMENSION) / TAIL) / (np.arange(DIMENSION) + 2)
_SPREAD = np.sqrt(_VARIANCES / _VARIANCES.sum()).astype(np.float32)
_TOPIC_SHARE = 1 / (np.arange(TOPICS) + ZIPF)


class Simulation:
    """Vectors of numbered documents and of queries for them; the same in each run."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        size = (DIMENSION, DIMENSION)
        self._bases = {
            part: np.linalg.qr(rng.normal(size=size))[0].astype(np.float32)
            for part in ("shared", *MODALITIES)
        }
        self._centres = {part: self._centres_of(rng) for part in self._bases}
        directions = np.linalg.qr(rng.normal(size=(DIMENSION, 2)))[0].T.astype(np.float32)
        across = np.sqrt(1 - MEAN_COSINE**2)
        self._means = {
            "text": MEAN_LENGTHS["text"] * directions[0],
            "image": MEAN_LENGTHS["image"] * (MEAN_COSINE * directions[0] + across * directions[1]),
        }
        self.block = lru_cache(maxsize=4)(self._block)

    def _centres_of(self, rng: np.random.Generator) -> VectorArray:
        topics = rng.standard_normal((TOPICS, 1, DIMENSION), np.float32)
        stories = rng.standard_normal((TOPICS, STORIES, DIMENSION), np.float32)
        centres = np.sqrt(SHARES[0]) * topics + np.sqrt(SHARES[1]) * stories
        return centres.reshape(-1, DIMENSION).astype(np.float32)

    def _part(self, name: str, rng: np.random.Generator, count: int) -> VectorArray:
        topics = rng.choice(TOPICS, size=count, p=_TOPIC_SHARE / _TOPIC_SHARE.sum())
        stories = topics * STORIES + rng.integers(STORIES, size=count)
        own = rng.standard_normal((count, DIMENSION), np.float32)
        rows = self._centres[name][stories] + np.float32(np.sqrt(SHARES[2])) * own
        return np.asarray((rows * _SPREAD) @ self._bases[name], dtype=np.float32)

    def _of(self, modality: str, shared: VectorArray, rng: np.random.Generator) -> VectorArray:
        count, length = len(shared), MEAN_LENGTHS[modality]
        own = self._part(modality, rng, count)
        around = np.sqrt(1 - length**2) * (np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * own)
        central = 1 + CENTRAL * rng.standard_normal((count, 1), np.float32)
        return unit_rows((central * self._means[modality] + around).astype(np.float32))

    def _block(self, number: int) -> dict[str, VectorArray]:
        """Vectors of a block of documents by modality, and their shared parts.

        Args:
            number: number of the block, whose first document is ``BLOCK * number``.
        """
        rng = np.random.default_rng([1, number])
        shared = self._part("shared", rng, BLOCK)
        return {
            "shared": shared,
            **{modality: self._of(modality, shared, rng) for modality in MODALITIES},
        }

    def vector(self, modality: Modality, document: int) -> VectorArray:
        """The vector of a document's text or image, shape (512,)."""
        return self.block(document // BLOCK)[modality][document % BLOCK]

    def query(self, document: int) -> VectorArray:
        """A text vector with the shared part of a document, and a new part of its own.

        Args:
            document: the document that the query asks for.

        Returns:
            Shape (512,).
        """
        shared = self.block(document // BLOCK)["shared"][document % BLOCK]
        return self._of("text", shared[None], np.random.default_rng([2, document]))[0]


@lru_cache(maxsize=1)
def simulation() -> Simulation:
    """The only simulation of the process: it takes 100 MB."""
    return Simulation()


class SimulatedEmbedding(MultiModalEmbedding):
    """Reads the document's number at a text's start, in an image's name, or at a query's end."""

    model_name: str = "simulated"
    dimension: int = DIMENSION
    embed_batch_size: int = 256

    def _get_text_embedding(self, text: str) -> list[float]:
        return list(simulation().vector("text", int(text.split(maxsplit=1)[0])).tolist())

    def _get_image_embedding(self, img_file_path: Any) -> list[float]:
        return list(simulation().vector("image", int(Path(str(img_file_path)).stem)).tolist())

    def _get_query_embedding(self, query: str) -> list[float]:
        return list(simulation().query(int(query.rsplit(maxsplit=1)[-1])).tolist())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    async def _aget_image_embedding(self, img_file_path: Any) -> list[float]:
        return self._get_image_embedding(img_file_path)


def make_nodes(start: int, stop: int) -> list[BaseNode]:
    """A text node of some 400 characters and an image node for each document.

    Args:
        start: number of the first document.
        stop: number after the last one.
    """
    nodes: list[BaseNode] = []
    for number in range(start, stop):
        common: dict[str, Any] = {
            "metadata": {"section": f"section {number % 10}", "year": 2000 + number % 20},
            "excluded_embed_metadata_keys": ["section", "year"],
            "relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"story-{number}")},
        }
        nodes.append(TextNode(id_=f"{number}#text", text=f"{number} {TEXT}", **common))
        nodes.append(ImageNode(id_=f"{number}#image", image_path=f"/images/{number}.jpg", **common))
    return nodes


def statistics(texts: FloatArray, images: FloatArray) -> dict[str, float]:
    """The statistics that the simulation was fitted to.

    Args:
        texts: unit vectors, shape (n, d).
        images: likewise; row i belongs to the same document as row i of the texts.
    """
    found = {
        "distance of the means": float(np.linalg.norm(texts.mean(axis=0) - images.mean(axis=0))),
        "a text and its image": float((texts * images).sum(axis=1).mean()),
        "σ across modalities": float((texts @ images.T).std()),
        "image found first": float(
            ((texts @ images.T).argmax(axis=1) == np.arange(len(texts))).mean()
        ),
        "ρ of images as hubs": reliability(images[:300], texts[300:]),
    }
    for name, rows in (("texts", texts), ("images", images)):
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -1)
        nearest = np.sort(cosines, axis=1)[:, ::-1]
        spread = np.linalg.eigvalsh(np.cov(rows.T))
        found |= {
            f"{name}: length of the mean": float(np.linalg.norm(rows.mean(axis=0))),
            f"{name}: nearest other": float(nearest[:, 0].mean()),
            f"{name}: tenth nearest": float(nearest[:, 9].mean()),
            f"{name}: effective dimensions": float(spread.sum() ** 2 / (spread**2).sum()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=Path, nargs="?", help="a .npy file for comparison")
    options = parser.parse_args()
    block = simulation().block(0)
    columns = {"simulated": statistics(block["text"][:500], block["image"][:500])}
    if options.features is not None:
        images, texts = unit_rows(np.load(options.features).astype(np.float64), np.float64)
        columns["real"] = statistics(texts, images)
    print(" " * 30 + "".join(f"{name:>12}" for name in columns))
    for name in columns["simulated"]:
        print(f"{name:<30}" + "".join(f"{values[name]:>12.3f}" for values in columns.values()))


if __name__ == "__main__":
    main()
