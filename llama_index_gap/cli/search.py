"""llama-gap search: find documents, and explain their order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from llama_index_gap.cli import model_options, options
from llama_index_gap.cli.scores import by_intent, by_place, format_fused, format_score, shares
from llama_index_gap.cli.search_options import Narrowing, with_narrowing
from llama_index_gap.cli.terminal import print_json, say, stdout, write_page
from llama_index_gap.modality import MODALITIES, PLURAL
from llama_index_gap.text import excerpt, is_blank, visible

if TYPE_CHECKING:
    from llama_index.core.schema import BaseNode

    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.results import FoundDocument, SearchResult

_EXCERPT = 150  # characters of a passage on a terminal


@model_options.with_models
@with_narrowing
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to search for.")] = "",
    *,
    image: Annotated[
        Path | None, typer.Option(help="Search by this image, alone or together with TEXT.")
    ] = None,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    tenant: options.Tenant = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many documents to show.")] = 5,
    narrowing: Narrowing,
    reranker: model_options.Reranker = None,
    first_stage: model_options.FirstStage = None,
    image_root: options.ImageRoots = None,
    min_probability: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Leave out less probable hits; needs a calibrator in the index."
        ),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show how each score came about.")
    ] = False,
    models: model_options.Models,
    as_json: options.AsJson = False,
    html: options.Page = None,
) -> None:
    """Search an index by a text, an image, or both."""
    if is_blank(text) and image is None:
        raise typer.BadParameter("pass a text, or an image with --image", param_hint="TEXT")
    model_options.check_first_stage(first_stage, reranker)
    narrowing.check(
        text=not is_blank(text),
        image=image is not None,
        reranker=None if first_stage else reranker,
    )
    if image is not None:
        from llama_index_gap.images.opening import check_image

        check_image(image)
    options.check_is_there(db)
    ranks = models.load_reranker(reranker, first_stage)
    with options.open_index(db, name, image_root, tenant=tenant, models=models) as index:
        result = index.search(
            text,
            image,
            top_k=top_k,
            filters=narrowing.filters(index.as_retriever()),
            reranker=ranks,
            min_probability=min_probability,
            **narrowing.settings(top_k, image_alone=is_blank(text)),
        )
        nothing = "" if result else _why_nothing(index, result, narrowing, min_probability)
    if as_json:
        print_json(result.to_dict())
        if nothing and narrowing.conditions:
            say("note", nothing)
    elif nothing:
        stdout.print(visible(nothing), markup=False)
    elif explain:
        _print_explanation(result)
    else:
        _print_documents(result, narrowing.keys)
    _warn_of_images(result)
    if html is not None:
        from llama_index_gap.cli.pages.search_page import render_page

        write_page(html, render_page(result, [each.given for each in narrowing.conditions]))


def _why_nothing(
    index: DualIndex, result: SearchResult, narrowing: Narrowing, min_probability: float | None
) -> str:
    """Say why nothing was found: because of the index, the filters or the probability."""
    count = index.count()
    if not any(count.values()):
        return "Nothing was found: the index is empty."
    searched = sorted({leg.target for leg in result.legs}, reverse=True)
    if not any(count[each] for each in searched):
        without = " and no ".join(PLURAL[each] for each in searched)
        return f"Nothing was found: the index has no {without}."
    if narrowing.conditions:
        return narrowing.nothing_fits(index.as_retriever(), min_probability)
    if min_probability is not None:
        return f"Nothing was found with a probability of {min_probability} or more."
    held = " and ".join(f"{count[each]:,} {PLURAL[each]}" for each in searched)
    return (
        f"Nothing was found, though the index has {held}. Another program may be changing it; "
        "search again."
    )


def _warn_of_images(result: SearchResult) -> None:
    """Warn of found images that cannot be opened, and say what may help."""
    from llama_index_gap.images.opening import ImageError, check_image

    reasons = []
    for node in (node for document in result for node in document.images):
        if getattr(node, "image_path", None):
            try:
                check_image(node)
            except ImageError as error:
                reasons.append(str(error))
    if reasons:
        known = "--image-root" in reasons[0]
        hint = "" if known else "; if their folder has moved, name its new place: --image-root"
        images = "1 image found" if len(reasons) == 1 else f"{len(reasons)} images found"
        say("warning", f"{images} cannot be opened: {reasons[0]}{hint}")


def _print_documents(result: SearchResult, keys: Sequence[str] = ()) -> None:
    """Print the documents, with the metadata that filters named by ``keys``."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    table.add_column("#", justify="right", vertical="top")
    table.add_column(_columns("document", "score", *MODALITIES, style="bold"), ratio=1)
    for document in result:
        parts = [document.score, *(document.part(modality) for modality in MODALITIES)]
        first = _columns(visible(document.title), *(format_score(result, part) for part in parts))
        words = excerpt(document.text, _EXCERPT)
        table.add_row(
            str(document.rank),
            Group(
                first,
                *([Text(visible(words))] if words else []),
                *_values(document, keys),
                *map(_where, document.images),
                Text(),
            ),
        )
    stdout.print(table)
    if result.reranker is None and by_intent(result):
        meaning = "score = log odds (higher is better, below 0 is normal)"
    elif result.reranker is None:
        meaning = "score = text + image, the contributions of the two"
    else:
        meaning = f"score = mean of text and image, rated by {visible(_reranker(result))}"
        if _counts_first_stage(result):
            meaning += ", and the first stage"
    hint = f"{meaning}; --explain says why, --html shows the images"
    stdout.print(hint, style="dim", markup=False)


def _values(document: FoundDocument, keys: Sequence[str]) -> list[Text]:
    values = [f"{key}: {document.metadata[key]}" for key in keys if key in document.metadata]
    return [Text(visible(", ".join(values)), style="dim")] if values else []


def _columns(title: str, *numbers: str, style: str = "") -> Table:
    grid = Table.grid(expand=True, padding=(0, 0, 0, 1))
    grid.add_column(ratio=1, overflow="fold")
    for _ in numbers:
        grid.add_column(width=8, justify="right")
    grid.add_row(Text(title, style="bold"), *(Text(number, style=style) for number in numbers))
    return grid


def _where(node: BaseNode) -> Text:
    """The path of an image, relative if that is shorter, and a link if the terminal has links."""
    image_path = getattr(node, "image_path", None)
    if not image_path:
        url = getattr(node, "image_url", None) or ""
        return Text(visible(url), style="cyan", overflow="fold")
    path = Path(image_path)
    try:
        shown = min(os.path.relpath(path), str(path), key=len)
    except ValueError:  # on another drive
        shown = str(path)
    style = Style(color="cyan", link=path.absolute().as_uri())
    return Text(visible(shown), style=style, overflow="fold")


# --- the explanation -----------------------------------------------------------------------------


def _print_explanation(result: SearchResult) -> None:
    by_raw = sorted(result, key=lambda each: -max((leg.raw for leg in each.legs), default=0))
    for document in result:
        heading = Table.grid(padding=(0, 2, 0, 0))
        heading.add_row(str(document.rank), Text(visible(document.title), "bold", overflow="fold"))
        if document.title != document.key:
            heading.add_row("", Text(visible(document.key), "dim", overflow="fold"))
        stdout.print(heading)
        stdout.print(_legs(result, document))
        if result.reranker is not None:
            ratings = [
                f"{name} {format_score(result, value)}" for name, value in document.reranked.items()
            ]
            of = ", ".join(ratings) or "neither text nor image could be read"
            if document.first_stage is not None:
                of += f"; the first stage adds {document.first_stage:+.2f} to the log odds"
            stdout.print(f"   score {format_score(result, document.score)}: {of}", markup=False)
        fused = "score" if result.reranker is None else "found with"
        stdout.print(f"   {fused} {format_fused(result, document.fused)}{shares(result, document)}")
        place = by_raw.index(document) + 1
        if place != document.rank:
            stdout.print(f"   ranked by highest cosine, it would be number {place}")
        stdout.print()
    for line in _method(result):
        stdout.print(visible(line), style="dim", markup=False)


def _legs(result: SearchResult, document: FoundDocument) -> Table:
    ranks, intent = by_place(result), by_intent(result)
    hubs = any(each.hub is not None for each in document.legs)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("  ")
    table.add_column("leg")
    table.add_column("cosine", justify="right")
    if hubs:
        table.add_column("hub", justify="right")
    if not ranks:
        table.add_column("above usual", justify="right")
    column = "for its rank" if ranks else "log odds" if intent else "evidence"
    table.add_column(column, justify="right")
    for each in document.legs:
        hub = [f"{-each.hub:+.4f}" if each.hub else ""] if hubs else []
        sigma = [] if ranks else ["" if each.sigma is None else f"{each.sigma:+.2f} σ"]
        added = "not found" if each.evidence is None else format_fused(result, each.evidence)
        table.add_row("", each.leg.title, f"{each.raw:.4f}", *hub, *sigma, added)
    return table


def _counts_first_stage(result: SearchResult) -> bool:
    return any(document.first_stage is not None for document in result)


def _reranker(result: SearchResult) -> str:
    from llama_index_gap.models.presets import model_in_short

    return model_in_short(result.reranker or "")


def _method(result: SearchResult) -> list[str]:
    """Explain how the documents were ranked."""
    lines = []
    if result.reranker is not None and _counts_first_stage(result):
        lines.append(
            f"{_reranker(result)} read the texts and images that were found and rated both on one "
            "scale. The search's lead over the mean candidate, times its weight, is added to the "
            "log odds of the mean; the score is the probability of the sum. How the documents "
            "were found:"
        )
    elif result.reranker is not None:
        lines.append(
            f"{_reranker(result)} read the texts and images that were found and rated both on one "
            "scale; the score is the mean. How the documents were found:"
        )
    if by_place(result):
        lines.append("Ranked by rank fusion: each leg adds 1 / (60 + the document's rank in it).")
    else:
        lines.append(
            "Cosines of texts and of images cannot be compared, because of the modality gap. So "
            "each counts by how many standard deviations (σ) it lies above the scores that this "
            "query gets from other vectors of the same collection."
        )
    if by_intent(result):
        lines.append(
            "Log odds say how much likelier the query is about this than about anything else in "
            "the collection. The score adds the odds that it is about the text, about the image, "
            "and about both. A leg marked 'not found' does not have the document among its top "
            "hits, so it adds nothing."
        )
    elif result.fusion is not None and result.fusion.combine == "evidence":
        lines.append(
            "Evidence is −log of the probability of a score this high by chance, which is likelier "
            "in a larger collection; the evidence of the legs is added. A leg marked 'not found' "
            "does not have the document among its top hits, so it adds nothing."
        )
    if result.note:
        lines.append(f"There was {result.note}.")
    if result.fusion is not None and result.fusion.hubs:
        taken = ", ".join(f"{name} {share:.2f}" for name, share in result.fusion.hubs.items())
        lines.append(
            "Some vectors, called hubs, are near to every query. Their cosines were corrected by "
            f"this share of that nearness: {taken}."
        )
    if result.fusion is not None and result.fusion.sample_queries:
        lines.append(
            f"The index learnt from {result.fusion.sample_queries} queries how far scores usually "
            "spread."
        )
    lines += [
        f"The {leg.title} leg left out {summary.improbable} hits as too improbable."
        for leg, summary in result.legs.items()
        if summary.improbable
    ]
    return lines
