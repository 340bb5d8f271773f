"""Recognises the start of figure and table captions, in many languages."""

from __future__ import annotations

import re
from typing import Literal

_FIGURE = re.compile(
    r"(?:(?:supplementary|supplemental|extended\s+data|online)\s+)?"
    r"(?:fig(?:ure|ura|s)?|abb(?:ildung)?|bild|scheme|schema|chart|diagram|plate|photo|map|exhibit|"
    r"illustration|afbeelding|figuur|kuva|obr(?:ázek)?|rys(?:unek)?|рис(?:унок)?|"
    r"図|圖|图|그림|الشكل|شكل)"
    r"\s*\.?\s*(?:[A-Z]?[.-]?\d+(?:[.\-–]\d+)*(?:[a-z]\b)?|[IVX]+\b|[٠-٩۰-۹]+|[一二三四五六七八九十]+)"
    r"(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_TABLE = re.compile(
    r"(?:tab(?:le|elle|leau|ella|la|ulka)?|таблица|表|표|الجدول|جدول)\s*\.?\s*"
    r"(?:[A-Z]?[.-]?\d+(?:[.\-–]\d+)*|[IVX]+\b)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
_FORMS: dict[Literal["figure", "table"], re.Pattern[str]] = {"figure": _FIGURE, "table": _TABLE}
_MARK = re.compile(r"\s*[:.|–—：．、)\]\-]\s*")


def label_of(text: str) -> Literal["figure", "table"] | None:
    """Whether a line starts the caption of a figure or of a table.

    A sentence such as "Figure 3 shows …" does not.

    Args:
        text: the line's text.
    """
    plain = text.strip()
    for kind, form in _FORMS.items():
        match = form.match(plain)
        if match is None:
            continue
        rest = match["rest"]
        after = rest.lstrip()
        if not after or _MARK.match(rest):
            return kind
        if not after[0].islower() and (rest[0].isspace() or not rest[0].isascii()):
            return kind
    return None
