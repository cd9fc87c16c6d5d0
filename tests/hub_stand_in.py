"""A model hub on this machine: the part of the protocol that downloads use, over a folder of repositories.

GET and HEAD of `/OWNER/NAME/resolve/REVISION/FILE` with ETag and commit headers and byte ranges; model info, revision
and tree under `/api/models`; private, gated and missing repositories with the hub's status and error codes.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_StandInTokenThatMayReadEverything"
STRANGER = "hf_TokenOfSomebodyWithoutAnyAccess"


class Hub:
    """A running stand-in. root: OWNER/NAME folders. gated: repositories whose terms only TOKEN has accepted.

    downloads: how often each file's content was sent, by "OWNER/NAME/FILE". requests: all paths. broken: a status
    that every request is answered with. tokens: Authorization headers that came.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        self.downloads: Counter[str] = Counter()
        self.requests: list[str] = []
        self.tokens: set[str] = set()
        self.broken: int | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def repo(self, name: str) -> Path:
        """The folder of a repository, made if need be."""
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def close(self) -> None:
        """Nobody answers any more."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:  # paths-info
        names = json.loads(self.rfile.read(int(self.headers["Content-Length"]))).get("paths", [])
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self._json([e for e in _tree(self.hub.root / "/".join(parts[2:4])) if e["path"] in names])

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token:
            self.hub.tokens.add(token)
        if self.hub.broken:
            self._send(self.hub.broken, b"", {}, body)
            return
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repo = "/".join(parts[2:4] if api else parts[:2])
        folder = self.hub.root / repo
        if not folder.is_dir():
            self._send(404 if token else 401, b"", {"X-Error-Code": "RepoNotFound"}, body)
        elif api:
            self._api(repo, folder, parts[4:])
        elif repo in self.hub.gated and token != TOKEN:
            message = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {repo} is restricted"}
            self._send(403 if token else 401, b"", message, body)
        elif not (folder / "/".join(parts[4:])).is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(404, b"", headers, body)
        else:
            self._file(f"{repo}/{'/'.join(parts[4:])}", folder / "/".join(parts[4:]), body)

    def _api(self, repo: str, folder: Path, rest: list[str]) -> None:
        if rest[:1] == ["tree"]:
            self._json(_tree(folder, "/".join(rest[2:])))
            return
        siblings = [{"rfilename": entry["path"]} for entry in _tree(folder)]
        gated = "manual" if repo in self.hub.gated else False
        self._json({"id": repo, "sha": COMMIT, "private": False, "gated": gated, "tags": [], "siblings": siblings})

    def _file(self, name: str, path: Path, body: bool) -> None:
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        status, wanted = 200, self.headers.get("Range")
        if wanted:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            stop = int(end) + 1 if end else len(content)
            headers["Content-Range"] = f"bytes {begin}-{min(stop, len(content)) - 1}/{len(content)}"
            content, status = content[int(begin) : stop], 206
        if body:
            self.hub.downloads[name] += 1
        self._send(status, content, headers, body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, True)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _tree(folder: Path, below: str = "") -> list[dict[str, Any]]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [str(p.relative_to(folder)) for p in files]
    return [
        {"type": "file", "path": name, "size": file.stat().st_size, "oid": hashlib.sha1(name.encode()).hexdigest()}
        for name, file in zip(names, files, strict=True)
        if name.startswith(below)
    ]


@contextmanager
def stand_in(root: Path) -> Iterator[Hub]:
    """A hub over `root`, until the end of the block."""
    hub = Hub(root)
    try:
        yield hub
    finally:
        hub.close()
