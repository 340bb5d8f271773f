"""Checks a checkpoint's files before libraries act on them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from llama_index_gap.files import MAX_BYTES
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.limits import StoredWeights, shard_names, stored_weights

_INDEX = "model.safetensors.index.json"
_MODULES = "modules.json"
# The files that libraries read; other files may hold anything.
_READ = (
    *("config.json", "generation_config.json", _INDEX),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.json", "adapter_config.json", _MODULES, "config_sentence_transformers.json"),
    *("sentence_bert_config.json", "router_config.json"),
)
_TEXTS = {".json", ".jinja", ".md", ".model", ".txt"}
_SUFFIXES = {*_TEXTS, ".safetensors", ".bin", ".py"}
_MOST_TEXT = 4 * MAX_BYTES
_MOST_MODULES = 100

# Counts of layers: each layer has a tensor, and libraries make lists of this length at once.
_LAYERS = re.compile(
    r"((num|n)_(\w+_)?|(encoder|decoder|hidden)_)?(layers?|blocks|stages|experts)|depths?"
)
# Sizes of tensors of weights, or parts of such sizes.
_SIZES = re.compile(r"((num|n)_\w+|\w+_(size|dim|features|channels|width)|width|n_embd|n_inner)")
_AT_LEAST_ONE = re.compile(
    r"(patch|image|img|hidden|intermediate|merge|temporal_patch)_size|n_(embd|head|layer|inner)|"
    r"num_(attention_heads|hidden_layers|heads)|width|height|head_width|"
    r"(shortest|longest)_edge|(min|max)_pixels|max_num_patches"
)
_FEWEST_NUMBERS = 2**20  # a tiny model may keep the sizes of its family

# Sizes of images. Qwen's processors, the only ones with the keys of _IN_PIXELS, give numbers of
# pixels, all others give sides.
_SIDES = re.compile(r"(max_)?(height|width)|(image_|crop_|pad_)?size")
_EDGES = re.compile(r"(shortest|longest)_edge|(min|max)_pixels")
_IN_PIXELS = {"merge_size", "min_pixels", "max_pixels"}
_MOST_SIDE = 4096
_MOST_PIXELS = 2**28
_PATCHES = re.compile(r"max_(num_)?patches")
_MOST_PATCHES = 2**16
_PATCH_SIDES = re.compile(r"(patch|merge|temporal_patch)_size")
_MOST_PATCH_SIDE = 256
_CLASSES = re.compile(r"num_(labels|classes)")  # each class gets a name before the model is built
_MOST_CLASSES = 2**17


def check_files(checkpoint: Checkpoint, settings: LoadingSettings) -> None:
    """Reject files that would read other folders, run code, or take unlimited memory or time.

    Sizes in the configuration are compared with the headers of the weights.

    Args:
        checkpoint: has the files.
        settings: what the caller allows.

    Raises:
        ModelError: names the file and the value in it.
    """
    stored = stored_weights(checkpoint)
    for folder in _module_folders(checkpoint):
        _check_entries(checkpoint, folder)
        for name in _READ:
            path = folder / name
            if not path.is_file():
                continue
            file = path.relative_to(checkpoint.folder).as_posix()
            content = read_any_json(checkpoint, file)
            if name == _INDEX:
                shard_names(checkpoint, file, content)
                continue
            leaves = list(_leaves(content))
            most_edge = None
            if "processor_config" in name or name == "sentence_bert_config.json":
                in_pixels = not _IN_PIXELS.isdisjoint(key for _, key, _ in leaves)
                most_edge = _MOST_PIXELS if in_pixels else _MOST_SIDE
            for where, key, value in leaves:
                says = f"{checkpoint.name}: {file} says {where}"
                _check_number(says, key, value, stored, most_edge)
                if not settings.trust_remote_code:
                    _check_harmless(says, key, value)


def read_any_json(checkpoint: Checkpoint, file: str) -> Any:
    """Read a JSON file of a checkpoint, whatever type it holds.

    Raises:
        ModelError: the file is not JSON, or too large.
    """
    path = checkpoint.folder / file
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(
                f"{checkpoint.name}: {file} is larger than {MAX_BYTES:,} bytes; "
                "download the checkpoint again"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(
            f"{checkpoint.name}: {file} is not JSON ({error}); download the checkpoint again"
        ) from error


def module_paths(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """The class and the folder of each sentence-transformers module of a checkpoint.

    Raises:
        ModelError: ``modules.json`` is damaged, or names folders outside the checkpoint.
    """
    modules = read_any_json(checkpoint, _MODULES)
    if not isinstance(modules, list) or len(modules) > _MOST_MODULES:
        raise ModelError(
            f"{checkpoint.name}: {_MODULES} is not a list of at most {_MOST_MODULES} modules; "
            "download the checkpoint again"
        )
    found: list[tuple[str, str]] = []
    for module in modules:
        path = module.get("path") if isinstance(module, dict) else None
        kind = module.get("type") if isinstance(module, dict) else None
        if not isinstance(path, str) or not isinstance(kind, str) or not _stays_below(path):
            raise ModelError(
                f"{checkpoint.name}: {_MODULES} has a module of type {str(kind)[:100]!r} with the "
                f"path {str(path)[:100]!r}, but a module needs a type and a path below the "
                "checkpoint's folder; download the checkpoint again"
            )
        found.append((kind, path))
    return found


def _module_folders(checkpoint: Checkpoint) -> list[Path]:
    """The checkpoint's folder, and the folders of its sentence-transformers modules."""
    folders = [checkpoint.folder]
    if not (checkpoint.folder / _MODULES).is_file():
        return folders
    for _, path in module_paths(checkpoint):
        folder = checkpoint.folder / path
        if folder not in folders and folder.is_dir():
            # A router keeps its modules one level below.
            folders += [folder, *(each for each in folder.iterdir() if each.is_dir())]
    return folders


def _stays_below(path: str) -> bool:
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _leaves(content: Any) -> Iterator[tuple[str, str, Any]]:
    """Each plain value in a file's content: its path, its nearest key, and the value."""
    rest = [("", "", content)]
    while rest:
        where, key, value = rest.pop()
        if isinstance(value, dict):
            rest += [
                (f"{where}.{name}" if where else name, name, each) for name, each in value.items()
            ]
        elif isinstance(value, list):
            rest += [(where, key, each) for each in value]
        else:
            yield where[:200], key, value


def _check_number(
    says: str, key: str, value: Any, stored: StoredWeights, most_edge: int | None
) -> None:
    def refuse(rule: str) -> None:
        raise ModelError(f"{says}={str(value)[:60]}, {rule}; download the checkpoint again")

    must_be_number = bool(_AT_LEAST_ONE.fullmatch(key))
    if value is None or (isinstance(value, str) and not must_be_number):
        return
    if must_be_number and (
        isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1
    ):
        refuse("which must be a number of at least 1")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if must_be_number and not math.isfinite(value):
        refuse("which must be finite")
    if most_edge is not None:
        for names, most in (
            (_EDGES, most_edge),
            (_SIDES, _MOST_SIDE),
            (_PATCHES, _MOST_PATCHES),
            (_PATCH_SIDES, _MOST_PATCH_SIDE),
        ):
            if names.fullmatch(key) and value > most:
                refuse(f"more than {most:,}")
        return
    if _LAYERS.fullmatch(key) and value > max(stored.tensors, 1000):
        refuse(f"but its weights are only {stored.tensors:,} tensors")
    if _CLASSES.fullmatch(key) and value > _MOST_CLASSES:
        refuse(f"more than {_MOST_CLASSES:,}")
    if _SIZES.fullmatch(key) and value > max(stored.numbers, _FEWEST_NUMBERS):
        refuse(f"but its weights are only {stored.numbers:,} numbers")


def _check_harmless(says: str, key: str, value: Any) -> None:
    """Reject settings that make transformers fetch weights or machine code from the hub."""
    fetched = key.endswith("attn_implementation") and isinstance(value, str) and "/" in value
    if fetched or (key in {"use_pretrained_backbone", "allow_all_kernels"} and value):
        raise ModelError(
            f"{says}={str(value)[:60]!r}, which loads more from the hub than this checkpoint; pass "
            "trust_remote_code=True if you trust it, or choose another model"
        )


def _check_entries(checkpoint: Checkpoint, folder: Path) -> None:
    """Reject files that would block their reader (a FIFO), and texts that are too large."""
    for path in folder.iterdir():
        if path.suffix not in _SUFFIXES or not path.exists() or path.is_dir():
            continue
        file = path.relative_to(checkpoint.folder).as_posix()
        if not path.is_file():
            raise ModelError(f"{checkpoint.name}: {file} is not a regular file; remove it")
        if path.suffix in _TEXTS and path.stat().st_size > _MOST_TEXT:
            raise ModelError(
                f"{checkpoint.name}: {file} has {path.stat().st_size:,} bytes, more than "
                f"{_MOST_TEXT:,}; download the checkpoint again, or remove this file"
            )
