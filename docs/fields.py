"""Lets the API reference describe the fields of pydantic models by their ``Field(…)``."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension


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
