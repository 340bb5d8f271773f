"""Opens images safely: takes anything that holds an image, and returns an upright RGB image."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import IO, TypeAlias

from llama_index.core.schema import BaseNode, ImageNode, Node, NodeWithScore
from PIL import Image, ImageOps, UnidentifiedImageError

from llama_index_gap.errors import GapError, InvalidValueError
from llama_index_gap.files import FileError, open_file, reason
from llama_index_gap.images.fetching import FetchError, fetch
from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.images.greys import grey_of_8_bits
from llama_index_gap.images.jpeg import MAX_SEGMENTS, is_jpeg, segments_and_scans, without_metadata
from llama_index_gap.images.limits import (
    MAX_PIXELS,
    costs_too_much,
    memory_for,
    without_unused_chunks,
)

logger = logging.getLogger(__name__)

ImageSource: TypeAlias = str | Path | bytes | BytesIO | Image.Image | BaseNode | NodeWithScore

# A PIL image may still have to read its file, which only one thread at a time may do.
_LOADING = threading.Lock()
_DATA_URI = re.compile(r"data:(?P<type>[^,]*?)(?P<base64>;base64)?,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_LONGEST_PATH = 4096
_OF_CHAT_MODELS = ("PNG", "JPEG", "GIF", "WEBP")
_BAND_PIXELS = 2**20
_SVG_START = re.compile(rb"\s*(<\?xml|<!--|<!DOCTYPE svg|<svg)", re.IGNORECASE)


class ImageError(GapError, ValueError):
    """An image cannot, or must not, be opened.

    Attributes:
        source: a short description of the image.
        reason: why, and the way out.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source, self.reason = source, reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


def open_image(
    source: ImageSource,
    *,
    root: str | Path | None = None,
    allow_urls: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Open an image: decoded, upright, RGB, and independent of its source.

    EXIF orientation is applied. Transparent images are drawn on white, as on a page. An animation
    gives its first frame. Greys of more than 8 bits are scaled by their range of values
    (``images.greys``), so that 12-bit data in 16 bits is not black. Colour profiles are not
    applied. Damaged parts of a PNG or JPEG file that its pixels do not need, such as a profile or
    texts, are ignored.

    Threads wait if decoding all their images together would take more than 512 MiB; a larger image
    is decoded alone. Finished images are not counted.

    Args:
        source: a path, bytes, ``BytesIO``, base64 text, data URI, PIL image, URL, or a LlamaIndex
            node that holds one of these. It is never changed; a ``BytesIO`` is read from its start.
        root: folder that a file must lie in, after links are resolved.
        allow_urls: fetch http and https URLs (public addresses only, with limits on time and size).
        max_pixels: refuse an image with more pixels, before decoding it. Other limits follow from
            it: three stored bytes for each of these pixels (16-bit RGBA has eight, so it may have
            three eighths as many pixels), and 16 bytes of memory for each while decoding (WebP and
            AVIF take 24, JPEG2000 up to 44, all others less). JPEG scans may go over ten times as
            many pixels. Files with more than 100 scans, or with too many pieces, are refused.

    Returns:
        An image in mode RGB that the caller owns.

    Raises:
        ImageError: the image is missing, truncated, not an image, too large, outside ``root``, or
            at a URL without ``allow_urls``.
    """
    name = describe(source)
    if isinstance(source, Image.Image):
        _check_size(source, name, max_pixels)
        with memory_for(source), _LOADING:
            return _decode(source, name, owned=False)
    with _stream(source, name, root, allow_urls) as stream:
        return _looked_at(stream, lambda file: _identified_and_decoded(file, name, max_pixels))


def check_image(
    source: ImageSource,
    *,
    root: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[int, int]:
    """Check without decoding that an image exists, is an image, and is within the limits.

    Args:
        source: as for ``open_image``, without URLs.
        root: folder that a file must lie in.
        max_pixels: refuse more pixels than this.

    Returns:
        Width and height in pixels, as stored (before EXIF orientation).

    Raises:
        ImageError: as for ``open_image``; but a file that is truncated after its header passes.
    """
    name = describe(source)
    if isinstance(source, Image.Image):
        _check_size(source, name, max_pixels)
        return source.size
    with _stream(source, name, root, allow_urls=False) as stream:
        return _looked_at(stream, lambda file: _identify(file, name, max_pixels)).size


def read_image(
    source: ImageSource, *, root: str | Path | None = None, allow_urls: bool = False
) -> bytes:
    """Read an image's file, checked as by ``check_image``, for ``open_image`` to decode later."""
    name = describe(source)
    if isinstance(source, Image.Image):
        raise ImageError(name, "has no file to read; save it, and pass the path or the bytes")
    with _stream(source, name, root, allow_urls) as stream:
        _looked_at(stream, lambda file: _identify(file, name))
        stream.seek(0)
        return stream.read()


def image_digest(source: ImageSource) -> str:
    """The SHA-256 of an image's file in hexadecimal; it is neither identified nor decoded."""
    with _stream(source, describe(source), None, allow_urls=False) as stream:
        digest = hashlib.sha256()
        while block := stream.read(2**20):
            digest.update(block)
        return digest.hexdigest()


def data_uri(source: ImageSource, *, allow_urls: bool = False) -> str:
    """Read an image's file, checked as by ``read_image``, as a data URI for LlamaIndex queries."""
    content = read_image(source, allow_urls=allow_urls)
    return f"data:;base64,{base64.b64encode(content).decode()}"


def image_format(source: ImageSource) -> str:
    """The format of an image's file by its content, with Pillow's name for it, such as ``JPEG``."""
    name = describe(source)
    with _stream(source, name, None, allow_urls=False) as stream:
        return str(_looked_at(stream, lambda file: _identify(file, name)).format)


def for_chat_models(source: ImageSource) -> tuple[bytes | None, str]:
    """Convert an image to a format that chat models accept: PNG, JPEG, GIF or WebP.

    All other formats become JPEG: BMP, TIFF, JPEG 2000, AVIF, ICO, PPM, and MPO, which phones use
    for photos with depth, named like a JPEG file. So do greys of more than 8 bits, of which a model
    would see only the darkest part.

    Args:
        source: as for ``open_image``, without URLs.

    Returns:
        The JPEG file, or None if the image's own file is acceptable; the MIME type of the file to
        show.

    Raises:
        ImageError: as for ``open_image``.
    """
    name = describe(source)
    if not isinstance(source, Image.Image):
        with _stream(source, name, None, allow_urls=False) as stream:
            found = _looked_at(stream, lambda file: _identify(file, name))
            if found.format in _OF_CHAT_MODELS and found.mode[:1] not in {"I", "F"}:
                return None, Image.MIME[found.format]
    data = BytesIO()
    open_image(source).save(data, "JPEG", quality=90)
    return data.getvalue(), "image/jpeg"


def scaled_jpeg(
    source: ImageSource, longest: int, *, allow_urls: bool = False
) -> tuple[bytes, tuple[int, int]]:
    """Make a JPEG file of an image for pages and chat models, without its metadata.

    Args:
        source: as for ``open_image``.
        longest: the most pixels of width and of height; a smaller image keeps its size.
        allow_urls: as for ``open_image``.

    Returns:
        The file's content; width and height in pixels.
    """
    image = open_image(source, allow_urls=allow_urls)
    image.thumbnail((longest, longest))
    data = BytesIO()
    image.save(data, "JPEG", quality=80)
    return data.getvalue(), image.size


def has_image(node: BaseNode) -> bool:
    """Whether a node holds an image, a path or a URL of one."""
    return any(image_of(node))


def image_of(node: BaseNode) -> tuple[str | bytes | None, str | Path | None, object]:
    """The image in a node: base64, path and URL, each None if absent."""
    if isinstance(node, ImageNode):
        return node.image, node.image_path, node.image_url
    if isinstance(node, Node) and node.image_resource is not None:
        return node.image_resource.data, node.image_resource.path, node.image_resource.url
    return None, None, None


def describe(source: object) -> str:
    """Describe an image in a few words for messages, never with its content."""
    match source:
        case Image.Image():
            return f"<{source.mode} image, {source.width}×{source.height}>"
        case bytes():
            return f"<{len(source):,} bytes>"
        case BytesIO():
            if source.closed:
                return "<closed BytesIO>"
            return f"<BytesIO of {source.getbuffer().nbytes:,} bytes>"
        case NodeWithScore():
            return describe(source.node)
        case BaseNode():
            return f"node {source.node_id}"
        case str() if source[:5].lower() == "data:":
            return f"<data URI of {len(source):,} characters>"
        case str() if _URL.match(source):
            # Neither passwords nor signatures belong in messages.
            return re.sub(r"//[^/?#]*@", "//***@", source).split("?")[0]
        case str() if len(source) > 200:
            return f"<text of {len(source):,} characters, {source[:20]!r}…>"
        case str() | Path():
            return str(source)
        case _:
            return f"<{type(source).__name__}>"


def _looked_at(stream: IO[bytes], look: Callable[[IO[bytes]], Image.Image]) -> Image.Image:
    """Read a file; retry a damaged PNG or JPEG without the parts that its pixels do not need."""
    try:
        return look(stream)
    except ImageError:
        readable = without_unused_chunks(stream) or without_metadata(stream)
        if readable is None:
            raise
        return look(readable)


def _identified_and_decoded(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    image = _identify(stream, name, max_pixels)
    with memory_for(image):
        return _decode(image, name, owned=True)


def _identify(stream: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image's header, and check its format, size and cost, without decoding it."""
    # Pillow adds each EXIF segment to a copy of those before.
    segments, scans = segments_and_scans(stream) if is_jpeg(stream) else (0, 0)
    if segments > MAX_SEGMENTS:
        raise ImageError(name, f"a JPEG file of more than {MAX_SEGMENTS:,} segments; save it again")
    image = _opened(stream, name)
    _check_size(image, name, max_pixels)
    place = stream.tell()
    try:
        problem = costs_too_much(image, stream, max_pixels, scans)
    except Exception as error:  # headers of embedded images may be damaged too
        raise ImageError(name, f"damaged image file ({reason(error)})") from error
    stream.seek(place)
    if problem is not None:
        raise ImageError(
            name,
            f"{problem}; scale it down or save it again, or raise max_pixels if you trust the file",
        )
    return image


def _opened(stream: IO[bytes], name: str) -> Image.Image:
    stream.seek(0)
    try:
        return Image.open(stream, formats=_formats())
    except UnidentifiedImageError as error:
        stream.seek(0)
        why = _why_not_an_image(stream.read(256))
        cause: Exception = error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            name,
            f"{error}; Pillow refuses it whatever max_pixels says: raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust the file",
        ) from error
    # On damaged headers Pillow's readers raise anything from SyntaxError to struct.error.
    except Exception as error:
        why, cause = f"damaged image file ({reason(error)})", error
    raise ImageError(name, why) from cause


def _stream(source: object, name: str, root: str | Path | None, allow_urls: bool) -> IO[bytes]:
    """The image's file, from a node, memory, disk, or a URL."""
    node = source.node if isinstance(source, NodeWithScore) else source
    if isinstance(node, BaseNode):
        data, path, url = image_of(node)
        # LlamaIndex resolves them in this order.
        if data:
            return _from_base64(data if isinstance(data, str) else data.decode("latin-1"), name)
        if path:
            # A node of an index knows the folders that its image must lie in.
            folders: ImageFolders | None = getattr(node, "image_folders", None)
            return _from_file(Path(path), f"{name} ({path})", root, folders)
        if url:
            return _from_url(str(url), name, allow_urls)
        kind = type(node).__name__
        raise ImageError(name, f"this {kind} holds no image; set its image, path or URL")
    match source:
        case bytes():
            return BytesIO(source)
        case BytesIO() if not source.closed:
            return BytesIO(source.getvalue())  # a copy (made on write) keeps the position
        case Path():
            return _from_file(source, name, root)
        case str() if _URL.match(source):
            return _from_url(source, name, allow_urls)
        case str() if not source.strip():
            raise ImageError(repr(source), "an empty text is not an image; pass a path")
        case str() if source[:5].lower() == "data:" or len(source) > _LONGEST_PATH:
            return _from_base64(source, name)
        case str():
            try:
                return _from_file(Path(source), name, root)
            except ImageError:  # a base64 JPEG, which starts with "/9j/", can look like a path
                with suppress(Exception):  # not an image either: report the missing file
                    decoded = _from_base64(source, name)
                    _opened(decoded, name)
                    return decoded
                raise
    raise ImageError(
        name,
        "is not an image; pass a path, bytes, BytesIO, base64, "
        "a data URI, a PIL image or an image node",
    )


def _from_file(
    path: Path, name: str, root: str | Path | None, folders: ImageFolders | None = None
) -> IO[bytes]:
    try:
        if folders is not None and not folders.hold(path):
            # Pages show only the reason, so that their readers do not learn the folders.
            raise ImageError(
                f"{name}, image_root={folders}",
                "lies outside the folders whose images may be opened, after links are resolved; if "
                "you trust the index, allow its folder with image_root= (--image-root)",
            )
        return open_file(path, root)
    except FileError as error:
        raise ImageError(name, str(error)) from error
    except (OSError, RuntimeError) as error:  # a loop of links, a name that is too long, …
        raise ImageError(name, f"cannot be read ({reason(error)})") from error
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(name, f"not a path ({reason(error)})") from error


def _from_base64(text: str, name: str) -> BytesIO:
    """The content of a base64 text or data URI."""
    if text[:5].lower() == "data:":
        head = _DATA_URI.match(text[:200])
        if head is None or not head["base64"]:
            raise ImageError(name, "only data:…;base64,… URIs are read")
        text = text[head.end() :]
    try:
        return BytesIO(base64.b64decode("".join(text.split()), validate=True))
    except ValueError as error:
        raise ImageError(name, f"is neither a file nor base64 ({reason(error)})") from error


def _from_url(url: str, name: str, allow_urls: bool) -> BytesIO:
    scheme = url.split(":", 1)[0].lower()
    if scheme not in {"http", "https"}:
        raise ImageError(name, f"{scheme}:// is not read; pass a path, or an http(s) URL")
    if not allow_urls:
        raise ImageError(
            name, "URLs are not fetched unless allow_urls=True; pass a local file otherwise"
        )
    try:
        return BytesIO(fetch(url))
    except FetchError as error:
        raise ImageError(name, str(error)) from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    if max_pixels < 1:
        raise InvalidValueError(f"max_pixels={max_pixels}: must be at least 1")
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(name, f"{width}×{height} pixels; an image needs at least one")
    if width * height > max_pixels:
        raise ImageError(
            name,
            f"{width}×{height} is {width * height:,} pixels, more than max_pixels="
            f"{max_pixels:,}; scale it down, or raise the limit if you trust the file",
        )


def _decode(image: Image.Image, name: str, *, owned: bool) -> Image.Image:
    """Decode an image, upright and RGB.

    Args:
        image: opened.
        name: for messages.
        owned: whether it may be changed; else the result is a copy.
    """
    try:
        image.load()
        try:
            if owned:
                ImageOps.exif_transpose(image, in_place=True)
            else:
                image = ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow's EXIF readers raise errors of any type
            logger.warning("%s: EXIF block unreadable (%s); taken as stored", name, reason(error))
            image = image if owned else image.copy()
        if image.mode.startswith("I") or image.mode == "F":
            image = grey_of_8_bits(image)
        if image.mode in {"La", "RGBa"}:  # colours multiplied by their opacity
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        if image.has_transparency_data:
            return _on_white(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # its decoders do so too
        raise ImageError(name, f"truncated or damaged image ({reason(error)})") from error


def _on_white(image: Image.Image) -> Image.Image:
    """Draw a transparent image on white in bands; the whole image would take six copies."""
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", band.size, "white")
        result.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return result


@cache
def _formats() -> list[str]:
    """The formats that are read here and that this build of Pillow supports."""
    # They store pixels. Pillow supports more, but passes some (EPS) to other programs.
    ours = ["AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"]
    Image.init()
    return [name for name in ours if name in Image.OPEN]


def _why_not_an_image(head: bytes) -> str:
    if not head:
        return "an empty file"
    if _SVG_START.match(head):
        return "looks like SVG or XML, which holds drawing commands, not pixels; convert it to PNG"
    if head.startswith((b"<", b"{")):
        return "text (HTML or JSON?), not an image"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself; run: git lfs pull"
    if head[4:8] == b"ftyp" and head[8:12] in {b"heic", b"heix", b"mif1", b"msf1"}:
        return "HEIC, which is not read; convert it to JPEG or PNG"
    known = ", ".join(_formats())
    return f"not an image in a format that is read here ({known})"
