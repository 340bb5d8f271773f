"""Measures how well PDF files of many kinds are read, and how fast a long one is read.

    python benchmarks/pdf.py [--pages 500] [--folder FOLDER]

The first table has a row for each kind of file: the parts that are read, and how many of its
captions and texts are right. For the second table, a report of 500 pages (about 300 words a page, a
figure on every fifth) is read with ``read_corpus``, with and without an image of each page, and
with pypdf, which LlamaIndex's ``PDFReader`` uses. Each way has a separate process. Its memory is
the peak above the memory after the imports; the memory of the pdfium process is its whole peak.
``--folder`` reads the PDF files of a folder instead, and shows the first table without the counts
of right captions and texts. Memory is measured only on Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from llama_index_gap import Corpus, CorpusError, read_corpus  # noqa: E402
from llama_index_gap.readers.pdf import process  # noqa: E402

console = Console(width=140)


def kinds(pages: int) -> dict[str, tuple[bytes, list[str], list[str]]]:
    """For each kind, a file, its captions, and pieces of its text in reading order."""
    import pdf_files as files

    columns = [f"{side} {number} " for side in ("left", "right") for number in range(12)]
    captions = [
        "Figure 1: A lantern in the harbour.",
        "Fig. 2. A violin beside the window, seen from the garden.",
        "The station at night",
    ]
    arabic = ["هذا نص عربي قصير", "والسطر الثاني هنا"]
    turned = ["The first line stands above. The second line follows it."]
    cells = [f"cell {row}{column}" for row in range(3) for column in range(3)]
    numbers = range(1, pages + 1)
    return {
        "two columns": (files.two_columns(), [], ["On columns", "Abstract.", *columns]),
        "two columns, rows first": (files.two_columns(rows_first=True), [], columns),
        "figures with captions": (files.figures(), captions, captions[:2]),
        "vector drawings, a table": (files.drawings(), ["Abb. 3: Ernten nach Jahren"], cells),
        "scanned, no text": (files.scanned(), ["", ""], []),
        "scanned, hidden text": (files.scanned("recognised words"), ["", ""], ["recognised words"]),
        **{
            f"rotated by {turn}": (files.rotated(turn), ["Figure 7: red above blue"], turned)
            for turn in (90, 180, 270)
        },
        "encrypted": (files.encrypted(), [], []),
        "encrypted, no password to read": (files.encrypted("", "owner"), captions, captions[:2]),
        "a form": (files.form(), [], ["Application", "Full name: Ada Lovelace", "City: Oslo"]),
        "Arabic": (files.arabic(arabic), [], [" ".join(arabic)]),
        "Chinese": (
            files.chinese(["人工智能的发展很", "快。"], files.photo(5), "图 3：人工智能的发展"),
            ["图 3：人工智能的发展"],
            ["人工智能的发展很快。"],
        ),
        f"{pages} pages": (
            files.report(pages),
            [f"Figure {number}: The view of page {number}." for number in numbers[4::5]],
            [f"Page {number} begins." for number in numbers],
        ),
        **{
            f"damaged: {round(100 * part)} % of a report of 6 pages": (
                files.report(6)[: int(len(files.report(6)) * part)],
                [],
                [],
            )
            for part in (0.3, 0.6, 0.9, 0.99)
        },
        "damaged: its table of objects": (files.figures().replace(b"xref", b"xxxx"), captions, []),
    }


def show_kinds(folder: Path, made: dict[str, tuple[bytes, list[str], list[str]]]) -> None:
    table = Table("kind", "passages", "figures", "pages as images", "captions right", "texts right")
    for column in ("left out by rule", "not read"):
        table.add_column(column)
    for kind, (data, captions, texts) in made.items():
        path = folder / "a.pdf"
        path.write_bytes(data)
        corpus, problem = read(path)
        images = [(node.metadata["image_kind"], node.text) for node in corpus.image_nodes]
        shown = Counter(kind for kind, _ in images)
        found = Counter(text for _, text in images)
        right = sum((found & Counter(captions)).values())
        text = "\n".join(node.get_content() for node in corpus.text_nodes)
        in_order, place = 0, 0
        for piece in texts:
            if (at := text.find(piece, place)) >= 0:
                in_order, place = in_order + 1, at + len(piece)
        table.add_row(
            kind,
            *(f"{count:,}" for count in (len(corpus.text_nodes), shown["figure"], shown["page"])),
            f"{right} of {len(captions)}" if captions else "",
            f"{in_order} of {len(texts)}" if texts else "",
            "\n".join(skip.reason for skip in corpus.skipped if skip.by_rule),
            problem or "\n".join(skip.reason for skip in corpus.skipped if not skip.by_rule),
        )
    console.print(table)


def show_folder(folder: Path) -> None:
    table = Table("file", "passages", "figures", "pages as images", "left out by rule", "not read")
    for path in sorted(folder.rglob("*.pdf")):
        corpus, problem = read(path)
        shown = Counter(node.metadata["image_kind"] for node in corpus.image_nodes)
        table.add_row(
            path.relative_to(folder).as_posix(),
            *(f"{count:,}" for count in (len(corpus.text_nodes), shown["figure"], shown["page"])),
            "\n".join(skip.reason for skip in corpus.skipped if skip.by_rule),
            problem or "\n".join(skip.reason for skip in corpus.skipped if not skip.by_rule),
        )
    console.print(table)


def read(path: Path) -> tuple[Corpus, str]:
    try:
        return read_corpus(path), ""
    except CorpusError as error:
        return Corpus([], []), str(error).partition(": no document could be read ")[2][1:-1]


# --- a long file ---------------------------------------------------------------------------------


def ours(path: Path, *, pages: bool) -> None:
    assert len(read_corpus(path, pages=pages).text_nodes) > 0


def pypdf_text(path: Path) -> None:
    import pypdf

    assert "".join(page.extract_text() for page in pypdf.PdfReader(path).pages)


WAYS: dict[str, Callable[[Path], None]] = {
    "read_corpus": lambda path: ours(path, pages=False),
    "read_corpus, pages=True": lambda path: ours(path, pages=True),
    "pypdf, text only": pypdf_text,
}


def measure(way: str, path: Path) -> None:
    """Read once in this process, and print seconds and bytes as JSON."""
    peak = 0
    close = process.PdfProcess.close

    def noting(self: process.PdfProcess) -> None:
        nonlocal peak
        running = self._process
        if running is not None:
            peak = max(peak, high_water(running.pid))
        close(self)

    process.PdfProcess.close = noting  # type: ignore[method-assign]
    import pypdf  # noqa: F401
    from scipy import ndimage, optimize  # noqa: F401

    from llama_index_gap.readers.splitting import default_splitter

    default_splitter()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, started, worked = high_water(os.getpid()), time.perf_counter(), processor_time()
    WAYS[way](path)
    result = {
        "seconds": time.perf_counter() - started,
        "processor": processor_time() - worked,
        "own": high_water(os.getpid()) - before,
        "pdfium": peak,
    }
    print(json.dumps(result))


def high_water(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024


def processor_time() -> float:
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def show_speed(folder: Path, pages: int) -> None:
    import pdf_files as files

    path = folder / "long.pdf"
    path.write_bytes(files.report(pages))
    table = Table(
        "way", "seconds", "processor s", "pages per second", "peak memory, MiB", "of pdfium, MiB"
    )
    for way in WAYS:
        command = [sys.executable, __file__, "--measure", way, str(path)]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(shown.stdout.splitlines()[-1])
        table.add_row(
            way,
            f"{result['seconds']:.1f}",
            f"{result['processor']:.1f}",
            f"{pages / result['seconds']:.1f}",
            f"{result['own'] / 2**20:.0f}",
            f"{result['pdfium'] / 2**20:.0f}" if result["pdfium"] else "",
        )
    kept = sum(file.stat().st_size for file in folder.rglob("images/*"))
    console.print(
        table,
        f"File: {path.stat().st_size / 2**20:.1f} MiB; images made of it: {kept / 2**20:.0f} MiB",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure[0], Path(arguments.measure[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary
        if arguments.folder:
            show_folder(arguments.folder)
            return
        show_kinds(Path(temporary), kinds(arguments.pages))
        show_speed(Path(temporary), arguments.pages)


if __name__ == "__main__":
    main()
