"""Cross-encoders that sentence-transformers runs, for texts or for texts and images."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import Item, Joint, ModelError, PairScorer, check_at_least_one
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.sbert import load_model, plain_text, saved_as
from llama_index_gap.models.rerankers.items import decode_image


def fits(checkpoint: Checkpoint) -> bool:
    """Whether the files say that this is a cross-encoder.

    Any other model would load too, but its head would have random weights, or the language model's
    tokens for yes and no would be guessed.
    """
    if (checkpoint.folder / "modules.json").is_file():
        return saved_as(checkpoint) == "CrossEncoder"
    return any(name.endswith("ForSequenceClassification") for name in checkpoint.architectures)


class CrossEncoderScorer(PairScorer):
    """A checkpoint run by sentence-transformers' ``CrossEncoder``.

    A score is the model's logit after its own activation. Its chat template tells what it can read;
    without one it reads texts. A text is never opened as an image's path or URL, and never read as
    one of the template's control tokens.

    Args:
        checkpoint: a checkpoint that ``fits``.
        settings: how to load it.
        batch_size: number of pairs scored at a time; the longest come first.
        scale_to_pixels: scale larger images down to this; None leaves that to the model.

    Raises:
        ModelError: the checkpoint is not a cross-encoder with one score for each pair, or damaged
            or incomplete.
        ValueError: ``batch_size`` or ``scale_to_pixels`` is less than 1.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: LoadingSettings,
        *,
        batch_size: int = 8,
        scale_to_pixels: int | None = None,
    ) -> None:
        from sentence_transformers import CrossEncoder

        if not fits(checkpoint):
            raise ModelError(
                f"{checkpoint.name} is not a cross-encoder: sentence-transformers did not save it "
                "as one, and config.json names no class …ForSequenceClassification; choose another "
                "model"
            )
        check_at_least_one(batch_size=batch_size, scale_to_pixels=scale_to_pixels)
        self.name = checkpoint.name
        self.licence = checkpoint.licence
        self._batch_size = batch_size
        self._scale_to_pixels = scale_to_pixels
        self._lock = threading.Lock()
        self._model, report = load_model(CrossEncoder, checkpoint, settings)
        report.raise_if_incomplete(self.name)
        if self._model.num_labels != 1:
            raise ModelError(
                f"{self.name} gives {self._model.num_labels} numbers for a pair, one for each of "
                "its classes, but a reranker must give one; choose another model"
            )
        self._plain = plain_text(self._model)
        self._ask_template()

    def prepare(self, item: Item) -> Any:
        """Open an image; wrap a text or image for a model with a chat template."""
        self._refuse_unreadable(item)
        if isinstance(item, str):
            return self._text(item)
        if isinstance(item, Joint):
            # The image comes first, as in Qwen3-VL-Reranker's own code.
            image = decode_image(item.image, self._scale_to_pixels)
            return {"image": image, **self._text(item.text)}
        return {"image": decode_image(item, self._scale_to_pixels)}

    def score_prepared(self, query: Any, documents: Sequence[Any]) -> VectorArray:
        """Score n prepared documents; returns shape (n,)."""
        if not documents:
            return np.zeros(0, dtype=np.float32)
        pairs = [(query, document) for document in documents]
        with self._lock:
            scores = self._model.predict(
                pairs, batch_size=self._batch_size, show_progress_bar=False
            )
        return np.asarray(scores, dtype=np.float32)

    def to_probability(self, scores: VectorArray) -> VectorArray | None:
        """Map scores to probabilities, depending on the model's own activation.

        The output of a sigmoid is a probability already. A bare logit counts as log-odds if the
        model is a classifier with one class, or takes the difference of "yes" and "no". A bare
        logit of "yes" only has no scale, so the result is None.
        """
        from torch import nn

        if isinstance(self._model.activation_fn, nn.Sigmoid):
            return scores
        if isinstance(self._model.activation_fn, nn.Identity) and self._gives_log_odds():
            probabilities: VectorArray = expit(scores)
            return probabilities
        return None

    def _gives_log_odds(self) -> bool:
        from sentence_transformers.cross_encoder.modules import LogitScore

        head = self._model[-1]
        return not isinstance(head, LogitScore) or head.false_token_id is not None

    def _ask_template(self) -> None:
        """Find out whether texts, images, or both in one document reach the prompt."""
        reads = self._model.modalities
        self._wraps = False
        self.modalities, self.joint = frozenset({"text"}), False
        if "message" not in reads:
            return
        transformer = self._model[0]
        self._wraps = transformer.input_formatter.message_format == "structured"
        if not self._wraps or "image" not in reads:
            return
        from PIL import Image

        blank = Image.new("RGB", (64, 64))
        nothing, text, image, both = (
            self._render(document)
            for document in (
                {"text": ""},
                {"text": "text"},
                {"image": blank},
                {"image": blank, "text": "text"},
            )
        )
        if image not in {None, nothing}:
            self.modalities = frozenset({"text", "image"})
            self.joint = both not in {None, nothing, text, image}

    def _render(self, document: dict[str, Any]) -> str | None:
        transformer = self._model[0]
        messages = transformer.input_formatter.pair_to_messages(({"text": "query"}, document))
        try:
            return str(transformer.processor.apply_chat_template(messages, tokenize=False))
        except ModelError:  # the template exceeds its budget
            raise
        except Exception:  # templates may raise anything for input that they do not know
            return None

    def _text(self, text: str) -> Any:
        # sentence-transformers would fetch a bare "https://…/cat.jpg" as an image.
        return {"text": self._plain(text)} if self._wraps else self._plain(text)
