"""Compares embedding in one process and in several, and measures the cost of an image by step.

    python benchmarks/workers.py [--workers 2] [--rounds 5] [--quick]

Two CLIP checkpoints with random weights, one tiny and one of the size of ViT-B/32, embed texts,
photos of 640×480, and photos of 12 megapixels as from phones. The first table shows the processor
time for decoding an image, preparing it (the checkpoint's image processor resizes and normalizes
it), and encoding it, one step after the other in one thread. The second table compares one process
(torch's threads, and images decoded in threads ahead of the model) with ``workers=N``. Models are
loaded beforehand. Rounds are interleaved and the table shows medians, so that a slow moment of the
machine affects all alike. ``--quick`` is for tests.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.images.opening import open_image
from llama_index_gap.models import LoadingSettings, load_encoder

BATCH = 16
BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072}
VISION = {**BASE, "num_attention_heads": 12, "image_size": 224, "patch_size": 32}
TEXT = {
    **{"num_hidden_layers": 12, "hidden_size": 512, "intermediate_size": 2048},
    "num_attention_heads": 8,
}
SIZES = {"640×480": (640, 480), "12 MP": (4000, 3000)}


def make_photos(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """Write JPEG files that decode like photos: smooth shapes with some noise."""
    rng, paths = np.random.default_rng(0), []
    width, height = size
    for index in range(min(count, 8)):  # then they repeat, at the same cost
        coarse = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        noise = rng.normal(0, 6, (height // 2, width // 2, 1)).repeat(2, 0).repeat(2, 1)
        photo = (np.asarray(smooth, dtype=np.int16) + noise).clip(0, 255).astype(np.uint8)
        path = folder / f"{width}-{index}.jpg"
        Image.fromarray(photo).save(path, quality=90)
        paths.append(str(path))
    return [paths[index % len(paths)] for index in range(count)]


def processor_ms(work: Callable[[], object], times: int) -> float:
    """Milliseconds of processor time, median of ``times`` runs."""
    taken = []
    for _ in range(times):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return statistics.median(taken) * 1000


def costs_of(model: Path, dtype: str, photo: str, rounds: int) -> list[float]:
    """Processor milliseconds to decode, prepare and encode an image, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        encoder = load_encoder(model, LoadingSettings(dtype=dtype))
        image = open_image(photo)
        batch = [encoder.prepare_image(image)] * BATCH
        encoder.encode_prepared(batch)
        return [
            processor_ms(lambda: open_image(photo), rounds),
            processor_ms(lambda: encoder.prepare_image(image), rounds),
            processor_ms(lambda: encoder.encode_prepared(batch), rounds) / BATCH,
        ]
    finally:
        torch.set_num_threads(threads)


def rates_of(ways: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """Items per second of each way, median of interleaved rounds."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm up
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            rates[name].append(count / (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few inputs, one round, one model")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    texts = [f"photo {number} of a red balloon over the harbour" for number in range(256)]
    counts = {"640×480": 64, "12 MP": 64}  # a few batches for each process
    if options.quick:
        texts, counts = texts[: 2 * BATCH], {"640×480": 2 * BATCH}

    costs = Table("model", "format", "photo", "decode ms", "prepare ms", "encode ms", box=None)
    speeds = Table(
        *("model", "format", "input", "one process", f"workers={options.workers}", "ratio"),
        *("cosine",),
        box=None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = {name: make_photos(folder, SIZES[name], counts[name]) for name in counts}
        models = {"tiny": make_tiny_clip(folder / "tiny")}
        if not options.quick:
            models["ViT-B/32 size"] = make_tiny_clip(
                folder / "base", vision_config=VISION, text_config=TEXT, projection_dim=512
            )
        for name, model in models.items():
            for dtype in ("float32",) if options.quick else ("float32", "bfloat16"):
                for size, paths in photos.items():
                    shown = [f"{each:.1f}" for each in costs_of(model, dtype, paths[0], rounds)]
                    costs.add_row(name, dtype, size, *shown)
                settings = {"model_name": str(model), "dtype": dtype, "embed_batch_size": BATCH}
                alone = DualEncoderEmbedding(**settings)
                pooled = DualEncoderEmbedding(**settings, workers=options.workers)
                for what, inputs in {"texts": texts, **photos}.items():
                    method = f"get_{'text' if what == 'texts' else 'image'}_embedding_batch"
                    ways = {
                        "alone": partial(getattr(alone, method), inputs),
                        "pooled": partial(getattr(pooled, method), inputs),
                    }
                    rates = rates_of(ways, len(inputs), rounds)
                    vectors = [np.array(way()) for way in ways.values()]
                    speeds.add_row(
                        *(name, dtype, what, f"{rates['alone']:.1f}/s", f"{rates['pooled']:.1f}/s"),
                        f"{rates['pooled'] / rates['alone']:.2f} ×",
                        f"{(vectors[0] * vectors[1]).sum(axis=1).min():.5f}",
                    )
                pooled.close()
    Console().print(
        f"batches of {BATCH}, {os.cpu_count()} cores, torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads; median of {rounds} rounds"
    )
    Console().print(costs)
    Console().print(speeds)


if __name__ == "__main__":
    main()
