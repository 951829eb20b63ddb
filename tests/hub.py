"""A hub on this machine: what the Hugging Face hub answers to a download of a model or dataset, and how it refuses."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]
"""Content by path."""
Content = Path | Mapping[str, Files]
"""What a repository holds: files by revision, or a folder, which is what its main branch holds."""


@dataclass(frozen=True)
class Refusal:
    """How the hub says no: to every request for a repository, or to those for its files alone."""

    status: int
    code: str = ""
    message: str = ""
    files_only: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """What the hub's client reads."""
        named = {"X-Error-Code": self.code, "X-Error-Message": self.message}
        return {name: value for name, value in named.items() if value}


REFUSALS = MappingProxyType(
    {
        "refused/gated": Refusal(403, "GatedRepo", "Access to it is restricted", files_only=True),
        "refused/gated-without-login": Refusal(401, "GatedRepo", "Access to it is restricted", files_only=True),
        "refused/private": Refusal(401, "RepoNotFound"),
        "refused/disabled": Refusal(403, message="Access to this resource is disabled."),
        "refused/forbidden": Refusal(403),
        "refused/locked": Refusal(401),
        "refused/bad-token": Refusal(401, message="Invalid credentials in Authorization header"),
        "refused/busy": Refusal(429),
        "refused/broken": Refusal(500),
        "refused/down": Refusal(503),
    }
)
"""Repositories, models and datasets alike, that the hub refuses, each in the way that it is named after."""


def commit_of(name: str, revision: str = "main") -> str:
    """The commit that `revision` of the repository `name` stands for."""
    return hashlib.sha1(f"{name}@{revision}".encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves models and datasets by name; the paths of all `requests` are kept, in their order."""

    daemon_threads = True

    def __init__(self, models: Mapping[str, Content], datasets: Mapping[str, Content]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = {"models": models, "datasets": datasets}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"

    def revisions(self, kind: str, name: str) -> Mapping[str, Files]:
        """The files of every branch and tag; nothing where there is no such repository."""
        if name in REFUSALS:
            return {"main": {".gitattributes": b"", "config.json": b"{}"}}
        content = self.repositories[kind].get(name, {})
        if isinstance(content, Path):
            found = (file for file in sorted(content.rglob("*")) if file.is_file())
            return {"main": {file.relative_to(content).as_posix(): file.read_bytes() for file in found}}
        return content


class Answer(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        """Send what is asked for, or say why not."""
        self.server.requests.append(self.path)
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] == "api":
            _, kind, owner, name, what, revision = [*parts, "revision", "main"][: max(len(parts), 6)]
            return self.answer(kind, f"{owner}/{name}", what, revision)
        kind, owner, name, what, revision, *path = parts if parts[0] == "datasets" else ["models", *parts]
        return self.answer(kind, f"{owner}/{name}", what, revision, "/".join(path))

    def answer(self, kind: str, name: str, what: str, revision: str, path: str = "") -> None:
        """Send what is known of a repository: its `revision`, its `tree`, or the file at `path`; or say why not."""
        revisions, refusal = self.server.revisions(kind, name), REFUSALS.get(name)
        if refusal and (path or not refusal.files_only):
            return self.refuse(refusal)
        if not revisions:
            # Whoever is not logged in could be somebody who may see it.
            return self.refuse(Refusal(404 if "Authorization" in self.headers else 401, "RepoNotFound"))
        branch = next((known for known in revisions if revision in (known, commit_of(name, known))), None)
        if branch is None:
            return self.refuse(Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}"))
        commit, files = commit_of(name, branch), revisions[branch]
        return self.send_file(commit, files, path) if path else self.describe(commit, files, name, what)

    do_HEAD = do_GET

    def describe(self, commit: str, files: Files, name: str, what: str) -> None:
        """The commit of a revision, or its files."""
        if what == "tree":
            listed = [
                {"type": "file", "path": path, "size": len(files[path]), "oid": oid(files[path])} for path in files
            ]
            return self.reply(200, {}, json.dumps(listed).encode())
        answer = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]}
        return self.reply(200, {}, json.dumps(answer).encode())

    def send_file(self, commit: str, files: Files, path: str) -> None:
        """A file's bytes, or that there is none."""
        if path not in files:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        return self.reply(200, {"ETag": f'"{oid(files[path])}"', "X-Repo-Commit": commit}, files[path])

    def refuse(self, refusal: Refusal) -> None:
        """Say no."""
        self.reply(refusal.status, refusal.headers, b'{"error": "refused"}')

    def reply(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Send an answer; to HEAD without its body."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Keep the tests' output clean."""


def oid(content: bytes) -> str:
    """A name for a file's content."""
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(
    models: Mapping[str, Content] = MappingProxyType({}), datasets: Mapping[str, Content] = MappingProxyType({})
) -> Iterator[Hub]:
    """Run a hub until the block ends."""
    with Hub(models, datasets) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
