"""Presets: plain names for encoders and rerankers that suit most uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEMO = "demo"
DEMO_MODELS = {
    "encoder": str(Path(__file__).parents[1] / "demo" / "checkpoint"),
    "reranker": str(Path(__file__).parents[1] / "demo" / "reranker"),
}
"""Folders of the package's own tiny models, which have the plain name ``demo``.

They were trained on the demo's newsroom only.
"""


def model_in_short(name: str) -> str:
    """The name of a model without its folder, which is private to this machine.

    Args:
        name: a name, or the path of a folder, of which only the last part stays; the package's own
            models are called ``demo``. Several may be joined by ``" + "``.
    """
    return " + ".join(map(_in_short, name.split(" + ")))


def _in_short(name: str) -> str:
    path = Path(name)
    try:
        folder = path.is_absolute() or path.is_dir()
    except (OSError, ValueError):  # too long for a path, or with a NUL character
        folder = False
    if not folder:
        return name
    return DEMO if is_own(path) else path.name


def is_own(folder: str | Path) -> bool:
    """Whether a folder holds one of the package's own models."""
    return Path(folder).resolve() in {Path(each).resolve() for each in DEMO_MODELS.values()}


@dataclass(frozen=True)
class Preset:
    """An encoder under a plain name; the facts are from the checkpoints' model cards.

    Attributes:
        name: the plain name, for ``load_encoder``.
        text: hub name of the checkpoint for texts; None if the encoder reads images only.
        image: hub name of the checkpoint for images; often the same.
        dimension: length of a vector.
        max_text_tokens: longest text, in tokens; the rest is cut off. None without texts.
        languages: how many, or which; None without texts.
        licence: licence of the weights.
        commercial: whether that licence allows commercial use.
        matryoshka: dimensions that vectors may be cut to, from the model card (arXiv 2205.13147);
            empty if the model was not trained for it.
        suits: what the model is good for.
        revision: commit of ``text`` to load, or of ``image`` if there is no ``text``; None loads
            the newest, because no commit is known to load.
        image_revision: the same for ``image``, if that is another repository.
        download_bytes: rounded size of the download; None if unknown.
        code_licence: licence of the makers' code, if the repository or card names one; this package
            never runs that code.
        note: anything else that users must know; shown beside the licence.
    """

    name: str
    text: str | None
    image: str
    dimension: int
    max_text_tokens: int | None
    languages: str | None
    licence: str
    commercial: bool
    matryoshka: tuple[int, ...]
    suits: str
    revision: str | None = None
    image_revision: str | None = None
    download_bytes: int | None = None
    code_licence: str | None = None
    note: str = ""

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The distinct hub names."""
        return tuple(dict.fromkeys(each for each in (self.text, self.image) if each))

    @property
    def revisions(self) -> dict[str, str | None]:
        """The commit of each hub name; None for the newest."""
        first, *second = self.checkpoints
        return {first: self.revision, **dict.fromkeys(second, self.image_revision)}


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="jina",
            text="jinaai/jina-clip-v2",
            image="jinaai/jina-clip-v2",
            dimension=1024,
            max_text_tokens=8192,
            languages="89",
            licence="CC BY-NC 4.0",
            commercial=False,
            matryoshka=(64, 128, 256, 512, 768, 1024),
            suits="text with images, multilingual",
            download_bytes=1_750_000_000,
        ),
        Preset(
            name="nomic",
            text="nomic-ai/nomic-embed-text-v1.5",
            image="nomic-ai/nomic-embed-vision-v1.5",
            dimension=768,
            # The length that it was trained with; the card reaches 8192 by scaling positions.
            max_text_tokens=2048,
            languages="English",
            licence="Apache-2.0",
            commercial=True,
            matryoshka=(64, 128, 256, 512, 768),
            suits="text with images, permissive",
        ),
        Preset(
            name="siglip2",
            text="google/siglip2-base-patch16-224",
            image="google/siglip2-base-patch16-224",
            dimension=768,
            max_text_tokens=64,
            languages="many",
            licence="Apache-2.0",
            commercial=True,
            matryoshka=(),
            suits="images only, multilingual",
        ),
        Preset(
            name="siglip",
            text="google/siglip-base-patch16-224",
            image="google/siglip-base-patch16-224",
            dimension=768,
            max_text_tokens=64,
            languages="English",
            licence="Apache-2.0",
            commercial=True,
            matryoshka=(),
            suits="images only",
        ),
        Preset(
            name="clip",
            text="openai/clip-vit-base-patch32",
            image="openai/clip-vit-base-patch32",
            dimension=512,
            max_text_tokens=77,
            languages="English",
            licence="none stated",
            commercial=False,
            matryoshka=(),
            suits="images only, small and fast",
            # The conversion to safetensors; main holds pickles only.
            revision="c237dc49a33fc61debc9276459120b7eac67e7ef",
            download_bytes=605_157_884,
            code_licence="MIT",
            note="by its card, any deployed use is out of scope",
        ),
        Preset(
            name="dinov2",
            text=None,
            image="facebook/dinov2-base",
            dimension=768,
            max_text_tokens=None,
            languages=None,
            licence="Apache-2.0",
            commercial=True,
            matryoshka=(),
            suits="image queries, beside another",
        ),
    )
}


@dataclass(frozen=True)
class ScorerPreset:
    """A reranker under a plain name; the facts are from the checkpoint's model card.

    Attributes:
        name: the plain name, for ``load_scorer``.
        checkpoint: its hub name.
        max_tokens: longest pair of query and document, in tokens; the rest is cut off.
        languages: how many, or which.
        licence: licence of the weights.
        commercial: whether that licence allows commercial use.
        suits: what the model is good for.
        revision: commit to load; None loads the newest, because no commit is known to load.
        download_bytes: rounded size of the download; None if unknown.
        code_licence: licence of the makers' code, if the repository or card names one; this package
            never runs that code.
        note: anything else that users must know; shown beside the licence.
    """

    name: str
    checkpoint: str
    max_tokens: int
    languages: str
    licence: str
    commercial: bool
    suits: str
    revision: str | None = None
    download_bytes: int | None = None
    code_licence: str | None = None
    note: str = ""


SCORER_PRESETS = {
    preset.name: preset
    for preset in (
        ScorerPreset(
            name="jina-m0",
            checkpoint="jinaai/jina-reranker-m0",
            max_tokens=10240,
            languages="29",
            licence="CC BY-NC 4.0",
            commercial=False,
            suits="texts and images, as query and as document",
            download_bytes=4_890_000_000,
        ),
    )
}
