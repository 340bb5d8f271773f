"""Read a folder with LlamaIndex's SimpleDirectoryReader, and search its texts and images.

Without a reader for images, it decodes them as text. Ids must be stable, or each run adds all
documents again. They are made from paths, so always pass the folder's path in the same form.
"""

import tempfile
from pathlib import Path

from llama_index.core import SimpleDirectoryReader

from llama_index_gap import DualEncoderEmbedding, DualIndex
from llama_index_gap.demo.newsroom import CHECKPOINT, make_articles
from llama_index_gap.readers.image_files import ImageFileReader

with tempfile.TemporaryDirectory() as folder:
    for article in make_articles(40, "test", seed=0):
        Path(folder, f"{article.id}.txt").write_text(article.headline, encoding="utf-8")
        article.image().save(Path(folder, f"{article.id}.png"))

    reader = SimpleDirectoryReader(
        folder,
        filename_as_id=True,
        file_extractor=ImageFileReader.by_suffix(),
        file_metadata=lambda path: {"file_name": Path(path).name},  # else paths are embedded too
    )
    embedding = DualEncoderEmbedding(model_name=CHECKPOINT)
    for run in ("first", "second"):
        with DualIndex.from_documents(
            reader.load_data(), f"{folder}.db", embed_model=embedding
        ) as index:
            print(f"{run} run: {index.report.summary()}")
            for document in index.search(
                "a yellow lighthouse, a white tent, desert, sunset", top_k=3
            ):
                print(f"{document.score:6.1f}  {Path(document.key).name}")
