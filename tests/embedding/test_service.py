"""Tests against a real server, in its own process, that knows three colours."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from embedding_server import COLOURS, MALFORMED
from llama_index.core.schema import ImageNode, TextNode
from paths import TESTS
from PIL import Image
from rerank_server import KEY

from llama_index_gap import DualIndex, EmbeddingService, ImageError, ModelError
from llama_index_gap.errors import EmbeddingError, InvalidValueError

DIALECTS = ("openai", "vllm", "infinity", "jina", "cohere")
WITH_IMAGES = DIALECTS[1:]


@contextmanager
def serving() -> Iterator[str]:
    command = [sys.executable, str(TESTS / "support" / "embedding_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    files = {name: tmp_path / f"{name}.png" for name in COLOURS}
    for name, file in files.items():
        Image.new("RGB", (40, 30), COLOURS[name]).save(file)
    return files


def service(address: str, dialect: str, before: str = "", **settings: object) -> EmbeddingService:
    url = f"{address}/{before}{dialect}/embeddings"
    return EmbeddingService(url, "colours", dialect=dialect, **settings)


def asked(address: str) -> list[dict]:
    return httpx2.get(address, trust_env=False).json()


@pytest.mark.parametrize("dialect", WITH_IMAGES)
def test_a_text_and_an_image_of_its_colour_are_nearest(
    address: str, images: dict[str, Path], dialect: str
) -> None:
    model = service(address, dialect)

    texts = np.array(model.get_text_embedding_batch(["red", "green", "blue"]))
    shown = np.array(model.get_image_embedding_batch([*map(str, images.values())]))

    np.testing.assert_allclose(np.linalg.norm([*texts, *shown], axis=1), 1, rtol=1e-6)
    assert (texts @ shown.T).argmax(axis=1).tolist() == [0, 1, 2]
    assert model.dimension == 4


@pytest.mark.parametrize("dialect", DIALECTS)
def test_queries_and_documents_say_what_they_are(address: str, dialect: str) -> None:
    prompts = {"query_prompt": f"{dialect} query: ", "document_prompt": f"{dialect} passage: "}
    model = service(address, dialect, **prompts, query_options={"task": "retrieval.query"})

    model.get_query_embedding("red")
    model.get_text_embedding("green")

    query, document = asked(address)[-2:]
    assert f"{dialect} query: red" in str(query)
    assert f"{dialect} passage: green" in str(document)
    assert (query["task"], document.get("task")) == ("retrieval.query", None)


def test_batches_are_of_the_size_that_the_service_takes(
    address: str, images: dict[str, Path]
) -> None:
    before = len(asked(address))
    for dialect, batch in (("cohere", 96), ("jina", 100)):
        model = service(address, dialect, embed_batch_size=100)
        assert len(model.get_text_embedding_batch(["red"] * 101)) == 101
        assert len(model.get_image_embedding_batch([str(images["red"])] * 3)) == 3
        questions = asked(address)[before:]
        before += len(questions)
        texts = [len(each.get("texts") or each.get("input") or []) for each in questions]
        assert max(texts) == batch

    assert [len(each["images"]) for each in asked(address) if "images" in each][-3:] == [1, 1, 1]


def test_asynchronous_forms_give_the_same(address: str, images: dict[str, Path]) -> None:
    model = service(address, "jina")

    async def both() -> tuple[list[list[float]], list[list[float]]]:
        return await asyncio.gather(
            model.aget_text_embedding_batch(["red", "blue"]),
            model.aget_image_embedding_batch([str(images["red"]), str(images["blue"])]),
        )

    for _ in range(2):  # another event loop each time
        texts, shown = asyncio.run(both())
        assert texts == model.get_text_embedding_batch(["red", "blue"])
        assert shown == model.get_image_embedding_batch(
            [*map(str, (images["red"], images["blue"]))]
        )


def test_large_images_are_scaled_down_before_they_are_sent(address: str, tmp_path: Path) -> None:
    Image.new("RGB", (400, 100)).save(tmp_path / "wide.png")
    service(address, "jina", scale_to_pixels=100).get_image_embedding(str(tmp_path / "wide.png"))

    from llama_index_gap.images.opening import open_image

    assert open_image(asked(address)[-1]["input"][0]["image"]).size == (20, 5)


def test_dimensions_are_asked_for(address: str) -> None:
    assert len(service(address, "jina", dimensions=2).get_query_embedding("red")) == 2
    with pytest.raises(ModelError, match="has 4 numbers, not 2; its model may ignore dimensions"):
        service(address, "cohere", dimensions=2).get_query_embedding("red")


@pytest.mark.parametrize("kind", MALFORMED)
def test_an_answer_that_holds_no_vectors_is_an_error(address: str, kind: str) -> None:
    model = service(address, "openai", f"{kind}/9/a/")
    with pytest.raises(ModelError, match=r"colours at 127\.0\.0\.1: "):
        model.get_text_embedding_batch(["red", "green"])


@pytest.mark.parametrize("kind", ["500", "429-after-0", "drop"])
def test_what_may_pass_is_tried_again(address: str, kind: str) -> None:
    assert service(address, "openai", f"{kind}/2/b/").get_query_embedding("red")
    with pytest.raises(ModelError, match="tried 2 times"):
        service(address, "openai", f"{kind}/9/c/", retries=1).get_query_embedding("red")


def test_the_key_comes_from_the_environment_and_is_never_shown(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="COLOURS_KEY holds no key"):
        service(address, "jina", "keyed/", api_key_env="COLOURS_KEY")
    monkeypatch.setenv("COLOURS_KEY", KEY)
    by_name = service(address, "jina", "keyed/", api_key_env="COLOURS_KEY")
    given = service(address, "jina", "keyed/", api_key=KEY)

    assert by_name.get_query_embedding("red") == given.get_query_embedding("red")
    assert copy.deepcopy(given).get_query_embedding("red")
    for model in (by_name, given):
        shown = [repr(model), str(model), json.dumps(model.to_dict()), str(pickle.dumps(model))]
        assert not any(KEY in each for each in shown)
    with pytest.raises(ModelError, match=r"HTTP 401.*check the key") as error:
        service(address, "jina", "keyed/", api_key="wrong-key").get_query_embedding("red")
    assert "wrong-key" not in str(error.value)
    with pytest.raises(ValueError, match="others could read the key") as error:
        EmbeddingService("http://example.com/v1/embeddings", "m", api_key=KEY)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "ftp://a/b"}, "must be http"),
        ({"url": "http://user:secret@a/b"}, "holds a user name or password"),
        ({"dialect": "other"}, "dialect"),
        ({"dimensions": 0}, "dimensions"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"image_prompt": "An image."}, "only dialect='vllm'"),
        ({"modle": "a"}, "modle"),
    ],
)
def test_settings_are_checked_before_anything_is_asked(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingService(**{"url": "http://a/v1/embeddings", "model_name": "m", **settings})


def test_images_are_never_fetched_nor_read_outside_of_their_root(
    address: str, images: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    model = service(address, "jina", image_root=tmp_path / "root")
    for source in ("https://example.com/a.png", str(images["red"])):
        with pytest.raises(ImageError):
            model.get_image_embedding(source)
    with pytest.raises(InvalidValueError, match="takes texts only"):
        service(address, "openai").get_image_embedding(str(images["red"]))


def test_an_index_is_made_searched_and_opened_again_without_a_paid_call(
    address: str, images: dict[str, Path], tmp_path: Path
) -> None:
    nodes = [ImageNode(id_=name, image_path=str(file)) for name, file in images.items()]
    nodes += [TextNode(id_=f"text {name}", text=f"It is {name}") for name in COLOURS]
    uri = str(tmp_path / "gap.db")
    settings = {"image_root": tmp_path}
    with DualIndex(uri, embed_model=service(address, "jina"), **settings) as index:
        index.insert_nodes(nodes)
        assert index.search("blue", top_k=2)[0].key in {"blue", "text blue"}

    before = len(asked(address))
    with DualIndex(uri, embed_model=service(address, "jina"), **settings) as index:
        assert len(asked(address)) == before
        assert index.search(image=images["green"]).nodes[0].node_id == "green"
    with pytest.raises(
        ValueError, match=r"EmbeddingService\('colours', dialect='jina', .*as embed"
    ):
        DualIndex(uri)
    for other in ({"query_prompt": "q: "}, {"dimensions": 4}, {"image_options": {"task": "x"}}):
        with pytest.raises(ValueError, match="not with"):
            DualIndex(uri, embed_model=service(address, "jina", **other))
    moved = EmbeddingService("http://127.0.0.1:9/embeddings", "colours", dialect="jina")
    DualIndex(uri, embed_model=moved, **settings).close()  # the same model at another address


def test_a_service_that_dies_is_an_error_and_a_second_run_goes_on(
    images: dict[str, Path], tmp_path: Path
) -> None:
    nodes = [TextNode(id_=str(place), text=f"red {place}") for place in range(40)]
    with serving() as address:
        model = service(address, "jina", embed_batch_size=4, retries=0)
        model.get_query_embedding("red")
        with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
            with pytest.raises(httpx2.RequestError):
                httpx2.post(f"{address}/stop", json={}, trust_env=False)
            with pytest.raises(EmbeddingError, match="cannot be reached"):
                index.insert_nodes(nodes)
    with serving() as address:
        model = service(address, "jina")
        with DualIndex(str(tmp_path / "gap.db"), embed_model=model) as index:
            report = index.insert_nodes(nodes)
            assert report.text_rows + report.unchanged == 40
