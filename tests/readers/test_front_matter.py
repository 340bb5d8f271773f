from __future__ import annotations

from typing import Any

import pytest

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.readers.front_matter import is_draft, split_front_matter, take_images


@pytest.mark.parametrize(
    ("fields", "images", "rest"),
    [
        ({"image": "a.png"}, [("a.png", "")], {}),
        ({"image": "a.png", "alt": "A"}, [("a.png", "A")], {}),
        ({"image": "a.png", "imageAlt": "A"}, [("a.png", "A")], {}),
        ({"image": {"path": "a.png", "alt": "A"}}, [("a.png", "A")], {}),
        ({"images": ["a.png", {"path": "b.png", "alt": "B"}]}, [("a.png", ""), ("b.png", "B")], {}),
        ({"image": "a.png", "images": ["a.png"], "x": 1}, [("a.png", "")], {"x": 1}),
        ({"cover": {"image": "a.png", "alt": "A", "caption": "C"}}, [("a.png", "C")], {}),
        ({"cover": "a.png", "coverAlt": "A"}, [("a.png", "A")], {}),
        ({"featured_image": "a.png", "featured_image_alt": "A"}, [("a.png", "A")], {}),
        ({"featureImage": "a.png", "featureImageCap": "C"}, [("a.png", "C")], {}),
        ({"header": {"image": "a.png", "teaser": "b.png"}}, [("a.png", ""), ("b.png", "")], {}),
        ({"hero": "Welcome to all"}, [], {"hero": "Welcome to all"}),
        ({"hero": "a.webp?v=1"}, [("a.webp?v=1", "")], {}),
        ({"resources": [{"src": "a.png", "title": "A"}]}, [("a.png", "A")], {}),
        ({"resources": [{"src": "a.png", "params": {"caption": "A"}}]}, [("a.png", "A")], {}),
        ({"resources": [{"src": "a.pdf"}]}, [], {"resources": [{"src": "a.pdf"}]}),
        ({"trip": [{"image_path": "a.png", "alt": "A"}]}, [("a.png", "A")], {}),
        ({"tags": ["a.png"]}, [], {"tags": ["a.png"]}),
        ({"image": "https://x.org/p?id=1"}, [("https://x.org/p?id=1", "")], {}),
        ({"images": ["a.png", 3]}, [], {"images": ["a.png", 3]}),
    ],
)
def test_images(
    fields: dict[str, Any], images: list[tuple[str, str]], rest: dict[str, Any]
) -> None:
    left, found = take_images(fields)

    assert [(image.path, image.caption) for image in found] == images
    assert left == rest


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ('---\ntitle:\t"A"\ndate:\t2024-03-01\n---\n', {"title": "A", "date": "2024-03-01"}),
        ("---\na:\n  - b:\tc\n---\n", {"a": [{"b": "c"}]}),
        ('{\n  "title": "A"\n}\ntext', {"title": "A"}),
        ('---json\n{"title": "A"}\n---\ntext', {"title": "A"}),
        ("---toml\ntitle = 'A'\n---\ntext", {"title": "A"}),
        (';;;\n{"title": "A"}\n;;;\ntext', {"title": "A"}),
        ("---\ntitle: A\n...\ntext", {"title": "A"}),
        ('{{< figure src="a" >}}', {}),
        ('{"a": 1} is how it looks', {}),
        ("---\nNote: this page is old.\n\nText", {}),
        ("---\n\nA rule, then prose: all of it.", {}),
        ("---\nhttps://example.org is the place", {}),
        ('{"a": 1, b} is how it should not look', {}),
    ],
)
def test_languages(source: str, fields: dict[str, Any]) -> None:
    assert split_front_matter(source)[0] == fields


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("---\ntitle: A\n\tb: 1\n---\n", "line 3, column 1: .*spaces, not tabs"),
        ("---\na: 1\nb: [\n---\n", "line 4, column 1"),
        ("---js\n{}\n---\n", "nothing in a corpus is run"),
        ("---json\n{]\n---\n", "read as JSON; line 2, column 2: "),
        ('---json\n{\n"a": 1,\n]\n---\n', "read as JSON; line 4, column 1: "),
        (';;;\n{"a": }\n;;;\n', "line 2, column 7: "),
        ('{\n  "title": "A",\n  b\n}\ntext', "read as JSON; line 3, column 3: "),
        (
            "---\na: 1\nday: 2024-02-31\n---\n",
            "line 3, column 6: 2024-02-31 is not a valid timestamp",
        ),
        (
            "---\na:\n  - b: 2024-13-01\n---\n",
            "line 3, column 8: 2024-13-01 is not a valid timestamp",
        ),
        ("---\na: 1\nb: !!bool x\n---\n", "line 3, column 4: x is not a valid bool"),
        ("---\na: &x 1\nb: *x\n---\n", "line 3, column 4: aliases .* are not read"),
        ("---\na: 1\nb: 'c\n---\n", "line 4, .*quoted scalar, from line 3 on"),
        ("---\na: " + "[" * 5000 + "\n---\n", "is nested too deeply"),
        ("---\na: 1\n\nb: .nan\n---\n", r"has b: nan, which is not a number \(line 4\)"),
        ("---\na: 1\nb: !!binary aGk=\n---\n", r"holds a bytes as b; .*\(line 3\)"),
        ("---\n- a\n- b\n---\n", "from line 2, is a list, not a mapping"),
        ("+++\na = 1\nb = [\n+++\n", "read as TOML; line 4: "),
        ("+++\na = 1\na = 2\n+++\n", "read as TOML; line 3, column 6: "),
        ("+++\na = 1\nd = 2024-02-31\n+++\n", "read as TOML; line 3, column "),
        ("---\ntitle: A\n\n# Head\n\ntext", "begins in line 1 and never ends; .* a line ---"),
        ("---\n# by hand\ntitle:\n  - A\n", "never ends; close it with a line ---"),
        ("+++\ntitle = 'A'\n\ntext", r"never ends; close it with a line \+\+\+"),
    ],
)
def test_an_error_names_line_and_cause(source: str, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        split_front_matter(source)


@pytest.mark.parametrize(
    ("fields", "draft"),
    [
        ({"draft": True}, "draft: true"),
        ({"Draft": "true"}, "draft: true"),
        ({"published": False}, "published: false"),
        ({"draft": False, "published": True}, ""),
        ({"published": "2024-01-01"}, ""),
    ],
)
def test_drafts(fields: dict[str, Any], draft: str) -> None:
    assert is_draft(fields) == draft
