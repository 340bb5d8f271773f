"""Steps that LlamaIndex's instrumentation shows as separate spans."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]

_Result = TypeVar("_Result")
_dispatcher = get_dispatcher(__name__)


def in_span(owner: object, step: str, function: Callable[[], _Result]) -> _Result:
    """Run a step in a span named ``Class.step``, as LlamaIndex names the span of a method.

    The parent is the active span of this thread's context, which may be a copy of another thread's.
    An error closes the span too.

    Args:
        owner: the object that runs the step.
        step: its name in the trace; several steps may share a method.
        function: does the work.
    """

    def run() -> _Result:
        return function()

    run.__qualname__ = f"{type(owner).__name__}.{step}"  # LlamaIndex names the span by this
    result: _Result = _dispatcher.span(run)()
    return result
