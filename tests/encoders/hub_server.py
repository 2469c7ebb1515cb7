"""A small server of the hub's protocol on loopback: what huggingface_hub asks when it downloads one file.

HEAD /REPO/resolve/REVISION/FILE tells the commit, the ETag and the size, and for large files redirects to a storage
host (here: the same server under the name localhost, so another host to the client); GET, with Range, gives bytes.
"""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

COMMIT = "c0ffee" + "0" * 34


@dataclass
class HubServer:
    """Serves `files` ("REPO/FILE" -> bytes) until the end of its with block.

    Attributes:
        etags: "REPO/FILE" -> what to call it instead of its SHA-256.
        gated: repositories that want their terms accepted.
        cut_after: bytes after which a GET loses its connection; taken back after `cuts` times.
        stall_after: bytes after which a GET says nothing more.
        requests: (method, path, headers) of everything asked so far.
    """

    files: dict[str, bytes]
    etags: dict[str, str] = field(default_factory=dict)
    gated: frozenset[str] = frozenset()
    cut_after: int | None = None
    cuts: int = 1
    stall_after: int | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self
        self.closing = threading.Event()

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def gets(self) -> list[str | None]:
        """The Range of every GET of a stored file so far, None for a whole file."""
        return [headers.get("range") for _, path, headers in self.requests if path.startswith("/storage/")]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._note()
        self._serve(body=False)

    def do_GET(self) -> None:
        self._note()
        self._serve(body=True)

    def _note(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, self.path, headers))

    def _serve(self, body: bool) -> None:
        if stored := re.fullmatch(r"/storage/(.+)", self.path):
            self._give(self.hub.files[stored[1]], {}, body)
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not found or not any(name.startswith(f"{found[1]}/") for name in self.hub.files):
            self._refuse(401, "RepoNotFound")
            return
        repo, revision, file = found.groups()
        name = f"{repo}/{file}"
        if repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif name not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        elif file.endswith(".json"):
            data = self.hub.files[name]
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()  # noqa: S324
            self._give(data, {"X-Repo-Commit": COMMIT, "ETag": f'"{git}"'}, body)
        else:
            data = self.hub.files[name]
            etag = self.hub.etags.get(name, hashlib.sha256(data).hexdigest())
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.hub.port}/storage/{name}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-ETag", f'"{etag}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _give(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self.send_response(206 if asked else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self._send(data[start:])

    def _send(self, data: bytes) -> None:
        hub = self.hub
        if hub.cut_after is not None and hub.cuts > 0:
            hub.cuts -= 1
            self.wfile.write(data[: hub.cut_after])
            self.close_connection = True
        elif hub.stall_after is not None:
            self.wfile.write(data[: hub.stall_after])
            self.wfile.flush()
            hub.closing.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{code} for this test")
        self.send_header("Content-Length", "0")
        self.end_headers()
