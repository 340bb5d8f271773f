"""Reads what site generators expand: shortcodes of Hugo, tags of Liquid, captions of WordPress.

Nothing is run. Shortcodes that show an image are read, paths in links are completed, and the others
are left out and counted. Code stays unchanged.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_index_gap.readers.front_matter import names_image
from llama_index_gap.readers.html import words
from llama_index_gap.readers.records import ImageReference

_FENCE = re.compile(r"^(?:[ \t>*+-]|\d++[.)])*+(?P<fence>`{3,}(?!.*`)|~{3,})", re.M)
_TICKS = re.compile(r"`+")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_OPENING = re.compile(
    r"\{\{[<%](?!/\*)|\{\{[<%]?/\*|\{%|\{\{|\{:|\[/?(?P<wp>caption|gallery|embed|playlist|video|audio)\b"
    r"|(?<=[\])}])\{(?=[ \t]*(?:[.#][\w-]|[\w-]+=))"
    r"|[ \t]\{(?=[ \t]*[#.][\w-]+(?:[ \t]+[#.][\w-]+)*[ \t]*\}[ \t]*(?:\n|\Z))"
)
_ARGUMENT = re.compile(
    r"""(?:(?P<name>[A-Za-z_][\w.-]*+)[ \t]*[=:](?!//)[ \t\n]*)?"""
    r"""(?:"(?P<double>(?:[^"\\]|\\.)*+)"|'(?P<single>(?:[^'\\]|\\.)*+)'|`(?P<raw>[^`]*+)`"""
    r"""|(?P<plain>[^\s"'`,|]+))"""
)
_NAME = re.compile(r"[\s-]*+/?\s*+([\w./-]*)")
_EXPRESSION = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([\w.\[\]'"-]+))\s*""")
_FILTER = re.compile(r"""\|\s*(prepend|append)\s*:\s*(?:"([^"]*)"|'([^']*)'|([\w.-]+))""")
_LIQUID_FILTER = re.compile(
    r"\|\s*-?\s*(?:relative_url|absolute_url|prepend|append|markdownify|url|asset_path|date|escape|"
    r"strip_html|slugify|absURL|relURL|default|replace|downcase|upcase)\b"
)
_SIZE = re.compile(r"\d+\s*(?:x\d*)?\s*(?:px|%|em|rem|vw)?(?:\s+q\d+)?|(?:left|right|center)", re.I)
_BOOK = re.compile(r"#(?:include|rustdoc_include|playground|playpen|title)\s")  # of mdBook
_LONGEST = 20_000
_KNOWN_IMAGES = words("figure fig img image images imgproc pic picture photo gallery lightbox")
_PATH_NAMES = words(
    "src image image_path path file filename url img href img_path image_url source"
)
_CAPTION_NAMES = ("caption", "cap", "alt", "title", "description", "text", "image_alt", "image-alt")
_NOT_COUNTED = words(
    "raw endraw verbatim endverbatim ref relref link post_url asset_path baseurl include_cached"
)


@dataclass(frozen=True)
class Inserted:
    """The replacement of a shortcode.

    Attributes:
        original: the shortcode as written in the page, used if it turns out to be in code.
        images: the images that it shows.
        captioned: Markdown or HTML with images, whose text is their caption.
    """

    original: str
    images: tuple[ImageReference, ...] = ()
    captioned: str = ""


@dataclass
class Filled:
    """A page's body without shortcodes.

    Attributes:
        text: the body; a shortcode with images is ``mark``, a number, and ``mark``.
        mark: a character that the body did not have.
        inserted: the replacements that the numbers stand for.
        left_out: names of the shortcodes that were left out, with their counts.
    """

    text: str = ""
    mark: str = "\ue000"
    inserted: list[Inserted] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def place(self, inserted: Inserted) -> str:
        """Store a replacement, and return the mark for it."""
        self.inserted.append(inserted)
        return f"{self.mark}{len(self.inserted) - 1}{self.mark}"


def fill_in(body: str, variables: Mapping[str, Any]) -> Filled:
    """Remove the shortcodes from a page's body, in time linear in its length.

    Args:
        body: Markdown or HTML.
        variables: the values that expressions name, such as ``page.image``.
    """
    filled = unfilled(body)
    if not _OPENING.search(body):
        return filled
    is_code = code_tester(body)
    done: list[str] = []
    at = 0
    closing = _Closing(body)
    reader = _Reader(body, variables, filled, closing)
    for opening in _OPENING.finditer(body):
        start = opening.start()
        if start < at or is_code(start):
            continue
        text, end = reader.read(opening)
        if end > start:
            done += [body[at:start], text]
            at = end
    filled.text = "".join([*done, body[at:]])
    return filled


def unfilled(body: str) -> Filled:
    """A body with nothing replaced."""
    mark = next((chr(c) for c in range(0xE000, 0xF8FF) if chr(c) not in body), "\ue000")
    return Filled(body, mark)


def code_tester(body: str) -> Callable[[int], bool]:
    """Make a function that tells whether a position in Markdown lies in code."""
    places = code_places(body)
    starts = [start for start, _ in places]

    def is_code(at: int) -> bool:
        before = bisect_right(starts, at) - 1
        return before >= 0 and at < places[before][1]

    return is_code


def code_places(body: str) -> list[tuple[int, int]]:
    """The bounds of the fenced code blocks and code spans of Markdown, in order."""
    blocks: list[tuple[int, int]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(body):
        if opened is None:
            opened = fence
        elif fence["fence"].startswith(opened["fence"]):
            line_end = body.find("\n", fence.end())
            line_end = len(body) if line_end < 0 else line_end
            if not body[fence.end() : line_end].strip():
                blocks.append((opened.start(), line_end))
                opened = None
    if opened is not None:
        blocks.append((opened.start(), len(body)))
    places: list[tuple[int, int]] = []
    at = 0
    for start, end in [*blocks, (len(body), len(body))]:
        paragraph = at
        for blank in _BLANK_LINE.finditer(body, at, start):
            places += _code_spans(body, paragraph, blank.start())
            paragraph = blank.end()
        places += _code_spans(body, paragraph, start)
        places.append((start, end))
        at = end
    return places


def _code_spans(body: str, start: int, end: int) -> list[tuple[int, int]]:
    runs = [(run.start(), run.end()) for run in _TICKS.finditer(body, start, end)]
    later: dict[int, list[int]] = defaultdict(list)  # by length, from the last to the first
    for number in range(len(runs) - 1, -1, -1):
        later[runs[number][1] - runs[number][0]].append(number)
    spans: list[tuple[int, int]] = []
    number = 0
    while number < len(runs):
        opened, inner = runs[number]
        same = later[inner - opened]
        while same and same[-1] <= number:
            same.pop()
        if same and (opened == 0 or body[opened - 1] != "\\"):
            number = same[-1]
            spans.append((opened, runs[number][1]))
        number += 1
    return spans


class _Closing:
    """Finds endings; searches only once for an ending that does not occur again."""

    def __init__(self, body: str) -> None:
        self._body = body
        self._next: dict[str, tuple[int, int]] = {}  # where the search began, where the ending is

    def find(self, ending: str, start: int, most: int = _LONGEST) -> int:
        """Where an ending begins; -1 if not within ``most`` characters."""
        since, found = self._next.get(ending, (len(self._body) + 1, 0))
        if not since <= start <= found:
            place = self._body.find(ending, start)
            found = place if place >= 0 else len(self._body)
            self._next[ending] = (start, found)
        return found if found - start <= most and found < len(self._body) else -1


class _Reader:
    """Reads one shortcode after another."""

    def __init__(
        self, body: str, variables: Mapping[str, Any], filled: Filled, closing: _Closing
    ) -> None:
        self._body, self._variables = body, variables
        self._filled, self._closing = filled, closing

    def read(self, opening: re.Match[str]) -> tuple[str, int]:
        """The replacement of a shortcode, and its end; its start if it is not a shortcode."""
        start, inner = opening.span()
        match opening[0]:
            case "{{<" | "{{%":
                return self._shortcode(start, inner, opening[0][-1].replace("<", ">") + "}}")
            case "{{</*" | "{{%/*":
                ending = "*/" + opening[0][2].replace("<", ">") + "}}"
                if (end := self._closing.find(ending, inner)) < 0:
                    return "", start
                # The page shows this shortcode as text; it does not use it.
                shown = f"{opening[0][:3]}{self._body[inner:end]}{ending[2:]}"
                return shown.replace("<", "&lt;"), end + len(ending)
            case "{{/*":
                return self._up_to("*/}}", start, inner)
            case "{%":
                return self._shortcode(start, inner, "%}")
            case "{{":
                return self._expression(start, inner)
            case "{" | "{:" | " {" | "\t{":
                return self._attributes(start, inner)
        return self._wordpress(start, inner, str(opening["wp"]))

    def _up_to(self, ending: str, start: int, inner: int) -> tuple[str, int]:
        end = self._closing.find(ending, inner)
        return ("", end + len(ending)) if end >= 0 else ("", start)

    def _attributes(self, start: int, inner: int) -> tuple[str, int]:
        """Remove ``{: .class}``, ``{width=300}`` and ``{#name}``, which only style a part."""
        end = self._closing.find("}", inner, 500)
        if end < 0 or "\n" in self._body[inner:end] or "{" in self._body[inner:end]:
            return "", start
        return "", end + 1

    def _shortcode(self, start: int, inner: int, ending: str) -> tuple[str, int]:
        end = self._closing.find(ending, inner)
        if end < 0:
            return "", start
        content = self._body[inner:end].strip().strip("-").strip()
        end += len(ending)
        head = _NAME.match(content)
        name = head[1] if head else ""
        arguments = content[head.end() :] if head and name else content
        is_closing = content.startswith("/")
        if name in {"raw", "verbatim"} and ending == "%}":
            return self._body_of(name, end, lambda inside: inside)
        if name in {"highlight", "codeblock", "code"} and not is_closing:
            return self._body_of(
                name, end, lambda inside: f"\n~~~~~~~~\n{inside}\n~~~~~~~~\n", ending
            )
        if name == "comment":
            return self._body_of(name, end, lambda _: "", ending)
        if self._is_target(start):
            return self._target(arguments or content), end
        named, positional = self._arguments(arguments)
        if name in {"include", "include_cached", "include_relative", "partial", "render"}:
            name = (
                positional.pop(0)[0] if positional and not names_image(positional[0][0]) else name
            )
        short = name.rpartition("/")[2].partition(".")[0]
        images = [] if is_closing else self._images(short, named, positional)
        if images:
            placed, end = self._with_body(name, start, end, images, ending)
            return placed, end
        gallery = named.get("id") or short
        is_of_page = f"page.{gallery}" in self._variables
        if short and not is_closing and short not in _NOT_COUNTED and not is_of_page:
            within = f"/{name}" if ending != "%}" else f"end{name}"
            holds_others = short in _KNOWN_IMAGES and self._closing.find(within, end) >= 0
            if not short.startswith("end") and not holds_others:
                self._filled.left_out[short] += 1
        return "", end

    def _body_of(
        self, name: str, end: int, make: Callable[[str], str], ending: str = "%}"
    ) -> tuple[str, int]:
        """The content between a tag and its closing tag, changed by ``make``."""
        opening = "{%" if ending in {"%}", "%}}"} else "{{<"
        opening = "{{%" if ending == "%}}" else opening
        slash = "end" if ending == "%}" else "/"
        search = re.compile(rf"{re.escape(opening)}-?\s*{slash}\s*{name}\s*-?{re.escape(ending)}")
        close = self._closing.find(f"{slash}{name}", end, len(self._body))
        close = close if close >= 0 else self._closing.find(f"{slash} {name}", end, len(self._body))
        if close < 0:
            return "", end
        found = search.search(self._body, max(end, close - 10), close + len(name) + 20)
        if found is None:
            return "", end
        return make(self._body[end : found.start()]), found.end()

    def _with_body(
        self, name: str, start: int, end: int, images: list[ImageReference], ending: str
    ) -> tuple[str, int]:
        """The mark for a shortcode with images; text up to its closing tag is the caption."""
        if ending != "%}":
            opening = "{{<" if ending == ">}}" else "{{%"
            found = re.compile(rf"{opening}\s*/\s*{re.escape(name)}\s*{ending}").search(
                self._body, end, end + 2_000
            )
            inside = self._body[end : found.start()] if found else ""
            if found and "{{" not in inside and len(images) == 1 and inside.strip():
                image = images[0]
                images = [ImageReference(image.path, image.caption or " ".join(inside.split()))]
                return self._placed(start, found.end(), images), found.end()
        return self._placed(start, end, images), end

    def _placed(self, start: int, end: int, images: list[ImageReference]) -> str:
        return self._filled.place(Inserted(self._body[start:end], tuple(images)))

    def _arguments(self, text: str) -> tuple[dict[str, str], list[tuple[str, bool]]]:
        """The named arguments, and the positional ones, each with whether it is quoted."""
        named: dict[str, str] = {}
        positional: list[tuple[str, bool]] = []
        for found in _ARGUMENT.finditer(text[:_LONGEST]):
            quoted = next(
                (found[k] for k in ("double", "single", "raw") if found[k] is not None), None
            )
            value = self._value(found["plain"]) if quoted is None else self._text(quoted)
            if found["name"]:
                named.setdefault(found["name"].lower(), value)
            else:
                positional.append((value, quoted is not None))
        return named, positional

    def _images(
        self, name: str, named: dict[str, str], positional: list[tuple[str, bool]]
    ) -> list[ImageReference]:
        known = name in _KNOWN_IMAGES
        paths = [
            value
            for key, value in named.items()
            if value
            and ((key in _PATH_NAMES and known and key != "href") or names_image(value))
            and key not in {*_CAPTION_NAMES, "link", "thumb", "thumbnail", "target"}
        ]
        if name == "gallery" and not paths:  # all images of a folder
            patterns = [named[k].rstrip("/") + "/*" for k in ("dir", "folder") if named.get(k)]
            paths = patterns or [named[k] for k in ("match", "glob") if named.get(k)]
        first = len(positional)
        if not paths:
            for number, (value, _) in enumerate(positional):
                if names_image(value):
                    paths += [part for part in re.split(r"\s*,\s*", value) if part]
                    first = min(first, number)
        if not paths and known and positional and name != "gallery" and "=" not in positional[0][0]:
            paths, first = [positional[0][0]], 0
        captions = [named[key] for key in _CAPTION_NAMES if named.get(key)]
        captions += [
            value
            for value, quoted in positional[first + 1 :]
            if quoted
            and re.search(r"[^\W\d_]", value)
            and not names_image(value)
            and not _SIZE.fullmatch(value.strip())
        ]
        if not captions and name == "asset_img":  # Hexo's; its titles need no quotes
            words_after = [value for value, _ in positional[first + 1 :]]
            captions = [" ".join(word for word in words_after if not _SIZE.fullmatch(word))]
        caption = re.sub(r"<[^<>]*>", "", captions[0]).strip() if captions else ""
        unique = dict.fromkeys(path.strip() for path in paths if path.strip())
        return [ImageReference(path, caption) for path in unique]

    def _value(self, plain: str) -> str:
        """The value of an argument without quotes: a page variable's value, or the argument."""
        value = self._variables.get(plain, plain)
        if plain.startswith(("page.", "site.", "include.")) and value is plain:
            return ""
        return value if isinstance(value, str) else ""

    def _text(self, quoted: str) -> str:
        text = quoted.replace('\\"', '"').replace("\\'", "'")
        if "{{" in text:  # {{ site.url }} within an argument
            text = re.sub(r"\{\{(.{0,200}?)\}\}", lambda found: self._evaluated(found[1]), text)
        return text

    def _is_target(self, start: int) -> bool:
        """Whether this place is the target of a link, an image or an HTML attribute."""
        before = self._body[max(0, start - 300) : start]
        before = before[before.rfind("\n") + 1 :]
        return (
            re.search(
                r"""(?:\]\(<?|=["']?|\]:[ \t]*<?)(?:\{\{[^{}]*\}\}|[^\s()"'<>{}])*$""", before
            )
            is not None
        )

    def _target(self, arguments: str) -> str:
        """The target that a shortcode within a link stands for."""
        named, positional = self._arguments(arguments)
        values = [*(value for value, _ in positional), *named.values()]
        path = next((value for value in values if names_image(value)), values[0] if values else "")
        is_path = "/" in path or "." in path
        path = path.lstrip("/") if is_path else ""
        return f"/{path}".replace(" ", "%20") if path else ""

    def _expression(self, start: int, inner: int) -> tuple[str, int]:
        end = self._closing.find("}}", inner, 2_000)
        if end < 0:
            return "", start
        content = self._body[inner:end].strip("- \t\n")
        end += 2
        if self._is_target(start):
            return self._evaluated(content).replace(" ", "%20"), end
        if _BOOK.match(content):
            self._filled.left_out[content.split()[0]] += 1
            return "", end
        found = _EXPRESSION.match(content)
        rest = content[found.end() :] if found else content
        if found and found[3] is None and (not rest or _LIQUID_FILTER.match(rest)):
            return self._evaluated(content), end
        name = found[3] if found and found[3] else ""
        of_site = name.partition(".")[0] in {"site", "page", "include", "layout", "paginator"}
        if (of_site and "." in name) or _LIQUID_FILTER.search(content):
            value = self._evaluated(content)
            if not value:
                self._filled.left_out[f"{{{{ {name} }}}}"] += 1
            return value, end
        return "", start  # not a generator's expression: text

    def _evaluated(self, content: str) -> str:
        """The value of a Liquid expression, as far as the page alone determines it."""
        found = _EXPRESSION.match(content)
        if found is None:
            return ""
        literal = found[1] if found[1] is not None else found[2]
        value = self._value(str(found[3])) if literal is None else literal
        if literal is None and value == found[3]:
            value = ""  # an unknown variable
        for change in _FILTER.finditer(content[:1_000], found.end()):
            named = self._value(change[4]) if change[4] else ""
            other = change[2] or change[3] or ("" if named == change[4] else named)
            value = other + value if change[1] == "prepend" else value + other
        if re.search(r"\|\s*(?:relative_url|absolute_url)", content[:1_000]) and "://" not in value:
            value = "/" + value.lstrip("/")
        return value

    def _wordpress(self, start: int, inner: int, name: str) -> tuple[str, int]:
        """Read WordPress' ``[caption …]image Text[/caption]``; count its other shortcodes."""
        bracket = self._closing.find("]", inner, 1_000)
        attributes = self._body[inner : max(bracket, inner)]
        after = self._body[bracket + 1 : bracket + 2]
        if bracket < 0 or (after in {"(", "[", ":"} and "=" not in attributes):
            return "", start  # a link with this name as its text
        if self._body.startswith("[/", start):
            return ("", bracket + 1) if not attributes and name != "caption" else ("", start)
        if name != "caption":
            if (
                "=" not in attributes
                and self._closing.find(f"[/{name}]", bracket) < 0
                and name != "gallery"
            ):
                return "", start
            self._filled.left_out[name] += 1
            return "", bracket + 1
        end = self._closing.find("[/caption]", bracket)
        if end < 0:
            return "", start
        named, _ = self._arguments(attributes)
        content = f"{self._body[bracket + 1 : end]} {named.get('caption', '')}"
        end += len("[/caption]")
        return self._filled.place(Inserted(self._body[start:end], captioned=content)), end
