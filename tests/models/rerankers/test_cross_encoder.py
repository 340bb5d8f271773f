"""Scores equal those that transformers itself computes from the same files."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from on_cpu import on_cpu
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_rerankers import TEMPLATE, make_tiny_bert_reranker, make_tiny_qwen_reranker
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertForSequenceClassification,
    Qwen3VLForConditionalGeneration,
)

from llama_index_gap.gap.arrays import FloatArray
from llama_index_gap.models import Joint, LazyImage, ModelError
from llama_index_gap.models.base import Item
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, quiet_transformers
from llama_index_gap.models.rerankers.cross_encoder import CrossEncoderScorer, fits

QUERY = "a red cat"
TEXTS = ["a red cat sat", "x", "", "a dog 42. " * 4, "a dog 42. " * 100]


def load(folder: Path, **options: object) -> CrossEncoderScorer:
    return CrossEncoderScorer(Checkpoint(str(folder), folder), on_cpu(options), **options)


def native_bert(folder: Path, query: str, documents: list[str]) -> FloatArray:
    tokens = AutoTokenizer.from_pretrained(folder)(
        [query] * len(documents), documents, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode(), quiet_transformers():
        logits = BertForSequenceClassification.from_pretrained(folder)(**tokens).logits
    return torch.sigmoid(logits[:, 0]).numpy()


def native_qwen(folder: Path, query: Item, documents: list[Item]) -> FloatArray:
    """Score each pair alone, with a prompt built by hand."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    with quiet_transformers():
        model = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids(["y", "n"])
    scores = []
    for document in documents:
        images: list[Image.Image] = []
        sides = [as_prompt(side, images) for side in (query, document)]
        prompt = (
            f"<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\nquery: {sides[0]}\n"
            f"document: {sides[1]}\n<|im_end|>\n<|im_start|>assistant\n"
        )
        inputs: dict[str, torch.Tensor] = {}
        if images:
            inputs = dict(image_processor(images, return_tensors="pt"))
            for grid in inputs["image_grid_thw"]:
                prompt = prompt.replace("@", "<|image_pad|>" * int(grid.prod() // 4), 1)
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
        is_image = (ids == model.config.image_token_id).int()
        with torch.inference_mode():
            logits = model(input_ids=ids, mm_token_type_ids=is_image, **inputs).logits[0, -1]
        scores.append(float(logits[yes] - logits[no]))
    return np.array(scores, dtype=np.float32)


def as_prompt(side: Item, images: list[Image.Image]) -> str:
    if isinstance(side, str):
        return side
    images.append(side.image if isinstance(side, Joint) else side)
    return "<|vision_start|>@<|vision_end|>" + (side.text if isinstance(side, Joint) else "")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bert_reranker(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_reranker(tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def mixed(noise: list[Image.Image]) -> list[Item]:
    return [TEXTS[0], noise[0], Joint("a caption", noise[1]), TEXTS[3], noise[3], TEXTS[2]]


def test_texts_score_as_the_native_model_s(bert: Path) -> None:
    scores = load(bert).score(QUERY, TEXTS)

    np.testing.assert_allclose(scores, native_bert(bert, QUERY, TEXTS), atol=1e-6)
    assert scores.dtype == np.float32
    assert len(set(scores.tolist())) == len(TEXTS)


@pytest.mark.parametrize("kind_of_query", ["text", "image", "joint"])
def test_texts_and_images_score_as_the_native_model_s(
    qwen: Path, mixed: list[Item], noise: list[Image.Image], kind_of_query: str
) -> None:
    query = {"text": QUERY, "image": noise[2], "joint": Joint(QUERY, noise[2])}[kind_of_query]

    scores = load(qwen).score(query, mixed)

    np.testing.assert_allclose(scores, native_qwen(qwen, query, mixed), atol=2e-5)
    assert len(set(scores.tolist())) == len(mixed)


def test_a_score_does_not_depend_on_the_others(bert: Path, qwen: Path, mixed: list[Item]) -> None:
    for scorer, documents in ((load(bert), TEXTS), (load(qwen, batch_size=4), mixed)):
        together = scorer.score(QUERY, documents)
        alone = np.concatenate([scorer.score(QUERY, [document]) for document in documents])

        np.testing.assert_allclose(together, alone, atol=2e-5)
        np.testing.assert_allclose(scorer.score(QUERY, documents[::-1]), together[::-1], atol=2e-5)
        assert scorer.score(QUERY, []).shape == (0,)


def test_what_it_says_of_itself(bert: Path, qwen: Path) -> None:
    text, both = load(bert), load(qwen)

    assert (text.modalities, text.joint, text.name) == ({"text"}, False, str(bert))
    assert (both.modalities, both.joint, both.licence) == ({"text", "image"}, True, None)


def test_a_reranker_of_texts_refuses_images(bert: Path, noise: list[Image.Image]) -> None:
    scorer = load(bert)

    for item in (noise[0], LazyImage("key", lambda: noise[0]), Joint("a", noise[0])):
        with pytest.raises(ModelError, match="reads only texts; leave out the rest, or"):
            scorer.prepare(item)


@pytest.mark.parametrize(
    ("template", "modalities"),
    [
        # Writes no images, like many templates of chat models.
        (TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", ""), {"text"}),
        # Writes the first part only.
        (TEMPLATE.replace("in message.content", "in message.content[:1]"), {"text", "image"}),
    ],
)
def test_what_the_template_leaves_out_is_refused(
    tmp_path: Path, noise: list[Image.Image], template: str, modalities: set[str]
) -> None:
    scorer = load(make_tiny_qwen_reranker(tmp_path, template=template))

    assert (scorer.modalities, scorer.joint) == (modalities, False)
    with pytest.raises(ModelError, match=r"reads only texts|not both together"):
        scorer.prepare(Joint("a caption", noise[0]))


def test_images_are_opened_when_prepared(qwen: Path, noise: list[Image.Image]) -> None:
    opened = []
    scorer = load(qwen)
    image = LazyImage("key", lambda: opened.append(1) or noise[0])

    prepared = scorer.prepare(image)

    assert opened == [1]
    np.testing.assert_array_equal(
        scorer.score_prepared(scorer.prepare(QUERY), [prepared]), scorer.score(QUERY, [noise[0]])
    )


def test_large_images_are_scaled_down_when_asked(qwen: Path) -> None:
    image = Image.effect_noise((400, 100), 90).convert("RGB")
    before = image.tobytes()

    (scaled,) = load(qwen, scale_to_pixels=10_000).prepare(image).values()

    assert scaled.size == (200, 50)
    assert load(qwen).prepare(image)["image"] is image
    assert image.tobytes() == before


@pytest.mark.parametrize("option", ["batch_size", "scale_to_pixels"])
def test_refuses_limits_that_nothing_meets(bert: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=0: must be at least 1"):
        load(bert, **{option: 0})


# --- texts stay texts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["https://example.com/cat.jpg", "data:image/png;base64,xxxx", "https://youtu.be/x"]
)
def test_a_text_that_looks_like_an_image_is_a_text(bert: Path, qwen: Path, text: str) -> None:
    """sentence-transformers would fetch it."""
    np.testing.assert_allclose(
        load(bert).score(QUERY, [text]), native_bert(bert, QUERY, [text]), atol=1e-6
    )
    np.testing.assert_allclose(
        load(qwen).score(text, [text]), native_qwen(qwen, text, [text]), atol=2e-5
    )


def test_a_text_that_names_an_image_file_is_a_text(qwen: Path, noise_files: list[str]) -> None:
    np.testing.assert_allclose(
        load(qwen).score(QUERY, noise_files[:1]),
        native_qwen(qwen, QUERY, noise_files[:1]),
        atol=2e-5,
    )


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>"])
def test_control_tokens_in_a_text_control_nothing(
    qwen: Path, noise: list[Image.Image], token: str
) -> None:
    """The first would need an image, so the whole batch would fail."""
    scorer = load(qwen)

    scores = scorer.score(QUERY, [f"a {token} b", noise[0]])

    apart = f"a < {token[1:]} b"
    np.testing.assert_allclose(scores, native_qwen(qwen, QUERY, [apart, noise[0]]), atol=2e-5)


# --- probabilities ------------------------------------------------------------------------------


def with_activation(folder: Path, name: str) -> CrossEncoderScorer:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"sentence_transformers": {"activation_fn": name}}
    path.write_text(json.dumps(config))
    return load(folder)


def test_a_sigmoid_s_output_is_a_probability(bert: Path) -> None:
    scorer = load(bert)
    scores = scorer.score(QUERY, TEXTS)

    np.testing.assert_array_equal(scorer.to_probability(scores), scores)


def test_bare_logits_become_probabilities(bert: Path, qwen: Path, tmp_path: Path) -> None:
    probabilities = load(bert).score(QUERY, TEXTS)
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    for scorer in (with_activation(tmp_path, "torch.nn.modules.linear.Identity"), load(qwen)):
        scores = scorer.score(QUERY, TEXTS)

        assert scores.min() < 0
        np.testing.assert_allclose(
            scorer.to_probability(scores), 1 / (1 + np.exp(-scores)), atol=1e-6
        )
        if scorer.name == str(tmp_path):
            np.testing.assert_allclose(scorer.to_probability(scores), probabilities, atol=1e-6)


def test_scores_without_a_scale_are_no_probabilities(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "bert")
    scorers = [
        with_activation(tmp_path / "bert", "torch.nn.modules.activation.Tanh"),
        load(make_tiny_qwen_reranker(tmp_path / "qwen", no=None)),  # the logit of "yes" alone
    ]
    for scorer in scorers:
        assert scorer.to_probability(scorer.score(QUERY, TEXTS)) is None


# --- precision and threads ----------------------------------------------------------------------


def test_bfloat16_stays_close_to_float32(bert: Path) -> None:
    short = load(bert, dtype=torch.bfloat16).score(QUERY, TEXTS)

    assert short.dtype == np.float32
    np.testing.assert_allclose(short, load(bert).score(QUERY, TEXTS), atol=0.05)


def test_threads_do_not_disturb_one_another(bert: Path) -> None:
    scorer = load(bert)
    one, other = scorer.score(QUERY, TEXTS), scorer.score("x", TEXTS)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda query: scorer.score(query, TEXTS), [QUERY, "x"] * 8))

    for index, result in enumerate(results):
        np.testing.assert_allclose(result, other if index % 2 else one, atol=1e-6)


# --- loads that must fail -----------------------------------------------------------------------


def test_refuses_a_head_of_random_weights(bert: Path, tmp_path: Path) -> None:
    """The classic silent failure: an encoder's checkpoint is used as a reranker."""
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    body = {key: value for key, value in weights.items() if "classifier" not in key}
    save_file(body, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match=r"missing: classifier\.bias, classifier\.weight"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"another.weight": torch.zeros(1)}, r"unexpected: another\.weight"),
        ({"classifier.weight": torch.zeros(3, 3)}, r"wrongly shaped: classifier\.weight \(3, 3\)"),
        ({"classifier.bias": torch.tensor([torch.nan])}, r"NaN or infinity .*classifier\.bias"),
    ],
)
def test_refuses_weights_that_do_not_fit(
    bert: Path, tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors") | change
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_refuses_a_classifier_of_several_classes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gives 3 numbers for a pair"):
        load(make_tiny_bert_reranker(tmp_path, labels=3))


def test_refuses_what_is_no_cross_encoder(tiny_clip: Path, qwen: Path, tmp_path: Path) -> None:
    """A language model would load, but its tokens for yes and no would be guessed."""
    shutil.copytree(qwen, tmp_path, dirs_exist_ok=True)
    (tmp_path / "modules.json").unlink()
    for folder in (tiny_clip, tmp_path):
        assert not fits(Checkpoint(str(folder), folder))
        with pytest.raises(ModelError, match="is not a cross-encoder"):
            load(folder)


def test_what_fits(bert: Path, qwen: Path) -> None:
    assert all(fits(Checkpoint(str(folder), folder)) for folder in (bert, qwen))


def test_pickled_weights_are_read_only_when_asked(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()

    with pytest.raises(ModelError, match="cannot load it"):
        load(tmp_path)
    np.testing.assert_array_equal(
        load(tmp_path, allow_pickle=True).score(QUERY, TEXTS), load(bert).score(QUERY, TEXTS)
    )


def test_code_of_the_checkpoint_runs_only_when_asked(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path, dirs_exist_ok=True)
    (tmp_path / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((tmp_path / "config.json").read_text())
    classes = {"AutoConfig": "modeling.C", "AutoModelForSequenceClassification": "modeling.M"}
    config |= {"model_type": "mine", "auto_map": classes}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(ModelError):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
