"""A PDF file's own metadata: title, author, date."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from llama_index_gap.readers.pdf.layout import cleaned

_NO_TITLE = re.compile(
    r"untitled.*|unknown|none|\(?(anonymous|unspecified)\)?|.*\.(dvi|tex|docx?|indd|qxd|pptx?|ps)",
    re.IGNORECASE,
)
_DATE = re.compile(
    r"(?:D:)?(\d{4})(\d\d)?(\d\d)?(\d\d)?(\d\d)?(\d\d)?(?:([Zz+-])(?:(\d\d)'?(\d\d)?'?)?)?"
)


def title_of(written_in: str) -> str:
    """The title in a file's metadata; empty if it looks like a program's placeholder."""
    title = " ".join(cleaned(written_in).removeprefix("Microsoft Word - ").split())
    return "" if _NO_TITLE.fullmatch(title) else title[:500]


def author_of(written_in: str) -> str:
    """The author in a file's metadata; empty if it looks like a program's placeholder."""
    author = " ".join(cleaned(written_in).split())
    return "" if _NO_TITLE.fullmatch(author) else author[:500]


def iso_date(text: str) -> str:
    """Convert a PDF date, such as ``D:20240131120000+01'00'``, to ISO 8601.

    Args:
        text: the date, perhaps without a time.

    Returns:
        The date, with the time if there is one; empty if the text is not a date.
    """
    match = _DATE.fullmatch(text.strip())
    if match is None:
        return ""
    *parts, sign, hours, minutes = match.groups()
    numbers = [int(part) for part in parts if part]
    try:
        zone = UTC if sign else None
        if hours:
            offset = timedelta(hours=int(hours), minutes=int(minutes or 0))
            zone = timezone(-offset if sign == "-" else offset)
        year, month, day, *clock = [*numbers, 1, 1][: max(len(numbers), 3)]
        hour, minute, second = [*clock, 0, 0, 0][:3]
        date = datetime(year, month, day, hour, minute, second, tzinfo=zone)
    except (ValueError, OverflowError):
        return ""
    return date.isoformat() if clock else date.date().isoformat()
