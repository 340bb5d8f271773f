"""Find articles by headline and by image, then rerank them with a cross-encoder."""

import tempfile
from pathlib import Path

from llama_index_gap import DualEncoderEmbedding, DualIndex, MultiModalRerank, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, RERANKER, write_newsroom

QUERY = "chess, Ambleforth, with a picture of a crimson windmill at the coast"

# Yours: "jina" and "jina-m0", or two other models by name or folder. These two are tiny, and know
# only made-up newsrooms.
embedding = DualEncoderEmbedding(model_name=CHECKPOINT)
reranker = MultiModalRerank(model=RERANKER, score_mode="mean")  # mean of text and image score

with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(Path(folder) / "newsroom", articles=200))
    with DualIndex(f"{folder}/gap.db", embed_model=embedding) as index:
        index.insert_nodes(corpus.nodes)
        best = index.search(QUERY, top_k=3, reranker=reranker)

print("score   text  image  headline")
for document in best:
    text, image = document.part("text"), document.part("image")
    print(f"{document.score:5.2f}  {text:5.2f}  {image:5.2f}  {document.text}")
