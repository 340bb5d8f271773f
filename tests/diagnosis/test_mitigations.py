from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clouds import two_clouds, unit

from llama_index_gap.diagnosis.drawn import Drawn, Queries, Rows
from llama_index_gap.diagnosis.mitigations import (
    FEWEST_PAIRS,
    BeforeAfter,
    before_and_after,
    measure_drawn,
)
from llama_index_gap.gap.measure import measure_gap

ONE_INDEX = ["stored", "offset", "centred", "linear"]
TWO_INDEXES = ["rank", "intent"]


def drawn(n: int = 120, **settings: Any) -> Drawn:
    """Documents with a text and its image."""
    changes = {name: settings.pop(name) for name in list(settings) if name not in {"shared", "own"}}
    texts, images = two_clouds(n, **settings)
    documents = [f"d{i}" for i in range(n)]
    pairs = np.column_stack([np.arange(n)] * 2)
    return replace(Drawn(Rows(texts, documents), Rows(images, documents), pairs), **changes)


def run(given: Drawn, **settings: Any) -> BeforeAfter:
    return before_and_after(given, **{"rounds": 20, **settings})


def biases(found: BeforeAfter, name: str) -> list[float]:
    return [asked.bias.value for asked in found.mitigations[name].asked.values()]


@pytest.fixture(scope="module")
def shifted() -> BeforeAfter:
    """Two clouds of the same shape: the gap is in their means."""
    return run(drawn())


@pytest.fixture(scope="module")
def different() -> BeforeAfter:
    """Two clouds of different shapes: the gap is not only in the means."""
    return run(drawn(own=12))


# --- before and after ----------------------------------------------------------------------------


def test_every_way_is_measured_on_the_half_that_was_not_fitted_on(shifted: BeforeAfter) -> None:
    assert list(shifted.mitigations) == ONE_INDEX + TWO_INDEXES
    assert shifted.fitted_on == shifted.corpus == {"texts": 60, "images": 60, "pairs": 60}
    assert shifted.corpus_share == {"text": 0.5, "image": 0.5}
    assert shifted.queries == {"text": 60, "image": 60}
    assert (shifted.labelled, shifted.left_out) == ((), 0)
    for name in ONE_INDEX:
        gap = shifted.mitigations[name].gap
        assert gap is not None
        assert gap.measured == {"texts": 60, "images": 60, "queries": 0, "pairs": 60}
        assert shifted.mitigations[name].cloud is not None
    assert all(shifted.mitigations[name].gap is None for name in TWO_INDEXES)


def test_a_gap_of_means_is_closed_by_moving_them(shifted: BeforeAfter) -> None:
    assert biases(shifted, "stored") == [1.0, 1.0]
    for name in ONE_INDEX[1:]:
        assert biases(shifted, name) == pytest.approx([0.5, 0.5], abs=0.1)
        assert shifted.mitigations[name].bias_closed == pytest.approx(0.9, abs=0.1)
        assert not shifted.mitigations[name].only_means


def test_a_mitigation_that_moves_only_the_means_is_marked(different: BeforeAfter) -> None:
    before = different.mitigations["stored"].gap
    for name in ("offset", "centred"):
        mitigation = different.mitigations[name]
        assert mitigation.gap.distance.value < before.distance.value / 2
        assert min(biases(different, name)) > 0.75
        assert mitigation.only_means
    assert biases(different, "rank") == [0.5, 0.5]  # 16 alternating ranks
    assert different.mitigations["rank"].bias_closed == 1
    assert not any(different.mitigations[name].only_means for name in ("stored", *TWO_INDEXES))


def test_bias_counts_above_and_below_the_corpus_share() -> None:
    """With 20 texts and 100 images, rank fusion finds too many texts for both queries."""
    given = drawn()
    texts = Rows(given.texts.vectors[:20], given.texts.documents[:20])
    found = run(replace(given, texts=texts, pairs=given.pairs[:20], aligned=True))

    assert found.corpus_share["text"] == pytest.approx(20 / 140)
    off = abs(0.5 - 20 / 140) + abs(0.5 - 120 / 140)
    was = (1 - 20 / 140) + (1 - 120 / 140)
    assert found.mitigations["rank"].bias_closed == pytest.approx(1 - off / was)


def test_intervals_are_over_the_queries(different: BeforeAfter) -> None:
    bias = different.mitigations["intent"].asked["text"].bias

    assert bias.low < bias.value < bias.high
    assert bias.high - bias.low < 0.2


# --- what cannot be measured ---------------------------------------------------------------------


def test_a_linear_map_takes_pairs() -> None:
    given = drawn()
    few = replace(given, pairs=given.pairs[: FEWEST_PAIRS - 1])

    assert list(run(few).mitigations) == ["stored", "offset", "centred", *TWO_INDEXES]


@pytest.mark.parametrize(
    "given", [drawn(12), drawn(aligned=True)], ids=["too few", "aligned already"]
)
def test_without_aligners_all_is_searched(given: Drawn) -> None:
    found = run(given)

    assert list(found.mitigations) == ["stored", *TWO_INDEXES]
    assert found.corpus == given.counts()
    assert set(found.fitted_on.values()) == {0}


def test_small_collections_are_fused_as_all_are() -> None:
    found = run(drawn(12))

    assert [found.mitigations[name].note for name in TWO_INDEXES] == [None, None]


def test_one_modality_has_no_gap() -> None:
    given = drawn()
    queries = Queries({"text": given.texts.vectors[:2]}, [{"d0": 1}, {"d1": 1}])
    nothing = Rows(np.zeros((0, 7), dtype=np.float32), [])
    found = run(
        replace(
            given,
            images=nothing,
            pairs=given.pairs[:0],
            queries={"text": queries},
        )
    )

    assert list(found.mitigations) == ["stored"]
    assert found.mitigations["stored"].gap is None
    assert found.mitigations["stored"].asked["text"].bias is None
    assert found.mitigations["stored"].asked["text"].recall.value == 1
    assert "image" not in found.queries


def test_two_spaces_have_no_mixed_index() -> None:
    given = drawn()
    wide = unit(np.hstack([given.images.vectors, given.images.vectors]))
    text_queries = Queries(
        {"text": given.texts.vectors[:3], "image": wide[:3]}, [{f"d{i}": 1} for i in range(3)]
    )
    image_queries = Queries({"image": wide[:2]}, [{"d0": 1}, {"d1": 1}])
    found = run(
        replace(
            given,
            images=Rows(wide, given.images.documents),
            one_space=False,
            queries={"text": text_queries, "image": image_queries},
        )
    )

    assert list(found.mitigations) == TWO_INDEXES
    asked = found.mitigations["rank"].asked
    assert asked["text"].bias is not None
    assert asked["text"].recall.value == 1
    assert asked["image"].bias is None  # they search only images
    assert asked["image"].ndcg.value == 1
    assert measure_drawn(replace(given, one_space=False), k=10, rounds=5, seed=0) is None


# --- who asks ------------------------------------------------------------------------------------


def test_labelled_queries_that_look_for_images() -> None:
    """Each query is the text of an image whose document has no text."""
    given = drawn()
    others = Rows(given.texts.vectors, [f"other {i}" for i in range(120)])
    relevant = [{f"d{i}": 1} for i in range(120)]
    queries = Queries({"text": given.texts.vectors, "image": given.texts.vectors}, relevant)
    found = run(replace(given, texts=others, pairs=given.pairs[:0], queries={"text": queries}))

    assert found.labelled == ("text",)
    assert found.queries["text"] + found.left_out == 120
    assert found.queries["text"] == found.corpus["images"]
    assert found.mitigations["stored"].asked["text"].recall.value == 0
    assert found.mitigations["rank"].asked["text"].recall.value > 0.9
    assert found.mitigations["stored"].asked["image"].recall is None  # unlabelled queries


def test_a_stored_vector_does_not_find_itself() -> None:
    """If each image has the vector of its text, the query finds the image instead."""
    given = drawn(aligned=True)
    same = Rows(given.texts.vectors, given.images.documents)
    found = run(replace(given, images=same), k=1)

    for name in ("stored", "intent"):
        assert biases(found, name) == [0, 0], name


def test_documents_that_were_added_for_queries_are_searched_and_not_fitted_on() -> None:
    given = drawn()
    found = run(replace(given, added=frozenset(f"d{i}" for i in range(20))))

    assert found.fitted_on == {"texts": 50, "images": 50, "pairs": 50}
    assert found.corpus == {"texts": 70, "images": 70, "pairs": 70}


def test_queries_have_a_mean_of_their_own_where_there_are_many() -> None:
    """A prompt shifts queries away from texts; subtracting their own mean undoes that."""
    given = drawn()
    prompt = np.zeros(7)
    prompt[0] = 3
    moved = unit(given.texts.vectors + prompt)
    relevant = [{f"d{i}": 1} for i in range(120)]

    def gain(n: int) -> float:
        queries = Queries({"text": moved[:n], "image": moved[:n]}, relevant[:n])
        found = run(replace(given, queries={"text": queries}))
        return found.mitigations["centred"].asked["text"].ndcg.value

    assert gain(120) > gain(49) + 0.1


def test_image_queries_ask_the_encoder_that_serves_them() -> None:
    """It embeds no texts, and gives the images of a document the same vector."""
    given = drawn()
    by_image = unit(np.repeat(np.eye(60), 2, axis=0))  # two equal images each
    by_image[7] = np.nan  # a missing vector
    queries = Queries(
        {"text": given.images.vectors[:2], "image": by_image[:2]}, [{"d1": 1}, {"d0": 1}]
    )
    with_encoder = replace(given, by_image=by_image, aligned=True, queries={"image": queries})
    found = run(with_encoder)
    without = run(
        replace(
            with_encoder,
            by_image=None,
            queries={
                "image": replace(
                    queries,
                    vectors={"text": given.images.vectors[:2], "image": given.images.vectors[:2]},
                )
            },
        )
    )

    assert found.mitigations["rank"].asked["image"].recall.value == 1
    assert without.mitigations["rank"].asked["image"].recall.value < 1
    assert (
        found.mitigations["stored"] == without.mitigations["stored"]
    )  # one index needs one vector per query


# --- the parts of a drawing ----------------------------------------------------------------------


def test_what_is_drawn_of_some_documents_keeps_its_order_and_its_pairs() -> None:
    given = replace(drawn(6), by_image=unit(np.eye(6)))
    shuffled = replace(given, pairs=np.array([[0, 0], [1, 1], [3, 3], [5, 5]]))

    some = shuffled.among(frozenset({"d1", "d3", "d4"}))

    assert some.texts.documents == some.images.documents == ["d1", "d3", "d4"]
    assert some.pairs.tolist() == [[0, 0], [1, 1]]
    np.testing.assert_array_equal(some.images.vectors, given.images.vectors[[1, 3, 4]])
    np.testing.assert_array_equal(some.by_image, np.eye(6)[[1, 3, 4]])
    assert len(shuffled.pairs) == 4


def test_figures_are_those_of_measure_gap() -> None:
    given = drawn(40)

    found = measure_drawn(given, k=10, rounds=20, seed=3)

    assert found == measure_gap(
        given.texts.vectors, given.images.vectors, pairs=given.pairs, k=10, rounds=20, seed=3
    )


def test_the_cloud_shows_texts_to_the_left(shifted: BeforeAfter) -> None:
    cloud = shifted.mitigations["stored"].cloud

    assert cloud.texts.shape == cloud.images.shape == (60, 2)
    assert cloud.texts[:, 0].max() < cloud.images[:, 0].min()
    assert 0.8 < cloud.shown < 1
    gap = shifted.mitigations["stored"].gap
    apart = np.linalg.norm(cloud.texts.mean(axis=0) - cloud.images.mean(axis=0))
    assert apart == pytest.approx(gap.distance.value, rel=0.01)
