"""Sites: which generator made one, and where it keeps its images.

A site's root may lie above the folder that the user names. The pages' images may then come only
from folders that the site's generator publishes: the author of the pages cannot show anything that
the site does not show already.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from llama_index_gap.files import FileError, read_text

_LONGEST_CONFIG = 2**20
_ADDRESS = re.compile(
    r"""^[ \t]*['"]?(?:baseurl|url|base_url|site_url|siteurl|site|homepage)['"]?[ \t]*[:=][ \t]*"""
    r"""['"]?(?P<url>https?://[^\s'"#,]+)""",
    re.IGNORECASE | re.MULTILINE,
)
_BASE = re.compile(
    r"""^[ \t]*['"]?(?:baseurl|base|pathprefix)['"]?[ \t]*[:=][ \t]*['"]?(?P<path>/[^\s'"#,]*)""",
    re.IGNORECASE | re.MULTILINE,
)
_SETTING = re.compile(
    r"""^(?P<name>[\w-]+)[ \t]*:[ \t]*(?P<value>[^\s#][^\n#]*?)[ \t]*(?:#.*)?$""", re.M
)
_FOLDERS = re.compile(
    r"""^[ \t]*['"]?(?:static_?dir|docs_dir|source_dir|source)['"]?[ \t]*[:=]"""
    r"""[ \t]*['"]?(?P<path>[\w./-]+)""",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Generator:
    """How a generator of sites lays a site out.

    Attributes:
        name: its name.
        markers: files or folders; each site has one of them in its root.
        beside: folders; one of them must be beside the marker.
        published: folders where a path ``/…`` starts, the likeliest first; ``.`` is the root,
            without names that begin with an underscore or a dot.
        templates: folders that hold no pages: templates, data, or the generator's output.
    """

    name: str
    markers: tuple[str, ...]
    published: tuple[str, ...]
    templates: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


_HUGO = Generator(
    "Hugo",
    ("hugo.toml", "hugo.yaml", "hugo.yml", "hugo.json", "config/_default"),
    ("static", "assets", "content"),
    ("layouts", "themes", "archetypes", "public", "resources", "i18n", "data"),
)
_JEKYLL = Generator(
    "Jekyll",
    ("_config.yml", "_config.yaml", "_config.toml"),
    (".", "assets"),
    ("_site", "_layouts", "_includes", "_sass", "_data", "_plugins", "vendor"),
)
GENERATORS = (
    _HUGO,
    replace(
        _HUGO,
        markers=("config.toml", "config.yaml", "config.yml", "config.json"),
        beside=("content", "archetypes"),
    ),
    Generator(
        "Hexo", ("_config.yml",), ("source",), ("themes", "scaffolds", "public"), ("source",)
    ),
    _JEKYLL,
    Generator(
        "Docusaurus",
        tuple(f"docusaurus.config.{suffix}" for suffix in ("js", "ts", "mjs", "cjs")),
        ("static", "docs", "blog", "src"),
        ("build",),
    ),
    Generator("MkDocs", ("mkdocs.yml", "mkdocs.yaml"), ("docs",), ("site", "overrides")),
    Generator(
        "Eleventy",
        (".eleventy.js", *(f"eleventy.config.{suffix}" for suffix in ("js", "mjs", "cjs", "ts"))),
        (
            "public",
            "static",
            "src",
            "assets",
            "images",
            "img",
            "content",
            "src/public",
            "src/static",
            "src/assets",
        ),
        ("_site", "_includes", "src/_includes", "_data", "src/_data", "dist"),
    ),
    Generator(
        "Astro",
        tuple(f"astro.config.{suffix}" for suffix in ("mjs", "js", "ts", "cjs")),
        ("public", "src", "src/assets", "src/content"),
        ("dist",),
    ),
    Generator(
        "Gatsby",
        ("gatsby-config.js", "gatsby-config.ts"),
        ("static", "content", "src"),
        ("public",),
    ),
    Generator(
        "Next.js",
        ("next.config.js", "next.config.mjs", "next.config.ts"),
        ("public",),
        (".next", "out"),
    ),
    Generator("VitePress", (".vitepress",), ("public", "."), ()),
    Generator("VuePress", (".vuepress",), (".vuepress/public", "public", "."), ()),
    Generator("Pelican", ("pelicanconf.py",), ("content", "content/images"), ("output", "theme")),
    Generator("Obsidian", (".obsidian",), (".",)),
)
# Without a marker: the folders where a path "/…" starts in the usual generators.
_UNKNOWN = Generator(
    "",
    (),
    (
        ".",
        "static",
        "public",
        "assets",
        "source",
        "content",
        "docs",
        "src",
        "media",
        "website/static",
    ),
)


@dataclass
class Site:
    """A site, or a plain folder of pages.

    Attributes:
        folder: its root.
        generator: how it is laid out.
        above: whether its root lies above the folder that the user named.
    """

    folder: Path
    generator: Generator = _UNKNOWN
    above: bool = False

    @cached_property
    def _config(self) -> str:
        texts = []
        for name in (*self.generator.markers, "CNAME", "config/_default/hugo.toml", "package.json"):
            try:
                file = self.folder / name
                if file.is_file() and file.stat().st_size <= _LONGEST_CONFIG:
                    texts.append(read_text(file, self.folder))
            except (OSError, FileError):
                continue
        return "\n".join(texts)

    @cached_property
    def hosts(self) -> frozenset[str]:
        """The hosts whose URLs are files of this site."""
        urls = (found["url"] for found in _ADDRESS.finditer(self._config))
        hosts = {host_of(url) for url in urls}
        with suppress(FileError):
            hosts.add(read_text(self.folder / "CNAME", self.folder).strip().lower())
        plain = {host.removeprefix("www.") for host in hosts} - {"", "example.com", "example.org"}
        return frozenset(plain | {f"www.{host}" for host in plain})

    @cached_property
    def bases(self) -> tuple[str, ...]:
        """The base paths that the site's addresses may begin with."""
        urls = (found["url"] for found in _ADDRESS.finditer(self._config))
        paths = [
            *(path_of(url) for url in urls),
            *(m["path"] for m in _BASE.finditer(self._config)),
        ]
        return tuple(dict.fromkeys(p.strip("/") for p in paths if p.strip("/")))

    @cached_property
    def published(self) -> tuple[Path, ...]:
        """The folders where a path ``/…`` starts, the likeliest first."""
        said = (found["path"].strip("/") for found in _FOLDERS.finditer(self._config))
        names = (
            (*said, *self.generator.published) if self.generator.name else self.generator.published
        )
        folders = (self.folder / name for name in names if ".." not in PurePosixPath(name).parts)
        return tuple(dict.fromkeys(folders))

    @cached_property
    def variables(self) -> dict[str, str]:
        """The text settings of a Jekyll site, with names like ``site.name``."""
        if self.generator.name != "Jekyll":
            return {}
        return {
            f"site.{m['name']}": m["value"].strip("\"'")
            for m in _SETTING.finditer(self._config)
            if m["name"] not in {"baseurl", "url"}
        }

    def shows(self, file: Path) -> bool:
        """Whether the site itself publishes a file, after links are resolved."""
        for folder in self.published:
            if file.is_relative_to(folder.resolve()):
                inside = file.relative_to(folder.resolve())
                if folder != self.folder or not inside.parts[0].startswith(("_", ".")):
                    return True
        return False


def site_above(folder: Path) -> Site | None:
    """The site that a folder is part of, if the site's root lies above it; never the home folder.

    Without a marker, a folder ``content`` beside ``static`` is Hugo's, and ``_posts`` is Jekyll's.
    """
    folder = Path(os.path.normpath(folder.absolute()))
    if generator_of(folder):
        return None
    try:
        home = Path.home().resolve()
    except RuntimeError:
        home = Path("/nonexistent")
    for below, parent in zip([folder, *folder.parents], folder.parents, strict=False):
        if parent == Path(parent.anchor) or home.is_relative_to(parent.resolve()):
            return None
        generator = generator_of(parent)
        if generator is None and below.name == "content" and (parent / "static").is_dir():
            generator = _HUGO
        if generator is None and below.name in {"_posts", "_drafts"}:
            generator = _JEKYLL
        if generator is not None:
            if generator.name == "Jekyll" and not _in_collection(folder, parent):
                return None
            return Site(parent, generator, above=True)
        if (parent / ".git").exists():  # another project begins there
            return None
    return None


def repository_above(folder: Path) -> Path | None:
    """The Git working tree that holds a folder, for messages."""
    return next((p for p in folder.absolute().parents if (p / ".git").exists()), None)


def _in_collection(folder: Path, root: Path) -> bool:
    parts = folder.relative_to(root).parts
    return any(part.startswith("_") for part in parts) or (folder / "_posts").is_dir()


def generator_of(folder: Path) -> Generator | None:
    """The generator that has its marker in a folder."""
    try:
        names = {each.name for each in folder.iterdir()}
    except OSError:
        return None
    for generator in GENERATORS:
        markers = (each for each in generator.markers if each.partition("/")[0] in names)
        if any("/" not in marker or (folder / marker).exists() for marker in markers) and (
            not generator.beside or not names.isdisjoint(generator.beside)
        ):
            return generator
    return None


def host_of(url: str) -> str:
    """The host of a URL, in lower case; empty if it has none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def path_of(url: str) -> str:
    """The path of a URL, not decoded."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""
