"""Pages in one look, that hold their style and their script, and let nothing else run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llama_index_gap.cli.scores import model_in_short


def render(
    template: str, *, images_from: str = "data:", forms_to: str = "'none'", **content: Any
) -> str:
    """Write a page.

    Its content security policy allows its own style and its own script, which filters what is
    shown, by their hashes. Whatever else asks to run, or lies elsewhere, is forbidden.

    Args:
        template: its name; a ``.html`` and a ``.css`` in ``templates``.
        images_from: where images may come from, as the policy says it; by default only the page.
        forms_to: where forms may be sent; by default nowhere.
        **content: what the template asks for; texts are escaped.
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
    """Compiled once, and kept."""
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
    """The SHA-256 of a style or a script, as policies write it."""
    return base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
