from __future__ import annotations

import pytest

from llama_index_gap.readers.markdown import parse_markdown


@pytest.mark.parametrize(
    ("source", "text", "image"),
    [
        ("import x from './a.png'\n\n<img src={x} alt='A' />", "", ("./a.png", "A")),
        ("import x from './a.png';\n\n<Image src={x} caption=\"A\"/>", "", ("./a.png", "A")),
        ("<img src={require('./a.png').default} alt=\"A\" />", "", ("./a.png", "A")),
        ("<img src={useBaseUrl('/a.png')} alt=\"A\" />", "", ("/a.png", "A")),
        ("<Img sources={{light: useBaseUrl('/a.png'), dark: b}} alt='A' />", "", ("/a.png", "A")),
        ("export const x = require('./a.png')\n\n<Z s={x} alt='A'>b</Z>", "b", ("./a.png", "A")),
        ("![A](./a.png)", "", ("./a.png", "A")),
        ("<figure>\n<img src='a.png' />\n<figcaption>A</figcaption></figure>", "", ("a.png", "A")),
    ],
)  # fmt: skip
def test_images_of_components(source: str, text: str, image: tuple[str, str]) -> None:
    page = parse_markdown(source, mdx=True)

    assert [(each.path, each.caption) for each in page.images] == [image]
    assert page.text == text


@pytest.mark.parametrize(
    ("source", "text", "left_out"),
    [
        ("import A from 'a'\nimport {B} from 'b'\n\ntext", "text", ""),
        ("<Tabs a={{b: 1}}>\n    <Tab>one</Tab>\n</Tabs>", "one", "<Tab>, <Tabs>"),
        ("a {/* b */} c{' '}d {props.e}", "a c d", "{expression}"),
        ("<div className={x}>\n\na\n\n</div>", "a", ""),
        ("<A b='c > d' {...e} f />g", "g", "<A>"),
        ("`<A>{b}</A>` and\n\n```jsx\n<A>{b}</A>\n```", "<A>{b}</A> and\n\n<A>{b}</A>", ""),
        ("importing goods, exports of tea", "importing goods, exports of tea", ""),
        ("import taxes rose\nexport of tea fell", "import taxes rose\nexport of tea fell", ""),
        ("a < b and an open {brace", "a < b and an open {brace", ""),
        ("{`a literal`} {\"b\"}", "a literal b", ""),
    ],
)  # fmt: skip
def test_code_is_left_out_and_counted(source: str, text: str, left_out: str) -> None:
    page = parse_markdown(source, mdx=True)

    assert page.text == text
    assert [each.partition("; ")[2] for each in page.problems] == [left_out] * bool(left_out)


def test_components_of_plain_markdown_stay_text() -> None:
    assert parse_markdown("Use Vec<T> and <Widget> here.").text == "Use Vec<T> and <Widget> here."


def test_a_page_about_javascript_is_plain_markdown() -> None:
    page = parse_markdown("Set {a} in <B>:\n\n```js\nimport A from 'a'\n```\n\n    indented {code}")

    assert page.text == "Set {a} in <B>:\n\nimport A from 'a'\n\nindented {code}"
    assert page.problems == []
