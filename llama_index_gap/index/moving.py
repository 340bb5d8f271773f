"""The part of an index that moves it: to another database, to another name, to another model."""

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
        address: where the index is.
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
        """Copy the index to another database, or to another name; nothing is embedded.

        Rows are the same to the bit; properties, learnt queries and the calibrator come along, and
        so do the images that the index keeps itself. Images in folders of yours stay where they
        are. A copy that was stopped is completed by the same call, and nothing opens it before it
        is whole.

        Args:
            uri: a Milvus Lite file or a server; by default this database.
            name: of the copy; by default this index's name.
            token: for a server; by default this one's, if it is the same server.
            storage_dir: where the copy keeps images, as for the class.
            index_config: its vector index; by default that of this index, as far as its database
                tells and the other one knows it.
            overwrite: delete an index that is there.
            show_progress: show a progress bar.

        Returns:
            What was copied, and what could not be and why.

        Raises:
            ValueError: the copy would be this index, or another index is there.
            StoreError: a database cannot be read or written.
        """
        if uri is None and name is None:
            raise InvalidValueError("copy_to without uri or name; say where the copy is to be")
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
        """Embed all that the index holds with other models, and go on with these.

        Texts are taken as they are stored, and images from their files. The new collections are
        built beside the old ones, and changed over at the end, at one stroke: a search finds the
        old index whole, or the new one. Retrievers that were made before, here or in other
        processes, then fail, and never mix the two: make them again. A call that was stopped is
        completed by the same call. Learnt queries, a calibrator and an aligner belong to the old
        model: the report says which of them are gone. Nothing should be inserted meanwhile.

        Args:
            embed_model: embeds texts; the same model with other ``dimensions``, or another
                ``aligner``, is another model.
            image_embed_model: embeds images, and the texts that search them; by default the same.
            image_query_embed_model: embeds images once more, for image queries; by default the one
                that the index has, whose vectors stay, or none.
            index_config: Milvus' vector index; HNSW by default.
            skip_unreadable: leave out what can no longer be read, such as images that are gone. By
                default that is an error, and the index stays as it was.
            show_progress: show a progress bar.

        Returns:
            What was embedded, what was skipped and why, and what is lost.

        Raises:
            ValueError: a model does not fit, or something can no longer be read.
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
        """The folders that images of the index are opened in, as far as they are there."""

    @abstractmethod
    def reopen(
        self,
        embed_model: BaseEmbedding,
        image_embed_model: BaseEmbedding | None,
        image_query_embed_model: BaseEmbedding | None,
    ) -> None:
        """Open the newest version of the index in place of the one that is open.

        Args:
            embed_model: as for the class, like the others.
            image_embed_model: embeds images.
            image_query_embed_model: embeds images for image queries.
        """

    acopy_to = asynchronous(copy_to)
    areembed = asynchronous(reembed)
