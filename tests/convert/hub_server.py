"""A server on loopback with the endpoints of the Hugging Face hub that downloading a repository uses, and ways for them to fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """One repository and how its server answers.

    Attributes:
        files: content by name.
        refuse: status and error code of every answer, for example (403, "GatedRepo"); "" for no code.
        listed: whether a repository that refuses its files still lists them, as gated ones do.
        token: the token that requests must carry.
        cut_after: bytes of the weights after which the connection ends, in the first `cuts` downloads.
        requests: "METHOD path" of every request, with the range.
    """

    repository: str
    files: dict[str, bytes]
    refuse: tuple[int, str] | None = None
    listed: bool = False
    token: str | None = None
    cut_after: int | None = None
    cuts: int = 0
    requests: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve on a free port of the loopback while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            span = self.headers.get("Range", "")
            hub.requests.append(f"{self.command} {self.path} {span}".strip())
            path = self.path.split("?")[0]
            allowed = hub.token is None or self.headers.get("Authorization") == f"Bearer {hub.token}"
            if hub.refuse is not None and not (hub.listed and path.startswith("/api/")):
                self._refuse(*hub.refuse)
            elif not allowed:
                self._refuse(401, "RepoNotFound")
            elif path.startswith(f"/api/models/{hub.repository}/tree/"):
                listing = [{"type": "file", "oid": _etag(c), "size": len(c), "path": name} for name, c in hub.files.items()]
                self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(f"/api/models/{hub.repository}"):
                siblings = [{"rfilename": name, "size": len(c)} for name, c in hub.files.items()]
                description = {
                    "_id": "1",
                    "id": hub.repository,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                }
                self._send(200, json.dumps(description).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(f"/{hub.repository}/resolve/") and (name := Path(path).name) in hub.files:
                self._send_file(name, span, body)
            else:
                self._refuse(404, "EntryNotFound")

        def _refuse(self, status: int, code: str) -> None:
            self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": "refused by the test"} if code else {}, True)

        def _send_file(self, name: str, span: str, body: bool) -> None:
            content = hub.files[name]
            first = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
            headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if span:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            cut = None
            if body and name.endswith(".safetensors") and hub.cut_after is not None and hub.cuts > 0:
                hub.cuts -= 1
                cut = hub.cut_after
            self._send(206 if span else 200, content[first:], headers, body, cut)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
