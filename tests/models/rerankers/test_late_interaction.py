"""ColQwen2 against the outputs of transformers 4.57.6, whose positions are right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from on_cpu import on_cpu
from paths import PARITY
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from tiny_rerankers import make_tiny_bert_reranker, make_tiny_qwen_reranker
from transformers import AutoImageProcessor, AutoTokenizer, ColQwen2ForRetrieval

from llama_index_gap.models import Joint, LazyImage, ModelError
from llama_index_gap.models.checkpoints.checkpoint import Checkpoint, quiet_transformers
from llama_index_gap.models.rerankers import late_interaction
from llama_index_gap.models.rerankers.caches import digest
from llama_index_gap.models.rerankers.late_interaction import LateInteractionScorer, fits

COLQWEN = PARITY / "colqwen2_tiny"
QUERY = "a red cat"


def load(folder: Path, **options: object) -> LateInteractionScorer:
    return LateInteractionScorer(Checkpoint(str(folder), folder), on_cpu(options), **options)


@pytest.fixture(scope="module")
def scorer() -> LateInteractionScorer:
    return load(COLQWEN)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(COLQWEN / "parity.safetensors")


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    """The inputs of the expected outputs: prompts and images of another model's parity files."""
    return load_file(COLQWEN.parent / "jina_m0_tiny" / "parity.safetensors")


def of_images(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    grids = inputs["text_image.image_grid_thw"]
    patches = inputs["text_image.pixel_values"].split(grids.prod(1).tolist())
    return {
        "input_ids": inputs["text_image.input_ids"],
        "attention_mask": inputs["text_image.attention_mask"].long(),
        "pixel_values": torch.nn.utils.rnn.pad_sequence(patches, batch_first=True),
        "image_grid_thw": grids,
    }


def test_vectors_of_images_equal_the_reference(
    scorer: LateInteractionScorer,
    inputs: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
) -> None:
    backbone = scorer._model[0]

    with torch.inference_mode():
        found = backbone({**of_images(inputs), "modality": "image"})["token_embeddings"]

    np.testing.assert_allclose(found, expected["doc"], atol=1e-5)


def test_bare_transformers_is_off(
    inputs: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> None:
    """If this fails, transformers computes rows and columns itself: remove the workaround."""
    with quiet_transformers():
        model = ColQwen2ForRetrieval.from_pretrained(COLQWEN)

    with torch.inference_mode():
        found = model(**of_images(inputs)).embeddings

    assert (found - expected["doc"]).abs().max() > 0.1


def test_vectors_of_texts_equal_the_reference(
    scorer: LateInteractionScorer,
    inputs: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
) -> None:
    backbone = scorer._model[0]
    features = {
        "input_ids": inputs["text_text.input_ids"],
        "attention_mask": inputs["text_text.attention_mask"].long(),
        "modality": "text",
    }

    with torch.inference_mode():
        found = backbone(features)["token_embeddings"]

    np.testing.assert_allclose(found, expected["query"], atol=1e-5)


def native_vectors(folder: Path, item: str | Image.Image) -> torch.Tensor:
    """A text or image, with a prompt built by hand and given positions."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with quiet_transformers():
        model = ColQwen2ForRetrieval.from_pretrained(folder)
    more: dict[str, torch.Tensor] = {}
    prompt = f"Query: {item}{'<|endoftext|>' * 10}\n"
    if isinstance(item, Image.Image):
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        pixels = processor([item], return_tensors="pt")
        grid = pixels["image_grid_thw"]
        prompt = (
            "<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * int(grid.prod() // 4)
            + "<|vision_end|>Describe the image.<|im_end|><|endoftext|>"
        )
        more = {"pixel_values": pixels["pixel_values"][None], "image_grid_thw": grid}
    ids = torch.tensor([tokenizer.encode(prompt)])
    mask = torch.ones_like(ids)
    if more:
        types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        more["position_ids"] = model.vlm.get_rope_index(ids, types, image_grid_thw=grid)[0]
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=mask, **more).embeddings[0]


@pytest.mark.parametrize("kind_of_query", ["text", "image"])
def test_scores_are_sums_of_best_matches(noise: list[Image.Image], kind_of_query: str) -> None:
    query = QUERY if kind_of_query == "text" else noise[4]
    of_query = native_vectors(COLQWEN, query)
    wanted = [
        float((of_query @ native_vectors(COLQWEN, image).T).max(1).values.sum())
        for image in noise[:4]
    ]

    scores = load(COLQWEN, batch_size=2).score(query, noise[:4])

    np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    assert scores.dtype == np.float32
    assert len(set(wanted)) == 4


def test_a_score_does_not_depend_on_the_others(
    scorer: LateInteractionScorer, noise: list[Image.Image]
) -> None:
    together = scorer.score(QUERY, noise)

    alone = np.concatenate([scorer.score(QUERY, [image]) for image in noise])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(scorer.score(QUERY, noise[::-1]), together[::-1], rtol=1e-5)
    assert scorer.score(QUERY, []).shape == (0,)


def test_what_it_says_of_itself(scorer: LateInteractionScorer) -> None:
    assert (scorer.name, scorer.joint, scorer.licence) == (str(COLQWEN), False, None)
    assert scorer.modalities == {"text", "image"}
    assert scorer.document_modalities == {"image"}
    assert scorer.to_probability(np.ones(1, np.float32)) is None


def test_texts_are_no_documents_of_colqwen(
    scorer: LateInteractionScorer, noise: list[Image.Image]
) -> None:
    """sentence-transformers would treat them as queries; only the scores would look right."""
    with pytest.raises(ModelError, match="reads documents as images only"):
        scorer.score(QUERY, [noise[0], "a text"])
    with pytest.raises(ModelError, match="not both together"):
        scorer.prepare(Joint("a text", noise[0]))


@pytest.mark.parametrize("text", ["https://example.com/cat.jpg", "a < |image_pad|> b"])
def test_texts_stay_texts(
    scorer: LateInteractionScorer, noise: list[Image.Image], text: str
) -> None:
    """sentence-transformers would fetch the first, and expect an image for the second."""
    of_query, of_document = native_vectors(COLQWEN, text), native_vectors(COLQWEN, noise[0])

    scores = scorer.score(text.replace("< |", "<|"), noise[:1])

    wanted = float((of_query @ of_document.T).max(1).values.sum())
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)


def test_what_is_prepared_is_embedded_once(scorer: LateInteractionScorer) -> None:
    forwards = []
    image = Image.effect_noise((40, 50), 90).convert("RGB")
    hook = scorer._model.register_forward_hook(lambda *_: forwards.append(1))
    query, document = scorer.prepare(QUERY), scorer.prepare(image)

    first = scorer.score_prepared(query, [document])
    second = scorer.score_prepared(query, [document, document])

    hook.remove()
    assert len(forwards) == 2  # the query and the document
    np.testing.assert_array_equal(second, first.repeat(2))


def test_a_document_that_is_kept_is_not_opened_again(noise: list[Image.Image]) -> None:
    opened = []
    image = LazyImage("key", lambda: opened.append(1) or noise[0])
    keeping, forgetful = load(COLQWEN), load(COLQWEN, vision_bytes=0)

    first = keeping.score(QUERY, [image])
    second = keeping.score(QUERY, [image])

    assert opened == [1]
    np.testing.assert_array_equal(first, second)
    forgetful.score(QUERY, [image])
    forgetful.score(QUERY, [image])
    assert opened == [1, 1, 1]
    keeping.score(image, [noise[1]])  # as a query it is read again
    assert opened == [1, 1, 1, 1]


def test_large_images_are_scaled_down_when_asked(scorer: LateInteractionScorer) -> None:
    image = Image.effect_noise((400, 100), 90).convert("RGB")

    assert load(COLQWEN, scale_to_pixels=10_000).prepare(image).read()["image"].size == (200, 50)
    assert scorer.prepare(image).read()["image"] is image


def colbert(folder: Path) -> Path:
    """A late-interaction model for texts, as saved by sentence-transformers."""
    make_tiny_bert_reranker(folder / "bert")
    torch.manual_seed(0)
    with quiet_transformers():
        transformer = Transformer(str(folder / "bert"))
        projection = Dense(
            32, 16, bias=False, activation_function=None, module_input_name="token_embeddings"
        )
        modules = [transformer, projection, MultiVectorMask()]
        modules.append(Normalize(module_input_name="token_embeddings"))
        MultiVectorEncoder(modules=modules, device="cpu").save_pretrained(str(folder / "saved"))
    return folder / "saved"


def test_a_model_of_texts_ranks_texts(tmp_path: Path, noise: list[Image.Image]) -> None:
    scorer = load(colbert(tmp_path))
    texts = ["a red cat", "a dog", "", "https://example.com/cat.jpg"]

    scores = scorer.score(QUERY, texts)

    assert scorer.modalities == scorer.document_modalities == {"text"}
    pieces = ["[CLS]", "a", "r", "##e", "##d", "c", "##a", "##t", "[SEP]"]
    np.testing.assert_allclose(scores[0], len(pieces), rtol=1e-5)  # each finds itself
    assert scores.argmax() == 0
    with pytest.raises(ModelError, match="reads only texts; leave out the rest, or"):
        scorer.prepare(noise[0])


def multi_vector_qwen(folder: Path) -> Path:
    """A late-interaction model with a chat template, in the layout of sentence-transformers."""
    make_tiny_qwen_reranker(folder)
    shutil.rmtree(folder / "1_LogitScore")
    base = "sentence_transformers.base.modules"
    types = [
        f"{base}.transformer.Transformer",
        "sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask",
        f"{base}.normalize.Normalize",
    ]
    paths = ["", "1_MultiVectorMask", "2_Normalize"]
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    kinds = {"text": forward, "image": forward, "message": {**forward, "format": "structured"}}
    files = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": kind}
            for index, (path, kind) in enumerate(zip(paths, types, strict=True))
        ],
        "config_sentence_transformers.json": {"model_type": "MultiVectorEncoder"},
        "sentence_bert_config.json": {
            "transformer_task": "feature-extraction",
            "modality_config": kinds,
            "module_output_name": "token_embeddings",
        },
        "1_MultiVectorMask/config.json": {},
        "2_Normalize/config.json": {"module_input_name": "token_embeddings"},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(
        "{% for part in messages[0].content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ part.text }}{% endif %}{% endfor %}"
    )
    return folder


def test_a_model_with_a_chat_template_reads_a_text_and_an_image_as_one(
    tmp_path: Path, noise: list[Image.Image]
) -> None:
    scorer = load(multi_vector_qwen(tmp_path))
    documents = [QUERY, noise[0], Joint(QUERY, noise[0]), "a <|image_pad|> b"]

    scores = scorer.score(QUERY, documents)

    assert scorer.joint
    assert scorer.document_modalities == {"text", "image"}
    np.testing.assert_allclose(scores[0], len(QUERY), rtol=1e-5)  # each byte finds itself
    assert len(set(scores.tolist())) == len(documents)
    alone = np.concatenate([scorer.score(QUERY, [document]) for document in documents])
    np.testing.assert_allclose(scores, alone, rtol=1e-5)


def test_refuses_a_projection_of_random_weights(tmp_path: Path) -> None:
    shutil.copytree(COLQWEN, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    body = {key: value for key, value in weights.items() if "proj_layer" not in key}
    (tmp_path / "model.safetensors").unlink()
    save_file(body, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ModelError, match=r"missing: embedding_proj_layer\.bias, embedding_proj"):
        load(tmp_path)


def test_refuses_what_is_no_late_interaction_model(tiny_clip: Path, tmp_path: Path) -> None:
    """It would load, but its projection would have random weights."""
    for folder in (tiny_clip, make_tiny_bert_reranker(tmp_path)):
        assert not fits(Checkpoint(str(folder), folder))
        with pytest.raises(ModelError, match="is not a late-interaction model"):
            load(folder)


@pytest.mark.parametrize("option", ["batch_size", "scale_to_pixels"])
def test_refuses_limits_that_nothing_meets(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=0: must be at least 1"):
        load(COLQWEN, **{option: 0})


# --- vectors of images on disk -------------------------------------------------------------------

SECOND_PROCESS = """
import json, sys
from pathlib import Path
from llama_index.core.schema import ImageNode, NodeWithScore
from llama_index_gap import MultiModalRerank
from sentence_transformers import MultiVectorEncoder

counts = {"query": 0, "document": 0}

def counted(kind, method):
    def encode(self, items, *args, **settings):
        counts[kind] += len(items)
        return method(self, items, *args, **settings)
    return encode

for kind in counts:
    method = getattr(MultiVectorEncoder, f"encode_{kind}")
    setattr(MultiVectorEncoder, f"encode_{kind}", counted(kind, method))
pages, query, folder = sys.argv[1:]
rerank = MultiModalRerank(model=folder, score_mode="image", top_n=None, device="cpu")
at_load = dict(counts)
images = [ImageNode(id_=each.name, image_path=str(each)) for each in sorted(Path(pages).iterdir())]
nodes = [NodeWithScore(node=node) for node in images]
found = rerank.postprocess_nodes(nodes, query_str=query)
once = {kind: counts[kind] - at_load[kind] for kind in counts}
rerank.postprocess_nodes(nodes, query_str=query + " again")
twice = {kind: counts[kind] - at_load[kind] for kind in counts}
print(json.dumps([once, twice, {hit.node.node_id: hit.score for hit in found}]))
"""


def test_a_second_query_over_the_same_pages_encodes_the_query_only(tmp_path: Path) -> None:
    """Also in another process and after the pages were moved, from the user's cache folder."""
    pages = tmp_path / "pages"
    pages.mkdir()
    for number in range(8):
        Image.effect_noise((56, 56), 5 * number + 5).convert("RGB").save(pages / f"{number:02}.png")

    def ask(query: str) -> Any:
        environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-c", SECOND_PROCESS, str(pages), query, str(COLQWEN)]
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(asked.stdout.splitlines()[-1])

    first, again, scores = ask("a red cat")
    assert first == {"query": 1, "document": 8}
    assert again == {"query": 2, "document": 8}
    pages = pages.rename(tmp_path / "moved")
    first, again, same = ask("a red cat")
    assert first == {"query": 1, "document": 0}
    assert again == {"query": 2, "document": 0}
    assert same == scores


def kept_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def stored(file: Path, vectors: torch.Tensor) -> None:
    """Write a file as a stranger could, with a valid digest."""
    save_file({"vectors": vectors}, file, metadata={"digest": digest({"vectors": vectors})})


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-5]),
        lambda file: file.write_bytes(b""),
        lambda file: stored(file, torch.ones(7)),
        lambda file: stored(file, torch.ones(0, 32)),
        lambda file: stored(file, torch.ones(7, 31)),
        lambda file: stored(file, torch.ones(7, 32, dtype=torch.int64)),
        lambda file: stored(file, torch.full((7, 32), torch.nan)),
    ],
)
def test_vectors_that_are_damaged_or_another_s_are_made_again(
    damage: Callable[[Path], object], tmp_path: Path, noise: list[Image.Image]
) -> None:
    first = load(COLQWEN, vision_folder=tmp_path).score(QUERY, noise[:1])
    (file,) = kept_files(tmp_path)
    size = file.stat().st_size
    damage(file)

    again = load(COLQWEN, vision_folder=tmp_path).score(QUERY, noise[:1])
    np.testing.assert_array_equal(again, first)
    assert file.stat().st_size == size


def test_vectors_on_disk_are_kept_apart_by_all_that_decides_them(
    tmp_path: Path, noise: list[Image.Image]
) -> None:
    other = shutil.copytree(COLQWEN, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, other / "model.safetensors", {"format": "pt"})
    seen = tmp_path / "seen"

    for count, (folder, options) in enumerate(
        (
            (COLQWEN, {}),
            (other, {}),
            (COLQWEN, {"scale_to_pixels": 2_000}),
            (COLQWEN, {"dtype": torch.bfloat16}),
        ),
        start=1,
    ):
        load(folder, vision_folder=seen, **options).score(QUERY, noise[:1])
        assert len(kept_files(seen)) == count
    moved = shutil.copytree(COLQWEN, tmp_path / "moved")
    load(moved, vision_folder=seen).score(QUERY, noise[:1])
    assert len(kept_files(seen)) == 4
    load(COLQWEN, vision_folder=tmp_path / "none", vision_disk_bytes=0).score(QUERY, noise[:1])
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="vision_disk_bytes=-1: must be at least 0"):
        load(COLQWEN, vision_disk_bytes=-1)


def test_a_folder_that_cannot_be_written_stops_nothing(
    tmp_path: Path,
    noise: list[Image.Image],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vision_folder=.*file: is not a folder"):
        load(COLQWEN, vision_folder=tmp_path / "file")

    monkeypatch.setattr(late_interaction, "TensorFolder", refuse)
    scorer = load(COLQWEN, vision_folder=tmp_path / "seen")

    assert "vectors of images are kept in memory only" in caplog.text
    np.testing.assert_array_equal(
        scorer.score(QUERY, noise[:1]), load(COLQWEN).score(QUERY, noise[:1])
    )


def test_passages_are_not_written_to_disk(tmp_path: Path) -> None:
    scorer = load(colbert(tmp_path / "model"), vision_folder=tmp_path / "seen")
    scorer.score(QUERY, ["a passage"])
    assert not (tmp_path / "seen").exists()
