"""Other filesystems with the reader `huggingface_polars`: in memory, and over HTTP from a server of the test's own."""

import gzip
import io
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import polars
import pytest

from dumbo.errors import ConfigError, DataError, RunError
from dumbo.plugins.polars.addresses import shown_address
from dumbo.plugins.polars.plugin import PolarsPlugin
from tests.plugins.polars_dataset import Entry, check, read, read_values

SECRET = "s3cretWord"


@pytest.fixture
def memory():
    """A filesystem in memory, empty before and after."""
    filesystem = fsspec.filesystem("memory")
    filesystem.rm("/", recursive=True) if filesystem.ls("/") else None
    yield filesystem
    filesystem.rm("/", recursive=True) if filesystem.ls("/") else None


def parquet(*numbers: int) -> bytes:
    buffer = io.BytesIO()
    polars.DataFrame({"n": numbers}).write_parquet(buffer)
    return buffer.getvalue()


def numbers(path, **options):
    return [row.values["n"] for row in read(path, **options)]


def test_files_patterns_and_folders(memory):
    memory.pipe("/data/train-1.jsonl", b'{"n": 1}\n{"n": 2}\n')
    memory.pipe("/data/train-2.jsonl.gz", gzip.compress(b'{"n": 3}\n'))
    memory.pipe("/data/test.jsonl", b'{"n": 9}\n')
    memory.pipe("/table.parquet", parquet(4, 5))
    memory.pipe("/array.json", b'[{"n": 6},\n {"n": 7}]')
    assert numbers("memory://data/train-1.jsonl") == [1, 2]
    assert numbers("memory://data/*.jsonl") == [9, 1, 2]
    assert numbers("memory://data") == [1, 2, 3]
    assert numbers("memory://data", split="train[-1:]+test") == [3, 9]
    assert numbers("memory://table.parquet", split="[1:]") == [5]
    assert numbers(["memory://table.parquet", "memory://array.json"]) == [4, 5, 6, 7]
    rows = read("memory://data", split="train[1:]")
    assert [(row.origin.source, row.origin.row) for row in rows] == [
        ("memory://data/train-1.jsonl", 2),
        ("memory://data/train-2.jsonl.gz", 1),
    ]
    [row, _] = read("memory:///table.parquet")
    assert (row.origin.source, row.origin.row) == ("memory:///table.parquet", 1)


def test_an_address_of_this_machine_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n')
    assert [row.origin.source for row in read(f"file://{tmp_path}/rows.jsonl")] == ["rows.jsonl"]
    with pytest.raises(ConfigError, match="no such file or folder: 'file:///nowhere/rows.jsonl'"):
        check(Entry(path="file:///nowhere/rows.jsonl"))


def test_rows_come_before_the_file_is_read_to_its_end(memory):
    memory.pipe("/rows.jsonl", b'{"n": 1}\n{"n": \n')
    rows = PolarsPlugin().read(Entry(path="memory://rows.jsonl"))
    assert next(rows).values == {"n": 1}
    with pytest.raises(DataError, match="^memory://rows.jsonl:2:"):
        next(rows)


def test_what_is_not_there_is_named(memory):
    memory.pipe("/data/train.jsonl", b"{}\n")
    for path, options, message in [
        ("memory://none.jsonl", {}, "there is no file or folder 'memory://none.jsonl'"),
        ("memory://*.csv", {}, "no file matches 'memory://*.csv'"),
        ("memory://data", {"split": "test"}, "folder 'memory://data' has no split 'test'\n    splits: train"),
        ("memory://data", {"format": "csv"}, "folder 'memory://data' has no files of format csv"),
        ("memory://data/train.jsonl", {"split": "test"}, "only folders and datasets on the hub have splits;"),
    ]:
        with pytest.raises(RunError) as caught:
            read(path, **options)
        assert str(caught.value).startswith(message)


def checked(path, **options):
    with pytest.raises(ConfigError) as caught:
        check(Entry(path=path, **options))
    return str(caught.value).splitlines()


def test_protocols_are_checked_without_network():
    usual = "    usual ones: s3://, gs://, az://, https://, sftp://, hf://datasets/"
    assert checked(f"htps://ada:{SECRET}@host/rows.jsonl") == [
        "datasets.0.path: 'htps://host/rows.jsonl' begins with no known protocol",
        "    did you mean 'https://'?",
        usual,
    ]
    assert checked("qqqqqq://rows.jsonl") == [
        "datasets.0.path: 'qqqqqq://rows.jsonl' begins with no known protocol",
        usual,
    ]
    assert checked("zip://a.jsonl::https://host/x.zip")[0].endswith(
        "is an address within an address, which is not read"
    )
    assert checked("memory://rows.jsonl", revision="main") == [
        "datasets.0.revision: only datasets on the hub have a revision; 'memory://rows.jsonl' is no dataset on the hub"
    ]
    assert checked("hf://owner/name/file.csv") == [
        "datasets.0.path: 'hf://owner/name/file.csv' names no dataset on the hub",
        "    write hf://datasets/OWNER/NAME/FILE, or OWNER/NAME for the whole dataset",
    ]
    assert checked("hf://datasets/owner/name@v1/file.csv", revision="v2")[0] == (
        "datasets.0.revision: 'hf://datasets/owner/name@v1/file.csv' names a revision already"
    )
    check(Entry(path=["memory://rows.jsonl", "https://host/rows.jsonl", "hf://datasets/owner/name/*.csv"]))


@pytest.mark.parametrize(
    ("protocol", "module", "package"),
    [("s3", "s3fs", "s3fs"), ("gs", "gcsfs", "gcsfs"), ("az", "adlfs", "adlfs"), ("https", "aiohttp", "aiohttp")],
)
def test_a_missing_package_is_named_with_its_command(protocol, module, package):
    script = (
        "import sys\n"
        f"sys.modules['{module}'] = None\n"
        "import importlib.util\n"
        "from dumbo.plugins.polars.addresses import check_address\n"
        "from dumbo.plugins.polars.data_files import SourceMistake\n"
        "try:\n"
        f"    check_address('{protocol}://ada:{SECRET}@bucket/rows.jsonl')\n"
        "except SourceMistake as mistake:\n"
        "    print(mistake.message, *mistake.hints, sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        f"'{protocol}://bucket/rows.jsonl': addresses with {protocol}:// need the package {package}",
        f"pip install {package}",
    ], done.stderr


def test_secrets_are_not_shown():
    assert shown_address(f"https://ada:{SECRET}@host/a?b.jsonl?key={SECRET}#{SECRET}") == "https://host/a"
    assert shown_address(f"s3://key:{SECRET}@bucket/a?.jsonl") == "s3://bucket/a?.jsonl"
    assert shown_address("memory:///a@b.jsonl") == "memory:///a@b.jsonl"


class Files(BaseHTTPRequestHandler):
    """Serves what `server.files` has, with tags, and refuses the rest."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        content, status = self.server.files.get(path, b""), 200 if path in self.server.files else 404
        status = 403 if path == "/secret.jsonl" else status
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if path in self.server.tags:
            self.send_header("ETag", self.server.tags[path])
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.daemon_threads = True
    server.files = {"/rows.jsonl": b'{"n": 1}\n{"n": 2}\n', "/table.parquet": parquet(3, 4)}
    server.tags = {"/rows.jsonl": '"one"'}
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_of_the_web(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    root = f"http://127.0.0.1:{server.server_port}"
    rows = read(f"{root}/rows.jsonl?key={SECRET}")
    assert [(row.origin.source, row.origin.row, row.values["n"]) for row in rows] == [
        (f"{root}/rows.jsonl", 1, 1),
        (f"{root}/rows.jsonl", 2, 2),
    ]
    assert read_values([f"{root}/table.parquet", f"{root}/rows.jsonl"], split="[1:3]") == [{"n": 4}, {"n": 1}]
    with pytest.raises(RunError, match=f"^there is no file or folder '{root}/none.jsonl'$"):
        read(f"{root}/none.jsonl?key={SECRET}")
    with pytest.raises(RunError) as caught:
        read(f"{root}/secret.jsonl?key={SECRET}")
    assert str(caught.value).splitlines()[0] == f"{root}/secret.jsonl: cannot be read: HTTP 403"
    assert SECRET not in str(caught.value)
    with pytest.raises(RunError) as caught:
        read(f"http://ada:{SECRET}@127.0.0.1:1/rows.jsonl")
    assert str(caught.value) == "http://127.0.0.1:1/rows.jsonl: cannot be read: Connection refused"


def test_fingerprints_take_versions_where_there_are_some(server, memory, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def fingerprint(path):
        return PolarsPlugin().fingerprint(Entry(path=path))

    rows = f"http://127.0.0.1:{server.server_port}/rows.jsonl"
    before = fingerprint(rows)
    assert fingerprint(rows) == before
    server.tags["/rows.jsonl"] = '"two"'
    assert fingerprint(rows) != before, "the tag is what counts"
    server.tags["/rows.jsonl"] = 'W/"two"'
    memory.pipe("/rows.jsonl", server.files["/rows.jsonl"])
    assert fingerprint(rows) == fingerprint("memory://rows.jsonl"), "the bytes are what counts"
    memory.pipe("/rows.jsonl", b'{"n": 7}\n')
    assert fingerprint(rows) != fingerprint("memory://rows.jsonl")
