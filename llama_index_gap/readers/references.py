"""Finds the file that a page's reference to an image means."""

from __future__ import annotations

import fnmatch
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from llama_index_gap.readers.front_matter import IMAGE_SUFFIXES, suffix_of
from llama_index_gap.readers.records import ImageReference
from llama_index_gap.readers.sites import (
    Site,
    generator_of,
    host_of,
    path_of,
    repository_above,
)

# Prefixes that stand for a folder of the site.
_ALIASES = re.compile(
    r"^(?:@site/|~@?/|~@(?=\w)|@/|pathname:///|\{(?:static|attach|filename)\}/?|%PUBLIC_URL%/)"
)
_UPLOADS = "/wp-content/uploads/"
_RESIZED = re.compile(r"-\d{2,5}x\d{2,5}(?=\.\w+$)|-scaled(?=\.\w+$)")
_LONGEST_PATH = 2_000


class References:
    """Finds the file of a corpus that a page's reference to an image means.

    Args:
        folder: the folder that the user named.
        root: the folder that images must lie in.
        files: the files of the folder.
        above: the site that the folder is part of, if the site's root lies above it.
    """

    def __init__(self, folder: Path, root: Path, files: Iterable[Path], above: Site | None) -> None:
        self._folder, self._root = folder.absolute(), root.absolute()
        self._files = list(files)
        self._above = above
        self._sites: dict[Path, Site] = {}
        self._listings: dict[Path, dict[str, str]] = {}
        self._known: dict[tuple[Path, str], Path | None] = {}

    def site_of(self, folder: Path) -> Site:
        """The site that a folder of the corpus is part of."""
        folder = folder.absolute()
        if folder not in self._sites:
            top = self._root if folder.is_relative_to(self._root) else self._folder
            generator = generator_of(folder)
            if generator is not None and not (
                folder.name == "source" and generator.name == "Jekyll"
            ):
                site = Site(folder, generator)
            elif folder == top or not folder.is_relative_to(top):
                site = self._above or Site(top)
            else:
                site = self.site_of(folder.parent)
            self._sites[folder] = site
        return self._sites[folder]

    def resolve(self, image: ImageReference, page: Path) -> list[ImageReference]:
        """Complete a page's reference with the file that it means, or with why there is none.

        Args:
            image: the reference, with the path as the page has it.
            page: the page's file.

        Returns:
            One reference; several for a pattern; none if an optional image is missing.
        """
        if "*" in image.path and "://" not in image.path:
            return self._matching(image, page)
        for target in (image.path, *image.others):
            file = self._found(target, page, by_name=image.by_name)
            if file is not None:
                return [self._to(image, file)]
        if image.optional:
            return []
        path = image.path
        if path.startswith("data:") or "://" in path or path.startswith("//"):
            local = next(
                (
                    other
                    for other in image.others
                    if "://" not in other and not other.startswith(("//", "data:"))
                ),
                "",
            )
            if not local:
                return [image]
            path = local
        problem = self._absent(path, page)
        if self._above is not None and not problem:  # else the site's root would let it be opened
            problem = (
                f"lies outside root={self._root}, and the site does not publish it; pass "
                f"root={self._above.folder} to let images lie there"
            )
        return [replace(image, path=path, folder=page.parent, problem=problem)]

    def files(self, image: ImageReference, page: Path) -> set[Path]:
        """All files that a reference may mean: both a thumbnail and the full image."""
        targets = (image.path, *image.others)
        found = (self._found(target, page, by_name=image.by_name) for target in targets)
        return {file.resolve() for file in found if file is not None}

    def _to(self, image: ImageReference, file: Path) -> ImageReference:
        for folder in (
            self._folder,
            self._root,
            self._above.folder if self._above else self._folder,
        ):
            if file.is_relative_to(folder):
                return replace(image, path=file.relative_to(folder).as_posix(), folder=folder)
        return replace(image, path=str(file))

    def _absent(self, path: str, page: Path) -> str:
        if "\0" in path or len(path) > _LONGEST_PATH:
            return ""
        site = self.site_of(page.parent)
        beside = Path(os.path.normpath(page.parent / path.lstrip("/")))
        if path.startswith("../") and not any(
            beside.is_relative_to(each) for each in (self._folder, self._root)
        ):
            allowed = self._root if self._folder.is_relative_to(self._root) else self._folder
            tree = repository_above(self._folder)
            most = tree if tree and beside.is_relative_to(tree) else None
            if self._above is not None or most is None:
                return ""
            return f"lies outside root={allowed}; pass root={most} to let images lie there"
        if site.generator.name:
            where = f" nor in the site {site.folder} ({site.generator.name})"
            return f"no such file; it is neither beside the page{where}"
        if path.startswith("/"):
            return (
                "no such file; a path that begins with / starts at the site's root: pass that "
                "folder as the corpus or as root="
            )
        return "no such file"

    def _matching(self, image: ImageReference, page: Path) -> list[ImageReference]:
        """The files that match a pattern from a page bundle or a gallery."""
        pattern = image.path.removeprefix("./")
        bases = [page.parent]
        if pattern.startswith("/"):
            pattern = pattern.lstrip("/")
            bases = [*self.site_of(page.parent).published]
        pattern = re.sub(r"\*\*+/?", "*", pattern)
        for base in bases:
            if not any(base.absolute().is_relative_to(each) for each in (self._folder, self._root)):
                continue
            names = (
                (file, file.absolute().relative_to(base.absolute()).as_posix())
                for file in self._files
                if file.absolute().is_relative_to(base.absolute())
            )
            found = [
                self._to(image, file.absolute())
                for file, name in names
                if fnmatch.fnmatchcase(name, pattern) and file.suffix.lower() in IMAGE_SUFFIXES
            ]
            if found:
                return found
        if image.optional:
            return []
        return [replace(image, folder=page.parent, problem="no file fits this pattern")]

    def _found(self, target: str, page: Path, *, by_name: str) -> Path | None:
        key = (page, target)
        if key not in self._known:
            self._known[key] = self._searched(target, page)
        found = self._known[key]
        if found is None and "\0" not in target and "://" not in target:
            site = self.site_of(page.parent)
            by_name = "nearest" if site.generator.name == "Obsidian" else by_name
            if _ALIASES.match(target):  # only the site's code says what it stands for
                target, by_name = _ALIASES.sub("", target), by_name or "only"
            found = self._named(unquote(target), page, by_name) if by_name else None
            if found is not None and not self._may_show(found, site):
                return None
        return found

    def _searched(self, target: str, page: Path) -> Path | None:
        if "\0" in target or not target or len(target) > _LONGEST_PATH:
            return None
        site = self.site_of(page.parent)
        plain = target.replace("\\", "/")  # Windows' separators
        for path in self._paths(plain, page, site):
            found = self._existing(path)
            if found is not None and self._may_show(found, site):
                return found
        return None

    def _may_show(self, file: Path, site: Site) -> bool:
        """Whether a file lies in the folders that the user named, or the site publishes it."""
        resolved = file.resolve()
        allowed = (self._folder.resolve(), self._root.resolve())
        return any(resolved.is_relative_to(each) for each in allowed) or (
            site.above and site.shows(resolved)
        )

    def _paths(self, target: str, page: Path, site: Site) -> Iterator[Path]:
        """Where the file may be, the likeliest place first."""
        is_address = target.startswith("//") or "://" in target[:10]
        if is_address:
            host, path = host_of(target), unquote(path_of(target))
            if host and host in site.hosts:
                yield from self._of_site(path, page, site)
            elif _UPLOADS in path:  # WordPress' uploads; its exporters put them beside the pages
                yield from self._of_site(path[path.index(_UPLOADS) :], page, site)
                yield from self._of_site(
                    path[path.index(_UPLOADS) + len(_UPLOADS) - 1 :], page, site
                )
            return
        alias = _ALIASES.match(target)
        if alias:
            yield from self._of_site(f"/{target[alias.end() :]}", page, site)
            return
        if target.startswith("/"):
            yield from self._of_site(target, page, site)
            yield page.parent / target.lstrip("/")
            return
        yield page.parent / target
        yield page.parent / page.stem / target  # a post's images, for Hexo and Jekyll plug-ins
        if page.stem not in {"index", "_index"} and target.startswith("../"):
            yield page.parent / page.stem / target  # relative to the page's address
            yield page.parent / target.removeprefix("../")
        plain = re.sub(r"^(?:\.{1,2}/)+", "", target)
        yield from self._of_site(f"/{plain}", page, site)

    def _of_site(self, path: str, page: Path, site: Site) -> Iterator[Path]:
        plain = path.lstrip("/")
        plains = [plain]
        for base in site.bases:
            if plain.startswith(f"{base}/"):
                plains.append(plain[len(base) + 1 :])
        for each in (*plains, *(_RESIZED.sub("", p) for p in plains if _RESIZED.search(p))):
            for folder in site.published:
                yield folder / each
            if site.generator.name:
                yield site.folder / each
            for folder in dict.fromkeys((self._root, self._folder)):
                yield folder / each
            # Nothing marks the root of a site inside the corpus: try every folder above the page.
            if not site.generator.name:
                for parent in page.absolute().parents:
                    if not parent.is_relative_to(self._folder):
                        break
                    yield parent / each
                    yield parent / "static" / each

    def _existing(self, path: Path) -> Path | None:
        """An existing file with this path; case and the Unicode form of its name may differ."""
        path = Path(os.path.normpath(path.absolute()))
        tops = [self._folder, self._root, *([self._above.folder] if self._above else [])]
        top = next((each for each in tops if path.is_relative_to(each)), None)
        if top is None or path == top:
            return None
        try:
            if path.is_file():
                return path
            place = top
            for part in path.relative_to(top).parts:
                if (place / part).exists():
                    place /= part
                    continue
                name = self._listed(place).get(_plain_name(part))
                if name is None:
                    return None
                place /= name
            return place if place.is_file() else None
        except (OSError, ValueError):  # a name that is too long, or a loop of links
            return None

    def _listed(self, folder: Path) -> dict[str, str]:
        if folder not in self._listings:
            allowed = (self._folder.resolve(), self._root.resolve())
            place = folder.resolve()
            inside = any(place.is_relative_to(each) for each in allowed) or (
                self._above is not None
                and (place == self._above.folder.resolve() or self._above.shows(place))
            )
            names = (
                sorted(each.name for each in folder.iterdir()) if inside and folder.is_dir() else []
            )
            self._listings[folder] = {_plain_name(name): name for name in reversed(names)}
        return self._listings[folder]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        names: dict[str, list[Path]] = {}
        files = list(self._files)
        if self._above is not None:
            for parent, folders, found in os.walk(self._above.folder):  # links are not followed
                kept = {name for name in folders if not name.startswith(".")} - {"node_modules"}
                folders[:] = sorted(kept)
                files += [Path(parent, name) for name in sorted(found)]
        for file in dict.fromkeys(file.absolute() for file in files):
            if suffix_of(file.name) in IMAGE_SUFFIXES:
                names.setdefault(_plain_name(file.name), []).append(file)
        return names

    def _named(self, target: str, page: Path, by_name: str) -> Path | None:
        """A file anywhere whose path ends with ``target``.

        Args:
            target: a name, or the end of a path.
            page: the page's file.
            by_name: "nearest": the one nearest to the top, as in Obsidian; "only": the only one, or
                the only one in a folder named after the page, as themes do for shortcodes.
        """
        parts = [
            _plain_name(part)
            for part in PurePosixPath(target.lstrip("/")).parts
            if part not in {".", ".."}
        ]
        fitting = [
            file
            for file in self._by_name.get(parts[-1] if parts else "", [])
            if [_plain_name(part) for part in file.parts[-len(parts) :]] == parts
        ]
        if by_name == "only" and len(fitting) > 1:
            stem = re.sub(r"^\d{4}-\d{2}-\d{2}-", "", page.stem)
            fitting = [file for file in fitting if file.parent.name == stem]
            fitting = fitting if len(fitting) == 1 else []
        return min(fitting, key=lambda file: (len(file.parts), file.as_posix()), default=None)


def _plain_name(name: str) -> str:
    """A name without the differences between file systems: Unicode form and case."""
    return unicodedata.normalize("NFC", name).casefold()
