"""Vectors equal those that transformers itself computes from the same files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from on_cpu import on_cpu
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
)

from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.models import Encoder, ModelError, load_encoder
from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers

TEXTS = [
    "a red bicycle",
    "Players CELEBRATE with a trophy",
    "x",
    "",
    "Ünïcödé 東京 🚲",
    "word " * 300,
]


def load(folder: Path, **options: object) -> Encoder:
    return load_encoder(str(folder), on_cpu(options), **options)


def unit(features: torch.Tensor) -> FloatArray:
    return torch.nn.functional.normalize(features, dim=1).numpy()


def native_clip_texts(folder: Path, texts: list[str]) -> FloatArray:
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.inference_mode():
        return unit(AutoModel.from_pretrained(folder).get_text_features(**tokens).pooler_output)


def native_siglip_texts(folder: Path, texts: list[str]) -> FloatArray:
    tokens = AutoTokenizer.from_pretrained(folder)(
        [text.lower() for text in texts],
        padding="max_length",
        truncation=True,
        max_length=64,
        return_tensors="pt",
    )
    model = AutoModel.from_pretrained(folder)
    with torch.inference_mode():
        return unit(model.get_text_features(input_ids=tokens.input_ids).pooler_output)


def native_images(folder: Path, images: list[Image.Image]) -> FloatArray:
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.inference_mode():
        return unit(AutoModel.from_pretrained(folder).get_image_features(**pixels).pooler_output)


def make_tiny_siglip_naflex(folder: Path, tokenizer: Path, *, patch: int, patches: int) -> Path:
    """Random weights in the layout of google/siglip2-base-patch16-naflex.

    Images of any shape become at most so many ``patches`` of ``patch`` pixels a side, with a mask.
    The tokenizer is that of another checkpoint.
    """
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    words = AutoTokenizer.from_pretrained(tokenizer)
    tokens = {"pad_token_id": words.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    config = Siglip2Config(
        text_config={**sizes, **tokens, "vocab_size": len(words), "max_position_embeddings": 64},
        vision_config={**sizes, "patch_size": patch, "num_patches": 256},
    )
    image_processor = Siglip2ImageProcessorPil(patch_size=patch, max_num_patches=patches)
    torch.manual_seed(0)
    with quiet_transformers():
        Siglip2Model(config).save_pretrained(folder)
        Siglip2Processor(image_processor, words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_naflex(tiny_siglip2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("naflex")
    return make_tiny_siglip_naflex(folder, tiny_siglip2, patch=16, patches=256)


@pytest.fixture(params=["tiny_clip", "tiny_siglip", "tiny_siglip2", "tiny_naflex"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def test_texts_equal_the_native_model_s(checkpoint: Path) -> None:
    is_clip = json.loads((checkpoint / "config.json").read_text())["model_type"] == "clip"
    native = (native_clip_texts if is_clip else native_siglip_texts)(checkpoint, TEXTS)

    np.testing.assert_allclose(load(checkpoint).encode_text(TEXTS, "query"), native, atol=1e-6)


def test_images_equal_the_native_model_s(checkpoint: Path, noise: list[Image.Image]) -> None:
    native = native_images(checkpoint, noise)

    np.testing.assert_allclose(load(checkpoint).encode_images(noise), native, atol=1e-6)


def test_batches_equal_singles(checkpoint: Path, noise: list[Image.Image]) -> None:
    encoder = load(checkpoint)

    texts = np.vstack([encoder.encode_text([text], "document") for text in TEXTS])
    images = np.vstack([encoder.encode_images([image]) for image in noise])

    np.testing.assert_allclose(encoder.encode_text(TEXTS, "document"), texts, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_images(noise), images, atol=1e-6)


def test_naflex_images_keep_their_shape(tiny_naflex: Path) -> None:
    shapes = [
        load(tiny_naflex).prepare_image(Image.new("RGB", size))["spatial_shapes"].tolist()
        for size in [(640, 100), (30, 900)]
    ]

    assert shapes == [[[6, 39]], [[85, 3]]]  # rows and columns


def test_naflex_follows_the_checkpoint_s_patches(
    tiny_siglip2: Path, tmp_path: Path, noise: list[Image.Image]
) -> None:
    """The encoder avoids this trap: transformers' processor replaces them by 16 and 256."""
    for patch, patches in [(8, 256), (16, 64)]:
        folder = tmp_path / f"{patch}"
        make_tiny_siglip_naflex(folder, tiny_siglip2, patch=patch, patches=patches)
        encoder = load(folder)

        assert encoder.prepare_image(noise[0])["pixel_values"].shape == (1, patches, 3 * patch**2)
        native = native_images(folder, noise)
        np.testing.assert_allclose(encoder.encode_images(noise), native, atol=1e-6)


def test_images_that_cannot_share_a_batch(tiny_clip: Path) -> None:
    encoder = load(tiny_clip)
    small, large = (
        encoder.prepare_image(Image.new("RGB", (32, 32))),
        {
            "pixel_values": torch.zeros(1, 3, 48, 32),
            "modality": "image",
        },
    )

    with pytest.raises(
        ModelError,
        match=r"pixel_values have the shapes \(3, 32, 32\) and \(3, 48, 32\) for different",
    ):
        encoder.encode_prepared([small, large])


def test_bare_sentence_transformers_differs_on_siglip(tiny_siglip: Path) -> None:
    """The encoder avoids this trap: SigLIP reads its padding."""
    bare = SentenceTransformer(str(tiny_siglip)).encode(TEXTS, normalize_embeddings=True)

    assert np.abs(bare - native_siglip_texts(tiny_siglip, TEXTS)).max() > 0.01


def test_capitals_do_not_matter_to_siglip_2(tiny_siglip2: Path) -> None:
    lower, upper = load(tiny_siglip2).encode_text(["a red cat", "A RED CAT"], "query")

    np.testing.assert_array_equal(lower, upper)


def test_clip_pools_at_the_end_token(tiny_clip: Path) -> None:
    config = json.loads((tiny_clip / "config.json").read_text())["text_config"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_clip)

    assert config["eos_token_id"] == tokenizer.eos_token_id != 2
    # If it pooled elsewhere, the last word would make no difference.
    one, other = load(tiny_clip).encode_text(["a red cat", "a red dog"], "query")
    assert np.abs(one - other).max() > 0.001


def test_old_clip_configs_pool_at_the_end_token_too(tiny_clip: Path, tmp_path: Path) -> None:
    """OpenAI's files say ``eos_token_id`` 2; then the largest id, the end token, counts."""
    shutil.copytree(tiny_clip, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))

    np.testing.assert_array_equal(
        load(tmp_path).encode_text(TEXTS, "query"), load(tiny_clip).encode_text(TEXTS, "query")
    )


def test_what_it_says_of_itself(tiny_clip: Path, tiny_siglip: Path) -> None:
    clip, siglip = load(tiny_clip), load(tiny_siglip)

    assert (clip.dimension, clip.max_text_tokens, clip.name) == (16, 77, str(tiny_clip))
    assert (siglip.dimension, siglip.max_text_tokens) == (32, 64)
    assert clip.modalities == {"text", "image"}
    assert clip.encode_text(["x"], "query").dtype == np.float32


def test_long_texts_are_cut_and_counted(checkpoint: Path) -> None:
    encoder = load(checkpoint)
    long = "cat " * 2000

    one, other = encoder.encode_text([long, long + "and a dog"], "document")

    assert encoder.count_truncated(["x", long, "a cat"], "document") == 1
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_texts_can_be_cut_earlier(tiny_clip: Path) -> None:
    encoder = load(tiny_clip, max_text_tokens=5)

    assert encoder.max_text_tokens == 5
    assert encoder.count_truncated(["abc", "abcd"], "query") == 1  # and two special tokens
    one, other = encoder.encode_text(["abcd", "abce"], "query")
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("wanted", [0, 78])
def test_refuses_a_limit_the_model_does_not_have(tiny_clip: Path, wanted: int) -> None:
    with pytest.raises(ValueError, match=f"max_text_tokens={wanted}: .* reads 1 to 77 tokens"):
        load(tiny_clip, max_text_tokens=wanted)


def test_refuses_another_limit_for_siglip(tiny_siglip: Path) -> None:
    with pytest.raises(ValueError, match="needs every text padded to 64"):
        load(tiny_siglip, max_text_tokens=32)


@pytest.mark.parametrize(
    "text", ["https://example.com/cat.jpg", "data:image/png;base64,xxxx", "cat.mp4"]
)
def test_a_text_that_looks_like_an_image_is_a_text(tiny_clip: Path, text: str) -> None:
    """sentence-transformers would fetch the first and embed it as an image."""
    np.testing.assert_allclose(
        load(tiny_clip).encode_text([text], "query"),
        native_clip_texts(tiny_clip, [text]),
        atol=1e-6,
    )


def test_a_text_that_names_an_image_file_is_a_text(tiny_clip: Path, noise_files: list[str]) -> None:
    np.testing.assert_allclose(
        load(tiny_clip).encode_text(noise_files[:1], "query"),
        native_clip_texts(tiny_clip, noise_files[:1]),
        atol=1e-6,
    )


def test_prompts(tiny_clip: Path) -> None:
    encoder = load(tiny_clip, query_prompt="find: ", document_prompt="")

    np.testing.assert_allclose(
        encoder.encode_text(["a cat"], "query"),
        load(tiny_clip).encode_text(["find: a cat"], "query"),
    )
    assert encoder.count_truncated(["a" * 73], "query") == 1
    assert encoder.count_truncated(["a" * 73], "document") == 0


def test_prompts_of_the_checkpoint_are_used(tiny_clip: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(tiny_clip), prompts={"query": "Q: ", "passage": "P: "})
    model.save_pretrained(str(tmp_path))
    encoder, plain = load(tmp_path), load(tiny_clip)

    for kind, prompt in (("query", "Q: "), ("document", "P: ")):
        np.testing.assert_allclose(
            encoder.encode_text(["a cat"], kind), plain.encode_text([prompt + "a cat"], kind)
        )
    np.testing.assert_allclose(
        load(tmp_path, query_prompt="").encode_text(["a cat"], "query"),
        plain.encode_text(["a cat"], "query"),
    )


def test_bfloat16_stays_close_to_float32(checkpoint: Path, noise: list[Image.Image]) -> None:
    exact, short = load(checkpoint), load(checkpoint, dtype="bfloat16")

    assert (exact.encode_images(noise) * short.encode_images(noise)).sum(axis=1).min() > 0.999
    texts = exact.encode_text(TEXTS, "query") * short.encode_text(TEXTS, "query")
    assert texts.sum(axis=1).min() > 0.995
    assert short.encode_images(noise).dtype == np.float32


def test_images_are_prepared_by_pillow_and_left_as_they_are(tiny_siglip: Path) -> None:
    encoder = load(tiny_siglip)
    image = Image.effect_noise((50, 40), 30).convert("RGB")
    before = image.tobytes()

    encoder.prepare_image(image)

    assert image.tobytes() == before
    assert "Pil" in type(encoder._model.processor.image_processor).__name__


def test_pillow_is_asked_for_where_torchvision_would_be_taken(
    tiny_siglip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}
    original = SentenceTransformer.__init__

    def spy(self: SentenceTransformer, *args: object, **kwargs: object) -> None:
        asked.update(kwargs)
        original(self, *args, **kwargs)

    monkeypatch.setattr(SentenceTransformer, "__init__", spy)
    load(tiny_siglip)

    assert asked["processor_kwargs"] == {"backend": "pil"}


def text_model(folder: Path) -> Path:
    """A text encoder as saved by sentence-transformers: BERT with mean pooling, no pooler."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]
    (folder / "bert").mkdir(parents=True)
    vocab = {token: index for index, token in enumerate(vocabulary)}
    BertTokenizer(vocab=vocab, model_max_length=16).save_pretrained(folder / "bert")
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    model = SentenceTransformer(modules=[transformer, Pooling(16, "mean")])
    model.save_pretrained(str(folder / "saved"))
    weights = folder / "saved" / "model.safetensors"
    kept = {key: value for key, value in load_file(weights).items() if "pooler" not in key}
    save_file(kept, weights, metadata={"format": "pt"})
    return folder / "saved"


def test_a_text_encoder_encodes_no_images(tmp_path: Path, noise: list[Image.Image]) -> None:
    encoder = load(text_model(tmp_path))

    assert encoder.modalities == {"text"}
    assert encoder.encode_text(["a cat", "a dog"], "query").shape == (2, 16)
    with pytest.raises(ModelError, match="does not encode images; pass a dual encoder"):
        encoder.encode_images(noise)


# --- loads that must fail -----------------------------------------------------------------------


def damaged(source: Path, folder: Path, change: str) -> Path:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    key = "text_model.encoder.layers.0.mlp.fc1.weight"
    match change:
        case "missing":
            del weights[key]
        case "unexpected":
            weights["another.weight"] = torch.zeros(1)
        case "shape":
            weights[key] = torch.zeros(3, 3)
        case "nan":
            weights[key][0, 0] = torch.nan
        case "infinity":
            weights[key][0, 0] = torch.inf
        case "old buffer":
            weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing: text_model\.encoder\.layers\.0\.mlp\.fc1\.weight"),
        ("unexpected", r"unexpected: another\.weight"),
        ("nan", r"NaN or infinity in the weights .*layers\.0\.mlp\.fc1\.weight; download"),
        ("infinity", r"NaN or infinity in the weights .*layers\.0\.mlp\.fc1\.weight; download"),
        ("shape", r"wrongly shaped: text_model.*fc1\.weight \(3, 3\) for \(64, 32\)"),
    ],
)
def test_refuses_weights_that_do_not_fit(
    tiny_clip: Path, tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load(damaged(tiny_clip, tmp_path, change))


def test_refuses_a_missing_shard(tiny_clip: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_clip, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    with quiet_transformers():
        AutoModel.from_pretrained(tiny_clip).save_pretrained(tmp_path, max_shard_size="60KB")
    np.testing.assert_array_equal(
        load(tmp_path).encode_text(TEXTS, "query"), load(tiny_clip).encode_text(TEXTS, "query")
    )
    next(tmp_path.glob("model-00002-*")).unlink()

    with pytest.raises(ModelError, match=r"cannot load it: .*model-00002-of"):
        load(tmp_path)


def test_without_sentencepiece_it_says_what_to_install(
    tiny_siglip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError(
            "SiglipTokenizer requires the SentencePiece library but it was not found in your "
            "environment. Check out the instructions on the\ninstallation page"
        )

    monkeypatch.setattr("sentence_transformers.SentenceTransformer.__init__", refuse)
    with pytest.raises(ModelError, match=r"pip install 'llama-index-gap\[siglip\]'"):
        load(tiny_siglip)


def test_buffers_of_old_checkpoints_are_no_error(tiny_clip: Path, tmp_path: Path) -> None:
    encoder = load(damaged(tiny_clip, tmp_path, "old buffer"))

    np.testing.assert_array_equal(
        encoder.encode_text(TEXTS, "query"), load(tiny_clip).encode_text(TEXTS, "query")
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "config.json is not JSON|cannot load it"),
        ("config.json", b'{"model_type": "unheard-of"}', "does not know its model_type"),
        ("model.safetensors", b"\x10\0\0\0\0\0\0\0nonsense", r"model\.safetensors cannot be read"),
        ("tokenizer.json", b"{}", "tokenizer does not load"),
    ],
)
def test_refuses_damaged_files(
    tiny_clip: Path, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    shutil.copytree(tiny_clip, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(content)

    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_read_only_when_asked(tiny_clip: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_clip, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelError, match=r"only pickled weights .* --allow-pickle"):
        load(tmp_path)
    encoder = load(tmp_path, allow_pickle=True)
    np.testing.assert_array_equal(
        encoder.encode_text(TEXTS, "query"), load(tiny_clip).encode_text(TEXTS, "query")
    )


def test_code_of_the_checkpoint_runs_only_when_asked(tiny_clip: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_clip, tmp_path, dirs_exist_ok=True)
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "modeling.C", "AutoModel": "modeling.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelError):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
