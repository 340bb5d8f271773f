"""The arguments of ``MultiModalSearchTool``: described for chat models, and checked."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

# Not through LlamaIndex: the MCP server describes its arguments before it imports LlamaIndex.
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.text import excerpt

if TYPE_CHECKING:
    from llama_index.core.vector_stores.types import MetadataFilters

Operator: TypeAlias = Literal[
    "==", "!=", ">", ">=", "<", "<=", "in", "nin", "contains", "text_match"
]

NAME = "search_documents"
DESCRIPTION = (
    "Search documents that have texts and images. Say in plain words what a text should be about "
    "or what an image should show. Returns the best documents in order, each with its score, "
    "its metadata, its passage and its images."
)
TOP_K = 5
MAX_TOP_K = 20
LONGEST_QUERY = 10_000
_LONGEST_NAME = 4096
_MOST_FILTERS = 32
_MOST_VALUES = 1000
_MISTAKES = 5
_QUERY_OR_IMAGE = "What to look for, in plain words; may be left out with an image."
_FILTERS = "Only documents whose metadata meet all of these conditions."
_OPERATORS = (
    "'in' and 'nin' take a list of values; 'contains' looks into a field that is a list; "
    "'text_match' finds text within a field."
)
_SCALARS: list[dict[str, Any]] = [{"type": "string"}, {"type": "number"}]
_VALUE: dict[str, Any] = {
    "anyOf": [*_SCALARS, {"type": "boolean"}, {"type": "array", "items": {"anyOf": _SCALARS}}]
}


def search_arguments(
    *,
    top_k: int = TOP_K,
    max_top_k: int = MAX_TOP_K,
    images: str | None = None,
    filter_fields: Sequence[str] | None = None,
) -> type[BaseModel]:
    """The schema of the tool's arguments: flat, so that every provider of chat models accepts it.

    Args:
        top_k: documents by default.
        max_top_k: most documents.
        images: how an image may be named; None if no image may be passed.
        filter_fields: as for ``MultiModalSearchTool``.
    """
    query: Any = (
        str,
        Field(max_length=LONGEST_QUERY, description="What to look for, in plain words."),
    )
    fields: dict[str, Any] = {}
    if images is not None:
        query = (str, Field(default="", max_length=LONGEST_QUERY, description=_QUERY_OR_IMAGE))
        about = f"Search by this image: {images}."
        fields["image"] = (str, Field(default="", max_length=_LONGEST_NAME, description=about))
    about = "How many documents to return."
    fields["top_k"] = (int, Field(default=top_k, ge=1, le=max_top_k, description=about))
    if filter_fields is None or filter_fields:
        condition = _condition(filter_fields)
        schema = {"type": "array", "items": condition.model_json_schema()}
        fields["filters"] = (
            Annotated[list[condition], BeforeValidator(_from_json), WithJsonSchema(schema)],  # type: ignore[valid-type]
            Field(default=[], max_length=_MOST_FILTERS, description=_FILTERS),
        )
    return create_model("Search", __base__=_Arguments, query=query, **fields)


def images_to_name(image_root: str | Path | None, allow_urls: bool) -> str:
    """How an agent may name an image to search by, in words."""
    ways = ["the id of an image that a search returned"]
    ways += ["a path below the image folder"] if image_root is not None else []
    ways += ["an http(s) URL"] if allow_urls else []
    return ", or ".join(ways)


def given_arguments(query: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, without nulls: chat models write null for what they leave out."""
    given = {"query": query, **arguments}
    return {name: value for name, value in given.items() if value is not None}


def check_arguments(schema: type[BaseModel], given: Mapping[str, Any]) -> Any:
    """The arguments as an object of their schema.

    Args:
        schema: as ``search_arguments`` makes it.
        given: what a chat model wrote.

    Raises:
        ValueError: an argument does not fit; the message tells the chat model why.
    """
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        wrong = []
        for each in error.errors():
            where = excerpt(".".join(map(str, each["loc"])), 80)
            if each["type"] == "extra_forbidden" and len(each["loc"]) == 1:
                known = ", ".join(schema.model_fields)
                wrong.append(f"{where}: no such argument; there are {known}")
            else:
                said = each["msg"].removeprefix("Value error, ")
                wrong.append(f"{where}: {said} (not {_in_words(each['input'])})")
        more = [f"{len(wrong) - _MISTAKES:,} more"] if len(wrong) > _MISTAKES else []
        raise InvalidValueError("; ".join(wrong[:_MISTAKES] + more)) from error


def _in_words(value: Any) -> str:
    """A value, however long or deep, shortened for an error message."""
    try:
        return excerpt(reprlib.repr(value), 80)
    except ValueError:  # a number of thousands of digits
        return f"<{type(value).__name__}>"


def filters_of(asked: Any) -> MetadataFilters | None:
    """The filters among the checked arguments, all of which must hold; None without any."""
    from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

    conditions = [
        MetadataFilter(key=each.key, operator=FilterOperator(each.operator), value=each.value)
        for each in getattr(asked, "filters", [])
    ]
    return MetadataFilters(filters=list(conditions)) if conditions else None


def _without_titles(schema: dict[str, Any]) -> None:
    schema.pop("title", None)
    for field in schema.get("properties", {}).values():
        field.pop("title", None)


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra=_without_titles)


def _condition(fields: Sequence[str] | None) -> type[BaseModel]:
    """One filter."""

    def known(key: Any) -> Any:
        if fields is not None and key not in fields:
            raise InvalidValueError(f"must be one of {', '.join(fields)}")
        return key

    named: dict[str, Any] = {"enum": list(fields)} if fields is not None else {}
    return create_model(
        "Filter",
        __base__=_Arguments,
        key=(
            Annotated[str, BeforeValidator(known)],
            Field(
                max_length=_LONGEST_NAME,
                description="Field of the metadata.",
                json_schema_extra=named,
            ),
        ),
        operator=(Operator, Field(default="==", description=_OPERATORS)),
        value=(
            Annotated[Any, BeforeValidator(_plain_value), WithJsonSchema(_VALUE)],
            Field(description="What to compare with."),
        ),
    )


def _plain_value(value: Any) -> Any:
    if isinstance(value, bool):  # LlamaIndex's filters take no booleans
        return int(value)
    if isinstance(value, list) and len(value) > _MOST_VALUES:
        raise InvalidValueError(f"{len(value):,} values; at most {_MOST_VALUES:,} are compared")
    if isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
        values = [_plain_value(each) for each in value]
        if len({isinstance(each, str) for each in values}) > 1:
            raise InvalidValueError("must be a list of texts or of numbers, not of both")
        # LlamaIndex's filters take no list that mixes int and float.
        return [float(each) for each in values] if float in map(type, values) else values
    if isinstance(value, str) and len(value) > _LONGEST_NAME:
        raise InvalidValueError(
            f"{len(value):,} characters; at most {_LONGEST_NAME:,} are compared"
        )
    if isinstance(value, str | int | float):
        return value
    raise InvalidValueError("must be text, a number, true or false, or a list of these")


def _from_json(value: Any) -> Any:
    """Some chat models write a list as a JSON string."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise InvalidValueError("must be a list of filters") from error
