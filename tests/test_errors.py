from __future__ import annotations

import pytest

from llama_index_gap import (
    CorpusError,
    DualIndex,
    DualIndexRetriever,
    ImageError,
    ModelError,
    MultiModalSearchTool,
    StoreError,
)
from llama_index_gap.errors import EXPECTED_ERRORS, GapError, UnknownParameterError, names_nearest


@names_nearest
def search(text: str, *, top_k: int = 1, filters: str = "") -> tuple[str, int, str]:
    return text, top_k, filters


def test_a_typo_is_answered_with_the_nearest_name() -> None:
    assert search("a", top_k=2) == ("a", 2, "")
    with pytest.raises(UnknownParameterError, match="search has no parameter 'topk'; did you mean"):
        search("a", topk=2)
    with pytest.raises(TypeError, match="no parameter 'zebra'; it has text, top_k, filters"):
        search("a", zebra=2)


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: DualIndexRetriever({}, similarty_top_k=3), "DualIndexRetriever.*similarity_top_k"),
        (lambda: DualIndex(storage_dri="x"), "DualIndex has no parameter.*'storage_dir'"),
        (lambda: MultiModalSearchTool(None, max_image=3), "MultiModalSearchTool.*'max_images'"),
        (lambda: DualIndex.insert_nodes(None, [], stric=True), "insert_nodes.*'strict'"),
        (lambda: DualIndex.from_documents([], embed_modle=None), "from_documents.*embed_model"),
        (lambda: DualIndex.as_retriever(None, min_probabilty=0), "as_retriever.*min_probability"),
        (
            lambda: DualIndex.search(None, "a", imgae="b"),
            "search has no parameter 'imgae'; did you mean 'image'",
        ),
    ],
)
def test_so_do_the_public_ones(call: object, nearest: str) -> None:
    with pytest.raises(UnknownParameterError, match=nearest):
        call()


@pytest.mark.parametrize("kind", [CorpusError, ImageError, ModelError, StoreError])
def test_all_errors_for_users_have_one_base(kind: type[Exception]) -> None:
    assert issubclass(kind, GapError)
    assert issubclass(kind, EXPECTED_ERRORS)
