"""Indexes documents on a Ray cluster, into an index on a Milvus server."""

from __future__ import annotations

import base64
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import BaseNode

import llama_index_gap
from llama_index_gap.distributed.cluster import ClusterError, joined, quietly
from llama_index_gap.distributed.parts import KnownIds, cut_into_parts, documents_of, ids_of
from llama_index_gap.distributed.worker import Journal, Outcome, PartWriter, Task
from llama_index_gap.errors import (
    EmbeddingError,
    InvalidValueError,
    UnsupportedError,
    names_nearest,
)
from llama_index_gap.images.folders import is_made
from llama_index_gap.images.opening import ImageError, read_image
from llama_index_gap.index.comparing import named_source
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.index.parts import Part, image_of
from llama_index_gap.index.writing import IndexReport
from llama_index_gap.nodes import each_node
from llama_index_gap.pickling import why_not_sent_whole
from llama_index_gap.progress import Progress
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.readers.records import Skipped
from llama_index_gap.store.addresses import is_server
from llama_index_gap.store.connection import one_line
from llama_index_gap.threads import in_thread, stop_if_given_up

_MODELS = ("embed_model", "image_embed_model", "image_query_embed_model")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@names_nearest
def ingest_with_ray(
    index: DualIndex,
    nodes: Corpus | Iterable[BaseNode],
    *,
    address: str = "auto",
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    batch_size: int = 512,
    source: str | None = None,
    show_progress: bool = False,
    strict: bool = False,
) -> IndexReport:
    """Put documents into an index on a Milvus server, on all machines of a Ray cluster.

    Each actor has its own models, opens images, embeds and writes. Neither vectors nor images pass
    through this program, unless a node contains its image. The index is the same as if one machine
    had written it. Rows are written by id, so if a worker dies, writing its part again changes
    nothing that it wrote before. A second call embeds only what has changed.

    All nodes are first read into the cluster's object store, which moves to disk what does not fit
    into memory. Then they are embedded.

    Args:
        index: an index on a server; workers open it with the same models and settings.
        nodes: a corpus, or with ``source`` all nodes of some documents; other stored nodes of these
            are deleted, as by ``refresh_ref_docs``. Without ``source``, nodes are inserted as by
            ``insert_nodes``. The nodes of a document must follow each other. Never changed.
        address: the cluster: ``"auto"`` for the one that runs on this machine, ``"host:port"``, or
            ``"local"`` to start one here for this call. If this program is already connected to a
            cluster, that one is used in any case.
        actors: the most workers; by default one per GPU, or without GPUs one per CPU.
        gpus_per_actor: the share of a GPU for each worker; by default 1 if the cluster has GPUs.
        batch_size: how many nodes a worker takes at a time, and repeats if it is killed.
        source: the name of the corpus, for ``sync``; by default its path.
        show_progress: show progress bars.
        strict: raise at the first node that would be skipped.

    Returns:
        What all workers wrote, and what was skipped and why.

    Raises:
        UnsupportedError: Ray is not installed, or the index is a Milvus Lite file.
        ClusterError: the cluster cannot be joined, or its workers die repeatedly.
        ValueError: a setting is invalid; or, with ``strict``, a node would be skipped.
        EmbeddingError: a model fails. What was written stays, and the same call continues.
        StoreError: the database does not answer.
    """
    for name, number in (("actors", actors), ("batch_size", batch_size)):
        if number is not None and number < 1:
            raise InvalidValueError(f"{name}={number}: must be at least 1")
    if not is_server(index.address.uri):
        raise UnsupportedError(
            f"{index.address.uri}: only one process at a time can open a Milvus Lite file, so "
            'workers cannot write to it; use a Milvus server (uri="http://…"), and copy an '
            "existing index there with 'llama-gap copy'"
        )
    with ExitStack() as opened:
        ray = opened.enter_context(joined(address))
        opened.enter_context(quietly(ray))
        call = _Call(ray, index, nodes, source, strict=strict)
        references = call.feed(batch_size, opened, show_progress=show_progress)
        if references:
            call.run(references, actors, gpus_per_actor, show_progress=show_progress)
        return call.end()


async def aingest_with_ray(
    index: DualIndex, nodes: Corpus | Iterable[BaseNode], **settings: Any
) -> IndexReport:
    """Like ``ingest_with_ray``, without blocking the event loop."""
    return await in_thread(ingest_with_ray, index, nodes, **settings)


@dataclass
class _Call:
    """One call: sends parts to the workers, and collects their outcomes."""

    ray: Any
    index: DualIndex
    given: Corpus | Iterable[BaseNode]
    source: str | None
    strict: bool = field(kw_only=True)

    def __post_init__(self) -> None:
        given = self.given
        self.corpus = given if isinstance(given, Corpus) else Corpus(each_node(given))
        self.whole = isinstance(given, Corpus) or self.source is not None
        self.source = named_source(self.source, self.corpus.path)
        self.task = Task(
            _opening(self.ray, self.index),
            self.index.version,
            llama_index_gap.__version__,
            Path.cwd(),
        )
        self.node_ids, self.documents = KnownIds(), KnownIds()
        self.total = 0
        self.unsendable: list[Skipped] = []
        self.outcomes: dict[int, Outcome] = {}

    # --- sending ---------------------------------------------------------------------------------

    def feed(self, size: int, opened: ExitStack, *, show_progress: bool) -> list[Any]:
        """Put all nodes into the cluster's object store, part by part; returns the references."""
        import pyarrow

        references: list[Any] = []
        sign: str | None = None
        read = _ReadNodes(self.corpus)
        with Progress(desc="Reading", unit="node", disable=not show_progress) as bar:
            for number, cut in enumerate(cut_into_parts(read, size)):
                stop_if_given_up()
                nodes = [self._portable(node) for node in cut]
                self.index.note_images(nodes, self.corpus.root)
                if sign is None and any(map(_has_data, nodes)):
                    sign = opened.enter_context(self.index.sign_in_storage())
                documents = documents_of(nodes)
                places, skipped = read.known_of(documents)
                part = Part(
                    nodes,
                    root=self.corpus.root,
                    path=self.corpus.path,
                    source=self.source,
                    places=places,
                    skipped=skipped,
                    sign=sign,
                    whole=self.whole,
                    strict=self.strict,
                )
                self.node_ids.add(ids_of(nodes))
                self.documents.add(documents)
                table = pyarrow.table({"number": [number], "part": [self._packed(part)]})
                references.append(self.ray.put(table))
                self.total += len(nodes)
                bar.update(len(nodes))
        return references

    def _portable(self, node: BaseNode) -> BaseNode:
        """A node whose image can be found from another working folder and without our cache."""
        image = image_of(node)
        if image is None or image.image or not image.image_path:
            return node
        if is_made(image.image_path):  # a reader put it into a cache of this machine
            with suppress(ImageError):  # the worker will report it
                data = base64.b64encode(read_image(Path(image.image_path))).decode()
                return image.model_copy(update={"image": data, "image_path": None})
        return image.model_copy(update={"image_path": str(Path(image.image_path).absolute())})

    def _packed(self, part: Part) -> bytes:
        """A pickled part, without the nodes that cannot be pickled completely."""
        if why_not_sent_whole(part.nodes) is not None:
            part = replace(part, nodes=[node for node in part.nodes if self._arrives_whole(node)])
        return bytes(self.ray.cloudpickle.dumps(part))

    def _arrives_whole(self, node: BaseNode) -> bool:
        """Whether a node can be pickled completely; if not, it is skipped."""
        why = why_not_sent_whole(node)
        if why is None:
            return True
        reason = f"cannot be sent to another process ({why})"
        if why.startswith("RecursionError"):
            reason = "its metadata is nested too deep; flatten it"
        if self.strict:
            raise InvalidValueError(f"node {node.node_id}: {reason} (strict=True)")
        self.unsendable.append(Skipped(f"node {node.node_id}", reason))
        return False

    # --- collecting ------------------------------------------------------------------------------

    def run(
        self,
        references: Sequence[Any],
        actors: int | None,
        gpus: float | None,
        *,
        show_progress: bool,
    ) -> None:
        """Let the workers write all parts, and keep their outcomes."""
        ray = self.ray
        resources = ray.cluster_resources()
        if gpus is None:
            gpus = 1 if resources.get("GPU", 0) else 0
        most = int(resources.get("GPU", 0) / gpus) if gpus else int(resources.get("CPU", 1))
        actors = min(actors or max(most, 1), len(references))
        here = ray.get_runtime_context().get_node_id()
        beside = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        journal = ray.remote(Journal).options(num_cpus=0, scheduling_strategy=beside).remote()
        superseded, _ = self.node_ids.again()
        _, scattered = self.documents.again()
        offline = {name: os.environ[name] for name in _OFFLINE if name in os.environ}
        written = ray.data.from_arrow_refs(list(references)).map_batches(
            PartWriter,
            fn_constructor_args=(self.task, journal, superseded, scattered),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            num_cpus=1,
            num_gpus=gpus,
            runtime_env={"env_vars": offline} if offline else None,
        )
        try:
            with (
                Progress(
                    total=self.total, desc="Indexing", unit="node", disable=not show_progress
                ) as bar,
                closing(iter(written.iter_rows())) as rows,
            ):
                for row in rows:
                    stop_if_given_up()
                    outcome: Outcome = pickle.loads(row["outcome"])  # noqa: S301 - our workers'
                    self.outcomes[outcome.number] = outcome
                    if outcome.error is not None:
                        raise outcome.error
                    bar.update(outcome.nodes)
        except (EmbeddingError, ray.exceptions.RayError) as error:
            kind = EmbeddingError if isinstance(error, EmbeddingError) else ClusterError
            why = error if kind is EmbeddingError else f"the workers failed ({one_line(error)})"
            raise kind(
                f"{why}; before that: {self.report().summary()}. This stays; the same call or "
                "command continues from there"
            ) from error

    def report(self) -> IndexReport:
        """What all workers wrote and skipped, in the order of the parts."""
        total = IndexReport(skipped=[*self.unsendable])
        for _, outcome in sorted(self.outcomes.items()):
            for each in fields(IndexReport):
                value = getattr(total, each.name) + getattr(outcome.report, each.name)
                setattr(total, each.name, value)
        return total

    def end(self) -> IndexReport:
        """End the call, and count the documents that vanished from the corpus."""
        report = self.report()
        report.vanished = self.index.end_parts(
            self.corpus, self.source, lambda name: name in self.documents
        )
        return report


def _opening(ray: Any, index: DualIndex) -> bytes:
    """Pickle the arguments that open the index on a worker, with models as their settings.

    Raises:
        ValueError: a model cannot be rebuilt on another machine.
    """
    opening = index.opening()
    for argument in _MODELS:
        model: BaseEmbedding | None = opening[argument]
        key = type(model).model_fields.get("api_key") if model is not None else None
        if key is not None and key.exclude and getattr(model, "api_key", None) is not None:
            raise InvalidValueError(
                f"{argument}: its api_key is never sent or stored, so workers would have none; "
                "pass api_key_env= instead, and set that variable on all machines"
            )
    if reason := why_not_sent_whole([opening[argument] for argument in _MODELS]):
        raise InvalidValueError(
            f"{index.address}: its models cannot be sent to workers ({reason}); use models that "
            "can be pickled, such as DualEncoderEmbedding"
        )
    return bytes(ray.cloudpickle.dumps(opening))


class _ReadNodes:
    """The nodes of a corpus; keeps places and skipped items of documents until they are taken."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._places: dict[str, str] = {}
        self._skipped: dict[str, list[Skipped]] = {}

    def __iter__(self) -> Iterator[BaseNode]:
        for document in self._corpus.documents():
            if document.place and document.id not in self._places:
                self._places[document.id] = document.place
                self._skipped[document.id] = document.skipped
            yield from document.nodes

    def known_of(self, documents: Iterable[str]) -> tuple[dict[str, str], list[Skipped]]:
        """Take the places of documents, and what was skipped in them."""
        known = [each for each in documents if each in self._places]
        skipped = [skip for each in known for skip in self._skipped.pop(each)]
        return {each: self._places.pop(each) for each in known}, skipped


def _has_data(node: BaseNode) -> bool:
    """Whether a node contains its image, so that the index has to store it."""
    image = image_of(node)
    return image is not None and bool(image.image)
