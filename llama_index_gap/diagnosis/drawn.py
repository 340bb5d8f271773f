"""What was drawn from an index to be measured: vectors, their documents, pairs and queries."""

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
        vectors: shape (n, d), of length 1.
        documents: the document of each, n of them.
    """

    vectors: VectorArray
    documents: Sequence[str]

    def __len__(self) -> int:
        return len(self.documents)


@dataclass(frozen=True, eq=False)
class Queries:
    """Queries of one modality.

    Attributes:
        vectors: for each collection that they can ask, their vectors for it, shape (q, d), of
            length 1.
        relevant: for each query its relevant documents, with their grades. None where the queries
            are the first stored vectors of their modality, which do not find themselves.
    """

    vectors: Mapping[Modality, VectorArray]
    relevant: Sequence[Mapping[str, int]] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))


@dataclass(frozen=True, eq=False)
class Drawn:
    """What was drawn from an index, in random order.

    Attributes:
        texts: of the text collection.
        images: of the image collection.
        pairs: rows of a text and of an image that belong together, shape (l, 2).
        one_space: whether one model embedded both modalities, so they can be compared.
        aligned: whether an aligner moved the vectors already, so no other is fitted.
        queries: labelled ones, by their modality. Stored vectors are the queries of a modality
            without any.
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

    def of(self, modality: Modality) -> Rows:
        """The texts or the images."""
        return self.texts if modality == "text" else self.images

    def counts(self) -> dict[str, int]:
        """How many ``texts``, ``images`` and ``pairs`` there are."""
        return {"texts": len(self.texts), "images": len(self.images), "pairs": len(self.pairs)}

    def among(self, documents: frozenset[str]) -> Drawn:
        """What belongs to some of the documents, in the same order; queries stay."""
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
