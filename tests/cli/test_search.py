from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import gap, llama_gap

from llama_index_gap.gap.calibrate import Curve, RelevanceCalibrator
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.modality import Leg
from llama_index_gap.results import LegSummary, SearchResult


def test_a_search_is_a_table_of_80_columns(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)

    shown = gap("search", "a white ship", "--top-k", 12)

    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert shown.out.split()[:5] == ["#", "document", "score", "text", "image"]
    for words in ("Council passes the budget", "A ferry for the old harbour"):
        assert words in " ".join(shown.out.split())
    assert "corpus/images/ferry.png" in [line.strip() for line in shown.out.splitlines()]


def test_top_k_counts_documents(demo: Path) -> None:
    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 2, "--json")

    assert [document["rank"] for document in json.loads(shown.out)["documents"]] == [1, 2]


def test_json_holds_what_scripts_need(big: Path) -> None:
    shown = gap("search", "text number 7", "--db", big, "--json")
    found = json.loads(shown.out)

    assert found["query"] == {"text": "text number 7", "image": None}
    assert found["note"] is None
    first = found["documents"][0]
    assert first["score"] == pytest.approx(first["legs"]["text"]["evidence"])
    assert first["passages"][0]["node_id"] == f"{first['id']}#text-0"
    assert first["images"] == []
    assert first["metadata"]["title"] == first["title"]


def test_each_leg_finds_as_many_documents_as_are_shown(demo: Path) -> None:
    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 12, "--json")
    documents = json.loads(shown.out)["documents"]

    assert [len(document["legs"]) for document in documents].count(2) == 11
    assert sum(len(document["images"]) for document in documents) == 11
    # The text leg is searched further until it has found all twelve documents.
    evidence = [document["legs"]["text"]["evidence"] for document in documents]
    assert None not in evidence


def test_an_image_finds_itself(demo: Path) -> None:
    image = demo / "corpus" / "images" / "ferry.png"

    shown = gap("search", "--image", image, "--db", demo / "gap.db", "--top-k", 12, "--json")
    documents = json.loads(shown.out)["documents"]
    (ferry,) = (document for document in documents if document["id"] == "ferry")

    assert ferry["legs"]["image_by_image"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert ferry["images"][0]["path"] == str(image)
    assert documents[0]["id"] == "ferry"


def test_explain_shows_each_leg_and_the_reason(big: Path, demo: Path) -> None:
    one_leg = gap("search", "text number 7", "--db", big, "--explain", "--top-k", 2)
    image = demo / "corpus" / "images" / "ferry.png"
    two_legs = gap("search", "ship", "--image", image, "--db", demo / "gap.db", "--explain")

    words = " ".join(one_leg.out.split())
    assert re.search(r"leg cosine (hub )?above usual log odds text 0\.", words)
    assert ": all of it from text" in words
    assert "because of the modality gap" in words
    words = " ".join(two_legs.out.split())
    assert all(leg in words for leg in ("image by image", "text by image"))
    assert "several together" in words
    for shown in (one_leg, two_legs):
        assert max(map(len, shown.out.splitlines())) <= 80


def test_a_reranker_has_the_last_word(
    demo: Path, reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reranker.parent)
    search = ("search", "a white ship", "--db", demo / "gap.db", "--reranker", reranker.name)

    documents = json.loads(gap(*search, "--top-k", 12, "--json").out)["documents"]
    plain = gap(*search, "--top-k", 2)
    explained = gap(*search, "--top-k", 2, "--explain")

    assert [d["score"] for d in documents] == sorted((d["score"] for d in documents), reverse=True)
    first = documents[0]
    assert first["score"] == pytest.approx(np.mean(list(first["reranked"].values())))
    for shown in (plain, explained):
        assert max(map(len, shown.out.splitlines())) <= 80
    assert f"score = mean of text and image, rated by {reranker.name}" in plain.out
    assert f"score {first['score']:.3f}: text" in explained.out
    assert f"{reranker.name} read the texts and images that were found" in explained.out
    assert f"found with {first['fused']:.2f}" in explained.out


def test_the_first_stage_counts_beside_a_reranker(
    demo: Path, reranker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reranker.parent)
    search = ("search", "a white ship", "--db", demo / "gap.db", "--reranker", reranker.name)
    first_stage = ("--first-stage", 50)

    documents = json.loads(gap(*search, *first_stage, "--top-k", 12, "--json").out)["documents"]
    plain = gap(*search, *first_stage, "--top-k", 2)
    explained = gap(*search, *first_stage, "--top-k", 2, "--explain")
    weighed = gap(*search, *first_stage, "--weights", "image=2", "--json")
    (without,) = json.loads(gap(*search, "--top-k", 1, "--json").out)["documents"]

    fused = [document["fused"] for document in documents]
    assert fused == sorted(fused, reverse=True)  # so much weight leaves the reranker no word
    assert sum(document["first_stage"] for document in documents) == pytest.approx(0, abs=1e-6)
    assert without["first_stage"] is None
    assert "judge0, and the first stage" in " ".join(plain.out.split())
    words = " ".join(explained.out.split())
    assert re.search(
        r"text 0\.\d+, image 0\.\d+; the first stage adds \+\d+\.\d\d to the log", words
    )
    assert "The search's lead over the mean candidate, times its weight" in words
    assert max(map(len, explained.out.splitlines())) <= 80
    assert weighed.code == 0, weighed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--first-stage", 1), "is added to what a reranker says; name one with --reranker"),
        (("--first-stage", -1, "--reranker", "x"), "weight is -1.0: must be a number of at least"),
        (("--first-stage", "nan", "--reranker", "x"), "weight is nan: must be a number"),
    ],
)
def test_a_first_stage_that_cannot_count(
    demo: Path, options: tuple[object, ...], message: str
) -> None:
    found = gap("search", "ship", "--db", demo / "gap.db", *options)

    assert found.code == 2
    assert message in " ".join(found.err.replace("│", " ").split())


def test_what_is_too_improbable_is_left_out(own_db: Path) -> None:
    (without,) = gap("search", "ship", "--db", own_db, "--min-probability", 0.5).err.splitlines()
    even = Curve(scores=(0.0,), log_odds=(0.0,), precision=(0.5,), relevant=1, irrelevant=1)
    curves = {"text_to_text": even, "text_to_image": even}
    with DualIndex(str(own_db)) as index:
        index.save_calibrator(RelevanceCalibrator(curves, "isotonic", index.models()))

    some = gap("search", "ship", "--db", own_db, "--min-probability", 0.5, "--json")
    none = gap("search", "ship", "--db", own_db, "--min-probability", 1)

    assert "needs a calibrator" in without
    assert json.loads(some.out)["documents"]
    assert none.out == "Nothing was found with a probability of 1.0 or more.\n"


def test_a_search_without_a_reason_for_finding_nothing_shows_what_the_index_has(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another program deleted the rows and wrote them again while this one searched."""
    legs = {Leg("text", "text"): LegSummary(0), Leg("text", "image"): LegSummary(0)}
    monkeypatch.setattr(DualIndex, "search", lambda *_, **__: SearchResult((), legs=legs))
    with DualIndex(str(demo / "gap.db")) as index:
        count = index.count()

    shown = gap("search", "ship", "--db", demo / "gap.db")

    assert " ".join(shown.out.split()) == (
        f"Nothing was found, though the index has {count['text']} texts and {count['image']} "
        "images. Another program may be changing it; search again."
    )


def test_explain_tells_what_was_left_out_from_how_it_was_ranked(big: Path, tmp_path: Path) -> None:
    """Once, leaving out improbable hits was mistaken for rank fusion."""
    db = tmp_path / "gap.db"
    shutil.copytree(big, db)
    with DualIndex(str(db)) as index:
        cosines = index.as_retriever().search_legs("text number 7")[Leg("text", "text")].scores
        steps = {"scores": (cosines[8], cosines[7]), "log_odds": (-9.0, 9.0), "precision": (0, 1)}
        curve = Curve(**steps, relevant=1, irrelevant=1)
        curves = {"text_to_text": curve, "text_to_image": curve}
        index.save_calibrator(RelevanceCalibrator(curves, "isotonic", index.models()))

    shown = gap("search", "text number 7", "--db", db, "--min-probability", 0.5, "--explain")

    assert "The text leg left out 8 hits as too improbable." in shown.out
    assert "Ranked by rank fusion" not in shown.out
    assert "standard deviations (σ)" in " ".join(shown.out.split())


def test_explain_says_where_raw_scores_would_put_a_document(demo: Path) -> None:
    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 12, "--explain")
    found = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 12, "--json")

    documents = json.loads(found.out)["documents"]
    highest = [max(leg["cosine"] for leg in d["legs"].values()) for d in documents]
    places = [1 + sorted(highest, reverse=True).index(score) for score in highest]
    moved = [place for rank, place in enumerate(places, 1) if place != rank]
    said = [line.split()[-1] for line in shown.out.splitlines() if "highest cosine" in line]
    assert moved
    assert said == [str(place) for place in moved]


def test_html_is_written(demo: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"

    shown = gap("search", "ship", "--db", demo / "gap.db", "--top-k", 1, "--html", page)

    assert shown.code == 0
    assert "<article data-row>" in page.read_text("utf-8")
    assert "data:image/jpeg;base64," in page.read_text("utf-8")


def test_titles_cannot_steer_the_terminal(big: Path) -> None:
    for form in ([], ["--explain"], ["--json"]):
        shown = gap("search", "text", "--db", big, *form)
        assert shown.code == 0
        assert not {"\x1b", "\u202e"} & set(shown.out + shown.err)
        assert "[31mred [bold]" in shown.out


@pytest.mark.slow
def test_the_blog_from_the_shell(gap_shared: Path, tiny_clip: Path, tmp_path: Path) -> None:
    blog, corpus = gap_shared / "data" / "18f_blog", tmp_path / "blog"
    corpus.mkdir()
    (corpus / "images").symlink_to(blog / "images")
    posts = (blog / "docs.jsonl").read_text("utf-8").splitlines()[:20]  # other tests use all
    (corpus / "docs.jsonl").write_text("\n".join(posts), "utf-8")
    images = sum(len(json.loads(post).get("images", ())) for post in posts)

    indexed = llama_gap(
        "index",
        str(corpus),
        "--root",
        str(blog.parent.parent.parent),
        "--model",
        str(tiny_clip),
        cwd=tmp_path,
    )
    found = llama_gap("search", "open source", "--html", "out.html", "--json", cwd=tmp_path)

    assert indexed.returncode == 0, indexed.stderr
    assert "20 documents" in indexed.stdout
    assert f"{images} images written" in indexed.stdout
    assert len(json.loads(found.stdout)["documents"]) == 5
    assert (tmp_path / "out.html").read_text("utf-8").count("<article data-row>") == 5
