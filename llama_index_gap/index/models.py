"""The models that an index was made with: their identities, and how to build them again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeAlias

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding

from llama_index_gap.embedding import DualEncoderEmbedding
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.modality import Modality
from llama_index_gap.models.presets import DEMO, is_own
from llama_index_gap.store.connection import StoreError

MODELS_PROPERTY = "models"
"""Property of all collections: the identities of the models that made them."""
CALIBRATOR_PROPERTY = "calibrator"
"""Property of the text collection: the calibrator from ``save_calibrator``."""
Identities: TypeAlias = dict[str, Any]
"""The identity of the model for ``text``, ``image`` and, if there is one, ``image_query``."""
# The settings of a DualEncoderEmbedding that affect its vectors, unlike the device and such.
_IDENTITY = (
    "class_name",
    "model_name",
    "image_model_name",
    "dimensions",
    "query_prompt",
    "document_prompt",
    "max_text_tokens",
    "revision",
    "pooling",
    "aligner",
)
_OWN_CLASS = DualEncoderEmbedding.class_name()
# Settings of other classes that do not affect vectors: about speed, addresses, credentials and
# progress, and what a class counts and waits for while it runs.
_MOVES_NOTHING = re.compile(
    r"^api|^aws|^azure_(ad|endpoint)|(^|_)(url|uri|base|endpoint|host|port|region|profile|proxy|"
    r"headers?|keys?|token|secret|password|credentials?|organi[sz]ation|project|user|client|"
    r"batch_size|batch|num_workers|workers|callback_manager|embeddings_cache|cache_folder|"
    r"cache_dir|rate_limiter|timeout(_s)?|retries|retry|max_retries|show_progress(_bar)?|"
    r"verbose|device|devices|target_devices|parallel_process|requests_at_once|keep_alive|"
    r"image_root|max_pixels|allow_http|allow_urls|reuse_client|trust_remote_code|calls?|counts?|"
    r"counter|usage|asked|seen|history|stats|log|total\w*|fail\w*|good_for|delay\w*|sleep\w*|"
    r"wait\w*|latency)($|_env$)",
    re.IGNORECASE,
)
_NOT_TEXTS = {"dimensions", "max_text_tokens", "pooling", "aligner"}


def known_dimension(model: BaseEmbedding) -> int | None:
    """The dimension of a model's vectors, if the model reports it without embedding anything."""
    known = getattr(model, "dimension", None)
    return known if isinstance(known, int) else None


def asked_dimension(model: BaseEmbedding) -> int:
    """The dimension of a model's vectors, found by embedding one query."""
    return len(model.get_query_embedding("a"))


def embeds(model: BaseEmbedding, modality: Modality) -> bool:
    """Whether a model embeds a modality; assumed if the model does not say."""
    return modality in getattr(model, "modalities", ("text", "image"))


def image_model(model: BaseEmbedding, argument: str) -> MultiModalEmbedding:
    """A model as one that embeds images.

    Args:
        model: any model.
        argument: the name of the parameter, for the message.

    Raises:
        ValueError: the model embeds no images.
    """
    if not (isinstance(model, MultiModalEmbedding) and embeds(model, "image")):
        raise InvalidValueError(
            f"{model.model_name} embeds no images; pass a MultiModalEmbedding "
            f"(such as DualEncoderEmbedding) as {argument}"
        )
    return model


def identity_of(model: BaseEmbedding) -> dict[str, Any]:
    """The identity of a model: the settings that affect its vectors.

    Args:
        model: any LlamaIndex embedding model.

    Raises:
        ValueError: its aligner is only in memory.
    """
    settings = model.to_dict()
    known = _identifying(settings)
    for key in ("model_name", "image_model_name"):
        # Make a folder's path absolute, so that it works from any working directory.
        if key in known and Path(str(known[key])).is_dir():
            known[key] = _portable(str(Path(known[key]).resolve()))
    if "aligner" in known and known["aligner"]["path"] is None:
        raise InvalidValueError(
            f"the aligner of {known['model_name']} is only in memory, and without it no query "
            "finds the vectors that it moved: save it with aligner.save(path), and pass that path "
            "as aligner"
        )
    return known


def _portable(folder: str) -> str:
    """The plain name of the package's own model, whose folder is another in each environment."""
    return DEMO if is_own(folder) else folder


def _identifying(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings among these that may affect a vector."""
    if settings["class_name"] != _OWN_CLASS:
        return _moving_settings(settings)
    return {key: settings[key] for key in _IDENTITY if settings.get(key) is not None}


def _moving_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of any class that may affect a vector; never a key, an address or a header.

    Only the class knows what a setting means. So all texts and numbers are taken, except those
    whose names show that they have no effect. Lists are left out: classes use them as caches.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key != "class_name" and _MOVES_NOTHING.search(key):
            continue
        match value:
            case dict():
                found[key] = _moving_settings(value)
            case str() | int() | float():  # bool is an int
                found[key] = value
    return {key: value for key, value in found.items() if value not in ("", {})}


def stored_identities(properties: dict[str, str], of: str) -> Identities:
    """Read the identities of a collection's models, as untrusted data.

    Only settings that identify a model are read. Permissions, such as for remote code or pickles,
    are never read from an index: only the caller can give them.

    Args:
        properties: the properties of the collection.
        of: the name of the index, for the message.

    Returns:
        The identity of the model for ``text``, ``image`` and, if there is one, ``image_query``;
        None for an image model that is the text model. Empty if nothing is stored.

    Raises:
        StoreError: the property is damaged.
    """
    if MODELS_PROPERTY not in properties:
        return {}
    try:
        stored = json.loads(properties[MODELS_PROPERTY])
        identities: Identities = {"text": _known_settings(stored["text"]), "image": None}
        for key in ("image", "image_query"):
            if stored.get(key) is not None:
                identities[key] = _known_settings(stored[key])
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise StoreError(
            f"{of}: its property {MODELS_PROPERTY!r} names no models ({type(error).__name__}: "
            f"{str(error)[:200]}); the index is damaged: pass another name, or overwrite=True to "
            "start over"
        ) from error
    return identities


def _known_settings(stored: Any) -> dict[str, Any]:
    """The settings that identify a model, with checked types; all other stored data is ignored."""
    known = _identifying(stored)
    for key in ("model_name", "image_model_name"):
        if isinstance(known.get(key), str):
            known[key] = _portable(known[key])
    for key, value in known.items():
        match key, value:
            case "dimensions" | "max_text_tokens", int() if not isinstance(value, bool):
                continue
            case "pooling", "last" | "mean" | "cls":
                continue
            case "aligner", {"path": str(), "fingerprint": str(), **rest} if not rest:
                continue
            case _, str() if key not in _NOT_TEXTS:
                continue
            case _, _ if key not in _IDENTITY:
                continue
        raise InvalidValueError(f"{key} is {str(value)[:60]!r}")
    if not {"class_name", "model_name"} <= known.keys():
        raise InvalidValueError("a model needs a class_name and a model_name")
    return known


def check_identities(stored: Identities, given: Identities, uri: str, name: str) -> None:
    """Reject other models than those that an index was made with.

    Args:
        stored: the identities in the index; empty for a new one.
        given: the identities of the models that it is opened with.
        uri: the database, for the message.
        name: the name of the index, for the message.

    Raises:
        ValueError: they differ.
    """
    # A model for image queries may be added to an index that has none.
    joins = "image_query" not in stored or "image_query" not in given
    either = {"image_query": None} if joins else {}
    if stored and without_paths(stored | either) != without_paths(given | either):
        raise InvalidValueError(
            f"{uri}: {name} was made with {in_words(stored)}, not with {in_words(given)}; open it "
            "without models to use the stored ones, or pass another name, or overwrite=True to "
            "start over"
        )


def without_paths(identities: Identities) -> Identities:
    """The identities to compare: with the fingerprint of an aligner, but not its path."""
    return {
        key: each and each | {"aligner": each.get("aligner", {}).get("fingerprint")}
        for key, each in identities.items()
    }


def build_model(
    identity: dict[str, Any],
    of: str,
    argument: str,
    *,
    cache_folder: str | Path | None = None,
    local_files_only: bool = False,
) -> BaseEmbedding:
    """Build a model again from its identity.

    Args:
        identity: the identity, from ``stored_identities``.
        of: the name of the index, for the message.
        argument: the parameter that takes the model, for the message.
        cache_folder: where to keep downloads.
        local_files_only: load it only from a folder or the download cache.

    Raises:
        ValueError: its class is not of this package.
    """
    if identity["class_name"] != _OWN_CLASS:
        raise InvalidValueError(
            f"{of} was made with {in_words({'text': identity})}, which is used only if you name "
            f"it: pass it as {argument}, or on the command line --model {identity['class_name']} "
            "with --model-setting KEY=VALUE for the settings that it needs"
        )
    places = {"cache_folder": cache_folder, "local_files_only": local_files_only}
    return DualEncoderEmbedding.from_dict(identity | places)


def in_words(identities: Identities) -> str:
    """Describe models in a readable form."""
    texts = []
    for name in ("text", "image", "image_query"):
        if identity := identities.get(name):
            rest = {k: v for k, v in identity.items() if k not in {"class_name", "model_name"}}
            model_name = identity["model_name"]
            if model_name == "unknown":  # LlamaIndex's name for classes with a setting "model"
                model_name = identity.get("model", model_name)
            extra = "".join(f", {key}={value!r}" for key, value in rest.items())
            purpose = " for image queries" if name == "image_query" else ""
            texts.append(f"{identity['class_name']}({model_name!r}{extra}){purpose}")
    return " and ".join(texts)
