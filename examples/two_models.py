"""Search texts with one model and images with another, in vectors of different lengths."""

import tempfile

from llama_index.core.base.embeddings.base import BaseEmbedding
from sklearn.feature_extraction.text import HashingVectorizer

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom


class WordCounts(BaseEmbedding):
    """Yours: any text embedding of LlamaIndex. This one counts words, so it needs no weights."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return HashingVectorizer(n_features=1024).transform([text]).toarray()[0].tolist()

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(f"{folder}/newsroom", articles=200))
    texts = WordCounts(model_name="word counts")
    images = DualEncoderEmbedding(model_name=CHECKPOINT)  # trained on such newsrooms only
    with DualIndex(f"{folder}/gap.db", embed_model=texts, image_embed_model=images) as index:
        print(index.insert_nodes(corpus.nodes).summary())
        print(f"{len(texts.get_text_embedding('a'))} and {images.dimension} dimensions")

        # A query asks each side by its own model; an image would ask the images only.
        query = "firefighters in Wrenfield, pictured with a white motor car in wet weather"
        print(f"\n{query}\n evidence = words + image")
        for hit in index.as_retriever(top_k=3, complete=True).retrieve(query):
            if hit.node.text:  # else it is the same article's image
                words, image = (hit.scores.get(f"{s}_evidence", 0) for s in ("text", "image"))
                print(f"{hit.score:9.1f}{words:8.1f}{image:10.1f}  {hit.node.text}")
