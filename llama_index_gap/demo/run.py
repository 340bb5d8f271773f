"""The demo: the modality gap, seen on real computations within seconds, offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from llama_index.core.schema import ImageNode, MetadataMode
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama_index_gap.demo.corpus import write_demo_corpus
from llama_index_gap.demo.tiny import make_tiny_clip
from llama_index_gap.embedding import DualEncoderEmbedding
from llama_index_gap.index import DualIndex
from llama_index_gap.readers import read_corpus
from llama_index_gap.retriever import ScoredNode

_SHOWN = 3
_QUERIES = ("ship in the harbour", "a match in the rain", "something green", "sun and moon")


def run_demo(folder: Path, console: Console) -> None:
    """Read a small corpus, embed its texts and pictures, and show how their scores differ.

    Args:
        folder: where the corpus and the model are written.
        console: where to print.
    """
    console.print("[bold]1. Read[/bold] a made-up corpus; one of its pictures is damaged")
    corpus = read_corpus(write_demo_corpus(folder / "corpus"))
    console.print(corpus.summary(), highlight=False)

    console.print("\n[bold]2. Embed[/bold] its texts and pictures into one space")
    model = make_tiny_clip(folder / "tiny-clip")
    console.print(
        "A tiny CLIP with [bold]random weights[/bold], made just now: it runs the code that loads "
        "a real checkpoint, but knows nothing of words or pictures. The gap below is real; no "
        "ranking by it means anything."
    )
    embedding = DualEncoderEmbedding(model_name=str(model))
    nodes = corpus.text_nodes
    texts = np.array(
        embedding.get_text_embedding_batch([node.get_content(MetadataMode.EMBED) for node in nodes])
    )
    paths = [str(node.image_path) for node in corpus.image_nodes]
    images = np.array(embedding.get_image_embedding_batch(list(paths)))
    queries = np.array([embedding.get_query_embedding(query) for query in _QUERIES])

    console.print("\n[bold]3. Compare[/bold] the scores (cosines) that a text query gets")
    table = Table("against", "lowest", "mean", "highest", box=None, padding=(0, 2))
    for name, vectors in (("texts", texts), ("pictures", images)):
        scores = queries @ vectors.T
        table.add_row(
            name, *(f"{value:.2f}" for value in (scores.min(), scores.mean(), scores.max()))
        )
    console.print(table)

    top = min(len(texts), len(images))
    mixed = queries @ np.vstack([texts, images]).T
    first = np.argsort(-mixed, axis=1)[:, :top]
    share, expected = float((first < len(texts)).mean()), len(texts) / mixed.shape[1]
    console.print(
        f"\nOne mixed index, the {top} best of {mixed.shape[1]} vectors: "
        f"[bold]{share:.0%} texts[/bold], where {expected:.0%} of all are texts. "
        "That is the modality gap: whatever is asked, texts come first."
    )

    console.print(
        "\n[bold]4. Search[/bold] each side by itself, in its own Milvus collection, and rank the "
        "documents together"
    )
    with DualIndex.from_documents(
        corpus, uri=str(folder / "demo.db"), embed_model=embedding
    ) as index:
        hits = index.as_retriever(top_k=_SHOWN).retrieve(_QUERIES[0])
    table = Table("document", "found of it", "by text", "by picture", box=None, padding=(0, 2))
    for hit in hits:
        scores = hit.scores if isinstance(hit, ScoredNode) else {}
        kind = "picture: " if isinstance(hit.node, ImageNode) else ""
        found = Text(kind + hit.get_content())
        columns = [f"{scores[side]:.2f}" if side in scores else "" for side in ("text", "image")]
        table.add_row(hit.node.ref_doc_id, found, *columns)
    console.print(table)
    console.print(
        f"\nThe first {_SHOWN} documents for “{_QUERIES[0]}”, each with its best text (captions "
        "count) and its best picture, though the two scores are worlds apart. So small a corpus is "
        "ranked by rank; from 50 vectors a side on, by how far a score is above what the query "
        "gets anyway."
    )
