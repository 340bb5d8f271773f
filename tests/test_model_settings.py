from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from llama_index_gap.model_settings import Folder, LoadingSettings, PathText


class Settings(BaseModel):
    name: PathText = "a"
    root: Folder | None = None


class Component(LoadingSettings):
    name: str
    handler: object = Field(default=None, exclude=True)

    def model_post_init(self, context: object, /) -> None:
        self.__dict__["weights"] = f"of {self.name}"


def test_paths_are_kept_as_text(tmp_path: Path) -> None:
    settings = Settings(name=Path("b") / "c", root=tmp_path)

    assert settings.model_dump() == {"name": str(Path("b", "c")), "root": str(tmp_path)}


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for path in (tmp_path / "none", str(tmp_path / "file")):
        with pytest.raises(ValueError, match=rf"root={path}: no such folder"):
            Settings(root=path)
    with pytest.raises(ValueError, match="valid string"):
        Settings(root=7)


def test_settings_are_pickled_and_what_they_make_is_made_again() -> None:
    original = Component(name="a", handler=lambda: None)
    original.__dict__["weights"] = "changed"

    again = pickle.loads(pickle.dumps(original))

    assert (again.name, again.handler, again.__dict__["weights"]) == ("a", None, "of a")
