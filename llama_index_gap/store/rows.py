"""Nodes as rows of a collection, and rows as nodes."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from llama_index.core.schema import BaseNode, ImageNode, MetadataMode, Node, TextNode
from llama_index.core.vector_stores.utils import metadata_dict_to_node

from llama_index_gap.errors import InvalidValueError
from llama_index_gap.gap.arrays import VectorArray
from llama_index_gap.images.folders import ImageFolders
from llama_index_gap.nodes import MOST_METADATA_BYTES, CaptionedImageNode, confined
from llama_index_gap.store.connection import StoreError, one_line
from llama_index_gap.store.filters import DOC_ID_FIELD, ID_FIELD, TEXT_FIELD, literal

VECTOR_FIELD = "embedding"
NODE_FIELDS = [TEXT_FIELD, "_node_content", "_node_type"]
"""What a row must be read with for ``to_node``."""
BUCKET_KEY = "gap_bucket"
"""Says which of 1,024 parts, by the hash of its id, a row is in."""
FINGERPRINT_KEY = "gap_fingerprint"
"""Changes with whatever of a row's node is stored or embedded."""
SOURCE_KEY = "gap_source"
"""Names the corpus that a row was written from."""
PLACE_KEY = "gap_place"
"""Names the file of that corpus which its document stands in."""
CONTENT_KEY = "gap_content"
"""A digest of what a row's vector was made from."""
LABEL_KEYS = (SOURCE_KEY, PLACE_KEY, CONTENT_KEY)
BUCKETS = 1024

_RESERVED_KEYS = frozenset(
    {
        *("$meta", "_node_content", "_node_type", ID_FIELD, TEXT_FIELD, VECTOR_FIELD),
        *(BUCKET_KEY, FINGERPRINT_KEY, *LABEL_KEYS),
    }
)
_DOC_ID_KEYS = (DOC_ID_FIELD, "document_id", "ref_doc_id")
# Not all fields: a later LlamaIndex may have more, and no node has changed by that.
_FINGERPRINTED = (
    *("id_", "image_url", "image_resource", "metadata", "relationships"),
    *("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"),
    *("text_template", "metadata_template", "metadata_separator"),
)
_INT64 = 2**63
# What LlamaIndex formats texts with, and what it has for them.
_TEMPLATES = {
    "text_template": {"content", "metadata_str"},
    "metadata_template": {"key", "value"},
}


@dataclass(frozen=True)
class StoredRow:
    """What is stored beside a node, for comparing.

    Attributes:
        document: id of its source document; empty where it has none.
        fingerprint: as ``fingerprint`` made it; None where another store wrote the row.
        labels: what ``LABEL_KEYS`` name, as far as it is there.
    """

    document: str
    fingerprint: str | None
    labels: dict[str, str]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredRow:
        """What a row says that was read with these fields; it may say anything."""
        known = row.get(FINGERPRINT_KEY)
        labels = {key: row[key] for key in LABEL_KEYS if isinstance(row.get(key), str)}
        return cls(
            str(row.get(DOC_ID_FIELD) or ""), known if isinstance(known, str) else None, labels
        )


def to_row(
    node: BaseNode,
    max_lengths: Mapping[str, int],
    image: str = "",
    labels: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A node as a row, but for its vector.

    Args:
        node: any node.
        max_lengths: most bytes in each column of text.
        image: as for ``fingerprint``.
        labels: texts for ``LABEL_KEYS``, which no fingerprint changes with.

    Raises:
        ValueError: a node that cannot be stored; names it.
    """
    name = f"node {node.node_id[:100]!r}"
    _refuse_pixels(node, name)
    source = node.ref_doc_id or ""
    columns = {ID_FIELD: node.node_id, DOC_ID_FIELD: source, TEXT_FIELD: _text_of(node)}
    if not node.node_id:
        raise InvalidValueError(f"{name}: has an empty id; give each node one of its own")
    for column, value in columns.items():
        check_bytes(value, max_lengths[column], f"{name}: its {column}", "shorten it")

    content = _to_json(node, name)
    metadata: dict[str, Any] = content["metadata"]
    clash = sorted(_RESERVED_KEYS & metadata.keys())
    clash += [key for key in _DOC_ID_KEYS if key in metadata and metadata[key] != source]
    if clash:
        raise InvalidValueError(
            f"{name}: metadata key {clash[0]!r} is a field of the collection's own; rename it"
        )
    _check_integers(metadata, name)
    _check_templates(node, name)
    dynamic = {
        # A null or an empty list cannot be asked for in a filter; a missing key can.
        **{key: value for key, value in metadata.items() if value is not None and value != []},
        "_node_content": json.dumps(content, ensure_ascii=False),
        "_node_type": node.class_name(),
        "document_id": source,
        "ref_doc_id": source,
        BUCKET_KEY: _bucket(node.node_id),
        FINGERPRINT_KEY: _digest(content, columns[TEXT_FIELD], image),
        **(labels or {}),
    }
    check_bytes(
        json.dumps(dynamic, ensure_ascii=False, separators=(",", ":")),
        MOST_METADATA_BYTES,
        f"{name}: its metadata and relationships",
        "they are stored twice, for filters and for reading; keep long texts out of them",
    )
    return columns | dynamic


def fingerprint(node: BaseNode, image: str = "") -> str:
    """Changes with whatever of a node is stored or embedded; the same before and after storing.

    Where the node names an image's file, the path has a part of its own, after a hyphen: a moved
    image changes nothing else.

    Args:
        node: any node.
        image: what its vector was made from, if that is an image: a digest of the file's content.

    Raises:
        ValueError: its metadata is not JSON.
    """
    return _digest(_to_json(node, f"node {node.node_id[:100]!r}"), _text_of(node), image)


def only_moved(stored: str, asked: str) -> bool:
    """Whether two fingerprints differ in nothing but the path of an image's file."""
    same, path, _ = stored.partition("-")
    return bool(path) and stored != asked and same == asked.partition("-")[0]


def with_image_path(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A stored row as it would be if its node named another image file.

    Args:
        row: whole, of a node that names one.
        path: of the file.
    """
    content = json.loads(row["_node_content"]) | {"image_path": path}
    moved = {**row, "_node_content": json.dumps(content, ensure_ascii=False)}
    known = row.get(FINGERPRINT_KEY)
    if isinstance(known, str):
        moved[FINGERPRINT_KEY] = f"{known.partition('-')[0]}-{text_digest(path)}"
    return moved


def image_path_of(row: Mapping[str, Any]) -> str | None:
    """The file that a stored row names as its node's image; None if it names none, or no node.

    Args:
        row: read with ``_node_content``.
    """
    try:
        path = json.loads(row["_node_content"])["image_path"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return path if isinstance(path, str) else None


def why_not_storable(row: Mapping[str, Any], max_lengths: Mapping[str, int]) -> str | None:
    """Say why a server would refuse a row of somebody else's; None if it would not.

    Args:
        row: whole, with its vector.
        max_lengths: most bytes in each column of text.
    """
    columns = {*max_lengths, VECTOR_FIELD}
    dynamic = {key: value for key, value in row.items() if key not in columns}
    try:
        for column, limit in max_lengths.items():
            check_bytes(row[column], limit, f"its {column}", "shorten it")
        written = json.dumps(dynamic, ensure_ascii=False, separators=(",", ":"))
        check_bytes(written, MOST_METADATA_BYTES, "its metadata", "keep long texts out of it")
    except (InvalidValueError, TypeError, RecursionError) as error:
        return str(error)
    if not np.isfinite(np.asarray(row[VECTOR_FIELD], dtype=np.float32)).all():
        return "its vector holds NaN or infinity; insert its node again"
    return None


def _digest(content: Mapping[str, Any], text: str, image: str) -> str:
    kept = {key: content[key] for key in _FINGERPRINTED if key in content}
    written = [kept, text, image] if image else [kept, text]
    digest = text_digest(json.dumps(written, sort_keys=True))
    path = content.get("image_path")
    return f"{digest}-{text_digest(path)}" if path else digest


def text_digest(text: str) -> str:
    """A short digest of any text."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _to_json(node: BaseNode, name: str) -> dict[str, Any]:
    """The node as JSON knows it, without its text and embedding, which have columns."""
    bare = node.model_copy(update={"embedding": None})
    try:
        content: dict[str, Any] = bare.model_dump(mode="json", fallback=_to_plain)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(
            f"{name}: its metadata is not JSON ({one_line(error)}); use texts, numbers and lists"
        ) from error
    if isinstance(content.get("text_resource"), dict):
        content["text_resource"]["text"] = None
    elif "text" in content:
        content["text"] = ""
    return content


def _to_plain(value: Any) -> Any:
    """What JSON has for a value of NumPy's."""
    match value:
        case np.datetime64() | np.timedelta64():
            return str(value)
        case np.ndarray() | np.generic():
            return value.tolist()
    raise InvalidValueError(f"{type(value).__name__} {str(value)[:60]!r}")


def to_vector(
    embedding: Sequence[float] | None, name: str, *, of: str, dim: int, metric: str
) -> VectorArray:
    """An embedding as it is stored or searched with.

    Args:
        embedding: of a node, or of a query.
        name: what it belongs to, for messages.
        of: the collection, for messages.
        dim: its dimensions.
        metric: its similarity metric.

    Raises:
        ValueError: there is none, it has other dimensions, or it has no direction.
    """
    if embedding is None:
        raise InvalidValueError(f"{name}: has no embedding; embed it first")
    with np.errstate(over="ignore"):
        vector = np.asarray(embedding, dtype=np.float32)
    if vector.shape != (dim,):
        raise InvalidValueError(
            f"{name}: its embedding has the shape {vector.shape}, and {of} holds "
            f"vectors of {dim} dimensions; embed it with the collection's model"
        )
    if not np.isfinite(vector).all():
        raise InvalidValueError(f"{name}: its embedding holds NaN or infinity; embed it again")
    with np.errstate(over="ignore"):  # in float32: the squares of tiny numbers vanish
        length = float(np.linalg.norm(vector))
    if metric == "COSINE" and not 0 < length < np.inf:
        raise InvalidValueError(
            f"{name}: its embedding has the length {length} in float32, and so no direction; "
            "leave it out"
        )
    return vector


def to_node(row: Mapping[str, Any], folders: ImageFolders | None = None) -> BaseNode:
    """The node of a row that was read with ``NODE_FIELDS``.

    Args:
        row: as somebody stored it.
        folders: where the image that it names must lie; None for anywhere.

    Raises:
        StoreError: the row holds none; names it.
    """
    try:
        content, kind, text = row["_node_content"], row.get("_node_type"), row.get(TEXT_FIELD) or ""
        if kind == ImageNode.class_name():
            node: BaseNode = CaptionedImageNode.from_json(content)
        else:
            node = metadata_dict_to_node({"_node_content": content, "_node_type": kind})
        if isinstance(node, Node):
            if node.text_resource is not None:
                node.text_resource.text = text
            elif text:  # written by LlamaIndex's own store, which drops the whole resource
                node.set_content(text)
        elif isinstance(node, TextNode):
            node.text = text
        if row.get(ID_FIELD, node.node_id) != node.node_id:
            raise InvalidValueError(f"it holds the node {node.node_id[:100]!r}")
        _ = node.ref_doc_id  # refuses a source that is a list
        _check_templates(node, "its node")
        if folders is not None:
            node = confined(node, folders)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"row {row.get(ID_FIELD)!r} holds no LlamaIndex node ({one_line(error)}); delete it, "
            "or add its node again"
        ) from error
    return node


def row_bytes(row: Mapping[str, Any]) -> int:
    """An upper bound, roughly, of what a row with its vector takes in a message."""
    return (
        4 * len(row[VECTOR_FIELD])
        + 4 * (len(row[TEXT_FIELD]) + len(row[ID_FIELD]))
        + MOST_METADATA_BYTES
    )


def most_row_bytes(dim: int) -> int:
    """An upper bound of what a node with its vector takes in an answer, its text the longest."""
    return 2 * MOST_METADATA_BYTES + 4 * dim


def in_buckets(count: int, seed: int) -> str:
    """A filter for the rows of so many buckets, from one that the seed chooses, round the end."""
    if count >= BUCKETS:
        return ""
    key = f"$meta[{literal(BUCKET_KEY)}]"
    start = int(np.random.default_rng(seed).integers(BUCKETS)) if seed else 0
    stop = start + count
    if stop <= BUCKETS:
        return f"({key} >= {start}) and ({key} < {stop})"
    return f"({key} >= {start}) or ({key} < {stop - BUCKETS})"


def bucket_ranges(parts: int) -> list[str]:
    """Filters that cut all rows into parts of about one size; [""] for a single part.

    Args:
        parts: how many; at most as many as there are buckets.
    """
    if parts <= 1:
        return [""]
    key = f"$meta[{literal(BUCKET_KEY)}]"
    parts = min(parts, BUCKETS)
    bounds = [BUCKETS * part // parts for part in range(parts + 1)]
    return [f"({key} >= {start} and {key} < {stop})" for start, stop in pairwise(bounds)]


def check_bytes(text: str, limit: int, name: str, way_out: str) -> None:
    """Refuse a text of more bytes than the database takes.

    Args:
        text: what is to be stored.
        limit: most bytes.
        name: what it is, for the message.
        way_out: what to do, for the message.

    Raises:
        ValueError: it has more, or is no valid Unicode.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"{name}: is no valid Unicode ({error.reason}); clean it"
        ) from error
    if size > limit:
        raise InvalidValueError(f"{name}: {size:,} bytes, more than Milvus' {limit:,}; {way_out}")


def _text_of(node: BaseNode) -> str:
    if isinstance(node, Node):
        return (node.text_resource.text if node.text_resource else None) or ""
    return node.text if isinstance(node, TextNode) else node.get_content(MetadataMode.NONE)


def _refuse_pixels(node: BaseNode, name: str) -> None:
    pixels: str | bytes | None = node.image if isinstance(node, ImageNode) else None
    if isinstance(node, Node) and node.image_resource is not None:
        pixels = node.image_resource.data
    if pixels:
        raise InvalidValueError(
            f"{name}: pixels are never stored in Milvus: write the {len(pixels):,} bytes of base64 "
            "to a file and set the node's image_path"
        )


def _check_templates(node: BaseNode, name: str) -> None:
    """Refuse templates that take values apart, or pad them to any length."""
    for template, known in _TEMPLATES.items():
        try:
            parts = list(string.Formatter().parse(getattr(node, template, None) or ""))
        except ValueError as error:
            raise InvalidValueError(f"{name}: its {template} is none ({error})") from error
        if any(field is not None and (field not in known or spec) for _, field, spec, _ in parts):
            raise InvalidValueError(
                f"{name}: its {template} may hold {{{'} and {'.join(sorted(known))}}}, and no "
                "other field or format"
            )


def _check_integers(value: Any, name: str) -> None:
    match value:
        case dict():
            for inner in value.values():
                _check_integers(inner, name)
        case list():
            for inner in value:
                _check_integers(inner, name)
        case int() if not -_INT64 <= value < _INT64:
            raise InvalidValueError(
                f"{name}: metadata holds {value}, more than 64 bits; store it as text"
            )


def _bucket(node_id: str) -> int:
    digest = hashlib.blake2b(node_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % BUCKETS
