"""Options that narrow a search by metadata or to one modality, or weigh the modalities."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_index_gap.cli.option_groups import with_group
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.modality import MODALITIES, Modality

if TYPE_CHECKING:
    from llama_index.core.vector_stores.types import MetadataFilters

    from llama_index_gap.search.retriever import DualIndexRetriever

_CONDITION = re.compile(
    r"\s*(?P<key>[^=<>~]*?)\s*(?P<sign>>=|<=|!=|==|=|>|<|~)(?P<value>.*)", re.DOTALL
)
_QUOTED = re.compile(r"(?P<quote>[\"'])(?P<text>.*)(?P=quote)", re.DOTALL)
# Numbers as JSON writes them: 007 and +1 stay texts, since they may be codes.
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_MAX_INTEGER = 2**63
_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Condition:
    """A condition on metadata, from the command line.

    Attributes:
        given: the whole condition, for messages.
        key: the metadata key.
        sign: one of ``=``, ``!=``, ``>``, ``>=``, ``<``, ``<=`` and ``~``.
        text: the value, without the quotes around it.
        quoted: whether the value was quoted, and so is a text even if it looks like a number.
    """

    given: str
    key: str
    sign: str
    text: str
    quoted: bool

    @property
    def number(self) -> int | float | None:
        """The value as a number, 1 or 0 for true or false; None for a text."""
        if self.quoted:
            return None
        if self.text.lower() in {"true", "false"}:  # LlamaIndex filters take no booleans
            return int(self.text.lower() == "true")
        if not _NUMBER.fullmatch(self.text):
            return None
        value: int | float = json.loads(self.text) if len(self.text) < 400 else math.inf
        in_range = abs(value) < _MAX_INTEGER if isinstance(value, int) else math.isfinite(value)
        return value if in_range else None


@dataclass(frozen=True)
class Narrowing:
    """How a search is narrowed.

    Attributes:
        conditions: metadata conditions, all of which must hold.
        only: the only modality to search; None for both.
        weights: the weights of modalities that were given.
    """

    conditions: tuple[Condition, ...]
    only: Modality | None
    weights: dict[str, float]

    @property
    def keys(self) -> list[str]:
        """The metadata keys of the conditions, each once."""
        return list(dict.fromkeys(condition.key for condition in self.conditions))

    def check(self, *, text: bool, image: bool, reranker: str | None) -> None:
        """Reject weights that have no effect.

        Args:
            text: whether the query has a text.
            image: whether the query has an image.
            reranker: the model of the reranker, if one is named.
        """
        if not self.weights:
            return
        if self.only is not None:
            why = f"--only {self.only} searches one modality; leave one of the two options out"
        elif image and not text:
            why = "an image alone searches only images; add a TEXT, or leave --weights out"
        elif reranker is not None:
            why = (
                "--reranker scores all hits without regard to weights; leave one of the two "
                "options out, or let the search's scores count too with --first-stage"
            )
        else:
            return
        raise typer.BadParameter(f"has no effect: {why}", param_hint="--weights")

    def settings(self, top_k: int, *, image_alone: bool) -> dict[str, Any]:
        """Arguments of ``DualIndex.search`` that narrow it, except the filters.

        Args:
            top_k: documents to find.
            image_alone: whether the query is an image without a text.
        """
        settings: dict[str, Any] = {"weights": self.weights or None}
        if self.only is None:
            return settings
        from llama_index_gap.search.retriever import TOP_K

        # The other parts of a document belong to the other modality, so none are added.
        settings |= {"similarity_top_k": 0, "image_similarity_top_k": 0, "complete": False}
        wanted = "similarity_top_k" if self.only == "text" else "image_similarity_top_k"
        settings[wanted] = max(TOP_K, top_k)
        if self.only == "text" and image_alone:
            settings["image_queries"] = "also_texts"
        return settings

    def filters(self, retriever: DualIndexRetriever) -> MetadataFilters | None:
        """The conditions as LlamaIndex filters, for values as the index stores them.

        Args:
            retriever: the retriever of the index, which shows the fields and their values.

        Raises:
            InvalidValueError: no document has a field, or its values have no order to compare by.
        """
        if not self.conditions:
            return None
        from llama_index.core.vector_stores.types import MetadataFilters

        return MetadataFilters(filters=[_filter(each, retriever) for each in self.conditions])

    def nothing_fits(self, retriever: DualIndexRetriever, min_probability: float | None) -> str:
        """Say that nothing matches, and show some values of the filtered fields.

        Args:
            retriever: the retriever of the index, without the filters.
            min_probability: the lowest probability that was asked for, if any.
        """
        from llama_index_gap.store.filters import COLUMNS

        conditions = [each.given for each in self.conditions]
        if min_probability is not None:
            conditions.append(f"a probability of at least {min_probability}")
        sentences = [f"Nothing matches {' and '.join(conditions)}."]
        for key in dict.fromkeys(each.key for each in self.conditions if each.key not in COLUMNS):
            values = list(dict.fromkeys(_in_words(value) for value in _values(retriever, key)))
            more = ", …" if len(values) > _MAX_EXAMPLES else ""
            examples = ", ".join(values[:_MAX_EXAMPLES])
            sentences.append(f"Values of {key} in the index: {examples}{more}")
        return " ".join(sentences)


def parsed_condition(given: str) -> Condition:
    """Parse a condition such as ``year>=2020``.

    Args:
        given: the condition on the command line.
    """
    found = _CONDITION.fullmatch(given)
    if found is None or not found["key"]:
        raise typer.BadParameter(
            f"{given!r} is not a condition; write KEY=VALUE, or replace = by !=, >, >=, <, <= or "
            "~ (contains)",
            param_hint="--filter",
        )
    value, sign = found["value"].strip(), found["sign"].replace("==", "=")
    quoted = _QUOTED.fullmatch(value) if len(value) > 1 else None
    if not value and sign not in {"=", "!="}:
        raise typer.BadParameter(f"{given!r} has no value", param_hint="--filter")
    if value[:1] in {"=", "<", ">", "~"}:
        raise typer.BadParameter(
            f"{given!r} has two signs; write =, !=, >, >=, <, <= or ~, and quote a value that "
            f"begins with one: '{found['key']}=\"{value}\"'",
            param_hint="--filter",
        )
    text = quoted["text"] if quoted else value
    return Condition(given, found["key"], sign, text, quoted is not None)


def _filter(condition: Condition, retriever: DualIndexRetriever) -> Any:
    """A condition as a filter, for values of any type that the index holds."""
    from llama_index.core.vector_stores.types import (
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
    )

    from llama_index_gap.agents.filter_advice import mistaken_filters
    from llama_index_gap.store.filters import COLUMNS

    key, number, text = condition.key, condition.number, condition.text

    def one(operator: FilterOperator, value: Any) -> MetadataFilter:
        return MetadataFilter(key=key, operator=operator, value=value)

    column = key in COLUMNS
    if not column:
        unknown = mistaken_filters(
            MetadataFilters(filters=[one(FilterOperator.TEXT_MATCH, "")]), [], retriever.examples
        )
        if unknown and retriever.examples():
            raise InvalidValueError(f"--filter {condition.given}: {' '.join(unknown)}")
    held = [] if column else _values(retriever, key)
    either: list[MetadataFilter | MetadataFilters]
    if condition.sign in {"=", "!="}:
        if not text and not condition.quoted:
            either = [one(FilterOperator.IS_EMPTY, None)]
        else:
            wanted = [text] if number is None or column else [number, text]
            either = [one(FilterOperator.EQ, each) for each in wanted]
            if any(isinstance(each, list) for each in held):
                either += [one(FilterOperator.CONTAINS, each) for each in wanted]
    elif condition.sign == "~":
        either = [one(FilterOperator.TEXT_MATCH, text)]
    else:
        value = _ordered(condition, held)
        either = [one(FilterOperator(condition.sign), value)]
    if condition.sign == "!=":
        return MetadataFilters(filters=either, condition=FilterCondition.NOT)
    if len(either) == 1:
        return either[0]
    return MetadataFilters(filters=either, condition=FilterCondition.OR)


def _ordered(condition: Condition, held: Sequence[Any]) -> str | int | float:
    """The bound to compare with: a number if the field holds numbers, else a text."""
    numbers = any(isinstance(each, int | float) for each in held)
    if numbers and condition.number is not None:
        return condition.number
    texts = [each for each in held if isinstance(each, str)]
    if held and not texts:
        kind = "numbers" if numbers else "lists"
        raise InvalidValueError(
            f"--filter {condition.given}: {condition.key} holds {kind}, such as "
            f"{_in_words(held[0])}, which cannot be compared with {condition.text!r}; "
            + ("give a number" if numbers else "use = to find lists that hold a value")
        )
    if condition.number is not None:
        for each in texts:
            other = Condition("", "", "", each, quoted=False).number
            if other is None:
                continue
            if (each < condition.text) != (other < condition.number) or (each > condition.text) != (
                other > condition.number
            ):
                raise InvalidValueError(
                    f"--filter {condition.given}: {condition.key} holds numbers as texts. Texts "
                    f"are compared letter by letter, so {each!r} would land on the wrong side of "
                    f"{condition.text!r}; index them as numbers, or name values: "
                    f"{condition.key}={each}"
                )
    return condition.text


def _values(retriever: DualIndexRetriever, key: str) -> list[Any]:
    """Some values of a field."""
    return [node.metadata[key] for node in retriever.examples(key) or () if key in node.metadata]


def _in_words(value: Any) -> str:
    from llama_index_gap.agents.quoting import as_json

    return as_json(value, 40)


def _weights(given: str | None) -> dict[str, float]:
    """Parse ``text=1,image=2`` into a weight for each modality that is named."""
    from llama_index_gap.search.fusion import check_weights

    weights: dict[str, float] = {}
    for part in (given or "").split(",") if given is not None else ():
        name, equals, value = (each.strip() for each in part.partition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not equals or math.isnan(weight):
            raise typer.BadParameter(
                f"{given!r}: write text=1,image=2, or only one of the two", param_hint="--weights"
            )
        if name in weights:
            raise typer.BadParameter(f"{given!r} weighs {name} twice", param_hint="--weights")
        weights[name] = weight
    try:
        check_weights(weights, "modalities", MODALITIES)
    except InvalidValueError as error:
        raise typer.BadParameter(str(error), param_hint="--weights") from error
    silent = [name for name, weight in weights.items() if not weight]
    if silent:
        other = next(each for each in MODALITIES if each != silent[0])
        raise typer.BadParameter(
            f"{silent[0]}=0 ignores {silent[0]} hits; to search only the other modality, use "
            f"--only {other}",
            param_hint="--weights",
        )
    return weights


def _options(
    *,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="Find only documents with this metadata; also !=, >, >=, <, <= and ~ (contains). "
            "Repeatable: all must hold.",
        ),
    ] = None,
    only: Annotated[
        Modality | None, typer.Option(help="Search only this modality.", show_default="both")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="text=N,image=N",
            help="The weight of each modality: image=2 doubles the odds that an image is meant.",
            show_default="text=1,image=1",
        ),
    ] = None,
) -> Narrowing:
    return Narrowing(tuple(map(parsed_condition, filters or [])), only, _weights(weights))


with_narrowing = with_group("narrowing", _options)
"""Replaces the parameter ``narrowing`` of a command by these options."""
