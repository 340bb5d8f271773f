from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest

import llama_index_gap

PACKAGE = Path(llama_index_gap.__file__).parent

# The rooms, from top to bottom: each imports only from itself and from the rooms after it.
ROOMS = [
    "cli",
    "demo",
    "diagnosis",
    "evaluation",
    "distributed",
    "index",
    "search",
    "agents",
    "answers",
    "results",
    "store",
    "embedding",
    "models",
    "readers",
    "nodes",
    "images",
    "gap",
    "model_settings",
    "modality",
    "files",
    "processes",
    "pickling",
    "progress",
    "threads",
    "text",
    "errors",
]
# The libraries that some rooms must not import.
UNKNOWN = {
    "gap": {"llama_index", "torch", "transformers", "pymilvus", "PIL"},
    "models": {"llama_index", "pymilvus"},
    "readers": {"torch", "transformers", "pymilvus"},
    "images": {"torch", "transformers", "pymilvus"},
    "agents": {"torch", "transformers", "pymilvus", "jinja2"},
    "answers": {"torch", "transformers", "pymilvus"},
    "results": {"torch", "transformers", "pymilvus", "jinja2"},
    "search": {"torch", "transformers", "pymilvus", "jinja2"},
    "demo": {"llama_index", "pymilvus"},
    "text": {"llama_index", "torch", "pymilvus"},
    "errors": {"llama_index", "torch", "pymilvus"},
}


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
        "import llama_index_gap.cli.app\n"
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
    """Each room imports from itself and from those below it; imports within functions count."""
    for file, modules in imports().items():
        for module in modules:
            if module.startswith("llama_index_gap."):
                assert ROOMS.index(room(module)) >= ROOMS.index(room(file)), (file, module)


def test_no_room_imports_what_it_is_to_know_nothing_of() -> None:
    for file, modules in imports().items():
        reached = {module.partition(".")[0] for module in modules}
        assert not reached & UNKNOWN.get(room(file), set()), file


def test_no_private_name_crosses_files() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "llama_index_gap"
            ):
                private = [each.name for each in node.names if each.name.startswith("_")]
                assert not private, path


def imports() -> dict[str, set[str]]:
    """All imports of each module of the package, also within functions and for types only."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(["llama_index_gap", *path.relative_to(PACKAGE).with_suffix("").parts])
        modules: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules.update(each.name for each in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module)
        if name != "llama_index_gap.__init__":  # it imports all public names on demand
            found[name] = modules
    return found


def room(module: str) -> str:
    return module.split(".")[1]
