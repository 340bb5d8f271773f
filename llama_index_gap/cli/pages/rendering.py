"""Pages with a common look. Each contains its style and script, and lets nothing else run."""

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

    Its content security policy names the hashes of its style and of its script, which filters the
    page, and forbids all other scripts, styles and sources.

    Args:
        template: the name of a ``.html`` and a ``.css`` file in ``templates``.
        images_from: sources of images, as the policy writes them; by default only the page itself.
        forms_to: targets of forms, as the policy writes them; by default none.
        **content: variables of the template; texts are escaped.
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
    """The SHA-256 of a style or a script, as policies write it."""
    return base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
