"""Compares ways to keep many tenants in one database: partition key, filter, or a collection each.

    python benchmarks/tenants.py [--uri FILE.db|URL] [--rows 20000] [--dim 256] [--tenants 10 100]

Rows are random unit vectors, dealt to the tenants in turn; a query is a row of its tenant plus
noise. Each way answers the same 50 queries for 10 rows (HNSW, M=16, ef=64), after everything was
flushed and indexed. *recall* is against an exact search of the tenant's own rows; *foreign* counts
rows of other tenants among the results; times are medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException
from rich.console import Console
from rich.table import Table

WAYS = ("partition key", "filter", "collection each")
_QUERIES, _TOP = 50, 10


def _create(client: MilvusClient, name: str, dim: int, *, key: bool) -> None:
    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.VARCHAR, max_length=200, is_primary=True)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dim)
    schema.add_field("tenant", DataType.VARCHAR, max_length=200, is_partition_key=key)
    client.create_collection(name, schema=schema, consistency_level="Session")
    index = client.prepare_index_params()
    params = {"M": 16, "efConstruction": 200}
    index.add_index("embedding", "HNSW", "embedding", metric_type="COSINE", params=params)
    client.create_index(name, index_params=index, sync=False)


def _measured(
    client: MilvusClient, way: str, vectors: np.ndarray, tenants: int, prefix: str
) -> tuple[float, float, float, float, int]:
    """Seconds to build, median and 95th percentile of a search, recall, foreign rows."""
    owner = np.arange(len(vectors)) % tenants
    each = way == "collection each"
    names = [f"{prefix}_{tenant}" for tenant in range(tenants)] if each else [prefix]
    start = time.monotonic()
    for number, name in enumerate(names):
        _create(client, name, vectors.shape[1], key=way == "partition key")
        rows = np.flatnonzero(owner == number) if each else np.arange(len(vectors))
        for part in np.array_split(rows, max(1, len(rows) // 2_000)):
            client.insert(
                name,
                [
                    {"id": str(row), "embedding": vectors[row], "tenant": f"t{owner[row]}"}
                    for row in part
                ],
            )
        client.flush(name)
        client.load_collection(name)
    for name in names:
        while client.describe_index(name, "embedding").get("pending_index_rows", 0):
            time.sleep(0.2)
    built = time.monotonic() - start

    random = np.random.default_rng(1)
    seconds, found, foreign = [], [], 0
    for _ in range(_QUERIES):
        row = int(random.integers(len(vectors)))
        tenant = int(owner[row])
        query = vectors[row] + random.normal(size=vectors.shape[1]) / vectors.shape[1] ** 0.5
        own = np.flatnonzero(owner == tenant)
        best = set(own[np.argsort(-(vectors[own] @ query))[:_TOP]].tolist())
        start = time.monotonic()
        hits = client.search(
            names[tenant] if each else prefix,
            data=[query.astype(np.float32)],
            anns_field="embedding",
            limit=_TOP,
            filter="" if each else f'tenant == "t{tenant}"',
            search_params={"params": {"ef": 64}},
        )[0]
        seconds.append(time.monotonic() - start)
        ids = {int(hit["id"]) for hit in hits}
        found.append(len(ids & best) / len(best))
        foreign += int((owner[list(ids)] != tenant).sum())
    for name in names:
        client.drop_collection(name)
    low, high = np.quantile(seconds, [0.5, 0.95])
    return built, float(low), float(high), float(np.mean(found)), foreign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uri")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--tenants", type=int, nargs="+", default=[10, 100])
    arguments = parser.parse_args()
    vectors = np.random.default_rng(0).normal(size=(arguments.rows, arguments.dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    table = Table("tenants", "way", "build s", "p50 ms", "p95 ms", "recall@10", "foreign")
    with tempfile.TemporaryDirectory() as folder:
        client = MilvusClient(arguments.uri or str(Path(folder) / "tenants.db"))
        print(client.get_server_version())
        for tenants in arguments.tenants:
            for number, way in enumerate(WAYS):
                try:
                    built, low, high, recall, foreign = _measured(
                        client, way, vectors, tenants, f"bench_{tenants}_{number}"
                    )
                except MilvusException as error:
                    table.add_row(str(tenants), way, f"failed: {str(error)[:60]}")
                    continue
                times = f"{1000 * low:.1f}", f"{1000 * high:.1f}"
                figures = (f"{built:.1f}", *times, f"{recall:.3f}", str(foreign))
                table.add_row(str(tenants), way, *figures)
                Console(width=100).print(
                    table.columns and " | ".join([str(tenants), way, *figures])
                )
        client.close()
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
