"""Tells encoders, rerankers and other checkpoints apart by their configuration files."""

from __future__ import annotations

from typing import Any

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.model_settings import LoadingSettings, Pooling
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.layout import (
    MODULES,
    TRUST_REMOTE_CODE,
    needs_pooling,
)

JINA_RERANKER = "JinaVLForRanking"
IMAGE_ENCODERS = {"dinov2", "dinov2_with_registers", "dinov3_vit", "vit"}
_NATIVE_ENCODERS = {"clip", "jina_clip", "nomic_bert"}
_RERANKER_CLASSES = ("ForRanking", "ForReranking", "Reranker")


def check_encoder(
    checkpoint: Checkpoint, settings: LoadingSettings, pooling: Pooling | None
) -> None:
    """Reject a checkpoint that is not an encoder or does not state its pooling.

    Args:
        checkpoint: its configuration; weights need not be there yet.
        settings: what the caller allows.
        pooling: how token vectors become one vector; None if the caller does not say.

    Raises:
        ModelError: the checkpoint is a reranker, needs a newer transformers or its own code, or
            does not state its pooling.
        ValueError: ``pooling`` is given although the checkpoint states its own.
    """
    if is_reranker(checkpoint):
        raise ModelError(
            f"{checkpoint.name} is a reranker, not an encoder; pass it as "
            "MultiModalRerank(model=…), or on the command line as --reranker"
        )
    open_pooling = _leaves_pooling_open(checkpoint, settings)
    if pooling is not None and open_pooling is False:
        raise InvalidValueError(
            f"pooling={pooling!r}: {checkpoint.name} states its own pooling; leave pooling out (on "
            "the command line, --pooling)"
        )
    if pooling is None and open_pooling:
        raise ModelError(needs_pooling(checkpoint.name))


def check_scorer(checkpoint: Checkpoint, settings: LoadingSettings) -> None:
    """Reject a checkpoint that is not a reranker.

    Raises:
        ModelError: the checkpoint is an encoder, or a reranker of an unknown family.
    """
    from llama_index_gap.models.rerankers import cross_encoder, late_interaction

    if JINA_RERANKER in checkpoint.architectures:
        return
    if late_interaction.fits(checkpoint) or cross_encoder.fits(checkpoint):
        if not (checkpoint.folder / MODULES).is_file():
            _check_known(checkpoint, settings)
        return
    if _is_encoder(checkpoint):
        raise ModelError(
            f"{checkpoint.name} is an encoder, not a reranker; pass it as "
            "DualEncoderEmbedding(model_name=…), or on the command line as --model"
        )
    own = "; its own code (auto_map) is not run for rerankers" if _own_code(checkpoint) else ""
    raise ModelError(
        f"{checkpoint.name}: cannot be loaded as a reranker; its config.json says "
        f"architectures={checkpoint.architectures}. Known are {JINA_RERANKER}, cross-encoders "
        "(…ForSequenceClassification), late interaction (…ForRetrieval), and models that "
        f"sentence-transformers saved as one of these{own}"
    )


def is_reranker(checkpoint: Checkpoint) -> bool:
    """Whether the configuration says that a checkpoint is a cross-encoder or late interaction."""
    from llama_index_gap.models.rerankers import cross_encoder, late_interaction

    named = any(name.endswith(_RERANKER_CLASSES) for name in checkpoint.architectures)
    return named or cross_encoder.fits(checkpoint) or late_interaction.fits(checkpoint)


def _is_encoder(checkpoint: Checkpoint) -> bool:
    from llama_index_gap.models.checkpoints.sbert import saved_as

    if (checkpoint.folder / MODULES).is_file():
        return saved_as(checkpoint) in {None, "SentenceTransformer"}
    family = checkpoint.model_type
    if family in IMAGE_ENCODERS | _NATIVE_ENCODERS:
        return True
    return hasattr(_model_class(family), "get_text_features")


def _leaves_pooling_open(checkpoint: Checkpoint, settings: LoadingSettings) -> bool | None:
    """Whether no file states the pooling; None if only the checkpoint's own code knows it."""
    family = checkpoint.model_type
    if (checkpoint.folder / MODULES).is_file() or family in _NATIVE_ENCODERS | IMAGE_ENCODERS:
        return False
    _check_known(checkpoint, settings)
    model = _model_class(family)
    if model is None:
        return None
    return not hasattr(model, "get_text_features")


def _check_known(checkpoint: Checkpoint, settings: LoadingSettings) -> None:
    """Reject families that the installed transformers does not know."""
    import transformers

    config, family = checkpoint.config, checkpoint.model_type
    if not config:
        raise ModelError(
            f"{checkpoint.name}: has neither config.json nor {MODULES}, and a model needs one of "
            "them; choose another model"
        )
    if family is None:
        raise ModelError(
            f"{checkpoint.name}: its config.json names no model_type, so transformers cannot "
            "recognise it; choose another model, or download it again"
        )
    if family in transformers.CONFIG_MAPPING:
        return
    if not _own_code(checkpoint):
        raise ModelError(
            f"{checkpoint.name}: transformers {transformers.__version__} does not know its "
            f"model_type {family[:60]!r}; try a newer version (pip install --upgrade "
            "transformers), or choose another model"
        )
    if not settings.trust_remote_code:
        raise ModelError(
            f"{checkpoint.name}: its model_type {family[:60]!r} needs the model's own code, which "
            f"does not run by default; if you trust its makers, pass {TRUST_REMOTE_CODE}"
        )


def _own_code(checkpoint: Checkpoint) -> bool:
    return isinstance(checkpoint.config.get("auto_map"), dict)


def _model_class(family: str | None) -> Any:
    """The class that transformers uses for a family; None if it has none."""
    import transformers

    if family is None or family not in transformers.CONFIG_MAPPING:
        return None
    try:
        found = transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[family]]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found
