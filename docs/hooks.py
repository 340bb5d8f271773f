"""What mkdocs and mkdocstrings do not do by themselves.

The files at the top of the repository are pages, too: README.md is the site's front page, and
nothing is written twice. And the fields of pydantic models are described by their ``Field``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from griffe import Attribute, Docstring, Extension
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


class Fields(Extension):
    """Takes the description and the default of an attribute from its ``Field(…)``."""

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **_: Any) -> None:
        """Called by griffe for each attribute that it finds in the source."""
        call = getattr(node, "value", None)
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "Field"):
            return
        arguments = {keyword.arg: keyword.value for keyword in call.keywords}
        if "description" in arguments:
            attr.docstring = Docstring(ast.literal_eval(arguments["description"]), parent=attr)
        attr.labels.clear()
        attr.value = ast.unparse(arguments["default"]) if "default" in arguments else None
