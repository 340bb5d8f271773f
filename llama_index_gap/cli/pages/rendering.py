"""Pages in one look. Each holds its style and its script, and lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llama_index_gap.models.presets import model_in_short


def render(
    template: str, *, images_from: str = "data:", forms_to: str = "'none'", **content: Any
) -> str:
    """Write a page.

    Its content security policy allows, by their hashes, its own style and its own script, which
    serves the filter box. Everything else is forbidden, as is anything from elsewhere.

    Args:
        template: the name of a ``.html`` and a ``.css`` file in ``templates``.
        images_from: where images may come from, in the policy's words; by default only the page.
        forms_to: where forms may be sent; by default nowhere.
        **content: the template's variables; texts are escaped.
    """
    templates = _templates()
    return templates.get_template(f"{template}.html").render(
        style=templates.get_template(f"{template}.css").render(),
        script=templates.get_template("base.js").render(),
        images_from=images_from,
        forms_to=forms_to,
        **content,
    )


@cache
def _templates() -> Environment:
    """The templates, compiled once."""
    templates = Environment(
        loader=PackageLoader("llama_index_gap.cli.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"digest": _digest, "model": model_in_short}
    return templates


def _digest(inline: str) -> str:
    """The SHA-256 of a style or a script, in the form that policies take."""
    return base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
