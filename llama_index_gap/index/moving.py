"""The part of an index that moves it: to another database, to another name, to another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index_gap.errors import InvalidValueError, names_nearest
from llama_index_gap.index.copying import CopyReport, copy_index
from llama_index_gap.index.image_storage import storage_folder
from llama_index_gap.index.learning import LearningIndex
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
        to, named = uri or self.address.uri, name or self.address.name
        if token is None and to == self.address.uri:
            token = self.address.token
        folder = storage_folder(to, named, storage_dir)
        target = IndexAddress(to, named, token, folder, self.address.timeout)
        return copy_index(
            self.address,
            target,
            overwrite=overwrite,
            index_config=index_config,
            show_progress=show_progress,
        )

    acopy_to = asynchronous(copy_to)
