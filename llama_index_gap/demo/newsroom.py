"""A made-up newsroom: articles of a headline and an image, and queries that need one or both.

A headline reports two events, and names what cannot be seen of each (who, event, place, time). Its
image shows what the headline does not say (two things, their colours and places, setting, sky).
Everything is drawn and worded from a seed, so it is free of rights, can have any size, and the
articles that answer a query are known by construction.

Articles come in series of near misses that differ in an attribute or two. Both reports of a
headline are of one series. So many a headline has all the words of an answer and is none: it
reports the event in the place that is asked for, and the people that are asked for elsewhere. The
folds share no pair of event and place and no scene, so a model that was trained on one fold can be
tested on another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, count, islice, product
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias, TypeVar

from PIL import Image

from llama_index_gap.demo.drawing import RELATIONS, Scene, draw
from llama_index_gap.errors import InvalidValueError

Fold: TypeAlias = Literal["train", "development", "test"]
QueryKind: TypeAlias = Literal["text", "image", "both"]
ImageQueryKind: TypeAlias = Literal["image alone", "image and text"]
Claim: TypeAlias = tuple[str, str]  # what is said or shown: an attribute and its value
_Item = TypeVar("_Item", "tuple[Facts, Facts]", Scene)

CHECKPOINT = Path(__file__).parent / "checkpoint"  # the dual encoder that was trained on it
RERANKER = Path(__file__).parent / "reranker"  # and the cross-encoder
QUERY_KINDS: tuple[QueryKind, ...] = ("text", "image", "both")
IMAGE_QUERY_KINDS: tuple[ImageQueryKind, ...] = ("image alone", "image and text")
_SERIES = 16  # articles of one series, at most
_FEWEST = 100  # articles that queries are made for
_MISTYPED = 0.5  # of the queries

# The words of each notion: those of headlines, and those of queries; only some are in both.
_WHO = {
    "nurses": (("nurses", "ward staff"), ("nurses", "hospital workers", "carers")),
    "farmers": (("farmers", "growers"), ("farmers", "country folk", "dairymen")),
    "teachers": (("teachers", "school staff"), ("teachers", "tutors", "educators")),
    "students": (("students", "freshers"), ("students", "undergraduates", "learners")),
    "dockers": (("dockers", "quay hands"), ("dockers", "stevedores", "port labourers")),
    "bakers": (("bakers", "bread makers"), ("bakers", "pastry cooks", "confectioners")),
    "pensioners": (("pensioners", "seniors"), ("pensioners", "retired people", "the elderly")),
    "firefighters": (("firefighters", "fire crews"), ("firefighters", "the fire brigade")),
    "actors": (("actors", "stage stars"), ("actors", "theatre players", "thespians")),
    "musicians": (("musicians", "buskers"), ("musicians", "an orchestra", "fiddlers")),
    "lawyers": (("lawyers", "barristers"), ("lawyers", "solicitors", "attorneys")),
    "tailors": (("tailors", "dressmakers"), ("tailors", "clothiers", "sewing folk")),
}
_EVENT = {
    "strike": (("walk out", "down tools"), ("strike", "industrial action", "work stoppage")),
    "award": (("win top honours", "take the grand prize"), ("award", "distinction", "medal")),
    "cuts": (("lose their grant", "face budget cuts"), ("budget cuts", "savings", "lost funding")),
    "charity": (("raise money for orphans", "hold a jumble sale"), ("charity", "fund-raising")),
    "protest": (("march against rents", "take to the squares"), ("protest", "demonstration")),
    "vote": (("elect a new chair", "go to the polls"), ("election", "ballot", "vote")),
    "trial": (("win in court", "sue their landlord"), ("lawsuit", "court case", "verdict")),
    "record": (("set a record", "beat the old best"), ("record", "best ever result")),
    "theft": (("report a burglary", "lose silver to thieves"), ("theft", "break-in", "robbery")),
    "hoax": (("fall for a hoax", "are fooled by a joker"), ("hoax", "prank", "practical joke")),
    "merger": (("join forces with rivals", "unite two guilds"), ("merger", "amalgamation")),
    "quarrel": (("quarrel over rules", "fall out over dues"), ("dispute", "argument", "feud")),
    "feast": (("hold annual feast", "dance all day"), ("celebration", "party", "banquet")),
    "illness": (("catch the flu", "fall ill in dozens"), ("outbreak", "epidemic", "infection")),
    "robot": (("test a robot", "try out a talking machine"), ("robot", "automation", "new device")),
    "petition": (("hand in a petition", "sign open letter"), ("petition", "collected signatures")),
    "treasure": (("find buried coins", "dig up a hoard"), ("treasure trove", "hidden gold")),
    "boycott": (("shun the new bank", "call for a boycott"), ("boycott", "refusal to buy")),
    "course": (("learn first aid", "take evening classes"), ("training", "lessons", "course")),
    "chess": (("win the chess cup", "checkmate the champion"), ("chess", "board game title")),
    "pay": (("secure higher wages", "get a rise"), ("pay rise", "better salaries")),
    "closure": (("lose their club house", "shut up shop"), ("closure", "shutdown", "end of trade")),
    "apology": (("say sorry", "admit a mistake"), ("apology", "regrets", "confession")),
    "visit": (("welcome a princess", "host a royal guest"), ("royal visit", "state visit")),
}
_PLACE = (
    "Arnbeck", "Brindale", "Corvane", "Dunmarsh", "Eskholm", "Farrowby", "Glenwick", "Hartsea",
    "Ilverton", "Jorvale", "Keldon", "Lornmouth", "Marrowick", "Netherlow", "Orleth", "Pennacre",
    "Quarndon", "Rushmere", "Selbrook", "Tarnfold", "Ulversby", "Vexholme", "Wrenfield", "Yarrowby",
    "Zelden", "Ambleforth", "Birchester", "Cawdale", "Drumlow", "Elderby", "Fennick", "Gorsley",
    "Hexworth", "Inchmore", "Kirrin", "Lathom", "Mossgate", "Ottermouth", "Ravensby", "Stellwick",
)  # fmt: skip
_TIME = {
    "monday": (("on Monday", "this Monday"), ("on Monday", "at the start of the week")),
    "friday": (("on Friday", "this Friday"), ("on Friday", "before the weekend")),
    "today": (("today", "this morning"), ("today", "right now", "the latest")),
    "january": (("in January",), ("in January", "in the new year", "in the first month")),
    "easter": (("at Easter", "on Good Friday"), ("at Easter", "in Holy Week")),
    "summer": (("in July", "in August"), ("in summer", "during the long holidays")),
    "autumn": (("in October", "in November"), ("in autumn", "in the fall")),
    "christmas": (("at Christmas", "on Boxing Day"), ("at Christmas", "in the festive season")),
    "last year": (("last year", "a year ago"), ("last year", "twelve months ago")),
    "next year": (("next year", "a year from now"), ("next year", "in the coming year")),
}

# What is seen has words in queries only.
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "amber", "tangerine"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "lime"),
    "blue": ("blue", "azure", "cobalt"),
    "purple": ("purple", "violet", "mauve"),
    "white": ("white", "ivory", "snow-white"),
    "black": ("black", "jet-black", "ebony"),
}
KIND_WORDS = {
    "balloon": ("{} balloon", "{} hot-air balloon", "{} airship"),
    "boat": ("{} boat", "{} ship", "{} yacht", "{} vessel"),
    "bus": ("{} bus", "{} coach", "{} omnibus"),
    "car": ("{} car", "{} motor car", "{} automobile"),
    "house": ("{} house", "{} cottage", "{} home"),
    "lighthouse": ("{} lighthouse", "{} beacon"),
    "person": ("person in {}", "man wearing {}", "stranger dressed in {}"),
    "tent": ("{} tent", "{} wigwam", "{} canvas shelter"),
    "tree": ("{} tree", "tree with {} leaves", "tree of {} foliage"),
    "windmill": ("{} windmill", "{} mill"),
}
_LEFT = (
    "{0} left of {1}",
    "{0} to the left of {1}",
    "{1} right of {0}",
    "{1} on the right of {0}",
)
_FRONT = (
    "{0} in front of {1}",
    "{0} partly hiding {1}",
    "{1} behind {0}",
    "{1} half hidden by {0}",
)
_SETTING = {
    "coast": ("by the sea", "at the coast", "on the beach"),
    "meadow": ("in a meadow", "on the grass", "on a lawn"),
    "street": ("in a city street", "on the road", "in town"),
    "mountains": ("in the mountains", "in the snow", "below white peaks"),
    "desert": ("in the desert", "among dunes", "in dry sands"),
    "field": ("on a ploughed field", "on brown soil", "between furrows"),
}
_SKY = {
    "day": ("in sunshine", "under a clear sky", "on a bright day"),
    "sunset": ("at sunset", "at dusk", "in the evening glow"),
    "night": ("at night", "under the stars", "by moonlight"),
    "rain": ("in the rain", "under grey clouds", "in wet weather"),
}

_HEADLINES = (
    "{who} {event} in {place} {time}",
    "{time}, {who} {event} in {place}",
    "{place}: {who} {event} {time}",
)
_BOTH = ("{0}, with a picture of {1}", "{0}, pictured with {1}", "{1}, in a report on {0}")

_FACTS = ("who", "event", "place", "time")


@dataclass(frozen=True)
class Facts:
    """What a headline reports of an event."""

    who: str
    event: str
    place: str
    time: str

    @cached_property
    def claims(self) -> frozenset[Claim]:
        """The same as claims."""
        return frozenset((name, getattr(self, name)) for name in _FACTS)


@dataclass(frozen=True)
class Article:
    """A headline with its image.

    Attributes:
        id: its name in the newsroom.
        reports: what the headline says of each of two events.
        scene: what the image shows.
        headline: the reports in words.
    """

    id: str
    reports: tuple[Facts, Facts]
    scene: Scene
    headline: str

    @cached_property
    def shown(self) -> frozenset[Claim]:
        """All that the image shows."""
        things = {("thing", " ".join(thing)) for thing in (self.scene.first, self.scene.second)}
        seen = {(name, getattr(self.scene, name)) for name in ("relation", "setting", "sky")}
        return frozenset(things | seen)

    def lacks(self, asked: frozenset[Claim]) -> frozenset[Claim]:
        """Those of the claims that it does not hold; a single report must hold all facts.

        Where both reports lack some of the facts, it is what the better report lacks.
        """
        facts = frozenset(claim for claim in asked if claim[0] in _FACTS)
        unsaid = min((facts - report.claims for report in self.reports), key=len)
        return unsaid | (asked - facts - self.shown)

    def image(self) -> Image.Image:
        """Draw the scene; the article's id decides what the scene leaves open."""
        return draw(self.scene, self.id)


@dataclass(frozen=True)
class Query:
    """A question to the newsroom.

    Attributes:
        text: the question in words; empty for an image alone.
        kind: whether it needs the headline, the image, or both; or that it asks with an image.
        claims: all that it asks for.
        scene: what its image shows; None if it has none.
    """

    text: str
    kind: QueryKind | ImageQueryKind
    claims: frozenset[Claim]
    scene: Scene | None = None

    @cached_property
    def said(self) -> frozenset[Claim]:
        """The claims that the headline must hold."""
        return frozenset(claim for claim in self.claims if claim[0] in _FACTS)

    @cached_property
    def shown(self) -> frozenset[Claim]:
        """The claims that the image must hold."""
        return self.claims - self.said

    def is_answered_by(self, article: Article) -> bool:
        """Whether the article says and shows all that the query asks for."""
        says = any(self.said <= report.claims for report in article.reports)
        return says and self.shown <= article.shown


def make_articles(number: int, fold: Fold, seed: int) -> list[Article]:
    """Make articles in series of near misses; no two say the same or show the same.

    Args:
        number: how many.
        fold: which pairs of event and place, and which scenes, they may have.
        seed: the same seed gives the same articles on every machine.
    """
    random = Random(f"articles {fold} {seed}")  # noqa: S311 - no secret
    reports = _distinct(_report_series(fold, random), number)
    scenes = _distinct(_scene_series(fold, random), number)
    random.shuffle(scenes)  # near misses in words are not those in images
    return [
        Article(f"{fold}-{seed}-{index:04}", said, shown, headline(said, random))
        for index, (said, shown) in enumerate(zip(reports, scenes, strict=True))
    ]


def make_queries(articles: Sequence[Article], per_kind: int, seed: int) -> list[Query]:
    """Word queries, each about an article drawn at random, which answers it.

    In a query for both, each half is answered by other articles too.

    Args:
        articles: those to ask about.
        per_kind: queries of each kind.
        seed: the same seed gives the same queries on every machine.

    Raises:
        ValueError: there are too few articles for near misses.
    """
    if len(articles) < _FEWEST:
        raise InvalidValueError(
            f"{len(articles)} articles have too few near misses to ask for; make {_FEWEST} or more"
        )
    random = Random(f"queries {seed}")  # noqa: S311 - no secret
    queries: list[Query] = []
    for kind in QUERY_KINDS:
        drawn = (make_query(random.choice(articles), kind, random) for _ in count())
        if kind == "both":
            drawn = (query for query in drawn if _needs_both(query, articles))
        queries += islice(drawn, per_kind)
    return queries


def make_image_queries(articles: Sequence[Article], per_kind: int, seed: int) -> list[Query]:
    """Ask with images, each of an article's scene, for articles with the same scene.

    Every second query also names two facts of a report of the article.

    Args:
        articles: those to ask about.
        per_kind: queries of each kind.
        seed: the same seed gives the same queries on every machine.
    """
    random = Random(f"image queries {seed}")  # noqa: S311 - no secret
    queries = []
    for kind in IMAGE_QUERY_KINDS:
        for _ in range(per_kind):
            article = random.choice(articles)
            facts = random.choice(article.reports)
            said = set(random.sample(_FACTS, 2)) if kind == "image and text" else set()
            text = facts_in_words(facts, said, random) if said else ""
            asked = {claim for claim in facts.claims if claim[0] in said}
            queries.append(Query(text, kind, article.shown | asked, article.scene))
    return queries


def make_query(article: Article, kind: QueryKind, random: Random) -> Query:
    """Word a query that an article answers.

    A query for the headline names the event, the place, and who or when or both, all of one report.
    A query for the image names both things, their relation, and the setting or the sky or both. A
    query for both names two facts of one report and one thing with its setting or sky. Every second
    query is mistyped.

    Args:
        article: answers the query.
        kind: whether the query needs the headline, the image, or both.
        random: decides what the query names, and in which words.
    """
    said: set[str] = set()
    shown: set[str] = set()
    things = [article.scene.first, article.scene.second]
    facts = random.choice(article.reports)
    if kind == "text":
        said = {"event", "place", *_some(("who", "time"), random)}
        text = facts_in_words(facts, said, random)
    elif kind == "image":
        shown = {"relation", *_some(("setting", "sky"), random)}
        text = _of_scene(article.scene, shown, random)
    else:
        said = set(random.sample(_FACTS, 2))
        shown = {random.choice(("setting", "sky"))}
        things = [random.choice(things)]
        report = facts_in_words(facts, said, random)
        thing = thing_in_words(things[0], random)
        image = f"{thing} {surroundings_in_words(article.scene, shown, random)}"
        text = random.choice(_BOTH).format(report, image)
    if random.random() < _MISTYPED:
        text = _mistype(text, random)
    asked = {claim for claim in facts.claims | article.shown if claim[0] in said | shown}
    if kind != "text":
        asked |= {("thing", " ".join(thing)) for thing in things}
    return Query(text, kind, frozenset(asked))


def facts_in_words(facts: Facts, said: set[str], random: Random) -> str:
    """Put facts into a query's words.

    Args:
        facts: the facts of an article.
        said: the facts to name: ``who``, ``event``, ``place``, ``time``.
        random: decides the words.
    """
    about = {
        name: random.choice(words[getattr(facts, name)][1])
        for name, words in (("who", _WHO), ("event", _EVENT), ("time", _TIME))
        if name in said
    }
    parts = [about[name] for name in ("event", "who") if name in said]
    text = random.choice((" involving ", " and ", ", ")).join(parts) or "news"
    if "place" in said:
        text += random.choice((" in ", " at ", ", ")) + facts.place
    return f"{text} {about['time']}" if "time" in said else text


def thing_in_words(thing: tuple[str, str], random: Random) -> str:
    """Put a thing, given as colour and kind, into a query's words."""
    colour, kind = thing
    words = random.choice(KIND_WORDS[kind]).format(random.choice(COLOUR_WORDS[colour]))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def surroundings_in_words(scene: Scene, shown: set[str], random: Random) -> str:
    """Put a scene's ``setting``, its ``sky`` or both into a query's words."""
    places = [random.choice(_SETTING[scene.setting])] if "setting" in shown else []
    lights = [random.choice(_SKY[scene.sky])] if "sky" in shown else []
    return " ".join(places + lights)


def write_newsroom(
    folder: str | Path, *, articles: int = 3000, queries_per_kind: int = 200, seed: int = 0
) -> Path:
    """Write a newsroom of the test fold as a corpus that ``read_corpus`` reads, with its queries.

    ``docs.jsonl`` has an article a line, ``images/`` its image. ``queries.jsonl`` has a query a
    line: ``query``, ``kind`` (what it needs: ``text``, ``image`` or ``both``) and ``relevant``, the
    ids of all articles that answer it. ``queries-by-image.jsonl`` has queries that ask with an
    image of ``asked/``, alone or with a text.

    Args:
        folder: where to write; made if missing.
        articles: number of articles.
        queries_per_kind: number of queries of each kind, those by image too.
        seed: the same seed gives the same newsroom on every machine.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds another ``docs.jsonl``.
    """
    folder = Path(folder)
    newsroom = make_articles(articles, "test", seed)
    queries = make_queries(newsroom, queries_per_kind, seed)
    documents = _lines(
        {"id": article.id, "text": article.headline, "image": f"images/{article.id}.png"}
        for article in newsroom
    )
    file = folder / "docs.jsonl"
    if file.exists() and file.read_text(encoding="utf-8") != documents:
        raise FileExistsError(f"{file} belongs to another corpus; choose another folder")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for article in newsroom:
        article.image().save(folder / "images" / f"{article.id}.png")
    _write_queries(folder / "queries.jsonl", queries, newsroom)
    by_image = make_image_queries(newsroom, queries_per_kind, seed)
    _write_queries(folder / "queries-by-image.jsonl", by_image, newsroom)
    file.write_text(documents, encoding="utf-8")
    return folder


def _write_queries(file: Path, queries: Sequence[Query], newsroom: Sequence[Article]) -> None:
    """Write labelled queries, and their images into ``asked`` beside the file."""
    records = []
    for number, query in enumerate(queries):
        record: dict[str, object] = {"query": query.text, "kind": query.kind}
        if query.scene is not None:
            record["image"] = f"asked/{number:04}.png"
            (file.parent / "asked").mkdir(exist_ok=True)
            draw(query.scene, f"asked {number}").save(file.parent / f"asked/{number:04}.png")
        record["relevant"] = [each.id for each in newsroom if query.is_answered_by(each)]
        records.append(record)
    file.write_text(_lines(records), encoding="utf-8")


def development_queries(per_kind: int = 100, seed: int = 0) -> list[str]:
    """Queries to learn from, about articles that are in no newsroom of the test fold.

    Args:
        per_kind: queries of each kind.
        seed: the same seed gives the same queries on every machine.
    """
    articles = make_articles(1_000, "development", seed)
    return [query.text for query in make_queries(articles, per_kind, seed)]


def _needs_both(query: Query, articles: Sequence[Article]) -> bool:
    halves = (query.said, query.shown)
    return all(sum(not article.lacks(half) for article in articles) > 1 for half in halves)


def _lines(records: Iterable[dict[str, object]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


# --- series of near misses -----------------------------------------------------------------------


def _fold_of(*names: str) -> Fold:
    """The fold of some names: six tenths train, two tenths development, two tenths test."""
    part = hashlib.sha256("|".join(names).encode()).digest()[0] % 10
    return "train" if part < 6 else "development" if part < 8 else "test"


def _distinct(series: Iterator[_Item], number: int) -> list[_Item]:
    """The first ``number`` distinct items."""
    found: dict[_Item, None] = {}
    while len(found) < number:
        found[next(series)] = None
    return list(found)


def _report_series(fold: Fold, random: Random) -> Iterator[tuple[Facts, Facts]]:
    """Pairs of reports of a fold, a few at a time that share most of their values."""
    values = [list(_WHO), list(_EVENT), list(_PLACE), list(_TIME)]
    while True:
        drawn = [random.sample(names, 3) for names in values]
        series = [Facts(*names) for names in product(*drawn) if _fold_of(*names[1:3]) == fold]
        for first in random.sample(series, min(_SERIES, len(series))):
            others = [
                facts
                for facts in series
                if facts.event != first.event and facts.place != first.place
            ]
            if others:
                yield first, random.choice(others)


def _scene_series(fold: Fold, random: Random) -> Iterator[Scene]:
    """Scenes of a fold, a few at a time that share most of their values."""
    while True:
        kinds, colours, relations, settings, skies = (
            random.sample(names, number)
            for names, number in (
                (list(KIND_WORDS), 3), (list(COLOUR_WORDS), 2), (list(RELATIONS), 2),
                (list(_SETTING), 2), (list(_SKY), 2),
            )
        )  # fmt: skip
        series = [
            Scene((colour, kind), (other_colour, other_kind), *rest)
            for kind, other_kind in combinations(sorted(kinds), 2)
            for colour, other_colour, *rest in product(colours, colours, relations, settings, skies)
            if _fold_of(kind, other_kind, colour, other_colour, *rest) == fold
        ]
        yield from random.sample(series, min(_SERIES, len(series)))


# --- words ---------------------------------------------------------------------------------------


def headline(reports: Iterable[Facts], random: Random) -> str:
    """Word reports as headlines do, a sentence each; ``random`` decides in which words."""
    sentences = []
    for facts in reports:
        who, event, time = (
            random.choice(words[getattr(facts, name)][0])
            for name, words in (("who", _WHO), ("event", _EVENT), ("time", _TIME))
        )
        text = random.choice(_HEADLINES).format(who=who, event=event, place=facts.place, time=time)
        sentences.append(text[0].upper() + text[1:])
    return ". ".join(sentences)


def _of_scene(scene: Scene, shown: set[str], random: Random) -> str:
    """Both things and their relation, with the setting or the sky if named."""
    first, second = (thing_in_words(thing, random) for thing in (scene.first, scene.second))
    words = _LEFT if scene.relation in ("left", "right") else _FRONT
    forth = scene.relation in ("left", "front")
    text = random.choice(words).format(*((first, second) if forth else (second, first)))
    around = surroundings_in_words(scene, shown, random)
    return random.choice((f"{text}, {around}", f"{around}, {text}"))


def _some(names: Sequence[str], random: Random) -> set[str]:
    """One of two names, or both."""
    return set(random.sample(names, random.choice((1, 2))))


def _mistype(text: str, random: Random) -> str:
    """Swap two neighbouring letters of one word."""
    words = text.split(" ")
    place = random.choice([place for place, word in enumerate(words) if len(word) > 3])
    word = words[place]
    at = random.randrange(1, len(word) - 2)
    words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)
