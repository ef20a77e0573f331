"""A small HTTP server with the hub's protocol: downloads with ETag and Range, revisions, file lists."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

REPO = "team/voice"
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^/?]+)")


@dataclass
class Hub:
    """The content of the server, and the requests that it got.

    Args:
        revisions: commit by name. commits: files by commit. refusals: status and error code by repository.
        cut: by file, the lengths after which its next bodies break off, one for each body.
        asked: method, path and Range of each request. url: the server's address.
    """

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    url: str = ""

    def commit(self, files: dict[str, bytes], name: str = "main") -> str:
        """Add a commit and point a revision at it."""
        digest = hashlib.sha1(b"".join(key.encode() + value for key, value in files.items())).hexdigest()
        self.commits[digest], self.revisions[name] = files, digest
        return digest

    def got(self) -> list[str]:
        """Names of the files whose bodies were requested."""
        return [
            path.split("/", 5)[5] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path
        ]


class Handler(BaseHTTPRequestHandler):
    """Answers requests from the content of `hub`."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = urlsplit(self.path).path
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        found = RESOLVE.fullmatch(path) or API.fullmatch(path)
        if found is None:
            return self.refuse(404, "RepoNotFound")
        if found["repo"] in self.hub.refusals:
            return self.refuse(*self.hub.refusals[found["repo"]])
        if found["repo"] != REPO:
            return self.refuse(404, "RepoNotFound")
        commit = self.hub.revisions.get(found["revision"], found["revision"])
        if commit not in self.hub.commits:
            return self.refuse(404, "RevisionNotFound")
        files, values = self.hub.commits[commit], found.groupdict()
        if values.get("what"):
            return self.send(json.dumps(listing(values["what"], commit, files)).encode(), {}, 200, body)
        if values["file"] not in files:
            return self.refuse(404, "EntryNotFound", commit)
        self.send_file(values["file"], files[values["file"]], commit, body)

    def send_file(self, name: str, data: bytes, commit: str, body: bool) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        cuts = self.hub.cut.get(name) if body else None
        if start is None:
            return self.send(data, headers, 200, body, cuts.pop(0) if cuts else None)
        first = int(start[1])
        headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self.send(data[first:], headers, 206, body, cuts.pop(0) if cuts else None)

    def send(
        self, data: bytes, headers: dict[str, str], status: int, body: bool, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        self.close_connection = cut is not None

    def refuse(self, status: int, code: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": code} | (
            {"X-Repo-Commit": commit} if commit else {}
        )
        self.send(b"", {name: value for name, value in headers.items() if value}, status, False)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def listing(what: str, commit: str, files: dict[str, bytes]) -> Any:
    """The JSON of a revision, or of its file list."""
    if what == "revision":
        return {"id": REPO, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    return [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a server on a free port until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
