"""llama-gap models: the models that have a plain name."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from llama_index_gap.cli import options, terminal


def models(as_json: options.AsJson = False) -> None:
    """List the models that have a plain name, and what each suits."""
    from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS

    if as_json:
        encoders = [{"kind": "encoder", **asdict(each)} for each in PRESETS.values()]
        scorers = [{"kind": "reranker", **asdict(each)} for each in SCORER_PRESETS.values()]
        terminal.print_json(encoders + scorers)
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
    terminal.stdout.print(table)
    terminal.stdout.print(
        '\nLoad one by its name: DualEncoderEmbedding(model_name="jina"), '
        'MultiModalRerank(model="jina-m0")',
        markup=False,
    )
