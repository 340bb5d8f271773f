"""PDF files written by hand to be as hostile as possible."""

from __future__ import annotations

import zlib
from collections.abc import Mapping


def written(objects: Mapping[int, bytes], root: int = 1) -> bytes:
    """A file of numbered objects, with a table of their places."""
    data = b"%PDF-1.7\n"
    places = {}
    for number, content in objects.items():
        places[number] = len(data)
        data += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = len(data)
    last = max(objects)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (last + 1)
    for number in range(1, last + 1):
        if number in places:
            data += b"%010d 00000 n \n" % places[number]
        else:
            data += b"0000000000 00000 f \n"
    data += b"trailer\n<< /Size %d /Root %d 0 R >>\n" % (last + 1, root)
    return data + b"startxref\n%d\n%%%%EOF\n" % table


def stream(content: bytes, entries: bytes = b"") -> bytes:
    """A compressed stream."""
    packed = zlib.compress(content, 9)
    return b"<< /Length %d /Filter /FlateDecode %b >>\nstream\n%b\nendstream" % (
        len(packed),
        entries,
        packed,
    )


def bomb(unit: bytes, times: int, entries: bytes = b"") -> bytes:
    """A stream that repeats a unit, without ever holding it in full."""
    packer = zlib.compressobj(9)
    block = unit * 10_000
    parts = [packer.compress(block) for _ in range(times // 10_000)]
    packed = b"".join([*parts, packer.flush()])
    return b"<< /Length %d /Filter /FlateDecode %b >>\nstream\n%b\nendstream" % (
        len(packed),
        entries,
        packed,
    )


def one_page(
    contents: bytes,
    resources: bytes = b"",
    box: bytes = b"0 0 600 800",
    more: Mapping[int, bytes] | None = None,
) -> bytes:
    """A file of one page; object 4 is its content, object 5 its font.

    Args:
        contents: object 4.
        resources: resources besides the font.
        box: the page's box.
        more: further objects.
    """
    return written(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [%b] /Contents 4 0 R "
            b"/Resources << /Font << /F 5 0 R >> %b >> >>" % (box, resources),
            4: contents,
            5: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            **(more or {}),
        }
    )


TEXT = b"BT /F 12 Tf 50 700 Td (A good text) Tj ET\n"


def huge_box() -> bytes:
    return one_page(stream(TEXT), box=b"0 0 1000000 1000000")


def many_objects(count: int = 200_000) -> bytes:
    return one_page(bomb(b"0 0 m 9 9 l S\n", count))


def many_characters(count: int = 400_000) -> bytes:
    line = b"BT /F 1 Tf 50 %.2f Td (%09d " + b"abcdefghi " * 39 + b") Tj ET\n"
    lines = (line % (number * 0.7, number) for number in range(count // 400))
    return one_page(stream(b"".join(lines)))


def endless_content() -> bytes:
    """Hundreds of megabytes of saved graphics states, compressed to a megabyte."""
    return one_page(bomb(b"q ", 200_000_000))


def large_image(side: int = 60_000, components: bytes = b"/DeviceGray", bits: int = 1) -> bytes:
    """An image of billions of equal pixels."""
    size = side * side * bits // 8
    entries = (
        b"/Type /XObject /Subtype /Image /Width %d /Height %d /ColorSpace %b /BitsPerComponent %d"
        % (side, side, components, bits)
    )
    return one_page(
        stream(TEXT + b"q 300 0 0 300 50 300 cm /I Do Q"),
        b"/XObject << /I 6 0 R >>",
        more={6: bomb(b"\0", size, entries)},
    )


def odd_image(kind: bytes, data: bytes) -> bytes:
    """An image with invalid data in its format."""
    entries = (
        b"<< /Type /XObject /Subtype /Image /Width 400 /Height 400 /ColorSpace /DeviceGray "
        b"/BitsPerComponent 8 /Filter /%b /Length %d >>\nstream\n%b\nendstream"
        % (kind, len(data), data)
    )
    return one_page(
        stream(TEXT + b"q 300 0 0 300 50 300 cm /I Do Q"),
        b"/XObject << /I 6 0 R >>",
        more={6: entries},
    )


def nested_forms(depth: int = 12, width: int = 10) -> bytes:
    """Nested forms; each shows the next one ten times, 10 to the 12th in all."""
    more = {}
    for level in range(depth):
        inner = b"/N Do\n" * width if level < depth - 1 else b"0 0 m 9 9 l S\n"
        entries = (
            b"/Type /XObject /Subtype /Form /BBox [0 0 600 800] "
            b"/Resources << /XObject << /N %d 0 R >> >>" % (7 + level)
        )
        more[6 + level] = stream(inner, entries)
    return one_page(stream(TEXT + b"/N Do"), b"/XObject << /N 6 0 R >>", more=more)


def form_in_itself() -> bytes:
    entries = (
        b"/Type /XObject /Subtype /Form /BBox [0 0 600 800] "
        b"/Resources << /XObject << /N 6 0 R >> >>"
    )
    more = {6: stream(b"/N Do", entries)}
    return one_page(stream(TEXT + b"/N Do"), b"/XObject << /N 6 0 R >>", more=more)


def same_page(times: int, contents: bytes | None = None) -> bytes:
    """A page tree that lists one page many times."""
    return written(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [%b] /Count %d >>" % (b"3 0 R " * times, times),
            3: b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
            b"/Resources << /Font << /F 5 0 R >> >> >>",
            4: contents or stream(TEXT),
            5: b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        }
    )


def tree_in_itself() -> bytes:
    return written(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R >>",
            2: b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 1000000000 >>",
        }
    )


def deep_arrays(depth: int = 100_000) -> bytes:
    return one_page(stream(TEXT), b"/X " + b"[" * depth + b"]" * depth)
