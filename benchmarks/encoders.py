"""Measures texts and images per second of each encoder family, with random weights.

    python benchmarks/encoders.py [--rounds 5] [--batches 2] [--quick]

Compares ours (``load_encoder``) with the bare library:

- CLIP, SigLIP: sentence-transformers' ``encode`` (which pads SigLIP's texts wrongly unless all
  have the maximum length, as here);
- texts of Nomic and jina-clip: transformers' NomicBertModel and JinaEmbeddingsV3Model with the
  same weights, in a loop over batches;
- images of Nomic and jina-clip: no library supports them without remote code.

Layers have their real sizes; the table says if only some layers are used. Vocabularies are small,
which does not affect the time: an embedding is a look-up. Rounds are interleaved and the table
shows medians, so that a slow moment of the machine affects all alike. ``--quick`` is for tests,
with tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.gap.arrays import unit_rows
from llama_index_gap.models import Encoder, LoadingSettings, load_encoder
from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers
from llama_index_gap.models.encoders.layers import masked_mean

ROOT = Path(__file__).parents[1]
PARITY = ROOT / "tests" / "fixtures" / "parity"
sys.path.insert(0, str(ROOT / "tests" / "support"))
from enlarge import JINA_LENGTHS, JINA_SETTINGS, enlarged_shapes, write_enlarged  # noqa: E402
from tiny_siglip import make_tiny_siglip  # noqa: E402

BATCH = 16
TOKENS = 128  # length of a text, if the model reads that much
JINA_LAYERS = 6  # of 24, to save time

Way = Callable[[Sequence[Any]], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One tower of one family.

    Attributes:
        family: its name in the table.
        folder: its checkpoint.
        modality: the tower's input.
        layers: the number of layers, for the table.
        bare: makes the bare library's function; None if no library has the model.
        max_text_tokens: texts are cut to this length; None for the model's limit.
    """

    family: str
    folder: Path
    modality: str
    layers: str
    bare: Callable[[Case, Encoder, torch.dtype], Way] | None
    max_text_tokens: int | None = None


def in_batches(way: Way, items: Sequence[Any]) -> np.ndarray:
    starts = range(0, len(items), BATCH)
    return np.concatenate([way(items[start : start + BATCH]) for start in starts])


def bare_sentence_transformers(case: Case, _: Encoder, dtype: torch.dtype) -> Way:
    with quiet_transformers():
        model = SentenceTransformer(str(case.folder), model_kwargs={"dtype": dtype})
    return lambda items: model.encode(
        list(items), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
    )


def bare_transformers(case: Case, encoder: Encoder, _: torch.dtype) -> Way:
    """The transformers model inside our encoder, run as its documentation shows."""
    is_nomic = case.family == "nomic"
    model = encoder._text._model if is_nomic else encoder._text
    tokenizer = PreTrainedTokenizerFast.from_pretrained(case.folder)

    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = tokenizer(
            list(texts), padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(model.device)
        mask = tokens["attention_mask"]
        with torch.inference_mode():
            hidden = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state
            pooled = masked_mean(hidden, mask)
            if is_nomic:
                pooled = torch.nn.functional.layer_norm(pooled, pooled.shape[-1:])
            return torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()

    return lambda texts: in_batches(embed, texts)


def make_cases(scratch: Path, *, quick: bool) -> Iterator[Case]:
    """Each family's checkpoint, with random weights."""
    bare = bare_sentence_transformers
    clip = make_tiny_clip(
        scratch / "clip", **({} if quick else {"vision_config": {"image_size": 224}})
    )
    siglip = make_tiny_siglip(scratch / "siglip", gemma_tokenizer=True)
    layers = "2, tiny" if quick else "12"
    if not quick:
        base = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}
        base["num_attention_heads"] = 12
        narrow = {**base, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        enlarge_native(clip, text=narrow, vision={**base, "patch_size": 32}, projection_dim=512)
        enlarge_native(siglip, text=base, vision={**base, "image_size": 224, "patch_size": 16})
    for family, folder in {"clip": clip, "siglip2": siglip}.items():
        for modality in ("text", "image"):
            yield Case(family, folder, modality, layers, bare)

    nomic_text, nomic_vision, jina = make_native(scratch, quick=quick)
    layers = "3, tiny" if quick else "12"
    yield Case("nomic", nomic_text, "text", layers, bare_transformers, TOKENS)
    yield Case("nomic", nomic_vision, "image", layers, None)
    layers = "3, tiny" if quick else f"{JINA_LAYERS} of 24"
    yield Case("jina", jina, "text", layers, bare_transformers, TOKENS)
    yield Case("jina", jina, "image", layers, None)


def enlarge_native(
    folder: Path, *, text: dict[str, int], vision: dict[str, int], **sizes: int
) -> None:
    """Enlarge the towers of a tiny CLIP or SigLIP checkpoint to these sizes."""
    config = AutoConfig.from_pretrained(folder).to_dict()
    config["text_config"] |= text
    config["vision_config"] |= vision
    path = folder / "config.json"
    path.write_text(json.dumps({**config, **sizes}))
    with quiet_transformers():
        AutoModel.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    size = config["vision_config"]["image_size"]
    path = folder / "preprocessor_config.json"
    processing = json.loads(path.read_text())
    if "crop_size" not in processing:  # SigLIP's processor has no crop size
        processing["size"] = {"height": size, "width": size}
    path.write_text(json.dumps(processing))


def make_native(scratch: Path, *, quick: bool) -> list[Path]:
    """nomic-embed-text-v1.5, nomic-embed-vision-v1.5 and the first layers of jina-clip-v2."""
    names = ["nomic_text_tiny", "nomic_vision_tiny", "jina_clip_tiny"]
    text, vision, jina = (PARITY / name for name in names)
    lengths = {64: 768, 128: 2 * 768, 192: 3 * 768}
    patches = {"embeddings.proj.weight": (768, 3 * 16**2), "embeddings.pos_embed": (1, 197, 768)}
    square = {"height": 224, "width": 224}
    of_both = {"n_embd": 768, "n_head": 12, "n_layer": 12}
    in_vision = {"n_inner": 2048, "img_size": 224, "patch_size": 16, "ref_feat_shape": [14, 14]}
    in_jina = {
        "vision_config.layers": JINA_LAYERS,
        "text_config.hf_model_config_kwargs.num_hidden_layers": JINA_LAYERS,
    }
    settings: list[dict[str, dict[str, Any]]] = [
        {"config.json": {**of_both, "n_inner": 3072}},
        {"config.json": {**of_both, **in_vision}, "preprocessor_config.json": {"size": square}},
        {**JINA_SETTINGS, "config.json": {**JINA_SETTINGS["config.json"], **in_jina}},
    ]
    shapes = [
        enlarged_shapes(text, {**lengths, 256: 3072}, 12),
        enlarged_shapes(vision, {**lengths, 256: 2048}, 12, patches),
        enlarged_shapes(jina, JINA_LENGTHS, JINA_LAYERS),
    ]
    if quick:
        settings = [{}, {}, {}]
        shapes = [enlarged_shapes(source, {}, 3) for source in (text, vision, jina)]
    folders = [
        write_enlarged(source, scratch / name, its_shapes, its_settings)
        for source, name, its_shapes, its_settings in zip(
            (text, vision, jina), names, shapes, settings, strict=True
        )
    ]
    # The fixture of Nomic's text model has no tokenizer; any with as few tokens will do.
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folders[0] / file).write_bytes((folders[2] / file).read_bytes())
    return folders


def make_items(count: int) -> dict[str, list[Any]]:
    """Texts longer than each model's limit here, and decoded images of 640×480."""
    rng = np.random.default_rng(0)
    words = ["cat", "dog", "red", "blue", "photo", "of", "the"]
    texts = [" ".join(rng.choice(words, 2 * TOKENS)) for _ in range(count)]
    noise = rng.integers(0, 256, (count, 12, 16, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((640, 480)) for pixels in noise]
    return {"text": texts, "image": images}


def measure(
    case: Case, dtype: str, items: Sequence[Any], rounds: int
) -> tuple[dict[str, float], float | None]:
    """Median items per second of each way, and the lowest cosine between their vectors."""
    prompts = {} if case.modality == "image" else {"query_prompt": "", "document_prompt": ""}
    encoder = load_encoder(
        case.folder,
        LoadingSettings(dtype=dtype),
        max_text_tokens=case.max_text_tokens,
        **prompts,
    )
    encode = (
        encoder.encode_images
        if case.modality == "image"
        else lambda texts: encoder.encode_text(texts, "document")
    )
    ways: dict[str, Way] = {"ours": lambda items: in_batches(encode, items)}
    if case.bare is not None:
        ways["bare"] = case.bare(case, encoder, getattr(torch, dtype))
    vectors = {name: way(items) for name, way in ways.items()}  # warm up
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(items)
            rates[name].append(len(items) / (time.perf_counter() - start))
    cosine = (vectors["ours"] * unit_rows(vectors["bare"])).sum(axis=1).min() if case.bare else None
    return {name: statistics.median(values) for name, values in rates.items()}, cosine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=2, help=f"of {BATCH} items, per round")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    options = parser.parse_args()
    rounds, batches = (1, 1) if options.quick else (options.rounds, options.batches)

    headers = ["family", "layers", "input", "format", "ours/s", "bare/s", "ours is", "cosine"]
    table = Table(*headers, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    items = make_items(batches * BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        for case in make_cases(Path(scratch), quick=options.quick):
            for dtype in ("float32", "bfloat16"):
                rates, cosine = measure(case, dtype, items[case.modality], rounds)
                bare = ["none", "", ""]
                if cosine is not None:
                    ratio = rates["ours"] / rates["bare"]
                    bare = [f"{rates['bare']:.1f}", f"{ratio:.2f} ×", f"{cosine:.4f}"]
                row = [case.family, case.layers, case.modality, dtype, f"{rates['ours']:.1f}"]
                table.add_row(*row, *bare)
    Console().print(
        f"texts of {TOKENS} tokens (CLIP 77, SigLIP 64), images of 640×480 decoded beforehand, "
        f"batches of {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"median of {rounds} rounds"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
