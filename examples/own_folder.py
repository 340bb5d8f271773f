"""Search your own folder of images, or of Markdown with images. A second run adds only changes.

python examples/own_folder.py path/to/folder --model siglip2 --query "a red boat by the sea"
"""

import argparse
from pathlib import Path

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, make_articles


def make_folder(folder: Path) -> None:
    folder.mkdir(parents=True)
    for article in make_articles(60, "test", seed=0):
        article.image().save(folder / f"{article.id}.png")
        text = f"{article.headline}\n\n![]({article.id}.png)\n"
        (folder / f"{article.id}.md").write_text(text, encoding="utf-8")


parser = argparse.ArgumentParser()
parser.add_argument("folder", nargs="?", type=Path, default=Path("gap-demo/own-folder"))
parser.add_argument("--model", default=CHECKPOINT, help="the default knows only made-up newsrooms")
parser.add_argument("--query", default="seniors in Keldon next year, a red tent by the sea")
asked = parser.parse_args()
if asked.folder == parser.get_default("folder") and not asked.folder.exists():
    make_folder(asked.folder)

corpus = read_corpus(asked.folder)
print(corpus.summary())
model = DualEncoderEmbedding(model_name=asked.model)
with DualIndex(f"{asked.folder}.db", embed_model=model) as index:
    print(index.refresh_ref_docs(corpus.nodes).summary())
    for document in index.search(asked.query, top_k=5):
        print(f"{document.score:6.1f}  {document.key}  {document.text}")
