"""Finding a checkpoint's files, and refusing to load only part of them."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from llama_index_gap.model_settings import LoadingSettings
from llama_index_gap.models.base import ModelError

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md"]
_OTHER_RUNTIMES = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
_LICENCE = re.compile(r"^license:[ \t]*([\"']?)(\w[\w.,+() -]{0,99}?)\1[ \t]*(#.*)?$", re.MULTILINE)
_MOST_FRONT_MATTER = 2**22  # characters; results of benchmarks stand there, too
_MOST_SAID = 300
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
            raise ModelError(f"{self.name}: {file} is not JSON ({error})") from error
        if not isinstance(content, dict):
            raise ModelError(f"{self.name}: {file} holds no JSON object")
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


def find_checkpoint(name: str | Path, settings: LoadingSettings | None = None) -> Checkpoint:
    """Find a checkpoint in a local folder or on the hub; without the hub, in the download cache.

    Args:
        name: a folder, or a hub name; a name without an owner belongs to ``sentence-transformers``.
            A ``Path`` is a folder.
        settings: how to find it. The checkpoint's own Python code, and weights in pickle format,
            which can carry code, are downloaded only where these allow it.

    Raises:
        ModelError: no such folder, no such model, or no hub within reach.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Checkpoint(str(name), folder.resolve())
    if folder.exists():
        raise ModelError(f"{name} is a file; a model is a folder that holds config.json")
    if isinstance(name, Path):
        raise ModelError(f"{name}: no such folder; pass a hub name as text")
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"{name}: no such folder, and no hub name (owner/name)")
    return Checkpoint(name, _download(name, settings or LoadingSettings()))


def _download(name: str, settings: LoadingSettings) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo = name if "/" in name else f"sentence-transformers/{name}"
    snapshot = partial(
        snapshot_download,
        repo,
        revision=settings.revision,
        cache_dir=settings.cache_folder,
        allow_patterns=[
            *_FILES,
            *(["*.py"] if settings.trust_remote_code else []),
            *(["*.bin"] if settings.allow_pickle else []),
        ],
        ignore_patterns=_OTHER_RUNTIMES,
    )
    reason = "local_files_only=True asks no hub"
    try:
        if settings.local_files_only:
            return Path(snapshot(local_files_only=True))
        # One question with a short time-out first: without it, a machine without network
        # spends more than a minute in retries before it says so.
        HfApi().model_info(repo, revision=settings.revision, timeout=10)
        return Path(snapshot())
    except LocalEntryNotFoundError:
        pass
    except HfHubHTTPError as error:
        reason = f"the model hub says: {first_line(error)}"
    except Exception as error:  # no connection: the types belong to the hub library's transport
        reason = f"the model hub cannot be reached ({first_line(error)})"
    try:
        return Path(snapshot(local_files_only=True))
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{name}: not a folder here, not in the download cache, and {reason}; "
            "pass the folder of a downloaded model, or see what runs offline with: llama-gap demo"
        ) from None


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
