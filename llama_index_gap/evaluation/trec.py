"""TREC's files for rankings and judgements, in and out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.evaluation.metrics import Qrels, Run


def write_run(run: Run, path: str | Path, *, tag: str = "llama-index-gap") -> None:
    """Write rankings: query, Q0, document, rank, score, tag.

    trec_eval goes by the score, so that is how many documents come after, plus 1.

    Raises:
        ValueError: an id or the tag is empty or holds white space, which separates the columns.
    """
    lines = []
    for query, ranking in run.items():
        for rank, document in enumerate(ranking, start=1):
            columns = [query, "Q0", document, str(rank), str(len(ranking) - rank + 1), tag]
            lines.append(_line(columns, path))
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_run(path: str | Path) -> dict[str, list[str]]:
    """Read rankings, ordered as trec_eval does: by score; equal ones by id, the last first.

    Raises:
        ValueError: a line has not six columns, a score is no number, or a document comes twice.
    """
    scored: dict[str, dict[str, float]] = defaultdict(dict)
    for where, (query, _, document, _, score, _) in _rows(path, 6):
        if document in scored[query]:
            raise InvalidValueError(f"{where}: {document} is in the ranking of {query} already")
        scored[query][document] = _number(score, where)
    return {
        query: sorted(documents, key=lambda d: (documents[d], d), reverse=True)
        for query, documents in scored.items()
    }


def write_qrels(qrels: Qrels, path: str | Path) -> None:
    """Write judgements: query, 0, document, grade.

    Raises:
        ValueError: an id is empty or holds white space, which separates the columns.
    """
    lines = [
        _line([query, "0", document, str(grade)], path)
        for query, grades in qrels.items()
        for document, grade in grades.items()
    ]
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read judgements.

    Raises:
        ValueError: a line has not four columns, a grade is no whole number, or a document is judged
            twice.
    """
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    for where, (query, _, document, grade) in _rows(path, 4):
        if document in qrels[query]:
            raise InvalidValueError(f"{where}: {document} is judged twice for {query}")
        value = _number(grade, where)
        if value != int(value):
            raise InvalidValueError(f"{where}: the grade {grade} is no whole number")
        qrels[query][document] = int(value)
    return dict(qrels)


def _line(columns: Iterable[str], path: str | Path) -> str:
    columns = list(columns)
    for column in columns:
        if len(column.split()) != 1 or column != column.strip():
            raise InvalidValueError(
                f"{path}: {column!r} cannot stand in a TREC file, whose columns are separated by "
                "white space; rename it"
            )
    return " ".join(columns) + "\n"


def _rows(path: str | Path, width: int) -> Iterator[tuple[str, list[str]]]:
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            columns = line.split()
            if not columns:
                continue
            where = f"{path}:{number}"
            if len(columns) != width:
                raise InvalidValueError(f"{where}: has {len(columns)} columns, not {width}")
            yield where, columns


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidValueError(f"{where}: {text!r} is no number")
    return value
