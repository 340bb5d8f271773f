from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest

import llama_index_gap


def test_public_names_are_there_and_described() -> None:
    for name in llama_index_gap.__all__:
        assert getattr(llama_index_gap, name).__doc__, name


def test_every_public_name_has_a_home() -> None:
    homes = [name for names in llama_index_gap._HOMES.values() for name in names]

    assert sorted(homes) == sorted(llama_index_gap.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = llama_index_gap.Nothing


def test_importing_it_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "from llama_index_gap import *\n"
        "import llama_index_gap.cli\n"
        "print(sorted({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_it_says_that_it_is_typed_and_has_a_command() -> None:
    assert (Path(llama_index_gap.__file__).parent / "py.typed").is_file()
    assert llama_index_gap.__version__ == version("llama-index-gap")
    (command,) = entry_points(group="console_scripts", name="llama-gap")
    assert command.load() is not None


def test_every_dependency_has_a_floor() -> None:
    needed = [line for line in requires("llama-index-gap") or [] if "extra ==" not in line]

    assert needed
    assert all(">=" in line for line in needed)


def test_nothing_imports_upward() -> None:
    """The arrows of the design: what lies lower knows nothing of what lies above it."""
    package = Path(llama_index_gap.__file__).parent
    above = {
        "fetch.py": {"llama_index", "llama_index_gap"},
        "markdown.py": {"llama_index", "llama_index_gap"},
        "threads.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "tracing.py": {"llama_index_gap", "torch", "pymilvus"},
        "settings.py": {"llama_index_gap", "torch", "pymilvus"},
        "fusion.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "gap/align.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "gap/calibrate.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "gap/measure.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "gap/remedies.py": {
            "llama_index",
            "torch",
            "pymilvus",
            *ours("index", "page", "gap.report"),
        },
        "gap/advice.py": {"llama_index", "torch", "pymilvus", *ours("index", "page", "gap.report")},
        "gap/collect.py": {"torch", "pymilvus", *ours("page", "demo", "cli", "gap.report")},
        "gap/report.py": {"torch", "pymilvus", *ours("page", "gap_page", "demo", "cli")},
        "gap_page.py": {"torch", "pymilvus", *ours("store", "index", "gap_terminal", "cli")},
        "gap_terminal.py": {"torch", "pymilvus", *ours("store", "index", "gap_page", "cli")},
        "models/*.py": {"llama_index", "pymilvus", *ours("embedding", "readers", "store", "index")},
        "models/caches.py": {"transformers", "llama_index_gap"},
        "models/packing.py": {"llama_index_gap"},
        "models/qwen_vision.py": ours("models.jina_reranker", "models.loading"),
        "images.py": {"torch", *ours("readers", "embedding", "models", "store", "cli")},
        "readers.py": {"torch", *ours("embedding", "models", "store", "index", "cli")},
        "embedding.py": ours("readers", "store", "index", "retriever", "demo", "cli"),
        "answers.py": {"torch", "pymilvus", *ours("retriever", "rerank", "index", "demo", "cli")},
        "store.py": ours("readers", "embedding", "models", "index", "retriever", "demo", "cli"),
        "retriever.py": ours("readers", "rerank", "demo", "cli"),
        "rerank.py": {"torch", *ours("readers", "embedding", "store", "index", "demo", "cli")},
        "tool_arguments.py": {"torch", "pymilvus", *ours("store", "index", "retriever", "tool")},
        "tool.py": {"torch", "pymilvus", *ours("readers", "rerank", "index", "demo", "cli")},
        "mcp_server.py": {"torch", "pymilvus", *ours("readers", "demo", "cli")},
        "evaluation/metrics.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "evaluation/trec.py": {"llama_index", "torch", "pymilvus", *ours("readers", "index")},
        "evaluation/datasets.py": {"torch", "pymilvus", *ours("models", "store", "index", "cli")},
        "evaluation/journal.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "evaluation/experiment.py": {"torch", "pymilvus", *ours("readers", "page", "demo", "cli")},
        "evaluation/examples.py": {"torch", "rich", *ours("index", "demo", "cli")},
        "evaluation/tables.py": {"torch", *ours("index", "page", "demo", "cli")},
        "evaluation/experiment_page.py": {"torch", *ours("index", "demo", "cli")},
        "terminal.py": {"llama_index", "llama_index_gap", "torch", "pymilvus"},
        "demo/run.py": {"torch", *ours("store", "cli")},
        "index.py": ours("calibration", "page", "demo", "cli"),
        "calibration.py": ours("page", "demo", "cli"),
        "demo/drawing.py": {"llama_index", "torch", "llama_index_gap"},
        "demo/newsroom.py": {
            *("llama_index", "torch", "transformers"),
            *ours("models", "embedding", "readers", "store", "index", "evaluation", "cli"),
        },
        "demo/train*.py": {
            *("llama_index", "pymilvus"),
            *ours("embedding", "readers", "store", "index", "evaluation", "cli"),
        },
        "page.py": ours("store", "index", "retriever", "models", "embedding", "demo", "cli"),
    }
    for pattern, names in above.items():
        files = list(package.glob(pattern))
        assert files, pattern
        for file in files:
            code = file.read_text(encoding="utf-8")
            imported = set(re.findall(r"^\s*(?:from|import) ([\w.]+)", code, re.MULTILINE))
            reached = {module for module in imported for name in names if is_below(module, name)}
            assert reached == set(), file


def ours(*names: str) -> set[str]:
    return {f"llama_index_gap.{name}" for name in names}


def is_below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
