"""Moves an index to another database, another name or another model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index_gap.errors import InvalidValueError, names_nearest
from llama_index_gap.index.copying import CopyReport, copy_index
from llama_index_gap.index.image_storage import storage_folder
from llama_index_gap.index.learning import LearningIndex
from llama_index_gap.index.reembedding import ReembedReport, reembed_index
from llama_index_gap.index.tenants import scope_of
from llama_index_gap.index.versions import IndexAddress
from llama_index_gap.threads import asynchronous


class MovingIndex(LearningIndex):
    """The part of ``DualIndex`` that moves it.

    Attributes:
        address: the address of the index.
    """

    address: IndexAddress

    @names_nearest
    def copy_to(
        self,
        uri: str | None = None,
        name: str | None = None,
        *,
        token: str | None = None,
        storage_dir: str | Path | None = None,
        index_config: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        show_progress: bool = False,
    ) -> CopyReport:
        """Copy the index to another database or another name, without embedding anything.

        The rows of the copy are bit-identical. Properties, learnt queries, the calibrator and
        stored images are copied too. Images in your own folders stay where they are. If a call was
        stopped, the same call completes the copy; until then, nothing opens it.

        Args:
            uri: a Milvus Lite file or a server; by default this database.
            name: the name of the copy; by default the name of this index.
            token: the credentials for a server; by default those of this index, if it is the same
                server.
            storage_dir: where the copy keeps images, as for the class.
            index_config: the vector index of the copy; by default that of this index, if its
                database reports it and the other one supports it.
            overwrite: delete an existing index at the target.
            show_progress: show a progress bar.

        Returns:
            What was copied, and what could not be copied and why.

        Raises:
            ValueError: the target is this index, or has another index.
            StoreError: a database cannot be read or written.
        """
        if uri is None and name is None:
            raise InvalidValueError("copy_to needs uri, name or both, to say where to put the copy")
        tenant = self.address.tenant
        named = scope_of(name, tenant) if name else self.address.name
        to = uri or self.address.uri
        if token is None and to == self.address.uri:
            token = self.address.token
        folder = storage_folder(to, named, storage_dir)
        target = IndexAddress(to, named, token, folder, self.address.timeout, tenant)
        return copy_index(
            self.address,
            target,
            overwrite=overwrite,
            index_config=index_config,
            show_progress=show_progress,
        )

    @names_nearest
    def reembed(
        self,
        embed_model: BaseEmbedding,
        image_embed_model: BaseEmbedding | None = None,
        *,
        image_query_embed_model: BaseEmbedding | None = None,
        index_config: Mapping[str, Any] | None = None,
        skip_unreadable: bool = False,
        show_progress: bool = False,
    ) -> ReembedReport:
        """Embed everything in the index again with other models, and use these from now on.

        Texts come from the stored rows, and images from their files. The new collections are built
        beside the old ones, and replace them at the end in one step: a search uses either all old
        vectors or all new ones. Retrievers that were made before, here or in other processes, then
        fail instead of mixing the two: make them again. If a call was stopped, the same call
        completes it. Learnt queries, a calibrator and an aligner belong to the old model; the
        report says which of them are lost. Insert nothing meanwhile.

        Args:
            embed_model: embeds texts; the same model with other ``dimensions``, or another
                ``aligner``, counts as another model.
            image_embed_model: embeds images, and text queries that search them; by default
                ``embed_model``.
            image_query_embed_model: embeds images a second time, for image queries; by default the
                model that the index has, whose vectors stay, or none.
            index_config: Milvus' vector index; HNSW by default.
            skip_unreadable: leave out rows that can no longer be read, such as missing images. By
                default such rows are an error, and the index does not change.
            show_progress: show a progress bar.

        Returns:
            What was embedded, what was skipped and why, and what is lost.

        Raises:
            ValueError: a model is unsuitable, or a row can no longer be read.
            StoreError: the database cannot be read or written.
        """
        report = reembed_index(
            self.address,
            embed_model,
            image_embed_model,
            image_query_embed_model=image_query_embed_model,
            image_root=self.image_folders(),
            index_config=index_config,
            skip_unreadable=skip_unreadable,
            show_progress=show_progress,
        )
        self.reopen(embed_model, image_embed_model, image_query_embed_model)
        return report

    @abstractmethod
    def image_folders(self) -> list[Path]:
        """The existing folders in which images of the index are opened."""

    @abstractmethod
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

    acopy_to = asynchronous(copy_to)
    areembed = asynchronous(reembed)
