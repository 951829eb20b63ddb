"""Parts of splits, and several paths, with the reader `huggingface_polars`: the same rows from every format."""

import json
import os
from pathlib import Path

import polars
import pytest
from pydantic import ValidationError

from dumbo.data.slices import parse_split
from dumbo.errors import ConfigError, DumboError
from dumbo.plugins.polars.plugin import PolarsPlugin
from tests.plugins.polars_dataset import Entry, check, read

NUM_ROWS = 37


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The numbers from 0 to 36 in files of every format, in three files of different formats, and in splits."""
    folder = tmp_path_factory.mktemp("slices")
    frame = polars.DataFrame({"text": [str(n) for n in range(NUM_ROWS)]})
    rows = frame.to_dicts()
    frame.write_parquet(folder / "n.parquet", row_group_size=5)
    frame.write_ipc(folder / "n.arrow")
    frame.write_ipc_stream(folder / "stream.arrow")
    frame.write_csv(folder / "n.csv")
    frame.write_csv(folder / "n.tsv", separator="\t")
    (folder / "n.json").write_text(json.dumps(rows))
    (folder / "n.jsonl").write_text("".join(f"\n{json.dumps(row)}\n" for row in rows))
    (folder / "n.txt").write_text("".join(f"\n{row['text']}\n" for row in rows))
    (folder / "parts").mkdir()
    for index, cut in enumerate([(0, 10), (10, 11), (11, NUM_ROWS)]):
        (folder / "parts" / f"{index}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[slice(*cut)]))
    (folder / "splits").mkdir()
    for split, cut in {"train": slice(0, 30), "test": slice(30, None)}.items():
        (folder / "splits" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[cut]))
    return folder


@pytest.fixture(autouse=True)
def in_folder(files, monkeypatch):
    monkeypatch.chdir(files)


def numbers(path, split, **options):
    options |= {"rows": "line"} if path == "n.txt" else {}
    rows = PolarsPlugin().read(Entry(path=path, split=split, **options))
    return [int(row.values["text"]) for row in rows]


PATHS = ["n.parquet", "n.arrow", "stream.arrow", "n.csv", "n.tsv", "n.json", "n.jsonl", "n.txt", "parts"]
SPLITS = ["[:10]", "[10:]", "[5:30]", "[-5:]", "[:-30]", "[-12:-3]", "[10%:20%]", "[-5%:]", "[:1000]", "[36:37]"]


@pytest.mark.parametrize("path", [*PATHS, ["parts/0.jsonl", "parts/[12].jsonl"], "parts/*.jsonl"], ids=str)
def test_slices_of_every_format(path):
    for split in SPLITS:
        [part] = parse_split(split)
        assert numbers(path, split) == list(range(*part.bounds(NUM_ROWS)))


def test_parts_are_read_in_their_order():
    assert numbers("n.jsonl", "[-2:]+[:2]+train[:1]") == [35, 36, 0, 1, 0]
    assert numbers("splits", "test[:2]+train[-1:]") == [30, 31, 29]
    assert numbers("splits", "test") == list(range(30, 37))
    assert numbers("splits", "[:2]") == [0, 1]
    assert numbers(["splits", "n.csv"], "train[29:32]") == [29, 0, 1]


def test_row_numbers_stay_those_of_the_file():
    origins = [(row.origin.source, row.origin.row) for row in read("parts", split="[9:12]")]
    assert origins == [("parts/0.jsonl", 10), ("parts/1.jsonl", 1), ("parts/2.jsonl", 1)]
    assert [row.origin.row for row in read("n.jsonl", split="[-2:]")] == [72, 74]
    assert [row.origin.row for row in read("n.parquet", split="[30:32]")] == [31, 32]


def test_lists_of_paths_are_read_in_their_order():
    paths = ["parts/2.jsonl", "n.csv", "parts/[01].jsonl"]
    assert numbers(paths, None) == [*range(11, 37), *range(37), *range(11)]


def test_rows_that_are_skipped_are_not_parsed(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "0"}\nnot json\n{"text": "2"}\nnot json\n')
    assert [row.origin.row for row in PolarsPlugin().read(Entry(path=str(file), split="[2:3]"))] == [3]


def test_files_behind_the_slice_are_not_opened(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "0"}\n')
    (tmp_path / "b.jsonl").write_text("")
    assert numbers(str(tmp_path / "*.jsonl"), "[:1]") == [0]


@pytest.mark.parametrize(
    ("path", "split", "message"),
    [
        ("n.jsonl", "[37:]", ".split: '[37:]' is empty: there are 37 rows in 'n.jsonl'"),
        ("n.parquet", "train[-50:-40]", ".split: 'train[-50:-40]' is empty: there are 37 rows in 'n.parquet'"),
        (
            "parts",
            "[50:60]",
            ".split: '[50:60]' is empty: there are 37 rows in 'parts/0.jsonl' and 2 more files",
        ),
        ("splits", "test[7:]", ".split: 'test[7:]' is empty: there are 7 rows in 'splits/test.jsonl'"),
        ("n.csv", "[:1%]", ".split: '[:1%]' is empty: there are 37 rows in 'n.csv'"),
    ],
)
def test_an_empty_slice_names_the_number_of_rows(path, split, message):
    with pytest.raises(ConfigError) as caught:
        read(path, split=split)
    assert str(caught.value) == message


@pytest.mark.parametrize("path", ["n.jsonl", "splits", "owner/name", "memory://x.jsonl", "hf://datasets/a/b/c.csv"])
def test_a_bad_slice_is_an_error_of_the_check(path):
    with pytest.raises(ConfigError) as caught:
        check(Entry(path=path, split="train[:10%"))
    assert str(caught.value).splitlines() == [
        "datasets.0.split: 'train[:10%' cannot be read: ']' is missing at character 11, where the end is",
        "    write for example train, train[:10%], [100:200] or train[-500:]+test",
    ]


def test_a_slice_without_quotes_is_explained():
    with pytest.raises(ValidationError, match=r"expected a text, got a list: write it in quotes, '\[5:7\]'"):
        Entry(path="n.jsonl", split=["5:7"])


def test_splits_that_are_not_there_are_errors_of_the_check():
    with pytest.raises(ConfigError, match=r"datasets.0.split: folder 'splits' has no split 'dev'"):
        check(Entry(path="splits", split="train[:2]+dev"))
    with pytest.raises(ConfigError, match=r"datasets.0.split: only folders .* 'n.csv' has none"):
        check(Entry(path="n.csv", split="test[:5]"))
    check(Entry(path="n.csv", split="train"))


def test_each_path_of_a_list_is_checked():
    with pytest.raises(ConfigError, match=r"datasets.0.path: no such file or folder: 'm.csv'"):
        check(Entry(path=["n.csv", "m.csv"]))
    with pytest.raises(DumboError, match="m.csv"):
        read(["n.csv", "m.csv"])


def test_fingerprints_follow_the_rows(tmp_path):
    rows = Path("n.jsonl").read_text()
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text(rows)
    second.write_text(rows)

    def fingerprint(path, **options):
        return PolarsPlugin().fingerprint(Entry(path=path, **options))

    known = fingerprint(str(first))
    assert known == fingerprint(str(first)) == fingerprint(str(second)) == fingerprint(f"file://{first}")
    others = [
        fingerprint([str(first), str(second)]),
        fingerprint(str(first), split="[:5]"),
        fingerprint(str(first), split="[:5%]"),
        fingerprint(str(first), format="text"),
        fingerprint(str(first), format="text", rows="line"),
        fingerprint("n.json"),
        fingerprint("n.json", field="rows"),
        fingerprint("splits", split="train"),
        fingerprint("splits", split="test"),
    ]
    assert len({known, *others}) == len(others) + 1
    times = second.stat()
    second.write_text(rows.replace("36", "37"))
    os.utime(second, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(str(second)) not in {known, *others}
    with pytest.raises(DumboError):
        fingerprint(str(tmp_path / "none.jsonl"))
