"""What mkdocs does not do by itself: the files at the top of the repository are pages, too.

So README.md is the site's front page, and nothing is written twice.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files at the top, whose links into docs/ become links between pages."""
    root = Path(config.config_file_path).parent
    for name in TOP:
        text = (root / name).read_text(encoding="utf-8")
        content = re.sub(r'(\]\(|src=")docs/', r"\1", text)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let pages name the files at the top as a code host does, one ``../`` further up."""
    return re.sub(rf"\]\(\.\./((?:\.\./)*(?:{'|'.join(TOP)}))", r"](\1", markdown)
