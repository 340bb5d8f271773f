"""Repairs truncated PDF files, so that pdfium opens their remaining pages."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

MOST_BYTES = 256 * 2**20
"""The most bytes of a file that is repaired; it is held in memory."""
_MOST_PAGES = 10_000
_OBJECT = re.compile(rb"(?<![0-9])([0-9]{1,8})[ \t\r\n]{1,20}([0-9]{1,5})[ \t\r\n]{1,20}obj\b")
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_PARENT = re.compile(rb"/Parent\s+([0-9]{1,8})\s+[0-9]{1,5}\s+R")
_CATALOG = re.compile(rb"/Type\s*/Catalog(?![A-Za-z])")
_LONGEST_PAGE = 20_000  # bytes of a page's object, without its content


def repaired(data: bytes) -> bytes | None:
    """Add a trailer to a file, and a tree of the pages whose objects it still has.

    pdfium can find the objects of a damaged file, but it needs the two objects that list the pages;
    most files have them at the end.

    Args:
        data: a file that pdfium does not open.

    Returns:
        The repaired file; None if it has no page or is encrypted.
    """
    if b"/Encrypt" in data:
        return None
    starts = {int(match[1]): match.end() for match in _OBJECT.finditer(data)}
    ends = dict(pairwise([*sorted(starts.values()), len(data)]))
    pages: list[int] = []
    parents: Counter[int] = Counter()
    root = None
    for number, start in starts.items():
        head = data[start : min(ends[start], start + _LONGEST_PAGE)].partition(b"stream")[0]
        if _PAGE.search(head) and len(pages) < _MOST_PAGES:
            pages.append(number)
            if parent := _PARENT.search(head):
                parents[int(parent[1])] += 1
        elif _CATALOG.search(head):
            root = number
    missing = [number for number, _ in parents.most_common() if number not in starts]
    if not pages:
        return None
    free = max([*starts, *parents]) + 1
    added = b""
    if root is None or missing:
        # The new tree replaces the missing one; pages no longer inherit anything from it.
        tree = missing[0] if missing else free + 1
        kids = b" ".join(b"%d 0 R" % page for page in pages)
        form = b"\n%d 0 obj\n<< /Type /Pages /Kids [%b] /Count %d >>\nendobj"
        added += form % (tree, kids, len(pages))
        added += b"\n%d 0 obj\n<< /Type /Catalog /Pages %d 0 R >>\nendobj" % (free, tree)
        root = free
    # Insert before the truncated object, so that it does not swallow the addition.
    whole = data.rfind(b"endobj") + len(b"endobj") if b"endobj" in data else 0
    added += b"\ntrailer\n<< /Root %d 0 R /Size %d >>\n%%%%EOF\n" % (root, free + 2)
    return data[:whole] + added
