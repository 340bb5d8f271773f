from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import (
    QueryBundle,
    TextNode,
)

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.index.dual_index import DualIndex


def test_reopening_by_uri_alone_builds_the_stored_model(
    tiny_clip: Path, tmp_path: Path, nodes: list[TextNode]
) -> None:
    uri = str(tmp_path / "gap.db")
    model = DualEncoderEmbedding(model_name=tiny_clip, dimensions=8, query_prompt="q: ")
    with DualIndex(uri, embed_model=model) as index:
        index.insert_nodes(nodes)
        expected = [hit.node_id for hit in index.as_retriever().retrieve("a bicycle")]

    with DualIndex(uri) as again:
        assert again.embed_model.dimensions == 8
        assert again.embed_model.query_prompt == "q: "
        assert again.image_embed_model is again.embed_model
        assert [hit.node_id for hit in again.as_retriever().retrieve("a bicycle")] == expected


def test_two_models_are_stored(
    tiny_clip: Path, tiny_siglip: Path, tmp_path: Path, nodes: list[TextNode]
) -> None:
    uri = str(tmp_path / "gap.db")
    text, image = (DualEncoderEmbedding(model_name=folder) for folder in (tiny_siglip, tiny_clip))
    with DualIndex(uri, embed_model=text, image_embed_model=image) as index:
        index.insert_nodes(nodes)
        hits = index.as_retriever().retrieve("a bicycle")
        assert {hit.node.ref_doc_id for hit in hits} == {"a", "b"}

    with DualIndex(uri) as again:
        assert (again.embed_model.dimension, again.image_embed_model.dimension) == (32, 16)
        # The text model does not share the images' space, so only images are searched.
        hits = again.as_retriever().retrieve(QueryBundle("", image_path=nodes[1].image_path))
        assert [hit.node_id for hit in hits] == ["a2", "b1"]


def test_a_new_index_needs_a_model_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such database; pass embed_model to create it"):
        DualIndex(str(tmp_path / "mistyped.db"))
    assert not [*tmp_path.iterdir()]


def test_another_model_is_refused(tiny_clip: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "gap.db")
    DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)).close()
    other = make_tiny_clip(tmp_path / "other", seed=1)

    with pytest.raises(ValueError, match=rf"made with .*{tiny_clip}.* not with .*{other}"):
        DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=other))
    with pytest.raises(ValueError, match=r"not with .*dimensions=8"):
        DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip, dimensions=8))
    DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=other), overwrite=True).close()
    # Device and speed do not make it another model.
    model = DualEncoderEmbedding(model_name=other, dtype="bfloat16", embed_batch_size=3)
    DualIndex(uri, embed_model=model).close()


class ForgetfulEmbedding(MockEmbedding):
    """Reports no dimension, and fails if it has to embed."""

    def _get_query_embedding(self, query: str) -> list[float]:
        raise ValueError("the model's own trouble")


def test_an_error_of_the_model_is_not_taken_for_a_missing_collection(
    clip: DualEncoderEmbedding, tmp_path: Path
) -> None:
    model = ForgetfulEmbedding(embed_dim=4)

    with pytest.raises(ValueError, match="the model's own trouble"):
        DualIndex(str(tmp_path / "gap.db"), embed_model=model, image_embed_model=clip)


def test_a_foreign_text_model_must_be_passed_again(
    clip: DualEncoderEmbedding, tmp_path: Path
) -> None:
    uri = str(tmp_path / "gap.db")
    mock = MockEmbedding(embed_dim=4)
    DualIndex(uri, embed_model=mock, image_embed_model=clip).close()

    with pytest.raises(ValueError, match=r"MockEmbedding.*: pass it as embed_model"):
        DualIndex(uri)
    DualIndex(uri, embed_model=mock, image_embed_model=clip).close()
