"""Trains the newsroom's dual encoder from scratch, on one processor core.

    python -m training.train_dual_encoder FOLDER [--steps 800] [--seed 0]

A CLIP of 1.4 million parameters learns from articles of the training fold, made anew for every
step. Its text tower reads queries and headlines alike; each query is drawn to its headline, its
image or both by CLIP's contrastive loss (Radford et al. 2021, arXiv 2103.00020, figure 3).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers.trainers import BpeTrainer
from torch.nn.functional import cross_entropy, normalize
from tqdm import trange
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from llama_index_gap.demo.drawing import SIZE
from llama_index_gap.demo.newsroom import QUERY_KINDS, Article, Claim, make_articles, make_query
from llama_index_gap.demo.tiny import clip_letters, clip_tokenizer, save_checkpoint

logger = logging.getLogger(__name__)

STEPS = 800
ARTICLES = 128  # in each step
_DIMENSION = 128
_TOKENS = 32  # the longest text of the newsroom has 29
_VOCABULARY = 1800  # enough for every word that is spelt right to be a token
_TOWER = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4}
_PEAK_RATE = 2e-3
_WARM_UP = 0.1  # of the steps
_WEIGHT_DECAY = 0.1
_LARGEST_SCALE = 100.0  # as CLIP clips it


def train(
    folder: str | Path,
    *,
    steps: int = STEPS,
    articles: int = ARTICLES,
    seed: int = 0,
    show_progress: bool = False,
) -> Path:
    """Train the dual encoder and write it as a CLIP checkpoint, its weights in float16.

    The same seed gives the same weights on the same machine with the same number of threads.

    Args:
        folder: where to write; made if missing.
        steps: number of steps.
        articles: number of articles in each.
        seed: of the weights and of the articles.
        show_progress: show a progress bar.

    Returns:
        The folder.
    """
    started = time.process_time()
    torch.manual_seed(seed)
    trainer = _Trainer(steps)
    for step in trange(steps, disable=not show_progress, desc="Training"):
        batch = make_articles(articles, "train", seed * 1_000_000 + step + 1)
        loss = trainer.step(batch, Random(f"queries {seed} {step}"))  # noqa: S311 - no secret
        if (step + 1) % 25 == 0:
            minutes = (time.process_time() - started) / 60
            logger.info(
                "step %d: loss %.3f, %.1f minutes of processor time", step + 1, loss, minutes
            )
    return trainer.save(Path(folder))


class _Trainer:
    """A model with its tokenizer, its image processor and the state of its training."""

    def __init__(self, steps: int) -> None:
        self._tokenizer = make_tokenizer()
        self._image_processor = CLIPImageProcessorPil(
            size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
        )
        text = {
            **_TOWER,
            "num_hidden_layers": 2,
            "vocab_size": len(self._tokenizer),
            "max_position_embeddings": _TOKENS,
            "bos_token_id": self._tokenizer.bos_token_id,
            # transformers pools at the end token only if its id is not 2 (its old default).
            "eos_token_id": self._tokenizer.eos_token_id,
            "pad_token_id": self._tokenizer.pad_token_id,
        }
        vision = {**_TOWER, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 16}
        self.model = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=_DIMENSION)
        ).train()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY
        )
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: share_of_rate(step, steps)
        )

    def step(self, articles: Sequence[Article], random: Random) -> float:
        """Learn from some articles; returns the loss."""
        queries = {
            kind: [make_query(article, kind, random) for article in articles]
            for kind in QUERY_KINDS
        }
        texts = [query.text for kind in QUERY_KINDS for query in queries[kind]]
        texts += [article.headline for article in articles]
        for_text, for_image, for_both, headlines = self._encode_texts(texts).chunk(4)
        images = self._encode_images(articles)
        scale = self.model.logit_scale.exp()
        pairs = (
            (for_text, headlines, [query.said for query in queries["text"]]),
            (for_both, headlines, [query.said for query in queries["both"]]),
            (for_image, images, [query.shown for query in queries["image"]]),
            (for_both, images, [query.shown for query in queries["both"]]),
        )
        losses = [
            _contrastive_loss(scale * asked @ found.T, _other_answers(claims, articles))
            for asked, found, claims in pairs
        ]
        loss = torch.stack(losses).mean()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(_LARGEST_SCALE))
        return loss.item()

    def save(self, folder: Path) -> Path:
        """Write the checkpoint, its weights in float16; ends the training."""
        return save_checkpoint(folder, self.model.half(), self._tokenizer, self._image_processor)

    def _encode_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode n texts, in four batches by length to pad less; returns shape (n, dimension)."""
        ids = self._tokenizer(list(texts), truncation=True)["input_ids"]
        by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors = []
        for places in np.array_split(by_length, 4):
            padded = self._tokenizer.pad(
                {"input_ids": [ids[place] for place in places]}, return_tensors="pt"
            )
            vectors.append(self.model.get_text_features(**padded).pooler_output)
        return normalize(torch.cat(vectors)[torch.tensor(by_length).argsort()])

    def _encode_images(self, articles: Sequence[Article]) -> torch.Tensor:
        """Encode the images of n articles; returns shape (n, dimension)."""
        images = [article.image() for article in articles]
        pixels = self._image_processor(images, return_tensors="pt")["pixel_values"]
        return normalize(self.model.get_image_features(pixel_values=pixels).pooler_output)


def _contrastive_loss(scores: torch.Tensor, ignored: torch.Tensor) -> torch.Tensor:
    """CLIP's loss: each query finds its article among all, and each article its query.

    Args:
        scores: shape (n, n), of queries and articles; the diagonal belongs together.
        ignored: shape (n, n), True where an article answers a query made for another.
    """
    scores = scores.masked_fill(ignored, -math.inf)
    own = torch.arange(len(scores))
    return (cross_entropy(scores, own) + cross_entropy(scores.T, own)) / 2


def _other_answers(claims: Sequence[frozenset[Claim]], articles: Sequence[Article]) -> torch.Tensor:
    """Shape (n, n): whether an article other than the query's own says or shows these claims."""
    found = torch.tensor([[not each.lacks(asked) for each in articles] for asked in claims])
    return found.fill_diagonal_(False)


def share_of_rate(step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine down to zero."""
    warm_up = (step + 1) / (_WARM_UP * steps)
    return min(warm_up, (1 + math.cos(math.pi * step / steps)) / 2)


def make_tokenizer(prompts: Sequence[str] = ()) -> CLIPTokenizer:
    """CLIP's tokenizer with the newsroom's own words, learnt from its training fold.

    Args:
        prompts: texts whose words become tokens, too.
    """
    random = Random("tokenizer")  # noqa: S311 - no secret
    articles = make_articles(10_000, "train", 0)
    texts = [article.headline for article in articles]
    texts += [
        make_query(article, kind, random).text for kind in QUERY_KINDS for article in articles
    ]
    texts += len(articles) * list(prompts)
    letters = clip_letters()
    # Named beforehand, since the trainer numbers the letters that end words in a random order.
    trainer = BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learnt = clip_tokenizer(letters).backend_tokenizer
    learnt.train_from_iterator(texts, trainer)
    model = json.loads(learnt.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [(left, right) for left, right in model["merges"]]
    return clip_tokenizer(tokens, merges, max_length=_TOKENS)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the newsroom's dual encoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # on more, sums are made in another order and weights come out else
    train(arguments.folder, steps=arguments.steps, seed=arguments.seed)


if __name__ == "__main__":
    main()
