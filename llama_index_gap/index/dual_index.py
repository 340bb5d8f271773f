"""DualIndex: texts and images in two Milvus collections of one database."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.node_parser import NodeParser
from llama_index.core.schema import BaseNode

from llama_index_gap.errors import InvalidValueError, names_nearest
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.backgrounds import Backgrounds
from llama_index_gap.index.comparing import file_of, named_source
from llama_index_gap.index.fitting import fit_nodes, parts_left, parts_of
from llama_index_gap.index.image_storage import ImageStorage, storage_folder
from llama_index_gap.index.indexed_images import (
    ImageRoot,
    IndexedImages,
    kept_images,
    named_folders,
)
from llama_index_gap.index.ledger import Ledger
from llama_index_gap.index.models import (
    CALIBRATOR_PROPERTY,
    MODELS_PROPERTY,
    Identities,
    asked_dimension,
    build_model,
    check_identities,
    embeds,
    identity_of,
    image_model,
    in_words,
    known_dimension,
    stored_identities,
)
from llama_index_gap.index.moving import MovingIndex
from llama_index_gap.index.parts import PartlyFilledIndex
from llama_index_gap.index.query_sample import SampleKeeper
from llama_index_gap.index.syncing import Plan, SyncReport, SyncSettings
from llama_index_gap.index.tenants import claim, scope_of
from llama_index_gap.index.versions import (
    IndexAddress,
    OpenVersion,
    check_name,
    collection_name,
)
from llama_index_gap.index.windows import how_many, windows
from llama_index_gap.index.writing import IndexReport, Writing, as_nodes
from llama_index_gap.modality import CollectionName
from llama_index_gap.nodes import as_ids
from llama_index_gap.readers.corpus import Corpus
from llama_index_gap.readers.splitting import chosen_splitter
from llama_index_gap.search.legs import SearchedCollection
from llama_index_gap.store.addresses import TIMEOUT_SECONDS, lite_path
from llama_index_gap.store.connection import StoreError
from llama_index_gap.store.milvus import MilvusStore
from llama_index_gap.threads import asynchronous

logger = logging.getLogger(__name__)

_COLLECTIONS: tuple[CollectionName, ...] = ("text", "image")


class DualIndex(PartlyFilledIndex, MovingIndex):
    """Texts and images of documents, each modality in its own Milvus collection.

    The text collection holds every node with a text, including captions of images. The image
    collection holds every image node, under the same id. Opened without models, an index builds the
    ones that it was made with; opened with other models, it raises an error.

    A dual encoder was never trained to bring two images of one thing together. An encoder of
    images alone, such as DINOv2, can therefore embed every image a second time, into a collection
    that image queries search instead of the image collection. An existing index can gain this
    collection: insert its images again, which embeds nothing else.

    Args:
        uri: a Milvus Lite file, or the URL of a Milvus server.
        name: the collections are ``{name}_text``, ``{name}_image`` and, with a model for image
            queries, ``{name}_image_query``.
        embed_model: embeds texts; may be left out for an existing index.
        image_embed_model: embeds images, and text queries that search them; by default
            ``embed_model``.
        image_query_embed_model: embeds images a second time, and image queries that search them;
            by default the model that the index has, or none.
        tenant: for an index that several tenants share, the tenant whose documents this object
            sees and changes; it never touches those of others. An index has tenants from the
            start, or never.
        token: the credentials for a server.
        storage_dir: where to keep images that come as base64; by default beside a Lite file, or in
            the user's data folder for a server.
        image_root: folders that must contain the images, after links are resolved, when they are
            inserted and whenever they are opened later. By default the folders of the images that
            this user inserted on this machine, so an index from elsewhere opens only the images in
            its storage. If a folder was moved, its images are found in the new place.
        index_config: Milvus' vector index; HNSW by default.
        search_config: the search parameters of the vector index.
        timeout: seconds that a server may take to answer a call.
        cache_folder: where to keep downloads of models that the index names.
        local_files_only: load models that the index names only from folders or the download cache.
        overwrite: start empty; with a tenant, the documents of other tenants stay.

    Raises:
        ValueError: a new index without a model, another model than the stored one, or settings
            that conflict.
        StoreError: the database cannot be opened.
    """

    @names_nearest
    def __init__(
        self,
        uri: str = "./gap.db",
        name: str = "gap",
        embed_model: BaseEmbedding | None = None,
        image_embed_model: BaseEmbedding | None = None,
        *,
        image_query_embed_model: BaseEmbedding | None = None,
        tenant: str | None = None,
        token: str | None = None,
        storage_dir: str | Path | None = None,
        image_root: ImageRoot | None = None,
        index_config: dict[str, Any] | None = None,
        search_config: dict[str, Any] | None = None,
        timeout: float = TIMEOUT_SECONDS,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        overwrite: bool = False,
    ) -> None:
        check_name(name)
        if embed_model is None and image_embed_model is not None:
            raise InvalidValueError("image_embed_model without embed_model: pass both, or neither")

        super().__init__()
        self.name, self.uri, self.tenant, scope = name, uri, tenant, scope_of(name, tenant)
        self._build = partial(
            build_model, cache_folder=cache_folder, local_files_only=local_files_only
        )
        storage = storage_folder(uri, scope, storage_dir)
        self._stores: dict[CollectionName, MilvusStore] = {}
        if embed_model is None:
            _check_is_there(uri)
        self.address = IndexAddress(uri, scope, token, storage, timeout, tenant)
        self._opened_with = {
            "tenant": tenant,
            "token": token,
            "storage_dir": storage_dir,
            "image_root": image_root,
            "search_config": search_config,
            "timeout": timeout,
            "cache_folder": cache_folder,
            "local_files_only": local_files_only,
        }
        versions = OpenVersion(self.address, overwrite=overwrite)
        self.version = versions.number

        def collection(each: str, dim: int | None, **settings: Any) -> MilvusStore:
            """Open a collection; without a dimension, one that exists."""
            return MilvusStore(
                uri=uri,
                collection_name=self.collection_name(each),
                dim=dim,
                token=token,
                search_config=search_config,
                timeout=timeout,
                **settings,
            )

        try:
            versions.check_tenancy(name, tenant, make=embed_model is not None)
            if embed_model is None:
                kept = None if overwrite else index_config
                self._stores["text"] = existing = collection("text", None, index_config=kept)
                embed_model, image_embed_model = self._built_models(existing.initial_properties)
                if overwrite:
                    self._stores.pop("text").close()
            if image_embed_model is not None and not embeds(image_embed_model, "text"):
                raise InvalidValueError(
                    f"{image_embed_model.model_name} embeds no texts, so a text query could not "
                    "search the images; pass it as image_query_embed_model"
                )
            self.embed_model: BaseEmbedding = embed_model
            self.image_embed_model: MultiModalEmbedding = image_model(
                image_embed_model or embed_model, "image_embed_model"
            )
            self.image_query_embed_model: MultiModalEmbedding | None = None
            both = image_embed_model is None or image_embed_model is embed_model
            identities: Identities = {
                "text": identity_of(embed_model),
                "image": None if both else identity_of(self.image_embed_model),
            }
            settings: dict[str, Any] = {"index_config": index_config, "overwrite": overwrite}
            self._open_collections(collection, identities, settings)
            self._open_image_queries(
                image_query_embed_model, collection, identities, index_config, overwrite
            )
            self._claim(identities)
            self._indexed = self._confined_images(image_root, storage)
            self._images = ImageStorage(storage, lambda: self._indexed.id, self._stored_images)
            if overwrite and storage_dir is None:  # only the overwritten index used this folder
                self._images.clear(all_owners=True)
            models = {each: self._model(each) for each in self._stores}
            self._queries = SampleKeeper(
                *(self.collection_name, self._of, self._stores, models),
                identities=identities,
                opens=collection,
                overwrite=overwrite,
            )
            versions.drop_overwritten()
        except BaseException:
            self.close()
            raise
        finally:
            versions.close()
        self.report = IndexReport()
        self._backgrounds = Backgrounds(self._stores, models, self._queries)

    @classmethod
    @names_nearest
    def from_documents(
        cls,
        documents: Corpus | Iterable[BaseNode],
        uri: str = "./gap.db",
        name: str = "gap",
        embed_model: BaseEmbedding | None = None,
        image_embed_model: BaseEmbedding | None = None,
        *,
        image_query_embed_model: BaseEmbedding | None = None,
        source: str | None = None,
        splitter: NodeParser | None = None,
        chunk_size: int | None = None,
        show_progress: bool = False,
        strict: bool = False,
        tenant: str | None = None,
        token: str | None = None,
        storage_dir: str | Path | None = None,
        image_root: ImageRoot | None = None,
        index_config: dict[str, Any] | None = None,
        search_config: dict[str, Any] | None = None,
        timeout: float = TIMEOUT_SECONDS,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        overwrite: bool = False,
    ) -> DualIndex:
        """Open an index and put documents into it; a second call embeds only what is missing.

        ``index.report`` then says what was written and what was skipped. ``documents`` are a
        corpus, LlamaIndex documents or nodes. ``splitter`` splits the texts of LlamaIndex
        documents, by default into ``chunk_size`` or 512 tokens, as LlamaIndex counts them. Give all
        nodes of a document: its stored nodes that are not given are deleted. A text that is still
        too long for the model is split into parts that fit, as by ``insert_nodes``. Documents that
        are not given stay; ``sync`` deletes those that are no longer in a corpus, and knows the
        corpus by ``source``, by default its path. ``show_progress`` shows progress bars; ``strict``
        raises at the first node that would be skipped. All other parameters are those of the class.
        """
        if isinstance(documents, Corpus) and not (splitter is None and chunk_size is None):
            raise InvalidValueError(
                "splitter= and chunk_size= are for LlamaIndex documents, and this corpus is "
                "already split; pass them to read_corpus"
            )
        index = cls(
            uri,
            name,
            embed_model,
            image_embed_model,
            image_query_embed_model=image_query_embed_model,
            tenant=tenant,
            token=token,
            storage_dir=storage_dir,
            image_root=image_root,
            index_config=index_config,
            search_config=search_config,
            timeout=timeout,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            overwrite=overwrite,
        )
        try:
            if not isinstance(documents, Corpus):
                documents = Corpus(as_nodes(documents, chosen_splitter(splitter, chunk_size)))
            settings = SyncSettings(vanished=False)
            index.report = index._bring_in(
                documents,
                source=source,
                settings=settings,
                show_progress=show_progress,
                strict=strict,
            ).written
        except BaseException:
            index.close()  # no caller gets it, and it would keep the file open
            raise
        index.report.skipped[:0] = documents.skipped
        logger.info("%s", index.report.summary())
        if skipped := index.report.skipped:
            logger.warning(
                "%d of the given texts and images were skipped; the first is %s: %s. "
                "index.report.skipped lists all",
                len(skipped),
                skipped[0].source,
                skipped[0].reason,
            )
        return index

    # --- writing ---------------------------------------------------------------------------------

    @names_nearest
    def insert_nodes(
        self,
        nodes: Iterable[BaseNode],
        *,
        splitter: NodeParser | None = None,
        show_progress: bool = False,
        strict: bool = False,
    ) -> IndexReport:
        """Put nodes into the index, except those that are already stored exactly as given.

        A node replaces a stored one with the same id. If it has lost its text or its image, the row
        of that modality is deleted. If a text, with the title and metadata that are embedded with
        it, is too long for the model, it is split into parts that fit. The first part keeps the
        node's id; the others are called ``ID#part-2`` and so on, and are deleted with the node.

        Args:
            nodes: text nodes, image nodes and LlamaIndex documents, from any iterable, such as a
                generator; never changed. About 2,000 are in memory at a time, and written before
                more are taken.
            splitter: splits the texts of LlamaIndex documents, as in ``from_documents``; by default
                into 512 tokens.
            show_progress: show a progress bar.
            strict: raise at the first node that would be skipped.

        Returns:
            What was written, and what was skipped and why.
        """
        writing = self._writing(None, strict=strict)
        ledger, texts = writing.ledger, self._stores["text"]
        running = writing.running(how_many(nodes), show_progress=show_progress, doing="Indexing")
        with closing(ledger):
            with running:
                for window in windows(as_nodes(nodes, splitter)):
                    fitted = fit_nodes(window, self.embed_model)
                    writing.report.note_cuts(fitted)
                    if "text" not in ledger.complete:  # otherwise no stale parts are stored
                        stale = parts_left(window, fitted, texts.existing_ids)
                        if stale := stale - ledger.given_among(stale):
                            self.delete_nodes(stale)
                    writing.write(fitted.nodes)
            writing.delete(show_progress=show_progress)
            writing.finish()
        return writing.report

    def insert(self, document: BaseNode) -> IndexReport:
        """Put one LlamaIndex document or node into the index, as ``insert_nodes`` does."""
        return self.insert_nodes([document])

    def _writing(self, root: Path | None, **settings: Any) -> Writing:
        """A call that inserts nodes, all of whose images were read below a root."""
        models = {name: self._model(name) for name in self._stores}
        note = partial(self._indexed.note, root=root)
        confine = self._indexed.folders if self._indexed.named is not None else None
        return Writing(self._stores, models, self._images, note=note, confine=confine, **settings)

    def _bring_in(
        self,
        corpus: Corpus,
        *,
        source: str | None,
        settings: SyncSettings,
        show_progress: bool,
        strict: bool,
    ) -> SyncReport:
        """Write whole documents, and delete what the settings allow; see ``sync``.

        Args:
            corpus: the documents.
            source: the name of the corpus; by default its path. Without either, vanished documents
                are not looked for.
            settings: what may be deleted.
            show_progress: as for ``sync``.
            strict: as for ``sync``.
        """
        named = named_source(source, corpus.path)
        writing = self._writing(corpus.root, strict=strict, whole=True, source=named)
        with closing(writing.ledger) as ledger:
            if named is not None or settings.whole_index:
                writing.read_stored(None if settings.whole_index else named)
            self._take_in(corpus, writing, settings, show_progress)
            if settings.vanished and not ledger.given_any():
                raise InvalidValueError(
                    "sync with an empty corpus would empty the index; if you want that, call "
                    "clear(), or delete_ref_doc() for each document"
                )
            plan = Plan(self._stores, writing, corpus, named, settings)
            gone = plan.deletes()
            if not settings.dry_run:
                waiting = ledger.how_many_wait()
                with writing.running(waiting, show_progress=show_progress, doing="Indexing"):
                    for window in ledger.waiting():
                        writing.write(window, looked_at=True)
                writing.delete(gone, show_progress=show_progress)
                writing.finish()
        for note in [] if settings.vanished else plan.report.notes:  # sync returns them
            logger.warning("%s: %s", self._of, note)
        return plan.report

    def _take_in(
        self, corpus: Corpus, writing: Writing, settings: SyncSettings, show_progress: bool
    ) -> None:
        """Write a corpus; if documents may be deleted, only compare it, and put new nodes aside.

        So nothing is written if too many documents would be deleted.
        """
        looks = settings.vanished
        doing = "Comparing" if looks else "Indexing"
        with writing.running(how_many(corpus), show_progress=show_progress, doing=doing):
            for window in windows(_noted(corpus, writing.ledger)):
                fitted = fit_nodes(window, self.embed_model)
                writing.report.note_cuts(fitted)
                if not looks:
                    writing.write(fitted.nodes)
                    continue
                compared = writing.look(fitted.nodes)
                if not settings.dry_run:
                    writing.put_aside(fitted.nodes, compared)

    upsert_nodes = insert_nodes

    def delete_nodes(self, node_ids: Iterable[str]) -> None:
        """Delete nodes from all collections; unknown ids are ignored."""
        given = set(as_ids(node_ids, "node_ids"))
        ids = sorted({*given, *parts_of(given, self._stores["text"].existing_ids)})
        if ids:
            with self._images.deleting(ids):
                for store in self._stores.values():
                    store.delete_nodes(node_ids=ids)
        else:  # a killed deletion may have left images without rows
            self._images.tidy()

    def delete_ref_doc(self, ref_doc_id: str) -> None:
        """Delete all nodes of a document."""
        self.delete_nodes(sorted(self._ids_of([ref_doc_id])))

    @names_nearest
    def refresh_ref_docs(
        self,
        nodes: Corpus | Iterable[BaseNode],
        *,
        source: str | None = None,
        splitter: NodeParser | None = None,
        show_progress: bool = False,
        strict: bool = False,
    ) -> IndexReport:
        """Bring documents up to date: write new and changed nodes, then delete lost ones.

        Args:
            nodes: a corpus, LlamaIndex documents, or all nodes of some documents, from any
                iterable; taken lazily, as by ``insert_nodes``.
            source: the name of their corpus, for ``sync``; by default its path.
            splitter: splits the texts of LlamaIndex documents, as in ``from_documents``; by default
                into 512 tokens.
            show_progress: show progress bars.
            strict: raise at the first node that would be skipped.

        Returns:
            What was written and deleted, and what was skipped and why.
        """
        corpus = nodes if isinstance(nodes, Corpus) else Corpus(as_nodes(nodes, splitter))
        return self._bring_in(
            corpus,
            source=source,
            settings=SyncSettings(vanished=False),
            show_progress=show_progress,
            strict=strict,
        ).written

    def clear(self) -> None:
        """Delete everything, including learnt queries; the index can be filled again."""
        for store in self._stores.values():
            store.clear()
        self._queries.drop()
        self._images.clear()

    def allow_images(self, *folders: str | Path) -> None:
        """Also open images below these folders, for as long as this object lives.

        Args:
            *folders: folders that the user trusts, as in ``image_root``.

        Raises:
            ValueError: a folder does not exist.
        """
        self._indexed.folders.allow(named_folders(folders))

    # --- reading ---------------------------------------------------------------------------------

    def get_nodes(self, node_ids: Iterable[str]) -> list[BaseNode]:
        """The nodes with these ids, in this order; unknown ids are left out."""
        ids = as_ids(node_ids, "node_ids")
        found: dict[str, BaseNode] = {}
        for store in self._stores.values():  # each returns an image node as an image node
            found |= {node.node_id: node for node in store.get_nodes(ids)}
        return [found[node_id] for node_id in ids if node_id in found]

    def count(self) -> dict[CollectionName, int]:
        """The number of rows in each collection."""
        return {name: store.count() for name, store in self._stores.items()}

    def models(self) -> str:
        """The models of the vectors, in words: the ``source`` of a calibrator for this index."""
        return in_words(stored_identities(self._stores["text"].properties(), self._of))

    def calibrator(self) -> RelevanceCalibrator | None:
        """Read the calibrator that any process saved last; None if there is none."""
        stored = self._stores["text"].properties().get(CALIBRATOR_PROPERTY)
        if stored is None:
            return None
        try:
            return RelevanceCalibrator.from_dict(json.loads(stored))
        except (ValueError, RecursionError) as error:
            raise StoreError(
                f"{self._of}: its calibrator is damaged ({error}); save another one"
            ) from error

    def save_calibrator(self, calibrator: RelevanceCalibrator) -> None:
        """Store a calibrator in the index, in place of the former one.

        ``as_retriever(min_probability=…)`` then uses it.

        Args:
            calibrator: fitted with ``source=index.models()``.

        Raises:
            ValueError: it was fitted for other models, or is larger than Milvus keeps.
        """
        calibrator.check_source(self.models())
        content = json.dumps(calibrator.to_dict(), separators=(",", ":"))
        self._stores["text"].set_properties({CALIBRATOR_PROPERTY: content})
        logger.info("saved a calibrator with %s: %s", self.name, calibrator.summary())

    def collections(self) -> dict[CollectionName, SearchedCollection]:
        """The collections, as a retriever searches them."""
        if "image_query" in self._stores:
            rows = {name: store.count(strong=False) for name, store in self._stores.items()}
            if rows["image_query"] < rows["image"]:
                logger.warning(
                    "%s: image queries find only %d of %d images; insert the images again, which "
                    "embeds only the missing ones",
                    self.name,
                    rows["image_query"],
                    rows["image"],
                )
        return {
            name: SearchedCollection(
                store,
                self._model(name),
                background=partial(self._backgrounds.of, name),
            )
            for name, store in self._stores.items()
        }

    @property
    def _of(self) -> str:
        return str(self.address)

    def image_folders(self) -> list[Path]:
        """The existing folders in which images of the index are opened."""
        return [folder for folder in self._indexed.folders.allowed if folder.is_dir()]

    def reopen(
        self,
        embed_model: BaseEmbedding,
        image_embed_model: BaseEmbedding | None,
        image_query_embed_model: BaseEmbedding | None,
    ) -> None:
        """Replace the open version of the index by its newest one.

        Args:
            embed_model: as for the class.
            image_embed_model: as for the class.
            image_query_embed_model: as for the class.
        """
        before = self._stores
        self.__init__(  # type: ignore[misc]
            *(self.uri, self.name, embed_model, image_embed_model),
            image_query_embed_model=image_query_embed_model or self.image_query_embed_model,
            **self._opened_with,
        )
        for store in before.values():
            store.close()

    def close(self) -> None:
        """Close the database."""
        with ExitStack() as stores:
            for store in self._stores.values():
                stores.callback(store.close)

    def __enter__(self) -> DualIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- asynchronous forms ----------------------------------------------------------------------

    ainsert = asynchronous(insert)
    ainsert_nodes = asynchronous(insert_nodes)
    aupsert_nodes = asynchronous(upsert_nodes)
    adelete_nodes = asynchronous(delete_nodes)
    adelete_ref_doc = asynchronous(delete_ref_doc)
    arefresh_ref_docs = asynchronous(refresh_ref_docs)
    aget_nodes = asynchronous(get_nodes)
    asave_calibrator = asynchronous(save_calibrator)
    acount = asynchronous(count)
    aclear = asynchronous(clear)

    # --- collections and their models ------------------------------------------------------------

    def collection_name(self, part: str) -> str:
        """The name of a collection in this version of the index."""
        return collection_name(self.address.name, part, self.version)

    def _model(self, name: CollectionName) -> BaseEmbedding:
        if name == "image_query" and self.image_query_embed_model is not None:
            return self.image_query_embed_model
        return self.embed_model if name == "text" else self.image_embed_model

    def _confined_images(self, image_root: ImageRoot | None, storage: Path) -> IndexedImages:
        """Make every node from a store open its image only in the allowed folders."""
        where = (self.uri, self.address.name, image_root, storage)
        indexed = IndexedImages(self._stores["image"], *where)
        for store in self._stores.values():
            store.confine_images(indexed.folders)
        return indexed

    def _stored_images(self, node_ids: Sequence[str]) -> dict[str, set[str]]:
        """The names of the stored images that nodes use, by node id."""
        stores = [self._stores[each] for each in _COLLECTIONS]
        return kept_images(stores, self._indexed.folders, node_ids)

    def _ids_of(self, ref_doc_ids: Sequence[str]) -> set[str]:
        return {
            node_id
            for store in self._stores.values()
            for node_id in store.ids_of_documents(ref_doc_ids)
        }

    def _built_models(
        self, properties: dict[str, str]
    ) -> tuple[BaseEmbedding, BaseEmbedding | None]:
        """The models for texts and for images that an index was made with."""
        stored = stored_identities(properties, self._of)
        if not stored:
            raise InvalidValueError(
                f"{self.uri} does not name the model that {self.name} was made with; pass "
                "embed_model"
            )
        image = stored["image"]
        return (
            self._build(stored["text"], self._of, "embed_model"),
            self._build(image, self._of, "image_embed_model") if image else None,
        )

    def _open_collections(
        self,
        collection: Callable[..., MilvusStore],
        identities: Identities,
        settings: dict[str, Any],
    ) -> None:
        """Open the text and image collections; if the wrong model prevents that, say so."""
        for each in _COLLECTIONS:
            model = self._model(each)
            if each in self._stores:
                self._stores[each].check_dim(known_dimension(model))
                continue
            try:
                self._stores[each] = _opened(partial(collection, each), model, **settings)
            except InvalidValueError:
                if not settings["overwrite"]:
                    self._blame_models(partial(collection, each, None), identities)
                raise

    def _open_image_queries(
        self,
        model: BaseEmbedding | None,
        collection: Callable[..., MilvusStore],
        identities: Identities,
        index_config: dict[str, Any] | None,
        overwrite: bool,
    ) -> None:
        """Open the collection for image queries and note its model, if one is given or stored."""
        properties = self._stores["text"].initial_properties
        stored = stored_identities(properties, self._of)
        built = stored.get("image_query")
        argument = "image_query_embed_model"
        if model is None and built is not None:
            model = self._build(built, self._of, argument)
        if model is None:
            if overwrite:
                with suppress(InvalidValueError):  # no such collection
                    collection("image_query", None).drop()
            return
        self.image_query_embed_model = model = image_model(model, argument)
        identities["image_query"] = identity_of(model)
        check_identities(stored, identities, self.uri, self.name)
        opens = partial(collection, "image_query")
        self._stores["image_query"] = _opened(
            opens, model, index_config=index_config, overwrite=overwrite
        )

    def _claim(self, identities: Identities) -> None:
        """Record the models of a new index; for an existing one, reject other models."""
        for store in self._stores.values():
            stored = self._compare(store.initial_properties, identities)
            if not identities.keys() <= stored.keys():
                models = json.dumps(identities | stored, sort_keys=True)
                store.set_properties({MODELS_PROPERTY: models})
        claim(self._stores["text"], self.tenant)

    def _compare(self, properties: dict[str, str], identities: Identities) -> Identities:
        """The models that a collection records, which must be the given ones."""
        stored = stored_identities(properties, self._of)
        check_identities(stored, identities, self.uri, self.name)
        return stored

    def _blame_models(self, reopen: Callable[[], MilvusStore], identities: Identities) -> None:
        """Raise an error if a collection that could not be opened was made with other models."""
        try:
            store = reopen()
        except InvalidValueError:
            return
        with store:
            self._compare(store.initial_properties, identities)


def _noted(corpus: Corpus, ledger: Ledger) -> Iterator[BaseNode]:
    """Yield the nodes of a corpus, and note the places of its documents."""
    for document in corpus.documents():
        if document.place:
            ledger.place(document.id, file_of(document.place))
        yield from document.nodes


def _opened(
    opens: Callable[..., MilvusStore],
    model: BaseEmbedding,
    *,
    index_config: dict[str, Any] | None,
    overwrite: bool,
) -> MilvusStore:
    """Open a collection for a model, if possible without a paid call for its dimension."""
    dim = known_dimension(model)
    if dim is None and not overwrite:
        with suppress(InvalidValueError):  # no such collection yet
            return opens(None, index_config=index_config)
    return opens(dim or asked_dimension(model), index_config=index_config, overwrite=overwrite)


def _check_is_there(uri: str) -> None:
    """Reject a missing Lite file, which Milvus Lite would otherwise create."""
    path = lite_path(uri)
    if path is not None and not Path(path).exists():
        raise InvalidValueError(f"{uri}: no such database; pass embed_model to create it")
