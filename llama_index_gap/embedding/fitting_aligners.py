"""Fits aligners on a model's vectors of nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_index.core.schema import BaseNode, ImageNode

from llama_index_gap.embedding.dual_encoder import DualEncoderEmbedding
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.align import Aligner, CenterAligner, LinearAligner, OffsetAligner


def aligner_from_nodes(
    nodes: Sequence[BaseNode],
    embed_model: DualEncoderEmbedding,
    aligner: type[OffsetAligner] | type[CenterAligner] = LinearAligner,
    *,
    queries: Sequence[str] | None = None,
    show_progress: bool = False,
    **settings: Any,
) -> Aligner:
    """Fit an aligner on a model's vectors of nodes.

    Args:
        nodes: a ``LinearAligner`` learns only from images with captions; the others learn from all
            texts, including captions, and all images. A few hundred of each suffice.
        embed_model: the model; must not have an aligner.
        aligner: class of the aligner.
        queries: a sample of queries that the aligner centres separately: for models with a prompt
            for queries, or queries that do not read like the texts.
        show_progress: show progress bars.
        **settings: as for the class's ``fit``.

    Returns:
        The aligner, for ``DualEncoderEmbedding(aligner=…)``; ``save`` keeps it.

    Raises:
        ValueError: there are too few nodes of a kind, or the model already has an aligner.
    """
    if embed_model.aligner is not None:
        raise InvalidValueError(
            f"{embed_model.model_name} already has an aligner; pass a model without one"
        )
    if issubclass(aligner, LinearAligner):
        nodes = [node for node in nodes if isinstance(node, ImageNode) and node.text]
    embedded = embed_model(nodes, show_progress=show_progress)
    images = [node for node in embedded if isinstance(node, ImageNode)]
    captions = [node.text_embedding for node in images if node.text_embedding is not None]
    texts = [node.embedding for node in embedded if not isinstance(node, ImageNode)]

    def rows(vectors: Iterable[Any]) -> npt.NDArray[np.float32]:
        return np.reshape(np.array([*vectors], dtype=np.float32), (-1, embed_model.dimension))

    if queries is not None:
        settings["queries"] = rows(map(embed_model.get_query_embedding, queries))
    return aligner.fit(
        rows(texts + captions),
        rows(node.embedding for node in images),
        model_name=embed_model.model_name,
        **settings,
    )
