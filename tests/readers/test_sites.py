from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from native_sites import SITES, Expected, blog_as_hugo, blog_as_jekyll, write
from small_corpora import write_image

from llama_index_gap.readers.corpus import Corpus, read_corpus
from llama_index_gap.readers.sites import Site, site_above


def shown(corpus: Corpus, root: Path) -> Counter[tuple[str, str, str]]:
    return Counter(
        (
            str(node.ref_doc_id),
            Path(str(node.image_path)).relative_to(root.resolve()).as_posix(),
            node.text,
        )
        for node in corpus.image_nodes
    )


@pytest.mark.parametrize("kind", SITES)
def test_a_site_in_its_native_form_is_read_in_full(kind: str, tmp_path: Path) -> None:
    expected = SITES[kind](tmp_path)

    corpus = read_corpus(tmp_path)

    assert set(corpus.document_ids) == expected.documents
    assert shown(corpus, tmp_path) == Counter(expected.shown)
    unshown = {skip.source for skip in corpus.skipped if "no page shows" in skip.reason}
    assert unshown == expected.unshown
    text = "\n".join(node.get_content() for node in corpus.text_nodes)
    assert [word for word in expected.never if word in text] == []


@pytest.mark.parametrize(
    ("kind", "part"),
    [("Hugo", "content"), ("Hugo", "content/posts"), ("Jekyll", "_posts"), ("Docusaurus", "docs")],
)
def test_a_part_of_a_site_finds_the_images_of_the_whole(
    kind: str, part: str, tmp_path: Path
) -> None:
    expected = SITES[kind](tmp_path)

    corpus = read_corpus(tmp_path / part)

    files = Counter(file for _, file, _ in shown(corpus, tmp_path).elements())
    pages = expected.shown
    if kind == "Docusaurus":
        pages = [each for each in pages if each[0].startswith("docs")]
    else:
        pages = [each for each in pages if each[0].startswith(part)]
    assert files == Counter(file for _, file, _ in pages)
    assert corpus.root == tmp_path.resolve()


@pytest.mark.parametrize("write_blog", [blog_as_jekyll, blog_as_hugo])
@pytest.mark.slow
def test_the_blog_in_native_form_loses_nothing(
    write_blog: object, gap_shared: Path, tmp_path: Path
) -> None:
    expected: Expected = write_blog(gap_shared / "data" / "18f_blog", tmp_path)  # type: ignore[operator]

    corpus = read_corpus(tmp_path)

    assert set(corpus.document_ids) == expected.documents
    assert shown(corpus, tmp_path) == Counter(expected.shown)


def test_a_theme_s_folder_for_the_images_of_shortcodes_is_found(tmp_path: Path) -> None:
    for file in ("images/lesson/a.png", "images/other/a.png", "assets/images/2016/07/b.png"):
        write_image(tmp_path / file)
    include = '{{% include figure.html filename="{}" caption="A" %}}'
    write(
        tmp_path,
        {
            "_config.yml": "",
            "_posts/2016-07-01-lesson.md": include.format("a.png")
            + include.format("2016/07/b.png"),
            "_posts/2016-07-02-none.md": f"{include.format('a.png')} ![x](b.png)",
        },
    )

    corpus = read_corpus(tmp_path / "_posts")

    assert [
        Path(str(n.image_path)).relative_to(tmp_path).as_posix() for n in corpus.image_nodes
    ] == [
        "images/lesson/a.png",
        "assets/images/2016/07/b.png",
    ]
    assert [skip.source for skip in corpus.skipped] == [
        "2016-07-02-none.md, image a.png",
        "2016-07-02-none.md, image b.png",
    ]


@pytest.mark.parametrize(
    ("files", "image", "target"),
    [
        ({"trip 1.md": ""}, "trip 1/Untitled.png", "trip%201/Untitled.png"),  # Notion
        ({".vuepress/config.js": "", "a.md": ""}, "img/a.png", "~@img/a.png"),
        ({"_config.yml": "", "source/_posts/a.md": ""}, "source/_posts/a/b.png", "b.png"),  # Hexo
        ({"a.md": ""}, ".gitbook/assets/b (1).png", "<.gitbook/assets/b (1).png>"),
        ({"a.md": ""}, "img/a.png", "<img\\a.png>"),
        ({"hugo.toml": "", "content/posts/a.md": ""}, "static/img/a.png", "../../img/a.png"),
        ({"pelicanconf.py": "", "content/a.md": ""}, "content/img/a.png", "{static}/img/a.png"),
        ({"blog/a.md": ""}, "blog/static/a.png", "/a.png"),
        ({"CNAME": "www.a.org", "_config.yml": "", "a.md": ""}, "i/a.png", "https://a.org/i/a.png"),
    ],
)
def test_forms_of_references(
    files: dict[str, str], image: str, target: str, tmp_path: Path
) -> None:
    write_image(tmp_path / image)
    page = list(files)[-1]
    write(tmp_path, {**files, page: f"A page. ![x]({target})"})

    (node,) = read_corpus(tmp_path).image_nodes

    assert Path(str(node.image_path)) == (tmp_path / image).resolve()
    assert node.ref_doc_id == page


def test_a_folder_may_be_named_by_a_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SITES["Hugo"](tmp_path / "site")
    (tmp_path / "link").symlink_to(tmp_path / "site")
    monkeypatch.chdir(tmp_path / "site" / "static")

    for way in ("..", "../content", "../../site", tmp_path / "link", tmp_path / "link" / "content"):
        assert len(read_corpus(way).image_nodes) == 11


# --- the search for a site's root above, and the images that its pages may show -------------------


def page_that_shows(folder: Path, target: str) -> Path:
    write(folder, {"a.md": f"A page.\n\n![x]({target})"})
    return folder


def images(folder: Path) -> list[str]:
    return [Path(str(node.image_path)).name for node in read_corpus(folder).image_nodes]


def test_content_finds_static_without_a_marker_too(tmp_path: Path) -> None:
    write_image(tmp_path / "static" / "a.png")

    assert images(page_that_shows(tmp_path / "content", "/a.png")) == ["a.png"]


@pytest.mark.parametrize("marker", [".git/HEAD", "package.json", "config.toml", "README.md"])
def test_what_is_no_site_widens_nothing(marker: str, tmp_path: Path) -> None:
    write_image(tmp_path / "secret.png")
    write(tmp_path, {marker: "{}"})

    assert images(page_that_shows(tmp_path / "corpus", "../secret.png")) == []


@pytest.mark.parametrize("target", ["../private/a.png", "/private/a.png", "../_data/a.png"])
@pytest.mark.parametrize(("marker", "part"), [("hugo.toml", "content"), ("mkdocs.yml", "docs")])
def test_a_page_shows_no_more_than_its_site_publishes(
    target: str, marker: str, part: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "private" / "a.png")
    write_image(tmp_path / "_data" / "a.png")
    write(tmp_path, {marker: ""})

    assert images(page_that_shows(tmp_path / part, target)) == []


def test_what_a_site_links_to_outside_is_not_shown(tmp_path: Path) -> None:
    write_image(tmp_path / "outside" / "a.png")
    write(tmp_path, {"site/hugo.toml": ""})
    (tmp_path / "site" / "static").symlink_to(tmp_path / "outside")

    assert images(page_that_shows(tmp_path / "site" / "content", "/a.png")) == []


def test_a_site_s_settings_lead_nowhere_else(tmp_path: Path) -> None:
    write_image(tmp_path / "outside" / "a.png")
    write(tmp_path, {"site/hugo.toml": 'staticDir = "../outside"\n'})

    folder = page_that_shows(tmp_path / "site" / "content", "/a.png")

    assert images(folder) == []
    assert images(page_that_shows(folder, "../../outside/a.png")) == []


def test_the_home_folder_is_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home", {"hugo.toml": "", ".obsidian/app.json": "{}"})
    write(tmp_path / "home" / "content", {"a.md": "x"})

    assert site_above(tmp_path / "home" / "content") is None


def test_a_marker_within_the_corpus_widens_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "secret.png")
    folder = page_that_shows(tmp_path / "corpus", "../secret.png")
    write(folder, {"_config.yml": "source: ..\n", "hugo.toml": "", ".obsidian/app.json": "{}"})

    assert images(folder) == []
    assert images(page_that_shows(folder, "/secret.png")) == []


def test_the_way_out_is_said_where_a_repository_holds_the_image(tmp_path: Path) -> None:
    write_image(tmp_path / "repo" / "images" / "a.png")
    write(tmp_path, {"repo/.git/HEAD": ""})

    folder = page_that_shows(tmp_path / "repo" / "docs", "../images/a.png")

    (skip,) = read_corpus(folder).skipped
    assert f"pass root={tmp_path / 'repo'}" in skip.reason
    assert len(read_corpus(folder, root=tmp_path / "repo").image_nodes) == 1


@pytest.mark.parametrize(
    ("config", "hosts", "bases"),
    [
        ('baseURL = "https://a.org/docs/"', {"a.org", "www.a.org"}, ("docs",)),
        ("url: https://www.b.org\nbaseurl: /blog", {"b.org", "www.b.org"}, ("blog",)),
        ("x: https://c.org", set(), ()),
        ("baseURL: http://[::1", set(), ()),
    ],
)
def test_hosts_and_bases(
    config: str, hosts: set[str], bases: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path, {"hugo.toml": config})
    (tmp_path / "content").mkdir()
    site = site_above(tmp_path / "content")

    assert isinstance(site, Site)
    assert site.hosts == hosts
    assert site.bases == bases
