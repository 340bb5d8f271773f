"""A dozen made-up articles with drawn images, free of rights."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

# id, title, text, alt text, background, shape, colour of the shape
_ARTICLES = [
    ("ferry", "A ferry for the old harbour", "The first electric ferry left at noon.",
     "a white ship on blue water", "steelblue", "ship", "white"),
    ("derby", "United win the derby", "Two late goals decided the match in the rain.",
     "a football on a green pitch", "seagreen", "circle", "white"),
    ("bridge", "Bridge closed for repairs", "Cars take the northern road until spring.",
     "a grey bridge at dusk", "midnightblue", "bar", "silver"),
    ("market", "Sunday market returns", "Forty stalls sell fruit, cheese and flowers.",
     "a red apple on a table", "burlywood", "circle", "firebrick"),
    ("eclipse", "Thousands watch the eclipse", "For three minutes the town was dark.",
     "a black disc before the sun", "gold", "circle", "black"),
    ("library", "Library lends tools", "Drills and ladders stand beside the novels.",
     "a brown shelf", "beige", "bar", "saddlebrown"),
    ("storm", "Storm tears off roofs", "Fire crews answered three hundred calls.",
     "a yellow flash in a grey sky", "dimgray", "flash", "yellow"),
    ("garden", "School plants a garden", "Every class looks after one bed.",
     "a green tree", "lightskyblue", "tree", "darkgreen"),
    ("tram", "Line 7 gets new trams", "They have low floors and room for bicycles.",
     "an orange tram", "lightgray", "bar", "darkorange"),
    ("museum", "Museum shows lost painting", "It had hung in a kitchen for decades.",
     "a violet square in a frame", "white", "square", "darkviolet"),
    ("marathon", "Rain marathon draws crowds", "Eight thousand runners came in.",
     "a flash of yellow shoes", "slategray", "flash", "khaki"),
    ("budget", "Council passes the budget", "Most of it goes to schools and roads.",
     "the town hall", "", "", ""),
]  # fmt: skip
_SIZE = 96


def write_demo_corpus(folder: str | Path) -> Path:
    """Write twelve short articles and eleven images; one further image is damaged on purpose.

    Args:
        folder: where to write ``docs.jsonl`` and ``images/``; made if missing.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds another ``docs.jsonl``.
    """
    folder = Path(folder)
    documents = folder / "docs.jsonl"
    content = "".join(
        json.dumps(_document(article), ensure_ascii=False) + "\n" for article in _ARTICLES
    )
    if documents.exists() and documents.read_text(encoding="utf-8") != content:
        raise FileExistsError(f"{documents} belongs to another corpus; choose another folder")
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for identifier, *_, background, shape, colour in _ARTICLES:
        path = images / f"{identifier}.png"
        if shape:
            _draw(background, shape, colour).save(path)
        else:  # so that the demo has an image that cannot be read
            path.write_text("<html>404 Not Found</html>", encoding="utf-8")
    documents.write_text(content, encoding="utf-8")
    return folder


def _document(article: tuple[str, ...]) -> dict[str, object]:
    identifier, title, text, alt, *_ = article
    image = {"path": f"images/{identifier}.png", "alt": alt}
    return {"id": identifier, "title": title, "text": text, "images": [image]}


def _draw(background: str, shape: str, colour: str) -> Image.Image:
    image = Image.new("RGB", (_SIZE, _SIZE), background)
    pen = ImageDraw.Draw(image)
    match shape:
        case "circle":
            pen.ellipse((24, 24, 72, 72), fill=colour)
        case "square":
            pen.rectangle((24, 24, 72, 72), fill=colour)
        case "bar":
            pen.rectangle((6, 40, 90, 58), fill=colour)
        case "ship":
            pen.polygon([(12, 56), (84, 56), (68, 78), (28, 78)], fill=colour)
            pen.polygon([(48, 14), (48, 52), (76, 52)], fill=colour)
        case "flash":
            pen.polygon([(54, 6), (24, 52), (44, 52), (34, 90), (72, 38), (50, 38)], fill=colour)
        case "tree":
            pen.rectangle((43, 60, 53, 90), fill="saddlebrown")
            pen.ellipse((22, 10, 74, 66), fill=colour)
    return image
