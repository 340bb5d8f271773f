"""Builds models of any class that the user names."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from importlib import import_module
from inspect import signature
from pkgutil import iter_modules
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_gap.errors import InvalidValueError

logger = logging.getLogger(__name__)

# Settings that may come from an index, since none of them names a file, an address or code.
_FROM_THE_INDEX = {
    *("model", "model_name", "dialect", "task", "mode"),
    *("dimension", "dimensions", "output_dimension", "embedding_dim", "truncate_dim"),
    *("query_prompt", "document_prompt", "image_prompt", "query_instruction", "text_instruction"),
    *("query_options", "document_options", "image_options", "input_type", "embedding_type"),
    *("encoding_format", "normalize", "normalized", "pooling", "max_length", "truncate"),
    *("late_chunking", "scale_to_pixels"),
}


def names_a_class(name: str) -> bool:
    """Whether a model's name is that of a LlamaIndex class, and not of a model on a hub."""
    return bool(re.fullmatch(r"([A-Za-z_][\w.]*:)?(?=[A-Z])\w*Embedding\w*", name))


def build_from_class(
    name: str, settings: dict[str, Any], identity: dict[str, Any] | None = None
) -> BaseEmbedding:
    """Build a model of the class that the caller names.

    Args:
        name: a class, such as ``EmbeddingService``, ``module:Class``, or the name of a class in an
            installed ``llama-index-embeddings-…`` package.
        settings: the caller's settings of the model.
        identity: the identity of an index's model; provides the settings that the caller leaves
            out, except files, addresses and code.

    Raises:
        ValueError: there is no such class, or it does not accept the settings.
    """
    model_class = _class_named(name)
    stored = {key: value for key, value in (identity or {}).items() if key in _FROM_THE_INDEX}
    takes = {*model_class.model_fields, *signature(model_class).parameters}
    stored = {key: value for key, value in stored.items() if key in takes}
    try:
        return model_class(**(stored | settings))
    except (TypeError, ValueError, ImportError) as error:
        given = ", ".join(f"{key}=…" for key in stored | settings)
        raise InvalidValueError(f"{name}({given}): {error}") from error


def _class_named(name: str) -> type[BaseEmbedding]:
    module, _, class_name = name.rpartition(":")
    places = [module]
    if not module:
        places = ["llama_index_gap.embedding"]
        with suppress(ImportError):
            installed = import_module("llama_index.embeddings")
            names = sorted(each.name for each in iter_modules(installed.__path__))
            places += [f"llama_index.embeddings.{each}" for each in names]
    for place in places:
        try:
            found = getattr(import_module(place), class_name, None)
        except ImportError as error:
            if module:
                raise InvalidValueError(f"{name}: cannot be imported ({error})") from error
            logger.info("%s cannot be imported: %s", place, error)
            continue
        if isinstance(found, type) and issubclass(found, BaseEmbedding):
            return found
    raise InvalidValueError(
        f"{name}: no embedding class of that name in {module or 'the installed packages'}; write "
        "module:Class, or install its llama-index-embeddings-… package"
    )
