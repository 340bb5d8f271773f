"""Read documents with pictures, embed both into one space, and see why one index is not enough."""

import tempfile
from pathlib import Path

import numpy as np

from llama_index_gap import DualEncoderEmbedding, read_corpus
from llama_index_gap.demo.corpus import write_demo_corpus
from llama_index_gap.demo.tiny import make_tiny_clip

with tempfile.TemporaryDirectory() as folder:
    # Yours: a folder of pictures or Markdown, a .jsonl or a .csv file.
    corpus = read_corpus(write_demo_corpus(Path(folder) / "corpus"))
    print(corpus.summary())

    # Yours: "openai/clip-vit-base-patch32", or a folder. This one has random weights.
    model = make_tiny_clip(Path(folder) / "model")
    embedding = DualEncoderEmbedding(model_name=str(model))

    texts = embedding.get_text_embedding_batch(
        [node.get_content("embed") for node in corpus.text_nodes]
    )
    images = embedding.get_image_embedding_batch([node.image_path for node in corpus.image_nodes])
    query = np.array(embedding.get_query_embedding("a ship in the harbour"))

print(f"texts:    {np.mean(np.array(texts) @ query):.2f} on average")
print(f"pictures: {np.mean(np.array(images) @ query):.2f} on average")
