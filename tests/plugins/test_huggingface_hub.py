"""The reader `huggingface` on hub datasets, from a server that answers as the hub does to the library Datasets."""

import json
import os
import subprocess
import sys
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.hub import Answer, commit_of, oid, serve
from tests.plugins.test_polars_hub import REPOSITORIES, TOKEN

SCRIPT = """
import json, sys
from dumbo.errors import DumboError
from dumbo.plugins.huggingface.plugin import HuggingfaceOptions, HuggingfacePlugin
for options in json.loads(sys.argv[1]):
    wants_rows = not options.pop("fingerprint", False)
    try:
        plugin, options = HuggingfacePlugin(), HuggingfaceOptions(**options)
        rows = list(plugin.read(options)) if wants_rows else []
        answer = [row.values["n"] for row in rows]
        print(json.dumps(answer if wants_rows else plugin.fingerprint(options)))
    except DumboError as error:
        print(json.dumps(str(error)))
"""
ENTRIES = {
    "plain": {"path": "owner/plain"},
    "test split": {"path": "owner/plain", "split": "test"},
    "part": {"path": "owner/plain", "split": "train[1:]"},
    "revision": {"path": "owner/plain", "revision": "v1"},
    "streaming": {"path": "owner/plain", "streaming": True},
    "file": {"path": "owner/plain", "data_files": "data/test-*"},
    "subset of the card": {"path": "owner/card"},
    "fingerprint": {"path": "owner/plain", "fingerprint": True},
    "fingerprint again": {"path": "owner/plain", "fingerprint": True, "streaming": True},
    "fingerprint of another revision": {"path": "owner/plain", "revision": "v1", "fingerprint": True},
    "fingerprint of another part": {"path": "owner/plain", "split": "train[1:]", "fingerprint": True},
    "fingerprint of a missing one": {"path": "owner/nope", "fingerprint": True},
    "no revision": {"path": "owner/plain", "revision": "v9"},
    "no subset": {"path": "owner/card", "name": "lagre"},
    "no split": {"path": "owner/card", "split": "dve"},
    "script": {"path": "owner/script"},
    "broken": {"path": "owner/broken"},
    "missing": {"path": "owner/nope"},
    "gated": {"path": "refused/gated"},
    "private": {"path": "refused/private"},
}


class Listing(Answer):
    """Answers also what Datasets asks of a repository: its folders, and single paths in it."""

    def do_GET(self) -> None:
        """List a folder; all else as before."""
        parts = self.parts()
        if parts[:2] != ["api", "datasets"]:
            return super().do_GET() if parts[0] != "api" else self.reply(404, {})
        name, what, revision = "/".join(parts[2:4]), *[*parts[4:6], "revision", "main"][:2]
        if what != "tree":
            return self.answer("datasets", name, what, revision)
        self.server.requests.append(self.path)
        query = parse_qs(urlsplit(self.path).query)
        return self.list_folder(self.files(name, revision), "/".join(parts[6:]), query.get("recursive") == ["True"])

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Describe the paths that are asked for."""
        parts, body = self.parts(), self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        files = self.files("/".join(parts[2:4]), parts[5])
        found = [entry(files, path) for path in asked if path in files or folders(files, path)]
        self.command = "GET"  # an answer with a body
        self.reply(200, {}, json.dumps(found).encode())

    def parts(self) -> list[str]:
        """The parts of the address."""
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def files(self, name: str, revision: str) -> dict[str, bytes]:
        """The files of a branch or commit; nothing where there is none."""
        known = self.server.revisions("datasets", name)
        return next((known[branch] for branch in known if revision in (branch, commit_of(name, branch))), {})

    def list_folder(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
        """What is in a folder, or that there is no such thing."""
        start = f"{folder}/" if folder else ""
        inside = [path for path in files if path.startswith(start)]
        if not inside:
            return self.reply(404, {"X-Error-Code": "EntryNotFound"})
        below = {start + "/".join(p.removeprefix(start).split("/")[:n]) for p in inside for n in range(1, 9)}
        shown = [path for path in sorted(below) if recursive or "/" not in path.removeprefix(start)]
        return self.reply(200, {}, json.dumps([entry(files, path) for path in shown]).encode())


def folders(files: dict[str, bytes], path: str) -> bool:
    """Whether `path` is a folder."""
    return any(name.startswith(f"{path}/") for name in files)


def entry(files: dict[str, bytes], path: str) -> dict:
    """How the hub describes a path."""
    if path not in files:
        return {"type": "directory", "path": path, "oid": "0"}
    return {"type": "file", "path": path, "size": len(files[path]), "oid": oid(files[path])}


def read(endpoint, folder, entries, **environment):
    """What each of the entries yields: numbers, or the text of an error."""
    private = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1"}
    plain = {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "HF_TOKEN": TOKEN}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([*entries])],
        env={**os.environ, **private, **plain, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing is printed but what was asked for"
    assert TOKEN not in done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What all entries give, and what three of them give without network afterwards."""
    folder = tmp_path_factory.mktemp("datasets")
    with serve(datasets=REPOSITORIES) as hub:
        hub.RequestHandlerClass = Listing
        online = read(hub.address, folder, ENTRIES.values())
        address = hub.address
    names = ("plain", "fingerprint", "missing")
    offline = read(address, folder, [ENTRIES[name] for name in names], HF_HUB_OFFLINE="1")
    return dict(zip(ENTRIES, online, strict=True)) | {
        f"{name} offline": outcome for name, outcome in zip(names, offline, strict=True)
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", [1, 2, 3]),
        ("test split", [9]),
        ("part", [2, 3]),
        ("revision", [11]),
        ("streaming", [1, 2, 3]),
        ("file", [9]),
        ("subset of the card", [1]),
        ("plain offline", [1, 2, 3]),
    ],
)
def test_rows_of_the_hub(outcomes, name, expected):
    assert outcomes[name] == expected


def test_fingerprints_follow_the_commit_and_the_part(outcomes):
    known = outcomes["fingerprint"]
    assert known == outcomes["fingerprint again"] == outcomes["fingerprint offline"]
    others = [outcomes[f"fingerprint of another {what}"] for what in ("revision", "part")]
    assert len({known, *others}) == 3
    assert outcomes["fingerprint of a missing one"].startswith("there is no dataset 'owner/nope'")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no revision", "dataset 'owner/plain' has no revision 'v9'\n"),
        ("no subset", ".name: 'owner/card' has no subset 'lagre'\n    did you mean 'large'?\n    it has small, large"),
        ("no split", ".split: 'owner/card' has no split 'dve'\n    did you mean 'dev'?\n    it has train, dev"),
        ("script", ".path: 'owner/script' is made by a Python script, and such datasets are not run\n"),
        ("broken", "owner/broken: the rows do not make a table: "),
        ("missing", "there is no dataset 'owner/nope' on http://127.0.0.1"),
        ("gated", "dataset 'refused/gated' is gated, and your token has no access to it\n"),
        ("private", "there is no dataset 'refused/private' on http://127.0.0.1"),
        ("missing offline", "dataset 'owner/nope' is not (wholly) in the cache "),
    ],
)
def test_what_the_hub_refuses_is_explained(outcomes, name, message):
    assert str(outcomes[name]).startswith(message)
