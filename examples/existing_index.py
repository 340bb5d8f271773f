"""Search an index that LlamaIndex built, unchanged, with a retriever of this package."""

import tempfile
from pathlib import Path

from llama_index.core.indices import MultiModalVectorStoreIndex

from llama_index_gap import DualEncoderEmbedding, DualIndexRetriever, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom

with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(Path(folder) / "newsroom", articles=200))
    for node in corpus.image_nodes:  # LlamaIndex skips nodes without text and metadata
        node.metadata["kind"] = "image"
    model = DualEncoderEmbedding(model_name=CHECKPOINT)
    # Yours: an existing index with its own models, over any vector stores.
    index = MultiModalVectorStoreIndex(corpus.nodes, embed_model=model, image_embed_model=model)
    before = index.as_retriever(similarity_top_k=3, image_similarity_top_k=3)
    now = DualIndexRetriever.from_index(index, top_k=3)

    for name, retriever in (("LlamaIndex: texts, then images", before), ("ours", now)):
        print(name)
        for hit in retriever.retrieve(
            "chess, Ambleforth, with a picture of a crimson windmill at the coast"
        ):
            what = hit.node.text or f"<{Path(hit.node.image_path).name}>"
            print(f"  {hit.score:.3f}  {hit.node.ref_doc_id}  {what}")
