"""Downloads from an imitated hub, with the layouts of real repositories."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hub import Hub, Repository, use
from hub_layouts import CLIP, CONVERTED, make_repositories
from on_cpu import on_cpu
from PIL import Image
from safetensors.numpy import load as tensors

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.models import Encoder, ModelError, PairScorer, load_encoder, load_scorer
from llama_index_gap.models.checkpoints import hub as downloads

GATED = "facebook/dinov3-vitb16-pretrain-lvd1689m"
JINA = "jinaai/jina-clip-v2"
LAION = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
NOMIC = "nomic-ai/nomic-embed-text-v1.5"
VLM = "owner/plain-vision-language"
WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".gguf", ".pt")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repository]:
    return make_repositories(tmp_path_factory.mktemp("repositories"))


@pytest.fixture
def hub(
    repositories: dict[str, Repository], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    with Hub(dict(repositories)).serving() as served:
        use(served, monkeypatch, tmp_path / "cache")
        yield served


def load(name: str, **options: Any) -> Encoder:
    return load_encoder(name, on_cpu(options), **options)


def load_reranker(name: str, **options: Any) -> PairScorer:
    return load_scorer(name, on_cpu(options), **options)


def weights(hub: Hub, name: str) -> set[str]:
    return {each for each in hub.names(name) if each.endswith(WEIGHTS)}


# --- what is fetched -----------------------------------------------------------------------------


def test_the_preset_clip_loads_at_its_revision(hub: Hub) -> None:
    assert load("clip").dimension == 16
    assert weights(hub, CLIP) == {"model.safetensors"}
    assert any(f"/{CLIP}/{CONVERTED}/" in each for each in hub.questions)


def test_pickles_are_refused_before_they_are_fetched(hub: Hub) -> None:
    with pytest.raises(
        ModelError,
        match=rf"{CLIP}: holds only pickled weights \(pytorch_model\.bin\).* allow_pickle=True .*"
        rf"--allow-pickle.* revision='{CONVERTED}' \(--revision\)",
    ):
        load(CLIP)
    assert not weights(hub, CLIP)
    inside = "sentence-transformers/clip-ViT-B-32"
    with pytest.raises(ModelError, match=r"only pickled weights \(0_CLIPModel/pytorch_model\.bin"):
        load("clip-ViT-B-32")
    assert not weights(hub, inside)


def test_pickles_are_fetched_where_they_are_allowed_and_nothing_else_is_there(hub: Hub) -> None:
    load("openai/clip-vit-base-patch16", allow_pickle=True)
    assert weights(hub, "openai/clip-vit-base-patch16") == {"pytorch_model.bin"}
    load(JINA, allow_pickle=True)
    assert weights(hub, JINA) == {"model.safetensors"}
    with pytest.raises(ModelError, match=r"allow_pickle"):
        DualEncoderEmbedding(model_name="openai/clip-vit-base-patch16", local_files_only=True)


@pytest.mark.parametrize(
    "name", ["openai/clip-vit-large-patch14", LAION, JINA, "siglip2", "nomic", "dinov2"]
)
def test_no_weights_come_twice(hub: Hub, name: str) -> None:
    load(name)
    assert {path for _, path in hub.fetched if path.endswith(WEIGHTS)} == {"model.safetensors"}


def test_a_second_load_fetches_nothing(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llama_index_gap")
    load(LAION)
    (line,) = (each for each in caplog.messages if each.startswith("Downloading"))
    assert line.startswith(f"Downloading {LAION}: ")
    assert " kB in " in line
    hub.fetched.clear()
    caplog.clear()
    load(LAION)
    assert not hub.fetched
    assert not [each for each in caplog.messages if each.startswith("Downloading")]


def test_shards_and_variants(hub: Hub) -> None:
    """One file is preferred to shards, and full precision to half."""
    files = dict(hub.repositories["openai/clip-vit-large-patch14"].revisions["main"])
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    files |= {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00001.safetensors": files["model.safetensors"],
        "model.fp16.safetensors": files["model.safetensors"],
        "checkpoint-500/model.safetensors": files["model.safetensors"],
        "openvino/openvino_model.bin": b"openvino",
        "training_args.bin": b"pickle",
    }
    hub.repositories["owner/both"] = Repository({"main": files})
    load("owner/both", allow_pickle=True)
    assert weights(hub, "owner/both") == {"model.safetensors"}
    sharded = {name: files[name] for name in files if name != "model.safetensors"}
    shard = "model-00001-of-00001.safetensors"
    names = tensors(files["model.safetensors"])
    sharded["model.safetensors.index.json"] = json.dumps(
        {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    ).encode()
    hub.repositories["owner/shards"] = Repository({"main": sharded})
    load("owner/shards")
    assert weights(hub, "owner/shards") == {"model-00001-of-00001.safetensors"}


def test_a_download_that_breaks_off_is_taken_up_again(hub: Hub) -> None:
    hub.breaks_after = 100_000
    assert load(LAION).dimension == 16
    assert hub.breaks_after is None


def test_an_incomplete_download_says_so_offline(hub: Hub) -> None:
    with pytest.raises(ModelError, match="only pickled weights"):
        load(CLIP)  # the settings stay in the cache
    hub.repositories[CLIP] = hub.repositories["owner/often"]
    with pytest.raises(ModelError, match=r"wait 57 seconds"):
        load(CLIP, allow_pickle=True)


def test_a_full_disk_is_seen_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = downloads.shutil._ntuple_diskusage(100, 99, 1)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        ModelError, match=r"needs \S+ kB, but .* has only 1 bytes left; .*--cache-folder"
    ):
        load(LAION)
    assert not weights(hub, LAION)


def test_nomic_in_both_layouts_is_the_same_model(hub: Hub) -> None:
    old, native = load(NOMIC), load(NOMIC, revision="refs/pr/56")
    assert (old.dimension, old.max_text_tokens) == (native.dimension, native.max_text_tokens)
    np.testing.assert_array_equal(
        old.encode_text(["a red cat"], "query"), native.encode_text(["a red cat"], "query")
    )


def test_siglip_2_is_padded_on_the_right_whatever_its_tokenizer_says(hub: Hub) -> None:
    files = hub.repositories["google/siglip2-base-patch16-224"].revisions["main"]
    settings = json.loads(files["tokenizer_config.json"]) | {"padding_side": "left"}
    left = files | {"tokenizer_config.json": json.dumps(settings).encode()}
    hub.repositories["owner/left"] = Repository({"main": left})
    texts = ["a cat", "a longer text of a dog"]
    np.testing.assert_array_equal(
        load("owner/left").encode_text(texts, "query"), load("siglip2").encode_text(texts, "query")
    )


# --- errors in sentences -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            GATED,
            r"is gated.*ask at https://huggingface\.co/facebook/dinov3.*hf auth login.*HF_TOKEN",
        ),
        ("owner/none", r"no such folder here, and the hub shows no such model;.*for a private one"),
        ("openai/clip-vit-base-patch23", r"did you mean 'openai/clip-vit-base-patch32'\?"),
        ("Clip", r"did you mean 'clip'\?"),
        ("cilp", r"looked for sentence-transformers/cilp\); did you mean 'clip'\?"),
        ("jina-m0", r"is a preset of rerankers; pass it as MultiModalRerank.*--reranker"),
        ("jinaai/jina-reranker-m0", r"is a reranker, not an encoder; .*--reranker"),
        ("cross-encoder/ms-marco-MiniLM-L6-v2", r"is a reranker, not an encoder"),
        (
            "vidore/colqwen2-v1.0",
            r"only adapters .*the hub has vidore/colqwen2-v1\.0-hf: pass that",
        ),
        ("llamaindex/vdr-2b-multi-v1", r"names custom_st\.Transformer.*--trust-remote-code"),
        ("owner/own-model-type", r"'mine' needs the model's own code.*trust_remote_code=True"),
        ("jinaai/jina-embeddings-v5-omni", r"transformers \S+ does not know its model_type"),
        ("laion/CLIP-open-clip-only", r"is made for open_clip"),
        ("timm/vit_base_patch16_224", r"is made for timm"),
        ("owner/gguf", r"holds weights only for GGUF"),
        ("owner/onnx", r"holds weights only for ONNX"),
        ("owner/empty", r"is empty"),
        ("owner/data", r"is a data set on the hub, not a model"),
        ("owner/often", r"limits the requests from one address; wait 57 seconds, or log in"),
        ("owner/broken", r"the hub has a fault \(503\)"),
        (f"https://huggingface.co/{CLIP}", rf"for this page of the hub, pass '{CLIP}'"),
        (VLM, r"its files do not state how .* pooling='last', 'mean' or 'cls' \(--pooling\)"),
    ],
)
def test_what_cannot_be_an_encoder(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
    assert not [path for _, path in hub.fetched if path.endswith(WEIGHTS)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jina", r"jina is a preset of encoders; .*--model"),
        ("jina-m1", r"did you mean 'jina-m0'\?"),
        (JINA, r"is an encoder, not a reranker; .*--model"),
        (LAION, r"is an encoder, not a reranker"),
        ("facebook/dinov2-base", r"is an encoder, not a reranker"),
        ("vidore/colqwen2-v1.0", r"only adapters .*colqwen2-v1\.0-hf"),
        ("jinaai/jina-reranker-v3", r"cannot be loaded as a reranker.*its own code"),
    ],
)
def test_what_cannot_be_a_reranker(hub: Hub, name: str, message: str) -> None:
    with pytest.raises((ModelError, ValueError), match=message):
        load_reranker(name)
    assert not [path for _, path in hub.fetched if path.endswith(WEIGHTS)]


def test_rerankers_that_load(hub: Hub) -> None:
    for name in ("jina-m0", "cross-encoder/ms-marco-MiniLM-L6-v2"):
        assert len(load_reranker(name).score("a", ["b", "c"])) == 2
    assert "image" in load_reranker("vidore/colqwen2-v1.0-hf").modalities


def test_a_revision_that_is_not_there(hub: Hub) -> None:
    with pytest.raises(ModelError, match=rf"{JINA}: has no revision 'v9'; it has main; pass a br"):
        load(JINA, revision="v9")


def test_who_is_logged_in_is_told_otherwise(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ModelError, match=r"your account has no access yet") as gated:
        load(GATED)
    with pytest.raises(ModelError, match=r"your account may not see it if it is private"):
        load("owner/none")
    assert "hf_secret" not in str(gated.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx.ProxyError("407 http://me:secret@proxy:80"), r"the proxy in HTTPS_PROXY"),
        (httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]"), r"certificate is not trusted"),
        (httpx.ReadTimeout("timed out"), r"cannot be reached \(it did not answer in time\)"),
        (httpx.ConnectError("[Errno -2] Name or service"), r"cannot be reached \(\[Errno -2\]"),
        (OSError(28, "No space left on device"), r"the disk is full; free some space"),
        (PermissionError(13, "Permission denied", "/root"), r"cache cannot be written"),
    ],
)
def test_no_way_to_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fails)
    with pytest.raises(ModelError, match=message) as caught:
        load("owner/model")
    assert "secret" not in str(caught.value)


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load(LAION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load(LAION, local_files_only=True).dimension == 16
    with pytest.raises(ModelError, match=r"local_files_only=True forbids downloads"):
        load(JINA, local_files_only=True)


def test_offline_mode_is_named_with_the_way_out_of_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(LAION)
    with pytest.raises(ModelError, match="only pickled weights"):
        load(CLIP)  # the settings stay in the cache
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert load(LAION).dimension == 16
    offline = r"HF_HUB_OFFLINE .* is set, .*: unset it to download the model"
    with pytest.raises(ModelError, match=rf"{JINA}: .* not in the download cache, and {offline}"):
        load(JINA)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*pull"),
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page was saved in its place; download"),
        (b"", "it is empty; download it again"),
        (b"\x01\x02\x03", "; download it again"),
    ],
)
def test_a_wrong_file_is_named_with_what_it_is(
    hub: Hub, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    for name, kept in hub.repositories[LAION].revisions["main"].items():
        if "/" not in name:
            (tmp_path / name).write_bytes(kept)
    (tmp_path / file).write_bytes(content)

    with pytest.raises(ModelError, match=rf"{file} .*{message}") as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


# --- nothing is guessed --------------------------------------------------------------------------


def test_pooling_is_given_where_the_checkpoint_leaves_it_open(hub: Hub) -> None:
    last, mean = (load(VLM, pooling=each) for each in ("last", "mean"))
    assert last.modalities == {"text", "image"}
    texts = ["a cat", "a much longer text about a dog"]
    both = last.encode_text(texts, "document")
    for text, row in zip(texts, both, strict=True):
        np.testing.assert_allclose(last.encode_text([text], "document")[0], row, atol=1e-5)
    assert not np.allclose(both, mean.encode_text(texts, "document"), atol=0.01)
    (image,) = last.encode_images([Image.new("RGB", (60, 60), "red")])
    assert np.isclose(np.linalg.norm(image), 1)
    prompted = load(VLM, pooling="last", query_prompt="Find: ")
    assert not np.allclose(
        prompted.encode_text(["a cat"], "query"), last.encode_text(["a cat"], "query"), atol=1e-3
    )


@pytest.mark.parametrize("name", [LAION, JINA, "dinov2", "nomic"])
def test_pooling_is_refused_where_the_checkpoint_says_it(hub: Hub, name: str) -> None:
    with pytest.raises(ValueError, match=r"pooling='last': .* states its own pooling"):
        load(name, pooling="last")


def test_a_missing_chat_template_is_said(hub: Hub) -> None:
    files = hub.repositories[VLM].revisions["main"]
    plain = {name: files[name] for name in files if name != "chat_template.jinja"}
    hub.repositories["owner/plain"] = Repository({"main": plain})
    with pytest.raises(ModelError, match=r"owner/plain: has no chat template"):
        load("owner/plain", pooling="last")
