"""Builds the documentation as a site with Zensical, and fails on each warning and each broken link.

    python docs/make_site.py --site-dir site

The files at the top of the repository are pages too: README.md is the front page of the site.
Zensical reads one folder, so all pages are first copied into one, with their links adjusted.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
_UP_TO_TOP = re.compile(rf"\]\(\.\./((?:\.\./)*(?:{'|'.join(map(re.escape, TOP))}))")
_EXPECTED = re.compile(r"Build (started|finished in .*)|No issues found|")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def main() -> None:
    """Read the command line and build the site; end with 1 if a page is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--site-dir", type=Path, default=ROOT / "site")
    chosen = parser.parse_args()
    if problems := make_site(ROOT, chosen.site_dir):
        sys.exit(problems)


def make_site(root: Path, site: Path) -> str:
    """Build the pages of a checkout.

    Args:
        root: the checkout, with ``mkdocs.yml``, ``docs`` and the package.
        site: the folder for the site. A good build replaces it; a bad build leaves it unchanged.

    Returns:
        The warnings and the broken links; empty if there are none.
    """
    with TemporaryDirectory() as folder:
        project = Path(folder).resolve()  # Zensical refuses a path that contains a link
        gather(root, project)
        command = [sys.executable, "-m", "zensical", "build"]
        command += ["--config-file", str(project / "mkdocs.yml")]
        built = subprocess.run(  # noqa: S603  (this interpreter, and no outside argument)
            command, cwd=project, capture_output=True, text=True, check=False
        )
        # Its own --strict lets warnings about docstrings pass, so every other line is a problem.
        lines = _COLOUR.sub("", built.stdout + built.stderr).splitlines()
        problems = [line for line in lines if not _EXPECTED.fullmatch(line)]
        if built.returncode:
            problems.append(f"Zensical ended with {built.returncode}")
        else:
            problems += broken_links(project / "site")
        if not problems:
            shutil.rmtree(site, ignore_errors=True)
            shutil.copytree(project / "site", site)
    return "\n".join(problems)


def gather(root: Path, project: Path) -> None:
    """Copy everything that Zensical reads into one folder."""
    shutil.copy(root / "mkdocs.yml", project)
    shutil.copy(root / "docs" / "fields.py", project)
    (project / "llama_index_gap").symlink_to(root / "llama_index_gap")
    docs = project / "docs"
    shutil.copytree(root / "docs", docs, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in docs.rglob("*.md"):
        page.write_text(_UP_TO_TOP.sub(r"](\1", page.read_text("utf-8")), "utf-8")
    for name in TOP:
        text = (root / name).read_text("utf-8")
        (docs / name).write_text(re.sub(r'(\]\(|src=")docs/', r"\1", text), "utf-8")


def broken_links(site: Path) -> list[str]:
    """The links and images of a site that lead nowhere in it, each with its page."""
    pages = {file: Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    broken = []
    for file, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (file.parent / unquote(address.path)).resolve() if address.path else file
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(address.fragment)
            known = pages[target].anchors if anchor and target in pages else {anchor}
            if not target.is_relative_to(site) or not target.exists() or anchor not in known:
                broken.append(f"{file.relative_to(site)}: {link} leads nowhere")
    return broken


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element leads to, and the names by which links find it."""
        for name, value in attrs:
            if name in {"href", "src"} and value:
                self.links.append(value)
            if (name == "id" or (name == "name" and tag == "a")) and value:
                self.anchors.add(value)


if __name__ == "__main__":
    main()
