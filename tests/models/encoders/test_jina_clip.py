"""jina-clip-v2 against the outputs of its own code, on a tiny checkpoint with random weights."""

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
from llama_index_gap.models.encoders.jina_clip import JinaClipEncoder

FOLDER = PARITY / "jina_clip_tiny"
CASES = json.loads((FOLDER / "parity.json").read_text(encoding="utf-8"))
TEXTS = CASES["texts"]
QUERY_INSTRUCTION = "Represent the query for retrieving evidence documents: "
KEY = "text_model.transformer.roberta.encoder.layers.1.mixer.Wqkv.parametrizations.weight.0.lora_B"


def load(folder=FOLDER, dtype=torch.float32, **options):
    return JinaClipEncoder(Checkpoint("tiny", folder), on_cpu({"dtype": dtype}), **options)


@pytest.fixture(scope="module")
def encoder():
    return load()


@pytest.fixture(scope="module")
def expected():
    return load_arrays(FOLDER / "parity.safetensors")


@pytest.fixture(scope="module")
def images():
    return [Image.open(PARITY / "images" / f"{name}.png") for name in CASES["images"]]


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "copy")


def change_weights(folder, change):
    """Rewrite a checkpoint's weights after ``change`` has edited its dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_config(folder, section, **settings):
    config = json.loads((folder / "config.json").read_text())
    config[section].update(settings)
    (folder / "config.json").write_text(json.dumps(config))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_what_it_says_of_itself(encoder):
    assert (encoder.name, encoder.licence, encoder.dimension) == ("tiny", None, 64)
    assert encoder.modalities == {"text", "image"}
    assert encoder.max_text_tokens == 128


@pytest.mark.parametrize(("kind", "prefix"), [("document", ""), ("query", "query_")])
def test_text_parity(encoder, expected, kind, prefix):
    ids = encoder._tokenizer(TEXTS, kind)["input_ids"]
    assert (ids.numpy() == expected[f"{prefix}input_ids"]).all()
    close(encoder.encode_text(TEXTS, kind), unit_rows(expected[f"{prefix}text_features"]))


def test_image_parity_from_pixels(encoder, expected):
    for name in ("", "rand_"):
        found = encoder.encode_prepared(expected[f"{name}pixel_values"])
        close(found, unit_rows(expected[f"{name}image_features"]))


def test_image_parity_from_files(encoder, expected, images):
    prepared = [encoder.prepare_image(image) for image in images]
    assert (np.stack(prepared) == expected["pixel_values"]).all()
    close(encoder.encode_prepared(prepared), unit_rows(expected["image_features"]))


def test_unit_vectors_and_their_beginnings(encoder, expected, images):
    close(encoder.encode_text(TEXTS, "query"), expected["encode_text_retrieval_query"])
    text = encoder.encode_text(TEXTS, "document")
    close(unit_rows(text[:, :32]), expected["encode_text_truncate32"])
    image = encoder.encode_images(images)
    close(unit_rows(image[:, :32]), expected["encode_image_truncate32"])


def test_batches_equal_singles(encoder, images):
    singles = np.concatenate([encoder.encode_text([text], "document") for text in TEXTS])
    close(encoder.encode_text(TEXTS, "document"), singles)
    singles = np.concatenate([encoder.encode_images([image]) for image in images])
    close(encoder.encode_images(images), singles)


def test_empty_batches(encoder):
    assert encoder.encode_text([], "query").shape == (0, 64)
    assert encoder.encode_images([]).shape == (0, 64)
    assert encoder.count_truncated([], "query") == 0


def test_bfloat16_stays_close(encoder, images):
    small = load(dtype=torch.bfloat16)
    text = small.encode_text(TEXTS, "query")
    assert text.dtype == np.float32
    assert ((text * encoder.encode_text(TEXTS, "query")).sum(1) > 0.999).all()
    image = small.encode_images(images)
    assert ((image * encoder.encode_images(images)).sum(1) > 0.999).all()


def test_prepare_image_leaves_the_image_alone(encoder):
    image = Image.new("RGBA", (90, 40), (10, 20, 30, 40))
    before = image.copy()
    encoder.prepare_image(image)
    assert image == before


def test_half_a_pixel_is_rounded_to_even(encoder):
    grey = np.tile(np.arange(63, dtype=np.uint8), (60, 1))
    wide = Image.fromarray(grey)  # 3 columns too many: 1.5 on the left, rounded to 2
    found = encoder.prepare_image(wide)
    assert (found == encoder.prepare_image(wide.crop((2, 0, 62, 60)))).all()
    tall = encoder.prepare_image(Image.fromarray(grey.T))
    assert (tall == found.transpose(0, 2, 1)).all()


def test_a_long_strip_is_cut_before_it_is_scaled(encoder, monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image,
        "resize",
        lambda self, size, *rest: (sizes.append(size), resize(self, size, *rest))[1],
    )
    assert encoder.prepare_image(Image.new("RGB", (9000, 3))).shape == (3, 60, 60)
    assert sizes == [(6000, 60)]


def test_prompts_can_be_replaced(encoder):
    other = load(query_prompt="", document_prompt=QUERY_INSTRUCTION)
    close(other.encode_text(TEXTS, "query"), encoder.encode_text(TEXTS, "document"))
    close(other.encode_text(TEXTS, "document"), encoder.encode_text(TEXTS, "query"))


def test_long_texts_are_cut_and_counted(encoder):
    short = load(max_text_tokens=20)
    words = " ".join(["cat"] * 200)
    assert short.encode_text([words, "cat"], "document").shape == (2, 64)
    assert short._tokenizer([words], "document")["input_ids"].shape == (1, 20)
    assert short.count_truncated([words, "cat", words], "document") == 2
    assert encoder.count_truncated([words, "cat"], "query") == 1


def test_max_text_tokens_has_limits():
    with pytest.raises(ValueError, match=r"max_text_tokens=129 is more .* pass at most 128"):
        load(max_text_tokens=129)
    with pytest.raises(ValueError, match=r"max_text_tokens=5 leaves no room for a text: the query"):
        load(max_text_tokens=5)


def test_one_of_several_lora_adaptations_is_merged(copy, expected):
    def add_another_task(tensors):
        for key in [key for key in tensors if "lora_" in key]:
            tensors[key] = torch.cat([torch.randn_like(tensors[key]), tensors[key]])

    change_weights(copy, add_another_task)
    config = json.loads((copy / "config.json").read_text())
    overrides = config["text_config"]["hf_model_config_kwargs"]
    overrides["lora_adaptations"] = ["separation", "retrieval.query"]
    (copy / "config.json").write_text(json.dumps(config))
    close(load(copy).encode_text(TEXTS, "document"), unit_rows(expected["text_features"]))


def test_sharded_checkpoint(copy, expected):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    files = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(tensors)}
    for file in set(files.values()):
        save_file({key: tensors[key] for key in files if files[key] == file}, copy / file)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    close(load(copy).encode_text(TEXTS, "document"), unit_rows(expected["text_features"]))

    (copy / "model-1.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights are missing: model-1\.safetensors"):
        load(copy)


def test_renamed_weight(copy):
    change_weights(
        copy, lambda tensors: tensors.update(extra=tensors.pop("vision_model.norm.bias"))
    )
    with pytest.raises(ModelError, match=r"unexpected: extra"):
        load(copy)


def test_missing_weight(copy):
    change_weights(copy, lambda tensors: tensors.pop("vision_model.norm.bias"))
    with pytest.raises(ModelError, match=r"missing: norm\.bias$"):
        load(copy)


def test_missing_half_of_a_lora_pair(copy):
    change_weights(copy, lambda tensors: tensors.pop(KEY))
    with pytest.raises(ModelError, match=r"missing: layers\.1\.self_attn\.k_proj\.weight.*lora_A"):
        load(copy)


def test_wrongly_shaped_weight(copy):
    name = "vision_model.blocks.0.attn.proj.weight"
    change_weights(copy, lambda tensors: tensors.update({name: torch.zeros(64, 32)}))
    match = r"wrongly shaped: blocks\.0\.attn\.proj\.weight \(64, 32\) for \(64, 64\)"
    with pytest.raises(ModelError, match=match):
        load(copy)


def test_wrongly_shaped_lora(copy):
    change_weights(copy, lambda tensors: tensors.update({KEY: torch.zeros(1, 192, 2)}))
    with pytest.raises(ModelError, match=r"wrongly shaped: .*lora_B \(1, 192, 2\) for rank 4"):
        load(copy)


def test_nan_in_a_weight(copy):
    change_weights(copy, lambda tensors: tensors["vision_model.cls_token"].fill_(torch.nan))
    with pytest.raises(ModelError, match=r"NaN or infinity in the weights vision_model\.cls_token"):
        load(copy)


def test_truncated_weights(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        load(copy)


def test_variants_that_would_compute_wrongly(copy):
    change_config(copy, "vision_config", post_norm=True)
    with pytest.raises(ModelError, match=r"vision_config\.post_norm=True \(supported: False\)"):
        load(copy)


def test_unknown_override_of_the_text_base(copy):
    change_config(copy, "text_config", hf_model_config_kwargs={"position_embedding_type": "none"})
    with pytest.raises(
        ModelError, match=r"hf_model_config_kwargs .* has unknown settings: position_embedding_type"
    ):
        load(copy)


def test_unknown_default_task(copy):
    change_config(copy, "text_config", default_lora_task="separation")
    with pytest.raises(ModelError, match=r"default_lora_task='separation', which is not one of"):
        load(copy)


def test_towers_of_different_width(copy):
    change_config(copy, "vision_config", width=32, head_width=8)
    with pytest.raises(ModelError, match=r"text vectors have 64 dimensions .* image vectors 32"):
        load(copy)


def test_preprocessing_for_another_size(copy):
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": 224}))
    with pytest.raises(ModelError, match=r"scales images to 224, but .* image_size=60"):
        load(copy)
