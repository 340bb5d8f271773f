"""All commands and snippets of README and docs run, and the site's pages need no network."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import typer
import yaml
from paths import ROOT

import llama_index_gap
from llama_index_gap import (
    DualEncoderEmbedding,
    DualIndex,
    DualIndexRetriever,
    MultiModalRerank,
    MultiModalSearchTool,
    read_corpus,
)
from llama_index_gap.cli.app import app, main
from llama_index_gap.demo.newsroom import CHECKPOINT, development_queries, write_newsroom
from llama_index_gap.diagnosis.report import report_gap
from tests.test_package import ROOMS

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("**/*.md"))]
ON_A_SERVER = {DOCS / "scaling.md"}
ON_A_CLUSTER = {DOCS / "ray.md"}
SERVER = "http://localhost:19530"  # what pages call a server
OWN_FOLDER = "my-env"  # what pages call an environment of the reader


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page's text without its code."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page, each with its language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# --- snippets ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout, as it is after ``llama-gap demo`` and README's first snippet."""
    folder = tmp_path_factory.mktemp("checkout")
    with chdir(folder):
        write_newsroom("gap-demo/newsroom", articles=120, queries_per_kind=8)
        embedding = DualEncoderEmbedding(model_name=CHECKPOINT)
        with DualIndex("articles.db", embed_model=embedding) as index:
            index.insert_nodes(read_corpus("gap-demo/newsroom").nodes)
        shutil.copytree("articles.db", "gap-demo/newsroom.db")
        Path("gap-demo/queries.txt").write_text("\n".join(development_queries(20)), "utf-8")
    for kept in ("llama_index_gap", "tests", "examples"):
        (folder / kept).symlink_to(ROOT / kept)
    return folder


@pytest.fixture
def checkout(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that checkout, for the snippets of a page."""
    monkeypatch.chdir(shutil.copytree(prepared, tmp_path / "checkout", symlinks=True))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("JINA_API_KEY", "a-key")
    monkeypatch.setitem(report_gap.__kwdefaults__, "rounds", 20)  # of 500 draws
    return tmp_path / "checkout"


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page not in ON_A_SERVER | ON_A_CLUSTER and blocks(page)],
    ids=name_of,
)
@pytest.mark.usefixtures("checkout")
# LlamaIndex's synchronous calls of asynchronous ones leave the main thread an event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_snippets(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_snippets(page, monkeypatch)


@pytest.mark.server
@pytest.mark.parametrize("page", sorted(ON_A_SERVER), ids=name_of)
@pytest.mark.usefixtures("checkout")
def test_snippets_on_a_server(page: Path, milvus_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_snippets(page, monkeypatch, server=milvus_url)


@pytest.mark.server
@pytest.mark.parametrize("page", sorted(ON_A_CLUSTER), ids=name_of)
@pytest.mark.usefixtures("checkout")
def test_snippets_on_a_cluster(
    page: Path, milvus_url: str, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray_address)  # where "auto" looks first
    run_snippets(page, monkeypatch, server=milvus_url)


def is_near(shown: str, printed: str) -> bool:
    """Whether outputs have the same words, and figures less than a query of eight apart."""
    figure = r"\d\.\d\d"
    pairs = zip(re.findall(figure, shown), re.findall(figure, printed), strict=True)
    words = [re.sub(figure, "", text) for text in (shown, printed)]
    return words[0] == words[1] and all(abs(float(a) - float(b)) < 0.1 for a, b in pairs)


def run_snippets(page: Path, monkeypatch: pytest.MonkeyPatch, server: str = SERVER) -> None:
    """Run a page from top to bottom: Python in one namespace, commands in this process."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = StringIO()
    shown = re.findall(
        r"[Ii]t prints:\n\n```text\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    for language, written in blocks(page):
        code = written.replace(SERVER, server)
        match language:
            case "python":
                printed = StringIO()
                with redirect_stdout(printed):
                    exec(compile(code, name_of(page), "exec"), names)
            case "sh":
                for line in code.replace("\\\n", " ").splitlines():
                    run_command(line, monkeypatch)
            case "json":
                json.loads(code)
            case "yaml":
                yaml.safe_load(code)
            case "text":  # what a command prints
                if written in shown:
                    assert is_near(written, printed.getvalue()), printed.getvalue()
            case _:
                pytest.fail(f"{name_of(page)}: no test knows what to do with {language!r} blocks")


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of llama-gap; for other commands, check that .ci/run or a test runs them."""
    program, *arguments = shlex.split(command, comments=True) or ["#"]
    makefile = (ROOT / "Makefile").read_text()
    program = program.removeprefix(".venv/bin/")
    match program:
        case "#":
            pass
        case ".":
            folder = arguments[0].removesuffix("/bin/activate")
            assert folder == OWN_FOLDER or f"VENV ?= {folder}\n" in makefile
        case "llama-gap" if arguments == ["demo"]:
            assert "llama-gap demo" in makefile
        case "llama-gap" if "--ray" in arguments and "RAY_ADDRESS" not in os.environ:
            assert any(command in page.read_text() for page in ON_A_CLUSTER)
        case "llama-gap":
            # In this process: a new process would spend most of its time on importing torch.
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as stopped:
                main()
            assert stopped.value.code == 0, command
        case "make":
            target, *settings = arguments
            assert f"make {target}" in (ROOT / ".ci" / "run").read_text()
            assert all(f"{setting.split('=')[0]} ?=" in makefile for setting in settings)
        case "pip":
            check_installation(arguments)
        case "python3":
            assert arguments == ["-m", "venv", OWN_FOLDER]
        case "python":
            check_program(arguments)
        case "ray":  # a cluster runs: that there are such commands and options
            known = importlib.import_module("ray.scripts.scripts").cli.commands[arguments[0]]
            options = {each.partition("=")[0] for each in arguments[1:]}
            assert options <= {option for each in known.params for option in each.opts}, command
        case _:
            pytest.fail(f"no test runs this command: {command}")


def check_installation(arguments: list[str]) -> None:
    """Pip installs this package, with extras that it has, or PyTorch from another index."""
    assert arguments[0] == "install"
    match arguments[1:]:
        case ["torch", "--index-url", _]:
            assert "--index-url $(TORCH_INDEX)" in (ROOT / "Makefile").read_text()
        case [package]:
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", package)
            assert extras, package
            known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
            named = set(filter(None, (extras[1] or "").split(",")))
            assert named <= set(known["project"]["optional-dependencies"]), package
        case _:
            pytest.fail(f"no test knows this installation: {arguments}")


def check_program(arguments: list[str]) -> None:
    """Check that a benchmark, an example or a module exists and has these options."""
    match arguments:
        case ["-m", module, *options]:
            file = ROOT / f"{module.replace('.', '/')}.py"
        case [path, *options]:
            file = ROOT / path
    source = file.read_text(encoding="utf-8")
    assert all(f'"{option}"' in source for option in options if option.startswith("--")), file


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_prose_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text()
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}

    for target in re.findall(r"`make (\w+)", text):
        assert f"\n{target}:" in makefile, target
    for command in re.findall(r"`llama-gap ([a-z]+)", text):
        assert command in commands
    for file in re.findall(r"`(?:python )?((?:benchmarks|examples|tests)/[\w/.]+)", text):
        assert (ROOT / file).exists(), file


# --- what must be on a page ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "settings"),
    [
        ("agents.md", set(inspect.signature(MultiModalSearchTool.__init__).parameters)),
        ("embed.md", set(DualEncoderEmbedding.model_fields)),
        ("search.md", set(inspect.signature(DualIndexRetriever.__init__).parameters)),
        ("rerank.md", set(MultiModalRerank.model_fields)),
    ],
)
def test_every_setting_is_listed(page: str, settings: set[str]) -> None:
    settings -= {"self", "index", "kwargs"}
    settings -= {"callback_manager", "num_workers", "embeddings_cache", "rate_limiter"}
    text = (DOCS / page).read_text(encoding="utf-8")

    assert {name for name in settings if f"`{name}`" not in text} == set()


def test_every_command_and_option_is_listed() -> None:
    text = (DOCS / "command-line.md").read_text(encoding="utf-8")
    command_line = typer.main.get_command(app)

    for command in command_line.commands.values():
        assert f"`llama-gap {command.name}`" in text
        options = {option for each in command.params for option in each.opts if option[:2] == "--"}
        assert {option for option in options - {"--help"} if f"`{option}`" not in text} == set()


def test_readme_is_short() -> None:
    """600 to 800 words: blocks of code, tables, headings, images and addresses do not count."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^[|#].*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|(?<=\])\([^)]*\)", "", text)
    words = [word for word in text.split() if re.search(r"\w", word)]

    assert 600 <= len(words) <= 800


def test_readme_prints_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its first snippet, in the newsroom that ``make demo`` has drawn, embedded and kept."""
    demo = ROOT / "gap-demo"
    if not (demo / "newsroom.db").exists():
        pytest.skip("make demo has not run in this checkout")
    (_, code), (language, printed), *_ = blocks(ROOT / "README.md")
    assert language == "text"
    *_, loop = code.partition("for found")
    shutil.copytree(demo / "newsroom.db", tmp_path / "newsroom.db")

    with DualIndex(str(tmp_path / "newsroom.db"), image_root=demo / "newsroom") as index:
        index.forget_queries()  # which the demo gave it
        exec(compile("for found" + loop, "README.md", "exec"), {"index": index})

    assert capsys.readouterr().out == printed


def test_troubleshooting_quotes_messages() -> None:
    """Each message in bold is one of the package's; … stands for names and numbers."""
    files = sorted((ROOT / "llama_index_gap").rglob("*.py"))
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    source = re.sub(r"\"\s*\n\s*f?\"", "", source)  # literals that follow each other are one
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    bold = " ".join(re.findall(r"^\*\*(.+?)\*\*", text, re.MULTILINE | re.DOTALL)).split()
    quoted = [
        part.strip(" .,;")
        for message in re.findall("“(.+?)”", " ".join(bold))
        for part in message.split("…")
    ]
    others = {"refusing multiply-linked file", "stopwords"}  # NLTK's

    assert {part for part in quoted if part not in source} == others
    assert len(quoted) > 20


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))

    for name in llama_index_gap.__all__:
        assert re.search(rf"^::: llama_index_gap\.[\w.]+\.{name}$", reference, re.MULTILINE), name


def test_contributing_shows_the_rooms_in_their_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    cells = " ".join(re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE))
    shown = [name.removesuffix("/").removesuffix(".py") for name in re.findall(r"`(.+?)`", cells)]

    assert [name for name in shown if name in ROOMS] == ROOMS


def test_every_page_is_in_the_navigation() -> None:
    shown = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))

    assert {
        page.relative_to(DOCS if DOCS in page.parents else ROOT).as_posix() for page in PAGES
    } == shown


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """As a code host follows them; docs/make_site.py checks those of the site."""
    text = prose(page)
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)

    for target in targets:
        assert (page.parent / target).exists(), target


# --- the site ------------------------------------------------------------------------------------


class Sources(HTMLParser):
    """Addresses that a page loads its parts from, without links for readers."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            places = (value for name, value in attrs if name in {"src", "href", "srcset"})
            self.found += filter(None, places)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, DOCS / "make_site.py", "--site-dir", folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_fetches_nothing(site: Path) -> None:
    pages = list(site.glob("**/*.html"))
    assert len(pages) >= len(PAGES)

    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert [url for url in Sources(text).found if "//" in url] == [], page
    for sheet in site.glob("**/*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", text), sheet
