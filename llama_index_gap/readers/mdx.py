"""Turns MDX into Markdown: imports and components are removed, their images are kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from llama_index_gap.readers.front_matter import names_image
from llama_index_gap.readers.records import ImageReference
from llama_index_gap.readers.shortcodes import Filled, Inserted, code_tester, unfilled

_MODULE = re.compile(
    r"^(?:import[ \t]*(?=['\"{*]|[\w$]+[ \t]*(?:,|from\b))"
    r"|export[ \t]+(?=(?:const|let|var|function|default|class|async)\b|[{*]))"
    r"[^\n]*(?:\n(?![ \t]*(?:\n|\Z))[^\n]*)*",
    re.MULTILINE,
)
_IMPORT = re.compile(
    r"""import[ \t]+(?:\*[ \t]+as[ \t]+)?([\w$]+)[ \t]+from[ \t]+['"]([^'"\n]+)['"]"""
)
_REQUIRED = re.compile(r"""([\w$]+)\s*=\s*(?:require|useBaseUrl)\(\s*['"]([^'"\n]+)['"]""")
_TAG_END = re.compile(r"\s*/?>")
_OPENING = re.compile(r"</?(?=[A-Za-z])|\{|<>|</>")
_TAG = re.compile(r"([A-Za-z][\w.:-]*)")
_ATTRIBUTE = re.compile(
    r"""\s*(?:([\w:-]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|(?=(\{))))?|(?=(\{)))"""
)
_LITERAL = re.compile(r"""["'`]([^"'`\n{}$]*)["'`]""")
_QUOTED = re.compile(r"""["'`]([^"'`\n]+)["'`]""")
_CAPTIONS = ("caption", "alt", "title", "description")
_PLAIN_HTML = re.compile(r"[a-z]")


def looks_like_mdx(body: str) -> bool:
    """Whether a page has an import outside code, which only MDX has."""
    if not _IMPORT.search(body):
        return False
    is_code = code_tester(body)
    modules = (each for each in _MODULE.finditer(body) if not is_code(each.start()))
    return any(_IMPORT.match(each[0]) for each in modules)


def as_markdown(body: str) -> Filled:
    """Remove JavaScript and components from a page, in time linear in its length.

    The content between a component's tags stays. Nothing is run: only the file that an expression
    names is kept.
    """
    filled = unfilled(body)
    files: dict[str, str] = {}
    is_code = code_tester(body)
    done: list[str] = []
    at = 0
    for module in _MODULE.finditer(body):
        if is_code(module.start()):
            continue
        files.update(_IMPORT.findall(module[0]))
        files.update(_REQUIRED.findall(module[0]))
        done.append(body[at : module.start()])
        at = module.end()
    body = "".join([*done, body[at:]])
    if done:
        is_code = code_tester(body)
    reader = _Reader(body, files, filled, _braces(body, is_code))
    done, at = [], 0
    for opening in _OPENING.finditer(body):
        start = opening.start()
        if start < at or is_code(start) or body[max(0, start - 1) : start] == "\\":
            continue
        text, end = reader.read(start, opening[0])
        if end > start:
            done += [body[at:start], text]
            at = end
    filled.text = "".join([*done, body[at:]])
    return filled


def _braces(body: str, is_code: Callable[[int], bool]) -> dict[int, int]:
    """For each opening brace, the place after its closing brace."""
    ends: dict[int, int] = {}
    opened: list[int] = []
    for brace in re.finditer(r"[{}]", body):
        if is_code(brace.start()):
            continue
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            ends[opened.pop()] = brace.end()
    return ends


class _Reader:
    """Replaces tags and expressions, and finds their ends."""

    def __init__(
        self, body: str, files: Mapping[str, str], filled: Filled, ends: Mapping[int, int]
    ) -> None:
        self._body, self._files, self._filled, self._ends = body, files, filled, ends

    def read(self, start: int, opening: str) -> tuple[str, int]:
        """The replacement of a tag or an expression, and its end; its start if it is only text."""
        if opening in {"<>", "</>"}:
            return "", start + len(opening)
        if opening == "{":
            return self._expression(start)
        tag = _TAG.match(self._body, start + len(opening))
        name = tag[1] if tag else ""
        at = start + len(opening) + len(name)
        if opening == "<":
            return self._tag(name, start, at)
        close = self._body.find(">", at, at + 20)
        is_component = not _PLAIN_HTML.match(name) and close >= 0
        return ("", close + 1) if is_component else ("", start)

    def _expression(self, start: int) -> tuple[str, int]:
        end = self._ends.get(start)
        if end is None:
            return "", start
        inside = self._body[start + 1 : end - 1].strip()
        literal = _LITERAL.fullmatch(inside)
        if literal:
            return literal[1] or " ", end
        if inside and not inside.startswith("/*"):
            self._filled.left_out["{expression}"] += 1
        return "", end

    def _tag(self, name: str, start: int, at: int) -> tuple[str, int]:
        said: dict[str, str] = {}
        files: list[str] = []
        has_braces = False
        while (found := _ATTRIBUTE.match(self._body, at)) and (found[0].strip() or found[5]):
            at = found.end()
            values = [found[2] if found[2] is not None else found[3] or ""]
            if found[4] or found[5] is not None:
                has_braces, stop = True, self._ends.get(at)
                if stop is None:
                    return "", start
                values = self._named(self._body[at + 1 : stop - 1].strip()[:2_000])
                at = stop
            if found[1]:
                said.setdefault(found[1].lower(), values[0])
            files = values + files if found[1] == "src" else files + values
        close = _TAG_END.match(self._body, at)
        is_plain = _PLAIN_HTML.match(name) is not None
        if close is None or (is_plain and not has_braces):
            return "", start  # text, or plain HTML, which the Markdown reader handles
        end = close.end()
        paths = [file for file in files if names_image(file)]
        if paths and name != "a":
            caption = next((said[key] for key in _CAPTIONS if said.get(key)), "")
            image = ImageReference(paths[0], caption, others=tuple(paths[1:]))
            return self._filled.place(Inserted(self._body[start:end], (image,))), end
        if is_plain:
            kept = "".join(f' {k}="{v}"' for k, v in said.items() if v and '"' not in v)
            return f"<{name}{kept}{'/' if close[0].endswith('/>') else ''}>", end
        self._filled.left_out[f"<{name}>"] += 1
        return "", end

    def _named(self, expression: str) -> list[str]:
        """The files that an expression names: an import, or paths within it."""
        plain = expression.removesuffix(".default").removesuffix(".src")
        if plain in self._files:
            return [self._files[plain]]
        quoted = _QUOTED.findall(expression)
        images = [each for each in quoted if names_image(each)]
        images += [path for name, path in self._files.items() if name in expression]
        return images or (quoted if len(quoted) == 1 else [""])
