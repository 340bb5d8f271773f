"""Small corpora on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

GOOD = {"id": "good", "text": "A good document."}


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), "red").save(path)
    return path


def jsonl(folder: Path, *documents: Any) -> Path:
    path = folder / "docs.jsonl"
    lines = (doc if isinstance(doc, str) else json.dumps(doc) for doc in documents)
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
