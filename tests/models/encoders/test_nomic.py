"""Nomic Embed against the outputs of its own code, on tiny checkpoints with random weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from on_cpu import on_cpu
from paths import PARITY
from PIL import Image
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from llama_index_gap.gap.arrays import unit_rows
from llama_index_gap.models.base import ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.encoders.nomic import NomicEncoder, is_vision

VISION = PARITY / "nomic_vision_tiny"
TEXT = PARITY / "nomic_text_tiny"
TEXTS = ["a red cat", "the blue dog and the photo of a cat", "x"]


def load(text=None, vision=None, dtype=torch.float32, **options):
    return NomicEncoder(
        text and Checkpoint("text", text),
        vision and Checkpoint("vision", vision),
        on_cpu({"dtype": dtype}),
        **options,
    )


@pytest.fixture(scope="module")
def encoder():
    return load(vision=VISION)


@pytest.fixture(scope="module")
def expected():
    return load_arrays(VISION / "parity.safetensors")


@pytest.fixture(scope="module")
def images():
    names = json.loads((VISION / "parity.json").read_text())["images"]
    return [Image.open(PARITY / "images" / f"{name}.png") for name in names]


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """The text checkpoint has no tokenizer; any other with a small vocabulary serves the tests."""
    folder = shutil.copytree(TEXT, tmp_path_factory.mktemp("nomic") / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PARITY / "jina_clip_tiny" / name, folder)
    return folder


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(VISION, tmp_path / "copy")


def change_weights(folder, change):
    """Rewrite a checkpoint's weights after ``change`` has edited its dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_json(path, **settings):
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def close(found, wanted, atol=1e-5):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=atol)


def test_image_parity_from_pixels(encoder, expected):
    found = encoder._vision.features(expected["rand_pixel_values"])
    # The largest of these is 15, and the reference itself is 3e-5 off the same sum in float64.
    close(found, expected["rand_image_embeds"], atol=3e-5)
    close(encoder.encode_prepared(expected["pixel_values"]), expected["image_embeds_norm"])


def test_image_parity_from_files(encoder, expected, images):
    prepared = [encoder.prepare_image(image) for image in images]
    assert (np.stack(prepared) == expected["pixel_values"]).all()
    close(encoder.encode_images(images), expected["image_embeds_norm"])


def test_text_parity(text_folder):
    wanted = load_arrays(TEXT / "parity.safetensors")
    ids, mask = (torch.from_numpy(wanted[key]) for key in ("input_ids", "attention_mask"))
    features = load(text=text_folder)._text.features(ids, mask)
    pooled = torch.from_numpy(wanted["pooled"])
    close(features, torch.nn.functional.layer_norm(pooled, (64,)))
    unit = unit_rows(features)
    close(unit, wanted["embeds_layernorm_norm"])
    close(unit_rows(unit[:, :32]), wanted["embeds_layernorm_trunc32_norm"])


def test_text_encoder(text_folder):
    encoder = load(text_folder)
    assert encoder.modalities == {"text"}
    assert (encoder.name, encoder.dimension, encoder.max_text_tokens) == ("text", 64, 130)
    queries, documents = (encoder.encode_text(TEXTS, kind) for kind in ("query", "document"))
    bare = load(text_folder, query_prompt="", document_prompt="")
    close(queries, bare.encode_text([f"search_query: {text}" for text in TEXTS], "query"))
    close(documents, bare.encode_text([f"search_document: {text}" for text in TEXTS], "document"))
    singles = np.concatenate([encoder.encode_text([text], "query") for text in TEXTS])
    close(queries, singles)
    assert encoder.encode_text([], "query").shape == (0, 64)


def test_text_ends_where_training_did(text_folder, tmp_path):
    folder = shutil.copytree(text_folder, tmp_path / "text")
    change_json(folder / "tokenizer_config.json", model_max_length=8192)
    assert load(folder).max_text_tokens == 2048
    with pytest.raises(ValueError, match=r"max_text_tokens=2049 is more .* pass at most 2048"):
        load(folder, max_text_tokens=2049)
    short = load(folder, max_text_tokens=24)
    assert short.count_truncated(["cat " * 50, "cat"], "query") == 1


def test_both_sides(text_folder, images):
    both = load(text_folder, VISION)
    assert both.modalities == {"text", "image"}
    assert both.name == "text + vision"
    assert both.encode_text(TEXTS, "query").shape == (3, 64)
    assert both.encode_images(images).shape == (len(images), 64)


def test_licences_of_both_sides(text_folder, tmp_path):
    text = shutil.copytree(text_folder, tmp_path / "text")
    vision = shutil.copytree(VISION, tmp_path / "vision")
    (text / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (vision / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert load(text, vision).licence == "apache-2.0"
    (vision / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert load(text, vision).licence == "apache-2.0 + cc-by-nc-4.0"


def test_batches_equal_singles(encoder, images):
    singles = np.concatenate([encoder.encode_images([image]) for image in images])
    close(encoder.encode_images(images), singles)
    assert encoder.encode_images([]).shape == (0, 64)


def test_bfloat16_stays_close(encoder, images, text_folder):
    vectors = load(vision=VISION, dtype=torch.bfloat16).encode_images(images)
    assert vectors.dtype == np.float32
    assert ((vectors * encoder.encode_images(images)).sum(1) > 0.999).all()
    vectors = load(text_folder, dtype=torch.bfloat16).encode_text(TEXTS, "query")
    assert ((vectors * load(text_folder).encode_text(TEXTS, "query")).sum(1) > 0.999).all()


def test_prepare_image_leaves_the_image_alone(encoder):
    image = Image.new("RGBA", (90, 40), (10, 20, 30, 40))
    before = image.copy()
    encoder.prepare_image(image)
    assert image == before


def test_a_side_that_is_not_there(encoder, text_folder, images):
    assert encoder.modalities == {"image"}
    assert encoder.max_text_tokens is None
    with pytest.raises(
        ModelError, match=r"vision is a vision checkpoint and reads no text; also pass"
    ):
        encoder.encode_text(["cat"], "query")
    with pytest.raises(ModelError, match=r"reads no text"):
        encoder.count_truncated(["cat"], "query")
    text = load(text_folder)
    with pytest.raises(
        ModelError, match=r"text is a text checkpoint and reads no images; also pass"
    ):
        text.prepare_image(images[0])
    with pytest.raises(ModelError, match=r"reads no images"):
        text.encode_prepared([])


def test_is_vision():
    assert is_vision(Checkpoint("vision", VISION))
    assert not is_vision(Checkpoint("text", TEXT))


def test_arguments():
    with pytest.raises(ValueError, match=r"needs a text checkpoint, a vision checkpoint, or both"):
        load()
    with pytest.raises(ValueError, match=r"query_prompt .* are for texts; pass a text checkpoint"):
        load(vision=VISION, query_prompt="")
    with pytest.raises(ModelError, match=r"text is a vision checkpoint; pass it as vision="):
        load(text=VISION)
    with pytest.raises(ModelError, match=r"vision is a text checkpoint; pass it as text="):
        load(vision=TEXT)
    with pytest.raises(ModelError, match=r"text: tokenizer\.json is missing"):
        load(text=TEXT)


def test_sides_of_different_dimension(text_folder, copy):
    change_json(copy / "config.json", n_embd=32)
    with pytest.raises(
        ModelError, match=r"vectors have 64 and 32 dimensions, so they share no space"
    ):
        load(text_folder, copy)


def test_sharded_checkpoint(copy, expected):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    files = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(tensors)}
    for file in set(files.values()):
        save_file({key: tensors[key] for key in files if files[key] == file}, copy / file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    vectors = load(vision=copy).encode_prepared(expected["pixel_values"])
    close(vectors, expected["image_embeds_norm"])


def test_renamed_weight(copy):
    name = "selector.attn.latent"
    change_weights(copy, lambda tensors: tensors.update(latent=tensors.pop(name)))
    with pytest.raises(ModelError, match=r"missing: selector\.attn\.latent; unexpected: latent"):
        load(vision=copy)


def test_wrongly_shaped_weight(copy):
    name = "embeddings.pos_embed"
    change_weights(copy, lambda tensors: tensors.update({name: torch.zeros(1, 16, 64)}))
    with pytest.raises(ModelError, match=r"embeddings\.pos_embed \(1, 16, 64\) for \(1, 17, 64\)"):
        load(vision=copy)


def test_text_layers_beyond_the_configuration(text_folder, tmp_path):
    folder = shutil.copytree(text_folder, tmp_path / "text")
    change_json(folder / "config.json", n_layer=2)
    with pytest.raises(ModelError, match=r"unexpected: layers\.2\.mlp\.down_proj\.weight"):
        load(folder)


def test_nan_in_a_weight(copy):
    change_weights(copy, lambda tensors: tensors["embeddings.cls_token"].fill_(torch.nan))
    with pytest.raises(ModelError, match=r"NaN or infinity in the weights embeddings\.cls_token"):
        load(vision=copy)


def test_variants_that_would_compute_wrongly(copy):
    change_json(copy / "config.json", register_tokens=4)
    with pytest.raises(ModelError, match=r"register_tokens=4 \(supported: 0\)"):
        load(vision=copy)


def test_preprocessing_for_another_size(copy):
    change_json(copy / "preprocessor_config.json", size={"height": 8, "width": 8})
    with pytest.raises(ModelError, match=r"scales images to .*8.*, but .* img_size=32"):
        load(vision=copy)


@pytest.mark.parametrize("shape", [None, [4], [4, 5], "4"])
def test_patches_in_pretraining_that_are_no_square(copy, shape):
    change_json(copy / "config.json", ref_feat_shape=shape)
    with pytest.raises(ModelError, match=r"ref_feat_shape=.* \(supported: two equal numbers\)"):
        load(vision=copy)


def test_text_models_that_pool_otherwise(text_folder, tmp_path):
    folder = shutil.copytree(text_folder, tmp_path / "text")
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}')
    assert load(folder).dimension == 64
    pooling.write_text('{"pooling_mode_mean_tokens": false, "pooling_mode_cls_token": true}')
    with pytest.raises(
        ModelError, match=r"1_Pooling/config\.json says pooling_mode_cls_token=True"
    ):
        load(folder)
