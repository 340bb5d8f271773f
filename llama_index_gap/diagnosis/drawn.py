"""The data drawn from an index to measure: vectors, their documents, pairs and queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llama_index_gap.gap.arrays import IntArray, VectorArray
from llama_index_gap.modality import MODALITIES, Modality


@dataclass(frozen=True, eq=False)
class Rows:
    """Vectors of one modality of an index.

    Attributes:
        vectors: vectors of length 1, shape (n, d).
        documents: the document of each vector, n in all.
    """

    vectors: VectorArray
    documents: Sequence[str]

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True, eq=False)
class Queries:
    """Queries of one modality.

    Attributes:
        vectors: for each collection that they can search, their vectors of length 1, shape (q, d).
        relevant: the relevant documents of each query, with their grades. None if the queries are
            the first stored vectors of their modality, which never find themselves.
    """

    vectors: Mapping[Modality, VectorArray]
    relevant: Sequence[Mapping[str, int]] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Data drawn from an index, in random order.

    Attributes:
        texts: vectors of the text collection.
        images: vectors of the image collection.
        pairs: rows of a text and of an image that belong together, shape (l, 2).
        one_space: whether one model embedded both modalities, so that they can be compared.
        aligned: whether an aligner has already moved the vectors, so that no other is fitted.
        queries: labelled queries by modality. For a modality without any, stored vectors stand in.
        added: documents that were not drawn, but are relevant to a query.
        by_image: the images' vectors from the encoder for image queries, shape (m, e), with NaN
            for missing ones; None if there is no such encoder.
    """

    texts: Rows
    images: Rows
    pairs: IntArray
    one_space: bool = True
    aligned: bool = False
    queries: Mapping[Modality, Queries] = field(default_factory=dict)
    added: frozenset[str] = frozenset()
    by_image: VectorArray | None = None

    def of(self, modality: Modality) -> Rows:
        """The texts or the images."""
        return self.texts if modality == "text" else self.images

    def counts(self) -> dict[str, int]:
        """The numbers of ``texts``, ``images`` and ``pairs``."""
        return {"texts": len(self.texts), "images": len(self.images), "pairs": len(self.pairs)}

    def among(self, documents: frozenset[str]) -> Drawn:
        """The vectors and pairs of some of the documents, in the same order, with all queries."""
        kept, rows = {}, {}
        for modality in MODALITIES:
            every = self.of(modality)
            kept[modality] = np.flatnonzero([each in documents for each in every.documents])
            rows[modality] = Rows(
                every.vectors[kept[modality]], [every.documents[i] for i in kept[modality].tolist()]
            )
        both = np.isin(self.pairs[:, 0], kept["text"]) & np.isin(self.pairs[:, 1], kept["image"])
        pairs = [
            np.searchsorted(kept[modality], self.pairs[both, column])
            for column, modality in enumerate(MODALITIES)
        ]
        return replace(
            self,
            texts=rows["text"],
            images=rows["image"],
            pairs=np.column_stack(pairs),
            by_image=None if self.by_image is None else self.by_image[kept["image"]],
        )
