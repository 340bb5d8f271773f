"""What the LlamaIndex components that load a model by their settings have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

from llama_index.core.bridge.pydantic import BaseModel, BeforeValidator, ValidationInfo

from llama_index_gap.errors import InvalidValueError


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _existing(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str | Path) and not Path(value).is_dir():
        raise InvalidValueError(f"{info.field_name}={value}: no such folder")
    return _as_text(value)


PathText: TypeAlias = Annotated[str, BeforeValidator(_as_text)]
"""A path, or a name that may be one; kept as text, so that settings can be written as JSON."""

Folder: TypeAlias = Annotated[str, BeforeValidator(_existing)]
"""The path of a folder that is there."""


class PickledAsSettings(BaseModel):
    """Pickles what ``to_dict`` shows, the settings; the weights are loaded again."""

    def __getstate__(self) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            "settings": {name: getattr(self, name) for name in fields if not fields[name].exclude}
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["settings"])  # type: ignore[misc]
