"""The errors that are meant for users, and what all of them have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
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


class EmbeddingError(GapError, RuntimeError):
    """A model, or the service behind it, that failed; nothing is wrong with what it was given."""


class UnknownParameterError(GapError, TypeError):
    """A parameter that a function does not have."""


class NotPicklableError(GapError, TypeError):
    """An object that holds an open database, and so cannot go to another process.

    Args:
        what: the object, in words.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} holds an open connection and cannot be pickled; open the index anew where you "
            "need it: DualIndex(uri, name)"
        )


EXPECTED_ERRORS = (GapError, ValueError, OSError, NotImplementedError)
"""Errors whose messages are written for users, pydantic's and the file system's among them."""


def check_names(function: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse parameters that a function does not have.

    Args:
        function: its name.
        given: the names that it was called with.
        known: the names that it has.

    Raises:
        UnknownParameterError: one of them is unknown; names the nearest one that is known.
    """
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
            raise UnknownParameterError(f"{function} has no parameter {name!r}; {hint}")


def names_nearest(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Make a function reject an unknown parameter, and suggest the closest one that it has.

    Args:
        function: one with named parameters only, no ``**``.
    """
    name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    known = [each for each in inspect.signature(function).parameters if each not in {"self", "cls"}]

    @wraps(function)
    def checked(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        check_names(name, kwargs, known)
        return function(*args, **kwargs)

    return checked
