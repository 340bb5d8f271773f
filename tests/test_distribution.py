"""The files and the metadata of the wheel and the source distribution."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from paths import ROOT

import llama_index_gap

PACKAGE = ROOT / "llama_index_gap"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
NAME = f"llama_index_gap-{PROJECT['project']['version']}"
# Files of caches, indexes and editors have other suffixes.
KINDS = {".py", ".typed", ".css", ".html", ".js", ".json", ".jsonl", ".safetensors", ".md"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; the wheel is built from the source distribution, as ``build`` does."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[ZipFile]:
    with ZipFile(built / f"{NAME}-py3-none-any.whl") as wheel:
        yield wheel


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    return Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())


def package_files() -> set[str]:
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_package_holds_nothing_stray() -> None:
    assert {Path(name).suffix for name in package_files()} == KINDS


def test_the_wheel_holds_the_package(wheel: ZipFile) -> None:
    described = {
        f"{NAME}.dist-info/{name}"
        for name in ("METADATA", "WHEEL", "entry_points.txt", "licenses/LICENSE", "RECORD")
    }

    assert set(wheel.namelist()) == package_files() | described


def test_the_source_distribution_holds_the_package_and_what_builds_it(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}

    besides = {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE", ".gitignore"}
    assert names == package_files() | besides


def test_neither_holds_the_training(built: Path, wheel: ZipFile) -> None:
    """Only a checkout can train the demo's checkpoints; the package does not need it."""
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = [name.removeprefix(f"{NAME}/") for name in archive.getnames()]

    assert not [name for name in [*wheel.namelist(), *names] if "train" in name]
    code = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".py"))
    assert not [text for text in code if re.search(r"^\s*(from|import) training\b", text, re.M)]


def test_every_demo_checkpoint_is_there_with_its_licence(wheel: ZipFile) -> None:
    weights = [name for name in wheel.namelist() if name.endswith("model.safetensors")]

    assert "llama_index_gap/demo/checkpoint/model.safetensors" in weights
    for name in weights:
        card = wheel.read(str(Path(name).with_name("README.md"))).decode()
        assert "\nlicense: mit\n" in card


def test_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "llama-index-gap"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert "llama-index-core<0.15,>=0.14.23" in needed
    assert not any("pytest" in line or "matplotlib" in line for line in needed)


def test_what_llamahub_reads() -> None:
    hub = PROJECT["tool"]["llamahub"]

    assert hub["import_path"] == "llama_index_gap"
    assert hub["contains_example"] == any((ROOT / "examples").glob("*.py"))
    assert set(hub["class_authors"]) <= set(llama_index_gap.__all__)
