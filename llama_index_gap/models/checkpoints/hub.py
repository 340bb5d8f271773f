"""Downloads models from the hub: checks the list of files, then fetches only those it needs."""

from __future__ import annotations

import glob
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from llama_index_gap.errors import GapError
from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, list_some
from llama_index_gap.models.checkpoints.hub_errors import explain, is_of_disk
from llama_index_gap.models.checkpoints.layout import (
    MODULES,
    Check,
    OnlyAdaptersError,
    is_setting,
    needed_files,
    refuse_other_libraries,
)

logger = logging.getLogger(__name__)

_TIMEOUT = 10  # seconds for the first request
_LEVELS = ("*", "*/*", "*/*/*")


class _IncompleteError(ModelError):
    pass


def check_folder(checkpoint: Checkpoint, settings: LoadingSettings, check: Check) -> None:
    """Reject a folder without a model that may be loaded.

    Args:
        checkpoint: the folder.
        settings: what the caller allows.
        check: judges the checkpoint by its configuration.

    Raises:
        ModelError: says what the folder holds instead, and the way out.
    """
    _judged(_files_in(checkpoint.folder), checkpoint, settings, check)


def _judged(
    files: Sequence[str], checkpoint: Checkpoint, settings: LoadingSettings, check: Check | None
) -> list[str]:
    """Reject a checkpoint that may not be loaded, else return the files that it needs."""
    refuse_other_libraries(files, checkpoint)
    if check is not None:
        check(checkpoint)
    return needed_files(files, checkpoint, settings)


def download(name: str, settings: LoadingSettings, check: Check | None) -> Path:
    """The folder of a hub model; files that are not in the download cache are downloaded.

    Args:
        name: name on the hub; without an owner, ``sentence-transformers`` is the owner.
        settings: how to find it, and what the caller allows.
        check: judges the checkpoint by its configuration, before weights are downloaded.

    Raises:
        ModelError: the model does not exist, cannot be reached, or may not be loaded.
    """
    repo = name if "/" in name else f"sentence-transformers/{name}"
    if settings.local_files_only:
        cached = _cached(name, repo, settings, check)
        if cached is None:
            raise ModelError(
                f"{name}: not a folder here, not in the download cache, and local_files_only=True "
                "forbids downloads; pass the folder of a downloaded model, or try a demo that runs "
                "offline: llama-gap demo"
            )
        return cached
    try:
        return _fetch(name, repo, settings, check)
    except GapError:
        raise
    except Exception as error:  # the hub's transport has its own classes for lost connections
        begun = False
        if not is_of_disk(error):
            try:
                if (cached := _cached(name, repo, settings, check)) is not None:
                    return cached
            except _IncompleteError:
                begun = True
        raise ModelError(explain(error, name, repo, settings, begun=begun)) from error


def _fetch(name: str, repo: str, settings: LoadingSettings, check: Check | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    # First one request with a short timeout: otherwise a machine without network would retry for
    # more than a minute before it fails.
    info = HfApi().model_info(
        repo, revision=settings.revision, timeout=_TIMEOUT, files_metadata=True
    )
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or []}
    snapshot = partial(
        snapshot_download, repo, revision=settings.revision, cache_dir=settings.cache_folder
    )

    def missing(files: Sequence[str]) -> list[str]:
        cached = partial(
            try_to_load_from_cache, repo, revision=info.sha, cache_dir=settings.cache_folder
        )
        return [file for file in files if not isinstance(cached(file), str)]

    first = [file for file in sizes if is_setting(file)]
    with _quiet():
        folder = Path(snapshot(allow_patterns=_exactly(first)))
    checkpoint = Checkpoint(name, folder)
    try:
        wanted = _judged(list(sizes), checkpoint, settings, check)
    except OnlyAdaptersError as error:
        if merged := _merged(repo):
            raise ModelError(f"{error}; the hub has {merged}: pass that name") from error
        raise
    if not (new := missing(wanted)):
        return folder
    size = sum(sizes[file] for file in new)
    _check_space(name, size, folder)
    logger.info("Downloading %s: %s in %d files", name, in_words(size), len(new))
    return Path(snapshot(allow_patterns=_exactly(wanted)))


def _merged(repo: str) -> str | None:
    """The repository with transformers' own conversion of the adapters, if the hub has it."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # only a hint
        HfApi().model_info(f"{repo}-hf", timeout=_TIMEOUT)
        return f"{repo}-hf"
    return None


def _cached(name: str, repo: str, settings: LoadingSettings, check: Check | None) -> Path | None:
    """The folder of an earlier download; None if there was none."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    place: dict[str, Any] = {"revision": settings.revision, "cache_dir": settings.cache_folder}
    try:
        # A pattern that matches no file, so that unneeded files do not count as missing.
        folder = Path(
            huggingface_hub.snapshot_download(
                repo, local_files_only=True, allow_patterns=[""], **place
            )
        )
    except LocalEntryNotFoundError:
        return None
    if check is None:
        return folder
    checkpoint, names = Checkpoint(name, folder), _files_in(folder)
    listing = getattr(huggingface_hub, "get_cached_repo_tree", None)  # only newer versions have it
    try:
        listed = [each.path for each in listing(repo, **place)] if listing else []
    except Exception:  # raises its own class if there is no listing
        listed = []
    if listed and all(file in names for file in listed if is_setting(file)):
        absent = set(needed_files(listed, checkpoint, settings)) - set(names)
        if absent:
            raise _IncompleteError(
                f"{name}: its download is incomplete ({list_some(absent, 3)} missing); run the "
                "same again without local_files_only=True (--local-files-only)"
            )
    _judged(names, checkpoint, settings, check)
    return folder


def in_words(size: int) -> str:
    """A number of bytes in words, such as ``1.75 GB``."""
    for unit, amount in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= amount:
            return f"{size / amount:.3g} {unit}"
    return f"{size} bytes"


def _check_space(name: str, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ModelError(
            f"{name}: its download needs {in_words(size)}, but {folder.parents[2]} has only "
            f"{in_words(free)} left; free some space, or choose another place with cache_folder= "
            "(--cache-folder) or the environment variable HF_HOME"
        )


def _exactly(files: Sequence[str]) -> list[str]:
    """Patterns that match exactly these files; an empty list would match all files."""
    return [glob.escape(file) for file in files] or [""]


def _files_in(folder: Path) -> list[str]:
    """The files in a folder; also those in its subfolders if the folder holds a model."""
    holds_model = any((folder / name).is_file() for name in ("config.json", MODULES))
    return [
        path.relative_to(folder).as_posix()
        for pattern in (_LEVELS if holds_model else _LEVELS[:1])
        for path in folder.glob(pattern)
        if path.is_file()
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Show no progress bar for a few small files."""
    import huggingface_hub.utils

    bars: Any = huggingface_hub.utils  # has no types
    if bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()
