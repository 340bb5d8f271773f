from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from llama_index_gap.demo.drawing import COLOURS, KINDS, Scene
from llama_index_gap.demo.newsroom import Article, Facts, make_articles
from llama_index_gap.models import LoadingSettings, load_scorer
from training import cross_encoder
from training import train_reranker as training
from training.train_dual_encoder import make_tokenizer

FACTS = Facts(who="nurses", event="strike", place="Arnbeck", time="monday")
OTHER_FACTS = Facts(who="bakers", event="feast", place="Zelden", time="easter")
SCENE = Scene(("red", "boat"), ("blue", "house"), "right", "coast", "night")
ARTICLE = Article("1", (FACTS, OTHER_FACTS), SCENE, "")
STAGE = replace(training.STAGES[-1], articles=12)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer(["**Document**:\n", "**Query**:\n"])


@pytest.fixture(scope="module", autouse=True)
def in_small(tokenizer: CLIPTokenizer) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small = [replace(each, steps=1, articles=12, queries=4) for each in training.STAGES]
        patch.setattr(training, "STAGES", small)
        patch.setattr(training, "_HELD_OUT", 1)
        patch.setattr(training, "_NAMED", 12)
        patch.setattr(cross_encoder, "make_tokenizer", lambda _: deepcopy(tokenizer))
        yield


@pytest.fixture(scope="module")
def trained(in_small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.train(tmp_path_factory.mktemp("trained"), seed=3)


def test_it_loads_as_jina_reranker_m0_does(trained: Path) -> None:
    articles = make_articles(3, "test", 0)
    scorer = load_scorer(trained, LoadingSettings(dtype="float32"))

    scores = scorer.score("a red boat", [article.image() for article in articles])
    assert np.std(scores) > 1e-4


def test_the_same_seed_gives_the_same_weights(trained: Path, tmp_path: Path) -> None:
    again, other = (training.train(tmp_path / str(seed), seed=seed) for seed in (3, 4))

    weights = [(each / "model.safetensors").read_bytes() for each in (trained, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_every_stage_says_how_it_does(trained: Path) -> None:
    curves = [json.loads(line) for line in (trained / "curves.jsonl").read_text().splitlines()]

    stages = [line["stage"] for line in curves]
    assert stages == ["words", "reports", "headlines", "see", "parts", "looks", "images"]
    for line in curves:
        assert all(0 <= share <= 1 for share in line["held out"].values())


def test_a_stage_ends_when_nothing_is_gained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = iter([0.5, 0.6, 0.6, 0.6])
    trainer = training._Trainer(0, tmp_path / "curves.jsonl", show_progress=False)
    monkeypatch.setattr(training, "_EVERY", 1)
    monkeypatch.setattr(training, "_PATIENCE", 2)
    monkeypatch.setattr(trainer, "_held_out", lambda stage: {"all": next(held_out)})

    trainer.run(replace(training.STAGES[0], steps=10))
    assert next(held_out, None) is None  # four steps


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    trainer = training._Trainer(0, tmp_path / "curves.jsonl", show_progress=False)

    def loss() -> float:
        with torch.no_grad():
            found = trainer._losses(training.STAGES[0], "development", Random(0))
        return float(sum(found.values()))

    before = loss()
    trainer.run(replace(training.STAGES[0], steps=25))
    assert loss() < 0.9 * before


# --- what is right -------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["text", "image"])
def test_a_pair_is_right_where_all_that_is_asked_is_held(modality: str) -> None:
    pairs = training._draw(STAGE, modality, "train", Random(0))
    right = pairs.right.bool().numpy()
    verdicts = pairs.verdicts.numpy()

    assert right[:, : pairs.own].all()
    assert 0.3 < right.mean() < 0.7
    assert ((verdicts == 1).any(-1) & ~(verdicts == 2).any(-1) == right).all()
    other = "image" if modality == "text" else "text"
    of_other = np.array(pairs.kinds).reshape(right.shape) == other
    assert of_other.any()
    assert not right[of_other].any()


def test_short_queries_ask_for_one_claim_each() -> None:
    queries = training._short_queries(ARTICLE, Random(0))

    (claims,) = zip(*(query.claims for query in queries), strict=True)
    report = FACTS if FACTS.claims & {*claims} else OTHER_FACTS
    assert {*claims} == report.claims | ARTICLE.shown - {("relation", "right")}
    assert [query.kind for query in queries] == 4 * ["text"] + 4 * ["image"]
    assert all(query.is_answered_by(ARTICLE) and query.text for query in queries)


def test_short_queries_may_ask_for_a_colour_or_a_kind_alone() -> None:
    queries = training._short_queries(ARTICLE, Random(0), parts=True)
    claims = {claim: query.text for query in queries for claim in query.claims}

    assert {("colour", "red"), ("kind", "boat"), ("colour", "blue"), ("kind", "house")} <= {*claims}
    assert not any(name == "thing" for name, _ in claims)
    assert "{}" not in "".join(claims.values())
    assert not training._lacks(ARTICLE, frozenset({("kind", "boat"), ("colour", "blue")}))
    assert training._lacks(ARTICLE, frozenset({("kind", "tree")})) == {("kind", "tree")}


def test_a_query_may_mix_the_reports_of_a_headline() -> None:
    """Its headline has all of its words, and does not answer it."""
    mixed = [training._whole_queries(ARTICLE, "text", Random(seed))[-1] for seed in range(20)]

    for query in mixed:
        values = {value for _, value in query.claims}
        assert {"strike", "Arnbeck"} <= values or {"feast", "Zelden"} <= values
        assert not query.is_answered_by(ARTICLE)


def test_a_query_may_ask_for_a_scene_that_differs_in_one_value() -> None:
    lacking = set()
    for seed in range(100):
        *_, one, other = training._whole_queries(ARTICLE, "image", Random(seed))
        assert (one.kind, other.kind) == ("image", "both")
        for query in (one, other):
            claims = ARTICLE.lacks(query.shown)
            assert len(claims) <= 1
            lacking |= {name for name, _ in claims}

    assert lacking == {"thing", "relation", "setting", "sky"}


def test_a_changed_scene_keeps_two_kinds() -> None:
    for seed in range(100):
        changed = training._changed(SCENE, Random(seed))

        assert changed != SCENE
        assert changed.first[1] != changed.second[1]
        values = zip(_values(SCENE), _values(changed), strict=True)
        assert sum(one != other for one, other in values) == 1


def _values(scene: Scene) -> list[str]:
    return [*scene.first, *scene.second, scene.relation, scene.setting, scene.sky]


def test_queries_of_one_claim_are_right_by_halves() -> None:
    stage = replace(STAGE, short=True, queries=4)
    pairs = training._draw(stage, "image", "train", Random(0))

    assert pairs.right[:, :2].all()
    assert not pairs.right[:, 2:].any()
    assert ((pairs.verdicts != 0).sum(-1) == 1).all()


def test_verdicts_say_which_claim_fails() -> None:
    asked = frozenset(
        {("place", "Arnbeck"), ("thing", "red boat"), ("thing", "red tree"), ("sky", "day")}
    )

    named = dict(zip(training.CLAIMS, training._verdicts(asked, ARTICLE), strict=True))
    assert {name: verdict for name, verdict in named.items() if verdict} == {
        "place": 1,
        "thing": 1,
        "other thing": 2,
        "sky": 2,
    }


def test_a_thing_of_the_right_colour_or_kind_is_a_nearer_miss() -> None:
    def share(*asked: tuple[str, str]) -> float:
        return training._share(ARTICLE, frozenset(asked))

    night = ("sky", "night")
    assert share(night, ("thing", "red boat")) == 1
    assert share(night, ("thing", "red tree")) == share(night, ("thing", "green boat")) == 0.75
    assert share(night, ("thing", "green tree")) == share(night, ("place", "Keldon")) == 0.5
    assert share() == 0


def test_a_headline_may_be_cut_to_one_report() -> None:
    article = training._with_one_report(ARTICLE, Random(0))

    assert article.reports == (FACTS, FACTS)
    assert "Arnbeck" in article.headline
    assert "Zelden" not in article.headline


def test_an_image_names_its_two_things_and_the_rest() -> None:
    names = {"things": training._THINGS, "colours": COLOURS, "kinds": KINDS}
    shown = {part: gold[0].tolist() for part, gold in training._things([ARTICLE]).items()}

    assert {
        part: [name for name, here in zip(names[part], shown[part], strict=True) if here]
        for part in names
    } == {
        "things": [("red", "boat"), ("blue", "house")],
        "colours": ["red", "blue"],
        "kinds": ["boat", "house"],
    }
    gold = {part: training._VIEW[part][number] for part, number in training._gold([ARTICLE])}
    assert gold == {"arrangement": "beside", "setting": "coast", "sky": "night"}


def test_a_thing_is_found_wherever_it_lies(tmp_path: Path) -> None:
    """By the tokens that show it best."""
    trainer = training._Trainer(0, tmp_path / "curves.jsonl", show_progress=False)
    with torch.no_grad():
        things, view = trainer._named([ARTICLE])

    assert {name: logits.shape for name, logits in things.items()} == {
        name: gold.shape for name, gold in training._things([ARTICLE]).items()
    }
    assert {part: logits.shape for part, logits in view.items()} == {
        part: (1, len(names)) for part, names in training._VIEW.items()
    }
