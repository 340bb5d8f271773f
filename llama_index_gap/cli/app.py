"""llama-gap: the package from the command line."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console, Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

import llama_index_gap
from llama_index_gap.images.opening import MAX_PIXELS, check_image
from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS
from llama_index_gap.text import visible as _visible

if TYPE_CHECKING:
    from llama_index.core.schema import ImageNode

    from llama_index_gap.cli.pages.search_page import Answer, FoundDocument
    from llama_index_gap.index.dual_index import DualIndex
    from llama_index_gap.models import PairScorer
    from llama_index_gap.readers.corpus import Skipped

app = typer.Typer(
    name="llama-gap",
    help="Multimodal retrieval for LlamaIndex, with the modality gap closed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_output = Console(highlight=False)
_errors = Console(stderr=True, highlight=False)

_TOKEN = "MILVUS_TOKEN"  # noqa: S105 - the name of a variable
_HITS = 16
_EXCERPT = 150
_INTERRUPTED = 130
_SIDES = {"text": "texts", "image": "images", "image_query": "image queries"}
# Types of errors whose messages are written for users; any other is a mistake of ours.
_EXPECTED = (ValueError, OSError, llama_index_gap.ModelError)


def main() -> None:
    """Run the command line; errors become one line and exit code 1, unless --debug is given."""
    # Pillow's warning of too many pixels: what is skipped for them, the report says.
    warnings.filterwarnings("ignore", message="Image size .* decompression bomb")
    try:
        app()
    except Exception as error:
        if _state.debug:
            raise
        _fail(_explanation(error))


@dataclasses.dataclass
class _State:
    debug: bool = False


_state = _State()


def _explanation(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (*_EXPECTED, llama_index_gap.StoreError)):
        return str(error)
    return (
        f"{type(error).__name__}: {error} (a mistake in llama-gap: 'llama-gap --debug …' shows "
        "where; please report it)"
    )


def _fail(message: str) -> NoReturn:
    _say("error", "red", message)
    raise SystemExit(1)


def _say(kind: str, style: str, message: str) -> None:
    """One line on stderr; only a terminal gets it broken between words."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    text = Text(f"{kind}: ", style=style).append(_visible(line), style="default")
    _errors.print(text, soft_wrap=not _errors.is_terminal)


class _Warnings(logging.Handler):
    """Says what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        _say("warning", "yellow", record.getMessage())


def _log(debug: bool) -> None:
    logger = logging.getLogger("llama_index_gap")
    if debug:
        logging.basicConfig(level=logging.INFO)
    elif not any(isinstance(handler, _Warnings) for handler in logger.handlers):
        logger.addHandler(_Warnings(logging.WARNING))


def _print_version(wanted: bool) -> None:
    if wanted:
        _output.print(llama_index_gap.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from, and what is logged.")
    ] = False,
) -> None:
    _state.debug = debug
    _log(debug)


# --- corpora -------------------------------------------------------------------------------------

Root = Annotated[
    Path | None,
    typer.Option(help="Folder that images must lie in.", show_default="the corpus'"),
]
MaxPixels = Annotated[int, typer.Option(min=1, help="Skip images with more pixels.")]
AllSkipped = Annotated[bool, typer.Option("--all", help="List everything that is skipped.")]
CorpusPath = Annotated[
    Path, typer.Argument(help="A .jsonl, .csv or .tsv file, or a folder.", metavar="PATH")
]


@app.command()
def read(
    path: CorpusPath,
    root: Root = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    all_skipped: AllSkipped = False,
) -> None:
    """Check a corpus: what of it can be read, and what is skipped and why."""
    corpus = llama_index_gap.read_corpus(
        path, root=root, max_pixels=max_pixels, show_progress=_errors.is_terminal
    )
    _output.print(_visible(corpus.summary()), markup=False)
    _print_skipped(corpus.skipped, all_skipped)


def _print_skipped(skipped: Sequence[Skipped], all_skipped: bool) -> None:
    shown = skipped if all_skipped else skipped[:10]
    if shown:
        table = Table("skipped", "reason", box=None, padding=(0, 1), pad_edge=False)
        for skip in shown:
            table.add_row(
                Text(_visible(skip.source), overflow="fold"),
                Text(_visible(skip.reason), overflow="fold"),
            )
        _output.print(table)
    if len(shown) < len(skipped):
        _output.print(f"… and {len(skipped) - len(shown):,} more: --all lists them")


# --- indexes -------------------------------------------------------------------------------------


def _database(uri: str | None) -> str | None:
    """Where an index lies: a server's address, or a file as the shell may complete its name."""
    from llama_index_gap.store.connection import is_server

    if uri is None:
        return None
    if is_server(uri):
        if re.search(r"//[^/?#]*@", uri):
            raise typer.BadParameter(f"holds a password; leave it out and set {_TOKEN}=user:…")
        return uri
    path = Path(uri).expanduser()
    if path.suffix != ".db":
        raise typer.BadParameter(f"{uri!r} is neither a file that ends in .db, nor an http:// URL")
    return str(path)


def _database_option(show_default: bool | str = True) -> Any:
    return typer.Option(
        "--db",
        metavar="FILE|URL",
        callback=_database,
        help="A Milvus Lite file, or the URL of a server (its token in MILVUS_TOKEN).",
        show_default=show_default,
    )


Database = Annotated[str, _database_option()]
Model = Annotated[
    str | None,
    typer.Option(
        help="A name that 'llama-gap models' lists, a hub name, or a folder.",
        show_default="the index's own",
    ),
]
ImageModel = Annotated[
    str | None, typer.Option(help="Another model, for images.", show_default="the same")
]
ImageQueryModel = Annotated[
    str | None,
    typer.Option(
        help="A third one, for images that are searched by an image, such as dinov2.",
        show_default="the index's own, or none",
    ),
]
Name = Annotated[str, typer.Option(help="Which index in the database.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.command("index")
def index_corpus(
    path: CorpusPath,
    *,
    model: Model = None,
    image_model: ImageModel = None,
    image_query_model: ImageQueryModel = None,
    db: Database = "gap.db",
    name: Name = "gap",
    root: Root = None,
    max_pixels: MaxPixels = MAX_PIXELS,
    device: Annotated[
        str | None, typer.Option(help="Where models run.", show_default="a GPU if there is one")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop what the index holds, and start anew.")
    ] = False,
    all_skipped: AllSkipped = False,
) -> None:
    """Put a corpus into an index, made where it is missing.

    Run again, it embeds only what is new or has changed, or what an interrupted run has left.
    """
    _check_models(model, image_model, new=None if _is_there(db) and not overwrite else db)
    started = time.monotonic()
    try:
        corpus = llama_index_gap.read_corpus(
            path, root=root, max_pixels=max_pixels, show_progress=_errors.is_terminal
        )
        models = [
            None if each is None else _load_model(each, device, max_pixels)
            for each in (model, image_model, image_query_model)
        ]
        with _open_or_make_index(db, name, models, overwrite=overwrite) as index:
            report = index.refresh_ref_docs(corpus.nodes, show_progress=_errors.is_terminal)
    except KeyboardInterrupt:
        without = " without --overwrite" if overwrite else ""
        _say(
            "stopped",
            "yellow",
            f"what was written stays; run the same command again{without} to complete it",
        )
        raise typer.Exit(_INTERRUPTED) from None
    _output.print(_visible(f"Read {corpus.summary()}"), markup=False)
    took = _duration(time.monotonic() - started)
    _output.print(f"Indexed in {took}: {report.summary()}", markup=False)
    _print_skipped([*corpus.skipped, *report.skipped], all_skipped)
    if not report.text_rows + report.image_rows + report.unchanged:
        _fail(f"{path}: nothing of it could be indexed")


def _check_models(model: str | None, image_model: str | None, *, new: str | None) -> None:
    if image_model is not None and model is None:
        raise typer.BadParameter("needs --model too: it is for texts", param_hint="--image-model")
    if model is None and new is not None:
        raise typer.BadParameter(
            f"a new index in {new} needs a model; 'llama-gap models' lists some",
            param_hint="--model",
        )


def _open_or_make_index(
    db: str, name: str, models: Sequence[Any], *, overwrite: bool = False
) -> DualIndex:
    for_texts, for_images, for_image_queries = models
    return llama_index_gap.DualIndex(
        db,
        name,
        for_texts,
        for_images,
        image_query_embed_model=for_image_queries,
        token=os.environ.get(_TOKEN),
        overwrite=overwrite,
    )


def _load_model(name: str, device: str | None, max_pixels: int) -> Any:
    if _errors.is_terminal:
        _errors.print(Text(f"Loading {_visible(name)} …", style="dim"))
    return llama_index_gap.DualEncoderEmbedding(
        model_name=name, device=device, max_pixels=max_pixels
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _is_there(db: str) -> bool:
    """Whether there is such a database; of a server, one sees when asking it."""
    from llama_index_gap.store.connection import is_server

    return is_server(db) or Path(db).exists()


def _check_is_there(db: str) -> None:
    """Keep Milvus Lite from making a database where somebody only wants to read one."""
    if not _is_there(db):
        raise FileNotFoundError(
            f"{db}: no such database; make one with: llama-gap index PATH --db {db} --model NAME"
        )


def _open_index(db: str, name: str) -> DualIndex:
    _check_is_there(db)
    return llama_index_gap.DualIndex(db, name, token=os.environ.get(_TOKEN))


# --- searching -----------------------------------------------------------------------------------


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to search for.")] = "",
    *,
    image: Annotated[
        Path | None, typer.Option(help="Search by this image, or by the text and it.")
    ] = None,
    db: Database = "gap.db",
    name: Name = "gap",
    top_k: Annotated[int, typer.Option(min=1, help="How many documents to show.")] = 5,
    reranker: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Let this reranker read what is found, and rank it."),
    ] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Leave out what is less probable, where that is known."),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where each score comes from, and why.")
    ] = False,
    as_json: AsJson = False,
    html: Annotated[
        Path | None, typer.Option(help="Write the answer as a page, with thumbnails.")
    ] = None,
) -> None:
    """Search an index by a text, an image, or both."""
    if not text.strip() and image is None:
        raise typer.BadParameter("pass a text, or an image with --image", param_hint="TEXT")
    if image is not None:
        check_image(image)
    _check_folder(html)
    _check_is_there(db)
    scorer = None if reranker is None else _load_scorer(reranker)
    with _open_index(db, name) as index:
        answer = _answer(
            index,
            text.strip(),
            image,
            top_k=top_k,
            scorer=scorer,
            min_probability=min_probability,
        )
    if html is not None:
        from llama_index_gap.cli.pages.search_page import render_page

        html.write_text(render_page(answer), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(_as_dict(answer), indent=2))
    elif not answer.documents:
        _output.print(
            "Nothing was found: the index is empty."
            if min_probability is None
            else f"Nothing was found with a probability of {min_probability} or more."
        )
    elif explain:
        _print_explanation(answer)
    else:
        _print_answer(answer)
    if html is not None:
        _say_written(html)


def _say_written(path: Path) -> None:
    if _errors.is_terminal:
        _errors.print(Text(f"Written to {_visible(str(path))}", style="dim"))


def _check_folder(page: Path | None) -> None:
    if page is not None and not page.parent.is_dir():
        raise FileNotFoundError(f"{page}: there is no folder {page.parent}; create it first")


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
            _visible(document.title),
            *(answer.format_rank(score) for score in (document.score, *sides)),
        )
        table.add_row(str(document.rank), Group(first, *_content(document), Text()))
    _output.print(table)
    score = (
        "score = text + image, what each adds"
        if answer.reranker is None
        else f"score = mean of text and image, as {_visible(answer.reranker)} rates them"
    )
    _output.print(f"{score}; --explain says why, --html shows the images", style="dim")


def _columns(title: str, *numbers: str, style: str = "") -> Table:
    grid = Table.grid(expand=True, padding=(0, 0, 0, 1))
    grid.add_column(ratio=1, overflow="fold")
    for _ in numbers:
        grid.add_column(width=8, justify="right")
    grid.add_row(Text(title, style="bold"), *(Text(number, style=style) for number in numbers))
    return grid


def _content(document: FoundDocument) -> list[Text]:
    """What of a document is shown below its title: its text, and the image's path."""
    from llama_index_gap.text import excerpt

    lines = []
    if words := excerpt(document.passage or document.caption, _EXCERPT):
        lines.append(Text(_visible(words)))
    if document.image is not None:
        lines.append(_where(document.image))
    return lines


def _where(image: ImageNode) -> Text:
    """An image's path from here, where that is shorter; terminals that know links get one."""
    if not image.image_path:
        return Text(_visible(image.image_url or ""), style="cyan", overflow="fold")
    path = Path(image.image_path)
    try:
        shown = min(os.path.relpath(path), str(path), key=len)
    except ValueError:  # on another drive
        shown = str(path)
    style = Style(color="cyan", link=path.absolute().as_uri())
    return Text(_visible(shown), style=style, overflow="fold")


def _print_explanation(answer: Answer) -> None:
    evidence = answer.note is None
    by_raw = sorted(answer.documents, key=lambda d: -max((leg.raw for leg in d.legs), default=0))
    for document in answer.documents:
        heading = Table.grid(padding=(0, 2, 0, 0))
        heading.add_row(str(document.rank), Text(_visible(document.title), "bold", overflow="fold"))
        if document.title != document.id:
            heading.add_row("", Text(_visible(document.id), "dim", overflow="fold"))
        _output.print(heading)
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
        _output.print(table)
        place = by_raw.index(document) + 1
        if answer.reranker is not None:
            _output.print(_rating(answer, document), markup=False)
        fused = "score" if answer.reranker is None else "found with"
        _output.print(f"   {fused} {answer.format(document.fused)}{_reason(document)}")
        if place != document.rank:
            _output.print(f"   by its highest cosine it would be number {place} of these")
        _output.print()
    if answer.reranker is not None:
        _output.print(
            f"{_visible(answer.reranker)} has read what was found: text and image are rated on "
            "one scale, and the score is their mean. How it was found:",
            style="dim",
            markup=False,
        )
    _output.print(_method(answer), style="dim", markup=False)


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


# --- measuring -----------------------------------------------------------------------------------


@app.command()
def measure(
    *,
    db: Database = "gap.db",
    name: Name = "gap",
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Labelled queries, an object a line: {"query": …, "relevant": [ID, …]}.',
            show_default="stored texts and images ask",
        ),
    ] = None,
    reranker: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Measure this reranker's gap too, with 16 queries."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the report as a page, with drawings.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure an index's modality gap, and say which mitigation fits.

    Shows one mixed index before and after each way to align it, and two indexes that are fused.
    Changes nothing.
    """
    from llama_index_gap.diagnosis.report import report_gap
    from llama_index_gap.evaluation.datasets import read_queries

    _check_folder(html)
    _check_is_there(db)
    asked, qrels = read_queries(queries) if queries is not None else ([], {})
    rerank = None
    if reranker is not None:
        rerank = llama_index_gap.MultiModalRerank(model=_load_scorer(reranker), top_n=None)
    with _open_index(db, name) as index:
        report = report_gap(index, asked, qrels, reranker=rerank, show_progress=_errors.is_terminal)
    if html is not None:
        from llama_index_gap.cli.pages.gap_page import render_report

        html.write_text(render_report(report), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    else:
        from llama_index_gap.cli.gap_tables import print_report

        print_report(report, _output)
    if html is not None:
        _say_written(html)


# --- looking after an index ----------------------------------------------------------------------


@app.command()
def info(db: Database = "gap.db", name: Name = "gap", as_json: AsJson = False) -> None:
    """Say what an index holds and which models it was made with; loads none."""
    facts = _facts(db, name)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("database", Text(_visible(facts["database"])))
    for side, collection in facts["collections"].items():
        table.add_row(
            _SIDES[side],
            f"{collection['rows']:,} rows of {collection['dimension']} numbers in "
            f"{collection['name']}",
        )
    for side, model in facts["models"].items():
        licence = model["licence"] or "not stated"
        for_both = side == "text" and "image" not in facts["models"]
        table.add_row(
            "model" if for_both else f"model of {_SIDES[side]}",
            Text(_visible(f"{model['name']} (licence: {licence})"), overflow="fold"),
        )
    table.add_row("images in", Text(_visible(facts["images"]), overflow="fold"))
    _output.print(table)


def _facts(db: str, name: str) -> dict[str, Any]:
    from llama_index_gap.index.image_folder import default_storage
    from llama_index_gap.index.models import stored_identities

    _check_is_there(db)
    token = os.environ.get(_TOKEN)
    collections: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for side in _SIDES:
        if side == "image_query" and side not in stored:
            continue
        with llama_index_gap.MilvusStore(
            uri=db, collection_name=f"{name}_{side}", token=token
        ) as store:
            stored = stored_identities(store.properties(), f"{db}: {name}")
            collections[side] = {
                "name": store.collection_name,
                "rows": store.count(),
                "dimension": store.dim,
            }
    kept = default_storage(db, name)
    return {
        "database": db,
        "name": name,
        "collections": collections,
        "models": {
            side: _model_facts(identity) for side in _SIDES if (identity := stored.get(side))
        },
        "images": str(kept) if kept.is_dir() else "their own files",
    }


def _model_facts(identity: dict[str, Any]) -> dict[str, Any]:
    name = str(identity["model_name"])
    return {"name": name, "licence": _licence(name), "settings": identity}


def _licence(model: str) -> str | None:
    """A model's licence, as far as it is known here without loading or downloading it."""
    from llama_index_gap.models.checkpoints.checkpoint import Checkpoint

    for preset in PRESETS.values():
        if model in (preset.name, *preset.checkpoints):
            return preset.licence
    return Checkpoint(model, Path(model)).licence if Path(model).is_dir() else None


@app.command()
def delete(
    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="ID", help="Ids of documents, as 'search --explain' has them."),
    ] = None,
    db: Database = "gap.db",
    name: Name = "gap",
    everything: Annotated[bool, typer.Option("--all", help="Delete all documents.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether --all is meant.")] = False,
) -> None:
    """Delete documents from an index; their own files stay."""
    if everything == bool(documents):
        raise typer.BadParameter("pass ids of documents, or --all", param_hint="ID")
    with _open_index(db, name) as index:
        before = sum(index.count().values())
        if everything:
            if not yes:
                typer.confirm(
                    f"Delete all {before:,} rows of {name} in {db}?",
                    abort=True,
                    err=True,
                )
            index.clear()
        missing = [each for each in documents or [] if not _delete_document(index, each)]
        gone = before - sum(index.count().values())
    _output.print("1 row deleted" if gone == 1 else f"{gone:,} rows deleted")
    if missing:
        _fail(f"no such document: {', '.join(missing)}")


def _delete_document(index: DualIndex, document: str) -> bool:
    """Delete a document's nodes, or a node that has no document; says if there was any."""
    before = index.count()
    index.delete_ref_doc(document)
    if index.count() == before:
        index.delete_nodes([document])
    return index.count() != before


# --- experiments ---------------------------------------------------------------------------------


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A folder in the format of EDIS, MixBench or BEIR; or a corpus with queries.jsonl "
            "beside it, whose lines are {query, relevant: [ID, …], kind}.",
        ),
    ],
    *,
    model: Model = None,
    image_model: ImageModel = None,
    image_query_model: ImageQueryModel = None,
    reranker: Annotated[
        str | None,
        typer.Option(help="Rerank too, by this cross-encoder: a plain name, hub name or folder."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask so many queries.", show_default="all")
    ] = None,
    split: Annotated[str, typer.Option(help="Which of the data set's queries.")] = "test",
    db: Annotated[str | None, _database_option("DATA's name with .db, here")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the results as a page, with examples.")
    ] = None,
    as_json: AsJson = False,
    runs: Annotated[
        Path | None, typer.Option(help="Write each method's rankings here, as TREC files.")
    ] = None,
) -> None:
    """Measure on judged queries what each way to search, fuse and rerank finds.

    Indexes first what of it is not in the index yet.
    Interrupted, the same command goes on where it stopped.
    """
    from llama_index_gap.cli.experiment_tables import result_tables
    from llama_index_gap.cli.pages.experiment_page import render_experiment
    from llama_index_gap.evaluation.datasets import read_dataset
    from llama_index_gap.evaluation.examples import pick_examples
    from llama_index_gap.evaluation.experiment import Experiment

    _check_folder(html)
    db = db or f"{data.expanduser().resolve().name}.db"
    _check_models(model, image_model, new=None if _is_there(db) else db)
    shown = _errors.is_terminal
    try:
        dataset = read_dataset(data, split=split, show_progress=shown).limited(limit)
        if runs is not None:
            runs.mkdir(parents=True, exist_ok=True)
        scorer = None if reranker is None else _load_scorer(reranker)
        models = [
            None if each is None else _load_model(each, None, MAX_PIXELS)
            for each in (model, image_model, image_query_model)
        ]
        with _open_or_make_index(db, "gap", models) as index:
            report = index.refresh_ref_docs(dataset.corpus.nodes, show_progress=shown)
            experiment = Experiment(dataset, index, scorer)
            results = _beside(db, experiment.file_name)
            result = experiment.run(results, show_progress=shown)
    except KeyboardInterrupt:
        _say("stopped", "yellow", "what was done stays; run the same command again to complete it")
        raise typer.Exit(_INTERRUPTED) from None
    if report.skipped:
        first = report.skipped[0]
        _say(
            "warning",
            "yellow",
            f"{len(report.skipped):,} texts or images could not be indexed and cannot be found; "
            f"the first, {first.source}: {first.reason}",
        )
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        for part in result_tables(result):
            _output.print(part)
            _output.print()
    _say_written(results)
    if html is not None:
        html.write_text(render_experiment(result, pick_examples(result, dataset)), encoding="utf-8")
        _say_written(html)
    if runs is not None:
        result.write_runs(runs)
        _say_written(runs)


def _load_scorer(name: str) -> PairScorer:
    from llama_index_gap.models import load_scorer

    if _errors.is_terminal:
        _errors.print(Text(f"Loading {_visible(name)} …", style="dim"))
    return load_scorer(name)


def _beside(db: str, name: str) -> Path:
    """Beside a database that is a file; else here."""
    from llama_index_gap.store.connection import is_server

    return Path(name) if is_server(db) else Path(db).with_name(name)


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option(help="Keep the newsroom, its index and the page here.")
    ] = Path("gap-demo"),
    articles: Annotated[int, typer.Option(min=100, help="Size of the newsroom.")] = 3000,
    queries: Annotated[int, typer.Option(min=1, help="Queries of each kind.")] = 100,
) -> None:
    """See what the modality gap costs and what closes it, offline.

    Draws a made-up newsroom, indexes it with a tiny dual encoder, reranks
    with a tiny cross-encoder, both trained on such newsrooms only,
    and measures what each method finds.
    """
    from llama_index_gap.cli.demo import run_demo

    run_demo(folder, _output, articles=articles, queries_per_kind=queries)


# --- serving -------------------------------------------------------------------------------------


@app.command()
def mcp(
    *,
    db: Database = "gap.db",
    name: Name = "gap",
    reranker: Annotated[
        str | None,
        typer.Option(help="Rerank by this cross-encoder: a plain name, hub name or folder."),
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            help="Clients may also search by images in this folder.",
            show_default="by the index's own images only",
        ),
    ] = None,
    about: Annotated[
        str, typer.Option(metavar="TEXT", help="Tell the models what the index holds.")
    ] = "",
) -> None:
    """Offer an index to chat programs, as an MCP server over stdin and stdout.

    They can search, and find similar images; nothing is changed.
    The program starts it: see the README for what to put into its settings.
    """
    try:
        from llama_index_gap.agents.mcp_server import make_server, serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"mcp", "mcp_types"}:
            raise
        _fail(
            "the MCP server needs one more package: pip install 'llama-index-gap[mcp]', or in a "
            "checkout '.[mcp]'"
        )
    _check_is_there(db)
    if image_root is not None and not image_root.is_dir():
        raise FileNotFoundError(f"{image_root}: no such folder")

    def open_index() -> tuple[DualIndex, list[Any]]:
        scorer = None if reranker is None else _load_scorer(reranker)
        rerank = scorer and llama_index_gap.MultiModalRerank(model=scorer, top_n=None)
        return _open_index(db, name), [rerank] if rerank else []

    if _errors.is_terminal:
        _errors.print(Text("Serving over stdin and stdout; Ctrl-C ends it.", style="dim"))
    try:
        serve(make_server(open_index, about=about, image_root=image_root))
    except KeyboardInterrupt:
        raise typer.Exit(_INTERRUPTED) from None


# --- models --------------------------------------------------------------------------------------


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the models that have a plain name: what to choose when."""
    if as_json:
        listed = [{"kind": "encoder", **dataclasses.asdict(each)} for each in PRESETS.values()]
        listed += [
            {"kind": "reranker", **dataclasses.asdict(each)} for each in SCORER_PRESETS.values()
        ]
        typer.echo(json.dumps(listed, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)
    table.add_column("name", style="bold")
    table.add_column("what it suits", overflow="fold")
    table.add_column("size", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("languages")
    table.add_column("licence")
    for preset in PRESETS.values():
        about = Text(preset.suits)
        for checkpoint in preset.checkpoints:
            about.append(f"\n{checkpoint}", style="cyan")
        if smaller := [str(size) for size in preset.matryoshka if size < preset.dimension]:
            about.append(f"\nMatryoshka {' '.join(smaller)}", style="dim")
        table.add_row(
            preset.name,
            about,
            str(preset.dimension),
            f"{preset.max_text_tokens:,}" if preset.max_text_tokens else "–",
            preset.languages or "–",
            preset.licence,
        )
    for scorer in SCORER_PRESETS.values():
        table.add_row(
            scorer.name,
            Text("reranker: ").append(scorer.suits).append(f"\n{scorer.checkpoint}", style="cyan"),
            "–",
            f"{scorer.max_tokens:,}",
            scorer.languages,
            scorer.licence,
        )
    _output.print(table)
    _output.print(
        '\nLoad one by its name: DualEncoderEmbedding(model_name="jina"), '
        'MultiModalRerank(model="jina-m0")',
        markup=False,
    )
