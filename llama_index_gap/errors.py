"""The errors that are written for users."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class GapError(Exception):
    """An error written for users: it names the value, the rule and the way out."""


class InvalidValueError(GapError, ValueError):
    """A setting, an argument or a document that breaks a rule."""


class UnsupportedError(GapError, NotImplementedError):
    """Something that this package or its database cannot do."""


class EmbeddingError(GapError, RuntimeError):
    """A model or an embedding service that failed although its input was valid."""


class UnknownParameterError(GapError, TypeError):
    """A parameter that a function does not have."""


class NotPicklableError(GapError, TypeError):
    """An object that cannot be pickled because it holds an open database.

    Args:
        what: names the object in the message.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} holds an open connection and cannot be pickled; open the index again where "
            "you need it: DualIndex(uri, name)"
        )


EXPECTED_ERRORS = (GapError, ValueError, OSError, NotImplementedError)
"""Errors whose messages users can act on, including those of pydantic and the file system."""


def check_names(function: str, given: Iterable[str], known: Collection[str]) -> None:
    """Reject parameters that a function does not have.

    Args:
        function: name of the function.
        given: names of the parameters that the caller passed.
        known: names of the function's parameters.

    Raises:
        UnknownParameterError: a parameter is unknown; the message names the closest known one.
    """
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise UnknownParameterError(f"{function} has no parameter {name!r}; {hint}")


def names_nearest(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function reject an unknown parameter and suggest the closest known one.

    Args:
        function: has named parameters only, no ``**``.
    """
    name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    known = [each for each in inspect.signature(function).parameters if each not in {"self", "cls"}]

    @wraps(function)
    def checked(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        check_names(name, kwargs, known)
        return function(*args, **kwargs)

    return checked
