from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from llama_index_gap.demo.newsroom import make_articles, make_queries
from llama_index_gap.models import LoadingSettings, load_encoder
from training import train_dual_encoder as training
from training.train_dual_encoder import make_tokenizer, train


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer()


def test_a_few_steps_make_a_checkpoint_that_loads(
    tokenizer: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "make_tokenizer", lambda: tokenizer)
    folder = train(tmp_path, steps=2, articles=4)

    encoder = load_encoder(folder, LoadingSettings(dtype="float32"))
    assert encoder.modalities == {"text", "image"}
    article = make_articles(1, "test", 0)[0]
    text = encoder.encode_text([article.headline], "document")
    image = encoder.encode_images([article.image()])
    assert text.shape == image.shape == (1, encoder.dimension)


def test_the_same_seed_gives_the_same_weights(
    tokenizer: CLIPTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "make_tokenizer", lambda: tokenizer)
    weights = [
        (train(tmp_path / name, steps=2, articles=4, seed=seed) / "model.safetensors").read_bytes()
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    ]

    assert weights[0] == weights[1] != weights[2]


def test_the_tokenizer_is_always_the_same() -> None:
    one, other = (make_tokenizer().backend_tokenizer.to_str() for _ in range(2))
    assert one == other


def test_words_are_tokens_and_no_text_is_too_long(tokenizer: CLIPTokenizer) -> None:
    articles = make_articles(1000, "test", 0)
    headlines = [article.headline for article in articles]
    queries = [query.text for query in make_queries(articles, 200, 0)]

    assert all(token.endswith("</w>") for text in headlines for token in tokenizer.tokenize(text))
    assert tokenizer.tokenize("Nruses")[-1] == "es</w>"  # what is mistyped is read in pieces
    assert max(map(len, tokenizer(headlines + queries)["input_ids"])) < tokenizer.model_max_length


def test_the_loss_of_two_pairs() -> None:
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    assert training._contrastive_loss(torch.zeros(2, 2), nothing).item() == pytest.approx(
        math.log(2)
    )
    assert training._contrastive_loss(scores, nothing).item() == pytest.approx(
        math.log(1 + math.exp(-1))
    )


def test_another_answer_to_a_query_is_no_wrong_one() -> None:
    article = make_articles(1, "train", 0)[0]
    asked = frozenset({("sky", article.scene.sky)})

    ignored = training._other_answers([asked, asked], [article, article])
    assert ignored.tolist() == [[False, True], [True, False]]
    assert training._contrastive_loss(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), ignored).item() == 0


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [training.share_of_rate(step, 100) for step in range(100)]

    assert shares[0] == pytest.approx(0.1)
    assert max(shares) > 0.97
    assert shares[50] == pytest.approx(0.5)
    assert shares[99] < 0.001
