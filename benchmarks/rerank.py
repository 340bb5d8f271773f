"""Measures reranking with a quarter-width jina-reranker-m0 with random weights.

    python benchmarks/rerank.py [--texts 16] [--images 16] [--rounds 3] [--dtype float32]

- published: the pattern of ``compute_score`` in the model card: each query reads all documents
  again, with one call for texts and one for images, 8 at a time in the given order, padded to the
  longest;
- cold: ``load_scorer`` without a cache;
- vision kept: the vision tower's output for the images is kept from an earlier query;
- prefixes kept: keys and values of all documents are kept (the default).

Documents are JPEG files, which all ways open again when they need them, and texts of 50 to 600
tokens (the tiny tokenizer has a token for each letter). Each round has one query for all ways.
Rounds are interleaved and the table shows medians, so that a slow moment of the machine affects all
ways alike. Memory is a way's peak above the memory at its start, and the memory that it keeps.
``--quick`` is for tests, with tiny sizes.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoImageProcessor, PreTrainedTokenizerFast

from llama_index_gap.images.opening import open_image
from llama_index_gap.models import LazyImage, LoadingSettings, PairScorer, load_scorer
from llama_index_gap.models.checkpoints.checkpoint import quiet_transformers
from llama_index_gap.models.runtime import placement

ROOT = Path(__file__).parents[1]
PARITY = ROOT / "tests" / "fixtures" / "parity" / "jina_m0_tiny"
sys.path.insert(0, str(ROOT / "tests" / "support"))
from enlarge import M0_QUARTER_SETTINGS, m0_shapes, write_enlarged  # noqa: E402

BATCH = 8  # the default of compute_score
MAX_LENGTH, QUERY_LENGTH = 10240, 512  # also its defaults
SCORE_TOKEN, LOGIT_BIAS = 100, 2.65
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
SIZES = [(224, 224), (320, 240), (480, 360), (480, 640), (800, 600)]
AIMS = {"cold": 1.3, "vision kept": 2.0, "prefixes kept": 8.0}

Document = str | Path
Way = Callable[[str, Sequence[Document]], np.ndarray]


class Published:
    """The pattern of the model card's ``compute_score``, for a text query.

    Args:
        folder: a checkpoint.
        settings: how to load it.
    """

    def __init__(self, folder: Path, settings: LoadingSettings) -> None:
        scorer = load_scorer(folder, settings)
        self._model = scorer._model
        self._model.language_model.set_attn_implementation("sdpa")
        self._head = copy.deepcopy(scorer._head).to(self._model.dtype)
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
        with quiet_transformers():
            self._processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    def __call__(self, query: str, documents: Sequence[Document]) -> np.ndarray:
        scores = np.empty(len(documents), np.float32)
        for kind in (str, Path):
            places = [n for n, document in enumerate(documents) if isinstance(document, kind)]
            for start in range(0, len(places), BATCH):
                batch = places[start : start + BATCH]
                scores[batch] = self._score(query, [documents[place] for place in batch])
        return scores

    @torch.inference_mode()
    def _score(self, query: str, documents: Sequence[Document]) -> np.ndarray:
        seen = {}
        shown = [self._cut(each) if isinstance(each, str) else IMAGE for each in documents]
        if isinstance(documents[0], Path):
            images = [Image.open(path).convert("RGB") for path in documents]
            seen = dict(self._processor(images, return_tensors="pt"))
            lengths = seen["image_grid_thw"].prod(dim=1) // self._processor.merge_size**2
            shown = [
                IMAGE.replace("<|image_pad|>", "<|image_pad|>" * length)
                for length in lengths.tolist()
            ]
        prompts = [f"**Document**:\n{document}\n**Query**:\n{query}" for document in shown]
        tokens = self._tokenizer(
            prompts,
            padding=True,
            truncation=True,
            max_length=MAX_LENGTH - 1,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        last = torch.ones((len(prompts), 1), dtype=torch.long)
        ids = torch.cat([tokens["input_ids"], last * SCORE_TOKEN], dim=1)
        mask = torch.cat([tokens["attention_mask"], last], dim=1)
        if seen:
            seen["mm_token_type_ids"] = (ids == self._model.config.image_token_id).int()
        inputs = {"input_ids": ids, "attention_mask": mask, **seen}
        hidden = self._model(
            **{name: tensor.to(self._model.device) for name, tensor in inputs.items()},
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states[-1]
        logits = self._head(hidden[:, -1])[:, 0].float().cpu().numpy()
        return 1 / (1 + np.exp(LOGIT_BIAS - logits))

    def _cut(self, document: str) -> str:
        ids = self._tokenizer(document, truncation=True, max_length=MAX_LENGTH - QUERY_LENGTH)
        if len(ids["input_ids"]) < MAX_LENGTH - QUERY_LENGTH:
            return document
        return self._tokenizer.decode(ids["input_ids"])


def ours(scorer: PairScorer) -> Way:
    def score(query: str, documents: Sequence[Document]) -> np.ndarray:
        return scorer.score(query, [as_item(document) for document in documents])

    return score


def as_item(document: Document) -> str | Image:
    if isinstance(document, str):
        return document
    return LazyImage(str(document), lambda: open_image(document))


def make_documents(folder: Path, texts: int, images: int, *, quick: bool) -> list[Document]:
    """Texts and JPEG files, mixed like a list of candidates."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghij klmnop"))
    documents: list[Document] = []
    for length in rng.integers(5, 40, texts) if quick else rng.integers(50, 600, texts):
        documents.append("".join(rng.choice(letters, length)))
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        width, height = SIZES[rng.integers(len(SIZES))]
        path = folder / f"{number}.jpg"
        coarse.resize((width // 8, height // 8) if quick else (width, height)).save(path)
        documents.append(path)
    return [documents[place] for place in rng.permutation(len(documents))]


def make_checkpoint(folder: Path, *, quick: bool) -> Path:
    settings = {"config.json": {}} if quick else M0_QUARTER_SETTINGS
    write_enlarged(PARITY, folder, m0_shapes(PARITY, settings), settings)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if name.startswith("score."):  # otherwise all scores are nearly equal
            tensors[name] *= 5
    save_file(tensors, folder / "model.safetensors")
    return folder


@dataclass
class Measured:
    """The result and cost of one run.

    Attributes:
        scores: the documents' scores.
        seconds: elapsed time.
        peak: the most bytes above the memory in use before.
    """

    scores: np.ndarray
    seconds: float
    peak: int


def measure(way: Way, query: str, documents: Sequence[Document]) -> Measured:
    with Peak() as peak:
        start = time.perf_counter()
        scores = way(query, documents)
        seconds = time.perf_counter() - start
    return Measured(scores, seconds, peak.bytes)


class Peak:
    """The peak memory above the start: of the GPU, or else of the process (Linux)."""

    def __enter__(self) -> Peak:
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:  # return freed memory first, or a run could reuse it unnoticed
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._start = self._highest = self._now()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        if self._on_gpu:
            self._highest = torch.cuda.max_memory_allocated()
        self.bytes = self._highest - self._start

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self._highest = max(self._highest, self._now())

    def _now(self) -> int:
        if self._on_gpu:
            return torch.cuda.memory_allocated()
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for tests")
    options = parser.parse_args()
    settings = LoadingSettings(dtype=options.dtype)
    device, number_format = placement(settings)
    dtype = str(number_format).removeprefix("torch.")

    with tempfile.TemporaryDirectory() as scratch:
        folder = make_checkpoint(Path(scratch) / "model", quick=options.quick)
        documents = make_documents(
            Path(scratch), options.texts, options.images, quick=options.quick
        )
        nothing = {"prefix_bytes": 0, "vision_bytes": 0}
        scorers = {
            "cold": load_scorer(folder, settings, **nothing),
            "vision kept": load_scorer(folder, settings, prefix_bytes=0),
            "prefixes kept": load_scorer(folder, settings),
        }
        ways = {"published": Published(folder, settings)}
        ways |= {name: ours(scorer) for name, scorer in scorers.items()}
        taken: dict[str, list[Measured]] = {name: [] for name in ways}
        queries = [f"question number {number}" for number in range(options.rounds + 1)]
        with tqdm(total=len(queries) * len(ways), unit="run") as progress:
            for query in queries:
                for name, way in ways.items():
                    progress.set_description(name)
                    taken[name].append(measure(way, query, documents))
                    progress.update()

    Console().print(
        f"{options.texts} texts and {options.images} images, "
        f"{'tiny' if options.quick else 'a quarter of the width'}, {dtype}, {device}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; median of "
        f"{options.rounds} rounds after a warm-up round"
    )
    Console().print(as_table(taken, scorers))


def as_table(taken: dict[str, list[Measured]], scorers: dict[str, PairScorer]) -> Table:
    """A row for each way; the first round only fills the caches."""
    headers = ["way", "seconds", "faster", "aim", "peak MB", "kept MB", "difference"]
    table = Table(*headers, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    seconds = {
        name: statistics.median(run.seconds for run in runs[1:]) for name, runs in taken.items()
    }
    for name, runs in taken.items():
        ratio = seconds["published"] / seconds[name]
        aim = ""
        if name in AIMS:
            aim = f"{AIMS[name]} × {'met' if ratio >= AIMS[name] else 'not met'}"
        kept = 0
        if name in scorers:
            kept = scorers[name]._prefixes.nbytes + scorers[name]._vision._memory.nbytes
        difference = max(
            np.abs(run.scores - published.scores).max()
            for run, published in zip(runs, taken["published"], strict=True)
        )
        peak = statistics.median(run.peak for run in runs[1:]) / 1e6
        table.add_row(
            name,
            f"{seconds[name]:.2f}",
            f"{ratio:.2f} ×",
            aim,
            f"{peak:.0f}",
            f"{kept / 1e6:.0f}",
            f"{difference:.1e}",
        )
    return table


if __name__ == "__main__":
    main()
