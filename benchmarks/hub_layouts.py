"""Shows llama-gap's answer to each layout of real repositories, served by an imitation of the hub.

    python benchmarks/hub_layouts.py [--code FOLDER] [ROW …]

For each row, ``llama-gap index`` or ``llama-gap search --reranker`` runs with an empty download
cache; the output has its last line, and the bytes and files that it fetched. ``--code`` runs the
command of another checkout. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from hub import Hub, environment  # noqa: E402 (of the tests)
from hub_layouts import make_repositories  # noqa: E402

CHILD = """
import contextlib, io, json, logging, sys
from huggingface_hub import constants
from llama_index_gap.cli import terminal
from llama_index_gap.cli.app import main

answer = sys.stdout
for line in sys.stdin:
    command, cache = json.loads(line)
    constants.HF_HUB_CACHE = cache
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["llama-gap", *command]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), file=answer, flush=True)
"""


@dataclass(frozen=True)
class Row:
    """One call of the command.

    Attributes:
        model: the model's name, as a user types it.
        reranker: whether it is passed as a reranker.
        options: further options.
    """

    model: str
    reranker: bool = False
    options: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The command as typed."""
        how = ["--reranker" if self.reranker else "--model", self.model, *self.options]
        return " ".join(how)


JINA, LAION = "jinaai/jina-clip-v2", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
NOMIC = "nomic-ai/nomic-embed-text-v1.5"
ROWS = [
    Row("clip"),
    Row("openai/clip-vit-base-patch32"),
    Row("openai/clip-vit-base-patch16"),
    Row("openai/clip-vit-base-patch16", options=["--allow-pickle"]),
    Row("sentence-transformers/clip-ViT-B-32"),
    Row("openai/clip-vit-large-patch14"),
    Row("nomic"),
    Row(NOMIC, options=["--revision", "refs/pr/56"]),  # a text model alone cannot build an index
    Row(JINA),
    Row(JINA, options=["--allow-pickle"]),
    Row(LAION),
    Row("laion/CLIP-open-clip-only"),
    Row("vidore/colqwen2-v1.0", reranker=True),
    Row("vidore/colqwen2-v1.0-hf", reranker=True),
    Row("jina-m0", reranker=True),
    Row("siglip2"),
    Row("owner/plain-vision-language"),
    Row("owner/plain-vision-language", options=["--pooling", "last"]),
    Row("llamaindex/vdr-2b-multi-v1"),
    Row("jinaai/jina-embeddings-v5-omni"),
    Row("jinaai/jina-reranker-v3", reranker=True),
    Row("owner/own-model-type"),
    Row("facebook/dinov3-vitb16-pretrain-lvd1689m"),
    Row("timm/vit_base_patch16_224"),
    Row("owner/gguf"),
    Row("owner/onnx"),
    Row("owner/empty"),
    Row("owner/data"),
    Row("openai/clip-vit-base-patch23"),
    Row("Clip"),
    Row("jina-m0"),
    Row("jina", reranker=True),
    Row("jinaai/jina-reranker-m0"),
    Row(JINA, reranker=True),
    Row(JINA, options=["--revision", "v9"]),
    Row("owner/often"),
    Row("owner/broken"),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("rows", nargs="*", help="only rows whose command contains one of these")
    parser.add_argument("--code", type=Path, default=ROOT, help="run the command of this checkout")
    arguments = parser.parse_args()
    wanted = [
        row
        for row in ROWS
        if not arguments.rows or any(each in row.title for each in arguments.rows)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hub = Hub(make_repositories(folder / "checkpoints"))
        (folder / "docs.jsonl").write_text(json.dumps({"id": "a", "text": "a red bicycle"}))
        with hub.serving():
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=folder,
                env={
                    **os.environ,
                    **environment(hub, folder / "cache"),
                    "PYTHONPATH": str(arguments.code.resolve()),
                    "XDG_DATA_HOME": scratch,
                    "COLUMNS": "2000",
                    "TERM": "dumb",
                },
            )
            try:
                for number, row in enumerate(wanted):
                    if row.reranker and not (folder / "searched.db").exists():
                        _ask(child, [*_INDEX, "searched.db", "--model", "checkpoints/clip"], "none")
                    hub.fetched.clear()
                    command = (
                        ["search", "a", "--db", "searched.db", "--reranker", row.model]
                        if row.reranker
                        else [*_INDEX, f"{number}.db", "--model", row.model]
                    )
                    said = _ask(child, [*command, *row.options], f"cache-{number}")
                    names = sorted({path for _, path in hub.fetched})
                    weights = [each for each in names if not each.endswith(_SETTINGS)]
                    size = sum(hub.fetched.values())
                    print(f"\n{row.title}\n  {said}")
                    print(
                        f"  fetched {size:,} bytes: {', '.join(weights) or 'no weights'}",
                        flush=True,
                    )
            finally:
                child.kill()
                child.wait()


_INDEX = ["index", "docs.jsonl", "--db"]
_SETTINGS = (".json", ".txt", ".md", ".jinja", ".model")


def _ask(child: subprocess.Popen[str], command: list[str], cache: str) -> str:
    """Run the command in the child with an empty cache; return its exit code and last line."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps([command, cache]) + "\n")
    child.stdin.flush()
    code, out, err = json.loads(child.stdout.readline())
    printed = out if code == 0 else err
    lines = [line.strip(" │╰─╭╮╯") for line in printed.splitlines()]
    lines = [line for line in lines if line]
    kept = [line for line in lines if line.startswith(("error", "Indexed", "score"))] or lines[-1:]
    return f"[{code}] {' '.join(kept)}"


if __name__ == "__main__":
    main()
