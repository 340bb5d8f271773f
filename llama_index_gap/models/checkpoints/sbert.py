"""Loads models strictly through sentence-transformers, and disarms control tokens in texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import (
    Checkpoint,
    LoadReport,
    first_line,
    load_report,
)
from llama_index_gap.models.checkpoints.limits import WithinStoredWeights, stored_weights
from llama_index_gap.models.checkpoints.templates import keep_within_budget
from llama_index_gap.models.checkpoints.weights import refuse_broken_numbers
from llama_index_gap.models.runtime import placement

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

_CONFIG = "config_sentence_transformers.json"


def saved_as(checkpoint: Checkpoint) -> str | None:
    """The class that sentence-transformers saved a checkpoint as; None if no file says so."""
    if not (checkpoint.folder / _CONFIG).is_file():
        return None
    kind = checkpoint.read_json(_CONFIG).get("model_type")
    return kind if isinstance(kind, str) else None


def load_model(
    kind: type[Model], checkpoint: Checkpoint, settings: LoadingSettings
) -> tuple[Model, LoadReport]:
    """Load a checkpoint with one of sentence-transformers' classes.

    Args:
        kind: ``SentenceTransformer``, ``CrossEncoder`` or ``MultiVectorEncoder``.
        checkpoint: the files to load.
        settings: how to load them.

    Returns:
        The model, and a report of weights that do not match it, which the caller must judge.

    Raises:
        ModelError: the files are damaged, or sentence-transformers cannot load such a model.
    """
    device, dtype = placement(settings)
    stored = stored_weights(checkpoint)
    with load_report() as report, _without_video():
        try:
            with WithinStoredWeights(checkpoint.name, stored):
                model = kind(
                    str(checkpoint.folder),
                    device=device,
                    trust_remote_code=settings.trust_remote_code,
                    local_files_only=True,
                    model_kwargs={
                        "dtype": dtype,
                        "use_safetensors": None if settings.allow_pickle else True,
                    },
                    # PIL gives the same bits as the processors that these models were published
                    # with; torchvision's resizing differs by up to 0.03.
                    processor_kwargs={"backend": "pil"},
                )
        except ModelError:
            raise
        # Each library raises its own classes for a checkpoint that it cannot read.
        except Exception as error:
            reason = first_line(error)
            if isinstance(error, ImportError) and "sentencepiece" in reason.lower():
                reason = (
                    "its tokenizer needs sentencepiece; "
                    "install it with: pip install 'llama-index-gap[siglip]'"
                )
            raise ModelError(
                f"{checkpoint.name}: sentence-transformers cannot load it: {reason}"
            ) from error
    refuse_broken_numbers(model.state_dict(), checkpoint.name)
    _check_template(model, checkpoint.name)
    for module in model:
        processor = getattr(module, "processor", None)
        for reader in (processor, getattr(processor, "tokenizer", None)):
            keep_within_budget(getattr(reader, "chat_template", None), checkpoint.name)
    return model.eval(), report


def _check_template(model: BaseModel, name: str) -> None:
    """Reject a model that needs a chat template and has none."""
    for module in model:
        ways = getattr(module, "modality_config", None)
        if not ways or getattr(module, "transformer_task", None) == "retrieval":
            continue
        processor: Any = getattr(module, "processor", None)
        templates = [
            getattr(each, "chat_template", None)
            for each in (processor, getattr(processor, "tokenizer", None))
        ]
        in_prompt = (
            hasattr(processor, "image_token")
            and "image" in ways
            and ways["image"]["method"] == "forward"
        )
        if ("message" in ways or in_prompt) and not any(templates):
            raise ModelError(
                f"{name}: has no chat template, so its prompts and images cannot be combined as in "
                "its training; download it again with its chat_template.jinja, or choose a model "
                "that has one"
            )


def plain_text(model: BaseModel) -> Callable[[str], str]:
    """Make a function that disarms the model's control tokens in a text by a space in each.

    Otherwise ``<|image_pad|>`` in a document would announce an image that does not exist, and
    ``<|im_end|>`` would end the document. Text models without a chat template get texts unchanged.
    """
    if not {"message", "image"} & set(model.modalities):
        return str
    processor: Any = model.processor
    tokens = {
        *model.tokenizer.all_special_tokens,
        *getattr(processor, "all_special_multimodal_tokens", []),
    }
    control = re.compile("|".join(map(re.escape, sorted(tokens))) or r"(?!)")
    return lambda text: control.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)


@contextmanager
def _without_video() -> Iterator[None]:
    """Load processors without their video part, which needs torchvision.

    This package reads no videos, but Qwen's processors try to load that part. Use this within
    ``load_report``, which lets only one thread load at a time.
    """
    from transformers import ProcessorMixin

    original = ProcessorMixin.__dict__["get_attributes"]

    def get_attributes(cls: type[ProcessorMixin]) -> list[str]:
        names: list[str] = original.__get__(None, cls)()
        return names[:-1] if names[-1:] == ["video_processor"] else names

    setattr(ProcessorMixin, "get_attributes", classmethod(get_attributes))  # noqa: B010
    try:
        yield
    finally:
        setattr(ProcessorMixin, "get_attributes", original)  # noqa: B010
