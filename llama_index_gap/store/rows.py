"""Converting nodes to rows of a collection, and rows to nodes."""

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
"""The fields that ``to_node`` needs."""
BUCKET_KEY = "gap_bucket"
"""Number of the row's bucket, one of 1,024, by the hash of its id."""
FINGERPRINT_KEY = "gap_fingerprint"
"""The node's fingerprint, see ``fingerprint``."""
SOURCE_KEY = "gap_source"
"""Name of the corpus that the row was written from."""
PLACE_KEY = "gap_place"
"""Name of the corpus' file that holds the row's document."""
CONTENT_KEY = "gap_content"
"""A digest of the content that the row's vector was made from."""
LABEL_KEYS = (SOURCE_KEY, PLACE_KEY, CONTENT_KEY)
BUCKETS = 1024

_RESERVED_KEYS = frozenset(
    {
        *("$meta", "_node_content", "_node_type", ID_FIELD, TEXT_FIELD, VECTOR_FIELD),
        *(BUCKET_KEY, FINGERPRINT_KEY, *LABEL_KEYS),
    }
)
_DOC_ID_KEYS = (DOC_ID_FIELD, "document_id", "ref_doc_id")
# Not all fields: if a later LlamaIndex has more, that must not change a node's fingerprint.
_FINGERPRINTED = (
    *("id_", "image_url", "image_resource", "metadata", "relationships"),
    *("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"),
    *("text_template", "metadata_template", "metadata_separator"),
)
_INT64 = 2**63
# LlamaIndex's templates for texts, and the fields that it fills in.
_TEMPLATES = {
    "text_template": {"content", "metadata_str"},
    "metadata_template": {"key", "value"},
}


@dataclass(frozen=True)
class StoredRow:
    """The data that is stored with a node, for comparing.

    Attributes:
        document: id of its source document; empty if it has none.
        fingerprint: the result of ``fingerprint``; None if another store wrote the row.
        labels: those of ``LABEL_KEYS`` that the row has.
    """

    document: str
    fingerprint: str | None
    labels: dict[str, str]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> StoredRow:
        """Make it from a row; values of a wrong type are ignored."""
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
    """Convert a node to a row without its vector.

    Args:
        node: any node.
        max_lengths: maximum bytes of each text column.
        image: as for ``fingerprint``.
        labels: texts for ``LABEL_KEYS``; they do not affect the fingerprint.

    Raises:
        ValueError: the node cannot be stored; names it.
    """
    name = f"node {node.node_id[:100]!r}"
    _refuse_pixels(node, name)
    source = node.ref_doc_id or ""
    columns = {ID_FIELD: node.node_id, DOC_ID_FIELD: source, TEXT_FIELD: _text_of(node)}
    if not node.node_id:
        raise InvalidValueError(f"{name}: has an empty id; give each node its own id")
    for column, value in columns.items():
        check_bytes(value, max_lengths[column], f"{name}: its {column}", "shorten it")

    content = _to_json(node, name)
    metadata: dict[str, Any] = content["metadata"]
    clash = sorted(_RESERVED_KEYS & metadata.keys())
    clash += [key for key in _DOC_ID_KEYS if key in metadata and metadata[key] != source]
    if clash:
        raise InvalidValueError(
            f"{name}: metadata key {clash[0]!r} is a field of the collection; rename the key"
        )
    _check_integers(metadata, name)
    _check_templates(node, name)
    dynamic = {
        # A filter cannot match a null or an empty list, but it can match a missing key.
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
        "they are stored twice, for filters and for reading; remove long texts from them",
    )
    return columns | dynamic


def fingerprint(node: BaseNode, image: str = "") -> str:
    """A digest of all parts of a node that are stored or embedded; storing does not change it.

    If the node has an image file, the path's digest is a separate part after a hyphen: moving the
    image changes only that part.

    Args:
        node: any node.
        image: a digest of the image file's content, if the vector was made from an image.

    Raises:
        ValueError: the node's metadata is not JSON.
    """
    return _digest(_to_json(node, f"node {node.node_id[:100]!r}"), _text_of(node), image)


def only_moved(stored: str, asked: str) -> bool:
    """Whether two fingerprints differ only in the path of an image file."""
    same, path, _ = stored.partition("-")
    return bool(path) and stored != asked and same == asked.partition("-")[0]


def with_image_path(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Replace the path of the image file in a stored row.

    Args:
        row: the complete row of a node that has an image file.
        path: the new path.
    """
    content = json.loads(row["_node_content"]) | {"image_path": path}
    moved = {**row, "_node_content": json.dumps(content, ensure_ascii=False)}
    known = row.get(FINGERPRINT_KEY)
    if isinstance(known, str):
        moved[FINGERPRINT_KEY] = f"{known.partition('-')[0]}-{text_digest(path)}"
    return moved


def image_path_of(row: Mapping[str, Any]) -> str | None:
    """The path of the image file in a stored row; None if it has none, or holds no node.

    Args:
        row: a row with the field ``_node_content``.
    """
    try:
        path = json.loads(row["_node_content"])["image_path"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return path if isinstance(path, str) else None


def why_not_storable(row: Mapping[str, Any], max_lengths: Mapping[str, int]) -> str | None:
    """Say why a server would refuse a row that another program wrote; None if it would not.

    Args:
        row: the complete row, with its vector.
        max_lengths: maximum bytes of each text column.
    """
    columns = {*max_lengths, VECTOR_FIELD}
    dynamic = {key: value for key, value in row.items() if key not in columns}
    try:
        for column, limit in max_lengths.items():
            check_bytes(row[column], limit, f"its {column}", "shorten it")
        written = json.dumps(dynamic, ensure_ascii=False, separators=(",", ":"))
        check_bytes(written, MOST_METADATA_BYTES, "its metadata", "remove long texts from it")
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
    """A short digest of a text."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def _to_json(node: BaseNode, name: str) -> dict[str, Any]:
    """The node in JSON types, without its text and embedding, which have their own columns."""
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
    """Convert a NumPy value to JSON types."""
    match value:
        case np.datetime64() | np.timedelta64():
            return str(value)
        case np.ndarray() | np.generic():
            return value.tolist()
    raise InvalidValueError(f"{type(value).__name__} {str(value)[:60]!r}")


def to_vector(
    embedding: Sequence[float] | None, name: str, *, of: str, dim: int, metric: str
) -> VectorArray:
    """Check an embedding, and convert it to the form that is stored or searched with.

    Args:
        embedding: of a node or a query.
        name: the node or the query, for messages.
        of: the collection, for messages.
        dim: the collection's dimension.
        metric: the collection's similarity metric.

    Raises:
        ValueError: the embedding is missing, has another dimension, or has no direction.
    """
    if embedding is None:
        raise InvalidValueError(f"{name}: has no embedding; embed it first")
    with np.errstate(over="ignore"):
        vector = np.asarray(embedding, dtype=np.float32)
    if vector.shape != (dim,):
        raise InvalidValueError(
            f"{name}: its embedding has the shape {vector.shape}, but {of} holds "
            f"vectors of {dim} dimensions; embed it with the collection's model"
        )
    if not np.isfinite(vector).all():
        raise InvalidValueError(f"{name}: its embedding holds NaN or infinity; embed it again")
    with np.errstate(over="ignore"):  # in float32, the squares of tiny numbers become 0
        length = float(np.linalg.norm(vector))
    if metric == "COSINE" and not 0 < length < np.inf:
        raise InvalidValueError(
            f"{name}: its embedding has the length {length} in float32, so it has no direction; "
            "leave it out"
        )
    return vector


def to_node(row: Mapping[str, Any], folders: ImageFolders | None = None) -> BaseNode:
    """Convert a row to its node.

    Args:
        row: a row with ``NODE_FIELDS``; any program may have written it.
        folders: the folders that must hold the node's image; None if it may be anywhere.

    Raises:
        StoreError: the row holds no node; names the row.
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
            elif text:  # LlamaIndex's own store wrote the row, and left out the text resource
                node.set_content(text)
        elif isinstance(node, TextNode):
            node.text = text
        if row.get(ID_FIELD, node.node_id) != node.node_id:
            raise InvalidValueError(f"it holds the node {node.node_id[:100]!r}")
        _ = node.ref_doc_id  # raises an error if the source is a list
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
    """A rough upper bound of the bytes that a row with its vector takes in a message."""
    return (
        4 * len(row[VECTOR_FIELD])
        + 4 * (len(row[TEXT_FIELD]) + len(row[ID_FIELD]))
        + MOST_METADATA_BYTES
    )


def most_row_bytes(dim: int) -> int:
    """An upper bound of the bytes that a node with its vector and the longest text takes."""
    return 2 * MOST_METADATA_BYTES + 4 * dim


def in_buckets(count: int, seed: int) -> str:
    """A filter for the rows of ``count`` buckets, cyclically from one that the seed chooses."""
    if count >= BUCKETS:
        return ""
    key = f"$meta[{literal(BUCKET_KEY)}]"
    start = int(np.random.default_rng(seed).integers(BUCKETS)) if seed else 0
    stop = start + count
    if stop <= BUCKETS:
        return f"({key} >= {start}) and ({key} < {stop})"
    return f"({key} >= {start}) or ({key} < {stop - BUCKETS})"


def bucket_ranges(parts: int) -> list[str]:
    """Filters that divide all rows into parts of about equal size; [""] for a single part.

    Args:
        parts: how many parts; at most one for each bucket.
    """
    if parts <= 1:
        return [""]
    key = f"$meta[{literal(BUCKET_KEY)}]"
    parts = min(parts, BUCKETS)
    bounds = [BUCKETS * part // parts for part in range(parts + 1)]
    return [f"({key} >= {start} and {key} < {stop})" for start, stop in pairwise(bounds)]


def check_bytes(text: str, limit: int, name: str, way_out: str) -> None:
    """Refuse a text of more bytes than the database accepts.

    Args:
        text: the text to store.
        limit: maximum bytes.
        name: names the text in the message.
        way_out: tells in the message what to do.

    Raises:
        ValueError: the text has more bytes, or is not valid Unicode.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidValueError(
            f"{name}: is not valid Unicode ({error.reason}); clean it"
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
    """Refuse templates that read attributes of values, or pad values to any length."""
    for template, known in _TEMPLATES.items():
        try:
            parts = list(string.Formatter().parse(getattr(node, template, None) or ""))
        except ValueError as error:
            raise InvalidValueError(f"{name}: its {template} is not valid ({error})") from error
        if any(field is not None and (field not in known or spec) for _, field, spec, _ in parts):
            raise InvalidValueError(
                f"{name}: its {template} may contain only {{{'} and {'.join(sorted(known))}}}, "
                "without a format"
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
                f"{name}: metadata holds {value}, which needs more than 64 bits; store it as text"
            )


def _bucket(node_id: str) -> int:
    digest = hashlib.blake2b(node_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest) % BUCKETS
