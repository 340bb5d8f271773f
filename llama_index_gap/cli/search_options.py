"""Options that narrow a search: by metadata, to one modality, or by what a modality counts."""

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
# As JSON writes numbers: 007 and +1 are texts, such as codes.
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_MOST_INTEGER = 2**63
_NAMED = 5


@dataclass(frozen=True)
class Condition:
    """A condition on metadata, as the shell gives it.

    Attributes:
        given: the whole of it, for messages.
        key: of the metadata.
        sign: one of ``=``, ``!=``, ``>``, ``>=``, ``<``, ``<=`` and ``~``.
        text: the value, without the quotes around it.
        quoted: whether it was quoted, and so is a text, whatever it looks like.
    """

    given: str
    key: str
    sign: str
    text: str
    quoted: bool

    @property
    def number(self) -> int | float | None:
        """The number that the value looks like, true and false among them; None for a text."""
        if self.quoted:
            return None
        if self.text.lower() in {"true", "false"}:  # filters of LlamaIndex take no booleans
            return int(self.text.lower() == "true")
        if not _NUMBER.fullmatch(self.text):
            return None
        value: int | float = json.loads(self.text) if len(self.text) < 400 else math.inf
        in_range = abs(value) < _MOST_INTEGER if isinstance(value, int) else math.isfinite(value)
        return value if in_range else None


@dataclass(frozen=True)
class Narrowing:
    """What a search is narrowed to.

    Attributes:
        conditions: on metadata, all of which must hold.
        only: the modality that is searched; None for both.
        weights: what each modality counts, as far as it is given.
    """

    conditions: tuple[Condition, ...]
    only: Modality | None
    weights: dict[str, float]

    def check(self, *, text: bool, image: bool, reranker: str | None) -> None:
        """Refuse weights where there is nothing to be weighed.

        Args:
            text: whether a text is searched for.
            image: whether an image is searched by.
            reranker: the model that has the last word.
        """
        if not self.weights:
            return
        if self.only is not None:
            why = f"--only {self.only} searches one modality; leave one of the two options out"
        elif image and not text:
            why = "an image alone searches only images; add a TEXT, or leave --weights out"
        elif reranker is not None:
            why = (
                "--reranker gives all that is found scores of its own, whatever the weights; leave "
                "one of the two options out, or let what was found count with --first-stage"
            )
        else:
            return
        raise typer.BadParameter(f"nothing to be weighed: {why}", param_hint="--weights")

    def settings(self, top_k: int, *, image_alone: bool) -> dict[str, Any]:
        """Settings of ``DualIndex.search`` that narrow it; the filters come beside them.

        Args:
            top_k: documents to find.
            image_alone: whether an image is searched by, and no text.
        """
        settings: dict[str, Any] = {"weights": self.weights or None}
        if self.only is None:
            return settings
        from llama_index_gap.search.retriever import TOP_K

        # Whatever else a document has belongs to the other modality.
        settings |= {"similarity_top_k": 0, "image_similarity_top_k": 0, "complete": False}
        wanted = "similarity_top_k" if self.only == "text" else "image_similarity_top_k"
        settings[wanted] = max(TOP_K, top_k)
        if self.only == "text" and image_alone:
            settings["image_queries"] = "also_texts"
        return settings

    def filters(self, retriever: DualIndexRetriever) -> MetadataFilters | None:
        """The conditions as LlamaIndex' filters, on values as the index stores them.

        Args:
            retriever: of the index; it says which fields there are, and what they hold.

        Raises:
            InvalidValueError: no document has a field, or an order is asked for that its values do
                not have.
        """
        if not self.conditions:
            return None
        from llama_index.core.vector_stores.types import MetadataFilters

        return MetadataFilters(filters=[_filter(each, retriever) for each in self.conditions])

    def nothing_fits(self, retriever: DualIndexRetriever, min_probability: float | None) -> str:
        """Why nothing was found, with some values of the fields that are filtered by.

        Args:
            retriever: of the index, without the filters.
            min_probability: what is less probable is left out, too.
        """
        from llama_index_gap.store.filters import COLUMNS

        probable = "" if min_probability is None else f", with a probability of {min_probability}"
        said = [f"Nothing fits {' and '.join(each.given for each in self.conditions)}{probable}."]
        for key in dict.fromkeys(each.key for each in self.conditions if each.key not in COLUMNS):
            values = list(dict.fromkeys(_in_words(value) for value in _values(retriever, key)))
            more = ", …" if len(values) > _NAMED else ""
            said.append(f"The index has {key} {', '.join(values[:_NAMED])}{more}")
        return " ".join(said)


def parsed_condition(given: str) -> Condition:
    """A condition such as ``year>=2020``.

    Args:
        given: as the shell gives it.
    """
    found = _CONDITION.fullmatch(given)
    if found is None or not found["key"]:
        raise typer.BadParameter(
            f"{given!r} is no condition; write KEY=VALUE, or !=, >, >=, <, <= or ~ (contains) in "
            "place of =",
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
    """A condition, for values of whatever type the index holds."""
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
    """What values are more or less than: a number where the field has numbers, else a text."""
    numbers = any(isinstance(each, int | float) for each in held)
    if numbers and condition.number is not None:
        return condition.number
    texts = [each for each in held if isinstance(each, str)]
    if held and not texts:
        kind = "numbers" if numbers else "lists"
        raise InvalidValueError(
            f"--filter {condition.given}: {condition.key} holds {kind}, such as "
            f"{_in_words(held[0])}, and {condition.text!r} is neither more nor less than these; "
            + ("give a number" if numbers else "use = to ask what a list holds")
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
                    f"--filter {condition.given}: {condition.key} holds numbers as texts, which "
                    f"are compared letter by letter, so that {each!r} would come out on the wrong "
                    f"side of {condition.text!r}; index them as numbers, or name values: "
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
    """``text=1,image=2`` as a weight for each modality that is named."""
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
                f"{given!r}: write text=1,image=2, or one of these", param_hint="--weights"
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
            f"{silent[0]}=0 counts for nothing; to search by the other modality alone, use "
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
            help="Only documents whose metadata are so; also !=, >, >=, <, <= and ~ (contains). "
            "May be given several times: all must hold.",
        ),
    ] = None,
    only: Annotated[
        Modality | None, typer.Option(help="Search this modality alone.", show_default="both")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="text=N,image=N",
            help="What each modality counts: image=2 doubles the odds that an image is meant.",
            show_default="text=1,image=1",
        ),
    ] = None,
) -> Narrowing:
    return Narrowing(tuple(map(parsed_condition, filters or [])), only, _weights(weights))


with_narrowing = with_group("narrowing", _options)
"""Gives a command these options, in place of its parameter ``narrowing``."""
