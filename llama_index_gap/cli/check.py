"""llama-gap check: test whether a model works on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from llama_index_gap.cli import model_options, options, terminal
from llama_index_gap.text import visible

if TYPE_CHECKING:
    from llama_index_gap.evaluation.model_check import Finding, Speed
    from llama_index_gap.models import LoadingSettings

FAILED = 3
"""The exit code if a model loads but fails a check."""

_MARKS = {True: ("pass", "green"), False: ("FAIL", "bold red"), None: ("–", "dim")}


def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=f"Encoder or reranker: {model_options.BY_NAME}")
    ],
    *,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="CATS.JPG",
            help="COCO's photograph of two cats (val2017, 000000039769.jpg), for published "
            "outputs that need it.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs.", show_default="a GPU if there is one")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(help="Number format; an index uses auto."),
    ] = "float32",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit.", show_default="the preset's own")
    ] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickled weights; they can run code.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    cache_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep downloads here.")
    ] = None,
    local_files_only: Annotated[
        bool,
        typer.Option(
            "--local-files-only", help="Load the model only from a folder or the download cache."
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Load a model as an index would, and test whether it works on this machine.

    Compares its outputs with published ones, if any are known, and runs tests of its own.
    Exit code: 0 if everything passed, 3 if something failed, 1 if the model cannot be loaded.
    """
    from llama_index_gap.images.opening import open_image
    from llama_index_gap.models import LoadingSettings
    from llama_index_gap.models.presets import model_in_short

    settings = LoadingSettings(
        device=device,
        dtype=dtype,
        revision=revision,
        cache_folder=None if cache_folder is None else str(cache_folder),
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    cats = None if image is None else open_image(image)
    terminal.note(f"Loading {model} …")
    started = time.monotonic()
    kind, name, licence, findings, speeds = _run_checks(model, settings, cats)
    took = time.monotonic() - started
    passed = all(each.passed is not False for each in findings)
    if as_json:
        terminal.print_json(
            {
                "model": name,
                "kind": kind,
                "passed": passed,
                "licence": licence,
                "memory_bytes": _memory(),
                "findings": [asdict(each) for each in findings],
                "speeds": [asdict(each) for each in speeds],
            }
        )
    else:
        short = model_in_short(name)
        terminal.stdout.print(visible(f"{short}: {kind}, checked in {took:.0f} s"), markup=False)
        _print(findings, speeds, licence)
    if not passed:
        raise typer.Exit(FAILED)


def _run_checks(
    model: str, settings: LoadingSettings, cats: Any
) -> tuple[str, str, str | None, list[Finding], list[Speed]]:
    from llama_index_gap.evaluation.model_check import check_encoder, check_scorer, speeds
    from llama_index_gap.models import load_encoder, load_scorer
    from llama_index_gap.models.checkpoints.checkpoint import find_checkpoint
    from llama_index_gap.models.kinds import is_reranker
    from llama_index_gap.models.presets import DEMO, DEMO_MODELS, PRESETS, SCORER_PRESETS
    from llama_index_gap.models.runtime import placement

    if model == DEMO:
        model = DEMO_MODELS["encoder"]
    number_format = str(placement(settings)[1]).removeprefix("torch.")
    reranks: list[bool] = []
    if model not in {*PRESETS, *SCORER_PRESETS}:
        # The settings alone tell the kind, before the weights are downloaded.
        find_checkpoint(model, settings, lambda found: reranks.append(is_reranker(found)))
    if model in SCORER_PRESETS or any(reranks):
        scorer = load_scorer(model, settings)
        findings = check_scorer(scorer, dtype=number_format)
        return "reranker", scorer.name, scorer.licence, findings, []
    encoder = load_encoder(model, settings)
    preset = PRESETS.get(model)
    revisions = {model: None} if preset is None else preset.revisions
    checkpoints = [
        find_checkpoint(
            name, settings.model_copy(update={"revision": settings.revision or revision})
        )
        for name, revision in revisions.items()
    ]
    findings = check_encoder(
        encoder,
        lambda: load_encoder(model, settings, query_prompt="", document_prompt=""),
        checkpoints,
        dtype=number_format,
        cats=cats,
    )
    return "encoder", encoder.name, encoder.licence, findings, speeds(encoder)


def _print(findings: Sequence[Finding], speeds: Sequence[Speed], licence: str | None) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for each in findings:
        word, style = _MARKS[each.passed]
        text = Text(visible(each.what)).append(f"\n{visible(each.detail)}", style="dim")
        table.add_row(Text(word, style=style), text)
    for speed in speeds:
        figures = f"{speed.per_second:,.1f} {speed.what} per second, in batches of {speed.batch}"
        table.add_row("speed", Text(figures))
    if (memory := _memory()) is not None:
        table.add_row(
            "memory", Text(f"{memory / 2**30:.1f} GiB at most, Python and torch included")
        )
    allowed = licence or "not named in the model card; read it before you use the model"
    table.add_row("licence", Text(visible(allowed)))
    terminal.stdout.print(table)
    failed = sum(each.passed is False for each in findings)
    not_run = sum(each.passed is None for each in findings)
    verdict = f"{failed} failed" if failed else "All passed"
    rest = f"; {not_run} not tried" if not_run else ""
    terminal.stdout.print(f"{verdict} of {len(findings)}{rest}.", markup=False)


def _memory() -> int | None:
    """The peak memory of this process in bytes; None if the system does not report it."""
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
