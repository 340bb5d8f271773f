"""Pages that hold their images and their style, run no script and fetch nothing."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **content: Any) -> str:
    """Write a page; its content security policy forbids scripts and whatever lies elsewhere.

    Args:
        template: its name; a ``.html`` and a ``.css`` in ``templates``.
        **content: what the template asks for; texts are escaped.
    """
    templates = Environment(
        loader=PackageLoader("llama_index_gap.cli.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = templates.get_template(f"{template}.css").render()
    return templates.get_template(f"{template}.html").render(
        style=style,
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        **content,
    )
