"""No call on one tenant's index sees or changes documents of another tenant."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from compass import Compass, Needle
from index_nodes import of_document
from llama_index.core.llms import MockLLM
from llama_index.core.schema import ImageNode, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    MetadataFilter,
    MetadataFilters,
)

from llama_index_gap import (
    Corpus,
    DualIndex,
    DualIndexRetriever,
    MilvusStore,
    MultiModalSearchTool,
    RelevanceCalibrator,
    list_tenants,
)
from llama_index_gap.errors import InvalidValueError
from llama_index_gap.index.parts import Part
from llama_index_gap.index.tenants import scope_of

HOSTILE = 'acme" or "1"=="1'


def nodes_of(tenant: str, image: str) -> list[TextNode]:
    """Nodes with the same ids and vectors for each tenant, and one of its own."""
    whose: dict[str, Any] = {
        "metadata": {"tenant": tenant},
        "excluded_embed_metadata_keys": ["tenant"],
    }
    return [
        TextNode(id_="t", text=f"0 of {tenant}", relationships=of_document("d"), **whose),
        ImageNode(id_="i", text="90", image_path=image, relationships=of_document("d"), **whose),
        TextNode(id_=f"only-{tenant}", text=f"0 {tenant}", relationships=of_document("e"), **whose),
    ]


@pytest.fixture
def image(tmp_path: Path, noise_files: list[str]) -> str:
    path = tmp_path / "90 image.png"
    path.write_bytes(Path(noise_files[0]).read_bytes())
    return str(path)


@pytest.fixture
def pair(tmp_path: Path, image: str) -> Iterator[tuple[DualIndex, DualIndex]]:
    """Two tenants, whose nodes are each other's best hits."""
    uri, model = str(tmp_path / "gap.db"), Compass()
    with (
        DualIndex(uri, embed_model=model, tenant="acme") as acme,
        DualIndex(uri, embed_model=model, tenant="globex") as globex,
    ):
        acme.insert_nodes(nodes_of("acme", image), strict=True)
        globex.insert_nodes(nodes_of("globex", image), strict=True)
        yield acme, globex


def state(index: DualIndex) -> str:
    """Everything that an index shows of its contents."""
    ids = ["t", "i", "only-acme", "only-globex"]
    found = [node.to_json() for node in index.get_nodes(ids)]
    about = [str(index.query_sample()), str(index.calibrator()), str(index.models())]
    return json.dumps([index.count(), found, about], sort_keys=True)


def calibrator_of(index: DualIndex) -> RelevanceCalibrator:
    scores = [place / 30 for place in range(30)]
    labelled = {"text_to_text": (scores, [0] * 15 + [1] * 15)}
    return RelevanceCalibrator.fit(labelled, source=index.models())


ASKED = [f"{angle} q" for angle in range(30)]
OR = MetadataFilters(
    filters=[
        MetadataFilter(key="tenant", value="acme"),
        MetadataFilter(key="tenant", value="globex"),
    ],
    condition=FilterCondition.OR,
)
READS: dict[str, Callable[[DualIndex], Any]] = {
    "search": lambda index: index.search("0", complete=True, filters=OR).to_dict(),
    "asearch": lambda index: asyncio.run(index.asearch("0", filters=OR)).to_dict(),
    "get_nodes": lambda index: [node.text for node in index.get_nodes(["t", "only-globex"])],
    "aget_nodes": lambda index: str(asyncio.run(index.aget_nodes(["t", "only-globex"]))),
    "count": lambda index: index.count(),
    "acount": lambda index: asyncio.run(index.acount()),
    "models": lambda index: index.models(),
    "calibrator": lambda index: index.calibrator(),
    "query_sample": lambda index: index.query_sample(),
    "collections": lambda index: [
        str(each.store.sample(100)) + str(each.store.sample_ids(1.0))
        for each in index.collections().values()
    ],
    "image_folders": lambda index: index.image_folders(),
    "collection_name": lambda index: index.collection_name("text"),
    "end_parts": lambda index: index.end_parts(Corpus([], []), "c", lambda document: False),
    "as_query_engine": lambda index: str(
        index.as_query_engine(llm=MockLLM(), multimodal=False).retrieve("0")
    ),
    "as_retriever": lambda index: [
        str(index.as_retriever(filters=OR).retrieve("0")),
        str(index.as_retriever(complete=True).search("0").to_dict()),
        str(index.as_retriever().search_legs("0")),
        str(MultiModalSearchTool(index.as_retriever(), filter_fields=["tenant"]).call("0")),
    ],
}
WRITES: dict[str, Callable[[DualIndex, str], Any]] = {
    "insert": lambda index, image: index.insert(nodes_of("new", image)[0]),
    "insert_nodes": lambda index, image: index.insert_nodes(nodes_of("new", image)),
    "upsert_nodes": lambda index, image: index.upsert_nodes(nodes_of("new", image)),
    "refresh_ref_docs": lambda index, image: index.refresh_ref_docs(nodes_of("n", image)[:1]),
    "delete_nodes": lambda index, _: index.delete_nodes(["t", "i", "only-globex"]),
    "delete_ref_doc": lambda index, _: index.delete_ref_doc("d"),
    "learn_queries": lambda index, _: index.learn_queries(ASKED),
    "forget_queries": lambda index, _: index.forget_queries(),
    "clear": lambda index, _: index.clear(),
    "note_images": lambda index, image: index.note_images(nodes_of("new", image), None),
    "write_part": lambda index, image: index.write_part(
        Part(nodes_of("new", image)), lambda it: it
    ),
    "sync": lambda index, image: index.sync(
        Corpus(nodes_of("n", image)[:1], []), source="c", whole_index=True
    ),
    "async_sync": lambda index, image: asyncio.run(
        index.async_sync(Corpus(nodes_of("n", image)[:1], []), source="c", whole_index=True)
    ),
    "copy_to": lambda index, _: index.copy_to(name="other"),
    "acopy_to": lambda index, _: asyncio.run(index.acopy_to(name="other")),
    "reembed": lambda index, _: index.reembed(Needle()),
    "areembed": lambda index, _: asyncio.run(index.areembed(Needle())),
    "reopen": lambda index, _: index.reopen(Compass(), None, None),
    "save_calibrator": lambda index, _: index.save_calibrator(calibrator_of(index)),
    "asave_calibrator": lambda index, _: asyncio.run(index.asave_calibrator(calibrator_of(index))),
    "ainsert": lambda index, image: asyncio.run(index.ainsert(nodes_of("n", image)[0])),
    "ainsert_nodes": lambda index, image: asyncio.run(index.ainsert_nodes(nodes_of("n", image))),
    "aupsert_nodes": lambda index, image: asyncio.run(index.aupsert_nodes(nodes_of("n", image))),
    "arefresh_ref_docs": lambda index, image: asyncio.run(
        index.arefresh_ref_docs(nodes_of("n", image)[:1])
    ),
    "adelete_nodes": lambda index, _: asyncio.run(index.adelete_nodes(["t", "only-globex"])),
    "adelete_ref_doc": lambda index, _: asyncio.run(index.adelete_ref_doc("d")),
    "alearn_queries": lambda index, _: asyncio.run(index.alearn_queries(ASKED)),
    "aforget_queries": lambda index, _: asyncio.run(index.aforget_queries()),
    "aclear": lambda index, _: asyncio.run(index.aclear()),
}
# These methods read no stored nodes, or only through the methods above.
OTHERS = {
    *("allow_images", "close", "as_if_learnt", "as_chat_engine", "from_documents"),
    *("opening", "sign_in_storage"),
}
# Each searches the stores from `collections`, which hold the rows of one tenant.
OF_RETRIEVER = {
    *("as_tool", "asearch", "examples", "filtered", "for_documents", "from_index"),
    *("from_stores", "get_image"),
    *("query_cut_at", "rank_legs", "search", "search_legs", "search_with_legs"),
}


def public(kind: type) -> set[str]:
    return {
        name
        for each in kind.__mro__
        if each.__module__.startswith("llama_index_gap")
        for name in vars(each)
        if not name.startswith("_")
    }


def test_every_public_method_has_a_case() -> None:
    assert public(DualIndex) == {*READS, *WRITES, *OTHERS}
    assert public(DualIndexRetriever) == OF_RETRIEVER


@pytest.mark.parametrize("hostile", [False, True])
def test_no_read_tells_of_another_tenant(
    pair: tuple[DualIndex, DualIndex], image: str, hostile: bool
) -> None:
    acme, _ = pair
    if hostile:  # the name of a tenant gives it no more access
        with DualIndex(acme.uri, embed_model=Compass(), tenant=HOSTILE) as third:
            assert [third.count()["text"], len(third.search("0"))] == [0, 0]
        return
    for name, read in READS.items():
        assert "globex" not in str(read(acme)), name


@pytest.mark.parametrize("name", WRITES)
def test_no_write_touches_another_tenant(
    pair: tuple[DualIndex, DualIndex], image: str, name: str
) -> None:
    acme, globex = pair
    globex.learn_queries([f"{angle} other" for angle in range(40)])
    before = state(globex)
    WRITES[name](acme, image)
    assert state(globex) == before


@pytest.mark.server
def test_on_a_server_as_well(milvus_url: str, image: str) -> None:
    model = Compass()
    with (
        DualIndex(milvus_url, "tenants", model, tenant="acme", overwrite=True) as acme,
        DualIndex(milvus_url, "tenants", model, tenant="globex", overwrite=True) as globex,
    ):
        acme.insert_nodes(nodes_of("acme", image), strict=True)
        globex.insert_nodes(nodes_of("globex", image), strict=True)
        for name, read in READS.items():
            assert "globex" not in str(read(acme)), name
        before = state(globex)
        for name in ("refresh_ref_docs", "delete_nodes", "insert_nodes", "sync", "clear"):
            WRITES[name](acme, image)
            assert state(globex) == before, name
        assert list_tenants(milvus_url, "tenants") == ["acme", "globex"]


def test_stores_and_stored_images_are_each_tenants_own(pair: tuple[DualIndex, DualIndex]) -> None:
    acme, globex = pair
    stores = [
        {each.store.collection_name for each in index.collections().values()}  # type: ignore[attr-defined]
        for index in pair
    ]
    assert not stores[0] & stores[1]
    assert acme._images.folder != globex._images.folder


def test_overwrite_drops_one_tenant_alone(pair: tuple[DualIndex, DualIndex]) -> None:
    acme, globex = pair
    before = state(globex)
    acme.close()
    with DualIndex(acme.uri, embed_model=Compass(), tenant="acme", overwrite=True) as emptied:
        assert emptied.count() == {"text": 0, "image": 0}
    assert state(globex) == before


def test_an_index_has_tenants_or_has_none(
    pair: tuple[DualIndex, DualIndex], tmp_path: Path
) -> None:
    uri = pair[0].uri
    assert list_tenants(uri) == ["acme", "globex"]
    for overwrite in (False, True):
        with pytest.raises(InvalidValueError, match="pass tenant="):
            DualIndex(uri, embed_model=Compass(), overwrite=overwrite)
    with pytest.raises(InvalidValueError, match="no tenant 'acmee'"):
        DualIndex(uri, tenant="acmee")
    with pytest.raises(InvalidValueError, match="collections of a tenant have such names"):
        DualIndex(uri, scope_of("gap", "acme"))
    with DualIndex(uri, "plain", Compass()):
        pass
    with pytest.raises(InvalidValueError, match="made without tenants"):
        DualIndex(uri, "plain", Compass(), tenant="acme")
    assert list_tenants(uri, "plain") == []


@pytest.mark.parametrize("tenant", ["", " acme", "a\nb", "a\x00", "x" * 256, "\ud800", 7])
def test_a_tenants_name_is_text_that_shows(tmp_path: Path, tenant: Any) -> None:
    with pytest.raises(InvalidValueError, match="tenant="):
        DualIndex(str(tmp_path / "gap.db"), embed_model=Compass(), tenant=tenant)
    assert not (tmp_path / "gap.db").exists()


def test_names_that_are_alike_are_two_tenants() -> None:
    names = ["acme", "Acme", "acme_", HOSTILE, "ac.me", "é", "e\u0301", "x" * 255]
    assert len({scope_of("gap", name) for name in names}) == len(names)


def test_an_index_without_tenants_is_as_it_was(tmp_path: Path) -> None:
    with DualIndex(str(tmp_path / "gap.db"), embed_model=Compass()) as index:
        store = index.collections()["text"].store
        assert isinstance(store, MilvusStore)
        assert store.collection_name == "gap_text"
        assert set(store.properties()) == {"models"}


def test_a_second_process_finds_its_tenant_alone(
    pair: tuple[DualIndex, DualIndex],
) -> None:
    """An MCP server for a tenant that its owner named."""
    for index in pair:
        index.close()
    program = (
        "import sys; from compass import Compass; from llama_index_gap import DualIndex\n"
        "with DualIndex(sys.argv[1], embed_model=Compass(), tenant='acme') as index:\n"
        "    print(index.count(), [each.text for each in index.search('0')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, pair[0].uri],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "{'text': 3, 'image': 1}" in result.stdout, result.stderr
    assert "acme" in result.stdout
    assert "globex" not in result.stdout
