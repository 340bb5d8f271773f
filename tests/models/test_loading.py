"""Names lead to the right models, from folders and from the hub's download cache."""

import json
import logging
import shutil
import time
from pathlib import Path

import pytest
import torch
from on_cpu import on_cpu
from paths import PARITY
from tiny_rerankers import make_tiny_bert_reranker

from llama_index_gap import progress
from llama_index_gap.models import ModelError, load_encoder, load_scorer
from llama_index_gap.models.encoders.clip import ClipEncoder
from llama_index_gap.models.encoders.jina_clip import JinaClipEncoder
from llama_index_gap.models.encoders.nomic import NomicEncoder
from llama_index_gap.models.encoders.sentence_transformer import SentenceTransformerEncoder
from llama_index_gap.models.loading import _warn_of_licence
from llama_index_gap.models.rerankers.cross_encoder import CrossEncoderScorer
from llama_index_gap.models.rerankers.jina_reranker import JinaRerankerScorer
from llama_index_gap.models.rerankers.late_interaction import LateInteractionScorer
from llama_index_gap.progress import in_lines

JINA = PARITY / "jina_clip_tiny"
NOMIC_VISION = PARITY / "nomic_vision_tiny"
M0 = PARITY / "jina_m0_tiny"
JINA_HUB = "jinaai/jina-clip-v2"
M0_HUB = "jinaai/jina-reranker-m0"
NOMIC_TEXT_HUB = "nomic-ai/nomic-embed-text-v1.5"
NOMIC_VISION_HUB = "nomic-ai/nomic-embed-vision-v1.5"


def load(name, **options):
    return load_encoder(str(name), on_cpu(options), **options)


def test_demo_is_the_plain_name_of_the_package_s_own_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere, not only in a checkout

    assert load_encoder("demo").dimension == 128
    assert load_scorer("demo").score("a red boat", ["Nurses strike"]).shape == (1,)


def load_m0(name=M0, **options):
    return load_scorer(str(name), on_cpu(options), **options)


@pytest.fixture
def nomic_text(tmp_path):
    folder = shutil.copytree(PARITY / "nomic_text_tiny", tmp_path / "nomic_text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(JINA / name, folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch, nomic_text):
    """The tiny checkpoints stand in for downloads of the real ones; the hub cannot be reached."""

    def unreachable(*_, **__):
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    cache = tmp_path / "hub"
    for name, folder in {
        JINA_HUB: JINA,
        M0_HUB: M0,
        NOMIC_TEXT_HUB: nomic_text,
        NOMIC_VISION_HUB: NOMIC_VISION,
    }.items():
        download = cache / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, download / "snapshots" / ("0" * 40))
        (download / "refs").mkdir()
        (download / "refs" / "main").write_text("0" * 40)
    return str(cache)


@pytest.fixture
def warnings(caplog):
    """The logged warnings; earlier warnings about licences are forgotten."""
    _warn_of_licence.cache_clear()
    caplog.set_level(logging.WARNING, "llama_index_gap")
    return lambda: [record.getMessage() for record in caplog.records]


def with_licence(source, folder, licence):
    shutil.copytree(source, folder)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
    return folder


def test_families(nomic_text, tiny_clip, tiny_siglip):
    assert isinstance(load(JINA), JinaClipEncoder)
    assert isinstance(load(tiny_clip), ClipEncoder)
    assert isinstance(load(tiny_siglip), SentenceTransformerEncoder)
    text, vision = load(nomic_text), load(NOMIC_VISION)
    assert isinstance(text, NomicEncoder)
    assert isinstance(vision, NomicEncoder)
    assert (text.modalities, vision.modalities) == ({"text"}, {"image"})


@pytest.mark.parametrize(("load", "name"), [(load, JINA), (load_m0, M0)], ids=["encoder", "scorer"])
def test_a_long_load_says_so_where_somebody_watches(load, name, monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    for trial in ("try_encoder", "try_scorer"):
        monkeypatch.setattr(f"llama_index_gap.models.loading.{trial}", lambda _: time.sleep(0.5))

    load(name)
    assert capsys.readouterr().err == ""
    with in_lines():
        load(name)
    assert f"Loading {name} after " in capsys.readouterr().err


def test_unknown_families_are_left_to_sentence_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ModelError, match=r"transformers \S+ does not know its model_type"):
        load(tmp_path)


def test_settings_reach_every_family(nomic_text, tiny_clip):
    for name in (JINA, nomic_text, tiny_clip):
        encoder = load(name, max_text_tokens=30, query_prompt="a: ", document_prompt="a: ")
        assert encoder.max_text_tokens == 30
        one, other = (encoder.encode_text(["cat"], kind) for kind in ("query", "document"))
        assert (one == other).all()


def test_number_format_reaches_the_native_families():
    assert load(JINA)._vision.norm.weight.dtype == torch.float32
    assert load(JINA, dtype="bfloat16")._vision.norm.weight.dtype == torch.bfloat16


def test_text_settings_do_not_fit_a_vision_checkpoint():
    with pytest.raises(ValueError, match=r"max_text_tokens, .* are for texts; pass a text"):
        load(NOMIC_VISION, max_text_tokens=30)


def test_hub_names(hub):
    assert isinstance(load(JINA_HUB, cache_folder=hub), JinaClipEncoder)
    assert load(NOMIC_VISION_HUB, cache_folder=hub).modalities == {"image"}


def test_presets(hub):
    jina = load("jina", cache_folder=hub)
    assert (type(jina), jina.name) == (JinaClipEncoder, JINA_HUB)
    nomic = load("nomic", cache_folder=hub)
    assert nomic.modalities == {"text", "image"}
    assert nomic.name == f"{NOMIC_TEXT_HUB} + {NOMIC_VISION_HUB}"


def test_a_preset_wins_over_a_folder_of_its_name(hub, tmp_path, monkeypatch, nomic_text):
    nomic_text.rename(tmp_path / "jina")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load("jina", cache_folder=hub), JinaClipEncoder)
    assert isinstance(load("./jina"), NomicEncoder)


def test_a_path_is_a_folder_not_a_preset(tmp_path, monkeypatch, nomic_text):
    nomic_text.rename(tmp_path / "jina")
    shutil.copytree(M0, tmp_path / "jina-m0")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_encoder(Path("jina"), on_cpu({})), NomicEncoder)
    scorer = load_scorer(Path("jina-m0"), on_cpu({}))
    assert len(scorer.score("a cat", ["a dog", "a cat"])) == 2
    with pytest.raises(ModelError, match="no such folder"):
        load_scorer(Path("jina-m1"))


def test_a_revision_belongs_to_one_checkpoint(hub):
    assert load("jina", cache_folder=hub, revision="main").dimension == 64
    with pytest.raises(ValueError, match=r"revision='main': nomic consists of .* load the two by"):
        load("nomic", cache_folder=hub, revision="main")


def test_a_licence_that_forbids_commercial_use_is_said_once(tmp_path, warnings):
    folder = with_licence(JINA, tmp_path / "nc", "cc-by-nc-4.0")
    load(folder)
    load(folder)
    (warning,) = warnings()
    assert warning.startswith(f"{folder} has the licence cc-by-nc-4.0: it may not be used commerc")
    load(with_licence(JINA, tmp_path / "another", "cc-by-nc-sa-4.0"))
    assert len(warnings()) == 2


def test_the_licence_of_a_preset_without_its_model_card(hub, warnings):
    load("jina", cache_folder=hub)
    load(JINA_HUB, cache_folder=hub)
    load("nomic", cache_folder=hub)
    (warning,) = warnings()
    assert warning.startswith(f"{JINA_HUB} has the licence CC BY-NC 4.0")


@pytest.mark.parametrize("licence", ["mit", "apache-2.0", "cc-by-4.0"])
def test_other_licences_are_fine(tmp_path, licence, warnings):
    load(with_licence(NOMIC_VISION, tmp_path / "model", licence))
    assert not warnings()


def test_scorer_families(tmp_path):
    bert = make_tiny_bert_reranker(tmp_path / "bert")
    families = {
        M0: JinaRerankerScorer,
        PARITY / "colqwen2_tiny": LateInteractionScorer,
        bert: CrossEncoderScorer,
    }
    for folder, family in families.items():
        scorer = load_m0(folder)
        assert (type(scorer), scorer.name) == (family, str(folder))


def test_a_setting_that_a_scorer_does_not_have(tmp_path):
    with pytest.raises(ValueError, match=r"prefix_bytes=5: .*bert has no such setting"):
        load_m0(make_tiny_bert_reranker(tmp_path / "bert"), prefix_bytes=5)


def test_scorer_presets_and_hub_names(hub):
    scorer = load_m0("jina-m0", cache_folder=hub, revision="main")
    assert (type(scorer), scorer.name) == (JinaRerankerScorer, M0_HUB)
    assert isinstance(load_m0(M0_HUB, cache_folder=hub), JinaRerankerScorer)


def test_settings_reach_a_scorer(tmp_path):
    settings = {"max_length": 1024, "batch_size": 3, "prefix_bytes": 5, "vision_bytes": 6}
    scorer = load_m0(scale_to_pixels=50_000, vision_folder=tmp_path / "seen", **settings)
    assert (scorer._max_length, scorer._batch_size) == (1024, 3)
    assert (scorer._prefixes.max_bytes, scorer._vision._memory.max_bytes) == (5, 6)
    assert scorer._vision._processor.size["longest_edge"] == 50_000
    assert (tmp_path / "seen").is_dir()
    assert load_m0(dtype="bfloat16")._model.dtype == torch.bfloat16


def test_an_encoder_is_no_scorer(tmp_path):
    with pytest.raises(ValueError, match=r"jina is a preset of encoders; .* one of jina-m0"):
        load_m0("jina")
    for architectures in (["JinaCLIPModel"], None):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": architectures}))
        with pytest.raises(
            ModelError, match=r"cannot be loaded as a reranker.* Known are JinaVLForRanking"
        ):
            load_m0(tmp_path)


def test_the_licence_of_a_scorer(hub, tmp_path, warnings):
    load_m0("jina-m0", cache_folder=hub)
    load_m0(M0_HUB, cache_folder=hub)
    load_m0(with_licence(M0, tmp_path / "free", "mit"))
    (warning,) = warnings()
    assert warning.startswith(f"{M0_HUB} has the licence CC BY-NC 4.0")
