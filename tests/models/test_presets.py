"""The presets."""

from pathlib import Path

import pytest

from llama_index_gap.models.presets import DEMO_MODELS, PRESETS, SCORER_PRESETS, model_in_short


def test_names():
    assert list(PRESETS) == ["jina", "nomic", "siglip2", "siglip", "clip", "dinov2"]
    assert PRESETS["clip"].checkpoints == ("openai/clip-vit-base-patch32",)
    assert PRESETS["nomic"].checkpoints == (
        "nomic-ai/nomic-embed-text-v1.5",
        "nomic-ai/nomic-embed-vision-v1.5",
    )
    assert PRESETS["dinov2"].checkpoints == ("facebook/dinov2-base",)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_what_they_state_fits_together(preset):
    assert preset.commercial == (preset.licence == "Apache-2.0")
    assert list(preset.matryoshka) == sorted(preset.matryoshka)
    assert not preset.matryoshka or preset.matryoshka[-1] == preset.dimension


def test_scorers():
    assert SCORER_PRESETS["jina-m0"].checkpoint == "jinaai/jina-reranker-m0"
    assert not SCORER_PRESETS.keys() & PRESETS.keys()
    for preset in SCORER_PRESETS.values():
        assert preset.commercial == ("NC" not in preset.licence)


def test_revisions():
    """Only commits that are known to load; a name without a commit loads the newest."""
    clip = PRESETS["clip"]
    assert clip.revisions == {
        "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef"
    }
    assert (clip.licence, clip.code_licence) == ("none stated", "MIT")
    assert clip.download_bytes == 605_157_884
    assert set(PRESETS["nomic"].revisions) == set(PRESETS["nomic"].checkpoints)
    assert PRESETS["jina"].matryoshka[0] == 64


def test_a_model_in_short_names_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert {model_in_short(folder) for folder in DEMO_MODELS.values()} == {"demo"}
    assert model_in_short("models/tiny") == model_in_short("/gone/tiny") == "tiny"
    assert model_in_short("/a/text + /b/vision") == "text + vision"
    for name in ("demo", "jina", "openai/clip", "m at host", "n" * 5000, ""):
        assert model_in_short(name) == name
