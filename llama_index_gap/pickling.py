"""Whether LlamaIndex's nodes and models arrive whole where they are sent as pickles."""

from __future__ import annotations

import io
import pickle
from typing import Any

from llama_index.core.schema import BaseComponent


def why_not_sent_whole(thing: object) -> str | None:
    """Why a pickle would not hold all of something; None if it would.

    Asked before nodes and models are pickled: LlamaIndex leaves out those of their attributes that
    cannot be, and takes them from the original, too.

    Args:
        thing: nodes, models, or what holds some.
    """
    try:
        _WholePickler(io.BytesIO(), pickle.HIGHEST_PROTOCOL).dump(thing)
    except Exception as error:  # of whatever somebody's attributes and metadata are
        return f"{type(error).__name__}: {error}"
    return None


class _WholePickler(pickle.Pickler):
    """Takes all attributes of a component, where LlamaIndex leaves out some."""

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, BaseComponent):
            return NotImplemented
        if type(thing).__getstate__ is not BaseComponent.__getstate__:  # it decides for itself
            return NotImplemented
        return dict, ({**vars(thing), **(thing.__pydantic_private__ or {})},)
