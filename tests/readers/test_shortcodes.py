from __future__ import annotations

import pytest

from llama_index_gap.readers.markdown import parse_markdown
from llama_index_gap.readers.shortcodes import code_places


@pytest.mark.parametrize(
    ("source", "path", "caption"),
    [
        ('{{< figure src="/a.png" caption="A" alt="B" title="C" >}}', "/a.png", "A"),
        ('{{< figure src="/a.png" title="C" >}}', "/a.png", "C"),
        ('{{% figure src="/a.png" alt="B" %}}', "/a.png", "B"),
        ("{{< figure\n  src='/a.png'\n  caption='Two words'\n>}}", "/a.png", "Two words"),
        ('{{< img "a.png" "A caption" >}}', "a.png", "A caption"),
        ('{{< img src="a.png" />}}', "a.png", ""),
        ('{{< imgproc "a.jpg" Fill "600x300" >}}The *cap*{{< /imgproc >}}', "a.jpg", "The *cap*"),
        ('{% include figure.html src="a.png" caption="A" %}', "a.png", "A"),
        ('{% include image.html url="/a.png" description="A" %}', "/a.png", "A"),
        ('{% include figure image_path="/a.jpg" alt="B" caption="A" %}', "/a.jpg", "A"),
        ("{% img left /a.png 300 200 'A title' 'an alt' %}", "/a.png", "A title"),
        ('{% image "./a.png", "An alt", "100vw" %}', "./a.png", "An alt"),
        ('{% asset a.png alt="A" %}', "a.png", "A"),
        ("{% asset_img a.png A walk %}", "a.png", "A walk"),
        ("<img :src=\"$withBase('/a.png')\" alt='A'>", "/a.png", "A"),
        ("{% figure /a.png caption='A' %}", "/a.png", "A"),
        ('![A]({{ "/a b.png" | relative_url }})', "/a b.png", "A"),
        ("![A]({{site.url}}{{ site.baseurl }}/i/a.png)", "/i/a.png", "A"),
        ("![A]({% link i/a.png %})", "/i/a.png", "A"),
        ('![A]({{ "a.png" | prepend: "/i/" | absolute_url }})', "/i/a.png", "A"),
        ("[A][r] ![A][r]\n\n[r]: {{ site.baseurl }}/a.png", "/a.png", "A"),
        ('<img src="{{ site.url }}/a.png" alt="A">', "/a.png", "A"),
        ('---\npic: /p.png\n---\n{% include a.html src=page.pic alt="A" %}', "/p.png", "A"),
        ('[caption id="x"]<img src="a.png" /> Some *words*[/caption]', "a.png", "Some words"),
        ("[caption]![x](a.png) Words[/caption]", "a.png", "Words"),
        ('[caption caption="Words"]![x](a.png)[/caption]', "a.png", "Words"),
    ],
)  # fmt: skip
def test_known_forms_give_their_image(source: str, path: str, caption: str) -> None:
    page = parse_markdown(source)

    assert [(image.path, image.caption) for image in page.images] == [(path, caption)]
    assert page.problems == []
    assert page.text in {"", "A"}


@pytest.mark.parametrize(
    ("source", "text", "left_out"),
    [
        ("a {{< youtube x >}} b {{< youtube y >}}", "a b", "youtube ×2"),
        ("{{% notice tip %}}\nInner *text*.\n{{% /notice %}}", "Inner text.", "notice"),
        ("{% if x %}a{% endif %}", "a", "if"),
        ("{% comment %}a{% endcomment %}b", "b", ""),
        ("{{/* a */}}b", "b", ""),
        ("{% raw %}{{ x }} {% y %}{% endraw %}", "{{ x }} {% y %}", ""),
        ("{% highlight c %}\na < b\n{% endhighlight %}", "a < b", ""),
        ('{{</* figure src="a.png" */>}}', '{{< figure src="a.png" >}}', ""),
        ("{{#include ../a.rs}} a", "a", "#include"),
        ("See {{ page.title }}.", "See .", "{{ page.title }}"),
        ("Write {{ name }} in Vue, ${{ x }} in CI.", None, ""),
        ("`{{< figure src='a.png' >}}`", "{{< figure src='a.png' >}}", ""),
        ("```\n{% include a.html %}\n```", "{% include a.html %}", ""),
        ("    {{< figure src='a.png' >}}\n", "{{< figure src='a.png' >}}", ""),
        ('[gallery ids="1"] a', "a", "gallery"),
        ("A [caption](b.html) and [video] stay.", "A caption and [video] stay.", ""),
        ("An open {{< figure and {% tag and {{ stay.", None, ""),
        ("a {: .b} c\n{: #d}", "a c", ""),
        ("# A {#b}\n\n## C { #d .e }", "A\n\nC", ""),
        ("![a](a.png){width=30}{.b} c {x}", "c {x}", ""),
    ],
)  # fmt: skip
def test_the_others_are_left_out_and_counted(source: str, text: str | None, left_out: str) -> None:
    page = parse_markdown(source)

    assert page.text == (source if text is None else text)
    assert [each.partition("; ")[2] for each in page.problems] == [left_out] * bool(left_out)


def test_code_is_found() -> None:
    body = "a `b` ``c ` d`` \\`e` `f\n\n`g\n~~~\nh\n~~~\ni"

    assert [body[start:end] for start, end in code_places(body) if end > start] == [
        "`b`",
        "``c ` d``",
        "` `",
        "~~~\nh\n~~~",
    ]
