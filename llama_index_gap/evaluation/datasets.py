"""Reads data sets with labelled queries: EDIS, MixBench, BEIR, and your own folder."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, TypeVar

from llama_index.core.schema import QueryBundle

from llama_index_gap.errors import GapError, InvalidValueError
from llama_index_gap.evaluation.metrics import Qrels
from llama_index_gap.files import MAX_BYTES, FileError, not_utf8, open_file, read_text
from llama_index_gap.readers.corpus import Corpus, corpus_from_records, read_corpus
from llama_index_gap.text import is_blank

_EDIS_RELEVANT = 3
_MOST_GRADE = 10**6
_MOST_NAMED = 3  # missing documents that a note names
_MOST_COMPARED = 10_000  # ids; among these, finding a similar one takes up to a second
_ID_KEYS = ("_id", "id", "corpus_id", "query_id", "candidate_id")
_NO_POOL = (
    "there is no EDIS_candidates_*.json, so only the queries' own candidates are searched; this is "
    "far easier than the published task"
)
_JsonT = TypeVar("_JsonT", dict[str, Any], list[Any])


class DatasetError(GapError, ValueError):
    """A data set cannot be read completely; part of one is never judged."""


@dataclass(frozen=True)
class LabelledQuery:
    """A query of a data set.

    Attributes:
        id: its key in the judgements.
        text: the query text; empty for an image alone.
        image_path: the query image, if any.
        kind: the data set's name for this kind of query, such as ``"image"``, if any.
    """

    id: str
    text: str
    image_path: str | None = None
    kind: str | None = None

    @property
    def bundle(self) -> QueryBundle:
        """The query in the form for retrievers."""
        return QueryBundle(self.text, image_path=self.image_path)


@dataclass(frozen=True)
class Dataset:
    """Documents, queries and judgements.

    Attributes:
        name: the name of the folder.
        corpus: the nodes of the documents; a document's id is the ``ref_doc_id`` of its nodes.
        queries: the queries, all judged.
        qrels: for each query, the judged documents with their grades.
        relevant_from: the lowest grade that counts as relevant.
        notes: what a reader of the figures should know.
    """

    name: str
    corpus: Corpus
    queries: list[LabelledQuery]
    qrels: Qrels
    relevant_from: int = 1
    notes: tuple[str, ...] = ()

    def limited(self, queries: int | None) -> Dataset:
        """The same documents with at most ``queries`` queries, spread evenly over all."""
        if queries is None or queries >= len(self.queries):
            return self
        if queries < 1:
            raise InvalidValueError(f"limit={queries}: must be at least 1")
        step = len(self.queries) / queries  # spread, since the file may be sorted
        kept = [self.queries[int(index * step)] for index in range(queries)]
        note = f"{queries:,} of {len(self.queries):,} queries, spread evenly"
        return replace(self, queries=kept, notes=(*self.notes, note))


def read_dataset(path: str | Path, *, split: str = "test", show_progress: bool = False) -> Dataset:
    """Read a data set with labelled queries.

    The files in the folder decide the format:

    - **EDIS** (Liu et al., EMNLP 2023): ``EDIS_{split}.json``, a list of ``{query, candidates:
      [{candidate_id, image, headline, score}]}``, and ``EDIS_candidates_*.json``, the pool, a list
      of ``{id, image, headline}``; without the pool, all candidates. Grade 3 is relevant.
    - **MixBench** (Li et al., arXiv 2507.19054), one of its subsets: ``queries.jsonl``,
      ``mixed_corpus.jsonl`` (or ``corpus.jsonl``) with ``corpus_id``, ``text``, ``image``, and
      ``qrels/qrels.tsv``.
    - **BEIR** (Thakur et al., 2021): ``corpus.jsonl`` with ``_id``, ``title``, ``text`` and, here,
      ``image``; ``queries.jsonl``; ``qrels/{split}.tsv``.
    - **Your own folder**: anything that ``read_corpus`` reads, with ``queries.jsonl`` beside it;
      see ``read_queries``. Another split's queries are in ``queries-{split}.jsonl``.

    Images are looked up in the folder and in its subfolder ``images``. A document whose image is
    missing keeps its text, and is listed in ``corpus.skipped``.

    Args:
        path: the folder.
        split: the set of queries, if there are several.
        show_progress: show a progress bar.

    Raises:
        DatasetError: the format is unknown, a file is missing or malformed, or a query has no
            judgement.
        CorpusError: no document could be read.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise DatasetError(f"{path}: no such folder")
    dataset = _read_format(folder, split, show_progress)
    for query in dataset.queries:
        image = query.image_path
        if image is not None and not Path(image).resolve().is_relative_to(folder):
            raise DatasetError(
                f"{path}: the image of query {query.id!r} lies outside the folder, after "
                f"following links ({image[:200]}); copy it into the folder"
            )
    return dataset


def _read_format(folder: Path, split: str, show_progress: bool) -> Dataset:
    edis = sorted(folder.glob("EDIS_*.json"))
    if edis:
        return _read_edis(folder, split, show_progress)
    if (folder / "queries.jsonl").is_file():
        if (folder / "qrels").is_dir():
            return _read_beir(folder, split, show_progress)
        name = "queries.jsonl" if split == "test" else f"queries-{split}.jsonl"
        queries, qrels = read_queries(folder / name)
        corpus = read_corpus(folder, show_progress=show_progress)
        return _judgeable(Dataset(folder.name, corpus, queries, qrels))
    raise DatasetError(
        f"{folder}: has neither EDIS_{split}.json nor queries.jsonl; for the formats, see "
        "read_dataset"
    )


def read_queries(path: str | Path) -> tuple[list[LabelledQuery], Qrels]:
    """Read labelled queries, one JSON object per line.

    ``query`` (or ``text``) is the query text. ``image`` is the path of a query image, relative to
    the file's folder. ``relevant`` is a list of document ids, or an object with their grades.
    ``id`` and ``kind`` are optional.

    Returns:
        The queries and their judgements, as ``collect_scores`` takes them.

    Raises:
        DatasetError: a line is malformed, has no query, or names no relevant document.
    """
    path = Path(path)
    queries: list[LabelledQuery] = []
    qrels: dict[str, Mapping[str, int]] = {}
    for where, fields in _json_lines(path):
        query = _query(fields, path.parent, where, default_id=f"q{len(queries) + 1}")
        relevant = fields.get("relevant")
        if isinstance(relevant, list):
            relevant = {str(document): 1 for document in relevant}
        if not isinstance(relevant, dict) or not relevant:
            raise DatasetError(
                f"{where}: relevant is {fields.get('relevant')!r}; give a list of the ids of "
                "relevant documents"
            )
        if query.id in qrels:
            raise DatasetError(f"{where}: the id {query.id!r} is taken by an earlier query")
        queries.append(query)
        qrels[query.id] = {str(doc): _grade(grade, where) for doc, grade in relevant.items()}
    if not queries:
        raise DatasetError(f"{path}: has no query")
    return queries, qrels


def read_unlabelled(path: str | Path) -> list[QueryBundle]:
    """Read unlabelled queries: one text or one JSON object per line.

    Objects are as for ``read_queries``, without ``relevant``: ``query`` (or ``text``) is the query
    text, ``image`` (or ``image_path``) the path of a query image, relative to the file's folder.
    Blank lines are ignored.

    Returns:
        The queries, as ``DualIndex.learn_queries`` takes them.

    Raises:
        DatasetError: the file cannot be read or has no query, or a line is malformed or has no
            query.
    """
    path = Path(path).expanduser()
    try:
        text = read_text(path)
    except FileError as error:
        raise DatasetError(f"{path}: {error}") from error
    lines = [(f"{path.name}:{i}", line) for i, line in enumerate(text.split("\n"), start=1)]
    lines = [(where, line) for where, line in lines if line.strip()]
    if not lines:
        raise DatasetError(f"{path}: has no query")
    kind = path.suffix.lower()
    if kind in {".json", ".csv", ".tsv"}:
        raise DatasetError(
            f"{path}: {kind} files are not supported; write one text per line (.txt), or one "
            'object {"text": …} per line (.jsonl)'
        )
    if kind not in {".jsonl", ".ndjson"} and not lines[0][1].lstrip().startswith("{"):
        return [QueryBundle(line.strip()) for _, line in lines]
    queries = []
    for where, line in lines:
        fields = _checked(_parsed(line, where), dict, where)
        image = fields.get("image") or fields.get("image_path")
        query = _query(fields | {"image": image}, path.parent, where, default_id=where)
        queries.append(query.bundle)
    return queries


def _read_edis(folder: Path, split: str, show_progress: bool) -> Dataset:
    queries: list[LabelledQuery] = []
    qrels: dict[str, dict[str, int]] = {}
    judged: dict[str, dict[str, Any]] = {}
    for where, entry in _json_list(folder / f"EDIS_{split}.json"):
        fields = {"id": f"{split}-{len(queries)}", "text": entry.get("query")}
        query = _query(fields, folder, where)
        queries.append(query)
        qrels[query.id] = {}
        for value in _checked(entry.get("candidates"), list, f"{where}, candidates"):
            candidate = _checked(value, dict, where)
            document = _id(candidate, where)
            qrels[query.id][document] = _grade(candidate.get("score"), where)
            judged[document] = candidate
    pools = sorted(folder.glob("EDIS_candidates_*.json"))
    if len(pools) > 1:
        names = " and ".join(pool.name for pool in pools)
        raise DatasetError(f"{folder}: has {names}; keep only the pool to search")
    notes = () if pools else (_NO_POOL,)
    documents = _json_list(pools[0]) if pools else judged.items()
    corpus = _read_documents(folder, documents, "headline", show_progress)
    return _judgeable(Dataset(folder.name, corpus, queries, qrels, _EDIS_RELEVANT, notes))


def _read_beir(folder: Path, split: str, show_progress: bool) -> Dataset:
    """Also reads MixBench, whose files have other names."""
    qrels_files = [folder / "qrels" / "qrels.tsv", folder / "qrels" / f"{split}.tsv"]
    qrels_file = next((file for file in qrels_files if file.is_file()), None)
    corpora = [folder / "mixed_corpus.jsonl", folder / "corpus.jsonl"]
    corpus_file = next((file for file in corpora if file.is_file()), None)
    if qrels_file is None or corpus_file is None:
        missing = qrels_files if qrels_file is None else corpora
        names = " nor ".join(file.relative_to(folder).as_posix() for file in missing)
        raise DatasetError(f"{folder}: has queries.jsonl, but neither {names}")
    qrels = _read_tsv(qrels_file)
    queries = [
        query
        for where, fields in _json_lines(folder / "queries.jsonl")
        if (query := _query(fields, folder, where)).id in qrels
    ]
    corpus = _read_documents(folder, _json_lines(corpus_file), "text", show_progress)
    return _judgeable(Dataset(folder.name, corpus, queries, qrels))


def _read_documents(
    folder: Path, documents: Iterable[tuple[str, Mapping[str, Any]]], text: str, show_progress: bool
) -> Corpus:
    records = (
        {
            "id": _id(fields, where),
            "title": fields.get("title"),
            "text": fields.get(text),
            "image": _find_image(folder, fields.get("image")),
        }
        for where, fields in documents
    )
    return corpus_from_records(records, folder, show_progress=show_progress)


def _read_tsv(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = defaultdict(dict)
    with _opened(path) as file:
        rows = csv.reader(file, delimiter="\t")
        for number, row in enumerate(rows, start=1):
            where = f"{path.name}:{number}"
            if len(row) != 3:
                raise DatasetError(f"{where}: has {len(row)} columns, not query, document, grade")
            if number == 1 and not row[2].strip().lstrip("-").isdigit():
                continue  # the header
            qrels[row[0]][row[1]] = _grade(row[2], where)
    return dict(qrels)


def _judgeable(dataset: Dataset) -> Dataset:
    """Reject a data set that cannot be judged, and note what makes the task harder."""
    unjudged = [query.id for query in dataset.queries if query.id not in dataset.qrels]
    if unjudged:
        raise DatasetError(f"{dataset.name}: no judgement for query {unjudged[0]!r}")
    if not dataset.queries:
        raise DatasetError(f"{dataset.name}: no query has a judgement")
    notes = list(dataset.notes)
    missing = len(dataset.qrels.keys() - {query.id for query in dataset.queries})
    if missing:
        notes.append(f"{missing:,} labelled queries are missing from the queries")
    corpus = set(dataset.corpus.document_ids)
    relevant = [
        document
        for query in dataset.queries
        for document, grade in dataset.qrels[query.id].items()
        if grade >= dataset.relevant_from
    ]
    absent = [document for document in relevant if document not in corpus]
    if absent and len(absent) == len(relevant):
        raise DatasetError(
            f"{dataset.name}: none of the {len(absent):,} relevant documents is in the corpus, "
            f"such as {_with_nearest(absent[0], corpus)}; llama-gap info --documents lists the ids "
            "of an index"
        )
    if absent:
        first = list(dict.fromkeys(absent))[:_MOST_NAMED]
        notes.append(
            f"{len(absent):,} of {len(relevant):,} relevant documents are missing from the corpus, "
            "and count as not found, such as "
            + ", ".join(_with_nearest(document, corpus) for document in first)
        )
    if dataset.corpus.skipped:
        notes.append(f"{len(dataset.corpus.skipped):,} parts of the corpus were skipped")
    return replace(dataset, notes=tuple(notes))


def _with_nearest(document: str, corpus: Collection[str]) -> str:
    """An id that is missing from a corpus, and the most similar id that the corpus has."""
    compared = corpus if len(corpus) <= _MOST_COMPARED else ()
    near = get_close_matches(document, compared, n=1, cutoff=0.5)
    return f"{document!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _find_image(folder: Path, name: Any) -> str | None:
    """The path of the image that a record names; if it is missing, the name itself."""
    if not isinstance(name, str) or not name.strip():
        return None
    plain = name.strip()
    below = plain.lstrip("/")  # published data sets write their own folder as the root
    places = (Path("images") / below, Path(below))
    return next((str(path) for path in places if (folder / path).is_file()), plain)


def _query(
    fields: Mapping[str, Any], folder: Path, where: str, default_id: str | None = None
) -> LabelledQuery:
    text = fields.get("query") or fields.get("text") or ""
    if not isinstance(text, str):
        raise DatasetError(f"{where}: the query is {repr(text)[:100]}, not a text")
    image, kind = _find_image(folder, fields.get("image")), fields.get("kind")
    text = "" if is_blank(text) else text
    if not text and image is None:
        raise DatasetError(f"{where}: the query has neither a text nor an image")
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


def _grade(value: Any, where: str) -> int:
    try:
        grade = float(value)
        if grade != int(grade) or abs(grade) > _MOST_GRADE:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise DatasetError(
            f"{where}: the grade {repr(value)[:60]} is not a whole number up to {_MOST_GRADE:,}"
        ) from None
    return int(grade)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the object on each line, with its place for messages."""
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_BYTES), ""), start=1):
            where = f"{path.name}:{number}"
            if len(line) == MAX_BYTES:
                raise DatasetError(f"{where}: is longer than {MAX_BYTES:,} characters")
            if line.strip():
                yield where, _checked(_parsed(line, where), dict, where)


def _json_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file with one list, each with its place for messages."""
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; is it another split?")
    with _opened(path) as file:
        entries = _parsed(file.read(), path.name)
    for number, entry in enumerate(_checked(entries, list, path.name), start=1):
        where = f"{path.name}, entry {number}"
        yield where, _checked(entry, dict, where)


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a file of a data set as text; raises if it is not a regular text file."""
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            yield file
    except (FileError, UnicodeDecodeError, csv.Error) as error:
        message = not_utf8(error) if isinstance(error, UnicodeDecodeError) else str(error)
        raise DatasetError(f"{path}: {message}") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where}: is not JSON ({error})") from error


def _checked(value: Any, kind: type[_JsonT], where: str) -> _JsonT:
    if not isinstance(value, kind):
        raise DatasetError(f"{where}: is not a JSON {'array' if kind is list else 'object'}")
    return value
