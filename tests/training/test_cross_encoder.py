from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import PARITY
from safetensors.torch import load_file

from llama_index_gap.demo.newsroom import make_articles
from llama_index_gap.models import LoadingSettings, load_scorer
from training.cross_encoder import CrossEncoder

REAL = PARITY / "jina_m0_tiny"


@pytest.fixture(scope="module")
def model() -> CrossEncoder:
    torch.manual_seed(0)
    return CrossEncoder()


@pytest.fixture(scope="module")
def saved(model: CrossEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checkpoint; the model's weights are rounded to float16 as in the checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return folder


@pytest.mark.parametrize("modality", ["text", "image"])
def test_what_is_trained_scores_as_what_is_loaded(
    model: CrossEncoder, saved: Path, modality: str
) -> None:
    """By the code that loads jina-reranker-m0, from its files."""
    queries, articles = ["a red boat", "prank and nurses in Keldon"], make_articles(3, "test", 0)
    scorer = load_scorer(saved, LoadingSettings(dtype="float32"))
    documents = [a.headline if modality == "text" else a.image() for a in articles]

    with torch.no_grad():
        last = model.read(modality, articles, queries, torch.tensor(3 * [[0, 1]])).last
        expected = torch.sigmoid(model.score(last)[..., 0] - 2.65).T.numpy()
    found = [scorer.score(query, documents) for query in queries]
    np.testing.assert_allclose(expected, found, atol=2e-6)
    assert np.std(found) > 1e-4


def test_it_has_the_layout_of_jina_reranker_m0(saved: Path) -> None:
    config, real = (json.loads((each / "config.json").read_text()) for each in (saved, REAL))
    mine, theirs = (load_file(each / "model.safetensors") for each in (saved, REAL))

    assert set(theirs) <= set(mine)
    assert config["architectures"] == real["architectures"]
    assert config.keys() <= real.keys()
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= {
        file.name for file in saved.iterdir()
    }
