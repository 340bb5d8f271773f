from __future__ import annotations

import base64
import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.schema import (
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeWithScore,
    TextNode,
)
from PIL import Image

from llama_index_gap.images import opening as images
from llama_index_gap.images.opening import (
    MAX_PIXELS,
    ImageError,
    check_image,
    data_uri,
    describe,
    for_chat_models,
    has_image,
    open_image,
    read_image,
    scaled_jpeg,
)

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


# Two pixels: red on the left, green on the right.
FLAG = Image.new("RGB", (2, 1), RED)
FLAG.putpixel((1, 0), GREEN)
PNG = encoded(FLAG)
PNG_BASE64 = base64.b64encode(PNG).decode()
JPEG = encoded(Image.effect_noise((200, 100), 50), "JPEG")  # most of it is data, not header


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


@pytest.fixture
def flag_file(tmp_path: Path) -> Path:
    path = tmp_path / "flag.png"
    path.write_bytes(PNG)
    return path


def sources(path: Path) -> dict[str, object]:
    """One image in every form that open_image accepts."""
    return {
        "path": path,
        "path as text": str(path),
        "bytes": PNG,
        "BytesIO": BytesIO(PNG),
        "base64": PNG_BASE64,
        "base64 in lines": "\n".join(PNG_BASE64[i : i + 20] for i in range(0, len(PNG_BASE64), 20)),
        "data URI": f"data:image/png;base64,{PNG_BASE64}",
        "data URI without a type": f"data:;base64,{PNG_BASE64}",
        "PIL image": FLAG,
        "ImageNode with a path": ImageNode(image_path=str(path)),
        "ImageNode with base64": ImageNode(image=PNG_BASE64),
        "ImageNode with a data URI": ImageNode(image=f"data:image/png;base64,{PNG_BASE64}"),
        "Node with a path": Node(image_resource=MediaResource(path=path)),
        "Node with data": Node(image_resource=MediaResource(data=PNG)),
        "ImageDocument": ImageDocument(image=PNG_BASE64),
        "NodeWithScore": NodeWithScore(node=ImageNode(image_path=str(path)), score=0.5),
    }


@pytest.mark.parametrize("form", sources(Path()))
def test_opens_every_form(form: str, flag_file: Path) -> None:
    source = sources(flag_file)[form]

    assert pixels(open_image(source)) == [RED, GREEN]
    assert check_image(source) == (2, 1)


def test_a_node_s_own_data_comes_before_its_path() -> None:
    assert pixels(open_image(ImageNode(image=PNG_BASE64, image_path="/nowhere.png"))) == [
        RED,
        GREEN,
    ]


def test_base64_jpeg_that_looks_like_a_path_is_opened_below_a_root(tmp_path: Path) -> None:
    text = base64.b64encode(JPEG).decode()
    assert text.startswith("/9j/")

    assert open_image(text, root=tmp_path).size == (200, 100)


def test_inputs_stay_as_they_are(flag_file: Path) -> None:
    stream = BytesIO(PNG)
    stream.seek(7)
    palette = FLAG.convert("P")

    open_image(stream)
    result = open_image(palette)
    result.putpixel((0, 0), WHITE)

    assert stream.tell() == 7
    assert palette.mode == "P"
    assert palette.convert("RGB").getpixel((0, 0)) == RED


def test_the_result_does_not_share_pixels_with_an_rgb_image() -> None:
    original = FLAG.copy()

    open_image(original).putpixel((0, 0), WHITE)

    assert original.getpixel((0, 0)) == RED


def test_one_lazily_opened_image_in_many_threads() -> None:
    for _ in range(20):
        shared = Image.open(BytesIO(JPEG))
        with ThreadPoolExecutor(8) as pool:
            sizes = {image.size for image in pool.map(open_image, [shared] * 8)}
        assert sizes == {(200, 100)}


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a turned camera: rotate by 90° clockwise
    data = encoded(FLAG, "PNG", exif=exif)

    upright = open_image(data)

    assert upright.size == (1, 2)
    assert pixels(upright) == [RED, GREEN]
    assert check_image(data) == (2, 1)


def test_unreadable_exif_is_taken_as_no_orientation(caplog: pytest.LogCaptureFixture) -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01"  # truncated
    data = encoded(FLAG.resize((8, 4)), "JPEG", exif=exif)

    assert open_image(data).size == (8, 4)


def test_transparent_pixels_become_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))

    assert pixels(open_image(encoded(rgba))) == [RED, WHITE]


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    black = Image.new("RGBA", (1, 1), (0, 0, 0, 128))

    assert pixels(open_image(black)) == [(127, 127, 127)]


def test_transparent_palette_becomes_white() -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, *GREEN])
    palette.putpixel((1, 0), 1)

    assert pixels(open_image(encoded(palette, transparency=1))) == [RED, WHITE]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (1, 1), 1), WHITE),
        (Image.new("L", (1, 1), 7), (7, 7, 7)),
        (Image.new("LA", (1, 1), (7, 0)), WHITE),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), RED),
        (Image.new("HSV", (1, 1), (0, 255, 255)), RED),
        (Image.new("YCbCr", (1, 1), (255, 128, 128)), WHITE),
        (Image.fromarray(np.full((1, 1), 0x80FF, dtype=np.uint16)), (0x80, 0x80, 0x80)),
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)).convert("RGBa"), WHITE),
        (Image.new("LA", (1, 1), (0, 255)).convert("La"), (0, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert pixels(open_image(image)) == [expected]


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, GREEN)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert set(pixels(open_image(data))) == {RED}


@pytest.mark.parametrize("format_", ["AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_opens_common_formats(format_: str) -> None:
    assert open_image(encoded(FLAG.resize((16, 8)), format_)).size == (16, 8)


def with_segment(marker: int, body: bytes) -> bytes:
    """A JPEG file with an additional segment at its start."""
    return JPEG[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + JPEG[2:]


@pytest.mark.parametrize(
    "data",
    [
        with_segment(0xE2, b"ICC_PROFILE\0"),
        with_segment(0xEE, b"Adobe"),
        with_segment(0xE0, b"JFIF\0"),
        with_segment(0xE1, b"Exif\0\0junk"),
        with_segment(0xED, b"Photoshop 3.0\0008BIM\4\4\0\0\xff\xff"),
    ],
    ids=["profile", "Adobe", "JFIF", "EXIF", "Photoshop"],
)
def test_a_jpeg_file_is_read_without_what_is_damaged_beside_its_pixels(data: bytes) -> None:
    assert check_image(data) == (200, 100)
    assert pixels(open_image(data)) == pixels(open_image(JPEG))


def test_a_damaged_profile_does_not_turn_an_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(FLAG.resize((16, 8)), "JPEG", exif=exif)

    broken = data[:2] + b"\xff\xe2\x00\x0eICC_PROFILE\0" + data[2:]

    assert open_image(broken).size == (8, 16)


def test_a_png_file_that_breaks_off_in_a_text_after_its_pixels() -> None:
    assert pixels(open_image(PNG[:-12] + b"\0\0\3\xe7tEXtabout")) == [RED, GREEN]


@pytest.mark.parametrize("format_", ["MPO", "BMP", "TIFF", "JPEG2000", "AVIF", "ICO", "PPM"])
@pytest.mark.parametrize("name", ["a.jpeg", "a.png", "a"])
def test_chat_models_get_jpeg_of_formats_that_they_do_not_take(
    format_: str, name: str, tmp_path: Path
) -> None:
    options = (
        {"save_all": True, "append_images": [FLAG.resize((32, 32))]} if format_ == "MPO" else {}
    )
    (tmp_path / name).write_bytes(encoded(FLAG.resize((32, 32)), format_, **options))
    if format_ == "MPO":
        assert Image.open(tmp_path / name).format == "MPO"

    data, kind = for_chat_models(tmp_path / name)

    assert kind == "image/jpeg"
    assert data is not None
    with Image.open(BytesIO(data)) as shown:
        assert (shown.format, shown.size) == ("JPEG", (32, 32))


@pytest.mark.parametrize(
    ("format_", "kind"),
    [
        ("PNG", "image/png"),
        ("JPEG", "image/jpeg"),
        ("GIF", "image/gif"),
        ("WEBP", "image/webp"),
    ],
)
def test_chat_models_get_other_files_as_they_are(format_: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(encoded(FLAG, format_))

    assert for_chat_models(path) == (None, kind)


def test_chat_models_do_not_see_12_bits_in_16_as_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 4095, dtype=np.uint16)).save(tmp_path / "a.png")

    data, kind = for_chat_models(tmp_path / "a.png")

    assert kind == "image/jpeg"
    assert set(pixels(open_image(data))) == {WHITE}


# --- refusals: bad inputs and their errors ------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """A PNG with a header and no image."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + (chunk(b"IEND", b""))
    )


def a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def a_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def a_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def closed(_: Path) -> BytesIO:
    stream = BytesIO(PNG)
    stream.close()
    return stream


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda folder: folder / "no.png", "no such file"),
    "missing file as text": (lambda folder: str(folder / "no.png"), "no such file"),
    "folder": (lambda folder: folder, "is a folder"),
    "fifo": (a_fifo, "not a regular file"),
    "device": (lambda _: "/dev/zero", "not a regular file"),
    "loop of links": (a_loop, "cannot be read"),
    "name too long": (lambda _: "x" * 300 + ".png", "cannot be read"),
    "NUL in the name": (lambda _: Path("a\0.png"), "is not a valid path"),
    "empty text": (lambda _: "", "an empty text is not an image"),
    "blank text": (lambda _: "  \n", "an empty text is not an image"),
    "empty bytes": (lambda _: b"", "an empty file"),
    "empty file": (a_file("empty.png", b""), "an empty file"),
    "text file": (a_file("a.png", b"hello, world"), "not an image in a format that is read"),
    "HTML saved as JPEG": (a_file("a.jpg", b"<html>404</html>"), "text .HTML or JSON"),
    "JSON saved as PNG": (a_file("a.png", b'{"error": 1}'), "text .HTML or JSON"),
    "SVG": (a_file("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "convert it to PNG"),
    "XML": (a_file("a.svg", b"<?xml version='1.0'?><svg/>"), "convert it to PNG"),
    "Git LFS pointer": (a_file("a.jpg", b"version https://git-lfs.github.com"), "git lfs pull"),
    "PDF": (a_file("a.png", b"%PDF-1.7\n"), "not an image in a format that is read"),
    "EPS, which Pillow hands to another program": (
        a_file("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"),
        "not an image in a format that is read",
    ),
    "truncated PNG": (lambda _: encoded(FLAG.resize((99, 99)))[:-40], "truncated or damaged"),
    "truncated JPEG": (lambda _: JPEG[: len(JPEG) // 2], "truncated or damaged"),
    "truncated GIF": (
        lambda _: encoded(FLAG.resize((99, 99)), "GIF")[:-60],
        "truncated or damaged",
    ),
    "truncated WebP": (lambda _: encoded(FLAG.resize((99, 99)), "WEBP")[:-20], "damaged"),
    "header alone": (lambda _: png_header(9, 9), "truncated or damaged"),
    "PNG signature alone": (lambda _: PNG[:8], "not an image|damaged"),
    "bomb over the default": (
        lambda _: png_header(10_000, 9_000),
        "more than max_pixels=89,478,485",
    ),
    "bomb over Pillow's limit": (lambda _: png_header(60_000, 60_000), "Pillow refuses it"),
    "no pixels": (lambda _: Image.new("RGB", (0, 5)), "0×5 pixels"),
    "HEIC": (lambda _: b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC, which is not read; convert it"),
    "closed BytesIO": (closed, "<closed BytesIO>: is not an image"),
    "http URL": (lambda _: "http://example.com/a.png", "unless allow_urls=True"),
    "https URL": (lambda _: "https://example.com/a.png", "unless allow_urls=True"),
    "URL of a node": (
        lambda _: ImageNode(image_url="https://e.com/a.png"),
        "unless allow_urls=True",
    ),
    "file URL": (lambda folder: f"file://{folder}/a.png", "file:// is not read"),
    "ftp URL": (lambda _: "ftp://example.com/a.png", "ftp:// is not read"),
    "data URI not in base64": (lambda _: "data:image/png,abc", "only data:…;base64"),
    "data URI without a comma": (lambda _: "data:image/png;base64", "only data:…;base64"),
    "data URI with broken base64": (lambda _: "data:image/png;base64,@@@", "nor base64"),
    "data URI of text": (lambda _: "data:text/plain;base64,aGVsbG8=", "not an image"),
    "long text": (lambda _: "no image, " * 1000, "nor base64"),
    "long base64 of text": (lambda _: base64.b64encode(b"text" * 2000).decode(), "not an image"),
    "base64 of a truncated image": (
        lambda _: base64.b64encode(JPEG[: len(JPEG) // 2]).decode(),
        "truncated or damaged",
    ),
    "text node": (lambda _: TextNode(text="hello"), "this TextNode holds no image"),
    "empty image node": (lambda _: ImageNode(text="caption"), "this ImageNode holds no image"),
    "node of text": (
        lambda _: Node(text_resource=MediaResource(text="x")),
        "this Node holds no image",
    ),
    "node with a missing file": (
        lambda _: ImageNode(image_path="/no.png"),
        r"\(/no.png\): no such",
    ),
    "node with broken base64": (lambda _: ImageNode(image="@@@"), "nor base64"),
    "None": (lambda _: None, "<NoneType>: is not an image"),
    "number": (lambda _: 7, "<int>: is not an image"),
    "array": (lambda _: np.zeros((2, 2, 3), dtype=np.uint8), "<ndarray>: is not an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_a_clear_error(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    source = make(tmp_path)

    with pytest.raises(ImageError, match=message) as caught:
        open_image(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500  # it describes the image without its content


def test_a_missing_image_is_never_taken_for_a_text() -> None:
    with pytest.raises(ImageError, match="holiday photo of a cat: no such file"):
        open_image("holiday photo of a cat")


def test_max_pixels_can_be_raised_and_lowered() -> None:
    assert open_image(PNG, max_pixels=2).size == (2, 1)
    with pytest.raises(ImageError, match="2×1 is 2 pixels, more than max_pixels=1"):
        open_image(PNG, max_pixels=1)
    with pytest.raises(ImageError, match="more than max_pixels=1"):
        open_image(FLAG, max_pixels=1)
    with pytest.raises(ValueError, match="max_pixels=0: must be at least 1"):
        open_image(PNG, max_pixels=0)


def test_the_default_limit_is_pillow_s() -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png_header(9_000, 9_000)  # below the default limit: 243 MB once decoded

    with pytest.raises(ImageError, match="81,000,000 pixels, more than max_pixels=1,000"):
        check_image(bomb, max_pixels=1000)


@pytest.mark.parametrize(
    "escape", ["secret.png", "root/../secret.png", "/etc/passwd", "root/link.png", "root/../../a"]
)
def test_nothing_outside_the_root_is_opened(
    escape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "secret.png")

    for source in (escape, Path(escape), ImageNode(image_path=escape)):
        with pytest.raises(ImageError, match="lies outside root"):
            open_image(source, root="root")


def test_what_lies_below_the_root_is_opened(
    flag_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(flag_file.parent)

    for root in (flag_file.parent, ".", flag_file.parent / "sub" / ".."):
        assert open_image("flag.png", root=root).size == (2, 1)
        assert open_image(flag_file, root=root).size == (2, 1)


@pytest.mark.parametrize("form", [form for form in sources(Path()) if form != "PIL image"])
def test_reads_the_file_of_every_form(form: str, flag_file: Path) -> None:
    assert read_image(sources(flag_file)[form]) == PNG
    assert read_image(data_uri(sources(flag_file)[form])) == PNG


def test_what_is_read_is_checked_but_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = JPEG[: len(JPEG) // 2]
    monkeypatch.setattr(images, "fetch", {"https://e.com/a.png": PNG}.__getitem__)
    url = ImageNode(id_="n1", image_url="https://e.com/a.png")

    assert read_image(broken) == broken
    assert read_image(url, allow_urls=True) == PNG
    for source, options, message in (
        (url, {}, "node n1: URLs are not fetched unless allow_urls=True"),
        (png_header(10_000, 9_000), {}, "more than max_pixels=89,478,485"),
        (b"not an image", {}, "not an image in a format that is read here"),
        (Path("/etc/passwd"), {"root": tmp_path}, "lies outside root"),
        (FLAG, {}, "has no file to read; save it"),
        (TextNode(id_="n2"), {}, "node n2: this TextNode holds no image"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image(source, **options)


def test_which_nodes_have_an_image(flag_file: Path) -> None:
    with_one = [
        ImageNode(image_path=str(flag_file)),
        ImageNode(image=PNG_BASE64),
        ImageNode(image_url="https://e.com/a.png"),
        Node(image_resource=MediaResource(data=PNG)),
        ImageDocument(image=PNG_BASE64),
    ]
    without = [
        ImageNode(text="a caption", image_path=""),
        TextNode(text="a text"),
        Node(text_resource=MediaResource(text="a text")),
        Node(image_resource=MediaResource()),
    ]

    assert all(has_image(node) for node in with_one)
    assert not any(has_image(node) for node in without)


def test_messages_name_the_image_but_hold_neither_content_nor_passwords() -> None:
    assert describe(PNG) == f"<{len(PNG)} bytes>"
    assert describe(BytesIO(PNG)) == f"<BytesIO of {len(PNG)} bytes>"
    assert describe(FLAG) == "<RGB image, 2×1>"
    assert describe(ImageNode(id_="n1", image=PNG_BASE64)) == "node n1"
    assert describe(f"data:image/png;base64,{PNG_BASE64}").startswith("<data URI of")
    assert describe("https://me:secret@e.com/a.png?token=x") == "https://***@e.com/a.png"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_files_are_closed_after_errors(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    path = tmp_path / "a.png"
    path.write_bytes(JPEG[: len(JPEG) // 2])
    before = open_files()

    for _ in range(20):
        with pytest.raises(ImageError, match="truncated"):
            open_image(path)

    assert open_files() <= before + 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_an_image_or_an_image_error(data: bytes) -> None:
    try:
        assert open_image(data).mode == "RGB"
    except ImageError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "AVIF"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 10_000),
)
def test_damaged_images_give_an_image_or_an_image_error(
    format_: str, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(encoded(FLAG.resize((20, 10)), format_))
    for position, value in changes:
        data[position % len(data)] = value
    try:
        image = open_image(bytes(data[: length % (len(data) + 1)]), max_pixels=10_000)
        assert image.mode == "RGB"
    except ImageError:
        pass


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_an_image_or_an_image_error(text: str) -> None:
    with pytest.raises(ImageError):
        open_image(text, root="/nonexistent-root" if text.startswith("/") else None)


# --- scaling ------------------------------------------------------------------------------------


def test_scaled_jpeg() -> None:
    image = Image.new("RGBA", (300, 150), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x010E] = "where it was taken"
    file = BytesIO()
    image.save(file, "PNG", exif=exif)

    data, size = scaled_jpeg(file, 100)

    assert size == (100, 50)
    with Image.open(BytesIO(data)) as small:
        assert (small.format, small.size, small.getpixel((9, 9))) == ("JPEG", size, (255,) * 3)
        assert not small.getexif()
    assert scaled_jpeg(file, 1000)[1] == (300, 150)
    assert image.size == (300, 150)
