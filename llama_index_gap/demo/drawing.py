"""The newsroom's images: two things in a setting under a sky, drawn with plain shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from PIL import Image, ImageColor, ImageDraw

SIZE = 96  # of an image, in pixels
_OUTLINE = "#22223b"

COLOURS = {
    "red": "#d62828",
    "orange": "#f77f00",
    "yellow": "#ffd60a",
    "green": "#2f9e44",
    "blue": "#1c6dd0",
    "purple": "#8e44ad",
    "white": "#fdfdf8",
    "black": "#3a3a3a",
}
_Light = Callable[[str], tuple[int, ...]]
# Shapes in a unit square, (0, 0) at the upper left; None stands for the thing's own colour.
_Shape = tuple[str, str | None, tuple[float, ...]]
KINDS: dict[str, tuple[_Shape, ...]] = {
    "balloon": (
        ("polygon", "#e9d8a6", (0.3, 0.5, 0.7, 0.5, 0.58, 0.85, 0.42, 0.85)),
        ("ellipse", None, (0.12, 0.0, 0.88, 0.72)),
        ("ellipse", None, (0.34, 0.0, 0.66, 0.72)),
        ("rectangle", "#8a5a2b", (0.4, 0.82, 0.6, 1.0)),
    ),
    "boat": (
        ("rectangle", "#6b4423", (0.46, 0.05, 0.52, 0.7)),
        ("polygon", "#f4f1de", (0.56, 0.08, 0.56, 0.62, 0.94, 0.62)),
        ("polygon", None, (0.0, 0.66, 1.0, 0.66, 0.82, 1.0, 0.18, 1.0)),
    ),
    "bus": (
        ("rectangle", None, (0.0, 0.25, 1.0, 0.86)),
        ("rectangle", "#cfe8ff", (0.08, 0.35, 0.27, 0.56)),
        ("rectangle", "#cfe8ff", (0.33, 0.35, 0.52, 0.56)),
        ("rectangle", "#cfe8ff", (0.58, 0.35, 0.92, 0.56)),
        ("ellipse", "#222222", (0.12, 0.74, 0.34, 1.0)),
        ("ellipse", "#222222", (0.66, 0.74, 0.88, 1.0)),
    ),
    "car": (
        ("polygon", "#cfe8ff", (0.2, 0.62, 0.34, 0.38, 0.68, 0.38, 0.82, 0.62)),
        ("rectangle", None, (0.0, 0.6, 1.0, 0.88)),
        ("ellipse", "#222222", (0.12, 0.74, 0.36, 1.0)),
        ("ellipse", "#222222", (0.64, 0.74, 0.88, 1.0)),
    ),
    "house": (
        ("rectangle", None, (0.1, 0.42, 0.9, 1.0)),
        ("polygon", "#9c6644", (0.0, 0.45, 0.5, 0.05, 1.0, 0.45)),
        ("rectangle", "#5b3a21", (0.2, 0.66, 0.42, 1.0)),
        ("rectangle", "#cfe8ff", (0.56, 0.56, 0.8, 0.76)),
    ),
    "lighthouse": (
        ("polygon", None, (0.36, 0.22, 0.64, 0.22, 0.76, 1.0, 0.24, 1.0)),
        ("polygon", "#f4f1de", (0.31, 0.48, 0.69, 0.48, 0.72, 0.68, 0.28, 0.68)),
        ("rectangle", "#fff3b0", (0.38, 0.08, 0.62, 0.24)),
        ("polygon", "#5b3a21", (0.32, 0.1, 0.5, 0.0, 0.68, 0.1)),
    ),
    "person": (
        ("rectangle", "#444455", (0.38, 0.68, 0.48, 1.0)),
        ("rectangle", "#444455", (0.52, 0.68, 0.62, 1.0)),
        ("polygon", None, (0.36, 0.3, 0.64, 0.3, 0.76, 0.76, 0.24, 0.76)),
        ("ellipse", "#f2c9a1", (0.36, 0.02, 0.64, 0.32)),
    ),
    "tent": (
        ("polygon", None, (0.5, 0.3, 1.0, 1.0, 0.0, 1.0)),
        ("polygon", "#3d2f24", (0.5, 0.5, 0.66, 1.0, 0.34, 1.0)),
    ),
    "tree": (
        ("rectangle", "#6b4423", (0.43, 0.55, 0.57, 1.0)),
        ("ellipse", None, (0.1, 0.0, 0.9, 0.7)),
    ),
    "windmill": (
        ("polygon", None, (0.36, 0.3, 0.64, 0.3, 0.74, 1.0, 0.26, 1.0)),
        ("rectangle", "#5b3a21", (0.43, 0.78, 0.57, 1.0)),
        ("polygon", "#f4f1de", (0.5, 0.3, 0.86, 0.0, 0.96, 0.1)),
        ("polygon", "#f4f1de", (0.5, 0.3, 0.86, 0.6, 0.76, 0.68)),
        ("polygon", "#f4f1de", (0.5, 0.3, 0.14, 0.6, 0.04, 0.5)),
        ("polygon", "#f4f1de", (0.5, 0.3, 0.14, 0.0, 0.24, -0.06)),
    ),
}
RELATIONS = ("left", "right", "front", "behind")
SKIES = {"day": "#a9d6f5", "sunset": "#f4a07a", "night": "#1b2448", "rain": "#8b97a6"}
_GLOOM = {"day": 0.0, "sunset": 0.2, "night": 0.5, "rain": 0.3}  # the sky's share in the ground
_HORIZON = 50


@dataclass(frozen=True)
class Scene:
    """The content of an image: two things of different kinds, in alphabetical order of kind.

    Attributes:
        first: a thing's colour and kind, for example ``("red", "boat")``.
        second: the other's.
        relation: the place of the first relative to the second: left, right, front or behind.
        setting: the ground under them: coast, meadow, street, mountains, desert or field.
        sky: the light and weather: day, sunset, night or rain.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    relation: str
    setting: str
    sky: str


def draw(scene: Scene, seed: str) -> Image.Image:
    """Draw a scene as a square RGB image of ``SIZE`` pixels and few colours.

    Args:
        scene: what to show.
        seed: decides the details that the scene leaves open: sizes, exact places, clouds, stars.
    """
    random = Random(seed)  # noqa: S311 - no secret
    image = Image.new("RGB", (SIZE, SIZE), SKIES[scene.sky])
    pen = ImageDraw.Draw(image)
    _draw_sky(pen, scene.sky, random)
    lit = partial(_blend, light=SKIES[scene.sky], share=_GLOOM[scene.sky])
    GROUNDS[scene.setting](pen, lit, random.randrange(-10, 10), random)
    for thing, box in _placed(scene, random):
        _draw_thing(pen, thing, box)
    if scene.sky == "rain":
        for _ in range(26):
            x, y = random.randrange(SIZE), random.randrange(SIZE)
            pen.line((x, y, x - 2, y + 6), fill="#d5dde6")
    return image


def _placed(
    scene: Scene, random: Random
) -> list[tuple[tuple[str, str], tuple[float, float, float]]]:
    """The two things from back to front, each with its left edge, upper edge and size."""
    shift = random.uniform(-4, 4)
    if scene.relation in ("left", "right"):
        order = [scene.first, scene.second]
        if scene.relation == "right":
            order.reverse()
        placed = []
        for thing, centre in zip(order, (25 + shift, 71 + shift), strict=True):
            side = random.uniform(34, 41)
            base = random.uniform(74, 84)
            placed.append((thing, (centre - side / 2, base - side, side)))
        return placed
    order = [scene.second, scene.first]
    if scene.relation == "behind":
        order.reverse()
    back, front = random.uniform(42, 48), random.uniform(34, 40)
    beside = random.choice([-1, 1]) * random.uniform(7, 11)
    centre = 48 + shift
    return [
        (order[0], (centre - beside / 2 - back / 2, random.uniform(66, 70) - back, back)),
        (order[1], (centre + beside - front / 2, random.uniform(86, 92) - front, front)),
    ]


def _draw_thing(
    pen: ImageDraw.ImageDraw, thing: tuple[str, str], box: tuple[float, float, float]
) -> None:
    colour, kind = thing
    left, upper, side = box
    for shape, fill, unit in KINDS[kind]:
        points = [
            round((upper if index % 2 else left) + value * side) for index, value in enumerate(unit)
        ]
        getattr(pen, shape)(points, fill=fill or COLOURS[colour], outline=_OUTLINE)


def _draw_sky(pen: ImageDraw.ImageDraw, sky: str, random: Random) -> None:
    x, y = random.randrange(10, 76), random.randrange(4, 14)
    match sky:
        case "day":
            pen.ellipse((x, y, x + 11, y + 11), fill="#fff3b0")
            _draw_cloud(pen, "#ffffff", random)
        case "sunset":
            pen.rectangle((0, 30, SIZE, 40), fill="#f7b787")
            pen.rectangle((0, 40, SIZE, _HORIZON), fill="#fbd3a2")
            pen.ellipse((x, 34, x + 18, 52), fill="#ffe8b8")
        case "night":
            pen.ellipse((x, y, x + 10, y + 10), fill="#f4f1de")
            pen.ellipse((x + 4, y - 2, x + 13, y + 7), fill=SKIES["night"])
            for _ in range(14):
                star = random.randrange(SIZE), random.randrange(_HORIZON - 6)
                pen.point(star, fill="#f4f1de")
        case "rain":
            for _ in range(3):
                _draw_cloud(pen, "#737f8e", random)


def _draw_cloud(pen: ImageDraw.ImageDraw, colour: str, random: Random) -> None:
    x, y = random.randrange(0, 70), random.randrange(2, 20)
    pen.ellipse((x, y + 3, x + 14, y + 11), fill=colour)
    pen.ellipse((x + 7, y, x + 22, y + 11), fill=colour)
    pen.ellipse((x + 15, y + 4, x + 28, y + 11), fill=colour)


# Each draws a setting; ``lit`` is a colour in the light of the sky, ``x`` a shift of a few pixels.


def _draw_coast(pen: ImageDraw.ImageDraw, lit: _Light, x: int, random: Random) -> None:
    pen.rectangle((0, _HORIZON, SIZE, 66), fill=lit("#2f8fc4"))
    pen.rectangle((0, 66, SIZE, SIZE), fill=lit("#e8d5a3"))
    for wave in range(5):
        left, y = x + 22 * wave, _HORIZON + 4 + 5 * (wave % 3)
        pen.line((left, y, left + 9, y), fill=lit("#d8eef8"))
    pen.line((0, 66, SIZE, 66), fill=lit("#f7f2e0"), width=2)


def _draw_meadow(pen: ImageDraw.ImageDraw, lit: _Light, x: int, random: Random) -> None:
    pen.ellipse((x - 30, 38, x + 60, 90), fill=lit("#5f9e4a"))
    pen.ellipse((x + 40, 42, x + 140, 90), fill=lit("#6cab55"))
    pen.rectangle((0, 58, SIZE, SIZE), fill=lit("#86c06c"))
    for _ in range(16):
        blade = random.randrange(SIZE), random.randrange(64, 94)
        pen.line((*blade, blade[0], blade[1] - 3), fill=lit("#4d8a3a"))


def _draw_street(pen: ImageDraw.ImageDraw, lit: _Light, x: int, random: Random) -> None:
    for block in range(7):
        left, upper = x - 10 + 17 * block, random.randrange(22, 42)
        pen.rectangle((left, upper, left + 15, 60), fill=lit("#a9a3b5"))
        for window in range(upper + 4, 54, 7):
            pen.rectangle((left + 3, window, left + 5, window + 2), fill="#f6e7a8")
            pen.rectangle((left + 9, window, left + 11, window + 2), fill="#f6e7a8")
    pen.rectangle((0, 56, SIZE, 64), fill=lit("#c9c6cf"))
    pen.rectangle((0, 64, SIZE, SIZE), fill=lit("#777984"))
    for dash in range(5):
        pen.rectangle((x + 24 * dash, 88, x + 24 * dash + 11, 89), fill=lit("#f4f1de"))


def _draw_mountains(pen: ImageDraw.ImageDraw, lit: _Light, x: int, random: Random) -> None:
    for peak, top in ((8, 26), (42, 16), (80, 24)):
        middle = peak + x
        pen.polygon((middle - 34, 60, middle, top, middle + 34, 60), fill=lit("#8796a8"))
        cap = (middle - 11, top + 13, middle, top, middle + 11, top + 13, middle, top + 17)
        pen.polygon(cap, fill=lit("#f4f8fc"))
    pen.rectangle((0, 58, SIZE, SIZE), fill=lit("#e9f0f6"))


def _draw_desert(pen: ImageDraw.ImageDraw, lit: _Light, x: int, random: Random) -> None:
    pen.ellipse((x - 40, 44, x + 50, 84), fill=lit("#cf8f47"))
    pen.ellipse((x + 34, 40, x + 140, 92), fill=lit("#d89a50"))
    pen.rectangle((0, 64, SIZE, SIZE), fill=lit("#e4ad66"))


def _draw_field(pen: ImageDraw.ImageDraw, lit: _Light, x: int, random: Random) -> None:
    pen.rectangle((0, _HORIZON, SIZE, SIZE), fill=lit("#93683f"))
    middle = SIZE // 2 + x
    for furrow in range(-9, 10):
        line = (middle + 7 * furrow, _HORIZON, middle + 24 * furrow, SIZE)
        pen.line(line, fill=lit("#6f4a2a"), width=2)


GROUNDS: dict[str, Callable[[ImageDraw.ImageDraw, _Light, int, Random], None]] = {
    "coast": _draw_coast,
    "meadow": _draw_meadow,
    "street": _draw_street,
    "mountains": _draw_mountains,
    "desert": _draw_desert,
    "field": _draw_field,
}


def _blend(colour: str, light: str, share: float) -> tuple[int, ...]:
    """A colour in the light of the sky."""
    pair = zip(ImageColor.getrgb(colour), ImageColor.getrgb(light), strict=True)
    return tuple(round(own + (other - own) * share) for own, other in pair)
