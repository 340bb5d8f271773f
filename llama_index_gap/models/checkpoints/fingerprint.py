"""Identifies a checkpoint by its content, whatever its name and folder."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint

_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model", ".jinja"}
_BLOB = re.compile(r"[0-9a-f]{64}")


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hash the files that decide what a model computes: weights, settings, vocabulary.

    All files are read, except large files in the hub's download cache: their names are their
    hashes.

    Args:
        checkpoint: has the files.

    Raises:
        ModelError: a file cannot be read.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    downloads, total = Path(HF_HUB_CACHE).resolve(), hashlib.sha256()
    folder = checkpoint.folder
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if path.suffix not in _SUFFIXES or not path.is_file():
            continue
        real = path.resolve()
        known = _BLOB.fullmatch(real.name) and real.is_relative_to(downloads)
        try:
            with path.open("rb") as file:
                of_file = real.name if known else hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ModelError(f"{checkpoint.name}: {path.name} cannot be read ({error})") from error
        total.update(f"{path.relative_to(folder).as_posix()} {of_file}\n".encode(errors="replace"))
    return total.hexdigest()
