"""Keys that identify the content of a query or document."""

from PIL import Image

from llama_index_gap.models.base import Joint, LazyImage
from llama_index_gap.models.rerankers.items import content_key

IMAGE = Image.linear_gradient("L").resize((8, 6)).convert("RGB")


def image(key):
    return LazyImage(key, lambda: IMAGE)


def test_equal_content_has_an_equal_key():
    assert content_key("cat") == content_key("ca" + "t")
    assert content_key(image("a")) == content_key(LazyImage("a", IMAGE.copy))
    assert content_key(IMAGE) == content_key(IMAGE.copy())
    assert content_key(Joint("cat", IMAGE)) == content_key(Joint("cat", IMAGE.copy()))


def test_other_content_has_another():
    changed = IMAGE.copy()
    changed.putpixel((5, 5), (1, 2, 3))
    one_palette, another = Image.new("P", (1, 1)), Image.new("P", (1, 1))
    one_palette.putpalette([1, 2, 3])
    another.putpalette([3, 2, 1])
    items = [
        "cat",
        "",
        "\ud800",
        image("cat"),
        image("dog"),
        *(IMAGE, changed, IMAGE.transpose(Image.Transpose.ROTATE_90)),
        *(Image.new("RGB", (80, 60)), Image.new("RGB", (60, 80))),
        *(one_palette, another),
        *(Joint("cat", IMAGE), Joint("dog", IMAGE), Joint("cat", changed)),
        Joint("cat", image("cat")),
    ]
    assert len(set(map(content_key, items))) == len(items)
