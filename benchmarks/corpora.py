"""Measures how many documents, images and captions are read from corpora in their native forms.

    GAP_SHARED=… python benchmarks/corpora.py [--against COMMIT] [--seed 0]

Small sites follow the conventions of their generators and exporters (see
``tests/support/native_sites.py``). The published blog in the folder that ``GAP_SHARED`` names is
read unchanged, and also written as a Jekyll and a Hugo site, whose posts are also read alone. For
each corpus, the table compares the documents and images that exist with those that are found, and
counts the right captions in a sample of 20 images. With ``--against``, the code of another commit
reads the same files, in a temporary worktree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support")]

from native_sites import SITES, Expected, blog_as_hugo, blog_as_jekyll  # noqa: E402

READ = """
import json, sys
from llama_index_gap import read_corpus
for path in sys.argv[1:]:
    try:
        corpus = read_corpus(path)
    except ValueError as error:
        print(json.dumps({"documents": [], "images": [], "unshown": [], "error": str(error)}))
        continue
    unshown = [s.source for s in corpus.skipped if s.reason.startswith("no page shows")]
    images = [[n.ref_doc_id, str(n.image_path), n.text] for n in corpus.image_nodes]
    pages = corpus.document_ids
    print(json.dumps({"documents": pages, "images": images, "unshown": unshown, "error": ""}))
"""
SAMPLE = 20


def read_by(code: Path, paths: list[Path]) -> list[dict[str, list[str]]]:
    """The results of reading corpora with the package in a folder."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(code)},
        cwd=code,
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def row(
    read: dict[str, list[str]], expected: Expected, root: Path, below: str, seed: int
) -> tuple[str, str, str, str]:
    """Cells for documents, images, captions of a sample, and images reported as not shown."""
    prefix = f"{below}/" if below else ""
    shown = [each for each in expected.shown if each[0].startswith(prefix)]
    documents = {
        each.removeprefix(prefix) for each in expected.documents if each.startswith(prefix)
    }
    found = Counter(
        (page, Path(file).relative_to(root.resolve()).as_posix(), caption)
        for page, file, caption in read["images"]
    )
    files = Counter((page, file) for page, file, _ in found.elements())
    wanted = Counter((page.removeprefix(prefix), file) for page, file, _ in shown)
    images = sum((files & wanted).values())
    sample = random.Random(seed).sample(shown, min(SAMPLE, len(shown)))
    right = sum((page.removeprefix(prefix), file, text) in found for page, file, text in sample)
    unshown = expected.unshown if not below else set()
    reported = set(read["unshown"])
    wrong = len(reported - unshown)
    return (
        f"{len(documents & set(read['documents'])):,} of {len(documents):,}",
        f"{images:,} of {sum(wanted.values()):,}",
        f"{right} of {len(sample)}",
        f"{len(unshown & reported)} of {len(unshown)}" + (f", {wrong:,} wrongly" if wrong else ""),
    )


def blog_as_it_is(blog: Path) -> Expected:
    """The contents of the published blog, from its lines."""
    expected = Expected(set(), [])
    with (blog / "docs.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            expected.documents.add(document["id"])
            for image in document.get("images") or []:
                expected.shown.append((document["id"], image["path"], image["alt"].strip()))
    return expected


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "--against", metavar="COMMIT", help="also read with the code of this commit"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    arguments = parser.parse_args()
    shared = os.environ.get("GAP_SHARED")
    blog = Path(shared) / "data" / "18f_blog" if shared else None
    with tempfile.TemporaryDirectory() as folder:
        corpora: list[tuple[str, Path, Expected, str]] = []
        for name, make in SITES.items():
            root = Path(folder, name.replace(" ", "-").replace("'", ""))
            expected = make(root)
            corpora.append((name, root, expected, ""))
            alone = {"Hugo": "content", "Jekyll": "_posts"}.get(name)
            if alone:
                corpora.append((f"{name}, {alone} alone", root, expected, alone))
        if blog is None or not blog.exists():
            print("GAP_SHARED holds no data/18f_blog; the blog is left out", file=sys.stderr)
        else:
            corpora.append(("18F's blog, as it is", blog, blog_as_it_is(blog), ""))
            for name, write_blog, alone in (
                ("Jekyll", blog_as_jekyll, "_posts"),
                ("Hugo", blog_as_hugo, "content"),
            ):
                root = Path(folder, f"blog-{name}")
                expected = write_blog(blog, root)
                corpora.append((f"18F's blog in {name}", root, expected, ""))
                corpora.append((f"18F's blog in {name}, {alone} alone", root, expected, alone))
        paths = [root / below for _, root, _, below in corpora]
        codes = {"now": read_by(ROOT, paths)}
        if arguments.against:
            worktree = Path(folder, "worktree")
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run(
                [*git, "add", "--detach", "--quiet", str(worktree), arguments.against], check=True
            )
            try:
                codes = {arguments.against: read_by(worktree, paths), **codes}
            finally:
                subprocess.run([*git, "remove", "--force", str(worktree)], check=True)
        print(
            f"| corpus | code | documents | images | captions of {SAMPLE} | reported as not shown |"
        )
        print("|---|---|---|---|---|---|")
        for place, (name, root, expected, below) in enumerate(corpora):
            for code, read in codes.items():
                cells = row(read[place], expected, root, below, arguments.seed)
                print(f"| {name} | {code} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
