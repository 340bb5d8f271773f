"""Checkpoints, data sets and aligners from untrusted makers: no hang, no gigabytes, no request."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from tiny_rerankers import TEMPLATE, make_tiny_qwen_reranker
from typer.testing import CliRunner

from llama_index_gap import (
    DualEncoderEmbedding,
    DualIndex,
    GapError,
    MilvusStore,
    ModelError,
    MultiModalRerank,
)
from llama_index_gap.cli.app import app
from llama_index_gap.evaluation.datasets import DatasetError, read_dataset, read_queries
from llama_index_gap.evaluation.results_cache import ResultsCache, ResultsCacheError
from llama_index_gap.gap.align import OffsetAligner, load_aligner
from llama_index_gap.gap.calibrate import RelevanceCalibrator
from llama_index_gap.index.models import MODELS_PROPERTY
from llama_index_gap.models import LoadingSettings, load_encoder, load_scorer
from llama_index_gap.models.checkpoints.limits import StoredWeights, WithinStoredWeights

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
DEEP = "[" * 100_000
ON_CPU = LoadingSettings(device="cpu", dtype="float32")
DENSE = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"},
]


@pytest.fixture
def copies(tiny_clip: Path, tiny_dinov2: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(name: str) -> Path:
        source = {"clip": tiny_clip, "dinov2": tiny_dinov2}.get(name, PARITY / name)
        return Path(shutil.copytree(source, tmp_path / name))

    return copy


def change(path: Path, keys: str, value: Any) -> None:
    """Set one value in a JSON file."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    place = content
    *outer, last = keys.split(".")
    for key in outer:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(content))


def refused(folder: Path, *, scorer: bool = False) -> str:
    """The error of loading a checkpoint: a ``ModelError`` in one line that names the folder."""
    with pytest.raises(ModelError) as caught:
        (load_scorer if scorer else load_encoder)(folder, ON_CPU)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("clip", "text_config.vocab_size", 2 * 10**7),
        ("clip", "text_config.num_hidden_layers", 10**7),
        ("clip", "vision_config.num_hidden_layers", 10**13),
        ("clip", "text_config.hidden_size", -1),
        ("clip", "vision_config.patch_size", 0),
        ("clip", "vision_config.image_size", 10**9),
        ("clip", "text_config.max_position_embeddings", 10**9),
        ("dinov2", "hidden_size", "large"),
        ("dinov2", "num_hidden_layers", 10**7),
        ("jina_clip_tiny", "vision_config.layers", 10**7),
        ("jina_clip_tiny", "vision_config.mlp_ratio", 10**9),
        ("jina_clip_tiny", "text_config.hf_model_config_kwargs.max_position_embeddings", 10**9),
        ("nomic_vision_tiny", "n_layer", 10**7),
        ("nomic_vision_tiny", "n_inner", float("inf")),
        ("nomic_vision_tiny", "n_embd", 0),
        ("jina_m0_tiny", "vocab_size", 2 * 10**7),
        ("jina_m0_tiny", "vision_config.depth", 10**7),
        ("colqwen2_tiny", "vlm_config.text_config.num_hidden_layers", 10**7),
        ("colqwen2_tiny", "vlm_config.hidden_size", "many"),
    ],
)
def test_sizes_are_compared_with_the_weights_before_anything_is_made(
    copies: Callable[[str], Path], name: str, key: str, value: Any
) -> None:
    folder = copies(name)
    change(folder / "config.json", key, value)

    refused(folder, scorer=name in {"jina_m0_tiny", "colqwen2_tiny"})


def test_sizes_that_only_together_are_too_large_are_refused_before_memory_is_taken(
    copies: Callable[[str], Path],
) -> None:
    folder = copies("clip")
    for key, value in {"vocab_size": 10**6, "hidden_size": 2**16}.items():
        change(folder / "config.json", f"text_config.{key}", value)

    assert "many times more weights than its files hold" in refused(folder)
    with (
        pytest.raises(ModelError, match="many times more"),
        WithinStoredWeights("x", StoredWeights(1, 1)),
    ):
        torch.arange(10**14)  # 800 TB
    with (
        pytest.raises(ModelError, match="many times more"),
        WithinStoredWeights("x", StoredWeights(1, 1)),
    ):
        while True:
            torch.empty(1)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("clip", "size", {"shortest_edge": 10**6}),
        ("clip", "crop_size", {"height": 0, "width": 0}),
        ("clip", "crop_size", {"height": 10**6, "width": 10**6}),
        ("clip", "image_std", [0, 0, 0]),
        ("dinov2", "size", {"height": -1, "width": 10}),
        ("dinov2", "size", "large"),
        ("nomic_vision_tiny", "image_mean", [1] * 1000),
        ("jina_clip_tiny", "mean", "gray"),
        ("jina_m0_tiny", "patch_size", 0),
        ("jina_m0_tiny", "min_pixels", 2**60),
    ],
)
def test_what_an_image_becomes_is_bounded(
    copies: Callable[[str], Path], name: str, key: str, value: Any
) -> None:
    folder = copies(name)
    change(folder / "preprocessor_config.json", key, value)

    refused(folder, scorer=name == "jina_m0_tiny")


def test_an_edge_that_pretends_to_be_a_number_of_pixels_is_bounded(
    copies: Callable[[str], Path],
) -> None:
    folder = copies("clip")
    change(folder / "preprocessor_config.json", "size", {"shortest_edge": 10**6})
    change(folder / "preprocessor_config.json", "merge_size", 2)

    assert "enlarges an image from 64×64" in refused(folder)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [DEEP, "5", '{"a": ' + "9" * 6000 + "}"])
@pytest.mark.parametrize(
    "file", ["config.json", "preprocessor_config.json", "tokenizer_config.json", "modules.json"]
)
def test_json_of_any_shape_is_an_error_in_one_line(
    copies: Callable[[str], Path], file: str, content: str
) -> None:
    folder = copies("clip")
    (folder / file).write_text(content, encoding="latin-1")

    refused(folder)


def header(shape: list[int], dtype: str = "F32", size: int = 8) -> bytes:
    text = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**60) + b"{}",
        header([-2]),
        header([2**62, 8]),
        header([2], "F64"),
        header([2], size=2**40),
        struct.pack("<Q", len(DEEP)) + DEEP.encode(),
    ],
)
@pytest.mark.parametrize("name", ["nomic_vision_tiny"])
def test_a_damaged_header_of_weights_is_named(
    copies: Callable[[str], Path], name: str, content: bytes
) -> None:
    folder = copies(name)
    (folder / "model.safetensors").write_bytes(content)

    assert "model.safetensors cannot be read" in refused(folder)


@pytest.mark.parametrize("name", ["clip", "nomic_vision_tiny"])
@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", 5, "x.bin"])
def test_shards_lie_in_the_folder(
    copies: Callable[[str], Path], name: str, shard: Any, tmp_path: Path
) -> None:
    folder = copies(name)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    change(folder / "model.safetensors.index.json", "weight_map", {"a": shard})

    assert "but weights must be" in refused(folder)


@pytest.mark.parametrize("path", ["../clip", "/etc", 5, None])
def test_modules_lie_in_the_folder(copies: Callable[[str], Path], path: Any) -> None:
    folder = copies("clip")
    (folder / "modules.json").write_text(json.dumps([{**DENSE[0], "path": path}]))

    assert "a path below the checkpoint's folder" in refused(folder)


def test_the_pickle_of_a_module_is_read_only_when_asked(copies: Callable[[str], Path]) -> None:
    folder = copies("clip")
    (folder / "modules.json").write_text(json.dumps(DENSE))
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "config.json").write_text('{"in_features": 16, "out_features": 16}')
    weights = {"linear.weight": torch.eye(16), "linear.bias": torch.ones(16)}
    torch.save(weights, folder / "1_Dense" / "pytorch_model.bin")

    assert "1_Dense/pytorch_model.bin holds pickled weights" in refused(folder)


@pytest.mark.parametrize("file", ["modules.json", "README.md", "tokenizer.json", "vocab.txt"])
def test_a_pipe_does_not_hang_the_loader(copies: Callable[[str], Path], file: str) -> None:
    folder = copies("clip")
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)

    assert f"{file} is not a regular file" in refused(folder)


@pytest.mark.parametrize(
    "card",
    [
        "license: 2024-13-45",
        f"license: {DEEP}",
        "a: &a {k: 1, l: 2}\n"
        + "".join(
            f"{after}: &{after} {{<<: [*{before}, *{before}, *{before}]}}\n"
            for before, after in zip("abcdefghijklmnopqrs", "bcdefghijklmnopqrst", strict=True)
        ),
        "license: mit\nbroken: 2024-13-45",
    ],
)
def test_a_model_card_is_never_in_the_way(copies: Callable[[str], Path], card: str) -> None:
    folder = copies("nomic_vision_tiny")
    (folder / "README.md").write_text(f"---\n{card}\n---\n")

    assert load_encoder(folder, ON_CPU).licence in {None, "mit", "2024-13-45"}


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "attn_implementation"),
        ("config.json", "use_pretrained_backbone"),
        ("sentence_bert_config.json", "allow_all_kernels"),
    ],
)
def test_nothing_else_is_fetched_from_the_hub(
    copies: Callable[[str], Path], file: str, key: str
) -> None:
    folder = copies("clip")
    change(folder / file, key, "somebody/kernel")

    assert "which loads more from the hub than this checkpoint" in refused(folder)


# --- chat templates -----------------------------------------------------------------------------

DOUBLED = (
    "{% set ns = namespace(x=START) %}{% for i in range(64) %}{% set ns.x = MORE %}{% endfor %}"
)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ '{:10000000000}'.format('a') }}",
        DOUBLED.replace("START", "'a'").replace("MORE", "ns.x ~ ns.x"),
        DOUBLED.replace("START", "['a']").replace("MORE", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_chat_template_ends(tmp_path: Path, template: str) -> None:
    folder = make_tiny_qwen_reranker(tmp_path / "qwen", template=template)

    assert "its chat template does not end" in refused(folder, scorer=True)


def test_a_chat_template_ends_that_waits_for_a_word(tmp_path: Path) -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    asks = "{% if 'zebra' in (messages | tojson) %}" + loops + "{% endif %}"
    scorer = load_scorer(make_tiny_qwen_reranker(tmp_path, template=asks + TEMPLATE), ON_CPU)

    assert scorer.score("a horse", ["b" * 10_000]).shape == (1,)
    with pytest.raises(ModelError, match="does not end"):
        scorer.score("a zebra", ["b"])


# --- the hub ------------------------------------------------------------------------------------


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The requests to a local hub; the download cache is empty."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", url, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def uri(tiny_clip: Path, tmp_path: Path) -> str:
    """An index that names a model on the hub."""
    uri = str(tmp_path / "gap.db")
    with DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip)):
        pass
    named = {"class_name": "DualEncoderEmbedding", "model_name": "somebody/model"}
    for collection in ("gap_text", "gap_image"):
        with MilvusStore(uri=uri, collection_name=collection) as store:
            store.set_properties({MODELS_PROPERTY: json.dumps({"text": named, "image": None})})
    return uri


def test_a_stored_hub_name_is_asked_for_unless_prevented(
    uri: str, tiny_clip: Path, requests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="the model hub says"):
        DualIndex(uri)
    assert requests  # otherwise the rest of this test would show nothing
    requests.clear()

    with pytest.raises(
        ModelError, match=r"somebody/model: .* local_files_only=True forbids downloads"
    ):
        DualIndex(uri, local_files_only=True)
    for command in (["search", "a"], ["measure"], ["delete", "a"], ["index", "."]):
        result = CliRunner().invoke(app, [*command, "--db", uri, "--local-files-only"])
        assert isinstance(result.exception, GapError | OSError)
    with pytest.raises(ModelError, match="forbids downloads"):
        MultiModalRerank(model="somebody/reranker", local_files_only=True)
    with pytest.raises(ValueError, match="made with"):
        DualIndex(uri, embed_model=DualEncoderEmbedding(model_name=tiny_clip))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="somebody/model: not a folder here"):
        DualIndex(uri)
    assert requests == []


def test_a_loaded_folder_asks_nothing_of_the_hub(
    copies: Callable[[str], Path], requests: list[str]
) -> None:
    for name in ("clip", "dinov2", "jina_clip_tiny", "nomic_vision_tiny"):
        load_encoder(copies(name), ON_CPU)
    for name in ("jina_m0_tiny", "colqwen2_tiny"):
        load_scorer(copies(name), ON_CPU)

    assert requests == []


def test_a_path_of_a_reranker_loads_and_scores(copies: Callable[[str], Path]) -> None:
    scorer = load_scorer(copies("jina_m0_tiny"), ON_CPU)

    assert scorer.score("a question", ["an answer"]).shape == (1,)


# --- data sets, caches, aligners, calibrators ---------------------------------------------------


def data_set(folder: Path, **files: str | bytes) -> Path:
    contents: dict[str, str | bytes] = {
        "corpus": '{"_id": "d", "text": "a"}',
        "queries": '{"_id": "q", "text": "b"}',
        "qrels": "q\td\t1\n",
    } | files
    (folder / "qrels").mkdir()
    for name, file in (
        ("corpus", "corpus.jsonl"),
        ("queries", "queries.jsonl"),
        ("qrels", "qrels/test.tsv"),
    ):
        content = contents[name]
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("queries", DEEP),
        ("queries", b"\xff"),
        ("queries", '{"_id": "q", "text": 5}'),
        ("queries", '{"_id": "q", "image": "/etc/passwd"}'),
        ("queries", '{"_id": "q", "image": "../../secret.png"}'),
        ("corpus", b"\xff"),
        ("corpus", '"a"'),
        ("qrels", b"\xff"),
        ("qrels", "q\td\t1e300\n"),
        ("qrels", "q\td\t" + "9" * 5000 + "\n"),
        ("qrels", f"q\td\t1\nq\t{'d' * 200_000}\t1\n"),
        ("qrels", "q\td\tnan\nq\td\tnan\n"),
    ],
)
def test_a_hostile_data_set_is_an_error(tmp_path: Path, file: str, content: str | bytes) -> None:
    with pytest.raises(DatasetError) as caught:
        read_dataset(data_set(tmp_path, **{file: content}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_queries_from_a_pipe_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "queries.jsonl")

    with pytest.raises(DatasetError, match="is not a regular file"):
        read_queries(tmp_path / "queries.jsonl")


@pytest.mark.parametrize("line", [DEEP, "5", '{"key": []}', '{"key": {}, "value": 1}'])
def test_a_damaged_results_cache_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f'{{"experiment": {{}}}}\n{line}\n')

    with pytest.raises(ResultsCacheError, match=r"results\.jsonl"):
        ResultsCache(path, {})


@pytest.mark.parametrize(
    "content", [DEEP, "[]", "no JSON", '{"curves": {"text": 5}}', "\udc80"], ids=str
)
def test_a_damaged_calibrator_names_its_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibrator.json"
    path.write_text(content, errors="surrogateescape")

    with pytest.raises(GapError, match=r"calibrator\.json holds no calibrator"):
        RelevanceCalibrator.load(path)


@pytest.mark.parametrize("said", [DEEP, "5", '{"version": 1, "kind": []}', '{"version": 1}'])
def test_a_damaged_aligner_names_its_file(tmp_path: Path, said: str) -> None:
    from safetensors.numpy import load_file, save_file

    path = OffsetAligner(torch.ones(4).numpy()).save(tmp_path / "aligner.safetensors")
    save_file(load_file(path), path, {"llama_index_gap.aligner": said})

    with pytest.raises(GapError, match=r"aligner\.safetensors"):
        load_aligner(path)
