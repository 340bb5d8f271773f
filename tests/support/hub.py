"""An imitation of the model hub on loopback, with repositories in memory.

It answers the requests of ``huggingface_hub``'s downloads with the hub's status codes and headers,
and counts the fetched bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

_STORED_APART = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".gguf", ".pt")


def commit(text: str) -> str:
    """The name of a commit; a text that already is one stays unchanged."""
    named = re.fullmatch(r"[0-9a-f]{40}", text)
    return text if named else hashlib.sha1(text.encode()).hexdigest()


@dataclass
class Repository:
    """A repository on the imitated hub.

    Attributes:
        revisions: the files of each branch, tag or commit; ``main`` is the newest.
        gated: whether its files need granted access.
        refuses: a status that answers all its requests, such as 429.
        kind: ``models``, ``datasets`` or ``spaces``.
    """

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False
    refuses: int | None = None
    kind: str = "models"

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a revision."""
        for name, files in self.revisions.items():
            if revision in {name, commit(name)}:
                return commit(name), files
        return None


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, in a repository's form."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Hub:
    """The imitated hub.

    Attributes:
        repositories: the repositories, by name.
        fetched: bytes sent of each file, by repository and path.
        questions: all requests, as method and path.
        breaks_after: close a connection after so many bytes of a file, once.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    fetched: dict[tuple[str, str], int] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)
    breaks_after: int | None = None
    url: str = ""

    def names(self, repo: str) -> set[str]:
        """The files of a repository that were fetched."""
        return {path for of, path in self.fetched if of == repo}

    def bytes_of(self, repo: str) -> int:
        """The number of bytes sent from a repository."""
        return sum(count for (of, _), count in self.fetched.items() if of == repo)

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        """Serve on loopback while the block runs."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def use(hub: Hub, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let this process use the imitation, without a login, with an empty cache."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        patch.delenv(name, raising=False)


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """The same for a separate process."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "no-token"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Log nothing to stderr."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.questions.append(f"{self.command} {path}")
            if asked := re.fullmatch(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(/.*)?", path):
                self._api(asked[1], asked[2], asked[3] or "")
            elif asked := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", path):
                self._send_file(asked[1], asked[2], asked[3], body=body, apart=True)
            elif asked := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
                self._send_file(asked[1], asked[2], asked[3], body=body, apart=False)
            else:
                self._refuse(404, "EntryNotFound", "Not found")

        def _found(self, repo: str, kind: str) -> Repository | None:
            repository = hub.repositories.get(repo)
            if repository is None or repository.kind != kind:
                # Like the hub without a login, which does not reveal private repositories.
                if self.headers.get("authorization"):
                    self._refuse(404, "RepoNotFound", "Repository not found")
                else:
                    # The client needs the code, since it otherwise checks for an https address.
                    self._refuse(401, "RepoNotFound", "Invalid username or password.")
                return None
            if repository.refuses is not None:
                limits = {"RateLimit": '"api";r=0;t=57'} if repository.refuses == 429 else {}
                self._refuse(repository.refuses, "", "Not now", limits)
                return None
            return repository

        def _api(self, kind: str, repo: str, rest: str) -> None:
            repository = self._found(repo, kind)
            if repository is None:
                return
            if rest == "/refs":
                branches = [
                    {"name": each, "ref": f"refs/heads/{each}", "targetCommit": commit(each)}
                    for each in repository.revisions
                    if not re.fullmatch(r"[0-9a-f]{40}|refs/.*", each)
                ]
                self._send_json({"branches": branches, "tags": [], "converts": []})
                return
            asked = re.fullmatch(r"(/revision/(?P<of>.+)|/tree/(?P<tree>.+))?", rest)
            if asked is None:
                self._refuse(404, "EntryNotFound", "Not found")
                return
            found = repository.at(asked["of"] or asked["tree"] or "main")
            if found is None:
                self._refuse(404, "RevisionNotFound", "Invalid rev id")
                return
            sha, files = found
            if asked["tree"]:
                self._send_json(
                    [{"type": "file", "path": name, **_about(files[name])} for name in files]
                )
                return
            siblings = [{"rfilename": name, "size": len(files[name])} for name in files]
            self._send_json(
                {
                    "id": repo,
                    "modelId": repo,
                    "sha": sha,
                    "private": False,
                    "gated": "manual" if repository.gated else False,
                    "tags": [],
                    "siblings": siblings,
                }
            )

        def _send_file(
            self, repo: str, revision: str, name: str, *, body: bool, apart: bool
        ) -> None:
            repository = self._found(repo, "models")
            if repository is None:
                return
            if repository.gated:
                known = self.headers.get("authorization")
                self._refuse(
                    403 if known else 401, "GatedRepo", f"Access to model {repo} is restricted."
                )
                return
            found = repository.at(revision)
            if found is None:
                self._refuse(404, "RevisionNotFound", "Invalid rev id")
                return
            sha, files = found
            if name not in files:
                self._refuse(404, "EntryNotFound", "Entry not found")
                return
            content = files[name]
            headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            if name.endswith(_STORED_APART) and not apart:
                linked = f'"{hashlib.sha256(content).hexdigest()}"'
                headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": linked}
                headers["Location"] = f"{hub.url}/cdn/{repo}/{sha}/{name}"
                self._send(302, b"", headers)
                return
            start = 0
            if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")):
                start = int(wanted[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            rest = content[start:]
            if not body:
                self._send(200, b"", {**headers, "Content-Length": str(len(rest))})
                return
            if hub.breaks_after is not None and len(rest) > hub.breaks_after:
                sent, hub.breaks_after = rest[: hub.breaks_after], None
                self._count(repo, name, len(sent))
                self._send(200, sent, {**headers, "Content-Length": str(len(rest))})
                self.close_connection = True
                return
            self._count(repo, name, len(rest))
            self._send(206 if start else 200, rest, headers)

        def _count(self, repo: str, name: str, size: int) -> None:
            hub.fetched[repo, name] = hub.fetched.get((repo, name), 0) + size

        def _refuse(
            self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
        ) -> None:
            told = {"X-Error-Code": code} if code else {}
            self._send(status, b"", {**told, "X-Error-Message": message, **(headers or {})})

        def _send_json(self, content: Any) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    return Handler


def _about(content: bytes) -> dict[str, Any]:
    return {"oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
