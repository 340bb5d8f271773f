"""Small sites in the layouts of generators and exporters, with the expected results."""

# ruff: noqa: E501 (pages are easier to read unwrapped)

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from small_corpora import write_image


@dataclass
class Expected:
    """The expected result of reading a site.

    Attributes:
        documents: the ids of the documents.
        shown: for each image of a page, the page, the image file below the site's root, the
        caption. unshown: image files that no page shows. never: words of shortcodes, scripts and
        templates, which no passage may contain.
    """

    documents: set[str]
    shown: list[tuple[str, str, str]]
    unshown: set[str] = field(default_factory=set)
    never: tuple[str, ...] = ()


def write(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")


def finished(root: Path, expected: Expected) -> Expected:
    """Also write the image files."""
    for file in {file for _, file, _ in expected.shown} | expected.unshown:
        write_image(root / file)
    return expected


def hugo(root: Path) -> Expected:
    write(
        root,
        {
            "hugo.toml": 'baseURL = "https://bread.example.net/"\ntitle = "Bread"\n',
            "layouts/_default/single.html": "<main>{{ .Content }}</main>",
            "content/_index.md": "---\ntitle: Home\n---\nA page of bread.",
            "content/posts/rye.md": (
                '+++\ntitle = "Rye"\nfeatured_image = "/images/rye-top.jpg"\n'
                'images = ["/images/rye-top.jpg"]\n+++\n'
                "![A rye loaf](/images/rye.png)\n\nBake it long.\n\n"
                '{{< figure src="/images/crumb.jpg" caption="The crumb" alt="cut bread" >}}\n\n'
                '{{% img src="/images/oven.jpg" title="The oven" %}}\n\n'
                "{{< youtube dQw4w9 >}}\n\n"
                "![Own host](https://bread.example.net/images/host.png)\n"
            ),
            "content/posts/sour/index.md": (
                "---\ntitle: Sour\ncover:\n  image: cover.png\n  alt: A jar of sourdough\n"
                'resources:\n- src: "gallery/*.jpg"\n  title: From the gallery\n---\n'
                "![Day one](day-1.png)\n\n"
                '{{< figure\n  src="day-2.png"\n  caption="Day two"\n>}}\nFeed it daily.\n\n'
                '{{< image "day-3.png" "Day three" >}}\n'
            ),
            "content/posts/unready.md": "---\ntitle: Unready\ndraft: true\n---\n![x](/images/d.png)",
        },
    )
    page, bundle = "content/posts/rye.md", "content/posts/sour/index.md"
    at = "content/posts/sour"
    return finished(
        root,
        Expected(
            {"content/_index.md", page, bundle},
            [
                (page, "static/images/rye-top.jpg", ""),
                (page, "static/images/rye.png", "A rye loaf"),
                (page, "static/images/crumb.jpg", "The crumb"),
                (page, "static/images/oven.jpg", "The oven"),
                (page, "static/images/host.png", "Own host"),
                (bundle, f"{at}/cover.png", "A jar of sourdough"),
                (bundle, f"{at}/gallery/a.jpg", "From the gallery"),
                (bundle, f"{at}/gallery/b.jpg", "From the gallery"),
                (bundle, f"{at}/day-1.png", "Day one"),
                (bundle, f"{at}/day-2.png", "Day two"),
                (bundle, f"{at}/day-3.png", "Day three"),
            ],
            {"static/images/never.png"},
            ("{{", "figure", "youtube", ".Content"),
        ),
    )


def jekyll(root: Path) -> Expected:
    post = "_posts/2020-01-02-walk.md"
    write(
        root,
        {
            "_config.yml": 'title: Walks\nurl: "https://walks.example.net"\nbaseurl: "/blog"\n'
            "img_path: /assets/img\n",
            "_layouts/post.html": "<article>{{ content }}</article>",
            "_includes/figure.html": '<figure><img src="{{ include.src }}"></figure>',
            post: (
                '---\ntitle:\t"A walk"\nheader:\n  teaser: /assets/img/teaser.jpg\n'
                "gallery:\n  - url: /assets/img/g1.jpg\n    image_path: /assets/img/g1.jpg\n"
                "    alt: First of the gallery\n---\n"
                "![A hill]({{ site.baseurl }}/assets/img/hill.png)\n\n"
                "![A lake]({{ '/assets/img/lake.png' | relative_url }}){: .wide}\n\n"
                "![A stone]({% link assets/img/stone.png %})\n\n"
                '<img src="{{ site.url }}{{ site.baseurl }}/assets/img/sky.png" alt="The sky">\n\n'
                '{% include figure.html src="/assets/img/fern.jpg" caption="A fern" %}\n\n'
                '{% include figure image_path="/assets/img/moss.jpg" alt="moss" caption="Moss" %}\n\n'
                "{% include gallery %}\n\n"
                "![Own address](https://walks.example.net/blog/assets/img/own.png)\n\n"
                "![A setting]({{ site.img_path }}/set.png)\n\n"
                "[![A small map](/assets/img/map-small.png)](/assets/img/map.png)\n\n"
                "{% highlight ruby %}\nputs 'hi'\n{% endhighlight %}\n\nWe walked home.\n"
            ),
            "_drafts/later.md": "---\ntitle: Later\n---\nNot yet.",
            "_posts/2020-02-03-hidden.md": "---\npublished: false\n---\nNot shown.",
            "about.md": "---\ntitle: About\nimage:\n  path: /assets/img/me.jpg\n  alt: Me\n---\nI walk.",
        },
    )
    img = "assets/img"
    shown = [
        ("teaser.jpg", ""),
        ("g1.jpg", "First of the gallery"),
        ("hill.png", "A hill"),
        ("lake.png", "A lake"),
        ("stone.png", "A stone"),
        ("sky.png", "The sky"),
        ("fern.jpg", "A fern"),
        ("moss.jpg", "Moss"),
        ("own.png", "Own address"),
        ("set.png", "A setting"),
        ("map.png", "A small map"),
    ]
    write_image(root / img / "map-small.png")
    return finished(
        root,
        Expected(
            {post, "about.md"},
            [
                *((post, f"{img}/{name}", caption) for name, caption in shown),
                ("about.md", f"{img}/me.jpg", "Me"),
            ],
            {f"{img}/never.png"},
            ("{%", "{{", "include", ".wide"),
        ),
    )


def docusaurus(root: Path) -> Expected:
    write(
        root,
        {
            "docusaurus.config.js": "module.exports = {url: 'https://kiln.example.net', baseUrl: '/'}",
            "docs/intro.mdx": (
                "---\nid: intro\ntitle: Intro\n---\n"
                "import Tabs from '@theme/Tabs';\nimport kiln from './img/kiln.png';\n\n"
                '# The kiln\n\n<Tabs groupId={"a"}>\n    Fire it slowly.\n</Tabs>\n\n'
                '<img src={kiln} alt="A kiln" style={{width: 300}} />\n\n'
                "<img src={require('./img/pot.png').default} alt=\"A pot\" />\n\n"
                "![A glaze](@site/static/img/glaze.png)\n\n"
                "<ThemedImage alt=\"A wheel\" sources={{light: useBaseUrl('/img/wheel.png')}} />\n\n"
                "![A shelf](/img/shelf.png)\n\n{/* a note */}\n"
            ),
            "docs/more/intro.md": "---\nid: intro\ntitle: More\n---\n:::note\nA note.\n:::\n\n![B](./b.png)",
            "blog/2024-01-01-first.md": "---\ntitle: First\nimage: ./first.png\n---\nA first post.",
        },
    )
    return finished(
        root,
        Expected(
            {"docs/intro", "docs/more/intro", "blog/2024-01-01-first.md"},
            [
                ("docs/intro", "docs/img/kiln.png", "A kiln"),
                ("docs/intro", "docs/img/pot.png", "A pot"),
                ("docs/intro", "static/img/glaze.png", "A glaze"),
                ("docs/intro", "static/img/wheel.png", "A wheel"),
                ("docs/intro", "static/img/shelf.png", "A shelf"),
                ("docs/more/intro", "docs/more/b.png", "B"),
                ("blog/2024-01-01-first.md", "blog/first.png", ""),
            ],
            {"static/img/never.png"},
            ("import", "<Tabs", "groupId", "useBaseUrl", "{"),
        ),
    )


def obsidian(root: Path) -> Expected:
    decomposed = unicodedata.normalize("NFD", "Café.png")
    write(
        root,
        {
            ".obsidian/app.json": "{}",
            "Notes/Day.md": (
                "# Day\n\n![[Pasted image 20240101.png]]\n![[sunset.png|a sunset]]\n"
                "![[tower.png|The tower|300]]\n![[boat.png|200]]\n![[Other note]]\n"
                "![Composed](Café.png)\n![Case](Attachments/Harbour.PNG)\n"
                "![Spaces](<../Attachments/two words.png>)\nA day at sea.\n"
            ),
            "Other note.md": "Another note.",
        },
    )
    at = "Attachments"
    return finished(
        root,
        Expected(
            {"Notes/Day.md", "Other note.md"},
            [
                ("Notes/Day.md", f"{at}/Pasted image 20240101.png", ""),
                ("Notes/Day.md", f"{at}/sunset.png", "a sunset"),
                ("Notes/Day.md", f"{at}/tower.png", "The tower"),
                ("Notes/Day.md", f"{at}/boat.png", ""),
                ("Notes/Day.md", f"{at}/{decomposed}", "Composed"),
                ("Notes/Day.md", f"{at}/harbour.png", "Case"),
                ("Notes/Day.md", f"{at}/two words.png", "Spaces"),
            ],
            {f"{at}/never.png"},
            ("[[", "Pasted"),
        ),
    )


def wordpress(root: Path) -> Expected:
    """A WordPress export in Markdown: a folder for each post, with its images beside it."""
    page = "2015/03/cats/index.md"
    write(
        root,
        {
            page: (
                '---\ntitle: "Cats"\ndate: "2015-03-01"\ncoverImage: "images/cat.jpg"\n---\n\n'
                '[caption id="attachment_12" align="alignnone" width="300"]'
                '<img src="images/sleeping.jpg" alt="cat" width="300" /> A sleeping cat[/caption]\n\n'
                '[caption id="a" width="300"][![thumb](images/play-300x200.jpg)](images/play.jpg) '
                "A cat at play[/caption]\n\n"
                "![Eating](http://cats.wordpress.example/wp-content/uploads/2015/03/eating.jpg)\n\n"
                '[gallery ids="1,2"]\n\nCats sleep.\n'
            ),
        },
    )
    at = "2015/03/cats/images"
    return finished(
        root,
        Expected(
            {page},
            [
                (page, f"{at}/cat.jpg", ""),
                (page, f"{at}/sleeping.jpg", "A sleeping cat"),
                (page, f"{at}/play.jpg", "A cat at play"),
                (page, "wp-content/uploads/2015/03/eating.jpg", "Eating"),
            ],
            {f"{at}/never.jpg"},
            ("[caption", "gallery", "attachment_12"),
        ),
    )


def saved_html(root: Path) -> Expected:
    """Pages that a browser has saved."""
    page = "Ferry.html"
    latin = (
        '<!DOCTYPE html><html><head><meta http-equiv="Content-Type" '
        'content="text/html; charset=windows-1252"><title>Café at the quay</title></head>'
        "<body><p>It’s open.</p></body></html>"
    )
    write(
        root,
        {
            page: (
                '<!DOCTYPE html><html><head><meta charset="utf-8"><title>The ferry</title>\n'
                '<meta name="description" content="About a ferry"><meta name="author" content="Ann">\n'
                '<meta property="og:image" content="https://news.example/full.jpg">\n'
                "<style>p {color: red}</style><script>track('<p>secret</p>')</script></head><body>\n"
                '<nav><a href="/">Home</a></nav><header><img src="Ferry_files/logo.png"></header>\n'
                "<main><h1>The ferry</h1><p>It left at <b>noon</b>.</p>\n"
                '<figure><img src="Ferry_files/ferry.jpg" alt="a ship"><figcaption>The ferry, '
                "leaving</figcaption></figure>\n"
                '<img src="data:image/gif;base64,AA" data-src="Ferry_files/lazy.png" alt="Lazy">\n'
                '<picture><source srcset="Ferry_files/s.webp 300w, Ferry_files/l.webp 900w">'
                '<img src="Ferry_files/s.jpg" alt="The quay"></picture>\n'
                "<table><tr><th>Day</th><th>Time</th></tr><tr><td>Monday</td><td>12:00</td></tr></table>\n"
                '<ul><li>One</li><li>Two</li></ul><p style="display:none">hidden words</p></main>\n'
                "<footer>Imprint</footer></body></html>"
            ),
            "Ferry_files/saved_resource.html": "<html><body>an advertisement</body></html>",
            "Ferry_files/site.css": "p {}",
            "cafe.htm": latin.encode("cp1252"),
        },
    )
    for name in ("logo.png", "s.webp", "s.jpg"):
        write_image(root / "Ferry_files" / name)
    return finished(
        root,
        Expected(
            {page, "cafe.htm"},
            [
                (page, "Ferry_files/ferry.jpg", "The ferry, leaving"),
                (page, "Ferry_files/lazy.png", "Lazy"),
                (page, "Ferry_files/l.webp", "The quay"),
            ],
            {"Ferry_files/never.png"},
            ("secret", "hidden", "Imprint", "Home", "advertisement", "color"),
        ),
    )


def mkdocs(root: Path) -> Expected:
    write(
        root,
        {
            "mkdocs.yml": "site_name: Tools\nsite_url: https://tools.example.net/\n"
            "markdown_extensions:\n  - pymdownx.emoji:\n"
            "      emoji_index: !!python/name:material.extensions.emoji.twemoji\n",
            "docs/index.md": "# Tools\n\n![A hammer](img/hammer.png){ width=300 .left }\n\n"
            '!!! note "Read"\n    ![A nail][nail]\n\n[nail]: img/nail.png "A title"\n',
            "docs/guide/saw.md": "# Saw { #saw }\n\n![A saw](../img/saw.png)\n\n"
            "![From the root](/img/root.png)\n\n<figure markdown>\n  ![Plank](../img/plank.png)\n"
            "  <figcaption>A plank of oak</figcaption>\n</figure>\n",
            "site/index.html": "<html><body>made of the pages</body></html>",
        },
    )
    return finished(
        root,
        Expected(
            {"docs/index.md", "docs/guide/saw.md"},
            [
                ("docs/index.md", "docs/img/hammer.png", "A hammer"),
                ("docs/index.md", "docs/img/nail.png", "A nail"),
                ("docs/guide/saw.md", "docs/img/saw.png", "A saw"),
                ("docs/guide/saw.md", "docs/img/root.png", "From the root"),
                ("docs/guide/saw.md", "docs/img/plank.png", "A plank of oak"),
            ],
            {"docs/img/never.png"},
            ("{", "figcaption", "made of the pages"),
        ),
    )


def sphinx_html(root: Path) -> Expected:
    write(
        root,
        {
            "index.html": (
                '<html><head><meta charset="utf-8"/><title>Wind &#8212; docs</title>'
                '<script src="_static/doctools.js"></script></head><body>'
                '<div class="sphinxsidebar" role="navigation"><ul><li>Contents</li></ul></div>'
                '<div class="document"><div class="body" role="main"><section id="wind">'
                '<h1>Wind<a class="headerlink" href="#wind">¶</a></h1><p>It blows.</p>'
                '<figure class="align-default" id="id1"><a class="reference internal image-reference" '
                'href="_images/rose.png"><img alt="a rose" src="_images/rose-small.png" /></a>'
                '<figcaption><p><span class="caption-text">The wind rose</span>'
                '<a class="headerlink" href="#id1">¶</a></p></figcaption></figure>'
                '<div class="highlight"><pre><span>import</span> wind\nwind.blow()\n</pre></div>'
                '</section></div></div><div class="footer" role="contentinfo">© us</div></body></html>'
            ),
            "_sources/index.rst.txt": "Wind\n====\n\nIt blows.\n",
            "searchindex.js": "Search.setIndex({})",
            "_static/doctools.js": "x",
        },
    )
    write_image(root / "_images" / "rose-small.png")
    return finished(
        root,
        Expected(
            {"index.html"},
            [("index.html", "_images/rose.png", "The wind rose")],
            {"_images/never.png"},
            ("¶", "Contents", "©", "doctools"),
        ),
    )


def eleventy(root: Path) -> Expected:
    write(
        root,
        {
            ".eleventy.js": "module.exports = {}",
            "src/_includes/base.html": "<main>{{ content }}</main>",
            "src/posts/tea.md": (
                '---json\n{"title": "Tea", "image": "/img/top.png", "imageAlt": "A tray"}\n---\n'
                '{% image "./src/img/tea.png", "A cup of tea", "(min-width: 30em) 50vw" %}\n\n'
                "![A pot]({{ '/img/pot.png' | url }})\n\nPour slowly.\n"
            ),
        },
    )
    page = "src/posts/tea.md"
    return finished(
        root,
        Expected(
            {page},
            [
                (page, "src/img/top.png", "A tray"),
                (page, "src/img/tea.png", "A cup of tea"),
                (page, "src/img/pot.png", "A pot"),
            ],
            {"src/img/never.png"},
            ("{%", "min-width", "| url"),
        ),
    )


def astro(root: Path) -> Expected:
    write(
        root,
        {
            "astro.config.mjs": "export default {site: 'https://sea.example.net'}",
            "src/content/blog/sea.mdx": (
                "---\ntitle: Sea\nheroImage: '../../assets/hero.jpg'\n---\n"
                "import { Image } from 'astro:assets';\nimport gull from '../../assets/gull.png';\n\n"
                '<Image src={gull} alt="A gull" />\n\n![A buoy](/buoy.png)\n\nThe sea is wide.\n'
            ),
        },
    )
    page = "src/content/blog/sea.mdx"
    return finished(
        root,
        Expected(
            {page},
            [
                (page, "src/assets/hero.jpg", ""),
                (page, "src/assets/gull.png", "A gull"),
                (page, "public/buoy.png", "A buoy"),
            ],
            {"public/never.png"},
            ("import", "<Image"),
        ),
    )


SITES: dict[str, Callable[[Path], Expected]] = {
    "Hugo": hugo,
    "Jekyll": jekyll,
    "Docusaurus": docusaurus,
    "Obsidian": obsidian,
    "WordPress in Markdown": wordpress,
    "saved HTML": saved_html,
    "MkDocs": mkdocs,
    "Sphinx' HTML": sphinx_html,
    "Eleventy": eleventy,
    "Astro": astro,
}


def blog_as_jekyll(blog: Path, root: Path) -> Expected:
    """The published blog as a Jekyll site, with figures by ``include`` and ``baseurl`` in links."""
    write(root, {"_config.yml": 'url: "https://blog.example.net"\nbaseurl: "/site"\n'})
    return _blog(
        blog,
        root,
        lambda number: f"_posts/{2000 + number // 300}-01-{1 + number % 28:02}-p{number}.md",
        "assets/blog",
        (
            '{{% include figure.html src="/assets/blog/{name}" caption="{alt}" %}}',
            "![{alt}]({{{{ site.baseurl }}}}/assets/blog/{name})",
            '<figure><img src="/site/assets/blog/{name}" alt=""><figcaption>{alt}</figcaption></figure>',
        ),
    )


def blog_as_hugo(blog: Path, root: Path) -> Expected:
    """The published blog as a Hugo site, with figures by shortcode."""
    write(root, {"hugo.toml": 'baseURL = "https://blog.example.net/"\n'})
    return _blog(
        blog,
        root,
        lambda number: f"content/posts/p{number}.md",
        "static/img",
        (
            '{{{{< figure src="/img/{name}" caption="{alt}" >}}}}',
            "![{alt}](/img/{name})",
            '{{{{% img src="/img/{name}" alt="{alt}" %}}}}',
        ),
    )


def _blog(
    blog: Path, root: Path, name_of: Callable[[int], str], images: str, forms: tuple[str, ...]
) -> Expected:
    expected = Expected(set(), [], never=("{%", "{{<"))
    (root / images).mkdir(parents=True)
    with (blog / "docs.jsonl").open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    for number, document in enumerate(documents):
        name = name_of(number)
        expected.documents.add(name)
        shown = []
        for place, image in enumerate(document.get("images") or []):
            file = Path(image["path"]).name
            if not (root / images / file).exists():
                shutil.copyfile(blog / image["path"], root / images / file)
            alt = " ".join(image["alt"].replace('"', "'").split())
            shown.append(forms[place % len(forms)].format(name=file, alt=alt))
            expected.shown.append((name, f"{images}/{file}", alt))
        front = f"---\ntitle: {json.dumps(document['title'])}\ndate: {document['date']}\n---\n"
        text = document["text"].replace("![", "!\\[")
        write(root, {name: front + "\n\n".join([text, *shown]) + "\n"})
    return expected
