"""The reader `huggingface_polars` on hub datasets, downloaded over HTTP from a server that answers as the hub does."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import polars
import pytest

from dumbo.plugins.polars.data_files import SourceMistake
from dumbo.plugins.polars.hub_layout import choose_files
from tests.hub import serve

TOKEN = "hf_thisIsASecretOfTheUser"
SCRIPT = """
import json, sys
from dumbo.errors import DumboError
from dumbo.plugins.polars.plugin import PolarsOptions, PolarsPlugin
for options in json.loads(sys.argv[1]):
    wants_rows = not options.pop("fingerprint", False)
    try:
        plugin, options = PolarsPlugin(), PolarsOptions(**options)
        rows = list(plugin.read(options)) if wants_rows else []
        answer = [[str(row.origin.source), row.origin.row, row.values] for row in rows]
        print(json.dumps(answer if wants_rows else plugin.fingerprint(options)))
    except DumboError as error:
        print(json.dumps(str(error)))
"""


def parquet(*numbers: int) -> bytes:
    buffer = io.BytesIO()
    polars.DataFrame({"n": numbers}).write_parquet(buffer)
    return buffer.getvalue()


CARD = b"""---
license: mit
configs:
- config_name: small
  default: true
  data_files:
  - split: train
    path: small/train-*
  - split: dev
    path: small/dev.jsonl
- config_name: large
  data_files:
  - split: train
    path: large/**/*.parquet
---
# Numbers
"""
REPOSITORIES = {
    "owner/plain": {
        "main": {
            ".gitattributes": b"",
            "README.md": b"# A card without a head",
            "data/train-00000-of-00002.parquet": parquet(1, 2),
            "data/train-00001-of-00002.parquet": parquet(3),
            "data/test-00000-of-00001.parquet": parquet(9),
            "dataset_infos.json": b"{}",
        },
        "v1": {".gitattributes": b"", "train.jsonl": b'{"n": 11}\n'},
    },
    "owner/card": {
        "main": {
            ".gitattributes": b"",
            "README.md": CARD,
            "small/train-1.jsonl": b'{"n": 1}\n',
            "small/dev.jsonl": b'{"n": 2}\n',
            "large/a/b/0.parquet": parquet(3),
        }
    },
    "owner/script": {
        "main": {".gitattributes": b"", "script.py": b"print()"},
        "refs/convert/parquet": {
            ".gitattributes": b"",
            "en/train/0000.parquet": parquet(1),
            "fr/train/0000.parquet": parquet(2),
            "fr/validation/0000.parquet": parquet(3),
        },
    },
    "owner/pictures": {"main": {".gitattributes": b"", "cat.png": b"\x89PNG"}},
    "owner/broken": {"main": {".gitattributes": b"", "train.jsonl": b'{"n": 1}\n{"n": \n'}},
}


def read_from_hub(endpoint: str, folder: Path, *entries: dict, **environment: str) -> list:
    """What the entries yield, each as a list of [source, row, values] or as the text of an error."""
    private = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1"}
    plain = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(entries)],
        env={**os.environ, **private, **plain, "HF_TOKEN": TOKEN, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def values(outcome: list) -> list[int]:
    assert isinstance(outcome, list), outcome
    return [row["n"] for _, _, row in outcome]


@pytest.fixture(scope="module")
def endpoint():
    with serve(datasets=REPOSITORIES) as hub:
        yield hub.address


def test_splits_subsets_and_revisions_are_downloaded(endpoint, tmp_path):
    outcomes = read_from_hub(
        endpoint,
        tmp_path,
        {"path": "owner/plain"},
        {"path": "owner/plain", "split": "test"},
        {"path": "owner/plain", "revision": "v1"},
        {"path": "owner/card"},
        {"path": "owner/card", "split": "dev"},
        {"path": "owner/card", "name": "large"},
        {"path": "owner/script", "name": "fr"},
        {"path": "owner/script", "name": "fr", "split": "validation"},
        {"path": "hf://datasets/owner/plain"},
        {"path": "hf://datasets/owner/plain/data/test-00000-of-00001.parquet"},
        {"path": "hf://datasets/owner/plain/data/*.parquet", "split": "[1:]"},
        {"path": "hf://datasets/owner/plain@v1/train.jsonl"},
        {"path": "hf://datasets/owner/script@refs/convert/parquet/fr"},
        {"path": ["owner/plain", "hf://datasets/owner/plain/data"], "split": "train[:-1]+test"},
    )
    first = "owner/plain/data/train-0000{}-of-00002.parquet"
    assert outcomes[0] == [
        [first.format(0), 1, {"n": 1}],
        [first.format(0), 2, {"n": 2}],
        [first.format(1), 1, {"n": 3}],
    ]
    assert [values(outcome) for outcome in outcomes[1:]] == [
        *([9], [11], [1], [2], [3], [2], [3]),
        *([1, 2, 3], [9], [1, 2, 3], [11], [2]),
        [1, 2, 3, 1, 2, 9, 9],
    ]


def test_what_was_downloaded_is_read_without_network(tmp_path):
    entries = [{"path": "owner/plain"}, {"path": "owner/script", "name": "fr"}]
    missing = [{"path": "owner/plain", "split": "test"}, {"path": "owner/card"}]
    with serve(datasets=REPOSITORIES) as hub:
        address, downloaded = hub.address, read_from_hub(hub.address, tmp_path, *entries)
    offline = read_from_hub(address, tmp_path, *entries, *missing, HF_HUB_OFFLINE="1")
    assert offline[:2] == downloaded
    assert offline[2:] == [
        f"dataset '{name}' is not (wholly) in the cache {tmp_path}/hub/hub, and HF_HUB_OFFLINE is set\n"
        "    unset HF_HUB_OFFLINE, or give the path of a local copy"
        for name in ("owner/plain", "owner/card")
    ]
    unreachable = read_from_hub(address, tmp_path, *entries, {"path": "owner/card"})
    assert unreachable[:2] == downloaded
    assert unreachable[2] == (
        f"{address} cannot be reached (Connection refused), "
        f"and dataset 'owner/card' is not (wholly) in the cache {tmp_path}/hub/hub\n"
        "    check the network, HTTPS_PROXY and HF_ENDPOINT, or give the path of a local copy"
    )


def test_fingerprints_follow_the_commit_and_what_is_read_of_it(tmp_path):
    wanted = [
        {"path": "owner/plain"},
        {"path": "owner/plain", "split": "test"},
        {"path": "owner/plain", "split": "[:2]"},
        {"path": "owner/plain", "revision": "v1"},
        {"path": "hf://datasets/owner/plain/data/train-00000-of-00002.parquet"},
    ]
    entries = [{"fingerprint": True} | entry for entry in wanted]
    with serve(datasets=REPOSITORIES) as hub:
        known = read_from_hub(hub.address, tmp_path, *entries)
    assert len(set(known)) == len(entries)
    assert read_from_hub(hub.address, tmp_path, *entries, HF_HUB_OFFLINE="1") == known


def test_what_does_not_exist_is_explained_with_what_does(endpoint, tmp_path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "nothing.jsonl").write_text("{}")
    outcomes = read_from_hub(
        endpoint,
        tmp_path,
        {"path": "owner/nothing"},
        {"path": "owner/plain", "revision": "v2"},
        {"path": "owner/plain", "split": "validation"},
        {"path": "owner/plain", "name": "large"},
        {"path": "owner/plain", "format": "csv"},
        {"path": "owner/plain", "field": "data"},
        {"path": "owner/card", "name": "huge"},
        {"path": "owner/card", "name": "large", "split": "test"},
        {"path": "owner/script"},
        {"path": "owner/pictures"},
        {"path": "owner/broken"},
    )
    suffixes = "    known suffixes: .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .ipc, .feather, .txt, .md"
    assert outcomes == [
        f"there is no dataset 'owner/nothing' on {endpoint}, or it is private\n"
        "    check the spelling\n"
        "    if it is private: your token may not be allowed to see it\n"
        f"    there is no file or folder 'owner/nothing' in {tmp_path} either\n"
        "    did you mean 'owner/nothing.jsonl'?",
        "dataset 'owner/plain' has no revision 'v2'\n"
        f"    'revision' is a branch, a tag or a commit; see {endpoint}/datasets/owner/plain/tree/main",
        "dataset 'owner/plain' has no split 'validation'\n    splits: test, train",
        "dataset 'owner/plain' has no subset 'large'\n    its folders: data",
        f"dataset 'owner/plain' has no files of format csv\n{suffixes}",
        "only files of format json have it; owner/plain/data/train-00000-of-00002.parquet is parquet",
        "dataset 'owner/card' has no subset 'huge'\n    subsets: large, small",
        "dataset 'owner/card', subset 'large', has no split 'test'\n    splits: train",
        "dataset 'owner/script' has several subsets and no default\n    subsets: en, fr\n"
        "    choose one with `name: SUBSET`",
        f"dataset 'owner/pictures' has no data files\n{suffixes}",
        "owner/broken/train.jsonl:2:6: not valid JSON: expecting value",
    ]


def test_refusals_are_explained(endpoint, tmp_path):
    missing = f"there is no dataset 'refused/private' on {endpoint}, or it is private\n    check the spelling\n"
    nor_here = f"    there is no file or folder 'refused/private' in {tmp_path} either"
    accept = f"    accept its conditions at {endpoint}/datasets/refused/gated\n"
    expected = {
        "gated": f"dataset 'refused/gated' is gated, and your token has no access to it\n{accept}"
        "    a fine-grained token must allow reading gated repositories",
        "private": f"{missing}    if it is private: your token may not be allowed to see it\n{nor_here}",
        "locked": f"{endpoint} does not accept your token for dataset 'refused/locked' (HTTP 401)\n"
        "    make a new one at https://huggingface.co/settings/tokens, then log in with 'hf auth login'\n"
        "    a token in HF_TOKEN goes before the one of the login",
        "disabled": "dataset 'refused/disabled' was disabled by its owner or by the hub\n"
        f"    see {endpoint}/datasets/refused/disabled",
        "forbidden": f"{endpoint} refuses your token access to dataset 'refused/forbidden' (HTTP 403)\n"
        "    check what your token is allowed to read",
        "busy": f"{endpoint} answers no more requests for now (dataset 'refused/busy', HTTP 429)\n"
        "    wait a few minutes",
        "down": f"{endpoint} cannot give dataset 'refused/down' (HTTP 503)\n"
        "    try again later, or give the path of a local copy",
    }
    outcomes = read_from_hub(endpoint, tmp_path, *({"path": f"refused/{name}"} for name in expected))
    assert dict(zip(expected, outcomes, strict=True)) == expected
    log_in = "log in with 'hf auth login', or set HF_TOKEN"
    expected = {
        "gated": f"dataset 'refused/gated' is gated, and no token is set\n{accept}    then {log_in}",
        "private": f"{missing}    if it is private: {log_in}\n{nor_here}",
        "locked": f"{endpoint} refuses access to dataset 'refused/locked' (HTTP 401), and no token is set\n"
        f"    {log_in}",
        "forbidden": f"{endpoint} refuses access to dataset 'refused/forbidden' (HTTP 403), and no token is set\n"
        f"    {log_in}",
        "busy": f"{endpoint} answers no more requests for now (dataset 'refused/busy', HTTP 429)\n"
        f"    wait a few minutes\n    {log_in}",
    }
    outcomes = read_from_hub(endpoint, tmp_path, *({"path": f"refused/{name}"} for name in expected), HF_TOKEN="")
    assert dict(zip(expected, outcomes, strict=True)) == expected


def card(*lines: str) -> str:
    return "\n".join(("---", "configs:", *lines, "---", ""))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["- config_name: default", "  data_files: '*.csv'"], ["a.csv", "b.csv"]),
        (["- config_name: default", "  data_files: ['b.csv', 'x/**']"], ["b.csv", "x/y/c.csv"]),
        (["- config_name: default", "  data_files: {train: [a.csv], test: b.csv}"], ["a.csv"]),
        (["- config_name: default", "  data_files: {train: '[!a].csv'}"], ["b.csv"]),
        (["- config_name: one", "  data_dir: x"], ["x/y/c.csv"]),
        (["- config_name: one", "  data_dir: ./x/", "  data_files: '*/?.csv'"], ["x/y/c.csv"]),
        (["- [broken"], ["a.csv", "b.csv", "x/y/c.csv"]),
    ],
)
def test_ways_of_declaring_files_in_a_card(lines, expected):
    files = ["README.md", "a.csv", "b.csv", "x/y/c.csv"]
    assert choose_files(files, card(*lines), None, "", "auto", "it") == expected


def test_subset_that_no_card_declares_is_a_folder():
    files = ["en/train.csv", "en/test.csv", "fr/train.csv"]
    assert choose_files(files, "", "fr", "", "auto", "it") == ["fr/train.csv"]
    with pytest.raises(SourceMistake, match="it has no subset 'de'"):
        choose_files(files, "", "de", "", "auto", "it")
