"""The dual encoder in the package is the one that its model card describes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.demo.newsroom import CHECKPOINT, QUERY_KINDS, make_articles, make_queries
from llama_index_gap.evaluation.metrics import estimate
from llama_index_gap.models import Encoder, LoadingSettings, load_encoder

CARD = (CHECKPOINT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(CHECKPOINT, LoadingSettings(dtype="float32"))


def test_it_loads_as_any_checkpoint_does() -> None:
    model = DualEncoderEmbedding(model_name=str(CHECKPOINT))

    assert model.dimension == 128
    assert len(model.get_query_embedding("a red boat")) == 128


def test_it_is_small_and_free(encoder: Encoder) -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 6_000_000
    assert encoder.licence == "mit"


def test_it_has_the_hub_s_layout() -> None:
    assert {file.name for file in CHECKPOINT.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_texts_are_pooled_at_the_end_token(encoder: Encoder) -> None:
    """If the end token's id is not 2, transformers pools there, and padding changes nothing."""
    config = json.loads((CHECKPOINT / "config.json").read_text())["text_config"]
    vocabulary = json.loads((CHECKPOINT / "tokenizer.json").read_text())["model"]["vocab"]
    assert config["eos_token_id"] == vocabulary["<|endoftext|>"] == config["vocab_size"] - 1

    alone = encoder.encode_text(["a red boat"], "query")
    padded = encoder.encode_text(["a red boat", "a red boat left of a blue house"], "query")
    np.testing.assert_allclose(alone[0], padded[0], atol=1e-6)
    assert np.abs(padded[0] - padded[1]).max() > 0.01


def test_what_it_does_not_read_is_counted(encoder: Encoder) -> None:
    assert encoder.max_text_tokens == 32
    assert encoder.count_truncated(["a red boat", "red boats " * 16], "document") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "kinds"), [("headlines", ("text", "both")), ("images", ("image", "both"))]
)
def test_it_finds_what_its_card_says(encoder: Encoder, column: str, kinds: Sequence[str]) -> None:
    """Queries anew: their interval and the card's overlap."""
    articles = make_articles(3000, "test", 0)
    queries = [query for query in make_queries(articles, 60, seed=1) if query.kind in kinds]
    asked = batched(partial(encoder.encode_text, kind="query"), [query.text for query in queries])
    if column == "headlines":
        encode = partial(encoder.encode_text, kind="document")
        found = batched(encode, [article.headline for article in articles])
    else:
        found = batched(encoder.encode_images, [article.image() for article in articles])
    best = np.argsort(-asked @ found.T, axis=1)[:, :10]
    recall = []
    for query, places in zip(queries, best, strict=True):
        answers = {place for place, article in enumerate(articles) if query.is_answered_by(article)}
        recall.append(len(answers & set(places)) / len(answers))
    for kind in kinds:
        measured = estimate([r for r, q in zip(recall, queries, strict=True) if q.kind == kind])
        low, high = stated(kind, column)
        assert measured.value > 0.05  # by chance it were 0.003
        assert measured.value < 1 or kind == "text"  # whose headlines it finds every time
        assert low <= measured.high
        assert measured.low <= high


def test_the_card_states_all_figures() -> None:
    for kind in QUERY_KINDS:
        for column in ("headlines", "images", "both, fused", "mixed index"):
            low, high = stated(kind, column)
            assert 0 <= low <= high <= 1
    for figure in ("‖Δ‖", "separation", "relative modality gap", "best 10 of a mixed index"):
        assert figure in CARD


def stated(kind: str, column: str) -> tuple[float, float]:
    """The interval of recall@10 in the card's table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in CARD.splitlines()]
    (head,) = (row for row in rows if row[:1] == ["query needs"])
    (row,) = (row for row in rows if row[:1] == [kind])
    low, high = re.fullmatch(r"[\d.]+ \(([\d.]+)–([\d.]+)\)", row[head.index(column)]).groups()
    return float(low), float(high)


def batched(encode, items):
    return np.vstack([encode(items[start : start + 100]) for start in range(0, len(items), 100)])
