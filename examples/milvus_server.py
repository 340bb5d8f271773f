"""Keep an index on a Milvus server, so that many programs can search it at once.

python examples/milvus_server.py http://127.0.0.1:19530
"""

import os
import sys
import tempfile

from llama_index_gap import DualEncoderEmbedding, DualIndex, read_corpus
from llama_index_gap.demo.newsroom import CHECKPOINT, write_newsroom

with tempfile.TemporaryDirectory() as folder:
    if len(sys.argv) > 1:
        uri = sys.argv[1]
    else:
        uri = f"{folder}/gap.db"
        print("Without an address, this runs on a Milvus Lite file. To try a small server:")
        print("  milvus-lite server --data-dir milvus --host 127.0.0.1 --port 19530\n")

    corpus = read_corpus(write_newsroom(f"{folder}/newsroom", articles=200))
    settings = {"uri": uri, "name": "gap_example", "token": os.environ.get("MILVUS_TOKEN")}
    model = DualEncoderEmbedding(model_name=CHECKPOINT)  # trained only on such newsrooms
    with DualIndex(embed_model=model, **settings) as index:
        print(index.insert_nodes(corpus.nodes).summary())

    with DualIndex(**settings) as index:  # in any program: the index knows its model
        for document in index.search(
            "election and educators, Birchester in the coming year", top_k=3
        ):
            print(f"{document.score:6.1f}  {document.text}")
        index.clear()
