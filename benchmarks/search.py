"""Times searches and the building of an index, compared with the bare libraries.

    python benchmarks/search.py [--rows 1000 10000] [--searches 200] [--server] [--quick]

Searches: ``DualIndexRetriever`` (16 + 16 nodes, fused), with the query's vector given, against

- two raw pymilvus searches, one after the other, on the same two collections, for the same fields;
- the same for four times the hits with their vectors: the least cost of the hub correction;
- ours with ``hubs=False`` and ``normalize="none"``: two raw searches, merged;
- LlamaIndex' ``MultiModalVectorIndexRetriever`` on the same two collections.

Every row has a text of some 400 characters or an image's path, and metadata. Vectors are random, in
32 of 512 dimensions, around a mean. Some are nearer to the mean than others, so there are hubs, and
the default fetches 64 + 64 nodes with their vectors; its results then differ from the other ways'.
The index is finished before the first search. No query comes twice. All ways answer each query, in
random order, so that a slow moment of the machine affects all alike. If a server compacts its
segments meanwhile, the ways may find different nodes.

Building: ``DualIndex.from_documents`` on JPEG files and texts, against the same model's batch
methods followed by raw pymilvus inserts (on Milvus Lite also a flush and a load) into collections
of the same shape. Each ends when a search finds a row in both collections. The model has the size
of CLIP ViT-B/32, with random weights, and is loaded beforehand.

The measurements use Milvus Lite; with ``--server``, they start a server (Milvus 2.3.5). ``--quick``
is for tests, with tiny sizes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.indices import MultiModalVectorStoreIndex
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.utils import node_to_metadata_dict
from llama_index.vector_stores.milvus import MilvusVectorStore
from pymilvus import DataType, MilvusClient
from rich.console import Console
from rich.table import Table

from llama_index_gap import DualEncoderEmbedding
from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.index.dual_index import DualIndex
from llama_index_gap.modality import MODALITIES

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "benchmarks")]
from embedding import BATCH, VIT_B32, make_photos  # noqa: E402
from milvus_server import milvus_server  # noqa: E402

TOP_K = 16
FIELDS = ["text", "_node_content", "_node_type"]
INDEX = {"index_type": "HNSW", "metric_type": "COSINE", "params": {"M": 16, "efConstruction": 200}}
SEARCH = {"metric_type": "COSINE", "params": {"ef": 64}}
TEXT_B32 = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}
HEADLINE = "The mayor opens the new bridge"  # within CLIP's limit, even as single letters
HANDOVER_SECONDS = 30  # a server searches rows in memory until well after the index is built
# Among vectors that fill 512 dimensions, an approximate index would miss most hits.
BASIS = np.random.default_rng(0).normal(size=(32, 512))
MEAN = np.eye(512)[0]
HUBS = (1.0, 0.15)  # mean and standard deviation of the vectors' length along the mean
FETCHED = "raw, 64 + vectors"
AGAIN = "ours, nodes known"  # a node's vector is read once, to compute its hub score
AT_ONCE = 10_000  # nodes per insert
WARM_UP = 10  # searches
STORY = "The mayor opened the new bridge on Monday, and the first to cross it was a milkman. " * 5

Uris = Callable[[str], str]


class RandomVectors(MultiModalEmbedding):
    """No model: each text and each image path has a random vector."""

    model_name: str = "random"
    dimension: int = 512

    def _vector(self, content: Any) -> list[float]:
        rng = np.random.default_rng(zlib.crc32(str(content).encode()))
        vector = rng.normal(size=32) @ BASIS
        vector += rng.normal(*HUBS) * np.linalg.norm(vector) * MEAN
        return (vector / np.linalg.norm(vector)).astype(np.float32).tolist()

    _get_query_embedding = _get_text_embedding = _get_image_embedding = _vector

    async def _avector(self, content: Any) -> list[float]:
        return self._vector(content)

    _aget_query_embedding = _aget_image_embedding = _avector


def make_nodes(images: Sequence[str], text: str, start: int = 0) -> list[BaseNode]:
    """For each image, a document with a text node and an image node."""
    nodes: list[BaseNode] = []
    for number, path in enumerate(images, start):
        common: dict[str, Any] = {
            "metadata": {"section": f"section {number % 10}", "year": 2000 + number % 20},
            "excluded_embed_metadata_keys": ["section", "year"],
            "relationships": {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"story-{number}")},
        }
        nodes.append(TextNode(id_=f"{number}#text", text=f"{number} {text}", **common))
        nodes.append(ImageNode(id_=f"{number}#image", image_path=path, **common))
    return nodes


# --- searches ------------------------------------------------------------------------------------


@contextmanager
def searchers(
    uri: str, index: DualIndex, model: RandomVectors
) -> Iterator[dict[str, Callable[[QueryBundle], list[str]]]]:
    """The ways to search the same two collections; each returns the ids of the nodes found."""
    client = MilvusClient(uri)
    stores = [
        MilvusVectorStore(
            uri=uri,
            collection_name=f"{index.name}_{modality}",
            similarity_metric="COSINE",
            search_config={"ef": 64},
            use_async_client=False,
        )
        for modality in MODALITIES
    ]
    llama_index = MultiModalVectorStoreIndex.from_vector_store(
        stores[0], embed_model=model, image_vector_store=stores[1], image_embed_model=model
    )
    theirs = llama_index.as_retriever(similarity_top_k=TOP_K, image_similarity_top_k=TOP_K)
    ours = index.as_retriever()
    plain = index.as_retriever(hubs=False, normalize="none", combine="max")

    def raw(query: QueryBundle, limit: int = TOP_K, fields: Sequence[str] = FIELDS) -> list[str]:
        return [
            hit["id"]
            for modality in MODALITIES
            for hit in client.search(
                f"{index.name}_{modality}",
                data=[query.embedding],
                anns_field="embedding",
                limit=limit,
                output_fields=fields,
                search_params=SEARCH,
                consistency_level="Session",
            )[0]
        ]

    yield {
        "two raw searches": raw,
        FETCHED: lambda query: raw(query, 4 * TOP_K, [*FIELDS, "embedding"]),
        "ours, raw": lambda query: [hit.node_id for hit in plain.retrieve(query)],
        "ours": lambda query: [hit.node_id for hit in ours.retrieve(query)],
        # It changes the bundle that it gets.
        "LlamaIndex' own": lambda query: [
            hit.node_id
            for hit in theirs.retrieve(QueryBundle(query.query_str, embedding=query.embedding))
        ],
    }
    client.close()


def search_times(uri: str, rows: int, searches: int) -> dict[str, np.ndarray]:
    """Milliseconds of each search, by way."""
    model = RandomVectors(embed_batch_size=256)
    rng = np.random.default_rng(0)
    with DualIndex(uri, f"search_{rows}", model, overwrite=True) as index:
        for start in range(0, rows, AT_ONCE):
            images = [f"{number}.jpg" for number in range(start, min(rows, start + AT_ONCE))]
            index.insert_nodes(make_nodes(images, STORY, start))
        for store in index._stores.values():
            store.finish(flush=True)
        if "://" in uri and rows > 1_000:
            time.sleep(HANDOVER_SECONDS)
        with searchers(uri, index, model) as ways:
            times: dict[str, list[float]] = {name: [] for name in (*ways, AGAIN)}
            differing = 0
            for number in range(-WARM_UP, searches):
                text = f"query {number}"
                query = QueryBundle(text, embedding=model.get_query_embedding(text))
                found = {}
                for name in rng.permutation(list(ways)):
                    start = time.perf_counter()
                    found[name] = ways[name](query)
                    if number >= 0:
                        times[name].append(1000 * (time.perf_counter() - start))
                start = time.perf_counter()
                ways["ours"](query)
                if number >= 0:
                    times[AGAIN].append(1000 * (time.perf_counter() - start))
                del found["ours"], found[FETCHED]
                differing += number >= 0 and len({frozenset(ids) for ids in found.values()}) > 1
    if differing:
        print(f"{rows:,} rows: the ways found different nodes for {differing} queries")
    return {name: np.array(values) for name, values in times.items()}


def search_table(times: dict[int, dict[str, np.ndarray]]) -> Table:
    """Percentiles; the tenth is more reliable on a shared machine."""
    columns = ("rows", "way", "p10 ms", "p50 ms", "p95 ms", "ours is", "and more", "at p10")
    table = Table(*columns, box=None)
    for rows, ways in times.items():
        lowest, ours = np.percentile(ways["ours"], [10, 50])
        for name, values in ways.items():
            low, median, high = np.percentile(values, [10, 50, 95])
            row = [f"{rows:,}", name, f"{low:.2f}", f"{median:.2f}", f"{high:.2f}"]
            if name != "ours":
                row += [f"{ours / median:.2f} ×", f"{ours - median:+.2f} ms"]
                row.append(f"{lowest / low:.2f} ×, {lowest - low:+.2f} ms")
            table.add_row(*row)
    return table


# --- building an index ---------------------------------------------------------------------------


def build_ours(uri: str, nodes: list[BaseNode], model: DualEncoderEmbedding) -> None:
    with DualIndex.from_documents(nodes, uri=uri, name="ours", embed_model=model) as index:
        for store in index._stores.values():
            check_searchable(store.client, store.collection_name, model.dimension)


def build_bare(uri: str, nodes: list[BaseNode], model: DualEncoderEmbedding) -> None:
    client = MilvusClient(uri)
    images = [node for node in nodes if isinstance(node, ImageNode)]
    texts = [node for node in nodes if not isinstance(node, ImageNode)]
    embedded = {
        "bare_text": (
            texts,
            lambda: model.get_text_embedding_batch(
                [node.get_content(MetadataMode.EMBED) for node in texts]
            ),
        ),
        "bare_image": (
            images,
            lambda: model.get_image_embedding_batch([node.image_path for node in images]),
        ),
    }
    for name in embedded:
        create_collection(client, name, model.dimension)
    for name, (embedded_nodes, embed) in embedded.items():
        rows = [
            {
                **node_to_metadata_dict(node, remove_text=True),
                "id": node.node_id,
                "doc_id": node.ref_doc_id,
                "text": node.get_content(MetadataMode.NONE),
                "embedding": vector,
            }
            for node, vector in zip(embedded_nodes, embed(), strict=True)
        ]
        client.insert(name, rows)
    for name in embedded:
        if "://" not in uri:
            client.release_collection(name)
            client.flush(name)
            client.load_collection(name)
        check_searchable(client, name, model.dimension)
    client.close()


def create_collection(client: MilvusClient, name: str, dimension: int) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, max_length=65_535, is_primary=True)
    schema.add_field("doc_id", DataType.VARCHAR, max_length=65_535)
    schema.add_field("text", DataType.VARCHAR, max_length=65_535)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dimension)
    index = client.prepare_index_params()
    index.add_index("embedding", **INDEX)
    client.create_collection(name, schema=schema)
    # With sync, pymilvus sleeps for half a second before it checks the index.
    client.create_index(name, index, sync=False)
    client.load_collection(name)


def check_searchable(client: MilvusClient, name: str, dimension: int) -> None:
    found = client.search(
        name,
        data=[[1.0] * dimension],
        anns_field="embedding",
        limit=1,
        search_params=SEARCH,
        consistency_level="Strong",
    )
    if not found[0]:
        raise RuntimeError(f"{name}: a search finds nothing")


def build_times(
    uris: Uris, nodes: list[BaseNode], model: DualEncoderEmbedding, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round, by way, without the warm-up round."""
    ways = {"bare encoding and inserts": build_bare, "ours": build_ours}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            uri = uris(f"build_{number}_{ways[name].__name__}")
            start = time.perf_counter()
            ways[name](uri, nodes, model)
            if number:
                times[name].append(time.perf_counter() - start)
            drop_all(uri)
    return times


def drop_all(uri: str) -> None:
    client = MilvusClient(uri)
    for name in client.list_collections():
        client.drop_collection(name)
    client.close()


def build_table(times: dict[str, list[float]]) -> Table:
    """Medians, and the fastest rounds, which are more reliable on a shared machine."""
    table = Table("way", "seconds", "ours is", "fastest", "ours is", box=None)
    for name, values in times.items():
        row = [name]
        for measure in (statistics.median, min):
            ratio = measure(times["ours"]) / measure(values)
            row += [f"{measure(values):.2f}", "" if name == "ours" else f"{ratio:.2f} ×"]
        table.add_row(*row)
    return table


# --- all together --------------------------------------------------------------------------------


@contextmanager
def milvus(folder: Path, server: bool) -> Iterator[Uris]:
    """The address of each named database: a separate file, or one server for all."""
    if not server:
        yield lambda name: str(folder / f"{name}.db")
        return
    with milvus_server(folder / "server") as uri:
        yield lambda name: uri


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--files", type=int, default=256, help="number of images, and of texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--server", action="store_true", help="use a Milvus server instead of Milvus Lite"
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    towers: dict[str, Any] = {"text_config": TEXT_B32, "vision_config": VIT_B32}
    if options.quick:
        options.rows, options.searches, options.files, options.rounds = [100], 5, 4, 1
        towers = {}

    console = Console()
    console.width = max(console.width, 100)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with milvus(folder, options.server) as uris:
            where = "a Milvus server" if options.server else "Milvus Lite"
            console.print(f"{options.searches} searches, {TOP_K} + {TOP_K} nodes, {where}")
            times = {
                rows: search_times(uris(f"search_{rows}"), rows, options.searches)
                for rows in options.rows
            }
            console.print(search_table(times))
            if options.files:
                checkpoint = make_tiny_clip(folder / "model", projection_dim=512, **towers)
                model = DualEncoderEmbedding(model_name=str(checkpoint), embed_batch_size=BATCH)
                nodes = make_nodes(make_photos(folder, options.files), HEADLINE)
                console.print(
                    f"\n{options.files} JPEGs of 640×480 and as many texts, {where}, "
                    f"{torch.get_num_threads()} threads, median of {options.rounds} rounds"
                )
                console.print(build_table(build_times(uris, nodes, model, options.rounds)))


if __name__ == "__main__":
    main()
