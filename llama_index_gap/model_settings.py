"""Settings to find and load a checkpoint, shared by the embedding, the reranker and the loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from llama_index_gap.errors import InvalidValueError

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
Pooling: TypeAlias = Literal["last", "mean", "cls"]
"""How token vectors become one vector: the last, their mean, or the first."""


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _existing(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str | Path) and not Path(value).is_dir():
        raise InvalidValueError(f"{info.field_name}={value}: no such folder")
    return _as_text(value)


PathText: TypeAlias = Annotated[str, BeforeValidator(_as_text)]
"""A path or a hub name, kept as text so that settings can be written as JSON."""

Folder: TypeAlias = Annotated[str, BeforeValidator(_existing)]
"""The path of an existing folder."""


class PickledAsSettings:
    """Pickles only the settings of a pydantic component; unpickling loads its model again."""

    def __getstate__(self) -> dict[str, Any]:
        fields = type(self).model_fields  # type: ignore[attr-defined]
        return {
            "settings": {name: getattr(self, name) for name in fields if not fields[name].exclude}
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["settings"])  # type: ignore[misc]


class LoadingSettings(PickledAsSettings, BaseModel):
    """How to find and load a checkpoint.

    A component with these settings is pickled as what ``to_dict`` shows; unpickling loads its
    weights again.
    """

    model_config = ConfigDict(extra="forbid")

    device: str | None = Field(
        frozen=True, default=None, description="Torch device; by default a GPU, if there is one."
    )
    dtype: Dtype = Field(
        frozen=True,
        default="auto",
        description="Number format of the weights; 'auto' is bfloat16 on a processor or GPU that "
        "is fast at it, else float32.",
    )
    revision: str | None = Field(
        frozen=True, default=None, description="Branch, tag or commit of the model on the hub."
    )
    cache_folder: PathText | None = Field(
        frozen=True,
        default=None,
        description="Folder for downloads; by default the hub's own cache.",
    )
    local_files_only: bool = Field(
        frozen=True,
        default=False,
        description="Never contact the hub: load the model from its folder or from the download "
        "cache. HF_HUB_OFFLINE=1 does this everywhere.",
    )
    trust_remote_code: bool = Field(
        frozen=True,
        default=False,
        description="Run Python code that comes with the model. Model families that this package "
        "implements need none and run none.",
    )
    allow_pickle: bool = Field(
        frozen=True,
        default=False,
        description="Read pickled weights if there are no safetensors. Model families that this "
        "package implements never do.",
    )

    @property
    def loading(self) -> LoadingSettings:
        """The loading settings only, without a component's other settings."""
        return LoadingSettings(
            **{name: getattr(self, name) for name in LoadingSettings.model_fields}
        )
