"""Finds and loads an encoder or a reranker by its name."""

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
from llama_index_gap.models.presets import DEMO, DEMO_MODELS, PRESETS, SCORER_PRESETS
from llama_index_gap.models.runtime import placement
from llama_index_gap.models.trial import as_model_errors, try_encoder, try_scorer
from llama_index_gap.progress import timed_step

logger = logging.getLogger(__name__)

_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)
# For downloads without a model card.
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
    """Load the encoder in a checkpoint.

    ``model_type`` in its ``config.json`` tells the family. If the licence forbids commercial use, a
    warning is logged, once for each model.

    Args:
        name: a preset (``llama-gap models`` lists them), ``"demo"`` for the package's own tiny one,
            a folder or a hub name. Write a folder with the name of a preset as ``./jina``, or pass
            a ``Path``. A preset may name its own revision, which ``settings`` can override.
        settings: how to find and load it.
        max_text_tokens: cut texts to fewer tokens than the checkpoint reads.
        query_prompt: put before each query; None for the checkpoint's own.
        document_prompt: put before each document; None for the checkpoint's own.
        pooling: how token vectors become one vector: ``"last"``, ``"mean"``, or ``"cls"`` for the
            first. Needed if the checkpoint does not state it, and an error if it does.

    Raises:
        ModelError: the checkpoint cannot be found or loaded, is a reranker, or does not state its
            pooling.
        ValueError: an argument does not fit this machine or the checkpoint.
    """
    settings = settings or LoadingSettings()
    if name == DEMO:
        name = DEMO_MODELS["encoder"]
    _check_kind(name, PRESETS, SCORER_PRESETS)
    preset = PRESETS.get(name) if isinstance(name, str) else None
    names: Sequence[str | Path] = (name,) if preset is None else preset.checkpoints
    revisions: Mapping[str, str | None] = {} if preset is None else preset.revisions
    if settings.revision is not None and len(names) > 1:
        raise InvalidValueError(
            f"revision={settings.revision!r}: {name} consists of {' and '.join(map(str, names))}, "
            "but a revision belongs to one repository; leave it out, or load the two by their own "
            "names"
        )
    placement(settings)  # a missing device fails before the download
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
    whole_name = " + ".join(checkpoint.name for checkpoint in checkpoints)
    with timed_step(f"Loading {whole_name}"):
        _check_files(checkpoints, settings)
        with as_model_errors(whole_name):
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
    # A model that sentence-transformers saved states its own pooling.
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
    """Load the reranker in a checkpoint.

    The files tell the family: jina-reranker-m0, a cross-encoder or a late-interaction model. If the
    licence forbids commercial use, a warning is logged, once for each model. A setting of None
    means the family's default; a setting that the family does not have is an error.

    Args:
        name: a preset (``"jina-m0"``), ``"demo"`` for the package's own tiny one, a folder or a hub
            name. Write a folder with the name of a preset as ``./jina-m0``, or pass a ``Path``.
        settings: how to find and load it.
        scale_to_pixels: scale larger images down to this number of pixels, to save time.
        max_length: longest pair of query and document, in tokens; the rest is cut off.
        batch_size: maximum number of documents in a pass of the model.
        prefix_bytes: maximum size of the cache in memory for keys and values of documents; 0 for no
            cache.
        vision_bytes: maximum size of the cache in memory for vectors of images; 0 for no cache.
        vision_folder: folder of a cache on disk for vectors of images. Late interaction uses the
            user's cache folder by default, unless ``vision_bytes`` or ``vision_disk_bytes`` is 0.
        vision_disk_bytes: maximum size of the cache on disk; by default 2 GiB.

    Raises:
        ModelError: the checkpoint cannot be found or loaded, or is not a reranker.
        ValueError: an argument does not fit this machine or the checkpoint.
    """
    settings = settings or LoadingSettings()
    if name == DEMO:
        name = DEMO_MODELS["reranker"]
    _check_kind(name, SCORER_PRESETS, PRESETS)
    preset = SCORER_PRESETS.get(name) if isinstance(name, str) else None
    wanted = settings
    if preset is not None:
        name = preset.checkpoint
        wanted = settings.model_copy(update={"revision": settings.revision or preset.revision})
    placement(settings)  # a missing device fails before the download
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
    with timed_step(f"Loading {checkpoint.name}"):
        _check_files([checkpoint], settings)
        scorer = _make_scorer(checkpoint, settings, given)
        try_scorer(scorer)
    _check_licence(checkpoint)
    return scorer


def _make_scorer(
    checkpoint: Checkpoint, settings: LoadingSettings, given: dict[str, Any]
) -> PairScorer:
    family = _scorer_family(checkpoint)
    for key, value in given.items():
        if key not in signature(family).parameters:
            raise InvalidValueError(
                f"{key}={value}: {checkpoint.name} has no such setting; leave it out"
            )
    if (
        family.__name__ == "LateInteractionScorer"
        and "vision_folder" not in given
        and given.get("vision_bytes") != 0
    ):
        from llama_index_gap.models.rerankers.caches import user_cache_folder  # imports torch

        given = {**given, "vision_folder": user_cache_folder()}
    with as_model_errors(checkpoint.name):
        return family(checkpoint, settings, **given)


def _scorer_family(checkpoint: Checkpoint) -> Callable[..., PairScorer]:
    """The class for a checkpoint, by its architectures: ``model_type`` may be another model's."""
    from llama_index_gap.models.rerankers import cross_encoder, late_interaction

    if JINA_RERANKER in checkpoint.architectures:
        from llama_index_gap.models.rerankers.jina_reranker import JinaRerankerScorer

        return JinaRerankerScorer
    if late_interaction.fits(checkpoint):
        return late_interaction.LateInteractionScorer
    if cross_encoder.fits(checkpoint):
        return cross_encoder.CrossEncoderScorer
    check_scorer(checkpoint, LoadingSettings())  # its error says what the checkpoint is instead
    raise ModelError(f"{checkpoint.name}: cannot be loaded as a reranker; choose another model")


def _check_kind(name: str | Path, own: Collection[str], others: Collection[str]) -> None:
    """Reject the name of a preset of the other kind, or in the wrong case."""
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


@cache  # warns once for each model
def _warn_of_licence(name: str, licence: str) -> None:
    logger.warning(
        "%s has the licence %s: it may not be used commercially. For a product, get a licence from "
        "its makers, or choose a model with a free licence ('llama-gap models' lists some).",
        name,
        licence,
    )
