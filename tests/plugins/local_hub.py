"""A hub on this machine: the few addresses of the Hugging Face hub that a download asks for, and its ways to refuse."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves folders as model repositories by name, and refuses names in `refusals` with (status, headers)."""

    daemon_threads = True

    def __init__(self, models: Mapping[str, Path], refusals: Mapping[str, tuple[int, dict[str, str]]]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.models, self.refusals, self.requests = models, refusals, []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self):
        """Send what is asked for."""
        self.server.requests.append(self.path)
        parts = urlsplit(self.path).path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
        if name in self.server.refusals and not (name.endswith("-gated") and api):
            return self.reply(*self.server.refusals[name])
        if name not in self.server.models:
            return self.reply(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return self.reply(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id: none"})
        folder = self.server.models[name]
        return self.describe(name, folder, rest) if api else self.send_file(folder / "/".join(rest[2:]))

    do_HEAD = do_GET

    def describe(self, name, folder, rest):
        """The commit of a repository, or its files."""
        if rest[:1] == ["tree"]:
            files = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": oid(f)} for f in folder.iterdir()
            ]
            return self.reply(200, {}, json.dumps(files).encode())
        return self.reply(200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())

    def send_file(self, file):
        """A file's bytes, or that there is none."""
        if not file.is_file():
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        return self.reply(200, {"ETag": f'"{oid(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes())

    def reply(self, status, headers, body=b""):
        """Send an answer; to HEAD without its body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words):
        """Keep the tests' output clean."""


def oid(file: Path) -> str:
    """A name for the file's contents."""
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve(
    models: Mapping[str, Path], refusals: Mapping[str, tuple[int, dict[str, str]]] | None = None
) -> Iterator[Hub]:
    """Run a hub until the block ends."""
    with Hub(models, refusals or {}) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
