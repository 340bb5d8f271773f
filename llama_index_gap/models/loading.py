"""From a name to a loaded encoder or reranker."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.model_settings import LoadingSettings, Pooling
from llama_index_gap.models.base import Encoder, ModelError, PairScorer
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, find_checkpoint
from llama_index_gap.models.kinds import (
    IMAGE_ENCODERS,
    JINA_RERANKER,
    check_encoder,
    check_scorer,
)
from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS
from llama_index_gap.models.runtime import placement
from llama_index_gap.models.trial import as_model_errors, try_encoder, try_scorer

logger = logging.getLogger(__name__)

_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)
# For downloads without their model card.
_LICENCES = {
    **{name: preset.licence for preset in PRESETS.values() for name in preset.checkpoints},
    **{preset.checkpoint: preset.licence for preset in SCORER_PRESETS.values()},
}


def load_encoder(
    name: str | Path,
    settings: LoadingSettings | None = None,
    *,
    max_text_tokens: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    pooling: Pooling | None = None,
) -> Encoder:
    """Load the encoder that a checkpoint holds.

    The family is found by ``model_type`` in its ``config.json``. A licence that forbids commercial
    use is logged as a warning, once for each model.

    Args:
        name: a preset (``llama-gap models`` lists them), a folder or a hub name. A folder that is
            called like a preset is written ``./jina``, or passed as a ``Path``. A preset is loaded
            at its own revision where it names one, unless ``settings`` say another.
        settings: how to find and load it.
        max_text_tokens: cut texts earlier than the checkpoint does.
        query_prompt: put before each query; None for the checkpoint's own.
        document_prompt: put before each document; None for the checkpoint's own.
        pooling: how token vectors become one vector: the ``"last"``, the ``"mean"`` or ``"cls"``,
            the first. Needed by checkpoints that do not say so themselves, and refused by others.

    Raises:
        ModelError: the checkpoint cannot be found or loaded, is a reranker, or does not say how it
            makes its vectors.
        ValueError: an argument does not fit this machine or the checkpoint.
    """
    settings = settings or LoadingSettings()
    _check_kind(name, PRESETS, SCORER_PRESETS)
    preset = PRESETS.get(name) if isinstance(name, str) else None
    names: Sequence[str | Path] = (name,) if preset is None else preset.checkpoints
    revisions: Mapping[str, str | None] = {} if preset is None else preset.revisions
    if settings.revision is not None and len(names) > 1:
        raise InvalidValueError(
            f"revision={settings.revision!r}: {name} is made of {' and '.join(map(str, names))}, "
            "and a revision belongs to one of them; leave it out, or load the two by their own "
            "names"
        )
    placement(settings)  # a device that is not there fails before a download
    checkpoints = [
        find_checkpoint(
            each,
            settings.model_copy(update={"revision": settings.revision or revisions.get(str(each))}),
            lambda found: check_encoder(found, settings, pooling),
        )
        for each in names
    ]
    texts: dict[str, Any] = {
        "max_text_tokens": max_text_tokens,
        "query_prompt": query_prompt,
        "document_prompt": document_prompt,
    }
    if pooling is not None:
        texts["pooling"] = pooling
    _check_files(checkpoints, settings)
    with as_model_errors(" + ".join(checkpoint.name for checkpoint in checkpoints)):
        encoder = _make_encoder(checkpoints, settings, texts)
    try_encoder(encoder)
    for checkpoint in checkpoints:
        _check_licence(checkpoint)
    return encoder


def _make_encoder(
    checkpoints: Sequence[Checkpoint], settings: LoadingSettings, texts: dict[str, Any]
) -> Encoder:
    checkpoint, family = checkpoints[0], checkpoints[0].model_type
    if family == "nomic_bert":
        from llama_index_gap.models.encoders.nomic import NomicEncoder, is_vision

        towers = {is_vision(each): each for each in checkpoints}
        return NomicEncoder(towers.get(False), towers.get(True), settings, **texts)
    if family == "jina_clip":
        from llama_index_gap.models.encoders.jina_clip import JinaClipEncoder

        return JinaClipEncoder(checkpoint, settings, **texts)
    # A model that sentence-transformers saved says itself how it pools.
    if family in IMAGE_ENCODERS and not (checkpoint.folder / "modules.json").is_file():
        from llama_index_gap.models.encoders.image_encoder import ImageEncoder

        return ImageEncoder(checkpoint, settings, **texts)
    if family == "clip":
        from llama_index_gap.models.encoders.clip import ClipEncoder, usual_layout

        if (layout := usual_layout(checkpoint)) is not None:
            return ClipEncoder(layout, settings, **texts)
    from llama_index_gap.models.encoders.sentence_transformer import SentenceTransformerEncoder

    return SentenceTransformerEncoder(checkpoint, settings, **texts)


def load_scorer(
    name: str | Path,
    settings: LoadingSettings | None = None,
    *,
    scale_to_pixels: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    prefix_bytes: int | None = None,
    vision_bytes: int | None = None,
    vision_folder: str | Path | None = None,
    vision_disk_bytes: int | None = None,
) -> PairScorer:
    """Load the reranker that a checkpoint holds.

    The family is found by what the files say that they hold: jina-reranker-m0, a cross-encoder or a
    late-interaction model. A licence that forbids commercial use is logged as a warning, once for
    each model. A setting that is left at None is the family's own; one that a family does not know
    is an error.

    Args:
        name: a preset (``"jina-m0"``), a folder or a hub name. A folder that is called like a
            preset is written ``./jina-m0``, or passed as a ``Path``.
        settings: how to find and load it.
        scale_to_pixels: scale larger images down to so many pixels, to save time.
        max_length: longest pair of query and document, in tokens; what exceeds it is cut off.
        batch_size: most documents in one pass of the model.
        prefix_bytes: how much is kept of what the model made of documents, for the next query; 0
            for nothing.
        vision_bytes: how much is kept of what it saw in images; 0 for nothing.
        vision_folder: where to keep that on disk as well; late interaction keeps it in the user's
            cache folder by default, unless ``vision_bytes`` or ``vision_disk_bytes`` is 0.
        vision_disk_bytes: how much is kept on disk; by default 2 GiB.

    Raises:
        ModelError: the checkpoint cannot be found or loaded, or is no reranker.
        ValueError: an argument does not fit this machine or the checkpoint.
    """
    settings = settings or LoadingSettings()
    _check_kind(name, SCORER_PRESETS, PRESETS)
    preset = SCORER_PRESETS.get(name) if isinstance(name, str) else None
    wanted = settings
    if preset is not None:
        name = preset.checkpoint
        wanted = settings.model_copy(update={"revision": settings.revision or preset.revision})
    placement(settings)  # a device that is not there fails before a download
    checkpoint = find_checkpoint(name, wanted, lambda found: check_scorer(found, settings))
    options = {
        "scale_to_pixels": scale_to_pixels,
        "max_length": max_length,
        "batch_size": batch_size,
        "prefix_bytes": prefix_bytes,
        "vision_bytes": vision_bytes,
        "vision_folder": vision_folder,
        "vision_disk_bytes": vision_disk_bytes,
    }
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    _check_files([checkpoint], settings)
    family = _scorer_family(checkpoint)
    for key, value in given.items():
        if key not in signature(family).parameters:
            raise InvalidValueError(f"{key}={value}: {checkpoint.name} has no such setting")
    if family.__name__ == "LateInteractionScorer" and vision_folder is None and vision_bytes != 0:
        from llama_index_gap.models.rerankers.caches import user_cache_folder  # imports torch

        given["vision_folder"] = user_cache_folder()
    with as_model_errors(checkpoint.name):
        scorer = family(checkpoint, settings, **given)
    try_scorer(scorer)
    _check_licence(checkpoint)
    return scorer


def _scorer_family(checkpoint: Checkpoint) -> Callable[..., PairScorer]:
    """By what the files say they hold: ``model_type`` is often that of something else."""
    from llama_index_gap.models.rerankers import cross_encoder, late_interaction

    if JINA_RERANKER in checkpoint.architectures:
        from llama_index_gap.models.rerankers.jina_reranker import JinaRerankerScorer

        return JinaRerankerScorer
    if late_interaction.fits(checkpoint):
        return late_interaction.LateInteractionScorer
    if cross_encoder.fits(checkpoint):
        return cross_encoder.CrossEncoderScorer
    check_scorer(checkpoint, LoadingSettings())  # says what it is instead
    raise ModelError(f"{checkpoint.name}: no reranker that can be loaded")


def _check_kind(name: str | Path, own: Collection[str], others: Collection[str]) -> None:
    """Refuse a plain name that means a model of the other kind, or is one but for its capitals."""
    if not isinstance(name, str) or name in own:
        return
    if name in others:
        kinds, instead = (
            ("encoders", "DualEncoderEmbedding(model_name=…), or on the command line as --model")
            if name in PRESETS
            else ("rerankers", "MultiModalRerank(model=…), or on the command line as --reranker")
        )
        error = ModelError if kinds == "rerankers" else InvalidValueError
        raise error(
            f"{name} is a preset of {kinds}; pass it as {instead}; here pass a folder, a hub name "
            f"or one of {', '.join(own)}"
        )
    if name.lower() in {*own, *others} and not Path(name).expanduser().exists():
        raise ModelError(f"{name}: no such model; did you mean {name.lower()!r}?")


def _check_files(checkpoints: Sequence[Checkpoint], settings: LoadingSettings) -> None:
    from llama_index_gap.models.checkpoints.vetting import check_files  # imports torch

    for checkpoint in checkpoints:
        check_files(checkpoint, settings)


def _check_licence(checkpoint: Checkpoint) -> None:
    licence = checkpoint.licence or _LICENCES.get(checkpoint.name, "")
    if _NON_COMMERCIAL.search(licence):
        _warn_of_licence(checkpoint.name, licence)


@cache  # so that each is said once
def _warn_of_licence(name: str, licence: str) -> None:
    logger.warning(
        "%s has the licence %s: it may not be used commercially. For a product, get a licence from "
        "its makers, or choose a model that is free to use ('llama-gap models' lists some).",
        name,
        licence,
    )
