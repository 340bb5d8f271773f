"""Search texts with one model and images with another, in vectors of different lengths."""

import tempfile

from llama_index.core.base.embeddings.base import BaseEmbedding
from sklearn.feature_extraction.text import HashingVectorizer

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom


class WordCounts(BaseEmbedding):
    """Use any LlamaIndex text embedding instead. This one counts words and needs no weights."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return HashingVectorizer(n_features=1024).transform([text]).toarray()[0].tolist()

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


with tempfile.TemporaryDirectory() as folder:
    corpus = read_corpus(write_newsroom(f"{folder}/newsroom", articles=200))
    texts = WordCounts(model_name="word counts")
    images = DualEncoderEmbedding(model_name=CHECKPOINT)  # trained only on such newsrooms
    with DualIndex(f"{folder}/gap.db", embed_model=texts, image_embed_model=images) as index:
        print(index.insert_nodes(corpus.nodes).summary())
        print(f"{len(texts.get_text_embedding('a'))} and {images.dimension} dimensions")

        # Each leg embeds a text query with its own model.
        query = "ward staff in Ambleforth this Monday, with a crimson windmill at the coast"
        print(f"\n{query}\n log odds  words  image")
        for document in index.search(query, top_k=3):
            parts = [document.part(each) for each in ("text", "image")]
            words, image = ("–" if part is None else f"{part:.1f}" for part in parts)
            print(f"{document.score:9.1f}{words:>7}{image:>7}  {document.text}")
