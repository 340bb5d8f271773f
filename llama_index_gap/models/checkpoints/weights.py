"""Reads a checkpoint's settings and weights, and rejects those that are damaged or do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import (
    Checkpoint,
    LoadReport,
    list_some,
    why_unreadable,
)
from llama_index_gap.models.checkpoints.limits import (
    StoredWeights,
    WithinStoredWeights,
    shard_names,
)

Module = TypeVar("Module", bound=nn.Module)

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_REQUIRED = object()


def setting(
    checkpoint: Checkpoint, path: str, default: Any = _REQUIRED, *, file: str = "config.json"
) -> Any:
    """Read one setting from a JSON file of a checkpoint.

    Args:
        checkpoint: has the file.
        path: the keys that lead to the setting, joined by dots, as in ``"vision_config.width"``.
        default: returned if the file does not have the setting; without it, that is an error.
        file: the file's name.

    Raises:
        ModelError: the file is missing, holds no JSON object, or lacks the setting.
    """
    value: Any = checkpoint.config if file == "config.json" else checkpoint.read_json(file)
    for key in path.split("."):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif default is _REQUIRED:
            raise ModelError(
                f"{checkpoint.name}: {file} does not set {path}; download the checkpoint again"
            )
        else:
            return default
    return value


def check_settings(
    checkpoint: Checkpoint, supported: Mapping[str, Any], *, file: str = "config.json"
) -> None:
    """Reject a variant of the architecture that would load without an error but compute wrongly.

    Args:
        checkpoint: has the file.
        supported: the only supported value of each setting, and its default.
        file: the file's name.

    Raises:
        ModelError: settings have other values; lists them.
    """
    found = {path: setting(checkpoint, path, value, file=file) for path, value in supported.items()}
    wrong = [
        f"{path}={found[path]!r} (supported: {value!r})"
        for path, value in supported.items()
        if found[path] != value
    ]
    if wrong:
        raise ModelError(
            f"{checkpoint.name}: this variant cannot be loaded; {file} says {', '.join(wrong)}"
        )


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, from one safetensors file or from shards.

    Raises:
        ModelError: a file is missing or cannot be read, or a tensor holds NaN or infinity.
    """
    folder = checkpoint.folder
    files: Sequence[str] = [_WEIGHTS]
    if not (folder / _WEIGHTS).is_file() and (folder / _INDEX).is_file():
        files = shard_names(checkpoint, _INDEX, checkpoint.read_json(_INDEX))
    absent = {file for file in files if not (folder / file).is_file()}
    if absent:
        raise ModelError(
            f"{checkpoint.name}: weights are missing: {list_some(absent)}; download the checkpoint "
            "again (only safetensors files are read)"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(folder / file)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{checkpoint.name}: {file} cannot be read ({why_unreadable(folder / file, error)})"
            ) from error
    refuse_broken_numbers(tensors, checkpoint.name)
    return tensors


def refuse_broken_numbers(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raise ModelError that lists the tensors of the checkpoint ``name`` with NaN or infinity."""
    broken = {key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())}
    if broken:
        raise ModelError(
            f"{name}: NaN or infinity in the weights {list_some(broken)}; "
            "download the checkpoint again"
        )


def load_module(
    make: Callable[[], Module],
    tensors: Mapping[str, Tensor],
    name: str,
    *,
    device: str,
    dtype: torch.dtype,
) -> Module:
    """Construct a module and load its weights, without memory for random weights.

    Args:
        make: constructs the module.
        tensors: exactly the entries of its state dict.
        name: the checkpoint, for the message.
        device: the device that the module runs on.
        dtype: number format of the parameters; buffers are computed, not loaded, and keep theirs.

    Raises:
        ModelError: tensors are missing, unexpected or wrongly shaped, and are listed; or the module
            asks for many times more than there are.
    """
    stored = StoredWeights(len(tensors), sum(tensor.numel() for tensor in tensors.values()))
    with _ParametersWithoutMemory(name, stored):
        module = make()
    expected = module.state_dict()
    LoadReport(
        missing=expected.keys() - tensors.keys(),
        unexpected=tensors.keys() - expected.keys(),
        mismatched={
            f"{key} {tuple(tensors[key].shape)} for {tuple(expected[key].shape)}"
            for key in expected.keys() & tensors.keys()
            if tensors[key].shape != expected[key].shape
        },
    ).raise_if_incomplete(name)
    module.load_state_dict({key: tensors[key].to(device, dtype) for key in expected}, assign=True)
    # This raises if a buffer was not computed: it has no memory.
    return module.requires_grad_(False).eval().to(device)


class _ParametersWithoutMemory(WithinStoredWeights):
    """Put parameters, which are allocated without values, on the meta device; not the buffers.

    ``torch.device("meta")`` would include the buffers, but no file holds rotary frequencies.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        where = {"device": "meta"} if func is torch.empty else {}
        return super().__torch_function__(func, types, args, {**(kwargs or {}), **where})


def rename(key: str, names: Mapping[str, str]) -> str:
    """Replace each part of a tensor's name that is a key of ``names`` by its value."""
    for theirs, ours in names.items():
        key = key.replace(theirs, ours)
    return key


def split_qkv(name: str, joint: str, tensor: Tensor) -> dict[str, Tensor]:
    """Split a joint projection into transformers' three; a tensor of another name is unchanged."""
    if f".{joint}." not in name:
        return {name: tensor}
    parts = zip("qkv", tensor.tensor_split(3), strict=True)
    return {name.replace(joint, f"self_attn.{letter}_proj"): part for letter, part in parts}
