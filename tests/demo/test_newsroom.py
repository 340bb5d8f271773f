from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from llama_index.core.schema import MetadataMode
from PIL import Image, ImageColor

from llama_index_gap import open_image, read_corpus
from llama_index_gap.demo import newsroom
from llama_index_gap.demo.drawing import SIZE, Scene, draw
from llama_index_gap.demo.newsroom import (
    IMAGE_QUERY_KINDS,
    QUERY_KINDS,
    Article,
    Facts,
    Query,
    headline,
    make_articles,
    make_image_queries,
    make_queries,
    make_query,
    write_newsroom,
)
from llama_index_gap.evaluation.datasets import read_dataset

FACTS = Facts(who="nurses", event="strike", place="Arnbeck", time="monday")
OTHER_FACTS = Facts(who="bakers", event="feast", place="Zelden", time="easter")
REPORTS = (FACTS, OTHER_FACTS)
SCENE = Scene(("red", "boat"), ("blue", "house"), "left", "coast", "night")
FOLDS = ("train", "development", "test")


@pytest.fixture(scope="module")
def articles() -> list[Article]:
    return make_articles(1000, "test", 0)


@pytest.fixture(scope="module")
def queries(articles: list[Article]) -> list[Query]:
    return make_queries(articles, 50, 0)


def test_development_queries_ask_for_nothing_that_is_judged(queries: list[Query]) -> None:
    learnt = newsroom.development_queries()

    assert len(learnt) == 300
    assert learnt == newsroom.development_queries()
    assert not {*learnt} & {query.text for query in queries}


# --- articles ------------------------------------------------------------------------------------


def test_the_headline_and_the_image_claim_different_things() -> None:
    assert FACTS.claims == {
        ("who", "nurses"),
        ("event", "strike"),
        ("place", "Arnbeck"),
        ("time", "monday"),
    }
    assert Article("1", REPORTS, SCENE, "").shown == {
        ("thing", "red boat"),
        ("thing", "blue house"),
        ("relation", "left"),
        ("setting", "coast"),
        ("sky", "night"),
    }


def test_a_headline_words_both_of_its_reports() -> None:
    text = headline(REPORTS, Random(0))

    assert re.search(r"Arnbeck.*\. .*Zelden", text)
    assert {"Nurses", "Ward"} & words([text.title()])


def test_one_report_must_hold_all_facts() -> None:
    """One that reports a strike in Arnbeck and a feast in Zelden reports no feast in Arnbeck."""
    article = Article("1", REPORTS, SCENE, "")

    assert not article.lacks(frozenset({("event", "strike"), ("place", "Arnbeck")}))
    assert not article.lacks(frozenset({("event", "feast"), ("sky", "night")}))
    mixed = frozenset({("event", "feast"), ("place", "Arnbeck"), ("who", "nurses")})
    assert article.lacks(mixed) == {("event", "feast")}
    assert article.lacks(frozenset({("event", "strike"), ("sky", "day")})) == {("sky", "day")}


def test_a_newsroom_is_the_same_in_every_process(tmp_path: Path) -> None:
    """What the model card states is measured on the newsroom of this digest."""
    code = f"from llama_index_gap.demo.newsroom import *; write_newsroom({str(tmp_path)!r})"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )

    digests = [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()[:12]
        for name in ("docs.jsonl", "queries.jsonl")
    ]
    assert digests == ["87ba794e072f", "e3512473e7a2"]


def test_seeds_and_folds_differ() -> None:
    headlines = {
        tuple(article.headline for article in make_articles(20, fold, seed))
        for fold in FOLDS
        for seed in (0, 1)
    }

    assert len(headlines) == 6


def test_no_two_articles_say_or_show_the_same(articles: list[Article]) -> None:
    assert len({article.reports for article in articles}) == len(articles)
    assert len({article.scene for article in articles}) == len(articles)
    assert len({article.id for article in articles}) == len(articles)


def test_folds_share_no_pair_of_event_and_place_and_no_scene() -> None:
    by_fold = [make_articles(3000, fold, seed=0) for fold in FOLDS]

    for parts_of in (
        lambda article: {(facts.event, facts.place) for facts in article.reports},
        lambda article: {article.scene},
    ):
        parts = [set().union(*map(parts_of, articles)) for articles in by_fold]
        assert sum(map(len, parts)) == len(set.union(*parts))


def test_both_reports_are_of_one_series(articles: list[Article]) -> None:
    """So many headlines have every word of an answer and do not answer."""
    for first, second in (article.reports for article in articles):
        assert first.event != second.event
        assert first.place != second.place
    told = {(f.event, f.place, f.who) for article in articles for f in article.reports}
    swapped = [
        (first.event, first.place, second.who) in told
        for first, second in (article.reports for article in articles)
        if first.who != second.who
    ]
    assert np.mean(swapped) > 0.8


def test_every_fold_knows_every_word() -> None:
    for fold in FOLDS:
        claims = set[tuple[str, str]]()
        for article in make_articles(3000, fold, 0):
            claims |= article.shown.union(*(facts.claims for facts in article.reports))
        assert Counter(name for name, _ in claims) == {
            "who": 12,
            "event": 24,
            "place": 40,
            "time": 10,
            "thing": 80,
            "relation": 4,
            "setting": 6,
            "sky": 4,
        }, fold


@pytest.mark.parametrize(
    ("part", "attribute"),
    [("report", field.name) for field in fields(Facts)]
    + [("scene", field.name) for field in fields(Scene)],
)
def test_near_misses_differ_in_one_attribute(
    articles: list[Article], part: str, attribute: str
) -> None:
    """The same event in another place, the same things the other way round, and so on."""
    held = [a.reports[0] if part == "report" else a.scene for a in articles]
    others = Counter(replace(each, **{attribute: ""}) for each in held)

    near_misses = sum(count for count in others.values() if count > 1)
    assert near_misses > 0.1 * len(articles)


# --- images ------------------------------------------------------------------------------------


def test_an_image_is_small_and_of_few_colours() -> None:
    image = draw(SCENE, "seed")

    assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
    assert len(image.getcolors() or []) < 64


def test_the_seed_moves_things_but_does_not_change_them() -> None:
    one, again, other = (draw(SCENE, seed) for seed in ("1", "1", "2"))

    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert set(colours(one)) >= {"#d62828", "#1c6dd0"} <= set(colours(other))


@pytest.mark.parametrize(
    "change",
    [
        {"first": ("green", "boat")},
        {"second": ("blue", "tree")},
        {"relation": "right"},
        {"relation": "front"},
        {"setting": "desert"},
        {"sky": "rain"},
    ],
)
def test_images_differ_where_scenes_do(change: dict[str, object]) -> None:
    one, other = (np.asarray(draw(scene, "1")) for scene in (SCENE, replace(SCENE, **change)))

    assert np.mean(np.any(one != other, axis=-1)) > 0.02


def test_left_is_left_and_front_is_in_front() -> None:
    def where(scene: Scene) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean column and row of the red boat's pixels, and of the blue house's."""
        pixels = np.asarray(draw(scene, "1"))
        found = (np.all(pixels == ImageColor.getrgb(c), axis=-1) for c in ("#d62828", "#1c6dd0"))
        rows_and_columns = [np.nonzero(mask) for mask in found]
        (boat, house) = [(columns.mean(), rows.mean()) for rows, columns in rows_and_columns]
        return boat, house

    boat, house = where(SCENE)
    assert boat[0] + 20 < house[0]
    boat, house = where(replace(SCENE, relation="right"))
    assert house[0] + 20 < boat[0]
    boat, house = where(replace(SCENE, relation="front"))
    assert house[1] < boat[1]  # what is nearer is lower
    boat, house = where(replace(SCENE, relation="behind"))
    assert boat[1] < house[1]


# --- queries -------------------------------------------------------------------------------------


def test_a_query_is_answered_by_what_says_and_shows_all_it_asks_for() -> None:
    article = Article("1", REPORTS, SCENE, "")
    asked = {("event", "strike"), ("thing", "red boat")}

    assert Query("", "both", frozenset(asked)).is_answered_by(article)
    assert not Query("", "both", frozenset(asked | {("sky", "day")})).is_answered_by(article)


@pytest.mark.parametrize("kind", QUERY_KINDS)
def test_queries_need_what_their_kind_names(queries: list[Query], kind: str) -> None:
    for query in (query for query in queries if query.kind == kind):
        assert bool(query.said) == (kind in ("text", "both"))
        assert bool(query.shown) == (kind in ("image", "both"))


def test_neither_half_is_enough_where_both_are_needed(
    articles: list[Article], queries: list[Query]
) -> None:
    for query in (query for query in queries if query.kind == "both"):
        for half in (query.said, query.shown):
            answers = [article for article in articles if not article.lacks(half)]
            assert len(answers) > 1


@pytest.mark.parametrize(
    ("scene", "words"),
    [
        (replace(SCENE, relation="left"), "left of|to the left of|right of|on the right of"),
        (replace(SCENE, relation="behind"), "in front of|partly hiding|behind|half hidden by"),
    ],
)
def test_a_relation_is_told_from_either_thing(
    scene: Scene, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newsroom, "_MISTYPED", 0)
    article = Article("1", REPORTS, scene, "")
    texts = [make_query(article, "image", Random(seed)).text for seed in range(60)]

    found: dict[str, set[bool]] = {}
    for text in texts:
        before, relation, _ = re.split(f" ({words}) ", text)
        boat_first = bool(re.search("boat|ship|yacht|vessel", before))
        found.setdefault(relation, set()).add(boat_first)
    assert found == {
        relation: {relation in ("left of", "to the left of", "behind", "half hidden by")}
        for relation in words.split("|")
    }


def test_every_second_query_is_mistyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By two letters of one word in the wrong order."""
    articles = make_articles(500, "train", 0)
    monkeypatch.setattr(newsroom, "_MISTYPED", 0)
    right = words(query.text for query in make_queries(articles, 500, 0))
    monkeypatch.undo()
    texts = [query.text for query in make_queries(articles, 200, 1)]

    odd = [words([text]) - right for text in texts]
    assert 0.4 < np.mean([bool(each) for each in odd]) < 0.6
    assert max(map(len, odd)) <= 2  # a rare word may be odd as well


def test_image_queries_ask_for_the_scene_that_they_show(articles: list[Article]) -> None:
    queries = make_image_queries(articles, 20, 0)

    assert Counter(query.kind for query in queries) == dict.fromkeys(IMAGE_QUERY_KINDS, 20)
    for query in queries:
        (answer,) = (article for article in articles if query.is_answered_by(article))
        assert answer.scene == query.scene
        assert bool(query.text) == (len(query.said) == 2) == (query.kind == "image and text")


def test_words_of_queries_are_not_all_words_of_headlines() -> None:
    articles = make_articles(1000, "train", 0)
    headlines = words(article.headline for article in articles)
    asked = words(query.text for query in make_queries(articles, 300, 0))

    assert {"Kirrin", "nurses"} <= headlines & asked
    assert {"walk", "honours", "boxing"} <= {word.lower() for word in headlines - asked}
    assert {"industrial", "stevedores", "crimson", "dusk"} <= asked - headlines


def test_too_few_articles_to_ask_for() -> None:
    with pytest.raises(ValueError, match="99 articles have too few near misses to ask for"):
        make_queries(make_articles(99, "test", 0), 1, 0)


# --- files ---------------------------------------------------------------------------------------


def test_it_is_a_corpus_with_queries(tmp_path: Path) -> None:
    folder = write_newsroom(tmp_path, articles=120, queries_per_kind=5)

    corpus = read_corpus(folder, strict=True)
    assert len(corpus.document_ids) == len(corpus.text_nodes) == len(corpus.image_nodes) == 120
    first = make_articles(120, "test", 0)[0]
    assert corpus.text_nodes[0].get_content(MetadataMode.EMBED) == first.headline
    assert open_image(corpus.image_nodes[0]).tobytes() == first.image().tobytes()
    assert not any(node.text for node in corpus.image_nodes)

    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    assert Counter(query["kind"] for query in queries) == dict.fromkeys(QUERY_KINDS, 5)
    for query in queries:
        assert set(query["relevant"]) <= set(corpus.document_ids)
        assert query["relevant"]


def test_it_can_be_asked_with_images(tmp_path: Path) -> None:
    folder = write_newsroom(tmp_path, articles=120, queries_per_kind=2)

    queries = read_dataset(folder, split="by-image").queries
    assert [query.kind for query in queries] == [kind for kind in IMAGE_QUERY_KINDS for _ in "12"]
    stored = {open_image(file).tobytes() for file in (folder / "images").iterdir()}
    for query in queries:
        assert query.image_path is not None
        assert open_image(query.image_path).tobytes() not in stored  # the scene drawn again


def test_somebody_s_own_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("precious")

    with pytest.raises(FileExistsError, match="belongs to another corpus; choose another folder"):
        write_newsroom(tmp_path, articles=100, queries_per_kind=1)
    assert (tmp_path / "docs.jsonl").read_text() == "precious"


def colours(image: Image.Image) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*colour) for _, colour in image.getcolors() or []]


def words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text)}
