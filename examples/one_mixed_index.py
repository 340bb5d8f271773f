"""Put texts and images into one ordinary LlamaIndex index, and see the effect of an aligner."""

import tempfile
from random import Random

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import ImageNode, TextNode

from llama_index_gap import DualEncoderEmbedding, aligner_from_nodes
from llama_index_gap.demo.newsroom import CHECKPOINT, Article, make_articles, make_query


def in_words(article: Article) -> TextNode:
    return TextNode(text=make_query(article, "image", Random(article.id)).text)


def as_image(article: Article) -> ImageNode:
    article.image().save(path := f"{folder}/{article.id}.png")
    return ImageNode(image_path=path, text=in_words(article).text)


def search(embedding: DualEncoderEmbedding) -> str:
    # The embedding embeds the images; the index alone would embed only their captions.
    index = VectorStoreIndex(embedding(corpus), embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=10)
    hits = [hit for node in corpus[:40] for hit in retriever.retrieve(node.text)]
    return f"{sum(isinstance(hit.node, ImageNode) for hit in hits) / len(hits):.0%}"


with tempfile.TemporaryDirectory() as folder:
    test, captioned = make_articles(400, "test", 0), make_articles(200, "development", 0)
    corpus = [*map(as_image, test[::2]), *map(in_words, test[1::2])]
    plain = DualEncoderEmbedding(model_name=CHECKPOINT)  # trained only on such images
    path = aligner_from_nodes([*map(as_image, captioned)], plain).save(f"{folder}/aligner")
    aligned = DualEncoderEmbedding(model_name=CHECKPOINT, aligner=path)
    print("Half of all nodes are images. Images among the top ten for descriptions of images:")
    print(f"not aligned  {search(plain)}\naligned      {search(aligned)}")
