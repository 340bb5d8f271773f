"""Options for which models a command loads, and how; shared by all commands that load models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import llama_index_gap
from llama_index_gap.cli.option_groups import with_group
from llama_index_gap.cli.terminal import note

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from llama_index_gap.models import PairScorer
    from llama_index_gap.search.rerank import MultiModalRerank

BY_NAME = "a name from 'llama-gap models', a hub name, or a folder."
Reranker = Annotated[
    str | None, typer.Option(metavar="MODEL", help=f"Rerank with this model: {BY_NAME}")
]
FirstStage = Annotated[
    float | None,
    typer.Option(
        metavar="WEIGHT",
        help="Add the first stage's log odds, times WEIGHT, to those of --reranker.",
        show_default="the reranker alone",
    ),
]

_PLACEMENT_OPTIONS = {"device": "--device", "devices": "--device", "workers": "--workers"}


@dataclass(frozen=True)
class Models:
    """The models named on the command line, and how to load them.

    Permissions apply only to these models. A model that an index names is always loaded without
    remote code and without pickles.

    Attributes:
        names: the models for texts, for images and for image queries.
        allowed: revision, allow_pickle and trust_remote_code, if given.
        places: cache_folder and local_files_only, which apply to stored models too.
        texts: pooling and prompts of the model for texts, if given.
        settings: settings of the model for texts, if it is named by its class.
    """

    names: tuple[str | None, str | None, str | None]
    allowed: dict[str, Any]
    places: dict[str, Any]
    texts: dict[str, Any]
    settings: dict[str, Any]

    @property
    def by_class(self) -> bool:
        """Whether any model is named by its class."""
        return any(_names_a_class(each) for each in self.names)

    def check(self, reranker: str | None = None) -> None:
        """Reject options that apply to no model.

        Args:
            reranker: the model of the reranker, if one is named.
        """
        named = [each for each in (*self.names, reranker) if each is not None]
        if self.names[1] is not None and self.names[0] is None:
            raise typer.BadParameter("needs --model too, for texts", param_hint="--image-model")
        if self.texts and self.names[0] is None:
            raise typer.BadParameter(
                "applies to a model; name it with --model",
                param_hint=_option(next(iter(self.texts))),
            )
        if self.settings and not _names_a_class(self.names[0]):
            raise typer.BadParameter(
                "applies to a class, such as --model EmbeddingService", param_hint="--model-setting"
            )
        for name in self.allowed:
            if not named:
                raise typer.BadParameter(
                    "applies only to models that you name with --model or --reranker; the models "
                    "that an index names are loaded without it",
                    param_hint=_option(name),
                )

    def _allowed(self, name: str) -> dict[str, Any]:
        """The permissions of a model; the revision applies only to the first model named."""
        first = next((each for each in self.names if each is not None), name)
        return {
            key: value for key, value in self.allowed.items() if key != "revision" or name == first
        }

    def load(
        self, stored: Mapping[str, Any] | None = None, **settings: Any
    ) -> list[BaseEmbedding | None]:
        """Load the models that are named, for texts, images and image queries.

        Args:
            stored: what an index records of its models, for models that are named by their class.
            **settings: settings of every model.
        """
        named = [each for each in self.names if each is not None]
        if named and all(map(_names_a_class, named)):
            for setting, option in _PLACEMENT_OPTIONS.items():
                if setting in settings:
                    raise typer.BadParameter(
                        f"says where a model runs; {named[0]} decides that itself",
                        param_hint=option,
                    )
        loaded: list[BaseEmbedding | None] = []
        for place, name in enumerate(self.names):
            if name is None:
                loaded.append(None)
                continue
            note(f"Loading {name} …")
            if _names_a_class(name):
                from llama_index_gap.index.model_classes import build_from_class

                role = ("text", "image", "image_query")[place]
                own = self.settings if place == 0 else {}
                loaded.append(build_from_class(name, own, (stored or {}).get(role)))
                continue
            texts = self.texts if place == 0 else {}
            loaded.append(
                llama_index_gap.DualEncoderEmbedding(
                    model_name=name, **self._allowed(name), **self.places, **texts, **settings
                )
            )
        return loaded

    def load_scorer(self, name: str | None) -> PairScorer | None:
        """Load a reranker's model, if one is named."""
        from llama_index_gap import models

        if name is None:
            return None
        note(f"Loading {name} …")
        return models.load_scorer(
            name, models.LoadingSettings(**self._allowed(name), **self.places)
        )

    def load_reranker(
        self, name: str | None, first_stage: float | None = None
    ) -> MultiModalRerank | None:
        """Load a reranker that keeps all candidates, if one is named.

        Args:
            name: of its model.
            first_stage: the weight of the first stage beside it.
        """
        scorer = self.load_scorer(name)
        if scorer is None:
            return None
        return llama_index_gap.MultiModalRerank(model=scorer, top_n=None, first_stage=first_stage)


def _options(
    *,
    model: Annotated[
        str | None,
        typer.Option(help=f"The embedding model: {BY_NAME}", show_default="the index's own"),
    ] = None,
    image_model: Annotated[
        str | None, typer.Option(help="A separate model for images.", show_default="the same")
    ] = None,
    image_query_model: Annotated[
        str | None,
        typer.Option(
            help="A separate model for image queries.", show_default="the index's own, or none"
        ),
    ] = None,
    model_setting: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A setting of --model if that is a class; repeatable.",
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            help="Branch, tag or commit of --model on the hub; without --model, of --reranker.",
            show_default="the newest, or a preset's own",
        ),
    ] = None,
    pooling: Annotated[
        Literal["last", "mean", "cls"] | None,
        typer.Option(help="How --model pools its tokens, if its files do not say."),
    ] = None,
    query_prompt: Annotated[
        str | None, typer.Option(help="Put this before queries.", show_default="the model's own")
    ] = None,
    document_prompt: Annotated[
        str | None, typer.Option(help="Put this before documents.", show_default="the model's own")
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="Read pickled weights of the named models; they can run code."
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the named models."),
    ] = False,
    cache_folder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep downloads here.", show_default="the hub's own cache"
        ),
    ] = None,
    local_files_only: Annotated[
        bool,
        typer.Option(
            "--local-files-only", help="Load models only from folders or the download cache."
        ),
    ] = False,
) -> Models:
    given = {"revision": revision, "allow_pickle": allow_pickle}
    given["trust_remote_code"] = trust_remote_code
    texts = {"pooling": pooling, "query_prompt": query_prompt, "document_prompt": document_prompt}
    return Models(
        (model, image_model, image_query_model),
        {name: value for name, value in given.items() if value not in {None, False}},
        {"cache_folder": cache_folder, "local_files_only": local_files_only},
        {name: value for name, value in texts.items() if value is not None},
        dict(map(_setting, model_setting or [])),
    )


with_models = with_group(
    "models", _options, lambda models, others: models.check(others.get("reranker"))
)
"""Replaces the parameter ``models`` of a command by these options."""


def check_first_stage(weight: float | None, reranker: str | None) -> None:
    """Refuse a weight for the first stage that cannot be one, or that stands beside no reranker.

    Args:
        weight: as the shell gives it.
        reranker: the model that was named for it.
    """
    from llama_index_gap.errors import InvalidValueError
    from llama_index_gap.search.first_stage import check_weight

    if weight is None:
        return
    if reranker is None:
        raise typer.BadParameter(
            "is added to what a reranker says; name one with --reranker", param_hint="--first-stage"
        )
    try:
        check_weight(weight)
    except InvalidValueError as error:
        raise typer.BadParameter(str(error), param_hint="--first-stage") from error


def _names_a_class(name: str | None) -> bool:
    from llama_index_gap.index.model_classes import names_a_class

    return name is not None and names_a_class(name) and not Path(name).exists()


def _setting(given: str) -> tuple[str, Any]:
    """Split ``dimensions=256`` into a name and a value, which is JSON or else a text."""
    key, equals, value = given.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{given!r} is not KEY=VALUE", param_hint="--model-setting")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
