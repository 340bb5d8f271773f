"""From a name to a loaded encoder or reranker."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.models.base import Encoder, ModelError, PairScorer
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, find_checkpoint
from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS
from llama_index_gap.models.runtime import Dtype, resolve_device, resolve_dtype

logger = logging.getLogger(__name__)

Loader: TypeAlias = Callable[..., Encoder]

_JINA_RERANKER = "JinaVLForRanking"
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)


def load_encoder(
    name: str,
    *,
    device: str | None = None,
    dtype: Dtype = "auto",
    max_text_tokens: int | None = None,
    query_prompt: str | None = None,
    document_prompt: str | None = None,
    revision: str | None = None,
    cache_folder: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Encoder:
    """Load the encoder that a checkpoint holds.

    The family is found by ``model_type`` in its ``config.json``. A licence that forbids commercial
    use is logged as a warning, once for each model.

    Args:
        name: a preset (``llama-gap models`` lists them), a folder or a hub name. A folder that is
            called like a preset is written ``./jina``.
        device: a torch device; None for a GPU if there is one.
        dtype: number format of the weights; ``"auto"`` for bfloat16 where it is fast.
        max_text_tokens: cut texts earlier than the checkpoint does.
        query_prompt: put before each query; None for the checkpoint's own.
        document_prompt: put before each document; None for the checkpoint's own.
        revision: branch, tag or commit on the hub.
        cache_folder: where downloads are kept.
        trust_remote_code: run Python code that comes with the checkpoint; families that are
            implemented here need none and run none.
        allow_pickle: read weights in pickle format where there are no safetensors; families that
            are implemented here do not.

    Raises:
        ModelError: the checkpoint cannot be found or loaded.
        ValueError: an argument does not fit this machine or the checkpoint.
    """
    preset = PRESETS.get(name)
    names = (name,) if preset is None else preset.checkpoints
    if revision is not None and len(names) > 1:
        raise InvalidValueError(
            f"revision={revision!r}: {name} is made of {' and '.join(names)}, and a revision "
            "belongs to one of them; leave it out, or load the two by their own names"
        )
    device = resolve_device(device)
    checkpoints = [
        find_checkpoint(
            each,
            revision=revision,
            cache_folder=cache_folder,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        for each in names
    ]
    family = checkpoints[0].model_type or ""
    load: Loader = _FAMILIES.get(family, _load_sentence_transformer)
    encoder = load(
        checkpoints,
        device=device,
        dtype=resolve_dtype(dtype, device),
        max_text_tokens=max_text_tokens,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    for checkpoint in checkpoints:
        _check_licence(checkpoint)
    return encoder


def load_scorer(
    name: str,
    *,
    device: str | None = None,
    dtype: Dtype = "auto",
    max_pixels: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    prefix_bytes: int | None = None,
    vision_bytes: int | None = None,
    vision_folder: str | Path | None = None,
    revision: str | None = None,
    cache_folder: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> PairScorer:
    """Load the reranker that a checkpoint holds.

    The family is found by what the files say that they hold: jina-reranker-m0, a cross-encoder or a
    late-interaction model. A licence that forbids commercial use is logged as a warning, once for
    each model. A setting that is left at None is the family's own; one that a family does not know
    is an error.

    Args:
        name: a preset (``"jina-m0"``), a folder or a hub name. A folder that is called like a
            preset is written ``./jina-m0``.
        device: a torch device; None for a GPU if there is one.
        dtype: number format of the weights; ``"auto"`` for bfloat16 where it is fast.
        max_pixels: scale larger images down to this, to save time.
        max_length: longest pair of query and document, in tokens; what exceeds it is cut off.
        batch_size: most documents in one pass of the model.
        prefix_bytes: how much is kept of what the model made of documents, for the next query; 0
            for nothing.
        vision_bytes: how much is kept of what it saw in images; 0 for nothing.
        vision_folder: where to keep that on disk as well.
        revision: branch, tag or commit on the hub.
        cache_folder: where downloads are kept.
        trust_remote_code: run Python code that comes with the checkpoint; families that are
            implemented here need none and run none.
        allow_pickle: read weights in pickle format where there are no safetensors; families that
            are implemented here do not.

    Raises:
        ModelError: the checkpoint cannot be found or loaded, or is no reranker.
        ValueError: an argument does not fit this machine or the checkpoint.
    """
    if name in PRESETS:
        raise InvalidValueError(
            f"{name} is a preset of encoders; for a reranker pass a folder, a hub name or one of "
            f"{', '.join(SCORER_PRESETS)}"
        )
    device = resolve_device(device)
    checkpoint = find_checkpoint(
        SCORER_PRESETS[name].checkpoint if name in SCORER_PRESETS else name,
        revision=revision,
        cache_folder=cache_folder,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    settings = {
        "max_pixels": max_pixels,
        "max_length": max_length,
        "batch_size": batch_size,
        "prefix_bytes": prefix_bytes,
        "vision_bytes": vision_bytes,
        "vision_folder": vision_folder,
    }
    given = {key: value for key, value in settings.items() if value is not None}
    family = _scorer_family(checkpoint)
    known = signature(family).parameters
    for key, value in given.items():
        if key not in known:
            raise InvalidValueError(f"{key}={value}: {checkpoint.name} has no such setting")
    # Families that are implemented here run no remote code and read no pickles, asked or not.
    permissions = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    given |= {key: value for key, value in permissions.items() if key in known}
    scorer = family(checkpoint, device=device, dtype=resolve_dtype(dtype, device), **given)
    _check_licence(checkpoint)
    return scorer


def _load_jina_clip(
    checkpoints: Sequence[Checkpoint],
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
    **options: Any,
) -> Encoder:
    from llama_index_gap.models.encoders.jina_clip import JinaClipEncoder

    (checkpoint,) = checkpoints
    return JinaClipEncoder(checkpoint, **options)


def _load_nomic(
    checkpoints: Sequence[Checkpoint],
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
    **options: Any,
) -> Encoder:
    from llama_index_gap.models.encoders.nomic import NomicEncoder, is_vision

    sides = {is_vision(checkpoint): checkpoint for checkpoint in checkpoints}
    return NomicEncoder(sides.get(False), sides.get(True), **options)


def _load_image_encoder(
    checkpoints: Sequence[Checkpoint], *, trust_remote_code: bool, **options: Any
) -> Encoder:
    from llama_index_gap.models.encoders.image_encoder import ImageEncoder

    (checkpoint,) = checkpoints
    # A model that sentence-transformers saved says itself how it pools.
    if (checkpoint.folder / "modules.json").is_file():
        return _load_sentence_transformer(
            checkpoints, trust_remote_code=trust_remote_code, **options
        )
    return ImageEncoder(checkpoint, **options)


def _load_sentence_transformer(checkpoints: Sequence[Checkpoint], **options: Any) -> Encoder:
    from llama_index_gap.models.encoders.sentence_transformer import SentenceTransformerEncoder

    (checkpoint,) = checkpoints
    return SentenceTransformerEncoder(checkpoint, **options)


# By ``model_type``; every other is left to sentence-transformers.
_FAMILIES: dict[str, Loader] = {
    "dinov2": _load_image_encoder,
    "dinov2_with_registers": _load_image_encoder,
    "dinov3_vit": _load_image_encoder,
    "jina_clip": _load_jina_clip,
    "nomic_bert": _load_nomic,
    "vit": _load_image_encoder,
}
# For downloads without their model card.
_LICENCES = {
    **{name: preset.licence for preset in PRESETS.values() for name in preset.checkpoints},
    **{preset.checkpoint: preset.licence for preset in SCORER_PRESETS.values()},
}


def _scorer_family(checkpoint: Checkpoint) -> Callable[..., PairScorer]:
    """By what the files say they hold: ``model_type`` is often that of something else."""
    from llama_index_gap.models.rerankers import cross_encoder, late_interaction

    architectures = checkpoint.config.get("architectures") or []
    if _JINA_RERANKER in architectures:
        from llama_index_gap.models.rerankers.jina_reranker import JinaRerankerScorer

        return JinaRerankerScorer
    if late_interaction.fits(checkpoint):
        return late_interaction.LateInteractionScorer
    if cross_encoder.fits(checkpoint):
        return cross_encoder.CrossEncoderScorer
    raise ModelError(
        f"{checkpoint.name}: no reranker that can be loaded; its config.json says "
        f"architectures={architectures}, and known are {_JINA_RERANKER}, cross-encoders "
        "(…ForSequenceClassification) and late interaction (…ForRetrieval), or what "
        "sentence-transformers saved as one of these"
    )


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
