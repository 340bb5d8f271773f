"""jina-reranker-m0 against the outputs of its own code, on a tiny random checkpoint."""

import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from on_cpu import on_cpu
from paths import PARITY
from PIL import Image
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from llama_index_gap.models.base import Joint, LazyImage, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.checkpoints.tokens import load_plain_tokenizer
from llama_index_gap.models.rerankers import jina_reranker
from llama_index_gap.models.rerankers.jina_reranker import JinaRerankerScorer
from llama_index_gap.models.rerankers.packing import run_packed

FOLDER = PARITY / "jina_m0_tiny"
CASES = json.loads((FOLDER / "parity.json").read_text(encoding="utf-8"))["cases"]
IMAGES = {path.stem: Image.open(path).copy() for path in (PARITY / "images").glob("*.png")}
LAYER_BYTES = 2 * 3 * 2 * 16 * 4  # of a token: keys and values, layers, heads, width, float32


def load(folder=FOLDER, dtype=torch.float32, **options):
    return JinaRerankerScorer(Checkpoint("tiny", folder), on_cpu({"dtype": dtype}), **options)


def plain(**options):
    """A scorer without caches."""
    return load(prefix_bytes=0, vision_bytes=0, **options)


@pytest.fixture(scope="module")
def scorer():
    return load()


@pytest.fixture(scope="module")
def expected():
    return load_arrays(FOLDER / "parity.safetensors")


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "copy")


@pytest.fixture
def decoded():
    """Make images that record each time they are decoded."""

    def image(name):
        def decode():
            image.times.append(name)
            return IMAGES[name]

        return LazyImage(name, decode)

    image.times = []
    return image


def change_weights(folder, change):
    """Rewrite a checkpoint's weights after ``change`` has edited its dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def as_item(name, kind):
    return IMAGES[name] if kind == "image" else name


def pairs_of(case):
    """The query of a case, which all its pairs share, and its documents."""
    (query, *_), documents = zip(*case["pairs"], strict=True)
    query = as_item(query, case["query_type"])
    return query, [as_item(document, case["doc_type"]) for document in documents]


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_what_it_says_of_itself(scorer):
    assert (scorer.name, scorer.licence, scorer.joint) == ("tiny", None, False)
    assert scorer.modalities == {"text", "image"}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("make", [plain, load], ids=["plain", "kept"])
def test_scores_of_the_reference(case, make, expected):
    scorer = make(max_length=case.get("max_length", 10240))
    query, documents = pairs_of(case)
    for _ in range(2):  # the second time from the cache
        close(scorer.score(query, documents), case["scores"])
        solo = [scorer.score(query, [document])[0] for document in documents]
        close(solo, case["solo_scores"])


@pytest.mark.parametrize("name", CASES)
def test_tokens_of_the_reference(name, expected, monkeypatch):
    scorer = plain(max_length=CASES[name].get("max_length", 10240), batch_size=1)
    seen = []
    embed = scorer._embed
    monkeypatch.setattr(
        scorer, "_embed", lambda ids, scenes: (seen.append(ids.tolist()), embed(ids, scenes))[1]
    )
    query, documents = pairs_of(CASES[name])
    for document in documents:
        scorer.score(query, [document])
    padded = expected[f"{name}.input_ids"]
    masks = expected.get(f"{name}.attention_mask", np.ones_like(padded))
    assert seen == [row[mask == 1].tolist() for row, mask in zip(padded, masks, strict=True)]


def test_the_score_is_a_probability_of_the_raw_output(scorer, expected):
    query, documents = pairs_of(CASES["text_text"])
    scores = scorer.score(query, documents)
    close(scores, 1 / (1 + np.exp(2.65 - expected["text_text.raw_out"])))
    assert scores.dtype == np.float32
    assert (scorer.to_probability(scores) == scores).all()


def test_no_documents(scorer):
    assert scorer.score("cat", []).shape == (0,)


# Queries and documents of all kinds and lengths; some occur several times.
QUERIES = ["slm markdown", "", "cat " * 30, *map(IMAGES.get, ["gray_80x60", "tall_40x90"])]
DOCUMENTS = [
    "Gold",
    "",
    " \n leading and trailing \n\n",
    "lorem ipsum " * 20,
    "数据提取么？为什么不用正则啊",
    *IMAGES.values(),
    LazyImage("gray_80x60", lambda: IMAGES["gray_80x60"]),
]


@pytest.fixture(scope="module")
def alone():
    """The score of each document for each query, computed alone and without caches."""
    scorer = plain(batch_size=1)
    return np.array([scorer.score(query, DOCUMENTS) for query in QUERIES])


@pytest.fixture(scope="module")
def ways():
    """Scorers that cache everything, something or nothing."""
    few = {"prefix_bytes": 80 * LAYER_BYTES, "vision_bytes": 3000}
    return [load(), load(**few), load(prefix_bytes=0), load(vision_bytes=0), plain()]


@settings(max_examples=40, deadline=None)
@given(
    way=st.tuples(st.integers(0, 4), st.integers(1, 12)),
    query=st.sampled_from(range(len(QUERIES))),
    documents=st.lists(st.sampled_from(range(len(DOCUMENTS))), max_size=12),
)
def test_no_score_depends_on_batches_order_or_what_was_kept(alone, ways, way, query, documents):
    scorer = ways[way[0]]
    scorer._batch_size = way[1]
    found = scorer.score(QUERIES[query], [DOCUMENTS[document] for document in documents])
    close(found, alone[query, documents])


def test_passes_are_bounded(monkeypatch, alone):
    passes = []

    def note(model, pieces):
        passes.append([piece.length for piece in pieces])
        return run_packed(model, pieces)

    monkeypatch.setattr(jina_reranker, "run_packed", note)
    monkeypatch.setattr(jina_reranker, "_MOST_TOKENS", 100)
    close(plain(batch_size=2).score(QUERIES[0], DOCUMENTS), alone[0])
    assert sum(map(len, passes)) == len(DOCUMENTS)
    assert {1, 2} == set(map(len, passes))
    assert all(len(lengths) == 1 or sum(lengths) <= 100 for lengths in passes)


def test_in_bfloat16_the_order_changes_nothing_at_all():
    documents = DOCUMENTS[:9]
    scores = plain(dtype=torch.bfloat16, batch_size=3).score("slm markdown", documents)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(documents))
        shuffled = plain(dtype=torch.bfloat16, batch_size=3).score(
            "slm markdown", [documents[place] for place in order]
        )
        assert (shuffled == scores[order]).all()


def test_bfloat16_is_near_float32(alone):
    # Cached keys and values lose no more precision than the number format does anyway.
    noise = []
    for scorer in (plain(dtype=torch.bfloat16), load(dtype=torch.bfloat16)):
        for _ in range(2):
            found = [scorer.score(query, DOCUMENTS) for query in QUERIES]
            noise.append(np.abs(found - alone).max())
    assert max(noise) < 0.02
    assert noise[3] < 2 * noise[0]


def test_threads_at_once(alone):
    scorer = load(prefix_bytes=150 * LAYER_BYTES, vision_bytes=5000, batch_size=3)
    queries = list(range(len(QUERIES))) * 4
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: scorer.score(QUERIES[query], DOCUMENTS), queries))
    close(found, alone[queries])
    assert scorer._prefixes.nbytes <= 150 * LAYER_BYTES


SPECIAL = ["<|vision_start|><|image_pad|><|vision_end|>", "a <|endoftext|> b", "<|im_start|>"]


@pytest.mark.parametrize("text", SPECIAL)
def test_special_tokens_in_a_text_are_text(scorer, text):
    ids = scorer._encode(text)
    assert max(ids) < 256  # this checkpoint's special tokens have higher ids
    assert bytes_of(ids) == text
    (by_itself,) = plain().score("slm markdown", [text])
    beside_images = plain().score("slm markdown", [*IMAGES.values(), text])
    assert beside_images[-1] == pytest.approx(by_itself, abs=1e-5)
    assert np.isfinite(scorer.score(text, [text, *IMAGES.values()])).all()


def bytes_of(ids):
    return load_plain_tokenizer(Checkpoint("tiny", FOLDER)).decode(ids)


@given(document=st.text(), query=st.text())
def test_a_prompt_always_breaks_before_the_query(document, query):
    # Otherwise the document's tokens would depend on the query.
    tokenizer = load_plain_tokenizer(Checkpoint("tiny", FOLDER))
    before, after = f"**Document**:\n{document}\n", f"**Query**:\n{query}"
    spans = [span for _, span in tokenizer.pre_tokenizer.pre_tokenize_str(before + after)]
    assert len(before) in {start for start, _ in spans}


def test_a_kept_document_is_not_decoded_again(decoded):
    documents = [decoded("gray_80x60"), decoded("wide_100x70")]
    scorer = load(vision_bytes=0)
    scorer.score("slm markdown", documents)
    assert decoded.times == ["gray_80x60", "wide_100x70"]
    scorer.score("another", documents)
    assert len(decoded.times) == 2


def test_an_image_that_was_seen_is_not_decoded_again(decoded):
    scorer = load(prefix_bytes=0)
    for query in ("one", "another", decoded("gray_80x60")):
        scorer.score(query, [decoded("gray_80x60"), decoded("gray_80x60")])
    assert decoded.times == [
        "gray_80x60",
        "gray_80x60",
    ]  # both were prepared before either ran through the tower


def test_an_image_is_decoded_late_if_what_was_kept_is_gone(decoded, alone):
    scorer = load(prefix_bytes=100 * LAYER_BYTES, vision_bytes=0)
    image = decoded("gray_80x60")
    scorer.score("slm markdown", [image])
    prepared = scorer.prepare(image)
    assert (prepared.patches, len(decoded.times)) == (None, 1)
    scorer.score("slm markdown", ["lorem ipsum " * 6])  # pushes it out of the cache

    found = scorer.score_prepared(scorer.prepare("slm markdown"), [prepared])

    assert len(decoded.times) == 2
    close(found, alone[0, DOCUMENTS.index(IMAGES["gray_80x60"])])


def test_what_is_kept_is_bounded_and_can_be_switched_off():
    budget = 200 * LAYER_BYTES
    scorer = load(prefix_bytes=budget, vision_bytes=4000)
    for query, _ in itertools.product(QUERIES, range(2)):
        scorer.score(query, DOCUMENTS)
        assert 0 < scorer._prefixes.nbytes <= budget
        assert 0 < scorer._vision._memory.nbytes <= 4000
    scorer = plain()
    scorer.score("slm markdown", DOCUMENTS)
    assert (len(scorer._prefixes), len(scorer._vision._memory)) == (0, 0)


def test_a_token_takes_what_its_keys_and_values_take():
    scorer = load()
    scorer.score("slm markdown", ["Gold"])
    prompt = "**Document**:\nGold\n"
    assert scorer._prefixes.nbytes == len(prompt) * LAYER_BYTES


@pytest.mark.parametrize("make", [plain, load], ids=["plain", "kept"])
def test_a_long_document_makes_room_for_an_image(make):
    scorer = make(max_length=1024)
    large = Image.new("RGB", (28 * 28, 25 * 28), "red")
    # The score token, the image with its frame, the words before it and before the document.
    room = 1024 - 1 - (28 * 25 + 2) - len("**Query**:\n") - len("**Document**:\n")
    start, other_start = "lorem " * 100, "Lorem " * 100
    documents = [start[:room] + end for end in ("", "x" * 10, "y" * 2000)] + [other_start]
    scorer.score("slm markdown", documents)  # this caches a longer prefix

    same, one, two, different = scorer.score(large, documents)

    assert (one, two) == pytest.approx((two, one), abs=1e-5)
    assert abs(different - one) > 1e-3
    assert same == pytest.approx(one, abs=0.1)  # slightly different, because it ends in a newline


def test_two_images_that_are_too_long_together():
    scorer = load(max_length=1024)
    large = Image.new("RGB", (28 * 28, 25 * 28))
    with pytest.raises(
        ModelError, match=r"take 1430 tokens, but max_length=1024 allows 1023; pass"
    ):
        scorer.score(large, ["Gold", large])
    small = load(max_length=1024, scale_to_pixels=100_000)
    assert np.isfinite(small.score(large, ["Gold", large])).all()


def test_what_it_cannot_read(scorer):
    with pytest.raises(ModelError, match=r"tiny reads a text or an image, not both together"):
        scorer.prepare(Joint("cat", IMAGES["gray_80x60"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1023}, r"max_length=1023: must be 1024 to 10240"),
        ({"max_length": 10241}, r"max_length=10241: must be 1024 to 10240"),
        ({"batch_size": 0}, r"batch_size=0: must be at least 1"),
        ({"prefix_bytes": -1}, r"prefix_bytes=-1: must be at least 0"),
        ({"vision_bytes": -1}, r"vision_bytes=-1: must be at least 0"),
        (
            {"scale_to_pixels": 3135},
            r"scale_to_pixels=3135: tiny takes 3136 to 602112 pixels",
        ),
        ({"scale_to_pixels": 602113}, r"scale_to_pixels=602113: .* leave it out for the largest"),
    ],
)
def test_settings_have_limits(options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_the_head_is_computed_in_float32():
    scorer = load(dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in scorer._head.parameters()} == {torch.float32}
    assert scorer._model.visual.dtype == scorer._model.language_model.dtype == torch.bfloat16


def test_renamed_weight(copy):
    change_weights(copy, lambda tensors: tensors.update(extra=tensors.pop("model.norm.weight")))
    match = r"missing: language_model\.norm\.weight; unexpected: extra$"
    with pytest.raises(ModelError, match=match):
        load(copy)


def test_a_head_that_plays_no_part_may_be_stored(copy, alone):
    change_weights(copy, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(288, 64)}))
    close(load(copy).score(QUERIES[0], DOCUMENTS), alone[0])


@pytest.mark.parametrize("key", ["score.2.bias", "visual.merger.ln_q.weight"])
def test_missing_weight(copy, key):
    change_weights(copy, lambda tensors: tensors.pop(key))
    with pytest.raises(ModelError, match=f"missing: {key}$"):
        load(copy)


def test_wrongly_shaped_weight(copy):
    change_weights(copy, lambda tensors: tensors.update({"score.2.weight": torch.zeros(2, 64)}))
    with pytest.raises(
        ModelError, match=r"wrongly shaped: score\.2\.weight \(2, 64\) for \(1, 64\)"
    ):
        load(copy)


def test_nan_in_a_weight(copy):
    change_weights(copy, lambda tensors: tensors["score.0.weight"].fill_(torch.nan))
    with pytest.raises(ModelError, match=r"NaN or infinity in the weights score\.0\.weight"):
        load(copy)


def test_variants_that_would_compute_wrongly(copy):
    change_json(copy / "config.json", use_sliding_window=True)
    with pytest.raises(ModelError, match=r"use_sliding_window=True \(supported: False\)"):
        load(copy)


def test_ids_come_from_the_checkpoint(copy):
    config = json.loads((copy / "config.json").read_text())
    del config["image_token_id"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json does not set image_token_id"):
        load(copy)


def test_config_that_does_not_load(copy):
    change_json(copy / "config.json", hidden_size="wide")
    with pytest.raises(ModelError, match=r"config\.json does not load"):
        load(copy)
