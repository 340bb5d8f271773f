"""Runs a reranking service in a separate process, with any scorer's folder, that can misbehave.

    python rerank_server.py FOLDER

It prints its address. ``/v1/rerank`` accepts requests like Jina's API and like vLLM, and
``/keyed/v1/rerank`` requires the key ``KEY``. ``/KIND/TIMES/NAME/v1/rerank`` misbehaves TIMES
times, then answers; NAME separates the counts of different tests. GET ``/`` lists the requests.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

KEY = "jina_0123456789abcdef"
HANGS_S = 60.0

Results: TypeAlias = list[dict[str, Any]]
MALFORMED: dict[str, Callable[[Results], Any]] = {
    "not-json": lambda _: b"<html>busy</html>",
    "no-results": lambda fine: {"data": fine},
    "results-no-objects": lambda fine: {"results": [0.5 for _ in fine]},
    "one-missing": lambda fine: {"results": fine[1:]},
    "one-twice": lambda fine: {"results": [*fine[1:], fine[1]]},
    "one-too-many": lambda fine: {"results": [*fine, {**fine[-1], "index": len(fine)}]},
    "index-a-text": lambda fine: {"results": [{**fine[0], "index": "0"}, *fine[1:]]},
    "no-score": lambda fine: {"results": [{"index": 0}, *fine[1:]]},
    "score-a-text": lambda fine: with_score(fine, "0.5"),
    "score-true": lambda fine: with_score(fine, True),
    "score-nan": lambda fine: with_score(fine, math.nan),
    "score-too-large": lambda fine: with_score(fine, 10**400),
}


def with_score(fine: Results, score: Any) -> dict[str, Results]:
    return {"results": [{**fine[0], "relevance_score": score}, *fine[1:]]}


def load(folder: str) -> Any:
    from llama_index_gap.models import LoadingSettings, load_scorer

    return load_scorer(folder, LoadingSettings(device="cpu", dtype="float32"))


def as_item(sent: Any) -> Any:
    """A query or document in Jina's form or in vLLM's."""
    from llama_index_gap.images.opening import open_image
    from llama_index_gap.models import Joint

    if isinstance(sent, str):
        return sent
    if "content" in sent:
        parts = {part["type"]: part[part["type"]] for part in sent["content"]}
        sent = {"text": parts.get("text"), "image": parts.get("image_url", {}).get("url")}
    text = sent.get("text")
    if sent.get("image") is None:
        return text
    assert sent["image"].startswith("data:image/jpeg;base64,")
    image = open_image(sent["image"])
    return image if text is None else Joint(text, image)


class Handler(BaseHTTPRequestHandler):
    scorer: Future[Any]
    seen: list[Any] = []
    counts: Counter[str] = Counter()

    def do_GET(self) -> None:
        self.answer(200, self.seen)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, **body})
        kind, *rest = self.path.strip("/").split("/")
        self.counts[self.path] += 1
        if kind == "keyed":
            given = self.headers.get("Authorization")
            if given != f"Bearer {KEY}":
                self.answer(401, {"detail": f"no such key: {given}"})
                return
        elif kind != "v1" and self.counts[self.path] <= int(rest[0]):
            self.misbehave(kind, len(body["documents"]))
            return
        self.answer(200, {"model": body["model"], "results": self.results(body)})

    def results(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        scorer = self.scorer.result()
        scores = scorer.score(as_item(body["query"]), [as_item(each) for each in body["documents"]])
        results = [
            {"index": index, "relevance_score": float(score)} for index, score in enumerate(scores)
        ]
        return sorted(results, key=lambda result: -result["relevance_score"])[: body["top_n"]]

    def misbehave(self, kind: str, count: int) -> None:
        if kind == "hang":
            time.sleep(HANGS_S)
        elif kind == "drop":
            self.close_connection = True
        elif kind == "redirect":
            self.answer(307, None, {"Location": "http://elsewhere.example/v1/rerank"})
        elif kind in MALFORMED:
            fine = [{"index": index, "relevance_score": 0.5} for index in range(count)]
            self.answer(200, MALFORMED[kind](fine))
        else:  # such as "500", "429-after-1", or "429-at-1", which sends a date
            status, _, wait = kind.partition("-")
            how, _, seconds = wait.partition("-")
            moment = datetime.now(UTC) + timedelta(seconds=int(seconds or 0))
            said = seconds if how == "after" else format_datetime(moment, usegmt=True)
            self.answer(int(status), {"detail": "not now"}, {"Retry-After": said} if wait else {})

    def answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    with ThreadPoolExecutor(1) as pool, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.scorer = pool.submit(load, sys.argv[1])
        print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 (for its parent)
        server.serve_forever()
