from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from command_line import gap
from parsed_page import EVIL, Parsed
from PIL import Image
from starlette.testclient import TestClient

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank
from llama_index_gap.cli import web_guard, web_server
from llama_index_gap.cli.pages.serve_page import FUSIONS, Served
from llama_index_gap.cli.web_server import make_app

HERE = "http://127.0.0.1:8765"
FERRY = "ferry#image-images/ferry.png"


@pytest.fixture(scope="module")
def index(demo: Path) -> Iterator[DualIndex]:
    with DualIndex(str(demo / "gap.db")) as index:
        yield index


@pytest.fixture(scope="module")
def rerank(reranker: Path) -> MultiModalRerank:
    return MultiModalRerank(model=str(reranker), top_n=None)


@pytest.fixture(scope="module")
def client(index: DualIndex, rerank: MultiModalRerank) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "close", lambda: None)  # the tests' own, and used again
        app = make_app(lambda: (index, rerank), Served("gap.db", "gap", rerank.model_name))
        with TestClient(app, base_url=HERE) as client:
            ready(client)
            yield client


def ready(client: TestClient) -> httpx2.Response:
    """The first page, once the models are there."""
    while "The models are loading" in (page := client.get("/")).text:
        pass
    return page


def titles(page: str, part: str) -> list[str]:
    """The documents in a column of the page, in their order."""
    column = page.partition(f'<section class="{part}">')[2].partition("</section>")[0]
    return re.findall(r"<h3><span[^>]*>\d+</span> <bdi>([^<]*)</bdi>", column)


def png(image: Image.Image) -> bytes:
    data = BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


# --- what it shows -------------------------------------------------------------------------------


def test_the_first_page_says_what_is_searched_and_takes_a_text_or_an_image(
    client: TestClient,
) -> None:
    page = Parsed(client.get("/").text)

    assert "23 texts, 11 images" in page.texts["span"]
    assert {"q", "file"} <= set(page.attributes("name"))
    assert page.texts["a"].count("×") == len(FUSIONS)


def test_the_legs_stand_beside_what_the_search_finds(client: TestClient, index: DualIndex) -> None:
    page = client.get("/", params={"q": "a white ship", "k": "5"}).text

    assert titles(page, "together") == [
        each.title for each in index.search("a white ship", top_k=5)
    ]
    for leg, other in (("text", "image_similarity_top_k"), ("image", "similarity_top_k")):
        most = {"similarity_top_k": 16, "image_similarity_top_k": 16, other: 0}
        alone = index.search("a white ship", top_k=5, **most)
        assert titles(page, f"alone {leg}") == [each.title for each in alone]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_each_fusion_can_be_chosen(client: TestClient, index: DualIndex, fusion: str) -> None:
    normalize, combine = fusion.split("-")
    page = client.get("/", params={"q": "a red apple", "fusion": fusion}).text

    found = index.search("a red apple", normalize=normalize, combine=combine)
    assert titles(page, "together") == [each.title for each in found]
    assert f"{found.fusion.normalize} × {found.fusion.combine}" in page
    assert f">{normalize} × {combine}</a>" in page.partition('aria-current="true"')[2][:60]


def test_reranking_is_switched_on_and_says_where_documents_came_from(
    client: TestClient, index: DualIndex, rerank: MultiModalRerank
) -> None:
    before = {each.key: each.rank for each in index.search("goals in the rain", top_k=20)}
    page = client.get("/", params={"q": "goals in the rain", "rerank": "on"}).text

    found = index.search("goals in the rain", reranker=rerank)
    assert titles(page, "together") == [each.title for each in found]
    places = re.findall(r"before reranking: (\d+)", page)
    assert places == [str(before[each.key]) for each in found]
    assert "before reranking" not in client.get("/", params={"q": "goals in the rain"}).text


def test_an_image_is_sent_and_kept_while_settings_change(client: TestClient, demo: Path) -> None:
    ship = (demo / "corpus" / "images" / "ferry.png").read_bytes()
    sent = client.post("/", data={"k": "5"}, files={"file": ("ship.png", ship)})

    assert str(sent.url).startswith(f"{HERE}/?image=")  # so that a reload asks for the same
    assert titles(sent.text, "alone image")[0] == "A ferry for the old harbour"
    assert "image by image leg" in sent.text
    (by_rank,) = re.findall(r'href="([^"]*fusion=rank-sum[^"]*)"', sent.text)
    again = client.get(by_rank.replace("&amp;", "&"))
    assert again.status_code == 200
    assert "rank × sum" in again.text
    assert "ship.png" not in sent.text + again.text


def test_images_like_one_of_the_index_are_found(client: TestClient) -> None:
    page = client.get("/", params={"like": FERRY}).text

    assert titles(page, "alone image")[0] == "A ferry for the old harbour"
    assert client.get("/", params={"like": "no such"}).status_code == 400


@pytest.mark.parametrize("reranking", ["", "on"])
def test_a_page_embeds_its_query_once(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, reranking: str
) -> None:
    embedded: list[str] = []
    for method in ("_get_query_embedding", "_get_image_embedding"):
        embed = getattr(DualEncoderEmbedding, method)

        def counted(self: Any, query: str, embed: Any = embed) -> Any:
            embedded.append(query)
            return embed(self, query)

        monkeypatch.setattr(DualEncoderEmbedding, method, counted)

    assert client.get("/", params={"q": "a ship in fog", "rerank": reranking}).status_code == 200
    assert embedded == ["a ship in fog"]
    embedded.clear()
    both = client.get("/", params={"q": "a ship in fog", "like": FERRY, "rerank": reranking})
    assert both.status_code == 200
    assert len(embedded) == 2  # the text and the image


def test_it_says_how_long_each_step_took_and_what_the_page_knows_of_a_leg(
    client: TestClient,
) -> None:
    page = client.get("/", params={"q": "a tree"}).text

    assert re.search(r"embed \d+ ms, search \d+ ms, fuse \d+ ms", page)
    assert "the text searches the images; 11 hits" in page


# --- images --------------------------------------------------------------------------------------


def test_images_come_by_their_node_s_id_and_are_made_anew(client: TestClient) -> None:
    found = client.get("/image", params={"id": FERRY})
    image = Image.open(BytesIO(found.content))

    assert (found.headers["content-type"], image.format, image.size) == (
        "image/jpeg",
        "JPEG",
        (96, 96),
    )


@pytest.mark.parametrize(
    "name",
    ["", "no such", "../../etc/passwd", "/etc/passwd", "' or 1 == 1 or id == '", "\0", "é" * 3000],
)
def test_nothing_else_comes_by_a_name(client: TestClient, name: str, demo: Path) -> None:
    for asked in (name, str(demo / "corpus" / "images" / "ferry.png")):
        found = client.get("/image", params={"id": asked})

        assert (found.status_code, found.text) == (404, "the index has no such image")


def test_an_image_that_may_not_be_opened_says_why_without_its_folder(
    demo: Path, tmp_path: Path, index: DualIndex
) -> None:
    with DualIndex(str(demo / "gap.db"), image_root=tmp_path) as confined:
        app = make_app(lambda: (confined, None), Served("gap.db", "gap"))
        with TestClient(app, base_url=HERE) as client:
            ready(client)
            found = client.get("/image", params={"id": FERRY})
            page = client.get("/", params={"q": "ship"}).text

    assert found.status_code == 404
    assert found.text.startswith("lies outside the folders")
    assert "lies outside the folders" in page
    assert str(demo) not in found.text + page


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"fusion": "rank-intent"}, "combine='intent' needs z-scores"),
        ({"fusion": "nonsense"}, "normalize='nonsense': must be one of"),
        ({"k": "0"}, "k=0: must be a number from 1 to 50"),
        ({"k": "9" * 5000}, "must be a number from 1 to 50"),
        ({"q": "a" * 10_001}, "a query of 10,001 characters: at most 10,000"),
        ({"image": "unknown"}, "no longer kept"),
    ],
)
def test_a_wrong_question_is_answered_with_a_sentence(
    client: TestClient, asked: dict[str, str], said: str
) -> None:
    answer = client.get("/", params={"q": "a ship", **asked})

    assert answer.status_code == 400
    assert said in Parsed(answer.text).texts["p"]


def test_the_longest_query_is_searched_for(client: TestClient) -> None:
    assert client.get("/", params={"q": "é" * 10_000}).status_code == 200


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>", "text (HTML or JSON?), not an image"),
        (png(Image.effect_noise((50, 50), 9))[:999], "truncated or damaged image"),
        (png(Image.new("1", (10_000, 10_000))), "more than max_pixels"),
    ],
    ids=["page", "truncated", "bomb"],
)
def test_what_is_sent_must_be_an_image(client: TestClient, content: bytes, said: str) -> None:
    answer = client.post("/", data={"q": "a ship"}, files={"file": ("<b>.png", content)})

    assert answer.status_code == 400
    assert said in Parsed(answer.text).texts["p"]
    assert 'value="a ship"' in answer.text


def test_what_is_sent_is_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_guard, "_MAX_BODY", 100_000)
    for size, status in ((50_000, 400), (200_000, 413), (5_000_000, 413)):
        answer = client.post("/", files={"file": ("a.png", b"x" * size)})
        assert answer.status_code == status
    assert "larger than 20 MiB" in answer.text
    for form in (
        {"data": {str(i): "x" for i in range(50)}, "files": {"file": b""}},
        {"files": [("file", b"x"), ("other", b"x")]},
        {"data": {"q": "x" * 60_000}, "files": {"file": b""}},
    ):
        assert client.post("/", **form).status_code == 400


def test_images_that_were_sent_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "_MOST_UPLOADS", 10)
    uploads = web_server._Uploads()

    first, second, third = (uploads.keep(bytes(4)) for _ in range(3))

    assert uploads.get(first) is None
    assert uploads.get(second) == uploads.get(third) == bytes(4)
    assert len({first, second, third}) == 3


def test_without_a_reranker_the_page_says_how_to_get_one(index: DualIndex) -> None:
    app = make_app(lambda: (index, None), Served("gap.db", "gap"))
    client = TestClient(app, base_url=HERE)  # without its end, which would close the index
    with client as _, pytest.MonkeyPatch.context() as patch:
        patch.setattr(DualIndex, "close", lambda _: None)
        assert "start with --reranker MODEL" in ready(client).text
        asked = client.get("/", params={"q": "a ship", "rerank": "on"})

        assert asked.status_code == 400
        assert "start again with --reranker MODEL" in asked.text


# --- texts of others -----------------------------------------------------------------------------


def test_texts_of_others_stay_texts(tmp_path: Path, tiny_clip: Path, demo: Path) -> None:
    (tmp_path / "images").mkdir()
    evil_file = tmp_path / "images" / "<b onload=alert(1)>.png"
    evil_file.write_bytes((demo / "corpus" / "images" / "ferry.png").read_bytes())
    image = {"path": f"images/{evil_file.name}", "alt": EVIL}
    record = {"id": EVIL, "title": EVIL, "text": EVIL, "images": [image]}
    (tmp_path / "docs.jsonl").write_text(json.dumps(record))
    assert gap("index", tmp_path, "--db", tmp_path / "e.db", "--model", tiny_clip).code == 0

    with (
        DualIndex(str(tmp_path / "e.db")) as evil,
        TestClient(make_app(lambda: (evil, None), Served(EVIL, EVIL, "")), base_url=HERE) as client,
    ):
        ready(client)
        answer = client.get("/", params={"q": EVIL, "fusion": "background-intent", "k": "10"})
        wrong = client.get("/", params={"fusion": EVIL, "k": EVIL, "like": EVIL, "q": "x"})
    page = Parsed(answer.text)

    assert answer.status_code == 200
    assert EVIL in page.attributes("value")
    assert EVIL in page.attributes("alt")
    for within in ("bdi", "span", "title", "p"):
        assert EVIL in page.texts[within], within
    for shown in (page, Parsed(wrong.text)):
        assert [tag for tag, _ in shown.elements].count("script") == 1
        assert not {"onerror", "onload", "style"} & {n for _, a in shown.elements for n in a}
        sources = [str(each) for each in shown.attributes("src")]
        assert all(re.match(r"/image\?id=[\w%.+-]+$|data:image/jpeg;", each) for each in sources)


# --- loading, and threads ------------------------------------------------------------------------


def test_while_the_models_load_the_page_says_so_and_goes_on_by_itself(index: DualIndex) -> None:
    loaded = threading.Event()

    def opened() -> tuple[DualIndex, None]:
        loaded.wait()
        return index, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DualIndex, "close", lambda _: None)
        with TestClient(make_app(opened, Served("gap.db", "gap")), base_url=HERE) as client:
            first = client.get("/", params={"q": "a ship"})
            image = client.get("/image", params={"id": FERRY})
            loaded.set()
            ready(client)
            then = client.get("/", params={"q": "a ship"})

    assert "The models are loading" in first.text
    assert '<meta http-equiv="refresh" content="1">' in first.text
    assert image.status_code == 503
    assert titles(then.text, "together")
    assert "refresh" not in then.text


def test_an_index_that_cannot_be_opened_is_tried_again(index: DualIndex) -> None:
    errors: list[Exception] = [ValueError("no model at /home/me/secret/models"), OSError("gone")]

    def opened() -> tuple[DualIndex, None]:
        if errors:
            raise errors.pop(0)
        return index, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DualIndex, "close", lambda _: None)
        with TestClient(make_app(opened, Served("gap.db", "gap")), base_url=HERE) as client:
            first, second, third = (ready(client) for _ in range(3))

    assert (first.status_code, second.status_code, third.status_code) == (400, 400, 200)
    assert "no model at …/models" in first.text
    assert "gone" in second.text


def test_an_error_that_nobody_expects_is_shown_as_text(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("in <b>/home/me/x.py</b>")

    monkeypatch.setattr(web_server, "search_side_by_side", fails)
    answer = client.get("/", params={"q": "a ship"})

    assert answer.status_code == 500
    assert "ZeroDivisionError: in &lt;b&gt;…/x.py" in answer.text


def test_a_search_does_not_keep_others_waiting(
    index: DualIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image is answered while a search waits, which then goes on."""
    searching, go_on = threading.Event(), threading.Event()
    search = web_server.search_side_by_side

    def slow(*args: Any, **settings: Any) -> Any:
        searching.set()
        go_on.wait()
        return search(*args, **settings)

    monkeypatch.setattr(web_server, "search_side_by_side", slow)
    app = make_app(lambda: (index, None), Served("gap.db", "gap"))

    async def ask() -> tuple[int, int]:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url=HERE) as client:
            while "The models are loading" in (await client.get("/")).text:
                await asyncio.sleep(0)
            asked = asyncio.create_task(client.get("/", params={"q": "a ship"}))
            await asyncio.to_thread(searching.wait)
            image = await client.get("/image", params={"id": FERRY})
            assert not asked.done()
            go_on.set()
            return image.status_code, (await asked).status_code

    assert asyncio.run(ask()) == (200, 200)
