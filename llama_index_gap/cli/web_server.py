"""The local page as a web application: it asks an index, and changes nothing."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from typing import Any, TypeAlias, cast

import python_multipart  # noqa: F401  Starlette reads forms by it, and asks for it only then
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from llama_index_gap.agents.tool_arguments import LONGEST_QUERY
from llama_index_gap.cli.pages.serve_page import Asked, Served, render_view
from llama_index_gap.cli.side_by_side import search_side_by_side
from llama_index_gap.cli.web_guard import MAX_IMAGE_BYTES, Guard
from llama_index_gap.errors import EXPECTED_ERRORS, InvalidValueError
from llama_index_gap.images.opening import ImageError, ImageSource, scaled_jpeg
from llama_index_gap.images.thumbnails import LARGE
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.search.fusion import check_method
from llama_index_gap.search.rerank import MultiModalRerank
from llama_index_gap.text import error_in_words, is_blank
from llama_index_gap.threads import in_thread

logger = logging.getLogger(__name__)

Open: TypeAlias = Callable[[], tuple[DualIndex, MultiModalRerank | None]]
"""Opens the index, and loads its reranker."""
_MOST_UPLOADS = 4 * MAX_IMAGE_BYTES  # bytes, all together
_MOST_DOCUMENTS = 50
_FIELD_BYTES = 4 * LONGEST_QUERY + 1024


def make_app(open_index: Open, served: Served, *, host: str = "127.0.0.1") -> ASGIApp:
    """Make a web application that shows what each leg of a search finds.

    The index is opened in a thread when the application starts, and closed when it ends. If it
    cannot be opened, the page says why, and the next request tries again.

    Args:
        open_index: gives the index and its reranker, if any.
        served: what the pages say about the index.
        host: the address that the server listens on; it decides which host names are answered.
    """
    opening, uploads = _Opening(open_index), _Uploads()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        opening.begin()
        try:
            yield
        finally:
            await opening.close()

    async def show(request: Request) -> Response:
        asked = _asked(request.query_params)
        opening.begin()
        if opening.loading:
            return HTMLResponse(render_view(served, asked, loading=True))
        try:
            index, reranker = await opening.index()
            return HTMLResponse(await in_thread(_answer, index, reranker, uploads, served, asked))
        except Exception as error:  # whatever the reason, the page shows it
            return _failed(served, asked, error)

    async def take(request: Request) -> Response:
        limits = {"max_files": 1, "max_fields": len(fields(Asked)), "max_part_size": _FIELD_BYTES}
        async with request.form(**limits) as form:
            asked = _asked(form)
            file = form.get("file")
            content = await file.read() if isinstance(file, UploadFile) else b""
        if content:
            try:
                await in_thread(
                    scaled_jpeg, content, LARGE
                )  # decoded, so that a damaged one is refused now
            except ImageError as error:
                return _failed(served, asked, f"The image cannot be opened: {error.reason}")
            asked = replace(asked, image=uploads.keep(content), like="")
        return RedirectResponse(asked.address(), 303)

    async def image(request: Request) -> Response:
        if opening.loading:
            return PlainTextResponse("the models are loading", 503)
        try:
            index, _ = await opening.index()
            data = await in_thread(_image, index, request.query_params.get("id", ""))
        except EXPECTED_ERRORS as error:
            return PlainTextResponse(error_in_words(getattr(error, "reason", error)), 404)
        return Response(data, media_type="image/jpeg")

    app = Starlette(
        routes=[
            Route("/", show, methods=["GET"]),
            Route("/", take, methods=["POST"]),
            Route("/image", image, methods=["GET"]),
            Route("/favicon.ico", lambda _: Response(status_code=204)),
        ],
        lifespan=lifespan,
    )
    return Guard(app, host)


def _asked(given: Mapping[str, Any]) -> Asked:
    """The query in a form or an address, without other fields and files."""
    names = (each.name for each in fields(Asked))
    return Asked(**{name: given[name] for name in names if isinstance(given.get(name), str)})


def _failed(served: Served, asked: Asked, error: object) -> Response:
    """The page with an error in place of an answer; an unexpected error is logged, too."""
    expected = isinstance(error, (str, *EXPECTED_ERRORS))
    if not expected:
        logger.error("a search failed", exc_info=cast(Exception, error))
    said = error_in_words(error if expected else f"{type(error).__name__}: {error}")
    # The form keeps its text, cut at the length that a search takes.
    shown = replace(asked, q=asked.q[:LONGEST_QUERY])
    return HTMLResponse(render_view(served, shown, problem=said), 400 if expected else 500)


# --- in a thread ---------------------------------------------------------------------------------


def _answer(
    index: DualIndex,
    reranker: MultiModalRerank | None,
    uploads: _Uploads,
    served: Served,
    asked: Asked,
) -> str:
    counts = {str(name): rows for name, rows in index.count().items()}
    if len(asked.q) > LONGEST_QUERY:
        raise InvalidValueError(
            f"a query of {len(asked.q):,} characters: at most {LONGEST_QUERY:,} are searched for"
        )
    normalize, _, combine = asked.fusion.partition("-")
    check_method(normalize, combine)
    if not asked.k.isdecimal() or not 1 <= int(asked.k[:9]) <= _MOST_DOCUMENTS:
        raise InvalidValueError(f"k={asked.k[:20]}: must be a number from 1 to {_MOST_DOCUMENTS}")
    if asked.rerank and reranker is None:
        raise InvalidValueError("there is no reranker: start again with --reranker MODEL")
    image = _query_image(index, uploads, asked)
    if image is None and is_blank(asked.q):
        return render_view(served, asked, counts=counts)
    found = search_side_by_side(
        index,
        asked.q,
        image,
        top_k=int(asked.k),
        normalize=cast(Any, normalize),
        combine=cast(Any, combine),
        reranker=reranker if asked.rerank else None,
    )
    return render_view(served, asked, found=found, asked_with=image, counts=counts)


def _query_image(index: DualIndex, uploads: _Uploads, asked: Asked) -> ImageSource | None:
    """The image to search by, if any: an upload, or one of the index."""
    if asked.image:
        content = uploads.get(asked.image)
        if content is None:
            raise InvalidValueError("the image that was sent is no longer kept: send it again")
        return content
    if not asked.like:
        return None
    node = index.as_retriever().get_image(asked.like)
    if node is None:
        raise InvalidValueError("the index has no image with this id any more")
    return node


def _image(index: DualIndex, node_id: str) -> bytes:
    """An image of the index as a new JPEG file; never a file that a request names."""
    node = index.as_retriever().get_image(node_id) if node_id else None
    if node is None:
        raise InvalidValueError("the index has no such image")
    return scaled_jpeg(node, LARGE)[0]


# --- what lasts from one request to the next -----------------------------------------------------


class _Uploads:
    """The latest uploads, in memory only, under names that nobody can guess."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def keep(self, content: bytes) -> str:
        """Keep an image, in place of the oldest ones if there is no room; gives its name."""
        name = secrets.token_urlsafe(16)
        self._kept[name] = content
        while sum(map(len, self._kept.values())) > _MOST_UPLOADS:
            self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> bytes | None:
        """An image by its name; None if it is no longer kept."""
        return self._kept.get(name)


class _Opening:
    """Opens the index in a thread, and again if a request follows a failure."""

    def __init__(self, open_index: Open) -> None:
        self._open = open_index
        self._task: asyncio.Task[tuple[DualIndex, MultiModalRerank | None]] | None = None

    @property
    def loading(self) -> bool:
        """Whether the index is being opened now."""
        return self._task is not None and not self._task.done()

    def begin(self) -> None:
        """Open the index, unless it is open or being opened."""
        if self._task is None:
            self._task = asyncio.create_task(asyncio.to_thread(self._open))
            self._task.add_done_callback(_say_how_it_went)

    async def index(self) -> tuple[DualIndex, MultiModalRerank | None]:
        """The index and its reranker; after an error, the next call tries again."""
        self.begin()
        task = cast("asyncio.Task[tuple[DualIndex, MultiModalRerank | None]]", self._task)
        try:
            return await asyncio.shield(task)
        except Exception:
            self._task = None
            raise

    async def close(self) -> None:
        """Close the index once it is open."""
        if self._task is None:
            return
        await asyncio.wait([self._task])
        if not self._task.cancelled() and self._task.exception() is None:
            await asyncio.to_thread(self._task.result()[0].close)


def _say_how_it_went(opening: asyncio.Task[Any]) -> None:
    if not opening.cancelled() and (error := opening.exception()):
        logger.warning("the index cannot be opened: %s", error)
