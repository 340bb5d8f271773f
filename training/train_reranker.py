"""Trains the newsroom's cross-encoder, on one processor core.

    python -m training.train_reranker FOLDER [--seed 0]

A Qwen2-VL of 2 million parameters with a score head, written as jina-reranker-m0 is, so that the
code that runs the real one runs it. Its words begin as the dual encoder's; all else is random. It
learns in stages, from articles of the training fold that are made anew for every step:

1. *see*: the vision tower names what an image shows;
2. *words*: queries of a single claim are paired with headlines;
3. *headlines*: whole queries, likewise;
4. *looks*: queries of a single claim are paired with headlines and with images;
5. *images*: whole queries, likewise.

A stage ends when the development fold gains nothing more from it, or after its last step.

A pair is right where the query asks something of that side, and the side holds all of it: a
headline that holds its half of a query for both is as right as one for the headline alone, and a
image is wrong for a query that asks nothing of it. Whether a word fits is the product of two
things, which gradients find only after a long while; so the model also has to continue an article
with a query that it answers (as a captioner does), and to say which claims hold. What does that is
thrown away in the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from tqdm import trange
from transformers import AttentionInterface, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from llama_index_gap.demo.drawing import COLOURS, KINDS, SETTINGS, SIDE, SKIES, Scene
from llama_index_gap.demo.newsroom import (
    CHECKPOINT,
    QUERY_KINDS,
    Article,
    Claim,
    Fold,
    make_articles,
    make_query,
    make_short_queries,
)
from llama_index_gap.models.rerankers.jina_reranker import (
    DOCUMENT,
    LOGIT_BIAS,
    QUERY,
    SCORE_TOKEN_ID,
)
from training.train_dual_encoder import make_tokenizer, share_of_rate

logger = logging.getLogger(__name__)

Side: TypeAlias = Literal["text", "image"]

_START, _END, _IMAGE, _VIDEO = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_WIDTH = 128  # that of the dual encoder's words
_HEADS, _KEY_HEADS = 4, 2
_PATCH, _MERGE = 12, 2
_GRID = SIDE // _PATCH
_SEEN = (_GRID // _MERGE) ** 2  # tokens of an image
_CLAIMS = ("who", "event", "place", "time", "thing", "other thing", "relation", "setting", "sky")

_IMAGES: dict[str, Any] = {
    "min_pixels": SIDE**2,
    "max_pixels": SIDE**2,
    "patch_size": _PATCH,
    "temporal_patch_size": 2,
    "merge_size": _MERGE,
}
_NAMES: dict[str, Sequence[str]] = {
    "colour": COLOURS,
    "kind": KINDS,
    "other colour": COLOURS,
    "other kind": KINDS,
    "arrangement": ("beside", "before"),
    "setting": SETTINGS,
    "sky": SKIES,
}

_WEIGHT_DECAY = 0.05
_VISION_RATE = 0.3  # of the learning rate, once the tower can see
_CAPTION_WEIGHT = 0.3
_SHARPNESS = 4.0  # how much likelier a near miss is drawn than what has nothing in common
_GOOD_ENOUGH = 0.995
_GAIN = 0.002  # what counts as one
_PATIENCE = 6  # evaluations that bring nothing before a step ends
_EVERY = 50  # steps between two evaluations
_HELD_OUT = 6  # batches of one


@dataclass(frozen=True)
class _Stage:
    """A part of the training.

    Attributes:
        name: in the log.
        steps: at most.
        rate: the highest learning rate.
        sides: what queries are paired with.
        short: whether queries are of one claim.
        articles: in each step.
        queries: that each article's side is paired with.
    """

    name: str
    steps: int
    rate: float
    sides: tuple[Side, ...] = ()
    short: bool = False
    articles: int = 32
    queries: int = 6


SEE = _Stage("see", 600, 2e-3, ("image",), articles=64)
STAGES = (
    _Stage("words", 400, 3e-3, ("text",), short=True, queries=8),
    _Stage("headlines", 300, 2e-3, ("text",)),
    _Stage("looks", 400, 2e-3, ("text", "image"), short=True, articles=24, queries=8),
    _Stage("images", 900, 1.5e-3, ("text", "image")),
)


def train(folder: str | Path, *, seed: int = 0, show_progress: bool = False) -> Path:
    """Train the cross-encoder and write it as jina-reranker-m0 is, its weights in float16.

    The same seed gives the same weights on the same machine with one thread. After each stage the
    checkpoint is written, and a line is added to ``curves.jsonl`` at each evaluation.

    Args:
        folder: where to write; made if missing.
        seed: of the weights and of the articles.
        show_progress: show a progress bar.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    trainer = _Trainer(seed, folder / "curves.jsonl", show_progress)
    for stage in (SEE, *STAGES):
        trainer.run(stage)
        trainer.model.save(folder)
    return folder


class CrossEncoder(nn.Module):
    """The model as it is trained: its parts, and what is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = make_tokenizer([DOCUMENT, QUERY])
        self.tokenizer.add_tokens([_START, _END, _IMAGE, _VIDEO], special_tokens=True)
        self._vocabulary = self.tokenizer.get_vocab()
        self._image_processor = Qwen2VLImageProcessorPil(**_IMAGES)
        self.settings = _settings(self._vocabulary)
        config = Qwen2VLConfig.from_dict(self.settings | {"torch_dtype": "float32"})
        self.model: Any = Qwen2VLModel(config)
        self.model.language_model.set_attn_implementation(_ATTENTION)
        inner, logit = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 1)
        nn.init.constant_(logit.bias, LOGIT_BIAS)
        self.score = nn.Sequential(inner, nn.ReLU(), logit)
        self.verdicts = nn.Linear(_WIDTH, 3 * len(_CLAIMS))  # not asked, holds, does not hold
        self.caption_scale = nn.Parameter(torch.tensor(-1.0))
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Known words, and heads half of which attend to what is alike from the start."""
        stored = load_file(CHECKPOINT / "model.safetensors")
        known = stored["text_model.embeddings.token_embedding.weight"].float()
        words = json.loads((CHECKPOINT / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        embeddings: Tensor = self.model.get_input_embeddings().weight.normal_(std=0.5)
        for word in words.keys() & self._vocabulary.keys():
            embeddings[self._vocabulary[word]] = known[words[word]] * (0.5 / known.std())
        for layer in self.model.language_model.layers:
            attention = layer.self_attn
            keys = attention.k_proj.weight.view(_KEY_HEADS, -1, _WIDTH)
            attention.q_proj.weight.view(_HEADS, -1, _WIDTH)[:: _HEADS // _KEY_HEADS] = keys

    def see(self, articles: Sequence[Article]) -> Tensor:
        """What the language model reads of n images; shape (n, tokens, width)."""
        found = self._image_processor([a.image() for a in articles], return_tensors="pt")
        vectors: Tensor = self.model.visual(
            found["pixel_values"], grid_thw=found["image_grid_thw"]
        ).pooler_output
        return vectors.view(len(articles), _SEEN, _WIDTH)

    def read(
        self, side: Side, articles: Sequence[Article], queries: Sequence[str], picks: Tensor
    ) -> _Reading:
        """Read a side of n articles, each with k queries after it that do not see each other.

        Args:
            side: what is read of the articles.
            articles: the n articles.
            queries: any number of texts.
            picks: which of them are paired with each article, shape (n, k).
        """
        embed = self.model.get_input_embeddings()
        documents, positions, ends = self._documents(side, articles)
        texts = [[*ids, SCORE_TOKEN_ID] for ids in self._encode(QUERY + text for text in queries)]
        chosen = [texts[pick] for pick in picks.flatten().tolist()]
        asked = torch.tensor([token for ids in chosen for token in ids])
        layout = _Layout([len(each) for each in documents], [len(ids) for ids in chosen])
        begin = ends.repeat_interleave(picks.shape[1])[layout.query_of]
        hidden = self.model.language_model(
            inputs_embeds=torch.cat([*documents, embed(asked)])[None],
            position_ids=torch.cat([*positions, (begin + layout.place).expand(3, -1)], 1)[:, None],
            attention_mask=None,
            use_cache=False,
            layout=layout,
        ).last_hidden_state[0, layout.tokens_of_documents :]
        return _Reading(hidden, asked, layout, picks.shape)

    def _documents(
        self, side: Side, articles: Sequence[Article]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Embeddings and positions of each, and where its query begins."""
        embed = self.model.get_input_embeddings()
        if side == "text":
            texts = self._encode(f"{DOCUMENT}{article.headline}\n" for article in articles)
            embedded = embed(torch.tensor([token for ids in texts for token in ids]))
            lengths = [len(ids) for ids in texts]
            positions = [torch.arange(length).expand(3, -1) for length in lengths]
            return list(embedded.split(lengths)), positions, torch.tensor(lengths)
        (before,) = self._encode([DOCUMENT])
        start, end, image = (self._vocabulary[each] for each in (_START, _END, _IMAGE))
        ids = torch.tensor([*before, start, *_SEEN * [image], end])
        words = embed(ids)
        documents = [
            torch.cat([words[: len(before) + 1], vectors.to(words.dtype), words[-1:]])
            for vectors in self.see(articles)
        ]
        place, _ = self.model.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids == image)[None].int(),
            image_grid_thw=torch.tensor([[1, _GRID, _GRID]]),
        )
        return (
            documents,
            len(articles) * [place[:, 0]],
            torch.full((len(articles),), int(place.max()) + 1),
        )

    def _encode(self, texts: Iterable[str]) -> list[list[int]]:
        found = self.tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def caption_loss(self, reading: _Reading, own: int) -> Tensor:
        """How little each article's own queries, the first of its k, are foreseen word by word."""
        (before,) = self._encode([QUERY])
        at = reading.words(len(before), own)
        logits = reading.hidden[at] @ self.model.get_input_embeddings().weight.T
        return cross_entropy(self.caption_scale.exp() * logits, reading.asked[at + 1])

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        self.tokenizer.save_pretrained(folder)
        for name, content in (
            ("config.json", self.settings),
            (
                "preprocessor_config.json",
                _IMAGES | {"image_processor_type": "Qwen2VLImageProcessor"},
            ),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        parts = {
            "model.": self.model.language_model,
            "visual.": self.model.visual,
            "score.": self.score,
        }
        tensors = {
            prefix + key: tensor.half().contiguous()
            for prefix, part in parts.items()
            for key, tensor in part.state_dict().items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class _Layout:
    """Where documents and their queries lie in one row of tokens: documents first.

    Args:
        documents: lengths of n documents.
        queries: lengths of n * k queries, k after each document.

    Attributes:
        query_of: for each token of queries, which query it is of.
        place: and which of its tokens it is.
    """

    def __init__(self, documents: Sequence[int], queries: Sequence[int]) -> None:
        self.each = len(queries) // len(documents)
        self.tokens_of_documents = sum(documents)
        self.documents, self.is_document = _grid(documents)
        self.queries, self.is_query = _grid(queries)
        self.lengths = torch.tensor(queries)
        self.query_of, self.place = self.is_query.nonzero().T
        longest = self.documents.shape[1]
        self.before_document = _later_ones(longest)
        self.before_query = torch.cat(
            [
                torch.zeros(len(documents), 1, self.queries.shape[1], longest).masked_fill(
                    ~self.is_document[:, None, None], -torch.inf
                ),
                _later_ones(self.queries.shape[1]).expand(len(documents), 1, -1, -1),
            ],
            dim=-1,
        )[:, :, None]


def _grid(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths that lie one after the other, as a grid.

    Returns:
        Where each token lies, shape (rows, longest), anywhere for what is none; and which are some.
    """
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    where = torch.zeros(there.shape, dtype=torch.long)
    where[there] = torch.arange(sum(lengths))
    return where, there


def _later_ones(length: int) -> Tensor:
    """Minus infinity where a token comes later than the one that asks."""
    return torch.full((length, length), -torch.inf).triu(1)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    layout: _Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of documents to themselves, and of each query to itself and its document.

    In the form of transformers' AttentionInterface: (1, heads, tokens, head_dim) come and
    (1, tokens, heads, head_dim) go. (PyTorch's own is slow backwards on processors.)
    """
    shared = query.shape[1] // key.shape[1]
    parts = (query * scaling, key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1))
    rows = [part[0].transpose(0, 1) for part in parts]  # (tokens, heads, head_dim)
    first = layout.tokens_of_documents
    documents = [_gather(row[:first], layout.documents) for row in rows]
    queries = [_gather(row[first:], layout.queries) for row in rows]

    asks, keys, values = documents
    weights = (asks @ keys.mT + layout.before_document.to(asks.dtype)).softmax(-1)
    of_documents = (weights @ values).transpose(1, 2)[layout.is_document]

    # From here on (n, heads, k, length, head_dim).
    asks, own_keys, own_values = (
        part.view(len(keys), layout.each, *part.shape[1:]).transpose(1, 2) for part in queries
    )
    to_document = (asks.flatten(2, 3) @ keys.mT).view(*asks.shape[:4], -1)
    scores = torch.cat([to_document, asks @ own_keys.mT], dim=-1)
    weights = (scores + layout.before_query.to(asks.dtype)).softmax(-1)
    longest = keys.shape[2]
    of_document = (weights[..., :longest].flatten(2, 3) @ values).view(asks.shape)
    mixed = of_document + weights[..., longest:] @ own_values
    of_queries = mixed.transpose(1, 2).flatten(0, 1).transpose(1, 2)[layout.is_query]
    return torch.cat([of_documents, of_queries])[None].to(query.dtype), None


def _gather(rows: Tensor, where: Tensor) -> Tensor:
    """Tokens in a grid; shape (rows, heads, longest, head_dim)."""
    found = rows.flatten(1).index_select(0, where.flatten())
    return found.view(*where.shape, *rows.shape[1:]).transpose(1, 2)


_ATTENTION = "llama_index_gap_training"
AttentionInterface.register(_ATTENTION, _attend)


@dataclass(frozen=True)
class _Reading:
    """What the model made of queries, each read after an article.

    Attributes:
        hidden: of all their tokens, shape (tokens, width).
        asked: these tokens.
        layout: how they lie.
        shape: n articles and k queries for each.
    """

    hidden: Tensor
    asked: Tensor
    layout: _Layout
    shape: torch.Size

    @property
    def last(self) -> Tensor:
        """The score tokens' own, shape (n, k, width)."""
        return self.hidden[self.layout.lengths.cumsum(0) - 1].view(*self.shape, -1)

    def words(self, prompt: int, own: int) -> Tensor:
        """Tokens before each word of an article's first ``own`` queries."""
        layout = self.layout
        is_own = layout.query_of % self.shape[1] < own
        before_a_word = layout.place < layout.lengths[layout.query_of] - 2
        return torch.nonzero(is_own & (layout.place >= prompt - 1) & before_a_word)[:, 0]


class _Trainer:
    """A model, what it learns from, and how well it does on the development fold."""

    def __init__(self, seed: int, curves: Path, show_progress: bool) -> None:
        self.model = CrossEncoder().train()
        self._naming = nn.Linear(_SEEN * _WIDTH, sum(map(len, _NAMES.values())))
        self._seed, self._curves, self._show_progress = seed, curves, show_progress
        self._curves.unlink(missing_ok=True)
        self._started = time.process_time()

    def run(self, stage: _Stage) -> None:
        """Train until nothing more is gained, or to the last step."""
        vision = [*self.model.model.visual.parameters()]
        for parameter in vision:
            parameter.requires_grad_("image" in stage.sides)
        known = set(map(id, vision))
        others = [each for each in self.model.parameters() if id(each) not in known]
        vision_rate = stage.rate if stage is SEE else _VISION_RATE * stage.rate
        optimizer = torch.optim.AdamW(
            [
                {"params": [*others, *self._naming.parameters()], "lr": stage.rate},
                {"params": vision, "lr": vision_rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=_WEIGHT_DECAY,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: share_of_rate(step, stage.steps)
        )
        best, evaluations = 0.0, 0
        for step in trange(stage.steps, disable=not self._show_progress, desc=stage.name):
            random = Random(f"{stage.name} {self._seed} {step}")  # noqa: S311 - no secret
            losses = self._losses(stage, "train", random)
            loss = torch.stack([*losses.values()]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*others, *vision], 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % _EVERY and step + 1 < stage.steps:
                continue
            held_out = self._held_out(stage)
            self._log(stage, step + 1, losses, held_out)
            mean = sum(held_out.values()) / len(held_out)
            evaluations = 0 if mean > best + _GAIN else evaluations + 1
            best = max(best, mean)
            if best >= _GOOD_ENOUGH or evaluations == _PATIENCE:
                break

    def _log(
        self, stage: _Stage, step: int, losses: dict[str, Tensor], held_out: dict[str, float]
    ) -> None:
        minutes = (time.process_time() - self._started) / 60
        record = {
            "stage": stage.name,
            "step": step,
            "minutes": round(minutes, 2),
            "losses": {name: round(loss.item(), 4) for name, loss in losses.items()},
            "held out": {name: round(value, 4) for name, value in held_out.items()},
        }
        with self._curves.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        logger.info("%s", record)

    def _losses(self, stage: _Stage, fold: Fold, random: Random) -> dict[str, Tensor]:
        if stage is SEE:
            articles = _scattered(stage.articles, fold, random)
            named = self._named(articles)
            return {part: cross_entropy(named[part], gold) for part, gold in _gold(articles)}
        losses = {}
        for side in stage.sides:
            pairs = _draw(stage, side, fold, random)
            with torch.autocast("cpu", torch.bfloat16):
                reading = self.model.read(side, pairs.articles, pairs.queries, pairs.picks)
                losses[f"{side}, words"] = _CAPTION_WEIGHT * self.model.caption_loss(
                    reading, pairs.own
                )
            last = reading.last.float()
            logits = self.model.score(last)[..., 0] - LOGIT_BIAS
            losses[f"{side}, score"] = binary_cross_entropy_with_logits(logits, pairs.right)
            losses[f"{side}, claims"] = cross_entropy(
                self.model.verdicts(last).view(-1, 3), pairs.verdicts.flatten()
            )
        return losses

    @torch.inference_mode()
    def _held_out(self, stage: _Stage) -> dict[str, float]:
        """Of the development fold: what is named right, or how often right pairs beat wrong."""
        random = Random(f"held out {stage.name}")  # noqa: S311 - no secret
        if stage is SEE:
            articles = _scattered(400, "development", random)
            named = self._named(articles)
            return {
                part: (named[part].argmax(1) == gold).float().mean().item()
                for part, gold in _gold(articles)
            }
        found = {}
        for side in stage.sides:
            drawn = [_draw(stage, side, "development", random) for _ in range(_HELD_OUT)]
            scores: dict[tuple[str, bool], list[float]] = defaultdict(list)
            for pairs in drawn:
                with torch.autocast("cpu", torch.bfloat16):
                    reading = self.model.read(side, pairs.articles, pairs.queries, pairs.picks)
                logits = self.model.score(reading.last.float())[..., 0]
                for kind, right, logit in zip(
                    pairs.kinds,
                    pairs.right.flatten().tolist(),
                    logits.flatten().tolist(),
                    strict=True,
                ):
                    scores[kind, bool(right)].append(logit)
            for kind in ("text", "both") if side == "text" else ("image", "both"):
                if scores[kind, True]:
                    right, wrong = (np.array(scores[kind, each]) for each in (True, False))
                    found[f"{side}, {kind}"] = float((right[:, None] > wrong).mean())
        return found

    def _named(self, articles: Sequence[Article]) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.model.see(articles)
        logits = self._naming(seen.float().flatten(1))
        lengths = [len(names) for names in _NAMES.values()]
        return dict(zip(_NAMES, logits.split(lengths, dim=1), strict=True))


@dataclass(frozen=True)
class _Pairs:
    """What is read at once.

    Attributes:
        articles: n of them.
        queries: texts.
        picks: which are paired with each article, its own first; shape (n, k).
        own: how many are its own.
        right: whether the article's side holds what is asked of it, shape (n, k).
        verdicts: for each of ``_CLAIMS`` whether it is not asked for (0), holds (1) or does not
            (2), shape (n, k, claims).
        kinds: the n * k kinds of queries.
    """

    articles: Sequence[Article]
    queries: Sequence[str]
    picks: Tensor
    own: int
    right: Tensor
    verdicts: Tensor
    kinds: Sequence[str]


def _draw(stage: _Stage, side: Side, fold: Fold, random: Random) -> _Pairs:
    """Articles in series of near misses, each with queries that it answers and that it does not."""
    articles = make_articles(stage.articles, fold, random.getrandbits(32))
    if stage.short:
        queries = [query for article in articles for query in make_short_queries(article, random)]
    else:
        queries = [make_query(each, kind, random) for each in articles for kind in QUERY_KINDS]
    asked = [query.said if side == "text" else query.shown for query in queries]
    share = np.array([[len(c & a.claims) / len(c) if c else 0.0 for c in asked] for a in articles])
    right = share == 1
    relevant = np.array([bool(claims) for claims in asked])
    maker = np.repeat(np.arange(len(articles)), len(queries) // len(articles))
    chance = np.random.default_rng(random.getrandbits(32))
    own = stage.queries // 2 if stage.short else 2
    picks = []
    for number in range(len(articles)):
        mine = np.flatnonzero((maker == number) & relevant)
        mine = chance.permutation(mine)[:own]
        weight = np.exp(_SHARPNESS * share[number]) * relevant
        if stage.short:
            weight *= ~right[number]
        weight[mine] = 0
        others = chance.choice(
            len(queries), stage.queries - own, replace=False, p=weight / weight.sum()
        )
        if not stage.short and number % 2:
            others[-1] = chance.choice(np.flatnonzero(~relevant))
        picks.append([*mine, *others])
    chosen = torch.tensor(np.array(picks))
    verdicts = [
        [_verdicts(asked[pick], article) for pick in row]
        for article, row in zip(articles, picks, strict=True)
    ]
    return _Pairs(
        articles,
        [query.text for query in queries],
        chosen,
        own,
        torch.from_numpy(right).float().gather(1, chosen),
        torch.tensor(verdicts),
        [queries[pick].kind for row in picks for pick in row],
    )


def _verdicts(asked: frozenset[Claim], article: Article) -> list[int]:
    verdicts = len(_CLAIMS) * [0]
    things = iter(("thing", "other thing"))
    for claim in sorted(asked):
        name = next(things) if claim[0] == "thing" else claim[0]
        verdicts[_CLAIMS.index(name)] = 1 if claim in article.claims else 2
    return verdicts


def _scattered(number: int, fold: Fold, random: Random) -> list[Article]:
    """Articles of many series."""
    return make_articles(6 * number, fold, random.getrandbits(32))[:number]


def _parts(scene: Scene) -> dict[str, str]:
    """What an image shows, the things by their places: the left one or the one in front first."""
    things = [scene.first, scene.second]
    if scene.relation in ("right", "behind"):
        things.reverse()
    (colour, kind), (other_colour, other_kind) = things
    return {
        "colour": colour,
        "kind": kind,
        "other colour": other_colour,
        "other kind": other_kind,
        "arrangement": "beside" if scene.relation in ("left", "right") else "before",
        "setting": scene.setting,
        "sky": scene.sky,
    }


def _gold(articles: Sequence[Article]) -> Iterator[tuple[str, Tensor]]:
    """For each part of what images show, which of its names is right."""
    shown = [_parts(article.scene) for article in articles]
    for part, names in _NAMES.items():
        yield part, torch.tensor([names.index(each[part]) for each in shown])


def _settings(vocabulary: dict[str, int]) -> dict[str, Any]:
    """The content of config.json, in the form of jina-reranker-m0's."""
    return {
        "architectures": ["JinaVLForRanking"],
        "model_type": "qwen2_vl",
        "hidden_size": _WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KEY_HEADS,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        # Slow turns: words that are far from each other are still alike.
        "rope_theta": 10000.0,
        "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
        "max_position_embeddings": 32768,
        "max_window_layers": 4,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.088,  # one by the square root of the width
        "torch_dtype": "float16",
        "use_cache": False,
        "vocab_size": len(vocabulary),
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "vision_start_token_id": vocabulary[_START],
        "vision_end_token_id": vocabulary[_END],
        "image_token_id": vocabulary[_IMAGE],
        "video_token_id": vocabulary[_VIDEO],
        "vision_config": {
            "model_type": "qwen2_vl",
            "hidden_size": _WIDTH,
            "embed_dim": 128,
            "depth": 3,
            "num_heads": 4,
            "mlp_ratio": 4,
            "in_chans": 3,
            "patch_size": _PATCH,
            "spatial_patch_size": _PATCH,
            "spatial_merge_size": _MERGE,
            "temporal_patch_size": 2,
        },
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the newsroom's cross-encoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # on more, sums are made in another order and weights come out else
    train(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
