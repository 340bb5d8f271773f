"""Finds a checkpoint's files, and detects weights that do not fit its model."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import ModelError

_LICENCE = re.compile(r"^license:[ \t]*([\"']?)(\w[\w.,+() -]{0,99}?)\1[ \t]*(#.*)?$", re.MULTILINE)
_MOST_FRONT_MATTER = 2**22  # characters; it may also hold results of benchmarks
_LONGEST_LINE = 300
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?"
)


@dataclass(frozen=True)
class Checkpoint:
    """A model's files in a folder.

    Attributes:
        name: the hub name or folder, as the user wrote it.
        folder: the folder that holds the files.
    """

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """``config.json``; empty if there is none (as in some sentence-transformers models)."""
        return self.read_json("config.json") if (self.folder / "config.json").is_file() else {}

    def read_json(self, file: str) -> dict[str, Any]:
        """One of the checkpoint's JSON files.

        Raises:
            ModelError: the file is missing, or holds no JSON object.
        """
        path = self.folder / file
        if not path.is_file():
            raise ModelError(f"{self.name}: {file} is missing; download the checkpoint again")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            why = why_unreadable(path, error)
            raise ModelError(f"{self.name}: {file} is not JSON ({why})") from error
        if not isinstance(content, dict):
            raise ModelError(
                f"{self.name}: {file} holds no JSON object; download the checkpoint again"
            )
        return content

    @property
    def model_type(self) -> str | None:
        """The family that ``config.json`` names."""
        model_type = self.config.get("model_type")
        return model_type if isinstance(model_type, str) else None

    @property
    def architectures(self) -> list[str]:
        """The classes that ``config.json`` names."""
        named = self.config.get("architectures")
        return [each for each in named if isinstance(each, str)] if isinstance(named, list) else []

    @cached_property
    def licence(self) -> str | None:
        """The ``license`` in the model card's front matter; None if it names none."""
        card = self.folder / "README.md"
        if not card.is_file():
            return None
        with card.open(encoding="utf-8", errors="replace") as file:
            front = file.read(_MOST_FRONT_MATTER).partition("\n---")[0]
        # Not parsed as YAML: a few lines of YAML may expand to billions.
        found = _LICENCE.search(front) if front.startswith("---\n") else None
        return found[2] if found else None


def find_checkpoint(
    name: str | Path,
    settings: LoadingSettings | None = None,
    check: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Find a checkpoint in a local folder, on the hub, or in the download cache if offline.

    Args:
        name: a folder or a hub name; a ``Path`` is always a folder. A hub name without an owner
            belongs to ``sentence-transformers``.
        settings: how to find it. The checkpoint's own Python code, and pickled weights, which can
            carry code, are downloaded only if these settings allow it.
        check: judges the checkpoint, a folder too, by its configuration, before any weights are
            downloaded.

    Raises:
        ModelError: the folder or model does not exist, the hub cannot be reached, or the files make
            no model that may be loaded.
    """
    from llama_index_gap.models.checkpoints import hub

    settings = settings or LoadingSettings()
    folder = Path(name).expanduser()
    if folder.is_dir():
        checkpoint = Checkpoint(str(name), folder.resolve())
        if check is not None:
            hub.check_folder(checkpoint, settings, check)
        return checkpoint
    if folder.exists():
        held = (folder.parent / "config.json").is_file()
        way = f"pass {folder.parent}" if held else "pass such a folder, or a hub name"
        raise ModelError(f"{name} is a file, but a model is a folder that holds config.json; {way}")
    if isinstance(name, Path):
        raise ModelError(f"{name}: no such folder; pass a hub name as text")
    if not _HUB_NAME.fullmatch(name):
        page = _HUB_PAGE.fullmatch(name)
        hint = f"; for this page of the hub, pass {page[1]!r}" if page else ""
        raise ModelError(f"{name}: no such folder, and not a hub name (owner/name){hint}")
    return Checkpoint(name, hub.download(name, settings, check))


@dataclass
class LoadReport:
    """Weights that transformers could not match between a checkpoint and its model."""

    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    mismatched: set[str] = field(default_factory=set)

    def raise_if_incomplete(self, name: str, *, pooler_unused: bool = False) -> None:
        """Reject a model whose weights do not match the files.

        Args:
            name: the checkpoint, for the message.
            pooler_unused: whether vectors are pooled from token vectors, so that BERT's pooler,
                which many such checkpoints omit, may be missing.

        Raises:
            ModelError: weights are missing, unexpected or wrongly shaped; lists them.
        """
        # Old checkpoints store this buffer; newer models compute it.
        unexpected = {key for key in self.unexpected if not key.endswith("position_ids")}
        missing = {
            key for key in self.missing if not (pooler_unused and re.search(r"\bpooler\.", key))
        }
        found = {
            "missing": missing,
            "unexpected": unexpected,
            "wrongly shaped": self.mismatched,
        }
        problems = [f"{problem}: {list_some(keys)}" for problem, keys in found.items() if keys]
        if problems:
            raise ModelError(
                f"{name}: its weights do not fit its config.json, so its results would be wrong; "
                f"{'; '.join(problems)}"
            )


def list_some(keys: set[str], limit: int = 10) -> str:
    """The first names in alphabetical order, and how many more there are."""
    shown = ", ".join(sorted(keys)[:limit])
    return shown if len(keys) <= limit else f"{shown} and {len(keys) - limit} more"


_LOADING = threading.Lock()


@contextmanager
def load_report() -> Iterator[LoadReport]:
    """Collect the weights that transformers cannot match while this thread loads models.

    transformers only logs them and continues with random weights, and libraries on top of it do not
    pass on its report (``output_loading_info``). So ``from_pretrained`` is patched to ask for the
    report in this thread; loads in other threads are unchanged.
    """
    from transformers import PreTrainedModel

    report = LoadReport()
    here = threading.get_ident()
    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        plain = original.__get__(None, cls)
        if threading.get_ident() != here:
            return plain(*args, **kwargs)
        wanted = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # so that the shapes are reported, not only logged
        model, info = plain(*args, output_loading_info=True, **kwargs)
        report.missing |= info["missing_keys"]
        report.unexpected |= info["unexpected_keys"]
        report.mismatched |= {
            f"{key} {tuple(stored)} for {tuple(expected)}"
            for key, stored, expected in info["mismatched_keys"]
        }
        return (model, info) if wanted else model

    with _LOADING, quiet_transformers():  # the report has what transformers would log
        setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))  # noqa: B010
        try:
            yield report
        finally:
            setattr(PreTrainedModel, "from_pretrained", original)  # noqa: B010


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Stop transformers from logging and showing progress bars of its own."""
    import transformers.utils.logging

    logging: Any = transformers.utils.logging  # has no types
    verbosity = logging.get_verbosity()
    shows_progress = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next one after a colon; or its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return message[:_LONGEST_LINE] or type(error).__name__


def why_unreadable(path: Path, error: BaseException) -> str:
    """Say why a file of a checkpoint cannot be read, and the way out.

    Args:
        path: path of the file.
        error: raised by the library that read it.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(200).lstrip().lower()
    except OSError:
        return f"{first_line(error)}; download it again"
    if begins.startswith(b"version https://git-lfs"):
        return (
            "it is only a Git LFS pointer, left by a clone without LFS; run 'git lfs pull' in the "
            "folder, or pass the model's hub name"
        )
    if begins.startswith((b"<!doctype", b"<html")):
        return "a web page was saved in its place; download the file itself"
    if not begins:
        return "it is empty; download it again"
    return f"{first_line(error)}; download it again"
