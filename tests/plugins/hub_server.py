"""A server on this machine that answers as the hub does for datasets: information, list of files, files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

Repositories = dict[str, dict[str, dict[str, bytes]]]
"""Content by repository, revision and path."""

REFUSALS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "private": (401, {}),
    "disabled": (403, {"X-Error-Message": "Access to this resource is disabled."}),
    "forbidden": (403, {}),
    "busy": (429, {}),
    "down": (503, {}),
}
"""Status and headers for repositories of the owner `refused`, by name."""


def commit_of(repository: str, revision: str) -> str:
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    repositories: ClassVar[Repositories]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "datasets"]:
            self.answer_api("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self.answer_file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self.refuse(404, {})

    do_HEAD = do_GET

    def answer_api(self, repository: str, rest: list[str]) -> None:
        owner, name = repository.split("/")
        if owner == "refused":
            return self.refuse(*REFUSALS[name])
        if repository not in self.repositories:
            return self.refuse(401, {"X-Error-Code": "RepoNotFound"})
        what, revision = rest if rest else ("revision", "main")
        files = self.files(repository, revision)
        if files is None:
            return self.refuse(404, {"X-Error-Code": "RevisionNotFound"})
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": repository, "sha": commit_of(repository, revision), "siblings": siblings})
        return self.answer(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
        )

    def answer_file(self, repository: str, revision: str, path: str) -> None:
        data = (self.files(repository, revision) or {}).get(path)
        if data is None:
            return self.refuse(404, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha1(data).hexdigest()
        return self.answer(data, {"ETag": f'"{etag}"', "X-Repo-Commit": revision})

    def files(self, repository: str, revision: str) -> dict[str, bytes] | None:
        for name, files in self.repositories[repository].items():
            if revision in (name, commit_of(repository, name)):
                return files
        return None

    def refuse(self, status: int, headers: dict[str, str]) -> None:
        self.answer({"error": "refused"}, headers, status)

    def answer(self, content: object, headers: dict[str, str] | None = None, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def hub_server(repositories: Repositories) -> Iterator[str]:
    """Serve `repositories` and give the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (Handler,), {"repositories": repositories}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
