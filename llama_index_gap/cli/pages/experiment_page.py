"""The results of an experiment as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index_gap.cli.experiment_tables import (
    difference,
    how_to_read,
    leg_rows,
    own_modality_in_words,
    with_verdict,
)
from llama_index_gap.cli.pages.rendering import render
from llama_index_gap.evaluation.examples import Example
from llama_index_gap.evaluation.experiment_result import ExperimentResult
from llama_index_gap.images.thumbnails import LARGE, thumbnail


def render_experiment(result: ExperimentResult, examples: Sequence[Example]) -> str:
    """Write the results of an experiment as an HTML page.

    Args:
        result: the figures.
        examples: shown with their images, or with the reason why one cannot be opened.
    """
    return render(
        "experiment",
        result=result,
        difference=difference,
        with_verdict=with_verdict,
        how_to_read=how_to_read(result),
        legs=list(leg_rows(result)),
        own_modality=own_modality_in_words(result),
        examples=[
            (
                example,
                thumbnail(example.query.image_path, LARGE) if example.query.image_path else None,
                [
                    (place, thumbnail(place.image, LARGE) if place.image else None)
                    for place in example.first
                ],
            )
            for example in examples
        ],
    )
