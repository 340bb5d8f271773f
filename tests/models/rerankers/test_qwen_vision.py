"""Images run through Qwen2-VL's vision tower, and its results are cached."""

import json
import logging
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from on_cpu import on_cpu
from paths import PARITY
from PIL import Image
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file, save_file

from llama_index_gap.models.base import LazyImage, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint
from llama_index_gap.models.rerankers.jina_reranker import JinaRerankerScorer

FOLDER = PARITY / "jina_m0_tiny"
CASE = json.loads((FOLDER / "parity.json").read_text(encoding="utf-8"))["cases"]["text_image"]
IMAGES = {path.stem: Image.open(path).copy() for path in (PARITY / "images").glob("*.png")}


def load(folder=FOLDER, dtype=torch.float32, **options):
    return JinaRerankerScorer(Checkpoint("tiny", folder), on_cpu({"dtype": dtype}), **options)


@pytest.fixture(scope="module")
def vision():
    return load(prefix_bytes=0)._vision


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(FOLDER, tmp_path / "copy")


def prepared(scorer, name="wide_100x70"):
    return scorer.prepare(LazyImage(name, lambda: IMAGES[name]))


def must_not_be_opened():
    raise AssertionError


def known(scorer, name="wide_100x70"):
    """Whether an image was not decoded."""
    return scorer.prepare(LazyImage(name, lambda: IMAGES[name])).patches is None


def test_patches_of_the_reference(vision):
    expected = load_arrays(FOLDER / "parity.safetensors")
    patches = [vision.cut_up(IMAGES[name]) for _, name in CASE["pairs"]]
    grids = [(1, *each.grid) for each in patches]
    assert grids == [tuple(grid) for grid in expected["text_image.image_grid_thw"]]
    pixels = torch.cat([each.pixels for each in patches]).numpy()
    np.testing.assert_allclose(pixels, expected["text_image.pixel_values"], rtol=0, atol=1e-6)


def test_threads_cut_up_images_at_once(vision):
    alone = {name: vision.cut_up(image).pixels for name, image in IMAGES.items()}
    names = list(IMAGES) * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: vision.cut_up(IMAGES[name]).pixels, names))
    assert all(torch.equal(pixels, alone[name]) for name, pixels in zip(names, found, strict=True))


def test_each_image_is_seen_once_and_as_if_alone(monkeypatch):
    scorer = load(vision_bytes=0)
    images = [prepared(scorer, name) for name in IMAGES]
    alone = [scorer._vision.see([image])[0] for image in images]
    seen = []
    look = scorer._vision._look
    monkeypatch.setattr(
        scorer._vision, "_look", lambda patches: (seen.append(len(patches)), look(patches))[1]
    )

    found = scorer._vision.see(images * 2)

    assert seen == [len(IMAGES)]
    for scene, by_itself in zip(found, alone * 2, strict=True):
        assert scene.grid == by_itself.grid
        assert len(scene.vectors) == scene.grid[0] * scene.grid[1]
        torch.testing.assert_close(scene.vectors, by_itself.vectors, rtol=0, atol=1e-5)
        assert scene.vectors.untyped_storage().nbytes() == scene.vectors.nbytes


@pytest.mark.parametrize("scale_to_pixels", [3136, 20_000, 602_112])
def test_scale_to_pixels(scale_to_pixels):
    scorer = load(scale_to_pixels=scale_to_pixels)
    rows, columns = scorer._vision.cut_up(Image.new("RGB", (900, 700))).grid
    assert 0.5 * scale_to_pixels <= rows * columns * 14**2 <= scale_to_pixels


def test_a_strip_is_refused(vision):
    with pytest.raises(ModelError, match=r"tiny cannot read an image of 3×900: .* aspect ratio"):
        vision.cut_up(Image.new("RGB", (3, 900)))


def test_kept_on_disk(tmp_path):
    first = load(vision_folder=tmp_path / "seen")
    assert not known(first)
    scores = first.score("slm markdown", list(map(image_of, IMAGES)))

    # Another process would have an empty cache in memory, and no prefixes.
    second = load(vision_folder=str(tmp_path / "seen"))

    assert all(known(second, name) for name in IMAGES)
    closed = [LazyImage(name, must_not_be_opened) for name in IMAGES]
    np.testing.assert_allclose(second.score("slm markdown", closed), scores, rtol=0, atol=1e-6)


def image_of(name):
    return LazyImage(name, lambda: IMAGES[name])


def test_memory_of_disk(tmp_path):
    scorer = load(vision_folder=tmp_path / "seen", vision_bytes=0, prefix_bytes=0)
    scorer.score("slm markdown", [image_of("wide_100x70")])
    assert len(scorer._vision._memory) == 0
    assert known(scorer)


def test_what_others_saw_is_not_taken(tmp_path, copy):
    seen = tmp_path / "seen"
    load(copy, vision_folder=seen).score("slm markdown", [image_of("wide_100x70")])
    assert known(load(copy, vision_folder=seen))
    assert known(load(shutil.copytree(copy, tmp_path / "moved"), vision_folder=seen))
    assert not known(load(copy, vision_folder=seen, scale_to_pixels=50_000))
    assert not known(load(copy, vision_folder=seen, dtype=torch.bfloat16))

    tensors = load_file(copy / "model.safetensors")
    tensors["visual.blocks.0.norm1.bias"][0] += 1e-3
    save_file(tensors, copy / "model.safetensors")
    assert not known(load(copy, vision_folder=seen))


def test_a_damaged_file_is_made_again(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "llama_index_gap")
    seen = tmp_path / "seen"
    scores = load(vision_folder=seen).score("slm markdown", [image_of("wide_100x70")])
    (file,) = seen.rglob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])

    again = load(vision_folder=seen)

    found = again.score("slm markdown", [image_of("wide_100x70")])
    np.testing.assert_allclose(found, scores, rtol=0, atol=1e-6)
    assert "computed again" in caplog.text
    assert file.read_bytes() == whole


def test_settings_for_another_tower(copy):
    file = copy / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 16}))
    match = r"preprocessor_config\.json says patch_size=16 \(supported: 14\)"
    with pytest.raises(ModelError, match=match):
        load(copy)


@pytest.mark.parametrize("settings", [{"image_processor_type": "Unheard"}, {"size": {"height": 3}}])
def test_settings_that_do_not_load(copy, settings):
    (copy / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"its preprocessor_config\.json does not load"):
        load(copy)
