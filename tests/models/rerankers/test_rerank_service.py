"""Tests against a real server, in its own process, that scores with a tiny checkpoint."""

from __future__ import annotations

import base64
import io
import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from on_cpu import on_cpu
from paths import PARITY, TESTS
from PIL import Image
from rerank_server import HANGS_S, KEY
from tiny_rerankers import make_tiny_qwen_reranker

from llama_index_gap.models import Joint, LazyImage, ModelError, load_scorer
from llama_index_gap.models.checkpoints.checkpoint import find_checkpoint
from llama_index_gap.models.rerankers.cross_encoder import CrossEncoderScorer
from llama_index_gap.models.rerankers.rerank_service import RerankService

SERVER = TESTS / "support" / "rerank_server.py"
QUERY = "a red cat"
TEXTS = ["a red cat sat", "x", "https://example.com/cat.jpg", "a dog"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_reranker(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def address(checkpoint: Path) -> Iterator[str]:
    with serving(checkpoint) as address:
        yield address


@contextmanager
def serving(checkpoint: Path) -> Iterator[str]:
    command = [sys.executable, str(SERVER), str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def local(checkpoint: Path) -> CrossEncoderScorer:
    """The model that the server runs."""
    return CrossEncoderScorer(find_checkpoint(checkpoint), on_cpu({}))


def service(address: str, path: str = "", **options: Any) -> RerankService:
    return RerankService(f"{address}{path}/v1/rerank", "tiny", **options)


def faulty(address: str, kind: str, times: int, request: Any, **options: Any) -> RerankService:
    return service(address, f"/{kind}/{times}/{abs(hash(request.node.name))}", **options)


def seen(address: str) -> list[dict[str, Any]]:
    return httpx2.get(address, trust_env=False).json()


# --- what is asked, and what comes back ---------------------------------------------------------


@pytest.mark.parametrize("dialect", ["jina", "vllm"])
def test_texts_score_as_the_model_itself(
    address: str, local: CrossEncoderScorer, dialect: str
) -> None:
    scores = service(address, dialect=dialect).score(QUERY, TEXTS)

    np.testing.assert_allclose(scores, local.score(QUERY, TEXTS), atol=2e-5)
    assert scores.dtype == np.float32
    asked = seen(address)[-1]
    assert asked["query"] == ({"text": QUERY} if dialect == "jina" else QUERY)
    assert asked["documents"][1] == ({"text": "x"} if dialect == "jina" else "x")
    assert (asked["model"], asked["top_n"]) == ("tiny", len(TEXTS))


@pytest.mark.parametrize("dialect", ["jina", "vllm"])
def test_images_arrive(
    address: str, local: CrossEncoderScorer, dialect: str, noise: list[Image.Image]
) -> None:
    scorer = service(address, dialect=dialect)

    scores = scorer.score(noise[0], [noise[1], "a text", LazyImage("key", lambda: noise[2])])

    arrived = [decoded(item) for item in (noise[0], noise[1], noise[2])]
    wanted = local.score(arrived[0], [arrived[1], "a text", arrived[2]])
    np.testing.assert_allclose(scores, wanted, atol=2e-5)


def test_jina_reranker_behind_a_service(noise: list[Image.Image]) -> None:
    checkpoint = PARITY / "jina_m0_tiny"
    local = load_scorer(checkpoint, on_cpu({}))

    with serving(checkpoint) as address:
        scores = service(address).score("slm markdown", ["Gold", noise[0], "Silver", noise[1]])

    wanted = local.score("slm markdown", ["Gold", decoded(noise[0]), "Silver", decoded(noise[1])])
    np.testing.assert_allclose(scores, wanted, atol=2e-5)


def decoded(image: Image.Image) -> Image.Image:
    """Decode an image as the server receives it."""
    uri = RerankService("http://localhost/v1/rerank", "tiny").prepare(image)["image"]
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_images_arrive_as_they_were() -> None:
    photo = Image.merge("RGB", [Image.linear_gradient("L"), *[Image.radial_gradient("L")] * 2])

    arrived = decoded(photo)

    assert (arrived.size, arrived.mode) == (photo.size, "RGB")
    assert np.abs(np.asarray(arrived, float) - np.asarray(photo, float)).mean() < 1


def test_large_images_are_scaled_down(noise: list[Image.Image]) -> None:
    image = Image.new("RGB", (2000, 1000))

    assert decoded(image).size == (1097, 548)  # at most 768 × 28 × 28 pixels
    assert image.size == (2000, 1000)


def test_a_text_and_an_image_as_one(
    address: str, local: CrossEncoderScorer, noise: list[Image.Image]
) -> None:
    document = Joint("a caption", noise[0])

    scores = service(address, dialect="vllm").score(QUERY, [document])

    wanted = local.score(QUERY, [Joint("a caption", decoded(noise[0]))])
    np.testing.assert_allclose(scores, wanted, atol=2e-5)
    with pytest.raises(ModelError, match="not both together"):
        service(address).prepare(document)


def test_many_documents_are_asked_about_in_batches(address: str) -> None:
    scores = service(address, batch_size=3).score(QUERY, [*TEXTS, *TEXTS])

    assert [len(each["documents"]) for each in seen(address)[-3:]] == [3, 3, 2]
    np.testing.assert_allclose(scores[:4], scores[4:], atol=2e-5)
    assert service(address).score(QUERY, []).shape == (0,)


def test_what_it_says_of_itself(address: str) -> None:
    jina, vllm = service(address), service(address, dialect="vllm", modalities=["text"])

    assert (jina.name, jina.licence, jina.joint) == ("tiny at 127.0.0.1", None, False)
    assert jina.modalities == {"text", "image"}
    assert (vllm.modalities, vllm.joint) == ({"text"}, False)
    assert service(address, dialect="vllm").joint


def test_a_service_of_texts_refuses_images(address: str, noise: list[Image.Image]) -> None:
    scorer = service(address, modalities=["text"])

    for item in (noise[0], Joint("a", noise[0])):
        with pytest.raises(ModelError, match="reads only texts; leave out the rest"):
            scorer.prepare(item)


def test_only_known_models_give_probabilities() -> None:
    scores = np.array([0.2, 0.7], np.float32)
    url = "http://localhost/v1/rerank"

    for model in ("jina-reranker-m0", "jinaai/jina-reranker-m0"):
        np.testing.assert_array_equal(RerankService(url, model).to_probability(scores), scores)
    assert RerankService(url, "jina-reranker-v3").to_probability(scores) is None


# --- the key ------------------------------------------------------------------------------------


def test_the_key_is_sent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")

    for options in ({"api_key": KEY}, {"api_key_env": "MY_KEY"}):
        assert service(address, "/keyed", **options).score(QUERY, TEXTS).shape == (4,)


def test_the_key_is_in_no_message(
    address: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server repeats the key in its answer."""
    caplog.set_level(logging.DEBUG)
    wrong = "jina_wrong_but_secret"
    monkeypatch.setenv("MY_KEY", wrong)

    with pytest.raises(ModelError, match=r"HTTP 401 .*check the key in \$MY_KEY") as caught:
        service(address, "/keyed", api_key_env="MY_KEY").score(QUERY, TEXTS)

    assert "no such key: Bearer ***" in str(caught.value)
    scorer = service(address, "/keyed", api_key=wrong)
    for text in (str(caught.value), caplog.text, repr(scorer), str(pickle.dumps(scorer))):
        assert wrong not in text


def test_pickles_without_its_key(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    by_name = pickle.loads(pickle.dumps(service(address, "/keyed", api_key_env="MY_KEY")))
    by_value = pickle.loads(pickle.dumps(service(address, "/keyed", api_key=KEY)))

    assert by_name.score(QUERY, TEXTS).shape == (4,)
    with pytest.raises(ModelError, match="HTTP 401"):
        by_value.score(QUERY, TEXTS)


def test_a_key_that_is_not_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)

    with pytest.raises(ModelError, match="the environment variable MY_KEY holds no key"):
        RerankService("https://api.example/v1/rerank", "tiny", api_key_env="MY_KEY")


def test_a_key_that_is_none_is_not_shown() -> None:
    with pytest.raises(ModelError, match="another character that no key has") as caught:
        RerankService("https://api.example/v1/rerank", "tiny", api_key="secret\r\nX-Other: 1")
    assert "secret" not in str(caught.value)


def test_no_key_over_http_to_another_machine() -> None:
    url = "http://gpu.example/v1/rerank"

    with pytest.raises(
        ValueError, match=r"others could read the key on its way to gpu.example; use https, or"
    ):
        RerankService(url, "tiny", api_key=KEY)
    RerankService(url, "tiny", api_key=KEY, allow_http=True)
    RerankService(url, "tiny")
    for host in ("localhost", "127.0.0.1", "[::1]"):
        RerankService(f"http://{host}:8000/v1/rerank", "tiny", api_key=KEY)


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["500", "503", "drop", "429-after-0"])
def test_asks_again_after_a_failure_that_may_pass(
    address: str, local: CrossEncoderScorer, kind: str, request: pytest.FixtureRequest
) -> None:
    scores = faulty(address, kind, 1, request).score(QUERY, TEXTS)

    np.testing.assert_allclose(scores, local.score(QUERY, TEXTS), atol=2e-5)


@pytest.mark.parametrize("kind", ["429-after-1", "429-at-2"])
def test_waits_as_long_as_the_service_says(
    address: str, kind: str, request: pytest.FixtureRequest
) -> None:
    scorer = faulty(address, kind, 1, request)
    started = time.monotonic()

    scorer.score(QUERY, TEXTS)

    assert time.monotonic() - started >= 0.95


def test_does_not_wait_for_an_hour(address: str, request: pytest.FixtureRequest) -> None:
    started = time.monotonic()

    with pytest.raises(ModelError, match=r"HTTP 429 .*it asks for a pause of 3600 seconds"):
        faulty(address, "429-after-3600", 1, request).score(QUERY, TEXTS)
    assert time.monotonic() - started < 30


def test_gives_up_in_the_end(address: str, request: pytest.FixtureRequest) -> None:
    before = len(seen(address))

    with pytest.raises(ModelError, match=r"tiny at 127.0.0.1: HTTP 500 .*'; tried 2 times"):
        faulty(address, "500", 99, request, retries=1).score(QUERY, TEXTS)
    assert len(seen(address)) - before == 2


@pytest.mark.parametrize("status", ["400", "404", "422"])
def test_a_refusal_is_not_argued_with(
    address: str, status: str, request: pytest.FixtureRequest
) -> None:
    before = len(seen(address))

    with pytest.raises(ModelError, match=f"HTTP {status} .*not now"):
        faulty(address, status, 99, request).score(QUERY, TEXTS)
    assert len(seen(address)) - before == 1


def test_waits_no_longer_than_it_may(address: str, request: pytest.FixtureRequest) -> None:
    started = time.monotonic()

    with pytest.raises(ModelError, match=r"no answer within 0.5 seconds; raise timeout_s, or"):
        faulty(address, "hang", 1, request, timeout_s=0.5).score(QUERY, TEXTS)
    assert time.monotonic() - started < HANGS_S


def test_says_that_no_service_is_there() -> None:
    with pytest.raises(ModelError, match=r"cannot be reached .*; is it running\?; tried 1 times"):
        RerankService("http://127.0.0.1:9/v1/rerank", "tiny", retries=0).score(QUERY, TEXTS)


def test_redirects_are_not_followed(address: str, request: pytest.FixtureRequest) -> None:
    with pytest.raises(
        ModelError, match=r"redirects to http://elsewhere.example/v1/rerank, which is not followed"
    ):
        faulty(address, "redirect", 1, request).score(QUERY, TEXTS)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("not-json", "its answer is not JSON"),
        ("no-results", 'its answer holds no list "results" of objects'),
        ("results-no-objects", 'its answer holds no list "results" of objects'),
        ("one-missing", r"each of 4 documents once, from 0 to 3, but it names \[1, 2, 3\]"),
        ("one-twice", r"once, from 0 to 3, but it names \[1, 2, 3, 1\]"),
        ("one-too-many", r"once, from 0 to 3, but it names \[0, 1, 2, 3, 4\]"),
        ("index-a-text", r"it names \['0', 1, 2, 3\]"),
        ("no-score", "the relevance_score of document 0 is None, which is not a number"),
        ("score-a-text", "the relevance_score of document 0 is '0.5'"),
        ("score-true", "the relevance_score of document 0 is True"),
        ("score-nan", "the relevance_score of document 0 is nan"),
        ("score-too-large", "the relevance_score of document 0 is 1000"),
    ],
)
def test_refuses_an_answer_that_is_no_ranking(
    address: str, kind: str, message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ModelError, match=f"tiny at 127.0.0.1: .*{message}"):
        faulty(address, kind, 1, request).score(QUERY, TEXTS)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"url": "ftp://x/rerank"}, r"url='ftp://x/rerank': must be http\(s\)://host/path"),
        ({"url": "api.jina.ai/v1/rerank"}, r"must be http\(s\)://host/path"),
        ({"url": "https://me:secret@x/rerank"}, "holds a user name or password"),
        ({"dialect": "cohere"}, "dialect='cohere': must be one of jina, vllm"),
        ({"modalities": []}, "must name 'text', 'image' or both"),
        ({"modalities": ["video"]}, "must name 'text', 'image' or both"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"scale_to_pixels": 0}, "scale_to_pixels=0: must be at least 1"),
        ({"timeout_s": 0}, "timeout_s=0: must be more than 0"),
        ({"retries": -1}, "retries=-1: must be at least 0"),
    ],
)
def test_refuses_settings_that_break_their_rule(option: dict[str, Any], message: str) -> None:
    settings = {"url": "https://api.example/v1/rerank", **option}

    with pytest.raises(ValueError, match=message) as caught:
        RerankService(settings.pop("url"), "tiny", **settings)
    assert "secret" not in str(caught.value)
