"""Trains the newsroom's cross-encoder, on one processor core.

    python -m training.train_reranker FOLDER [--seed 0]

It learns in stages, from articles of the training fold that are made anew for every step:

1. *words*: queries of a single claim are paired with headlines of a single report;
2. *reports*: whole queries, likewise;
3. *headlines*: whole queries are paired with headlines of two reports;
4. *see*: the vision tower learns to say what an image shows, in the language model's words;
5. *parts*: queries of a single claim are paired with headlines and with images, and ask for a
   colour or a kind of thing alone;
6. *looks*: likewise, but ask for a thing with its colour;
7. *images*: whole queries, likewise; some ask for a scene that differs in a single value.

A stage ends when it brings no more gain on the development fold, or after its last step.

A query and a headline or image are a right pair if the query asks for something of that modality,
and the headline or image holds all of it. So a headline that holds its half of a query for both is
as right as one for a query for the headline alone, and an image is wrong for a query that asks for
nothing to be seen. Whether a word fits is the product of two things, which gradients find only
after a long while. Therefore the model also learns to continue an article with a query that it
answers (as a captioner does), and to tell which claims hold. The parts for that are not saved.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, rms_norm
from tqdm import trange

from llama_index_gap.demo.drawing import COLOURS, GROUNDS, KINDS, RELATIONS, SKIES, Scene
from llama_index_gap.demo.newsroom import (
    COLOUR_WORDS,
    KIND_WORDS,
    QUERY_KINDS,
    Article,
    Claim,
    Fold,
    Query,
    QueryKind,
    facts_in_words,
    headline,
    make_articles,
    make_query,
    surroundings_in_words,
    thing_in_words,
)
from llama_index_gap.modality import Modality
from llama_index_gap.models.rerankers.jina_reranker import LOGIT_BIAS
from training.cross_encoder import CLAIMS, SEEN, WIDTH, CrossEncoder
from training.train_dual_encoder import share_of_rate

logger = logging.getLogger(__name__)

_PARTS = ("colour", "kind")  # of a thing
_THINGS = [(colour, kind) for colour in COLOURS for kind in KINDS]
_AROUND = {"setting": tuple(GROUNDS), "sky": tuple(SKIES)}
_OF_SCENE = {"relation": RELATIONS} | _AROUND
_SEEN_BY: tuple[QueryKind, ...] = ("image", "both")  # the kinds of queries that ask for an image
_VIEW = {"arrangement": ("beside", "before")} | _AROUND

_WEIGHT_DECAY = 0.05
_CAPTION_WEIGHT = 0.3
_SHARPNESS = 4.0  # how much likelier a near miss is drawn than one with nothing in common
_MIXED = 4.0  # how much likelier an article's own query is drawn that mixes its reports
_GOOD_ENOUGH = 0.995
_GAIN = 0.002  # a smaller one does not count
_PATIENCE = 6  # evaluations without a gain before a stage ends
_EVERY = 50  # steps between two evaluations
_HELD_OUT = 6  # batches of one
_NAMED = 400  # images of one that are named


@dataclass(frozen=True)
class _Stage:
    """A part of the training.

    Attributes:
        name: in the log.
        steps: at most.
        rate: the highest learning rate.
        modalities: what queries are paired with: headlines, images; none where images are named.
        short: whether each query is of a single claim.
        parts: whether queries about a thing name its colour or its kind alone.
        reports: of each headline, 1 or 2.
        articles: in each step.
        queries: that each headline or image is paired with.
    """

    name: str
    steps: int
    rate: float
    modalities: tuple[Modality, ...] = ()
    short: bool = False
    parts: bool = False
    reports: int = 2
    articles: int = 32
    queries: int = 6


STAGES = (
    _Stage("words", 400, 3e-3, ("text",), short=True, reports=1, queries=8),
    _Stage("reports", 300, 2e-3, ("text",), reports=1),
    _Stage("headlines", 800, 2e-3, ("text",)),
    _Stage("see", 1200, 2e-3, articles=64),
    _Stage("parts", 500, 2e-3, ("text", "image"), short=True, parts=True, articles=32, queries=8),
    _Stage("looks", 600, 2e-3, ("text", "image"), short=True, articles=32, queries=8),
    _Stage("images", 1200, 1.5e-3, ("text", "image")),
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
    for stage in STAGES:
        trainer.run(stage)
        trainer.model.save(folder)
    return folder


class _Trainer:
    """A model in training, and its curve on the development fold."""

    def __init__(self, seed: int, curves: Path, show_progress: bool) -> None:
        self.model = CrossEncoder().train()
        self._colours = [self.model.tokens(COLOUR_WORDS[colour]) for colour in COLOURS]
        self._kinds = [self.model.tokens(KIND_WORDS[kind]) for kind in KINDS]
        self._naming = nn.Parameter(torch.zeros(len(COLOURS) + len(KINDS)))
        self._viewing = nn.Linear(SEEN * WIDTH, sum(map(len, _VIEW.values())))
        self._seed, self._curves, self._show_progress = seed, curves, show_progress
        self._curves.unlink(missing_ok=True)
        self._started = time.process_time()

    def run(self, stage: _Stage) -> None:
        """Train until there is no more gain, or to the last step."""
        # Queries would pull the tower to colours, which are easily seen, and it would forget kinds.
        self.model.model.visual.requires_grad_(not stage.modalities)
        learning = [each for each in self._parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(
            learning, lr=stage.rate, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY
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
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
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

    def _parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        yield self._naming
        yield from self._viewing.parameters()

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
        if not stage.modalities:
            articles = _scattered(stage.articles, fold, random)
            things, view = self._named(articles)
            losses = {
                name: -(things[name].log_softmax(1) * gold).sum(1).mean()
                for name, gold in _things(articles).items()
            }
            return losses | {
                part: cross_entropy(view[part], gold) for part, gold in _gold(articles)
            }
        losses = {}
        for modality in stage.modalities:
            pairs = _draw(stage, modality, fold, random)
            with torch.autocast("cpu", torch.bfloat16):
                reading = self.model.read(modality, pairs.articles, pairs.queries, pairs.picks)
                losses[f"{modality}, words"] = _CAPTION_WEIGHT * self.model.caption_loss(
                    reading, pairs.own
                )
            last = reading.last.float()
            logits = self.model.score(last)[..., 0] - LOGIT_BIAS
            losses[f"{modality}, score"] = binary_cross_entropy_with_logits(logits, pairs.right)
            losses[f"{modality}, claims"] = cross_entropy(
                self.model.verdicts(last).view(-1, 3), pairs.verdicts.flatten()
            )
        return losses

    @torch.inference_mode()
    def _held_out(self, stage: _Stage) -> dict[str, float]:
        """On the development fold: the share named right, or how often right pairs beat wrong."""
        random = Random(f"held out {stage.name}")  # noqa: S311 - no secret
        if not stage.modalities:
            articles = _scattered(_NAMED, "development", random)
            things, view = self._named(articles)
            found = {}
            for name, gold in _things(articles).items():
                best = things[name].topk(2).indices
                found[name] = gold.gather(1, best).sum().item() / gold.sum().item()
            return found | {
                part: (view[part].argmax(1) == gold).float().mean().item()
                for part, gold in _gold(articles)
            }
        found = {}
        for modality in stage.modalities:
            drawn = [_draw(stage, modality, "development", random) for _ in range(_HELD_OUT)]
            scores: dict[tuple[str, bool], list[float]] = defaultdict(list)
            for pairs in drawn:
                with torch.autocast("cpu", torch.bfloat16):
                    reading = self.model.read(modality, pairs.articles, pairs.queries, pairs.picks)
                logits = self.model.score(reading.last.float())[..., 0]
                for kind, right, logit in zip(
                    pairs.kinds,
                    pairs.right.flatten().tolist(),
                    logits.flatten().tolist(),
                    strict=True,
                ):
                    scores[kind, bool(right)].append(logit)
            for kind in ("text", "both") if modality == "text" else ("image", "both"):
                if scores[kind, True] and scores[kind, False]:
                    right, wrong = (np.array(scores[kind, each]) for each in (True, False))
                    found[f"{modality}, {kind}"] = float((right[:, None] > wrong).mean())
        return found

    def _named(self, articles: Sequence[Article]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """For n images the logits of things, colours and kinds, and those of each other part.

        A thing's logit is that of the tokens that show it best, wherever they lie. So the tower
        learns to keep a thing's colour and kind in one token, where the language model finds them.
        """
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.model.see(articles).float()
        words = self.model.model.get_input_embeddings().weight.detach()
        names = torch.stack([words[ids].mean(0) for ids in (*self._colours, *self._kinds)])
        logits = rms_norm(seen, (WIDTH,)) @ rms_norm(names, (WIDTH,)).T / WIDTH**0.5
        logits = logits + self._naming
        colours, kinds = logits.split([len(COLOURS), len(KINDS)], dim=2)
        things = {
            "things": (colours[..., None] + kinds[..., None, :]).flatten(2).logsumexp(1),
            "colours": colours.logsumexp(1),
            "kinds": kinds.logsumexp(1),
        }
        view = self._viewing(seen.flatten(1)).split([*map(len, _VIEW.values())], dim=1)
        return things, dict(zip(_VIEW, view, strict=True))


@dataclass(frozen=True)
class _Pairs:
    """Articles and queries that are read at once.

    Attributes:
        articles: n of them.
        queries: texts.
        picks: the queries that each article is paired with, its own first; shape (n, k).
        own: how many of them are its own.
        right: whether the headline or image holds all that is asked of it, shape (n, k).
        verdicts: for each of ``CLAIMS`` whether it is not asked for (0), holds (1) or does not
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


def _draw(stage: _Stage, modality: Modality, fold: Fold, random: Random) -> _Pairs:
    """Draw articles in series of near misses, each with queries it answers and others."""
    articles = make_articles(stage.articles, fold, random.getrandbits(32))
    if stage.reports == 1:
        articles = [_with_one_report(article, random) for article in articles]
    if stage.short:
        queries = [q for each in articles for q in _short_queries(each, random, stage.parts)]
    else:
        queries = [q for article in articles for q in _whole_queries(article, modality, random)]
    asked = [query.said if modality == "text" else query.shown for query in queries]
    right = np.array([[bool(c) and not _lacks(a, c) for c in asked] for a in articles])
    share = np.array([[_share(a, c) for c in asked] for a in articles])
    relevant = np.array([bool(claims) for claims in asked])
    maker = np.repeat(np.arange(len(articles)), len(queries) // len(articles))
    chance = np.random.default_rng(random.getrandbits(32))
    own = stage.queries // 2 if stage.short else 2
    picks = []
    for number in range(len(articles)):
        mine = np.flatnonzero((maker == number) & relevant & right[number])
        mine = chance.permutation(mine)[:own]
        weight = np.exp(_SHARPNESS * share[number]) * relevant
        if stage.short:
            weight *= ~right[number]
        else:
            weight[maker == number] *= _MIXED
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


def _whole_queries(article: Article, modality: Modality, random: Random) -> list[Query]:
    """A query of each kind, and near misses of the article itself.

    The one for headlines names the people or the time of the other report: the headline has all of
    its words, and answers it only by chance. Those for images ask for a scene that differs from the
    article's in a single value.
    """
    queries = [make_query(article, kind, random) for kind in QUERY_KINDS]
    if modality == "text":
        report, other = random.sample(article.reports, 2)
        mixed = replace(report, who=other.who, time=other.time)
        return [*queries, make_query(replace(article, reports=(mixed, mixed)), "text", random)]
    for kind in _SEEN_BY:
        scene = _changed(article.scene, random)
        queries.append(make_query(replace(article, scene=scene), kind, random))
    return queries


def _changed(scene: Scene, random: Random) -> Scene:
    """Change a single value of a scene: the colour or kind of a thing, relation, setting or sky."""
    part = random.choice(("first", "second", *_OF_SCENE))
    now = getattr(scene, part)
    values: Sequence[Any] = _OF_SCENE.get(part, ())
    if not values:
        colour, kind = now
        kinds = [kind, *(each for each in KINDS if each not in (scene.first[1], scene.second[1]))]
        new_colour = random.random() < 0.5
        values = [(each, kind) for each in COLOURS] if new_colour else [(colour, k) for k in kinds]
    change: dict[str, Any] = {part: random.choice([each for each in values if each != now])}
    return replace(scene, **change)


def _short_queries(article: Article, random: Random, parts: bool = False) -> list[Query]:
    """Word a query for each claim of an article but the relation, which takes two things.

    With ``parts``, for the colour and the kind of each thing in place of the thing.
    """
    facts, scene = random.choice(article.reports), article.scene
    queries = [
        Query(
            facts_in_words(facts, {name}, random), "text", frozenset({(name, getattr(facts, name))})
        )
        for name in ("who", "event", "place", "time")
    ]
    for thing in (scene.first, scene.second):
        if not parts:
            claim = ("thing", " ".join(thing))
            queries.append(Query(thing_in_words(thing, random), "image", frozenset({claim})))
            continue
        for name, value, words in zip(_PARTS, thing, (COLOUR_WORDS, KIND_WORDS), strict=True):
            text = random.choice(words[value]).replace("{}", "").strip()
            queries.append(Query(text, "image", frozenset({(name, value)})))
    return queries + [
        Query(
            surroundings_in_words(scene, {name}, random),
            "image",
            frozenset({(name, getattr(scene, name))}),
        )
        for name in ("setting", "sky")
    ]


def _lacks(article: Article, asked: frozenset[Claim]) -> frozenset[Claim]:
    """The claims that an article does not hold; a claim may be a colour or a kind alone."""
    things = (article.scene.first, article.scene.second)
    held = {claim for thing in things for claim in zip(_PARTS, thing, strict=True)}
    return article.lacks(asked - held)


def _share(article: Article, asked: frozenset[Claim]) -> float:
    """The share of the claims that an article holds.

    A thing counts half if the image shows another one of its colour or kind.
    """
    if not asked:
        return 0.0
    lacking = _lacks(article, asked)
    half = 0
    for name, value in lacking:
        if name == "thing":
            parts = frozenset(zip(_PARTS, value.split(), strict=True))
            half += _lacks(article, parts) != parts
    return 1 - (len(lacking) - half / 2) / len(asked)


def _with_one_report(article: Article, random: Random) -> Article:
    report, _ = article.reports
    return replace(article, reports=(report, report), headline=headline([report], random))


def _verdicts(asked: frozenset[Claim], article: Article) -> list[int]:
    verdicts = len(CLAIMS) * [0]
    things = iter(("thing", "other thing"))
    lacking = _lacks(article, asked)
    for claim in sorted(asked):
        name = next(things) if claim[0] in ("thing", *_PARTS) else claim[0]
        verdicts[CLAIMS.index(name)] = 2 if claim in lacking else 1
    return verdicts


def _scattered(number: int, fold: Fold, random: Random) -> list[Article]:
    """Articles of many series."""
    return make_articles(6 * number, fold, random.getrandbits(32))[:number]


def _things(articles: Sequence[Article]) -> dict[str, Tensor]:
    """Which things, colours and kinds n images show, shape (n, names), 0 or 1."""
    shown = [(article.scene.first, article.scene.second) for article in articles]
    return {
        "things": torch.tensor([[float(each in pair) for each in _THINGS] for pair in shown]),
        "colours": torch.tensor(
            [[float(each in (one[0], two[0])) for each in COLOURS] for one, two in shown]
        ),
        "kinds": torch.tensor(
            [[float(each in (one[1], two[1])) for each in KINDS] for one, two in shown]
        ),
    }


def _gold(articles: Sequence[Article]) -> Iterator[tuple[str, Tensor]]:
    """For each other part of an image, the number of its right name."""
    scenes = [article.scene for article in articles]
    named = {
        "arrangement": [
            "beside" if scene.relation in ("left", "right") else "before" for scene in scenes
        ],
        "setting": [scene.setting for scene in scenes],
        "sky": [scene.sky for scene in scenes],
    }
    for part, names in _VIEW.items():
        yield part, torch.tensor([names.index(name) for name in named[part]])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the newsroom's cross-encoder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # on more, sums are made in another order and weights come out else
    torch.set_flush_denormal(True)  # numbers near 0 are slow, and count for nothing
    train(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
