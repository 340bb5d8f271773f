"""llama-gap models: list the models that have a plain name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from llama_index_gap.cli import options, terminal

if TYPE_CHECKING:
    from llama_index_gap.models.presets import Preset, ScorerPreset

_COMMIT = 12  # characters of a commit to show; --json has all of them


def models(as_json: options.AsJson = False) -> None:
    """List the models that have a plain name, and what each is good for."""
    from llama_index_gap.models.presets import PRESETS, SCORER_PRESETS

    if as_json:
        encoders = [{"kind": "encoder", **asdict(each)} for each in PRESETS.values()]
        scorers = [{"kind": "reranker", **asdict(each)} for each in SCORER_PRESETS.values()]
        terminal.print_json(encoders + scorers)
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("name", style="bold")
    table.add_column("good for", overflow="fold")
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
            about.append(_more(preset), style="dim"),
            str(preset.dimension),
            f"{preset.max_text_tokens:,}" if preset.max_text_tokens else "–",
            preset.languages or "–",
            preset.licence,
        )
    for scorer in SCORER_PRESETS.values():
        about = Text("reranker: ").append(scorer.suits)
        about.append(f"\n{scorer.checkpoint}", style="cyan")
        table.add_row(
            scorer.name,
            about.append(_more(scorer), style="dim"),
            "–",
            f"{scorer.max_tokens:,}",
            scorer.languages,
            scorer.licence,
        )
    terminal.stdout.print(table)
    terminal.stdout.print(
        "\ndemo is the name of the package's own tiny encoder and reranker, which know nothing but "
        "the demo's newsroom."
        "\nLicences apply to the weights. If no revision is shown, the newest one is loaded."
        '\nLoad a model by its name: DualEncoderEmbedding(model_name="jina"), '
        'MultiModalRerank(model="jina-m0")',
        markup=False,
    )


def _more(preset: Preset | ScorerPreset) -> str:
    from llama_index_gap.models.checkpoints.hub import in_words

    parts = []
    if preset.download_bytes is not None:
        parts.append(in_words(preset.download_bytes))
    if preset.revision is not None:
        parts.append(f"revision {preset.revision[:_COMMIT]}")
    licence = f"code {preset.code_licence}" if preset.code_licence else ""
    lines = [", ".join(parts), "; ".join(each for each in (licence, preset.note) if each)]
    return "".join(f"\n{line}" for line in lines if line)
