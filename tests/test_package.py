from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import llama_index_gap


def test_public_names_are_there_and_described() -> None:
    for name in llama_index_gap.__all__:
        assert getattr(llama_index_gap, name).__doc__, name


def test_importing_it_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, llama_index_gap, llama_index_gap.cli\n"
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
    forbidden = {
        "fetch.py": ["llama_index_gap", "llama_index."],
        "markdown.py": ["llama_index_gap", "llama_index."],
        "images.py": ["llama_index_gap.readers", "llama_index_gap.embedding", "models", "cli"],
        "readers.py": ["llama_index_gap.embedding", "llama_index_gap.models", "cli"],
        "models/*.py": ["llama_index.", "pymilvus", "llama_index_gap.embedding", "readers"],
        "embedding.py": ["readers", "cli", "demo"],
    }
    for pattern, names in forbidden.items():
        files = list(package.glob(pattern))
        assert files, pattern
        for file in files:
            imports = [
                line
                for line in file.read_text(encoding="utf-8").splitlines()
                if line.strip().startswith(("import ", "from "))
            ]
            for name in names:
                assert not [line for line in imports if name in line.split("import")[0]], file
