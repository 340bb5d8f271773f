"""Data sets with judged queries: EDIS, MixBench, BEIR, and a folder of one's own."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_index_gap.errors import GapError, InvalidValueError
from llama_index_gap.evaluation.metrics import Qrels
from llama_index_gap.readers.corpus import Corpus, corpus_from_records, read_corpus

_EDIS_RELEVANT = 3
_ID_KEYS = ("_id", "id", "corpus_id", "query_id")


class DatasetError(GapError, ValueError):
    """A data set that cannot be read; part of one is never judged as if it were the whole."""


@dataclass(frozen=True)
class LabelledQuery:
    """A query of a data set.

    Attributes:
        id: its name in the judgements.
        text: what is asked; empty for an image alone.
        image_path: the image that is asked with; None if there is none.
        kind: what sort of query the data set says it is, such as ``"image"``; None if nothing.
    """

    id: str
    text: str
    image_path: str | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Documents, queries, and which documents answer which query.

    Attributes:
        name: the folder's name.
        format: ``"edis"``, ``"mixbench"``, ``"beir"`` or ``"folder"``.
        corpus: the documents' nodes; a document's id is their ``ref_doc_id``.
        queries: all have a judgement.
        qrels: for each query the judged documents with their grades.
        relevant_from: the lowest grade that counts as relevant.
        notes: what about it a reader of its figures should know.
    """

    name: str
    format: str
    corpus: Corpus
    queries: list[LabelledQuery]
    qrels: Qrels
    relevant_from: int = 1
    notes: tuple[str, ...] = ()

    def limited(self, queries: int | None) -> Dataset:
        """The same documents with every so many-th query, so that at most ``queries`` are left."""
        if queries is None or queries >= len(self.queries):
            return self
        if queries < 1:
            raise InvalidValueError(f"limit={queries}: must be at least 1")
        step = len(self.queries) / queries  # over all of the file, which may be in some order
        kept = [self.queries[int(index * step)] for index in range(queries)]
        note = f"{queries:,} of {len(self.queries):,} queries, spread evenly"
        return replace(self, queries=kept, notes=(*self.notes, note))


def read_dataset(path: str | Path, *, split: str = "test", show_progress: bool = False) -> Dataset:
    """Read a data set with judged queries.

    Formats, told apart by the files in the folder:

    - **EDIS** (Liu et al., EMNLP 2023): ``EDIS_{split}.json``, a list of ``{query, candidates:
      [{candidate_id, image, headline, score}]}``, and ``EDIS_candidates_*.json``, the pool, a list
      of ``{id, image, headline}``; without the pool the candidates are. Grade 3 is relevant.
    - **MixBench** (Li et al., arXiv 2507.19054), one of its subsets: ``queries.jsonl``,
      ``mixed_corpus.jsonl`` (or ``corpus.jsonl``) with ``corpus_id``, ``text``, ``image``, and
      ``qrels/qrels.tsv``.
    - **BEIR** (Thakur et al., 2021): ``corpus.jsonl`` with ``_id``, ``title``, ``text`` and, here,
      ``image``; ``queries.jsonl``; ``qrels/{split}.tsv``.
    - **A folder of one's own**: anything that ``read_corpus`` reads, with ``queries.jsonl`` beside
      it; see ``read_queries``.

    Images are looked for from the folder, and below its ``images``. A document whose image is
    missing keeps its text, and is in ``corpus.skipped``.

    Args:
        path: the folder.
        split: which queries, where there are several sets of them.
        show_progress: show a progress bar.

    Raises:
        DatasetError: no such format, a file that is missing or broken, queries without judgement.
        CorpusError: no document could be read.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise DatasetError(f"{path}: no such folder")
    edis = sorted(folder.glob("EDIS_*.json"))
    if edis:
        return _read_edis(folder, split, show_progress)
    if (folder / "queries.jsonl").is_file():
        if (folder / "qrels").is_dir():
            return _read_beir(folder, split, show_progress)
        corpus = read_corpus(folder, show_progress=show_progress)
        queries, qrels = read_queries(folder / "queries.jsonl")
        return _checked(Dataset(folder.name, "folder", corpus, queries, qrels))
    raise DatasetError(
        f"{path}: holds neither EDIS_{split}.json nor queries.jsonl; see read_dataset for the "
        "formats that are read"
    )


def read_queries(path: str | Path) -> tuple[list[LabelledQuery], Qrels]:
    """Read judged queries, an object a line.

    ``query`` (or ``text``) is the question, ``image`` an image to ask with (from the file's
    folder); ``relevant`` a list of documents' ids, or an object of their grades; ``id`` and
    ``kind`` may be left out.

    Raises:
        DatasetError: a line is broken, asks nothing, or names no relevant document.
    """
    path = Path(path)
    queries: list[LabelledQuery] = []
    qrels: dict[str, Mapping[str, int]] = {}
    for where, fields in _json_lines(path):
        query = _query(fields, path.parent, where, default_id=f"q{len(queries) + 1}")
        relevant = fields.get("relevant")
        if isinstance(relevant, list):
            relevant = dict.fromkeys(relevant, 1)
        if not isinstance(relevant, dict) or not relevant:
            raise DatasetError(
                f"{where}: relevant is {fields.get('relevant')!r}; give the relevant documents' "
                "ids as a list"
            )
        if query.id in qrels:
            raise DatasetError(f"{where}: the id {query.id!r} is taken by an earlier query")
        queries.append(query)
        qrels[query.id] = {str(doc): _grade(grade, where) for doc, grade in relevant.items()}
    if not queries:
        raise DatasetError(f"{path}: holds no query")
    return queries, qrels


# --- EDIS ----------------------------------------------------------------------------------------


def _read_edis(folder: Path, split: str, show_progress: bool) -> Dataset:
    entries = _json_list(folder / f"EDIS_{split}.json")
    pools = sorted(folder.glob("EDIS_candidates_*.json"))
    notes: tuple[str, ...] = ()
    queries: list[LabelledQuery] = []
    qrels: dict[str, dict[str, int]] = {}
    judged: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        where = f"EDIS_{split}.json, query {number + 1}"
        query = _query({"text": entry.get("query")}, folder, where, default_id=f"{split}-{number}")
        queries.append(query)
        grades: dict[str, int] = {}
        for candidate in _objects(entry.get("candidates"), where):
            document = _required(candidate, "candidate_id", where)
            grades[document] = _grade(candidate.get("score"), where)
            judged[document] = {**candidate, "id": document}
        qrels[query.id] = grades
    if len(pools) > 1:
        names = " and ".join(pool.name for pool in pools)
        raise DatasetError(f"{folder}: holds {names}; keep the pool that is meant")
    if pools:
        documents: Iterable[Mapping[str, Any]] = _json_list(pools[0])
    else:
        documents = judged.values()
        notes = (
            "no EDIS_candidates_*.json: the queries' own candidates are all there is to search, "
            "which is far easier than the published task",
        )
    place = _finder(folder)
    records = (
        {
            "id": _required(document, "id", "a candidate"),
            "text": document.get("headline"),
            "image": place(document.get("image")),
        }
        for document in documents
    )
    corpus = corpus_from_records(records, folder, show_progress=show_progress)
    dataset = Dataset(folder.name, "edis", corpus, queries, qrels, _EDIS_RELEVANT, notes)
    return _checked(dataset)


# --- MixBench and BEIR ---------------------------------------------------------------------------


def _read_beir(folder: Path, split: str, show_progress: bool) -> Dataset:
    qrels_files = [folder / "qrels" / "qrels.tsv", folder / "qrels" / f"{split}.tsv"]
    qrels_file = next((file for file in qrels_files if file.is_file()), None)
    corpora = [folder / "mixed_corpus.jsonl", folder / "corpus.jsonl"]
    corpus_file = next((file for file in corpora if file.is_file()), None)
    if qrels_file is None or corpus_file is None:
        missing = qrels_files if qrels_file is None else corpora
        names = " nor ".join(file.relative_to(folder).as_posix() for file in missing)
        raise DatasetError(f"{folder}: holds queries.jsonl, but neither {names}")
    qrels = _read_tsv(qrels_file)
    queries = [
        query
        for where, fields in _json_lines(folder / "queries.jsonl")
        if (query := _query(fields, folder, where)).id in qrels
    ]
    place = _finder(folder)
    records = (
        {
            "id": _id(fields, where),
            "title": fields.get("title"),
            "text": fields.get("text"),
            "image": place(fields.get("image")),
        }
        for where, fields in _json_lines(corpus_file)
    )
    corpus = corpus_from_records(records, folder, show_progress=show_progress)
    form = "mixbench" if qrels_file.name == "qrels.tsv" else "beir"
    return _checked(Dataset(folder.name, form, corpus, queries, qrels))


def _read_tsv(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t")
        for number, row in enumerate(rows, start=1):
            where = f"{path.name}:{number}"
            if len(row) != 3:
                raise DatasetError(f"{where}: has {len(row)} columns, not query, document, grade")
            if number == 1 and not row[2].strip().lstrip("-").isdigit():
                continue  # the header
            qrels[row[0]][row[1]] = _grade(row[2], where)
    return dict(qrels)


# --- parts ---------------------------------------------------------------------------------------


def _checked(dataset: Dataset) -> Dataset:
    """Refuse what cannot be judged, and note what makes the judgement harder than it looks."""
    known = {query.id for query in dataset.queries}
    lonely = [query for query in dataset.qrels if query not in known]
    unjudged = [query.id for query in dataset.queries if query.id not in dataset.qrels]
    if unjudged:
        raise DatasetError(f"{dataset.name}: no judgement for query {unjudged[0]!r}")
    if not dataset.queries:
        raise DatasetError(f"{dataset.name}: no query has a judgement")
    notes = list(dataset.notes)
    if lonely:
        notes.append(f"{len(lonely):,} judged queries are not among the queries")
    there = set(dataset.corpus.document_ids)
    relevant = [
        document
        for query in dataset.queries
        for document, grade in dataset.qrels[query.id].items()
        if grade >= dataset.relevant_from
    ]
    gone = sum(document not in there for document in relevant)
    if gone:
        notes.append(
            f"{gone:,} of {len(relevant):,} relevant documents are not in the corpus: they count "
            "as not found"
        )
    if dataset.corpus.skipped:
        notes.append(f"{len(dataset.corpus.skipped):,} parts of the corpus were skipped")
    return replace(dataset, notes=tuple(notes))


def _finder(folder: Path) -> Callable[[Any], Any]:
    """Where an image lies that a record names; what is not found is left for the reader to say."""

    def place(name: Any) -> Any:
        if not isinstance(name, str) or not name.strip():
            return None
        plain = name.strip()
        below = plain.lstrip("/")  # published sets write their own folder as the root
        places = (Path("images") / below, Path(below))
        return next((str(path) for path in places if (folder / path).is_file()), plain)

    return place


def _query(
    fields: Mapping[str, Any], folder: Path, where: str, default_id: str | None = None
) -> LabelledQuery:
    text = fields.get("query") or fields.get("text") or ""
    if not isinstance(text, str):
        raise DatasetError(f"{where}: the query is {text!r}, not a text")
    image = _finder(folder)(fields.get("image"))
    if not text.strip() and image is None:
        raise DatasetError(f"{where}: has neither a text nor an image to ask with")
    kind = fields.get("kind")
    return LabelledQuery(
        _id(fields, where, default_id),
        text,
        None if image is None else str(folder / image),
        None if kind is None else str(kind),
    )


def _id(fields: Mapping[str, Any], where: str, default: str | None = None) -> str:
    found = next((fields[key] for key in _ID_KEYS if fields.get(key) not in (None, "")), default)
    if found is None:
        raise DatasetError(f"{where}: has no id; give it one of {', '.join(_ID_KEYS)}")
    return str(found)


def _required(fields: Mapping[str, Any], key: str, where: str) -> str:
    value = fields.get(key)
    if value is None or value == "":
        raise DatasetError(f"{where}: {key} is missing")
    return str(value)


def _grade(value: Any, where: str) -> int:
    try:
        grade = float(value)
        if grade != int(grade):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise DatasetError(f"{where}: the grade {value!r} is no whole number") from None
    return int(grade)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path.name}:{number}"
                yield where, _object(_parsed(line, where), where)


def _json_list(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; is it another split?")
    return _objects(_parsed(path.read_text(encoding="utf-8-sig"), path.name), path.name)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DatasetError(f"{where}: is not JSON ({error})") from error


def _objects(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise DatasetError(f"{where}: holds {type(value).__name__} where a list is due")
    return [_object(item, where) for item in value]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: holds {type(value).__name__} where an object is due")
    return value
