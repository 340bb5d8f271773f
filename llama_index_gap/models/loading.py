"""From a name to a loaded encoder."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

from llama_index_gap.models.base import Encoder
from llama_index_gap.models.checkpoint import Checkpoint, find_checkpoint
from llama_index_gap.models.presets import PRESETS
from llama_index_gap.models.runtime import Dtype, resolve_device, resolve_dtype

logger = logging.getLogger(__name__)

Loader: TypeAlias = Callable[..., Encoder]

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
        raise ValueError(
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
        licence = checkpoint.licence or _LICENCES.get(checkpoint.name, "")
        if _NON_COMMERCIAL.search(licence):
            _warn_of_licence(checkpoint.name, licence)
    return encoder


def _load_jina_clip(
    checkpoints: Sequence[Checkpoint],
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
    **options: Any,
) -> Encoder:
    from llama_index_gap.models.jina_clip import JinaClipEncoder

    (checkpoint,) = checkpoints
    return JinaClipEncoder(checkpoint, **options)


def _load_nomic(
    checkpoints: Sequence[Checkpoint],
    *,
    trust_remote_code: bool,
    allow_pickle: bool,
    **options: Any,
) -> Encoder:
    from llama_index_gap.models.nomic import NomicEncoder, is_vision

    sides = {is_vision(checkpoint): checkpoint for checkpoint in checkpoints}
    return NomicEncoder(sides.get(False), sides.get(True), **options)


def _load_image_encoder(
    checkpoints: Sequence[Checkpoint], *, trust_remote_code: bool, **options: Any
) -> Encoder:
    from llama_index_gap.models.image_encoder import ImageEncoder

    (checkpoint,) = checkpoints
    if (
        checkpoint.folder / "modules.json"
    ).is_file():  # of sentence-transformers; says how it pools
        return _load_sentence_transformer(
            checkpoints, trust_remote_code=trust_remote_code, **options
        )
    return ImageEncoder(checkpoint, **options)


def _load_sentence_transformer(checkpoints: Sequence[Checkpoint], **options: Any) -> Encoder:
    from llama_index_gap.models.sentence_transformer import SentenceTransformerEncoder

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
_LICENCES = {name: preset.licence for preset in PRESETS.values() for name in preset.checkpoints}


@cache  # so that each is said once
def _warn_of_licence(name: str, licence: str) -> None:
    logger.warning(
        "%s has the licence %s: it may not be used commercially. For a product, get a licence from "
        "its makers, or choose a model that is free to use ('llama-gap models' lists some).",
        name,
        licence,
    )
