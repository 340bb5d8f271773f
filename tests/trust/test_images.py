"""Images that are small files and cost seconds of decoding or gigabytes."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from llama_index_gap.images import limits
from llama_index_gap.images.limits import WORKING_BYTES
from llama_index_gap.images.opening import ImageError, check_image, open_image


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


@pytest.mark.parametrize("strips", [1, 8])
def test_a_tiff_file_of_many_jpeg_strips_is_read(strips: int) -> None:
    """Each strip is a JPEG image of its own, with a scan of its own."""
    image = Image.new("RGB", (16, 256), "red")
    file = encoded(image, "TIFF", compression="jpeg", tiffinfo={278: 256 // strips})

    assert open_image(file).size == (16, 256)


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


def test_the_default_limit_keeps_the_worst_image_below_what_is_said(tmp_path: Path) -> None:
    """A transparent image, 6 megapixels: the peak is measured in a process of its own."""
    side = 2500
    (tmp_path / "large.png").write_bytes(png(side, side, depth=16))
    script = f"""
        import resource
        from llama_index_gap.images.opening import open_image
        def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        open_image({str(tmp_path / "small.png")!r})
        before = peak()
        open_image({str(tmp_path / "large.png")!r})
        print(peak() - before)
    """
    (tmp_path / "small.png").write_bytes(png(64, 64, depth=16))

    taken = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in script.splitlines())],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert int(taken) < WORKING_BYTES * side * side + 2**25


def test_large_images_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of any pool wait; small images go on beside a large one."""
    monkeypatch.setattr(limits, "_memory", limits._Memory(WORKING_BYTES * 64 * 64))
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
    in_threads(32, 2)  # these wait for each other inside: two at once, or never
    assert not both.broken


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
    monkeypatch.setattr(limits, "MAX_PLAIN_BYTES", 1000)
    decoded.clear()
    with pytest.raises(ImageError, match="save it in binary form"):
        open_image(plain)
    assert decoded == []


def test_of_an_animation_only_the_first_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [Image.new("RGB", (32, 32), (shade, 0, 0)) for shade in range(200)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        monkeypatch.setattr(ImageFile.ImageFile, "seek", lambda *_: pytest.fail("another frame"))
        assert open_image(file).size == (32, 32)
        monkeypatch.undo()


# --- what stands beside the pixels ---------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"profile\0\0" + b"no zlib"),
        chunk(b"iCCP", b"profile\0\1" + zlib.compress(b"x")),  # an unknown compression
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"\0" * 80_000_000)),  # 80 kB of file
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 80_000_000)),
        b"".join(chunk(b"zTXt", b"C\0\0" + zlib.compress(b"a" * 1_000_000)) for _ in range(80)),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"x"))[:-4] + b"\0\0\0\0",  # its checksum
    ],
    ids=["no zlib", "unknown", "bomb", "text bomb", "many texts", "checksum"],
)
def test_a_png_file_is_read_without_a_damaged_profile_or_text(extra: bytes) -> None:
    file = png(20, 10, kind=2, extra=extra)

    assert open_image(file).size == (20, 10)
    assert check_image(file) == (20, 10)


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
    """Laid on white by bands of rows, exactly as at once."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3000, 700, 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA")

    shown = open_image(image)

    white = Image.new("RGBA", image.size, "white")
    assert np.array_equal(shown, Image.alpha_composite(white, image).convert("RGB"))


def test_the_case_of_a_broken_profile(gap_shared: Path) -> None:
    for file in sorted((gap_shared / "cases" / "bad-iccp").glob("*.png")):
        assert open_image(file).mode == "RGB"
