"""A Hub of one's own on the loopback: enough of the Hugging Face Hub's HTTP to load models from."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Repositories = dict[str, dict[str, Path]]
"""Repository id → branch, tag or commit → folder."""


class Hub:
    """Serve folders as repositories while in a ``with`` block."""

    def __init__(self, repositories: Repositories, *, gated: tuple[str, ...] = ()) -> None:
        hub = self
        self.repositories, self.gated = repositories, gated
        self.requests: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                status, headers, body = hub.answer(self.path.partition("?")[0])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Give status, headers and body for a path."""
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(tree|revision)/([^/]+).*)?", path):
            return self._listing(*match.groups())
        return _refusal(404, "RepoNotFound")

    def _folder(self, repository: str, revision: str) -> Path | str:
        """Give a folder, or the Hub's code for why there is none."""
        if repository in self.gated:
            return "GatedRepo"
        if repository not in self.repositories:
            return "RepoNotFound"
        revisions = self.repositories[repository]
        by_commit = {commit(repository, name): folder for name, folder in revisions.items()}
        return revisions.get(revision) or by_commit.get(revision) or "RevisionNotFound"

    def _file(self, repository: str, revision: str, name: str) -> tuple[int, dict[str, str], bytes]:
        folder = self._folder(repository, revision)
        if isinstance(folder, str):
            return _refusal(403 if folder == "GatedRepo" else 404, folder)
        known = next(name for name, each in self.repositories[repository].items() if each == folder)
        if not (folder / name).is_file():
            return _refusal(404, "EntryNotFound", commit(repository, known))
        body = (folder / name).read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
            "X-Repo-Commit": commit(repository, known),
            "Content-Type": "application/octet-stream",
        }
        return 200, headers, body

    def _listing(
        self, repository: str, what: str | None, revision: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        folder = self._folder(repository, revision or "main")
        if isinstance(folder, str):
            return _refusal(404, folder)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        answer: Any = {
            "id": repository,
            "modelId": repository,
            "sha": commit(repository, revision or "main"),
            "siblings": [{"rfilename": path.name} for path in files],
            "tags": ["transformers"],
            "private": False,
            "gated": False,
        }
        if what == "tree":
            answer = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40}
                for path in files
            ]
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def commit(repository: str, revision: str) -> str:
    """Give the commit that a branch or tag stands at."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def _refusal(status: int, code: str, at: str = "") -> tuple[int, dict[str, str], bytes]:
    headers = {"X-Error-Code": code, "X-Error-Message": code}
    return status, {**headers, **({"X-Repo-Commit": at} if at else {})}, b""
