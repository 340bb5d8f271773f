"""Search by an image, by an image and words together, and by another model of images."""

import tempfile

from llama_index.core.schema import QueryBundle

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.drawing import Scene, draw
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom
from llama_index_gap.demo.tiny import make_tiny_dinov2


def search(index: DualIndex, text: str, **settings: int) -> None:
    print(f"\nthe image{' and: ' if text else ' alone'}{text}")
    query = QueryBundle(text, image_path=f"{folder}/asked.png")
    hits = index.as_retriever(top_k=3, **settings).retrieve(query)
    for article, hit in {hit.node.ref_doc_id: hit for hit in hits}.items():
        print(f"{hit.score:6.1f}  {headlines[article]}")


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(f"{folder}/newsroom", articles=200))
    headlines = {node.ref_doc_id: node.text for node in corpus.text_nodes}
    scene = Scene(("purple", "car"), ("red", "tent"), "right", "meadow", "night")
    draw(scene, "drawn anew").save(f"{folder}/asked.png")  # yours: a photograph

    model = DualEncoderEmbedding(model_name=CHECKPOINT)  # trained on such newsrooms only
    with DualIndex(f"{folder}/gap.db", embed_model=model) as index:
        index.insert_nodes(corpus.nodes)
        search(index, "", similarity_top_k=0)  # no headline says what an image shows
        search(index, "farmers next year")  # a headline says so, beside an image like it

    # Yours: "dinov2", which was made to compare images. This one has random weights.
    dinov2 = DualEncoderEmbedding(model_name=make_tiny_dinov2(f"{folder}/dinov2"))
    with DualIndex(f"{folder}/gap.db", image_query_embed_model=dinov2) as index:
        print(f"\n{index.insert_nodes(corpus.nodes).summary()}")
        search(index, "", similarity_top_k=0)
