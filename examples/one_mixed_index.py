"""Put texts and pictures into one ordinary LlamaIndex index, and see what an aligner changes."""

import tempfile
from pathlib import Path

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import ImageNode

from llama_index_gap import DualEncoderEmbedding, aligner_from_nodes, read_corpus
from llama_index_gap.demo.corpus import write_demo_corpus
from llama_index_gap.demo.tiny import make_tiny_clip


def pictures_among_the_first_ten(embedding: DualEncoderEmbedding) -> int:
    # The embedding gives pictures their vectors; by itself the index would embed their captions.
    index = VectorStoreIndex(embedding(corpus.nodes), embed_model=embedding)
    hits = index.as_retriever(similarity_top_k=10).retrieve("a ship in the harbour")
    return sum(isinstance(hit.node, ImageNode) for hit in hits)


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_demo_corpus(Path(folder) / "corpus"))
    print(corpus.summary())

    # Yours: "openai/clip-vit-base-patch32", or a folder. This one has random weights, so *which*
    # pictures it finds says nothing; whether it finds any is a matter of the gap.
    model = make_tiny_clip(Path(folder) / "model")
    plain = DualEncoderEmbedding(model_name=str(model))

    # Learns from pictures and their captions. These are eleven; a few hundred are good.
    aligner = aligner_from_nodes(corpus.nodes, plain)
    path = aligner.save(Path(folder) / "aligner.safetensors")
    aligned = DualEncoderEmbedding(model_name=str(model), aligner=path)

    print(f"pictures among the first ten, as they are: {pictures_among_the_first_ten(plain)}")
    print(f"pictures among the first ten, aligned:     {pictures_among_the_first_ten(aligned)}")
