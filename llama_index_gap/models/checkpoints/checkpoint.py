"""Finding a checkpoint's files, and refusing to load only part of them."""

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
_MOST_FRONT_MATTER = 2**22  # characters; results of benchmarks stand there, too
_MOST_SAID = 300
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?"
)


@dataclass(frozen=True)
class Checkpoint:
    """A model's files in a folder.

    Attributes:
        name: the hub name or folder, as the user wrote it.
        folder: where the files lie.
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
            ModelError: it is not there, or holds no JSON object.
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
        """What the model card's front matter says under ``license``; None if it says nothing."""
        card = self.folder / "README.md"
        if not card.is_file():
            return None
        with card.open(encoding="utf-8", errors="replace") as file:
            front = file.read(_MOST_FRONT_MATTER).partition("\n---")[0]
        # Not parsed as YAML, in which a few lines may stand for billions.
        found = _LICENCE.search(front) if front.startswith("---\n") else None
        return found[2] if found else None


def find_checkpoint(
    name: str | Path,
    settings: LoadingSettings | None = None,
    check: Callable[[Checkpoint], None] | None = None,
) -> Checkpoint:
    """Find a checkpoint in a local folder or on the hub; without the hub, in the download cache.

    Args:
        name: a folder, or a hub name; a name without an owner belongs to ``sentence-transformers``.
            A ``Path`` is a folder.
        settings: how to find it. The checkpoint's own Python code, and weights in pickle format,
            which can carry code, are downloaded only where these allow it.
        check: judges the checkpoint by its settings, before weights are downloaded; with it a
            folder is judged, too.

    Raises:
        ModelError: no such folder, no such model, no hub within reach, or no files that make a
            model that may be loaded.
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
        way = f"pass {folder.parent}" if held else "pass such a folder, or a name on the hub"
        raise ModelError(f"{name} is a file; a model is a folder that holds config.json: {way}")
    if isinstance(name, Path):
        raise ModelError(f"{name}: no such folder; pass a hub name as text")
    if not _HUB_NAME.fullmatch(name):
        page = _HUB_PAGE.fullmatch(name)
        hint = f"; for that page of the hub pass {page[1]!r}" if page else ""
        raise ModelError(f"{name}: no such folder, and no hub name (owner/name){hint}")
    return Checkpoint(name, hub.download(name, settings, check))


@dataclass
class LoadReport:
    """What transformers could not match between a checkpoint and its model."""

    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    mismatched: set[str] = field(default_factory=set)

    def raise_if_incomplete(self, name: str, *, pooler_unused: bool = False) -> None:
        """Refuse a model that is not the one in the files.

        Args:
            name: the checkpoint, for the message.
            pooler_unused: the vectors are pooled from the token vectors, so that BERT's pooler,
                which many such checkpoints leave out, plays no part.

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
        problems = [f"{what}: {list_some(keys)}" for what, keys in found.items() if keys]
        if problems:
            raise ModelError(
                f"{name}: its weights do not fit its config.json, so it would compute something "
                f"else than it was trained for; {'; '.join(problems)}"
            )


def list_some(keys: set[str], limit: int = 10) -> str:
    """Some of the names in alphabetical order, and how many more there are."""
    shown = ", ".join(sorted(keys)[:limit])
    return shown if len(keys) <= limit else f"{shown} and {len(keys) - limit} more"


_LOADING = threading.Lock()


@contextmanager
def load_report() -> Iterator[LoadReport]:
    """Collect what transformers leaves unmatched while this thread loads models.

    transformers only logs it and goes on with random weights; libraries that load through it do
    not pass its own report (``output_loading_info``) on. So ``from_pretrained`` is asked for the
    report here, and other threads' loads go through unchanged.
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

    with _LOADING, quiet_transformers():  # what it would log is in the report
        setattr(PreTrainedModel, "from_pretrained", classmethod(from_pretrained))  # noqa: B010
        try:
            yield report
        finally:
            setattr(PreTrainedModel, "from_pretrained", original)  # noqa: B010


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging and drawing progress bars (of a second or less)."""
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
    """What an error says first, with the next line where that only announces it; or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return said[:_MOST_SAID] or type(error).__name__


def why_unreadable(path: Path, error: BaseException) -> str:
    """Why a file of a checkpoint cannot be read, and the way out.

    Args:
        path: of the file.
        error: what a library said of it.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(200).lstrip().lower()
    except OSError:
        return f"{first_line(error)}; download it again"
    if begins.startswith(b"version https://git-lfs"):
        return (
            "it is only a pointer of Git LFS, as a clone without LFS leaves it; run 'git lfs pull' "
            "in the folder, or pass the model's name on the hub"
        )
    if begins.startswith((b"<!doctype", b"<html")):
        return "a web page was saved in its place; download the file itself"
    if not begins:
        return "it is empty; download it again"
    return f"{first_line(error)}; download it again"
