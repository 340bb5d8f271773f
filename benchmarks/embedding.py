"""Measures images per second from JPEG files, at the size of CLIP ViT-B/32, with random weights.

    python benchmarks/embedding.py [--images 256] [--rounds 5]

Compares ours (``DualEncoderEmbedding``, which decodes ahead in threads) with

- bare sentence-transformers: its ``encode`` over the same files, same number format, batch 32;
- one image at a time in float32, as llama-index-embeddings-clip does.

Rounds are interleaved and the table shows medians, so that a slow moment of the machine affects all
ways alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sentence_transformers import SentenceTransformer

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.gap.arrays import unit_rows
from llama_index_gap.models import LoadingSettings
from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers
from llama_index_gap.models.runtime import placement

BATCH = 32
VIT_B32 = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


def make_photos(folder: Path, count: int) -> list[str]:
    """Write JPEGs of 640×480 that decode like photos: smooth shapes with some noise."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (photo + rng.normal(0, 8, photo.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{index:04}.jpg"
        Image.fromarray(noisy).save(path, quality=90)
        paths.append(str(path))
    return paths


@contextmanager
def peers(model: str, dtype: str) -> Iterator[dict[str, Callable[[list[str]], np.ndarray]]]:
    """The three ways to embed a list of files; each returns an (n, d) array."""
    ours = DualEncoderEmbedding(model_name=model, dtype=dtype, embed_batch_size=BATCH)
    with quiet_transformers():
        format_ = getattr(torch, dtype)
        bare = SentenceTransformer(model, model_kwargs={"dtype": format_})
        single = SentenceTransformer(model, model_kwargs={"dtype": torch.float32})
    yield {
        "ours": lambda paths: np.array(ours.get_image_embedding_batch(paths)),
        "sentence-transformers": lambda paths: bare.encode(
            [Image.open(path) for path in paths],
            batch_size=BATCH,
            normalize_embeddings=True,
            show_progress_bar=False,
        ),
        "one at a time, float32": lambda paths: np.stack(
            [
                single.encode([Image.open(path)], normalize_embeddings=True)[0]
                for path in paths[: len(paths) // 4]
            ]
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    device, fast = placement(LoadingSettings())
    formats = list(dict.fromkeys(["float32", str(fast).split(".")[1]]))
    table = Table(
        "format", "way", "images/s", "ours is", "cosine to ours", box=None, padding=(0, 2)
    )
    with tempfile.TemporaryDirectory() as scratch:
        paths = make_photos(Path(scratch), options.images)
        model = str(
            make_tiny_clip(Path(scratch) / "model", vision_config=VIT_B32, projection_dim=512)
        )
        for dtype in formats:
            with peers(model, dtype) as ways:
                rates: dict[str, list[float]] = {name: [] for name in ways}
                vectors = {name: way(paths[:BATCH]) for name, way in ways.items()}  # warm up
                for _ in range(options.rounds):
                    for name, way in ways.items():
                        start = time.perf_counter()
                        vectors[name] = way(paths)
                        rates[name].append(len(vectors[name]) / (time.perf_counter() - start))
            median = {name: statistics.median(values) for name, values in rates.items()}
            for name, rate in median.items():
                n = len(vectors[name])
                # normalise again: in bfloat16, the peer's vectors have only nearly length 1
                ours, theirs = (unit_rows(vectors[key][:n]) for key in ("ours", name))
                cosine = (ours * theirs).sum(axis=1).min()
                ratio = "" if name == "ours" else f"{median['ours'] / rate:.2f} ×"
                table.add_row(dtype, name, f"{rate:.1f}", ratio, f"{cosine:.5f}")
    Console().print(
        f"{options.images} JPEGs of 640×480, ViT-B/32 size, {device}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}; median of {options.rounds} rounds"
    )
    Console().print(table)


if __name__ == "__main__":
    main()
