"""Images in small files that take seconds or gigabytes to decode."""

from __future__ import annotations

import base64
import queue
import struct
import subprocess
import sys
import threading
import zlib
from collections import deque
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import ImageNode
from PIL import Image, ImageFile

from llama_index_gap.images import limits
from llama_index_gap.images.opening import ImageError, check_image, open_image
from llama_index_gap.index.image_storage import ImageStorage


def encoded(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formats whose pixels were decoded."""
    done: list[str] = []
    load = ImageFile.ImageFile.load

    def noting(image: ImageFile.ImageFile) -> object:
        done.append(str(image.format))
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", noting)
    return done


# --- scans ---------------------------------------------------------------------------------------


def with_scans(size: int, extra: int, kind: str = "JPEG") -> bytes:
    """A progressive JPEG file whose last scan is repeated."""
    whole = encoded(Image.new("RGB", (size, size), "red"), kind, progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * extra + b"\xff\xd9"


def test_hundreds_of_scans_are_refused_before_they_are_decoded(decoded: list[str]) -> None:
    bomb = with_scans(64, 200)

    for look in (open_image, check_image):
        with pytest.raises(ImageError, match=r"21\d scans over 4,096 pixels, where 10 are usual"):
            look(bomb)
    assert decoded == []


def test_fewer_scans_over_many_pixels_cost_as_much(decoded: list[str]) -> None:
    bomb = with_scans(400, 40)

    with pytest.raises(ImageError, match=r"scans over 160,000 pixels"):
        open_image(bomb, max_pixels=400 * 400)
    assert decoded == []
    assert open_image(bomb).size == (400, 400)  # far below the default
    assert set(decoded) == {"JPEG"}


def test_a_progressive_photograph_is_read() -> None:
    assert open_image(with_scans(64, 0)).getpixel((5, 5))[0] > 250


@pytest.mark.parametrize("where", ["after", "inside"])
def test_what_looks_like_scans_elsewhere_is_none(where: str) -> None:
    """For example the video of a motion photo, and a camera's notes."""
    whole, markers = encoded(Image.new("RGB", (64, 64)), "JPEG"), b"\xff\xda" * 1000
    notes = b"\xff\xe4" + struct.pack(">H", len(markers) + 2) + markers

    file = whole + markers if where == "after" else whole[:2] + notes + whole[2:]

    assert open_image(file).size == (64, 64)


def test_a_hundred_thousand_exif_segments_are_refused_before_pillow_adds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pillow appends each one to a copy of those before: 28 s for 11 MB."""
    whole = encoded(Image.new("RGB", (64, 64)), "JPEG")
    bomb = whole[:2] + b"\xff\xe1\x00\x09Exif\0\0x" * 100_000 + whole[2:]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))

    for source in (bomb, BytesIO(bomb), base64.b64encode(bomb).decode()):
        with pytest.raises(ImageError, match="more than 1,000 segments"):
            open_image(source)


@pytest.mark.parametrize("strips", [1, 8])
def test_a_tiff_file_of_many_jpeg_strips_is_read(strips: int) -> None:
    """Each strip is a separate JPEG image with its own scan."""
    image = Image.new("RGB", (16, 256), "red")
    file = encoded(image, "TIFF", compression="jpeg", tiffinfo={278: 256 // strips})

    assert open_image(file).size == (16, 256)


def tiff(width: int, strips: int, compression: int, strip: bytes) -> bytes:
    """A grey TIFF file whose strips, of one row each or of all, are the same bytes."""
    rows = 1 if compression == 8 else width
    height = strips if compression == 8 else width
    places = 8 + 2 + 12 * 9 + 4
    tags = [(256, 1, width), (257, 1, height), (258, 1, 8), (259, 1, compression), (262, 1, 1)]
    tags += [(273, strips, places), (277, 1, 1), (278, 1, rows), (279, strips, places + 4 * strips)]
    entries = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in tags)
    tables = (
        struct.pack("<I", places + 8 * strips) * strips + struct.pack("<I", len(strip)) * strips
    )
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + tables + strip


def test_strips_that_are_the_same_bytes_are_counted_each(decoded: list[str]) -> None:
    """Strips of 1 MB each, without a pixel in them, took 20 s."""
    slow = b"\x78\x01" + b"\0\0\0\xff\xff" * 2000 + zlib.compress(bytes(100))[2:]

    with pytest.raises(ImageError, match="2,000 strips or tiles of 20"):
        open_image(tiff(100, 2000, 8, slow), max_pixels=200_000)
    assert decoded == []
    assert open_image(tiff(100, 20, 8, zlib.compress(bytes(100)))).size == (100, 20)


def test_scans_of_a_tiff_file_are_those_of_a_strip_however_many_it_names(
    decoded: list[str],
) -> None:
    grey = encoded(Image.new("L", (256, 256)), "JPEG", progressive=True)
    strip = grey[:-2] + grey[grey.rindex(b"\xff\xda") : -2] * 200 + b"\xff\xd9"

    with pytest.raises(ImageError, match=r"20\d scans over 65,536 pixels"):
        open_image(tiff(256, 1000, 7, strip))
    assert decoded == []


# --- JPEG2000: small files of many pieces --------------------------------------------------------


def jpeg2000(
    side: int, *, tile: int = 0, block: int = 64, precinct: int = 0, layers: int = 1
) -> bytes:
    """A grey JPEG2000 code stream without data; precincts as a power of two."""
    tile = tile or side
    sizes = struct.pack(">HIIIIIIIIHBBB", 0, side, side, 0, 0, tile, tile, 0, 0, 1, 7, 1, 1)
    power = block.bit_length() - 3
    coding = struct.pack(">BBHBBBBBB", bool(precinct), 0, layers, 0, 1, power, power, 0, 1)
    coding += bytes([precinct * 17] * 2 if precinct else [])
    steps = bytes([0x40, *[64] * 4])
    parts = (
        b"\xff\x90" + struct.pack(">HHIBB", 10, number, 15, 0, 1) + b"\xff\x93\0"
        for number in range((-(-side // tile)) ** 2)
    )
    stream = b"\xff\x4f"
    for kind, body in ((0x51, sizes), (0x52, coding), (0x5C, steps)):
        stream += bytes([0xFF, kind]) + struct.pack(">H", len(body) + 2) + body
    return stream + b"".join(parts) + b"\xff\xd9"


@pytest.mark.parametrize(
    "pieces",
    [{"precinct": 1}, {"block": 4}, {"precinct": 8, "layers": 65535}, {"tile": 8}],
    ids=["precincts", "blocks", "layers", "tiles"],
)
@pytest.mark.parametrize("boxed", [False, True])
def test_a_jpeg2000_image_of_too_many_pieces_is_refused(
    pieces: dict[str, int], boxed: bool, decoded: list[str]
) -> None:
    """1 kB with precincts of 2 by 2 pixels took 6 GB of memory."""
    side = 1600
    stream = jpeg2000(side, **pieces)
    if boxed:
        header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", side, side, 1, 7, 7, 0, 0)
        colour = struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 17)
        stream = (
            b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
            + struct.pack(">I4s", 45, b"jp2h")
            + header
            + colour
            + struct.pack(">I4s", 0, b"jp2c")
            + stream
        )

    with pytest.raises(ImageError, match="tiles, layers and blocks for 2,560,000 pixels"):
        open_image(stream)
    assert decoded == []


@pytest.mark.parametrize(
    "settings",
    [{}, {"tile_size": (128, 128)}, {"quality_layers": [40, 20, 5]}, {"precinct_size": (128, 128)}],
    ids=str,
)
def test_a_usual_jpeg2000_image_is_read(settings: dict[str, object]) -> None:
    image = Image.effect_noise((700, 500), 50).convert("RGB")

    assert open_image(encoded(image, "JPEG2000", **settings)).size == (700, 500)


# --- bytes and memory ----------------------------------------------------------------------------


def png(width: int, height: int, *, depth: int = 8, kind: int = 6, extra: bytes = b"") -> bytes:
    """A PNG file of zeros: of few bytes, however large the image.

    Args:
        width: in pixels.
        height: in pixels.
        depth: bits of a band.
        kind: 2 for RGB, 6 for RGBA.
        extra: chunks before the pixels.
    """
    row = b"\0" * (1 + width * {2: 3, 6: 4}[kind] * depth // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_the_limit_counts_bytes_too() -> None:
    for look in (open_image, check_image):
        with pytest.raises(
            ImageError, match=r"10,000 pixels of 8 bytes are 80,000 bytes, more than"
        ):
            look(png(100, 100, depth=16), max_pixels=10_000)
    assert open_image(png(100, 100, depth=16), max_pixels=27_000).size == (100, 100)
    assert open_image(png(100, 100, kind=2), max_pixels=10_000).size == (100, 100)


SIDE = 1600
COSTLY = {
    "PNG": lambda: png(SIDE, SIDE, depth=16),
    "JPEG": lambda: encoded(Image.new("CMYK", (SIDE, SIDE)), "JPEG", progressive=True),
    "WEBP": lambda: encoded(Image.new("RGBA", (SIDE, SIDE)), "WEBP", lossless=True),
    "AVIF": lambda: encoded(Image.new("RGBA", (SIDE, SIDE)), "AVIF", speed=10, subsampling="4:4:4"),
    "TIFF": lambda: encoded(Image.new("RGBA", (SIDE, SIDE)), "TIFF", compression="tiff_lzw"),
    "JPEG2000": lambda: encoded(Image.new("RGBA", (SIDE, SIDE)), "JPEG2000"),
}
PEAKS = """
import os, sys
from llama_index_gap.images.opening import open_image
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if name in line).split()[1])
for file in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    before = kilobytes("VmRSS")
    open_image(file)
    print((kilobytes("VmHWM") - before) * 1024, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_decoding_takes_no_more_memory_than_is_said(tmp_path: Path) -> None:
    """Each image is decoded in a new process, whose imports set the peak before."""
    kinds = [kind for kind in COSTLY if kind in Image.OPEN]  # as this Pillow was built
    for kind in kinds:
        (tmp_path / kind).write_bytes(COSTLY[kind]())

    files = [str(tmp_path / kind) for kind in kinds]
    taken = subprocess.run(
        [sys.executable, "-c", PEAKS, *files], capture_output=True, text=True, check=True
    ).stdout.split()

    for file, each in zip(files, taken, strict=True):
        with Image.open(file) as image:
            assert 4 * SIDE * SIDE < int(each) < limits.working_bytes(image) + 2**24, file


def test_formats_that_take_more_memory_may_have_fewer_pixels(decoded: list[str]) -> None:
    image = encoded(Image.new("RGBA", (300, 300)), "WEBP", lossless=True)

    with pytest.raises(ImageError, match=r"90,000 pixels of WEBP takes 2,160,000 bytes of memory"):
        open_image(image, max_pixels=120_000)
    assert decoded == []
    assert open_image(image, max_pixels=135_000).size == (300, 300)


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of any pool wait for each other; small images are decoded beside a large one."""
    monkeypatch.setattr(limits, "_memory", limits._Memory(12 * 64 * 64))
    at_once, most = 0, 0
    lock, both = threading.Lock(), threading.Barrier(2, timeout=30)
    load = ImageFile.ImageFile.load

    def noting(image: ImageFile.ImageFile) -> object:
        nonlocal at_once, most
        if image.width < 64:
            both.wait()
            return load(image)
        with lock:
            at_once += 1
            most = max(most, at_once)
        result = load(image)
        with lock:
            at_once -= 1
        return result

    monkeypatch.setattr(ImageFile.ImageFile, "load", noting)

    def in_threads(side: int, number: int) -> None:
        threads = [
            threading.Thread(target=open_image, args=(png(side, side),)) for _ in range(number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)

    in_threads(80, 6)  # each is more than all may take
    assert most == 1
    in_threads(32, 2)  # these wait for each other: both run at once, or none ends
    assert not both.broken


def test_a_large_image_is_not_overtaken_for_ever() -> None:
    """Later requests wait, even if the remaining memory would do for them."""
    asked: queue.Queue[object] = queue.Queue()

    class Noted(deque[object]):
        def append(self, turn: object) -> None:
            super().append(turn)
            asked.put(turn)

    memory, order = limits._Memory(10), []
    memory._waiting = Noted()

    def take(size: int) -> None:
        with memory.taken(size):
            order.append(size)

    with memory.taken(5):
        asked.get()
        threads = [threading.Thread(target=take, args=(size,)) for size in (10, 1)]
        for thread in threads:
            thread.start()
            asked.get(timeout=30)
        assert order == []
    for thread in threads:
        thread.join(30)
    assert order == [10, 1]


def test_what_fails_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = limits._Memory(1)
    monkeypatch.setattr(limits, "_memory", memory)
    for _ in range(3):
        with pytest.raises(ImageError, match="truncated or damaged"):
            open_image(png(64, 64)[:-40])
    assert memory._used == 0


def test_an_icon_may_not_hold_a_larger_image_than_it_says() -> None:
    inside = png(600, 600, kind=6)
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inside), 22)
    icon = struct.pack("<HHH", 0, 1, 1) + entry + inside

    with pytest.raises(ImageError, match="more than max_pixels=10,000"):
        open_image(icon, max_pixels=10_000)


def test_numbers_written_out_are_read_slowly_and_bounded(
    monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    plain = b"P3 30 30 255 " + b"1 " * 2700

    assert open_image(plain).size == (30, 30)
    monkeypatch.setattr(limits, "MAX_SLOW_BYTES", 1000)
    decoded.clear()
    with pytest.raises(ImageError, match="save it as PNG"):
        open_image(plain)
    assert decoded == []


def test_of_an_animation_only_the_first_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(200)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        monkeypatch.setattr(ImageFile.ImageFile, "seek", lambda *_: pytest.fail("another frame"))
        assert open_image(file).size == (32, 32)
        monkeypatch.undo()


# --- data beside the pixels ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"profile\0\0" + b"no zlib"),
        chunk(b"iCCP", b"profile\0\1" + zlib.compress(b"x")),  # an unknown compression
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"\0" * 80_000_000)),  # 80 kB of file
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 80_000_000)),
        b"".join(chunk(b"zTXt", b"C\0\0" + zlib.compress(b"a" * 1_000_000)) for _ in range(80)),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x"))[:-4] + b"\0\0\0\0",  # its checksum
        chunk(b"pHYs", b"x"),
        chunk(b"gAMA", b"")[:-4] + b"\0\0\0\0",
    ],
    ids=["no zlib", "unknown", "bomb", "text bomb", "many texts", "checksum", "size", "gamma"],
)
def test_a_png_file_is_read_without_a_damaged_profile_or_text(extra: bytes) -> None:
    file = png(20, 10, kind=2, extra=extra)

    assert open_image(file).size == (20, 10)
    assert check_image(file) == (20, 10)
    assert open_image(file + b"bytes after the end").size == (20, 10)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_a_damaged_profile_does_not_matter_elsewhere(kind: str) -> None:
    image = Image.new("RGB", (20, 10), "red")

    assert open_image(encoded(image, kind, icc_profile=b"no profile")).size == (20, 10)


def test_an_image_with_a_damaged_profile_is_kept_by_the_index(tmp_path: Path) -> None:
    """The stored file is named after the format, which Pillow does not tell for a damaged image."""
    file = png(20, 10, kind=2, extra=chunk(b"iCCP", b"profile\0\1" + zlib.compress(b"x")))
    storage = ImageStorage(tmp_path / "images", lambda: None, lambda _: {})

    with storage.inserting():
        kept = storage.keep(ImageNode(image=base64.b64encode(file).decode()))

        assert isinstance(kept, ImageNode)
        assert str(kept.image_path).endswith(".png")
        assert open_image(kept).size == (20, 10)


@pytest.mark.parametrize(
    "damage",
    [lambda file: file[:60], lambda file: file.replace(b"IDAT", b"IDAX"), lambda file: file[:8]],
    ids=["cut", "no pixels", "nothing"],
)
def test_damage_elsewhere_stays_damage(damage: Callable[[bytes], bytes]) -> None:
    extra = chunk(b"iCCP", b"profile\0\1" + zlib.compress(b"x"))

    with pytest.raises(ImageError, match=r"damaged|truncated|not an image"):
        open_image(damage(png(20, 10, kind=2, extra=extra)))


def test_transparent_images_look_as_before() -> None:
    """Compositing on white by bands of rows gives the same pixels as compositing at once."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3000, 700, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")

    shown = open_image(image)

    white = Image.new("RGBA", image.size, "white")
    assert np.array_equal(shown, Image.alpha_composite(white, image).convert("RGB"))


def test_the_case_of_a_broken_profile(gap_shared: Path) -> None:
    for file in sorted((gap_shared / "cases" / "bad-iccp").glob("*.png")):
        assert open_image(file).mode == "RGB"
