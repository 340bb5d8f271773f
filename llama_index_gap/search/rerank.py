"""MultiModalRerank: a cross-encoder that reads the texts and images of documents."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    field_serializer,
    field_validator,
)
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from scipy.special import expit

from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.images.opening import (
    ImageError,
    ImageSource,
    describe,
    has_image,
    open_image,
    read_image,
)
from llama_index_gap.modality import MODALITIES, PLURAL, Leg
from llama_index_gap.model_settings import Folder, LoadingSettings, PathText
from llama_index_gap.models import Joint, LazyImage, ModelError, PairScorer, load_scorer
from llama_index_gap.models.base import Item
from llama_index_gap.nodes import GroupBy, by_document
from llama_index_gap.progress import Progress
from llama_index_gap.search.candidates import Hits, found_by, texts_of, with_new_score
from llama_index_gap.search.first_stage import (
    FirstStage,
    added_log_odds,
    check_first_stage,
    first_stage_adds,
)
from llama_index_gap.search.tracing import in_span
from llama_index_gap.text import is_blank
from llama_index_gap.threads import DECODING_THREADS, in_thread, read_ahead, stop_if_given_up

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)
dispatcher = get_dispatcher(__name__)

ScoreMode: TypeAlias = Literal["mean", "max", "text", "image", "by_modality", "joint"]

_ON_DISK = ("vision_folder", "vision_disk_bytes")  # settings that only some models have
# What is scored: its modality (or "joint"), and its content.
_Key: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class _Query:
    modality: str
    prepared: Any


class MultiModalRerank(LoadingSettings, BaseNodePostprocessor):
    """Reranks documents by a model that reads the query and each document together.

    The model reads each modality of a document separately. Its text is its passages, as they were
    embedded (``MetadataMode.EMBED``); without passages, the captions of its images. The best
    passage and the best image count. If the query is a text and an image, each is scored, and the
    mean of the two scores counts; ``"joint"`` reads both in one pass. An image that cannot be read
    is left out.

    It returns each node of the documents once, as ``ScoredNode``, a document's texts before its
    images. ``score`` is the document's new score. ``scores`` keeps its former entries, and gains
    the former score as ``retrieval``, and ``rerank_text``, ``rerank_image`` or ``rerank_joint``.
    With ``first_stage``, the log odds of the model's score and of the first stage are added:
    ``score`` is the probability of the sum, and ``rerank_first_stage`` is the first stage's part of
    it. A document that cannot be scored has the score None and comes after the others; such
    documents keep their order, and ``similarity_cutoff`` leaves them out. ``partial`` describes
    this ranking only.

    It works after any retriever. Nodes are never changed. Documents with equal scores keep their
    order. LlamaIndex's instrumentation shows a span for each scored modality, such as
    ``score_text``, and one for ``first_stage``.

    Raises:
        ModelError: the model cannot be found or loaded; or, when reranking, gives scores that are
            NaN or infinite.
        ValueError: a setting does not fit the model or this machine; or, when reranking, the query
            is missing or has a modality that the model cannot read, or the first stage's scores are
            NaN, infinite, or on another scale than those that ``first_stage`` was learnt on.
        ImageError: when reranking, the query's image cannot be opened.
    """

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, arbitrary_types_allowed=True
    )

    model: PathText | PairScorer = Field(
        frozen=True,
        default="jina-m0",
        description="Preset, hub name or folder of the model; or a loaded scorer, which cannot be "
        "serialised.",
    )
    top_n: int | None = Field(
        default=5, gt=0, description="Documents to return; None for all of them."
    )
    score_mode: ScoreMode = Field(
        frozen=True,
        default="mean",
        description="What a document's score is: the 'mean' or the 'max' of the scores of its text "
        "and its image; only its 'text' or only its 'image'; 'by_modality', the modality that "
        "found it (for an image node of another retriever the image, else the text); 'joint', its "
        "first text and first image read together, if the model can. A document without that "
        "modality gets the score of the other one.",
    )
    group_by: GroupBy = Field(
        default="document",
        description="'document' ranks the nodes of a document together, 'node' ranks each node.",
    )
    similarity_cutoff: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="Leave out documents with a lower score: on the model's scale, or a "
        "probability if there is a calibrator.",
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Start no further batch after this many seconds. Documents that were not "
        "reached follow in their former order, and all nodes have partial=True.",
    )
    batch_size: int = Field(
        default=8,
        gt=0,
        description="Maximum texts or images to score at once. The time limit is checked after "
        "each batch.",
    )
    calibrator: RelevanceCalibrator | None = Field(
        frozen=True,
        default=None,
        description="Turns each modality's score into a probability before they are combined; "
        "fitted on rerank_text and rerank_image of this model, with its model_name as the source.",
    )
    first_stage: float | FirstStage | None = Field(
        frozen=True,
        default=None,
        description="What the first stage counts: a weight for its log odds, which are added to "
        "the reranker's; or what learn_first_stage has learnt. None ranks by the reranker alone.",
    )
    image_root: Folder | None = Field(
        default=None, description="Folder that must hold the image files; by default, any folder."
    )
    allow_urls: bool = Field(default=False, description="Fetch images from http(s) URLs.")
    show_progress: bool = Field(default=False, description="Show a progress bar.")
    scale_to_pixels: int | None = Field(
        frozen=True,
        default=None,
        gt=0,
        description="Scale images down to this many pixels, for speed; by default the model's "
        "own limit.",
    )

    vision_folder: PathText | None = Field(
        frozen=True,
        default=None,
        description="Folder that caches image vectors on disk, so that no later query encodes them "
        "again. By default, late-interaction models use the user's cache folder, and other models "
        "have no disk cache.",
    )
    vision_disk_bytes: int | None = Field(
        frozen=True,
        default=None,
        ge=0,
        description="Maximum size of that cache, 2 GiB by default; 0 turns it off.",
    )

    _scorer: PairScorer = PrivateAttr()

    @classmethod
    def class_name(cls) -> str:
        """The name that LlamaIndex stores with the settings."""
        return "MultiModalRerank"

    @property
    def model_name(self) -> str:
        """The model's name, also if ``model`` is a preset or an object."""
        return self._scorer.name

    @property
    def gives_probabilities(self) -> bool:
        """Whether scores are probabilities: the model's own, or a calibrator's."""
        scaled = self._scorer.to_probability(np.zeros(1, dtype=np.float32))
        return scaled is not None or self.calibrator is not None

    def model_post_init(self, context: Any, /) -> None:
        """Load the model and check the settings against it."""
        super().model_post_init(context)
        if isinstance(self.model, PairScorer):
            fields = type(self).model_fields
            if given := [
                name
                for name in (*LoadingSettings.model_fields, "scale_to_pixels", *_ON_DISK)
                if getattr(self, name) != fields[name].default
            ]:
                raise InvalidValueError(
                    f"{', '.join(given)}: {self.model.name} is already loaded; set this when you "
                    "load it, or pass the model's name instead"
                )
            self._scorer = self.model
        else:
            on_disk = {name: getattr(self, name) for name in _ON_DISK}
            self._scorer = load_scorer(
                self.model,
                self.loading,
                scale_to_pixels=self.scale_to_pixels,
                **{name: value for name, value in on_disk.items() if value is not None},
            )
        self._check_mode()
        self._check_calibrator()
        self._check_first_stage()

    def _check_mode(self) -> None:
        mode, scorer = self.score_mode, self._scorer
        if mode == "joint" and not scorer.joint:
            raise InvalidValueError(
                f"score_mode='joint': {scorer.name} cannot read a text and an image together; "
                "choose another score_mode, such as 'mean', or another model"
            )
        for modality in MODALITIES:
            if modality in scorer.document_modalities:
                continue
            if mode == modality:
                raise InvalidValueError(
                    f"score_mode={mode!r}: {scorer.name} reads no {PLURAL[modality]} of documents; "
                    "choose another score_mode, or a model that reads them"
                )
            if mode not in MODALITIES:
                logger.warning(
                    "%s reads no %s of documents: it ranks documents without them",
                    scorer.name,
                    PLURAL[modality],
                )

    def _check_calibrator(self) -> None:
        if self.calibrator is None:
            return
        if self.score_mode == "joint":
            raise InvalidValueError(
                "score_mode='joint': a calibrator knows texts and images, but not the two "
                "together; leave it out, or choose another score_mode"
            )
        self.calibrator.check_source(self.model_name)
        needed = [
            sorted(Leg(query, target).pair for target in self._scorer.document_modalities)
            for query in sorted(self._scorer.modalities)
        ]
        self.calibrator.check_pairs(needed)

    @field_validator("first_stage", mode="before")
    @classmethod
    def _check_weight(cls, given: object) -> object:
        return given if given is None or isinstance(given, dict) else check_first_stage(given)

    def _check_first_stage(self) -> None:
        if self.first_stage is None:
            return
        if isinstance(self.first_stage, FirstStage):
            self.first_stage.check_source(self.model_name)
        if not self.gives_probabilities:
            raise InvalidValueError(
                f"first_stage: the scores of {self.model_name} are no probabilities, and so have "
                "no log odds; pass a calibrator too, or leave first_stage out"
            )

    @field_serializer("model")
    def _name_of_model(self, model: str | PairScorer) -> str:
        if isinstance(model, PairScorer):
            raise InvalidValueError(
                f"the scorer {model.name} is an object and cannot be serialised; pass the model's "
                "name or folder to MultiModalRerank instead"
            )
        return model

    def __getstate__(self) -> dict[str, Any]:
        self._name_of_model(self.model)
        return super().__getstate__()

    # --- as LlamaIndex calls it ------------------------------------------------------------------

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await in_thread(self._postprocess_nodes, nodes, query_bundle)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidValueError("the query is missing: pass query_bundle or query_str")
        if not nodes:
            return []
        documents = by_document(nodes, self.group_by)
        top_n, name = self.top_n or len(documents), self.model_name
        dispatcher.event(
            ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=name)
        )
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            ranked = self._ranked(query_bundle, documents)[:top_n]
            returned: list[NodeWithScore] = [node for document in ranked for node in document]
            event.on_end(payload={EventPayload.NODES: returned})
        dispatcher.event(ReRankEndEvent(nodes=returned))
        return returned

    # --- the ranking -----------------------------------------------------------------------------

    def _ranked(self, query: QueryBundle, documents: Sequence[Hits]) -> list[list[NodeWithScore]]:
        deadline = time.monotonic() + (self.max_seconds or math.inf)
        found = self._score(self._queries(query), documents, deadline)
        unreached = len(documents) - len(found)
        found += [{}] * unreached
        combine = max if self.score_mode == "max" else fmean
        scores = [combine(each.values()) if each else -math.inf for each in found]
        ranked_by = scores
        if self.first_stage is not None:
            added = in_span(
                self, "first_stage", partial(first_stage_adds, self.first_stage, documents)
            )
            known = [score if each else None for score, each in zip(scores, found, strict=True)]
            ranked_by = added_log_odds(known, added).tolist()
            scores = [float(expit(each)) if each > -math.inf else each for each in ranked_by]
            for of_document, value in zip(found, added.tolist(), strict=True):
                if of_document:
                    of_document["first_stage"] = value
        order = sorted(range(len(documents)), key=lambda i: -ranked_by[i])  # stable
        if self.similarity_cutoff is not None:
            order = [i for i in order if scores[i] >= self.similarity_cutoff]
            logger.info(
                "similarity_cutoff=%s keeps %d of %d documents",
                self.similarity_cutoff,
                len(order),
                len(documents),
            )
        return [
            with_new_score(
                documents[i], scores[i] if found[i] else None, found[i], partial=unreached > 0
            )
            for i in order
        ]

    def _score(
        self, queries: Sequence[_Query], documents: Sequence[Hits], deadline: float
    ) -> list[dict[str, float]]:
        """The scores of each document that was reached in time, by modality."""
        reached: list[list[_Key]] = []
        unreadable: list[str] = []
        scores: dict[_Key, float] = {}
        waiting: dict[_Key, Any] = {}
        total = len(documents)
        with (
            Progress(
                total=total, desc="Reranking", unit="document", disable=not self.show_progress
            ) as progress,
            ThreadPoolExecutor(DECODING_THREADS, "decode") as pool,
            closing(read_ahead(pool, self._read, documents, self.batch_size + 1)) as read,
        ):
            for prepared, bad in read:
                reached.append(list(prepared))
                unreadable += bad
                waiting |= {key: item for key, item in prepared.items() if key not in scores}
                if len(waiting) < self.batch_size and len(reached) < total:
                    continue
                scores |= self._score_waiting(queries, waiting)
                waiting = {}
                progress.update(len(reached) - progress.n)
                if time.monotonic() >= deadline:
                    break
        self._report(reached, total, unreadable)
        found: list[dict[str, float]] = [{} for _ in reached]
        for of_document, keys in zip(found, reached, strict=True):
            for key in keys:
                of_document[key[0]] = max(scores[key], of_document.get(key[0], -math.inf))
        return found

    def _score_waiting(
        self, queries: Sequence[_Query], waiting: Mapping[_Key, Any]
    ) -> dict[_Key, float]:
        """Score the prepared items, one modality after the other; take the mean over queries."""
        scores: dict[_Key, float] = {}
        for modality in dict.fromkeys(key[0] for key in waiting):
            keys = [key for key in waiting if key[0] == modality]

            def score(modality: str = modality, keys: Sequence[_Key] = keys) -> None:
                for start in range(0, len(keys), self.batch_size):
                    batch = keys[start : start + self.batch_size]
                    items = [waiting[key] for key in batch]
                    passes = [self._pass(query, modality, items) for query in queries]
                    values: list[float] = np.mean(passes, axis=0).tolist()
                    scores.update(zip(batch, values, strict=True))

            in_span(self, f"score_{modality}", score)
        return scores

    def _pass(
        self, query: _Query, modality: str, items: Sequence[Any]
    ) -> npt.NDArray[np.floating[Any]]:
        stop_if_given_up()
        scores = self._scorer.score_prepared(query.prepared, items)
        broken = np.count_nonzero(~np.isfinite(scores))
        if broken:
            raise ModelError(
                f"{self.model_name}: {broken} of {len(scores)} scores are NaN or infinite; its "
                "weights may be damaged, or its dtype may be too narrow: try dtype='float32'"
            )
        probabilities = self._scorer.to_probability(scores)
        scores = scores if probabilities is None else probabilities
        if self.calibrator is None:
            return scores
        return self.calibrator.probability(f"{query.modality}_to_{modality}", scores)

    def _report(
        self, reached: Sequence[Sequence[_Key]], total: int, unreadable: Sequence[str]
    ) -> None:
        """Log, once each, which images and documents could not be scored."""
        rest = "come last" if self.similarity_cutoff is None else "are left out"
        if unreadable:
            logger.warning(
                "images that cannot be read and are ignored: %d; the first: %s",
                len(unreadable),
                unreadable[0],
            )
        if len(reached) < total:
            logger.warning(
                "max_seconds=%g: %d of %d documents were scored; the others %s",
                self.max_seconds,
                len(reached),
                total,
                rest,
            )
        empty = sum(not keys for keys in reached)
        if empty:
            logger.warning(
                "%d of %d documents have nothing that %s can read; they %s",
                empty,
                total,
                self.model_name,
                rest,
            )

    # --- reading queries and documents -----------------------------------------------------------

    def _queries(self, bundle: QueryBundle) -> list[_Query]:
        text, image = bundle.query_str, None
        items: dict[str, Item] = {}
        if not is_blank(text):
            items["text"] = text
        if bundle.image_path is not None:
            items["image"] = image = self._lazy_image(bundle.image_path)
        if not items:
            raise InvalidValueError("the query is empty: pass a text, an image_path, or both")
        for modality in items:
            if modality not in self._scorer.modalities:
                raise InvalidValueError(
                    f"the query has a modality ({modality}) that {self.model_name} cannot read; "
                    "leave it out, or choose a model that can"
                )
        if self.score_mode == "joint" and image is not None and "text" in items:
            items = {"joint": Joint(text, image)}
        return [_Query(modality, self._scorer.prepare(item)) for modality, item in items.items()]

    def _read(self, hits: Hits) -> tuple[dict[_Key, Any], list[str]]:
        """What is scored of a document, prepared; and why images of it cannot be read."""
        prepared: dict[_Key, Any] = {}
        unreadable: list[str] = []
        texts, images = texts_of(hits), [hit.node for hit in hits if has_image(hit.node)]

        def add_image(node: BaseNode, text: str | None = None) -> None:
            try:
                image = self._lazy_image(node)
                key = ("image", image.key) if text is None else ("joint", text, image.key)
                item = image if text is None else Joint(text, image)
                prepared[key] = self._scorer.prepare(item)
            except ImageError as error:
                unreadable.append(str(error))
            except EXPECTED_ERRORS as error:  # the model refuses the image's shape
                unreadable.append(f"{describe(node)}: {error}")

        if self.score_mode == "joint" and texts:
            for node in images:
                add_image(node, texts[0])
                if prepared:
                    return prepared, unreadable
        # First the modality that a document is to be judged by, then the other.
        first = found_by(hits) if self.score_mode == "by_modality" else self.score_mode
        for modality in sorted(MODALITIES, key=lambda each: each != first):
            if modality not in self._scorer.document_modalities:
                continue
            if modality == "text":
                prepared |= {("text", text): self._scorer.prepare(text) for text in texts}
            else:
                for node in images:
                    add_image(node)
            if prepared and self.score_mode not in {"mean", "max"}:
                break
        return prepared, unreadable

    def _lazy_image(self, source: ImageSource) -> LazyImage:
        data = read_image(source, root=self.image_root, allow_urls=self.allow_urls)
        return LazyImage(hashlib.sha256(data).hexdigest(), partial(_decode, data, describe(source)))


def _decode(data: bytes, name: str) -> Image:
    try:
        return open_image(data)
    except ImageError as error:  # it does not know the image's name
        raise ImageError(name, error.reason) from error
