"""A Hub of one's own on the loopback: enough of the Hugging Face Hub's HTTP to load from."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

Repositories = dict[str, dict[str, Path]]
"""Repository id → branch, tag or commit → folder."""


_REVISION = "(refs/convert/parquet|[^/]+)"  # the only one with slashes that the tests ask for


class Hub:
    """Serve folders as repositories while in a ``with`` block.

    The ids of data sets begin with ``datasets/``. `statuses` are what the Hub says, whatever it is
    asked of a repository, or of one of its files. Of `cut` repositories each file breaks off
    half-way the first time. `tokens` are those that private repositories ask for.
    """

    def __init__(
        self,
        repositories: Repositories,
        *,
        gated: tuple[str, ...] = (),
        statuses: dict[str, int] | None = None,
        cut: tuple[str, ...] = (),
        tokens: dict[str, str] | None = None,
    ) -> None:
        hub = self
        self.repositories, self.gated = repositories, gated
        self.statuses, self.cut = statuses or {}, cut
        self.tokens = tokens or {}
        self.broken_off: set[str] = set()
        self.requests: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                wanted = self.headers.get("Range", "")
                hub.requests.append(f"{self.command} {self.path} {wanted}".rstrip())
                path = unquote(self.path.partition("?")[0])
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, body = hub.answer(path, sent)
                for name, token in hub.tokens.items():
                    if (
                        f"/{name}/" in f"{path}/"
                        and self.headers["Authorization"] != f"Bearer {token}"
                    ):
                        status, headers, body = _refusal(401, "RepoNotFound")
                size = len(body)
                if status == 200 and (part := re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)):
                    start, stop = int(part[1]), int(part[2] or size - 1) + 1
                    status, body = 206, body[start:stop]
                    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                cut = size > 20_000 and any(f"/{name}/" in path for name in hub.cut)
                if cut and path not in hub.broken_off:
                    hub.broken_off.add(path)
                    self.wfile.write(body[: size // 2])
                    self.close_connection = True
                    return
                self.wfile.write(body)

            do_HEAD = do_POST = do_GET

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

    def answer(self, path: str, sent: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Give status, headers and body for a path and what was sent to it."""
        for repository, status in self.statuses.items():
            if f"/{repository}/" in f"{path}/":
                return _refusal(status, "" if status != 401 else "RepoNotFound")
        if match := re.fullmatch(
            r"/((?:datasets/)?[^/]+/[^/]+)/resolve/" + _REVISION + r"/(.+)", path
        ):
            return self._file(*match.groups())
        what = r"(?:/(tree|revision|paths-info)/" + _REVISION + ".*)?"
        if match := re.fullmatch(rf"/api/(?:models/|(?=datasets/))(.*?/?[^/]+/[^/]+?){what}", path):
            return self._listing(*match.groups(), sent)
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
        self, repository: str, what: str | None, revision: str | None, sent: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        revision = revision or "main"
        folder = self._folder(repository, revision)
        files = {"config.json": 2, "README.md": 2}  # of a gated one the listing can be seen
        if isinstance(folder, Path):
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
        elif folder != "GatedRepo":
            return _refusal(404, folder)
        is_commit = re.fullmatch("[0-9a-f]{40}", revision)
        answer: Any = {
            "id": repository,
            "modelId": repository,
            "sha": revision if is_commit else commit(repository, revision),
            "siblings": [{"rfilename": name} for name in files],
            "tags": ["transformers"],
            "private": False,
            "gated": False,
        }
        if what in ("tree", "paths-info"):
            wanted = parse_qs(sent.decode()).get("paths") if sent[:1] != b"{" else None
            wanted = wanted or (json.loads(sent)["paths"] if sent[:1] == b"{" else None)
            answer = [
                {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                for name, size in files.items()
            ]
            folders = {str(each) for name in files for each in PurePosixPath(name).parents} - {"."}
            answer += [
                {"type": "directory", "path": each, "oid": "0" * 40} for each in sorted(folders)
            ]
            answer = [each for each in answer if wanted is None or each["path"] in wanted]
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def commit(repository: str, revision: str) -> str:
    """Give the commit that a branch or tag stands at."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def _refusal(status: int, code: str, at: str = "") -> tuple[int, dict[str, str], bytes]:
    headers = {"X-Error-Code": code, "X-Error-Message": code}
    return status, {**headers, **({"X-Repo-Commit": at} if at else {})}, b""
