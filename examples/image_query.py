"""Search by an image, by an image with text, and with another image model."""

import tempfile

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.drawing import Scene, draw
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom
from llama_index_gap.demo.tiny import make_tiny_dinov2


def search(index: DualIndex, text: str = "") -> None:
    print(f"\nthe image{' and: ' if text else ' alone'}{text}")
    for document in index.search(text, f"{folder}/asked.png", top_k=3):
        print(f"{document.score:6.1f}  {document.text}")


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(f"{folder}/newsroom", articles=200))
    scene = Scene(("purple", "car"), ("red", "tent"), "right", "meadow", "night")
    draw(scene, "drawn anew").save(f"{folder}/asked.png")  # yours: a photo

    model = DualEncoderEmbedding(model_name=CHECKPOINT)  # trained only on such newsrooms
    with DualIndex(f"{folder}/gap.db", embed_model=model) as index:
        index.insert_nodes(corpus.nodes)
        search(index)  # searches only the images
        search(index, "lawyers next year")  # a headline says this, and its image is similar

    # Yours: "dinov2", which is made for comparing images. This one has random weights.
    dinov2 = DualEncoderEmbedding(model_name=make_tiny_dinov2(f"{folder}/dinov2"))
    with DualIndex(f"{folder}/gap.db", image_query_embed_model=dinov2) as index:
        print(f"\n{index.insert_nodes(corpus.nodes).summary()}")
        search(index)
