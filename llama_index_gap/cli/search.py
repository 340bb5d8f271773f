"""llama-gap search: an index searched by a text, an image, or both."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

import llama_index_gap
from llama_index_gap.cli import options
from llama_index_gap.cli.terminal import print_json, stdout, write_page
from llama_index_gap.text import excerpt, visible

if TYPE_CHECKING:
    from llama_index.core.schema import ImageNode

    from llama_index_gap.cli.pages.search_page import Answer, FoundDocument
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.models import PairScorer

_HITS = 16
_EXCERPT = 150


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to search for.")] = "",
    *,
    image: Annotated[
        Path | None, typer.Option(help="Search by this image, or by the text and it.")
    ] = None,
    db: options.Database = "gap.db",
    name: options.Name = "gap",
    top_k: Annotated[int, typer.Option(min=1, help="How many documents to show.")] = 5,
    reranker: options.Reranker = None,
    min_probability: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Leave out what is less probable, where that is known."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where each score comes from, and why.")
    ] = False,
    as_json: options.AsJson = False,
    html: options.Page = None,
) -> None:
    """Search an index by a text, an image, or both."""
    if not text.strip() and image is None:
        raise typer.BadParameter("pass a text, or an image with --image", param_hint="TEXT")
    if image is not None:
        from llama_index_gap.images.opening import check_image

        check_image(image)
    options.check_is_there(db)
    scorer = options.load_scorer(reranker)
    with options.open_index(db, name) as index:
        answer = _answer(
            index,
            text.strip(),
            image,
            top_k=top_k,
            scorer=scorer,
            min_probability=min_probability,
        )
    if as_json:
        print_json(_as_dict(answer))
    elif not answer.documents:
        stdout.print(
            "Nothing was found: the index is empty."
            if min_probability is None
            else f"Nothing was found with a probability of {min_probability} or more."
        )
    elif explain:
        _print_explanation(answer)
    else:
        _print_answer(answer)
    if html is not None:
        from llama_index_gap.cli.pages.search_page import render_page

        write_page(html, render_page(answer))


def _answer(
    index: DualIndex,
    text: str,
    image: Path | None,
    *,
    top_k: int,
    scorer: PairScorer | None,
    min_probability: float | None,
) -> Answer:
    from llama_index.core.schema import QueryBundle

    from llama_index_gap.cli.pages.search_page import Answer, found_documents

    # complete: whoever reads wants to see the text of a document that its image found.
    retriever = index.as_retriever(
        top_k=top_k if scorer is None else None,
        similarity_top_k=max(_HITS, top_k),
        image_similarity_top_k=max(_HITS, top_k),
        complete=True,
        min_probability=min_probability,
    )
    query = QueryBundle(text, image_path=str(image) if image else None)
    with _retriever_notes() as notes:
        hits = retriever.retrieve(query)
    if scorer is not None:
        rerank = llama_index_gap.MultiModalRerank(model=scorer, top_n=top_k)
        hits = rerank.postprocess_nodes(hits, query)
    return Answer(
        text=text,
        image=str(image) if image else None,
        database=index.uri,
        documents=found_documents(hits),
        note=notes[0] if notes else None,
        reranker=None if scorer is None else scorer.name,
    )


@contextmanager
def _retriever_notes() -> Iterator[list[str]]:
    """What the retriever logs meanwhile: that it ranked by another method than it was to."""
    notes: list[str] = []

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.INFO:
                notes.append(record.getMessage())

    logger, handler = logging.getLogger("llama_index_gap.search.retriever"), Notes()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _print_answer(answer: Answer) -> None:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    table.add_column("#", justify="right", vertical="top")
    table.add_column(_columns("document", "score", "text", "image", style="bold"), ratio=1)
    for document in answer.documents:
        sides = [document.side(side) for side in ("text", "image")]
        first = _columns(
            visible(document.title),
            *(answer.format_rank(score) for score in (document.score, *sides)),
        )
        table.add_row(str(document.rank), Group(first, *_content(document), Text()))
    stdout.print(table)
    score = (
        "score = text + image, what each adds"
        if answer.reranker is None
        else f"score = mean of text and image, as {visible(answer.reranker)} rates them"
    )
    stdout.print(f"{score}; --explain says why, --html shows the images", style="dim")


def _columns(title: str, *numbers: str, style: str = "") -> Table:
    grid = Table.grid(expand=True, padding=(0, 0, 0, 1))
    grid.add_column(ratio=1, overflow="fold")
    for _ in numbers:
        grid.add_column(width=8, justify="right")
    grid.add_row(Text(title, style="bold"), *(Text(number, style=style) for number in numbers))
    return grid


def _content(document: FoundDocument) -> list[Text]:
    """What of a document is shown below its title: its text, and the image's path."""
    lines = []
    if words := excerpt(document.passage or document.caption, _EXCERPT):
        lines.append(Text(visible(words)))
    if document.image is not None:
        lines.append(_where(document.image))
    return lines


def _where(image: ImageNode) -> Text:
    """An image's path from here, where that is shorter; terminals that know links get one."""
    if not image.image_path:
        return Text(visible(image.image_url or ""), style="cyan", overflow="fold")
    path = Path(image.image_path)
    try:
        shown = min(os.path.relpath(path), str(path), key=len)
    except ValueError:  # on another drive
        shown = str(path)
    style = Style(color="cyan", link=path.absolute().as_uri())
    return Text(visible(shown), style=style, overflow="fold")


def _print_explanation(answer: Answer) -> None:
    evidence = answer.note is None
    by_raw = sorted(answer.documents, key=lambda d: -max((leg.raw for leg in d.legs), default=0))
    for document in answer.documents:
        heading = Table.grid(padding=(0, 2, 0, 0))
        heading.add_row(str(document.rank), Text(visible(document.title), "bold", overflow="fold"))
        if document.title != document.id:
            heading.add_row("", Text(visible(document.id), "dim", overflow="fold"))
        stdout.print(heading)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("  ")
        table.add_column("leg")
        table.add_column("cosine", justify="right")
        if evidence:
            table.add_column("above usual", justify="right")
        table.add_column("evidence" if evidence else "for its place", justify="right")
        for leg in document.legs:
            sigma = [] if not evidence else ["" if leg.sigma is None else f"{leg.sigma:+.2f} σ"]
            added = "not found" if leg.evidence is None else answer.format(leg.evidence)
            table.add_row("", leg.name, f"{leg.raw:.4f}", *sigma, added)
        stdout.print(table)
        place = by_raw.index(document) + 1
        if answer.reranker is not None:
            stdout.print(_rating(answer, document), markup=False)
        fused = "score" if answer.reranker is None else "found with"
        stdout.print(f"   {fused} {answer.format(document.fused)}{_reason(document)}")
        if place != document.rank:
            stdout.print(f"   by its highest cosine it would be number {place} of these")
        stdout.print()
    if answer.reranker is not None:
        stdout.print(
            f"{visible(answer.reranker)} has read what was found: text and image are rated on "
            "one scale, and the score is their mean. How it was found:",
            style="dim",
            markup=False,
        )
    stdout.print(_method(answer), style="dim", markup=False)


def _rating(answer: Answer, document: FoundDocument) -> str:
    sides = [f"{side} {answer.format_rank(score)}" for side, score in document.ratings]
    of = ", ".join(sides) or "neither text nor image could be read"
    return f"   score {answer.format_rank(document.score)}: {of}"


def _reason(document: FoundDocument) -> str:
    found = [leg for leg in document.legs if leg.evidence is not None]
    total = sum(leg.evidence or 0 for leg in found)
    if len(found) < 2 or not total:
        return f": all of it from {found[0].name}" if found else ""
    best = max(found, key=lambda leg: leg.evidence or 0)
    return f": {(best.evidence or 0) / total:.0%} of it from {best.name}"


def _method(answer: Answer) -> str:
    if answer.note is not None:
        return (
            f"Ranked by place: {answer.note}. Each leg adds 1 / (60 + the document's place in it)."
        )
    return (
        "Cosines of texts and of images cannot be compared: between them lies the modality gap. "
        "So each counts by how many standard deviations (σ) it lies above what this query gets "
        "from a sample of the same collection. Evidence is −log of the probability of lying as "
        "high by chance, which is likelier in a larger collection; the evidence of the legs is "
        "added. A leg marked 'not found' had the document not among its best, and adds nothing."
    )


def _as_dict(answer: Answer) -> dict[str, Any]:
    return {
        "query": {"text": answer.text, "image": answer.image},
        "database": answer.database,
        "note": answer.note,
        "reranker": answer.reranker,
        "documents": [_document_as_dict(document) for document in answer.documents],
    }


def _document_as_dict(document: FoundDocument) -> dict[str, Any]:
    text, image = document.text, document.image
    node = text or image
    return {
        "rank": document.rank,
        "id": document.id,
        "title": document.title,
        "score": document.score,
        "reranked": document.reranked,
        "fused": document.fused,
        "legs": {leg.leg: {"cosine": leg.raw, "evidence": leg.evidence} for leg in document.legs},
        "text": text and {"node_id": text.node_id, "text": document.passage},
        "image": image
        and {
            "node_id": image.node_id,
            "path": image.image_path,
            "url": image.image_url,
            "caption": document.caption,
        },
        "metadata": node.metadata if node else {},
    }
