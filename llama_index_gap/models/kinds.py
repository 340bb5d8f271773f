"""What a checkpoint is, by its settings alone: an encoder, a reranker, or something else."""

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
    """Refuse what is no encoder, or does not say how its vectors are made.

    Args:
        checkpoint: its settings; weights need not be there.
        settings: what the caller allows.
        pooling: how token vectors become one vector, if the caller says so.

    Raises:
        ModelError: it is a reranker, needs a newer transformers or code of its own, or leaves its
            pooling open.
        ValueError: there is a pooling, and the checkpoint says itself how it pools.
    """
    if is_reranker(checkpoint):
        raise ModelError(
            f"{checkpoint.name}: is a reranker, not an encoder; pass it as "
            "MultiModalRerank(model=…), or on the command line as --reranker"
        )
    open_pooling = _leaves_pooling_open(checkpoint, settings)
    if pooling is not None and open_pooling is False:
        raise InvalidValueError(
            f"pooling={pooling!r}: {checkpoint.name} says itself how it makes a vector; leave it "
            "out (on the command line --pooling)"
        )
    if pooling is None and open_pooling:
        raise ModelError(needs_pooling(checkpoint.name))


def check_scorer(checkpoint: Checkpoint, settings: LoadingSettings) -> None:
    """Refuse what is no reranker.

    Raises:
        ModelError: it is an encoder, or a reranker of a family that is not known here.
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
            f"{checkpoint.name}: is an encoder, not a reranker; pass it as "
            "DualEncoderEmbedding(model_name=…), or on the command line as --model"
        )
    own = "; its own code (auto_map) is not run for rerankers" if _own_code(checkpoint) else ""
    raise ModelError(
        f"{checkpoint.name}: no reranker that can be loaded; its config.json says "
        f"architectures={checkpoint.architectures}, and known are {JINA_RERANKER}, cross-encoders "
        "(…ForSequenceClassification) and late interaction (…ForRetrieval), or what "
        f"sentence-transformers saved as one of these{own}"
    )


def is_reranker(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's settings say that it ranks, by a cross-encoder or late interaction."""
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
    """Whether nothing says how token vectors become one; None where only its own code knows."""
    family = checkpoint.model_type
    if (checkpoint.folder / MODULES).is_file() or family in _NATIVE_ENCODERS | IMAGE_ENCODERS:
        return False
    _check_known(checkpoint, settings)
    model = _model_class(family)
    if model is None:
        return None
    return not hasattr(model, "get_text_features")


def _check_known(checkpoint: Checkpoint, settings: LoadingSettings) -> None:
    """Refuse families that this transformers does not have."""
    import transformers

    config, family = checkpoint.config, checkpoint.model_type
    if not config:
        raise ModelError(
            f"{checkpoint.name}: has neither config.json nor {MODULES}, one of which every model "
            "has that can be loaded; choose another one"
        )
    if family is None:
        raise ModelError(
            f"{checkpoint.name}: its config.json names no model_type, so that transformers does "
            "not know what it is; choose another model, or download it again"
        )
    if family in transformers.CONFIG_MAPPING:
        return
    if not _own_code(checkpoint):
        raise ModelError(
            f"{checkpoint.name}: sentence-transformers cannot load it: transformers "
            f"{transformers.__version__} does not know its model_type {family[:60]!r}; a newer one "
            "may (pip install --upgrade transformers), or choose another model"
        )
    if not settings.trust_remote_code:
        raise ModelError(
            f"{checkpoint.name}: its model_type {family[:60]!r} is code of the model's own, which "
            f"is not run unless you ask; if you trust its makers, pass {TRUST_REMOTE_CODE}"
        )


def _own_code(checkpoint: Checkpoint) -> bool:
    return isinstance(checkpoint.config.get("auto_map"), dict)


def _model_class(family: str | None) -> Any:
    """The class that transformers takes for a family; None if it has none."""
    import transformers

    if family is None or family not in transformers.CONFIG_MAPPING:
        return None
    try:
        found = transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[family]]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found
