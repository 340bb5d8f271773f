from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import re
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gate import PATIENCE_S, Gate
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from llama_index_gap import DualEncoderEmbedding, ImageError, open_image
from llama_index_gap.models import ModelError
from llama_index_gap.threads import DECODING_THREADS

TEXTS = ["a red bicycle", "players celebrate", "a silver trophy", "rain", "a white ship"]


@pytest.fixture(scope="module")
def clip(tiny_clip: Path) -> DualEncoderEmbedding:
    return DualEncoderEmbedding(model_name=str(tiny_clip), dtype="float32", embed_batch_size=2)


# --- the vectors --------------------------------------------------------------------------------


def test_gives_transformers_vectors(
    clip: DualEncoderEmbedding, tiny_clip: Path, noise: list[Image.Image], noise_files: list[str]
) -> None:
    model = AutoModel.from_pretrained(tiny_clip)
    tokens = AutoTokenizer.from_pretrained(tiny_clip)(TEXTS, padding=True, return_tensors="pt")
    pixels = AutoImageProcessor.from_pretrained(tiny_clip, backend="pil")(
        noise, return_tensors="pt"
    )
    with torch.inference_mode():
        texts = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output)
        images = torch.nn.functional.normalize(model.get_image_features(**pixels).pooler_output)

    np.testing.assert_allclose(clip.get_text_embedding_batch(TEXTS), texts, atol=1e-6)
    np.testing.assert_allclose(clip.get_image_embedding_batch(noise_files), images, atol=1e-6)


def test_batches_equal_singles(clip: DualEncoderEmbedding, noise_files: list[str]) -> None:
    texts = [clip.get_text_embedding(text) for text in TEXTS]
    images = [clip.get_image_embedding(path) for path in noise_files]

    np.testing.assert_allclose(clip.get_text_embedding_batch(TEXTS), texts, atol=1e-6)
    np.testing.assert_allclose(clip.get_image_embedding_batch(noise_files), images, atol=1e-6)


def test_vectors_have_length_one_and_are_plain_floats(clip: DualEncoderEmbedding) -> None:
    vector = clip.get_query_embedding("a cat")

    assert len(vector) == clip.dimension == 16
    assert type(vector[0]) is float
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("modality", ["text", "image"])
def test_matryoshka_cuts_then_scales(
    tiny_clip: Path, clip: DualEncoderEmbedding, noise_files: list[str], modality: str
) -> None:
    short = DualEncoderEmbedding(model_name=str(tiny_clip), dtype="float32", dimensions=4)
    whole, cut = (
        (clip.get_text_embedding("a cat"), short.get_text_embedding("a cat"))
        if modality == "text"
        else (clip.get_image_embedding(noise_files[0]), short.get_image_embedding(noise_files[0]))
    )

    assert short.dimension == 4
    np.testing.assert_allclose(cut, np.array(whole[:4]) / np.linalg.norm(whole[:4]), atol=1e-6)


def test_every_form_of_an_image(clip: DualEncoderEmbedding, noise_files: list[str]) -> None:
    path = Path(noise_files[0])
    forms = [str(path), path, BytesIO(path.read_bytes()), ImageNode(image_path=str(path))]

    first, *others = clip.get_image_embedding_batch(forms)

    assert all(other == pytest.approx(first, abs=1e-6) for other in others)


def test_empty_batches(clip: DualEncoderEmbedding) -> None:
    assert clip.get_text_embedding_batch([]) == []
    assert clip.get_image_embedding_batch([]) == []
    assert asyncio.run(clip.aget_image_embedding_batch([])) == []


def test_query_and_document_prompts(tiny_clip: Path, clip: DualEncoderEmbedding) -> None:
    prompted = DualEncoderEmbedding(
        model_name=str(tiny_clip), dtype="float32", query_prompt="q: ", document_prompt="d: "
    )

    for got, expected in (
        (prompted.get_query_embedding("a cat"), clip.get_query_embedding("q: a cat")),
        (prompted.get_text_embedding("a cat"), clip.get_text_embedding("d: a cat")),
    ):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_batch_of_queries_has_the_prompt_of_queries(tiny_clip: Path) -> None:
    prompted = DualEncoderEmbedding(model_name=tiny_clip, query_prompt="q: ", embed_batch_size=2)
    queries = ["a cat", "a red dog", "a bicycle"]

    found = prompted.get_query_embedding_batch(queries)

    np.testing.assert_allclose(found, [*map(prompted.get_query_embedding, queries)], atol=1e-5)
    assert prompted.get_query_embedding_batch([]) == []


def test_another_model_for_images(
    tiny_clip: Path, tmp_path: Path, clip: DualEncoderEmbedding, noise_files: list[str]
) -> None:
    from llama_index_gap.demo.tiny import make_tiny_clip

    other = make_tiny_clip(tmp_path, seed=1)
    pair = DualEncoderEmbedding(
        model_name=str(tiny_clip), image_model_name=str(other), dtype="float32", query_prompt="q: "
    )
    alone = DualEncoderEmbedding(model_name=str(other), dtype="float32")

    assert pair.get_text_embedding("a cat") == clip.get_text_embedding("a cat")
    image = noise_files[0]
    assert pair.get_image_embedding(image) == alone.get_image_embedding(image)
    assert pair.get_image_embedding(image) != clip.get_image_embedding(image)


# --- synchronous and not ------------------------------------------------------------------------


async def everything(embedding: DualEncoderEmbedding, images: list[str]) -> list[Any]:
    return [
        await embedding.aget_query_embedding("a cat"),
        await embedding.aget_text_embedding("a cat"),
        await embedding.aget_text_embedding_batch(TEXTS),
        await embedding.aget_image_embedding(images[0]),
        await embedding.aget_image_embedding_batch(images, show_progress=True),
    ]


def test_async_equals_sync_in_two_event_loops(
    clip: DualEncoderEmbedding, noise_files: list[str]
) -> None:
    expected = [
        clip.get_query_embedding("a cat"),
        clip.get_text_embedding("a cat"),
        clip.get_text_embedding_batch(TEXTS),
        clip.get_image_embedding(noise_files[0]),
        clip.get_image_embedding_batch(noise_files),
    ]

    assert asyncio.run(everything(clip, noise_files)) == expected
    assert asyncio.run(everything(clip, noise_files)) == expected
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asyncio.run, everything(clip, noise_files)).result() == expected


CALLS: dict[str, Callable[[DualEncoderEmbedding, list[str]], Awaitable[Any]]] = {
    "query": lambda embedding, _: embedding.aget_query_embedding("a"),
    "text": lambda embedding, _: embedding.aget_text_embedding("a"),
    "texts": lambda embedding, _: embedding._aget_text_embeddings(["a"]),
    "text batch": lambda embedding, _: embedding.aget_text_embedding_batch(["a"]),
    "image": lambda embedding, images: embedding.aget_image_embedding(images[0]),
    "images": lambda embedding, images: embedding._aget_image_embeddings(images),
    "image batch": lambda embedding, images: embedding.aget_image_embedding_batch(images),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_event_loop_is_never_blocked(
    call: str, clip: DualEncoderEmbedding, noise_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def gated(encode: Callable[..., Any]) -> Callable[..., Any]:
        def encode_once_let(*args: Any) -> Any:
            gate.pass_through()
            return encode(*args)

        return encode_once_let

    encoder = clip._text_encoder
    for name in ("encode_text", "encode_prepared"):
        monkeypatch.setattr(encoder, name, gated(getattr(encoder, name)))

    asyncio.run(gate.beside(CALLS[call](clip, noise_files[:1])))
    assert threading.get_ident() not in gate.threads


def test_a_cancelled_batch_stops(
    clip: DualEncoderEmbedding, noise_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = clip._image_encoder
    encode = encoder.encode_prepared
    gate = Gate(at=3)

    def gated(prepared: list[Any]) -> Any:
        gate.pass_through()
        return encode(prepared)

    monkeypatch.setattr(encoder, "encode_prepared", gated)

    asyncio.run(gate.cancel(clip.aget_image_embedding_batch(noise_files * 40)))
    assert gate.passes == 3  # of 100
    assert clip.get_image_embedding_batch(noise_files[:1])  # the next call works


def test_threads_get_the_same_vectors(clip: DualEncoderEmbedding) -> None:
    texts = ["a", "a cat " * 30, "a long text " * 40, "dog"]
    expected = [clip.get_text_embedding_batch([text, "x"]) for text in texts]

    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda i: clip.get_text_embedding_batch([texts[i % 4], "x"]), range(80))

    assert all(result == expected[i % 4] for i, result in enumerate(results))


# --- long texts ---------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage() for r in caplog.records if r.name == "llama_index_gap.embedding.dual_encoder"
    ]


@pytest.mark.parametrize("way", ["sync", "async", "pipeline"])
def test_cut_texts_are_counted_in_one_warning(
    way: str, clip: DualEncoderEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["short", "long " * 100, "short", "longer " * 100, "longest " * 100]
    with caplog.at_level(logging.WARNING):
        match way:
            case "sync":
                clip.get_text_embedding_batch(texts)
            case "async":
                asyncio.run(clip.aget_text_embedding_batch(texts))
            case "pipeline":
                IngestionPipeline(transformations=[clip]).run(
                    nodes=[TextNode(text=text) for text in texts]
                )

    (message,) = warnings_of(caplog)
    assert re.match(r"3 of 5 texts are longer than .* reads \(77 tokens\)", message)


def test_a_single_cut_query_is_reported(
    clip: DualEncoderEmbedding, caplog: pytest.LogCaptureFixture
) -> None:
    clip.get_query_embedding("long " * 100)
    clip.get_query_embedding("short")

    assert len(warnings_of(caplog)) == 1


def test_max_text_tokens_cuts_earlier(tiny_clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = DualEncoderEmbedding(model_name=str(tiny_clip), max_text_tokens=6)

    short.get_text_embedding("abcdefgh")

    assert "reads (6 tokens)" in warnings_of(caplog)[0]


# --- errors -------------------------------------------------------------------------------------


def test_a_missing_image_is_an_error_and_never_a_text(clip: DualEncoderEmbedding) -> None:
    for name in ("no.png", "a photo of a cat"):
        with pytest.raises(ImageError, match=f"{name}: no such file"):
            clip.get_image_embedding(name)
    with pytest.raises(ImageError, match="no such file"):
        asyncio.run(clip.aget_image_embedding("no.png"))


def test_a_bad_image_in_a_batch_is_named(
    clip: DualEncoderEmbedding, noise_files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(Path(noise_files[0]).read_bytes()[:60])
    images = [*noise_files, str(tmp_path / "bad.png"), *noise_files]

    with pytest.raises(ImageError, match=r"bad\.png: truncated or damaged"):
        clip.get_image_embedding_batch(images)


def test_after_a_bad_image_no_more_are_decoded(
    tiny_clip: Path, noise_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding = DualEncoderEmbedding(model_name=tiny_clip, embed_batch_size=64)
    opened: list[object] = []
    given_up = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: Any, **settings: Any) -> None:
            given_up.set()
            super().shutdown(*args, **settings)

    def counting(image: object, **options: Any) -> Any:
        opened.append(image)
        assert image == "no.png" or given_up.wait(PATIENCE_S)
        return open_image(image, **options)

    monkeypatch.setattr("llama_index_gap.embedding.dual_encoder.open_image", counting)
    monkeypatch.setattr("llama_index_gap.embedding.dual_encoder.ThreadPoolExecutor", Pool)

    with pytest.raises(ImageError, match="no such file"):
        embedding.get_image_embedding_batch(["no.png", *noise_files * 40])
    assert len(opened) <= DECODING_THREADS + 1


def test_image_settings_reach_open_image(tiny_clip: Path, noise_files: list[str]) -> None:
    def embedding(**settings: Any) -> DualEncoderEmbedding:
        return DualEncoderEmbedding(model_name=str(tiny_clip), **settings)

    folder = str(Path(noise_files[0]).parent)
    assert embedding(image_root=folder).get_image_embedding(noise_files[0])
    with pytest.raises(ImageError, match="lies outside"):
        embedding(image_root=folder).get_image_embedding(str(tiny_clip / "config.json"))
    with pytest.raises(ImageError, match="more than max_pixels=10"):
        embedding(max_pixels=10).get_image_embedding(noise_files[0])
    with pytest.raises(ImageError, match="unless allow_urls=True"):
        embedding().get_image_embedding("http://127.0.0.1/a.png")
    with pytest.raises(ImageError, match="not a public address"):
        embedding(allow_urls=True).get_image_embedding("http://127.0.0.1/a.png")


@pytest.mark.parametrize("modality", ["text", "image"])
def test_vectors_that_are_no_numbers_are_an_error(
    modality: str,
    clip: DualEncoderEmbedding,
    noise_files: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = clip._text_encoder
    name = "encode_text" if modality == "text" else "encode_prepared"
    encode = getattr(encoder, name)

    def broken(*args: Any) -> Any:
        vectors = encode(*args)
        vectors[1, 3] = np.nan
        return vectors

    monkeypatch.setattr(encoder, name, broken)

    with pytest.raises(ModelError, match="1 of 2 vectors hold NaN or infinity, the first for"):
        if modality == "text":
            clip.get_text_embedding_batch(["a", "b"])
        else:
            clip.get_image_embedding_batch(noise_files[:2])


def test_weights_that_overflow_are_noticed(tiny_clip: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_clip / "model.safetensors")
    weights["text_projection.weight"] = torch.full_like(weights["text_projection.weight"], 3e38)
    for file in tiny_clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match="NaN or infinity"):
        DualEncoderEmbedding(model_name=str(tmp_path)).get_text_embedding("a cat")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": 17}, "dimensions=17: .* has only 16"),
        ({"dimensions": 0}, "greater than 0"),
        ({"embed_batch_size": 0}, "greater than 0"),
        ({"max_text_tokens": 100}, "reads 1 to 77 tokens"),
        ({"dtype": "int8"}, "'auto', 'float32', 'bfloat16' or 'float16'"),
        ({"device": "quantum"}, "device='quantum' cannot be used here"),
        ({"max_pixels": 0}, "greater than 0"),
        ({"dimension": 4}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_settings_fail_at_construction(
    settings: dict[str, Any], message: str, tiny_clip: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        DualEncoderEmbedding(model_name=str(tiny_clip), **settings)


def test_a_cache_that_mixes_vectors_up_is_refused(tiny_clip: Path) -> None:
    with pytest.raises(ValueError, match="embeddings_cache cannot tell queries from documents"):
        DualEncoderEmbedding(model_name=str(tiny_clip), embeddings_cache=SimpleKVStore())


def test_settings_that_made_the_model_cannot_be_assigned(tiny_clip: Path) -> None:
    embedding = DualEncoderEmbedding(model_name=str(tiny_clip))

    for name, value in (("dimensions", 4), ("model_name", "other"), ("query_prompt", "q")):
        with pytest.raises(ValueError, match="Field is frozen"):
            setattr(embedding, name, value)
    with pytest.raises(ValueError, match="greater than 0"):
        embedding.embed_batch_size = 0
    embedding.embed_batch_size = 7
    embedding.callback_manager = CallbackManager([])
    assert embedding.get_text_embedding("a cat")


def test_paths_are_taken_as_settings(tiny_clip: Path, noise_files: list[str]) -> None:
    folder = Path(noise_files[0]).parent
    embedding = DualEncoderEmbedding(model_name=tiny_clip, image_root=folder)

    assert json.dumps(embedding.to_dict())
    assert embedding.get_image_embedding(noise_files[0])
    with pytest.raises(ValueError, match="image_root=/no/such: no such folder"):
        DualEncoderEmbedding(model_name=tiny_clip, image_root="/no/such")


def test_a_text_must_be_a_text(clip: DualEncoderEmbedding) -> None:
    with pytest.raises(ValueError, match="None is not a text; pass images to the image methods"):
        clip.get_text_embedding_batch(["a", None])


def test_models_of_two_spaces_are_refused(tiny_clip: Path, tiny_siglip: Path) -> None:
    with pytest.raises(
        ValueError, match=r"gives 16 dimensions, .* gives 32, but texts and images must share"
    ):
        DualEncoderEmbedding(model_name=str(tiny_clip), image_model_name=str(tiny_siglip))


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        DualEncoderEmbedding(model_name=str(tmp_path / "no" / "such" / "model"))
    with pytest.raises(ValueError, match="Field required"):
        DualEncoderEmbedding()


# --- as LlamaIndex components do ----------------------------------------------------------------


def test_settings_survive_to_dict_and_json(tiny_clip: Path) -> None:
    original = DualEncoderEmbedding(
        model_name=str(tiny_clip), dimensions=8, query_prompt="q: ", embed_batch_size=3
    )

    settings = json.loads(json.dumps(original.to_dict()))
    again = DualEncoderEmbedding.from_dict(settings)

    assert settings["class_name"] == "DualEncoderEmbedding"
    assert again.to_dict() == original.to_dict()
    assert again.get_query_embedding("a cat") == original.get_query_embedding("a cat")


def test_pickle_holds_settings_and_no_weights(clip: DualEncoderEmbedding) -> None:
    data = pickle.dumps(clip)
    again = pickle.loads(data)

    assert len(data) < 2000
    assert again.to_dict() == clip.to_dict()
    assert again.get_query_embedding("a cat") == clip.get_query_embedding("a cat")


def test_pickle_fails_loudly_where_the_model_is_not(tiny_clip: Path, tmp_path: Path) -> None:
    model = tmp_path / "moved"
    model.mkdir()
    for file in tiny_clip.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    data = pickle.dumps(DualEncoderEmbedding(model_name=str(model)))
    model.rename(tmp_path / "elsewhere")

    with pytest.raises(ModelError, match="no such folder"):
        pickle.loads(data)


def test_copies_share_the_weights(clip: DualEncoderEmbedding) -> None:
    for copied in (copy.deepcopy(clip), clip.model_copy()):
        assert copied._text_encoder is clip._text_encoder


def test_callbacks_see_every_batch(tiny_clip: Path, noise_files: list[str]) -> None:
    handler = LlamaDebugHandler(print_trace_on_end=False)
    embedding = DualEncoderEmbedding(
        model_name=str(tiny_clip), embed_batch_size=2, callback_manager=CallbackManager([handler])
    )

    embedding.get_image_embedding_batch(noise_files)

    pairs = handler.get_event_pairs(CBEventType.EMBEDDING)
    assert [len(end.payload["chunks"]) for _, end in pairs] == [2, 2, 1]


def test_progress_is_shown_when_asked(
    clip: DualEncoderEmbedding, noise_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    clip.get_image_embedding_batch(noise_files)
    clip.get_text_embedding_batch(TEXTS)
    assert capsys.readouterr().err == ""

    clip.get_image_embedding_batch(noise_files, show_progress=True)
    assert "5/5" in capsys.readouterr().err
    clip.get_text_embedding_batch(TEXTS, show_progress=True)
    assert "5/5" in capsys.readouterr().err


def test_inside_a_vector_store_index(clip: DualEncoderEmbedding) -> None:
    nodes = [TextNode(text=text, id_=text) for text in TEXTS]

    (hit,) = (
        VectorStoreIndex(nodes, embed_model=clip)
        .as_retriever(similarity_top_k=1)
        .retrieve("a silver trophy")
    )

    assert hit.node_id == "a silver trophy"
    assert hit.score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_inside_an_ingestion_pipeline(
    way: str, clip: DualEncoderEmbedding, noise_files: list[str]
) -> None:
    nodes = [
        TextNode(text="a cat"),
        ImageNode(image_path=noise_files[0]),
        ImageNode(image_path=noise_files[1], text="a dog"),
    ]
    pipeline = IngestionPipeline(transformations=[clip], disable_cache=True)

    text, bare, captioned = (
        pipeline.run(nodes=nodes) if way == "sync" else asyncio.run(pipeline.arun(nodes=nodes))
    )

    close = partial(pytest.approx, abs=1e-6)
    assert text.embedding == close(clip.get_text_embedding("a cat"))
    assert bare.embedding == close(clip.get_image_embedding(noise_files[0]))
    assert bare.text_embedding is None
    assert captioned.embedding == close(clip.get_image_embedding(noise_files[1]))
    assert captioned.text_embedding == close(clip.get_text_embedding("a dog"))
    assert all(node.embedding is None for node in nodes)


def test_inside_a_multi_modal_index(
    clip: DualEncoderEmbedding, noise_files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", clip)
    nodes = [TextNode(text=text) for text in TEXTS] + [
        ImageNode(text=f"image {i}", image_path=path, id_=path)
        for i, path in enumerate(noise_files)
    ]
    index = MultiModalVectorStoreIndex(nodes, embed_model=clip, image_embed_model=clip)
    retriever = index.as_retriever(similarity_top_k=2, image_similarity_top_k=1)

    for hits in (
        retriever.image_to_image_retrieve(noise_files[3]),
        asyncio.run(retriever.aimage_to_image_retrieve(noise_files[3])),
    ):
        assert [hit.node_id for hit in hits] == [noise_files[3]]
    assert len(retriever.text_retrieve("a cat")) == 2
