"""Vectors equal sentence-transformers' bit for bit; it loads whatever ClipEncoder does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from on_cpu import on_cpu
from PIL import Image
from safetensors.torch import load_file, save_file

from llama_index_gap.models import load_encoder
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.encoders.clip import ClipEncoder, usual_layout
from llama_index_gap.models.encoders.sentence_transformer import SentenceTransformerEncoder

TEXTS = [
    "a red bicycle",
    "Players CELEBRATE with a trophy",
    "x",
    "",
    "Ünïcödé 東京 🚲 e\u0301",
    "  two\tspaces \n",
    "they'll <|endoftext|> and <|STARTOFTEXT|> go on",
    "word " * 300,
]
DEMO = Path(__file__).parents[3] / "llama_index_gap" / "demo" / "checkpoint"
# Settings in the files of openai/clip-vit-base-patch32.
OPENAI_IMAGES = {
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 32,
}

Change = Callable[[Path], None]


def change(file: str, **values: Any) -> Change:
    """Make a function that sets keys, such as ``text_config__hidden_act``, in a JSON file."""

    def apply(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text()) if path.is_file() else {}
        for key, value in values.items():
            *parents, last = key.split("__")
            part = content
            for parent in parents:
                part = part[parent]
            part[last] = value
        path.write_text(json.dumps(content))

    return apply


def write(file: str, content: Any) -> Change:
    return lambda folder: (folder / file).write_text(json.dumps(content)) and None


def changed(source: Path, folder: Path, *changes: Change) -> Path:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for apply in changes:
        apply(folder)
    return folder


def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 50), (64, 33), (32, 32), (90, 41), (35, 81), (20, 7), (300, 3)]
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in sizes
    ]


def assert_same_bits(folder: Path, dtype: Literal["float32", "bfloat16"] = "float32") -> None:
    settings = on_cpu({"dtype": dtype})
    ours = load_encoder(folder, settings)
    theirs = SentenceTransformerEncoder(Checkpoint(str(folder), folder), settings)
    assert isinstance(ours, ClipEncoder)
    assert (ours.dimension, ours.max_text_tokens) == (theirs.dimension, theirs.max_text_tokens)
    assert ours.count_tokens(TEXTS, "query") == theirs.count_tokens(TEXTS, "query")
    for batch in (TEXTS, *([text] for text in TEXTS)):
        np.testing.assert_array_equal(
            ours.encode_text(batch, "query"), theirs.encode_text(batch, "query")
        )
    np.testing.assert_array_equal(ours.encode_images(images()), theirs.encode_images(images()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("which", ["tiny", "demo"])
def test_vectors_are_those_of_sentence_transformers(
    tiny_clip: Path, which: str, dtype: Literal["float32", "bfloat16"]
) -> None:
    assert_same_bits(tiny_clip if which == "tiny" else DEMO, dtype)


@pytest.mark.parametrize(
    "changes",
    [
        [write("preprocessor_config.json", OPENAI_IMAGES)],
        [write("preprocessor_config.json", {**OPENAI_IMAGES, "size": 40, "resample": 2})],
        # Smaller than the crop: padded.
        [write("preprocessor_config.json", {**OPENAI_IMAGES, "size": 21})],
        [change("config.json", text_config__eos_token_id=2)],
        [change("config.json", text_config__hidden_act="gelu", vision_config__hidden_act="gelu")],
        [change("config.json", text_config__layer_norm_eps=1e-3, text_config_dict=None)],
        [change("tokenizer_config.json", model_max_length=10**30, tokenizer_class=None)],
        [change("tokenizer_config.json", pad_token="!", tokenizer_class="CLIPTokenizerFast")],
        [change("tokenizer_config.json", padding_side="left")],
    ],
)
def test_other_published_files(tiny_clip: Path, tmp_path: Path, changes: list[Change]) -> None:
    assert_same_bits(changed(tiny_clip, tmp_path, *changes))


def test_weights_in_several_files_and_old_position_numbers(tiny_clip: Path, tmp_path: Path) -> None:
    folder = changed(tiny_clip, tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    names = {
        key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(weights)
    }
    for file in sorted(set(names.values())):
        part = {key: tensor for key, tensor in weights.items() if names[key] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    write("model.safetensors.index.json", {"metadata": {}, "weight_map": names})(folder)

    assert_same_bits(folder)


@pytest.mark.parametrize(
    "apply",
    [
        change("config.json", text_config__hidden_act="silu"),
        change("config.json", text_config__hidden_act=["gelu"]),
        change("config.json", text_config=[1]),
        change("tokenizer_config.json", tokenizer_class=["CLIPTokenizer"]),
        change("config.json", text_config__num_hidden_layers=1),
        change("config.json", text_config__num_attention_heads=3),
        change("config.json", text_config__eos_token_id=[1, 2]),
        change("config.json", vision_config__image_size=[32, 32]),
        change("config.json", vision_config__layer_norm_eps="1e-5"),
        change("config.json", text_config_dict={"hidden_size": 3}),
        change("config.json", attn_implementation="eager"),
        change("config.json", quantization_config={"bits": 4}),
        change("config.json", auto_map={"AutoModel": "mine.Model"}),
        change("preprocessor_config.json", do_center_crop=False),
        change("preprocessor_config.json", do_pad=True),
        change("preprocessor_config.json", size={"height": 32, "width": 32}),
        change("preprocessor_config.json", crop_size={"height": 32, "width": 16}),
        change("preprocessor_config.json", image_std=[0, 1, 1]),
        change("preprocessor_config.json", image_mean=0.5),
        change("preprocessor_config.json", image_processor_type="SiglipImageProcessor"),
        change("preprocessor_config.json", something_new=3),
        change("tokenizer_config.json", tokenizer_class="BertTokenizer"),
        write("modules.json", []),
        write("config_sentence_transformers.json", {"prompts": {"query": "Q: "}}),
        write("processor_config.json", {}),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense") and None,
        lambda folder: save_file({"a": torch.zeros(1)}, folder / "model.safetensors"),
    ],
)
def test_anything_unusual_is_for_sentence_transformers(
    tiny_clip: Path, tmp_path: Path, apply: Change
) -> None:
    assert usual_layout(Checkpoint("x", tiny_clip)) is not None
    assert usual_layout(Checkpoint("x", changed(tiny_clip, tmp_path, apply))) is None


def test_a_long_strip_is_not_scaled_whole(tiny_clip: Path) -> None:
    encoder = load_encoder(tiny_clip, on_cpu({}))
    strip = Image.new("RGB", (60_000, 1), "red")
    plain = Image.new("RGB", (40, 40), "red")

    np.testing.assert_allclose(
        encoder.encode_images([strip]), encoder.encode_images([plain]), atol=1e-6
    )


def test_nothing_gives_nothing(tiny_clip: Path) -> None:
    encoder = load_encoder(tiny_clip, on_cpu({}))

    assert encoder.encode_text([], "query").shape == (0, 16)
    assert encoder.encode_images([]).shape == (0, 16)
    assert encoder.count_tokens([], "query") == []
