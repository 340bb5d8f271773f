"""Limits what a checkpoint may allocate to what its stored weights can fill.

A ``config.json`` of a few bytes may ask for billions of numbers or layers. The headers of the
safetensors files tell how many are stored, before anything is allocated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, why_unreadable

# transformers also builds tensors that no file holds: tied embeddings (T5 builds four times what it
# stores), a pooler, position numbers, masks, and the parts of a joint tensor.
_TIMES = 4
_FREE_NUMBERS = 2**24
_FREE_TENSORS = 10_000
# Quantized weights are packed: an integer may hold a 4-bit number in each half of a byte.
_PACKED = {"I8": 2, "U8": 2, "I16": 4, "U16": 4, "I32": 8, "U32": 8, "I64": 16, "U64": 16}
_MAKE_TENSORS = frozenset(
    {
        torch.arange,
        torch.empty,
        torch.eye,
        torch.full,
        torch.linspace,
        torch.logspace,
        torch.ones,
        torch.rand,
        torch.randint,
        torch.randn,
        torch.zeros,
    }
)


@dataclass(frozen=True)
class StoredWeights:
    """How much a checkpoint's files hold.

    Attributes:
        tensors: number of tensors.
        numbers: number of elements in all tensors together.
    """

    tensors: int
    numbers: int


def stored_weights(checkpoint: Checkpoint) -> StoredWeights:
    """Count the tensors and numbers in a checkpoint's files, from their headers only.

    Pickles count by their size; they are read only if the caller allows it.

    Raises:
        ModelError: a file with the model's own weights cannot be read.
    """
    tensors = numbers = 0
    for pattern in ("*", "*/*", "*/*/*"):
        for path in checkpoint.folder.glob(f"{pattern}.safetensors"):
            if not path.is_file():
                continue
            try:
                with safe_open(path, framework="np") as file:
                    for name in file.keys():  # noqa: SIM118 (it is not a mapping)
                        part = file.get_slice(name)
                        count = _PACKED.get(str(part.get_dtype()), 1)
                        for length in part.get_shape():
                            count *= length
                        tensors, numbers = tensors + 1, numbers + count
            except (SafetensorError, OSError) as error:
                if path.parent == checkpoint.folder and path.name.startswith("model"):
                    raise ModelError(
                        f"{checkpoint.name}: {path.name} cannot be read "
                        f"({why_unreadable(path, error)})"
                    ) from error
        for path in checkpoint.folder.glob(f"{pattern}.bin"):
            if path.is_file():
                tensors, numbers = tensors + 1000, numbers + path.stat().st_size
    return StoredWeights(tensors, numbers)


def shard_names(
    checkpoint: Checkpoint, file: str, index: Any, *, suffix: str = "safetensors"
) -> list[str]:
    """The names of the weight files that an index lists.

    Args:
        checkpoint: the checkpoint, for the message.
        file: the index's name, for the message.
        index: the index's content.
        suffix: expected suffix of the files.

    Raises:
        ModelError: the index lists no files, or files in another folder.
    """
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise ModelError(
            f"{checkpoint.name}: weight_map in {file} is not a JSON object but "
            f"{str(weight_map)[:100]!r}; download the checkpoint again"
        )
    for shard in weight_map.values():
        if not isinstance(shard, str) or not re.fullmatch(rf"[\w.-]+\.{suffix}", shard):
            raise ModelError(
                f"{checkpoint.name}: {file} names {str(shard)[:100]!r}, but weights must be "
                f"{suffix} files in the same folder; download the checkpoint again"
            )
    return sorted(set(weight_map.values()))


class WithinStoredWeights(TorchFunctionMode):
    """Reject tensors that a checkpoint's weights cannot fill, before they are allocated.

    A context manager that counts all tensors made in this thread.

    Args:
        name: the checkpoint, for the message.
        stored: how much the checkpoint's files hold.

    Raises:
        ModelError: (inside the context) the tensors are many times more, or larger, than stored.
    """

    def __init__(self, name: str, stored: StoredWeights) -> None:
        super().__init__()
        self._name, self._stored = name, stored
        self._numbers = _TIMES * stored.numbers + _FREE_NUMBERS
        self._tensors = _TIMES * 2 * stored.tensors + _FREE_TENSORS

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _MAKE_TENSORS:
            self._count(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _count(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        rest = {k: v for k, v in kwargs.items() if k not in {"out", "generator", "pin_memory"}}
        # The meta device computes the shape and takes no memory.
        self._numbers -= func(*args, **{**rest, "device": "meta"}).numel()
        self._tensors -= 1
        if self._numbers < 0 or self._tensors < 0:
            raise ModelError(
                f"{self._name}: its configuration asks for many times more weights than its files "
                f"hold ({self._stored.numbers:,} numbers in {self._stored.tensors:,} tensors); "
                "download the checkpoint again, or correct the sizes in its config.json"
            )
