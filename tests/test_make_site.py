"""docs/make_site.py builds a site, and names what is wrong in its pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from paths import ROOT

from docs.make_site import TOP, make_site

BROKEN = [
    ("[a page](nowhere.md)", "page does not exist"),
    ("[an anchor](#nowhere)", "anchor does not exist"),
    ("[an absolute link](/search/)", "one/index.html: /search/ leads nowhere"),
    ("[a file of the repository](../examples/search.py)", "examples/search.py leads nowhere"),
    ("![an image](assets/nowhere.png)", "one/index.html: ../assets/nowhere.png leads nowhere"),
    ("[a name][llama_index_gap.Nowhere]", "unresolved autoref"),
    ("::: llama_index_gap.nowhere", "llama_index_gap.nowhere could not be found"),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout with two pages, one of them of the reference."""
    folder = tmp_path / "project"
    (folder / "docs" / "api").mkdir(parents=True)
    shutil.copytree(ROOT / "docs" / "assets", folder / "docs" / "assets")
    shutil.copy(ROOT / "docs" / "fields.py", folder / "docs")
    (folder / "llama_index_gap").symlink_to(ROOT / "llama_index_gap")
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    before, _, after = settings.partition("nav:\n")
    after = after.partition("\n\n")[2]  # the pages that are there, in any order
    (folder / "mkdocs.yml").write_text(before + after, "utf-8")
    for name in TOP:
        (folder / name).write_text(f"# {name}\n\n[One](docs/one.md)\n", "utf-8")
    (folder / "docs" / "one.md").write_text("# One\n\n[README](../README.md)\n", "utf-8")
    (folder / "docs" / "api" / "leg.md").write_text(
        "# Reference\n\n[README](../../README.md)\n\n::: llama_index_gap.modality.Leg\n", "utf-8"
    )
    return folder


def test_builds_all_pages(project: Path, tmp_path: Path) -> None:
    assert make_site(project, tmp_path / "site") == ""

    assert "README.md" in (tmp_path / "site" / "index.html").read_text("utf-8")
    reference = (tmp_path / "site" / "api" / "leg" / "index.html").read_text("utf-8")
    assert "the modality of the query" in reference


@pytest.mark.parametrize(("text", "problem"), BROKEN, ids=[text for text, _ in BROKEN])
def test_names_what_is_wrong_and_keeps_the_site(
    project: Path, tmp_path: Path, text: str, problem: str
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text("the last good one", "utf-8")
    with (project / "docs" / "one.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{text}\n")

    assert problem in make_site(project, site)
    assert (site / "index.html").read_text("utf-8") == "the last good one"


def test_warnings_about_docstrings_count(project: Path, tmp_path: Path) -> None:
    (project / "llama_index_gap").unlink()
    (project / "llama_index_gap").mkdir()
    (project / "llama_index_gap" / "__init__.py").touch()
    source = (ROOT / "llama_index_gap" / "modality.py").read_text("utf-8")
    line = "        target: the modality of its hits.\n"
    bad = source.replace(line, f"{line}        a line without a colon\n            more\n")
    (project / "llama_index_gap" / "modality.py").write_text(bad, "utf-8")

    assert "a line without a colon" in make_site(project, tmp_path / "site")
