"""Find documents by text and by picture, then let a reranker read each with the question."""

import tempfile
from pathlib import Path

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank, read_corpus
from llama_index_gap.demo.corpus import write_demo_corpus
from llama_index_gap.demo.tiny import make_tiny_clip

# Yours: "jina-m0", any cross-encoder of the hub, or a folder. This one has random weights.
RERANKER = Path(__file__).parents[1] / "tests" / "fixtures" / "parity" / "jina_m0_tiny"
QUERY = "a ship in the harbour"

with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_demo_corpus(Path(folder) / "corpus"))
    # Yours: "openai/clip-vit-base-patch32", or a folder. This one has random weights, too.
    embedding = DualEncoderEmbedding(model_name=make_tiny_clip(Path(folder) / "model"))
    reranker = MultiModalRerank(model=RERANKER, top_n=3, score_mode="mean")

    with DualIndex(f"{folder}/gap.db", embed_model=embedding) as index:
        index.insert_nodes(corpus.nodes)
        # complete: each document comes with its text and its picture, whichever found it.
        found = index.as_retriever(complete=True).retrieve(QUERY)
        best = reranker.postprocess_nodes(found, query_str=QUERY)

print("score   text  picture  document")
for hit in {hit.node.ref_doc_id: hit for hit in best}.values():
    text, picture = (hit.scores.get(f"rerank_{side}", float("nan")) for side in ("text", "image"))
    print(f"{hit.score:5.2f}  {text:5.2f}    {picture:5.2f}  {hit.node.metadata['title']}")
