"""The models that an index was made with: what identifies them, and how they are built again."""

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
from llama_index_gap.store.connection import StoreError

MODELS_PROPERTY = "models"
"""Property of all collections that says which models made them."""
CALIBRATOR_PROPERTY = "calibrator"
"""Property of the text collection with what ``save_calibrator`` was given."""
Identities: TypeAlias = dict[str, Any]
"""For ``text``, ``image`` and, where there is one, ``image_query`` what identifies the model."""
# What decides where in its space a DualEncoderEmbedding puts something; device and such do not.
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
# Of other classes: how fast, where, by whom and for whom a service is asked, how that is shown, and
# what a class counts and waits for while it is used.
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
    """How many numbers a model's vectors have, if it says so without being asked to embed."""
    known = getattr(model, "dimension", None)
    return known if isinstance(known, int) else None


def asked_dimension(model: BaseEmbedding) -> int:
    """How many numbers a model's vectors have; embeds one query to know."""
    return len(model.get_query_embedding("a"))


def embeds(model: BaseEmbedding, modality: Modality) -> bool:
    """Whether a model embeds a modality, as far as it says."""
    return modality in getattr(model, "modalities", ("text", "image"))


def image_model(model: BaseEmbedding, argument: str) -> MultiModalEmbedding:
    """A model as one that embeds images.

    Args:
        model: any model.
        argument: the parameter that it was given for, for the message.

    Raises:
        ValueError: it embeds none.
    """
    if not (isinstance(model, MultiModalEmbedding) and embeds(model, "image")):
        raise InvalidValueError(
            f"{model.model_name} embeds no images; pass a MultiModalEmbedding "
            f"(such as DualEncoderEmbedding) as {argument}"
        )
    return model


def identity_of(model: BaseEmbedding) -> dict[str, Any]:
    """What tells a model from others whose vectors cannot be compared with its own.

    Args:
        model: any model of LlamaIndex's.

    Raises:
        ValueError: its aligner is in memory only.
    """
    settings = model.to_dict()
    known = _identifying(settings)
    for key in ("model_name", "image_model_name"):
        # A folder is found again from another working directory.
        if key in known and Path(str(known[key])).is_dir():
            known[key] = str(Path(known[key]).resolve())
    if "aligner" in known and known["aligner"]["path"] is None:
        raise InvalidValueError(
            f"the aligner of {known['model_name']} is in memory only, and without it nothing finds "
            "what it moved: keep it with aligner.save(path), and pass that path as aligner"
        )
    return known


def _identifying(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that may move a vector, of those that a model has or an index holds."""
    if settings["class_name"] != _OWN_CLASS:
        return _moving_settings(settings)
    return {key: settings[key] for key in _IDENTITY if settings.get(key) is not None}


def _moving_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of any class that may move a vector; never a key, an address or a header.

    What a setting means is known to its class alone, so all texts and numbers are taken but those
    whose names say that they are of another kind. Lists are what a class keeps while it works.
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
    """Read what a collection says of its models, as data that anybody may have written.

    Only what names a model is taken. Whether a model may run code of its own, read pickles or
    anything else is never taken from what is stored: that is for the caller to allow.

    Args:
        properties: of the collection.
        of: the index, for the message.

    Returns:
        For ``text``, ``image`` and, where there is one, ``image_query`` what identifies the model;
        None for an image model that is the text model. Empty where nothing is stored.

    Raises:
        StoreError: what is stored names no models.
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
            "start anew"
        ) from error
    return identities


def _known_settings(stored: Any) -> dict[str, Any]:
    """The settings that identify a model, each of its type; whatever else is stored is left out."""
    known = _identifying(stored)
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
        raise InvalidValueError("a model has a class_name and a model_name")
    return known


def check_identities(stored: Identities, given: Identities, uri: str, name: str) -> None:
    """Refuse other models than those that an index was made with.

    Args:
        stored: of the index; empty for a new one.
        given: of the models that it is opened with.
        uri: the database, for the message.
        name: the index, for the message.

    Raises:
        ValueError: they differ.
    """
    # A model for image queries may join an index that has none.
    joins = "image_query" not in stored or "image_query" not in given
    either = {"image_query": None} if joins else {}
    if stored and without_paths(stored | either) != without_paths(given | either):
        raise InvalidValueError(
            f"{uri} holds {name} made with {in_words(stored)}, not with {in_words(given)}; open it "
            "without models to take the stored ones, or pass another name, or overwrite=True to "
            "start anew"
        )


def without_paths(identities: Identities) -> Identities:
    """What decides whether models are the same: a copy of a file is the same aligner."""
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
    """Build a model again from what identifies it.

    Args:
        identity: as ``stored_identities`` gives it.
        of: the index, for the message.
        argument: the parameter that takes the model, for the message.
        cache_folder: where downloads are kept.
        local_files_only: ask no hub for it.

    Raises:
        ValueError: it is none of this package's.
    """
    if identity["class_name"] != _OWN_CLASS:
        raise InvalidValueError(
            f"{of} was made with {in_words({'text': identity})}, which is asked only where you say "
            f"so: pass it as {argument}, or on the command line --model {identity['class_name']} "
            "with --model-setting KEY=VALUE for what it needs besides"
        )
    places = {"cache_folder": cache_folder, "local_files_only": local_files_only}
    return DualEncoderEmbedding.from_dict(identity | places)


def in_words(identities: Identities) -> str:
    """Name models as people would write them down."""
    texts = []
    for name in ("text", "image", "image_query"):
        if identity := identities.get(name):
            rest = {k: v for k, v in identity.items() if k not in {"class_name", "model_name"}}
            model_name = identity["model_name"]
            if model_name == "unknown":  # as LlamaIndex calls a model whose setting is "model"
                model_name = identity.get("model", model_name)
            extra = "".join(f", {key}={value!r}" for key, value in rest.items())
            what_for = " for image queries" if name == "image_query" else ""
            texts.append(f"{identity['class_name']}({model_name!r}{extra}){what_for}")
    return " and ".join(texts)
