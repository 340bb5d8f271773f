"""Aligners fitted on what a model makes of nodes."""

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
        nodes: a ``LinearAligner`` learns from images with captions, and from nothing else; the
            others from all texts, captions too, and all images. A few hundred of each are good.
        embed_model: the model; one without an aligner.
        aligner: which one to fit.
        queries: a sample of queries, where the aligner centres them by themselves: for models with
            a prompt for queries, or queries that do not read like the texts.
        show_progress: show progress bars.
        **settings: as for its ``fit``.

    Returns:
        The aligner, for ``DualEncoderEmbedding(aligner=…)``; ``save`` keeps it.

    Raises:
        ValueError: too few nodes of a sort, or a model that aligns already.
    """
    if embed_model.aligner is not None:
        raise InvalidValueError(
            f"{embed_model.model_name} aligns already; fit on vectors of a model without an aligner"
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
