from __future__ import annotations

from pathlib import Path

import pytest
from demo_corpus import write_demo_corpus

from llama_index_gap import open_image, read_corpus


def test_a_dozen_documents_and_one_damaged_image(tmp_path: Path) -> None:
    corpus = read_corpus(write_demo_corpus(tmp_path))

    assert len(corpus.document_ids) == 12
    assert len(corpus.image_nodes) == 11
    assert [skip.source for skip in corpus.skipped] == ["docs.jsonl:12, image images/budget.png"]


def test_no_two_images_are_alike(tmp_path: Path) -> None:
    corpus = read_corpus(write_demo_corpus(tmp_path))
    images = {open_image(node).tobytes() for node in corpus.image_nodes}

    assert len(images) == 11


def test_somebody_s_own_file_is_not_overwritten(tmp_path: Path) -> None:
    write_demo_corpus(write_demo_corpus(tmp_path))  # twice is fine
    (tmp_path / "docs.jsonl").write_text("precious")

    with pytest.raises(FileExistsError, match="belongs to another corpus; choose another folder"):
        write_demo_corpus(tmp_path)
    assert (tmp_path / "docs.jsonl").read_text() == "precious"
