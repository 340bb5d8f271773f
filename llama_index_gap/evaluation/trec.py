"""Rankings and judgements written in TREC's file formats."""

from __future__ import annotations

from pathlib import Path

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.evaluation.metrics import Qrels, Run


def write_run(run: Run, path: str | Path, *, tag: str = "llama-index-gap") -> None:
    """Write rankings: query, Q0, document, rank, score, tag.

    trec_eval sorts by score, so the score is the number of documents that follow, plus 1.

    Raises:
        ValueError: an id or the tag is empty or contains white space, which separates columns.
    """
    _write(
        path,
        [
            (query, "Q0", document, str(rank), str(len(ranking) - rank + 1), tag)
            for query, ranking in run.items()
            for rank, document in enumerate(ranking, start=1)
        ],
    )


def write_qrels(qrels: Qrels, path: str | Path) -> None:
    """Write judgements: query, 0, document, grade.

    Raises:
        ValueError: an id is empty or contains white space, which separates columns.
    """
    _write(
        path,
        [
            (query, "0", document, str(grade))
            for query, grades in qrels.items()
            for document, grade in grades.items()
        ],
    )


def _write(path: str | Path, rows: list[tuple[str, ...]]) -> None:
    for column in (column for row in rows for column in row):
        if column.split() != [column]:
            raise InvalidValueError(
                f"{path}: {column!r} cannot be written to a TREC file, since white space separates "
                "its columns; rename it"
            )
    Path(path).write_text("".join(" ".join(row) + "\n" for row in rows), encoding="utf-8")
