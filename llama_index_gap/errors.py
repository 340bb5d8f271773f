"""The errors that are meant for users, and what all of them have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class GapError(Exception):
    """What went wrong, in words for users: the value, the rule, and the way out."""


class InvalidValueError(GapError, ValueError):
    """A setting, an argument or a document that breaks a rule."""


class UnsupportedError(GapError, NotImplementedError):
    """Something that this package, or the database behind it, does not do."""


class UnknownParameterError(GapError, TypeError):
    """A parameter that a function does not have."""


EXPECTED_ERRORS = (GapError, ValueError, OSError, NotImplementedError)
"""Errors whose messages are written for users, pydantic's and the file system's among them."""


def names_nearest(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Let a function answer a mistyped parameter with the name of the nearest one that it has.

    Args:
        function: one with named parameters only, no ``**``.
    """
    known = list(inspect.signature(function).parameters)

    @wraps(function)
    def checked(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        for name in kwargs:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                others = ", ".join(each for each in known if each not in {"self", "cls"})
                hint = f"did you mean {near[0]!r}?" if near else f"it has {others}"
                raise UnknownParameterError(
                    f"{function.__qualname__} has no parameter {name!r}; {hint}"
                )
        return function(*args, **kwargs)

    return checked
