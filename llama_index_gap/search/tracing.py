"""Steps that LlamaIndex' instrumentation shows as spans of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]

_Result = TypeVar("_Result")
_dispatcher = get_dispatcher(__name__)


def in_span(owner: object, step: str, function: Callable[[], _Result]) -> _Result:
    """Run a step in a span that is named ``Class.step``, as LlamaIndex names a method's.

    Its parent is the span that is active here, in this thread or in the one whose context this one
    was given; it is closed on errors, too.

    Args:
        owner: whose step it is.
        step: what the trace calls it; several steps may share a method.
        function: does it.
    """

    def run() -> _Result:
        return function()

    run.__qualname__ = f"{type(owner).__name__}.{step}"  # what a span is named after
    result: _Result = _dispatcher.span(run)()
    return result
