"""Checks that LlamaIndex's nodes and models lose nothing when they are pickled."""

from __future__ import annotations

import io
import pickle
from typing import Any

from llama_index.core.schema import BaseComponent


def why_not_sent_whole(thing: object) -> str | None:
    """Why a pickle of an object would lose something; None if it would not.

    Call this before pickling nodes or models: LlamaIndex leaves out attributes that cannot be
    pickled, and removes them from the original as well.

    Args:
        thing: a node, a model, or an object that holds some.
    """
    try:
        _WholePickler(io.BytesIO(), pickle.HIGHEST_PROTOCOL).dump(thing)
    except Exception as error:  # attributes and metadata may be of any class
        return f"{type(error).__name__}: {error}"
    return None


class _WholePickler(pickle.Pickler):
    """Pickles all attributes of a component; LlamaIndex's own pickling leaves out some."""

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, BaseComponent):
            return NotImplemented
        if type(thing).__getstate__ is not BaseComponent.__getstate__:  # has its own rule
            return NotImplemented
        return dict, ({**vars(thing), **(thing.__pydantic_private__ or {})},)
