"""Tokenizes texts with a checkpoint's tokenizer, after a prompt."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.modality import Kind
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from transformers import BatchEncoding

_NO_LIMIT = 1_000_000  # tokenizers without a limit say 10**30


def load_plain_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load a checkpoint's tokenizer so that it treats all text as plain text.

    Special tokens spelled out in a text stay text (with byte-level BPE; other vocabularies may also
    hold them as pieces). There is no truncation and no padding. Calls do not change it, so several
    threads can use it.

    Raises:
        ModelError: the folder has no tokenizer, or its tokenizer does not load.
    """
    from tokenizers import Tokenizer

    path = _tokenizer_file(checkpoint)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises no narrower class
        raise ModelError(
            f"{checkpoint.name}: its tokenizer does not load ({first_line(error)})"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


class PromptedTokenizer:
    """A checkpoint's tokenizer with prompts for queries and documents; safe in several threads.

    Args:
        checkpoint: has the tokenizer's files.
        prompts: the prompt before queries, and the one before documents.
        longest: maximum number of tokens of the model.
        max_text_tokens: maximum number of tokens, including prompt and special tokens; None for as
            many as model and tokenizer allow.

    Attributes:
        max_text_tokens: number of tokens that texts are cut to.
        pad_token_id: pads the shorter texts of a batch.

    Raises:
        ModelError: the folder has no tokenizer, or its tokenizer does not load.
        ValueError: ``max_text_tokens`` is more than the checkpoint reads, or leaves no room after a
            prompt.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Mapping[Kind, str],
        *,
        longest: int,
        max_text_tokens: int | None,
    ) -> None:
        from transformers import PreTrainedTokenizerFast

        _tokenizer_file(checkpoint)
        try:
            # AutoTokenizer would use the model's own class, and such classes rebuild the pipeline
            # without some parts of tokenizer.json.
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the tokenizers library raises no narrower class
            raise ModelError(
                f"{checkpoint.name}: its tokenizer does not load ({first_line(error)})"
            ) from error
        longest = min(longest, self._tokenizer.model_max_length)
        if max_text_tokens is not None and max_text_tokens > longest:
            raise InvalidValueError(
                f"max_text_tokens={max_text_tokens} is more than {checkpoint.name} reads; "
                f"pass at most {longest}, or leave it out"
            )
        self.max_text_tokens = longest if max_text_tokens is None else max_text_tokens
        self.pad_token_id: int = self._tokenizer.pad_token_id
        self._prompts = prompts
        # Truncation is a setting of the tokenizer, not of a call, so threads must take turns.
        self._lock = threading.Lock()
        for kind in prompts:
            (taken,) = self.count_tokens([""], kind)
            if self.max_text_tokens <= taken:
                raise InvalidValueError(
                    f"max_text_tokens={self.max_text_tokens} leaves no room for a text: the {kind} "
                    f"prompt and special tokens take {taken}; pass more, or a shorter prompt"
                )

    def __call__(self, texts: Sequence[str], kind: Kind) -> BatchEncoding:
        """Token ids and attention mask of n texts, padded and cut: shape (n, longest text)."""
        with self._lock:
            tokens: BatchEncoding = self._tokenizer(
                self._prompted(texts, kind),
                padding=True,
                truncation=True,
                max_length=self.max_text_tokens,
                return_tensors="pt",
            )
        return tokens

    def count_tokens(self, texts: Sequence[str], kind: Kind) -> list[int]:
        """Count the tokens of each text, including prompt and special tokens."""
        if not texts:
            return []
        with self._lock:
            tokens = self._tokenizer(self._prompted(texts, kind), truncation=False, verbose=False)
        return [len(ids) for ids in tokens["input_ids"]]

    def _prompted(self, texts: Sequence[str], kind: Kind) -> list[str]:
        return [self._prompts[kind] + text for text in texts]


def text_limit(wanted: int | None, limits: Iterable[int | None], name: str) -> int | None:
    """The number of tokens that texts are cut to; None if there is no limit.

    Args:
        wanted: the caller's limit; None for the checkpoint's own.
        limits: the limits of tokenizer and model; None or a huge number means no limit.
        name: the checkpoint, for the message.

    Raises:
        ValueError: ``wanted`` is less than 1, or more than the model reads.
    """
    own = min((each for each in limits if each and 0 < each < _NO_LIMIT), default=None)
    if wanted is not None and (wanted < 1 or (own is not None and wanted > own)):
        raise InvalidValueError(
            f"max_text_tokens={wanted}: {name} reads 1 to {own} tokens; "
            "pass a number in this range, or leave it out"
        )
    return wanted or own


def _tokenizer_file(checkpoint: Checkpoint) -> Path:
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{checkpoint.name}: tokenizer.json is missing; download the checkpoint again"
        )
    return path
