"""Put articles with images into an index, search with text, and see why each was found."""

import tempfile

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom

QUERIES = (
    # about a headline; about an image; about both
    "election and educators, Birchester in the coming year",
    "in the mountains under the stars, a golden windmill right of a cobalt cottage",
    "chess, Ambleforth, with a picture of a crimson windmill at the coast",
)

with tempfile.TemporaryDirectory() as folder:
    # Yours: a folder of images or Markdown, or a .jsonl or .csv file.
    corpus = read_corpus(write_newsroom(f"{folder}/newsroom", articles=200))
    print(corpus.summary())

    # Yours: "jina", "siglip2", any CLIP. This tiny one was trained only on such newsrooms.
    embedding = DualEncoderEmbedding(model_name=CHECKPOINT)
    with DualIndex(f"{folder}/gap.db", embed_model=embedding) as index:
        print(index.insert_nodes(corpus.nodes).summary())
        for query in QUERIES:
            print(f"\n{query}\n log odds  headline  image")
            for document in index.search(query, top_k=3):
                parts = [document.part(each) for each in ("text", "image")]
                headline, image = ("–" if part is None else f"{part:.1f}" for part in parts)
                print(f"{document.score:9.1f}{headline:>10}{image:>7}  {document.text}")
