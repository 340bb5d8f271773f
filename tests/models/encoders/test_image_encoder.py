"""Vectors equal those that transformers itself computes from the same pixels."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from on_cpu import on_cpu
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BitImageProcessorPil,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from llama_index_gap import DualEncoderEmbedding, open_image
from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.models import Encoder, ModelError, load_encoder
from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers
from llama_index_gap.models.encoders.image_encoder import ImageEncoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def load(folder: Path, **options: object) -> Encoder:
    return load_encoder(str(folder), on_cpu(options), **options)


def save(folder: Path, *parts: object) -> Path:
    with quiet_transformers():
        for part in parts:
            part.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


@pytest.fixture(scope="module")
def tiny_registers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(**SIZES, image_size=42, patch_size=14, num_register_tokens=2)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42}
    )
    folder = tmp_path_factory.mktemp("registers")
    return save(folder, Dinov2WithRegistersModel(config), processor)


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the pooler, like facebook/dino-vitb16."""
    torch.manual_seed(0)
    config = ViTConfig(**SIZES, intermediate_size=64, image_size=32, patch_size=8)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    folder = tmp_path_factory.mktemp("vit")
    return save(folder, ViTModel(config, add_pooling_layer=False), processor)


@pytest.fixture(scope="module")
def tiny_dinov3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an image processor that, unlike DINOv3's own, needs no torchvision."""
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        **SIZES, intermediate_size=64, image_size=32, patch_size=16, num_register_tokens=2
    )
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return save(tmp_path_factory.mktemp("dinov3"), DINOv3ViTModel(config), processor)


@pytest.fixture(params=["tiny_dinov2", "tiny_registers", "tiny_dinov3", "tiny_vit"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def native(folder: Path, images: list[Image.Image]) -> FloatArray:
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt")
    with torch.inference_mode(), quiet_transformers():
        tokens = AutoModel.from_pretrained(folder)(**pixels).last_hidden_state
    return torch.nn.functional.normalize(tokens[:, 0], dim=1).numpy()


def test_it_gives_the_class_token(checkpoint: Path, noise: list[Image.Image]) -> None:
    encoder = load(checkpoint)

    assert isinstance(encoder, ImageEncoder)
    assert (encoder.modalities, encoder.dimension, encoder.max_text_tokens) == ({"image"}, 32, None)
    np.testing.assert_allclose(encoder.encode_images(noise), native(checkpoint, noise), atol=1e-6)


def test_batches_equal_singles(checkpoint: Path, noise: list[Image.Image]) -> None:
    encoder = load(checkpoint)

    singles = np.vstack([encoder.encode_images([image]) for image in noise])

    np.testing.assert_allclose(encoder.encode_images(noise), singles, atol=1e-6)
    assert encoder.encode_images([]).shape == (0, 32)


def test_the_class_token_is_dinov2_s_own_choice(
    tiny_dinov2: Path, noise: list[Image.Image]
) -> None:
    """The encoder avoids this trap: sentence-transformers takes the mean of all tokens."""
    pixels = AutoImageProcessor.from_pretrained(tiny_dinov2, backend="pil")(
        noise, return_tensors="pt"
    )
    with torch.inference_mode():
        output = AutoModel.from_pretrained(tiny_dinov2)(**pixels)
    ours = load(tiny_dinov2).encode_images(noise)

    own, mean = (
        torch.nn.functional.normalize(vectors, dim=1).numpy()
        for vectors in (output.pooler_output, output.last_hidden_state.mean(dim=1))
    )
    np.testing.assert_allclose(ours, own, atol=1e-6)
    assert np.abs(ours - mean).max() > 0.01


def test_bfloat16_is_near(tiny_dinov2: Path, noise: list[Image.Image]) -> None:
    exact, rounded = (
        load(tiny_dinov2, dtype=d).encode_images(noise) for d in ("float32", "bfloat16")
    )

    assert rounded.dtype == np.float32
    assert (exact * rounded).sum(axis=1).min() > 0.999


# --- through DualEncoderEmbedding ---------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_images_of_every_kind(tiny_dinov2: Path, tmp_path: Path, mode: str) -> None:
    ramp = np.linspace(0, 255, 60 * 50 * 4).reshape(50, 60, 4).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(ramp).convert(mode).save(path)
    embedding = DualEncoderEmbedding(model_name=tiny_dinov2, dtype="float32")

    vector = embedding.get_image_embedding(str(path))

    (expected,) = native(tiny_dinov2, [open_image(path)])
    np.testing.assert_allclose(vector, expected, atol=1e-6)
    np.testing.assert_allclose(
        embedding.get_image_embedding_batch([str(path)])[0], vector, atol=1e-6
    )


def test_texts_are_refused_and_the_way_out_is_said(tiny_dinov2: Path) -> None:
    embedding = DualEncoderEmbedding(model_name=tiny_dinov2)

    assert embedding.modalities == {"image"}
    for embed in (embedding.get_query_embedding, embedding.get_text_embedding):
        with pytest.raises(ModelError, match=r"encodes images only; .* image_query_embed_model"):
            embed("a text")
    with pytest.raises(ModelError, match="encodes images only"):
        load(tiny_dinov2).encode_text(["a text"], "query")
    with pytest.raises(ValueError, match=r"query_prompt and document_prompt are for texts"):
        DualEncoderEmbedding(model_name=tiny_dinov2, query_prompt="find: ")


def test_it_shares_no_space_with_a_text_model(tiny_dinov2: Path, tiny_siglip: Path) -> None:
    """Their dimensions are equal by chance, as those of SigLIP base and DINOv2 base are."""
    assert load(tiny_siglip).dimension == load(tiny_dinov2).dimension

    with pytest.raises(ValueError, match=r"was trained on images only.* image_query_embed_model"):
        DualEncoderEmbedding(model_name=tiny_siglip, image_model_name=tiny_dinov2)


# --- damaged checkpoints ------------------------------------------------------------------------


@pytest.fixture
def copy(tiny_dinov2: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_dinov2, tmp_path / "copy")


def test_a_missing_weight_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.1.norm2.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})

    with pytest.raises(ModelError, match=r"do not fit .*missing: encoder\.layer\.1\.norm2\.weight"):
        load(copy)


def test_a_weight_too_many_is_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["classifier.weight"] = torch.zeros(2, 32)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})

    with pytest.raises(ModelError, match=r"unexpected: classifier\.weight"):
        load(copy)


def test_broken_numbers_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["layernorm.weight"][3] = float("nan")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})

    with pytest.raises(ModelError, match=r"NaN or infinity in the weights layernorm\.weight"):
        load(copy)


def test_a_checkpoint_without_its_image_processor_is_refused(copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()

    with pytest.raises(ModelError, match="transformers cannot load it"):
        load(copy)


def test_dinov3_s_own_image_processor_needs_torchvision(tiny_dinov3: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    folder = shutil.copytree(tiny_dinov3, tmp_path / "copy")
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "DINOv3ViTImageProcessorFast"}'
    )

    with pytest.raises(ModelError, match="needs torchvision; run: pip install torchvision"):
        load(folder)


def test_a_sentence_transformers_model_says_itself_how_it_pools(
    tiny_dinov2: Path, tmp_path: Path, noise: list[Image.Image]
) -> None:
    with quiet_transformers():
        bare = SentenceTransformer(str(tiny_dinov2), processor_kwargs={"backend": "pil"})
        bare.save(str(tmp_path / "pooled"))

    pooled = load(tmp_path / "pooled").encode_images(noise)

    expected = bare.encode(noise, normalize_embeddings=True)
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    assert np.abs(pooled - load(tiny_dinov2).encode_images(noise)).max() > 0.01
