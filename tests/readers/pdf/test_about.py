"""What a PDF file says of itself."""

from __future__ import annotations

import pytest

from llama_index_gap.readers.pdf.about import author_of, iso_date, title_of


@pytest.mark.parametrize(
    ("written", "date"),
    [
        ("D:20240131120000+01'00'", "2024-01-31T12:00:00+01:00"),
        ("D:20240131120000-0530", "2024-01-31T12:00:00-05:30"),
        ("D:20240131120000Z", "2024-01-31T12:00:00+00:00"),
        ("D:20240131120000Z00'00'", "2024-01-31T12:00:00+00:00"),
        ("20240131120000", "2024-01-31T12:00:00"),
        ("D:20240131", "2024-01-31"),
        ("D:2024", "2024-01-01"),
        ("D:20240231", ""),
        ("D:00000000", ""),
        ("Monday", ""),
        ("", ""),
    ],
)
def test_dates_are_iso_dates(written: str, date: str) -> None:
    assert iso_date(written) == date


def test_what_programs_put_there_is_no_title() -> None:
    for written in ("untitled", "Untitled-1", "report.docx", "", "Microsoft Word - a.doc"):
        assert title_of(written) == ""
    assert title_of("Microsoft Word - A  report\x00") == "A report"
    assert author_of("anonymous") == ""
    assert author_of("Ada Lovelace") == "Ada Lovelace"
