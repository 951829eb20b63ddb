"""Local paths of the reader `huggingface_polars`: files, folders, globs, and what is said when they are not there."""

import os
import subprocess
import sys
from pathlib import Path

import polars
import pytest

from dumbo.errors import ConfigError, RunError
from dumbo.plugins.polars.local_files import is_hub_dataset
from tests.plugins.polars_dataset import Entry, check, read, read_values

SUFFIXES = ".json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .ipc, .feather, .txt, .md"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str = '{"a": 1}\n') -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(entry: Entry) -> str:
    """What `check` and, without the key, `read` say about `entry`."""
    with pytest.raises(ConfigError) as checked:
        check(entry)
    with pytest.raises(RunError) as at_reading:
        read(**entry.model_dump(exclude_defaults=True, exclude={"type"}))
    message = str(checked.value)
    assert message.partition(": ")[2] == str(at_reading.value)
    return message


def sources(path: str, **options: str) -> list[str]:
    return [row.origin.source for row in read(path, **options)]


def test_files_are_named_from_the_current_directory(tmp_path):
    write("data/train.jsonl")
    for path in ("data/train.jsonl", "./data/train.jsonl", tmp_path / "data/train.jsonl"):
        assert sources(str(path)) == ["data/train.jsonl"]
        check(Entry(path=str(path)))


def test_files_elsewhere_are_named_in_full(tmp_path, monkeypatch):
    path = write("data/train.jsonl").absolute()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert sources(str(path)) == [str(path)]


def test_home_folder_is_understood(tmp_path, monkeypatch):
    write("train.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources("~/train.jsonl") == ["train.jsonl"]


def test_glob_reads_files_in_the_order_of_their_names():
    for name in ("data/b.jsonl", "data/a.jsonl", "data/deep/c.jsonl"):
        write(name)
    assert sources("data/*.jsonl") == ["data/a.jsonl", "data/b.jsonl"]
    assert sources("data/**/*.jsonl") == ["data/a.jsonl", "data/b.jsonl", "data/deep/c.jsonl"]


def test_file_whose_name_looks_like_a_glob():
    write("a[1].jsonl")
    assert sources("a[1].jsonl") == ["a[1].jsonl"]


def test_format_replaces_the_suffix():
    write("rows.txt")
    assert read_values("rows.txt", format="jsonl") == [{"a": 1}]
    assert read_values("rows.txt") == [{"text": '{"a": 1}\n'}]


def test_folder_without_splits_is_all_train():
    for name in ("data/2.jsonl", "data/1.jsonl", "data/dataset_info.json", "data/README.md", "data/.hidden/x.jsonl"):
        write(name)
    assert sources("data") == ["data/1.jsonl", "data/2.jsonl"]


@pytest.mark.parametrize(
    ("split", "name"),
    [
        (None, "d/data/train-00000-of-00001.jsonl"),
        ("training", "d/data/train-00000-of-00001.jsonl"),
        ("validation", "d/dev/rows.jsonl"),
        ("val", "d/dev/rows.jsonl"),
        ("test", "d/my_test_2.jsonl"),
        ("test_sft", "d/data/test_sft-00000-of-00001.jsonl"),
    ],
)
def test_folder_with_splits(split, name):
    for file in (
        "d/data/train-00000-of-00001.jsonl",
        "d/dev/rows.jsonl",
        "d/my_test_2.jsonl",
        "d/data/test_sft-00000-of-00001.jsonl",
    ):
        write(file)
    options = {"split": split} if split else {}
    assert sources("d", **options) == [name]


def test_folder_of_one_split_or_format_is_not_guessed():
    write("d/train.jsonl")
    write("d/test.jsonl")
    assert refused(Entry(path="d", split="eval2")) == (
        "datasets.0.split: folder 'd' has no split 'eval2'\n    splits: test, train"
    )
    write("d/train.csv", "a\n1\n")
    assert refused(Entry(path="d")) == (
        "datasets.0.format: folder 'd' holds files of several formats: csv (1), jsonl (1)\n"
        "    say which to read, e.g. `format: jsonl`; a second entry under datasets can read another"
    )
    assert sources("d", format="csv") == ["d/train.csv"]
    write("d/extra.jsonl")
    assert refused(Entry(path="d", format="jsonl")) == (
        "datasets.0.path: folder 'd' has files that name no split beside files that do: extra.jsonl\n"
        "    say which files to read with a glob, e.g. 'd/extra.jsonl'"
    )


def test_missing_file_names_its_neighbours(tmp_path):
    write("data/train.jsonl")
    assert refused(Entry(path="data/trian.jsonl")) == (
        "datasets.0.path: no such file or folder: 'data/trian.jsonl'\n"
        "    did you mean 'data/train.jsonl'?\n"
        f"    relative paths start at {tmp_path}"
    )
    assert refused(Entry(path="dat/more/train.jsonl")) == (
        "datasets.0.path: no such file or folder: 'dat/more/train.jsonl' (there is no 'dat')\n"
        "    did you mean 'data'?\n"
        f"    relative paths start at {tmp_path}"
    )
    assert refused(Entry(path=f"{tmp_path}/data/zzz.csv")) == (
        f"datasets.0.path: no such file or folder: '{tmp_path}/data/zzz.csv'\n    looked in {tmp_path}/data"
    )
    assert refused(Entry(path="squad")) == (
        "datasets.0.path: no such file or folder: 'squad'\n"
        "    datasets on the hub are written owner/name\n"
        f"    relative paths start at {tmp_path}"
    )


def test_glob_and_folder_without_files(tmp_path):
    Path("data.jsonl").mkdir()
    here = f"    relative paths start at {tmp_path}"
    assert refused(Entry(path="data/*.csv")) == f"datasets.0.path: no file matches 'data/*.csv'\n{here}"
    assert refused(Entry(path="*.jsonl")) == f"datasets.0.path: only folders match '*.jsonl'\n{here}"
    suffixes = f"    known suffixes: {SUFFIXES}"
    assert refused(Entry(path="data.jsonl")) == f"datasets.0.path: folder 'data.jsonl' has no data files\n{suffixes}"
    write("data.jsonl/a.csv")
    assert refused(Entry(path="data.jsonl", format="json")) == (
        f"datasets.0.path: folder 'data.jsonl' has no files of format json\n{suffixes}"
    )


@pytest.mark.parametrize("name", ["rows.xml", "rows.jsonl.bz2", "rows.parquet.gz"])
def test_unknown_suffix_lists_the_known_ones(name):
    write(name)
    suffix = Path(name).suffix
    assert refused(Entry(path=name)) == (
        f"datasets.0.path: cannot tell the format of '{name}' from the suffix '{suffix}'\n"
        f"    known suffixes: {SUFFIXES}; text formats may be followed by .gz or .zst\n"
        "    another suffix: say how it is written, e.g. `format: jsonl` (arrow, csv, json, jsonl, parquet, text, tsv)"
    )


@pytest.mark.parametrize("key", ["split", "name", "revision", "field"])
def test_options_that_would_do_nothing_are_refused(key):
    write("rows.jsonl")
    messages = {
        "split": "only folders and datasets on the hub have splits; 'rows.jsonl' has none\n"
        "    a part of its rows is written without a name, e.g. split: '[:1000]'",
        "name": "only datasets on the hub have a name; 'rows.jsonl' is a local path",
        "revision": "only datasets on the hub have a revision; 'rows.jsonl' is a local path",
        "field": "only files of format json have it; rows.jsonl is jsonl",
    }
    assert refused(Entry(path="rows.jsonl", **{key: "x"})) == f"datasets.0.{key}: {messages[key]}"


def test_rows_of_text_are_refused_for_other_formats():
    write("rows.jsonl")
    assert refused(Entry(path="rows.jsonl", rows="line")) == (
        "datasets.0.rows: only files of format text have it; rows.jsonl is jsonl"
    )


def test_check_reports_all_datasets_at_once():
    write("rows.jsonl")
    with pytest.raises(ConfigError) as caught:
        check(
            Entry(path="rows.jsonl"),
            Entry(path="missing.csv"),
            Entry(path="missing.csv", type="another_reader"),
            Entry(path="rows.jsonl", revision="main"),
        )
    assert [problem.path for problem in caught.value.problems] == [("datasets", 1, "path"), ("datasets", 3, "revision")]


def test_hub_names(tmp_path):
    write("data/train")
    assert is_hub_dataset("tatsu-lab/alpaca")
    assert is_hub_dataset("owner/data-v1.5")
    assert not is_hub_dataset("data/train")
    for path in (
        "alpaca",
        "a/b/c",
        "./a/b",
        "../a",
        "/a/b",
        "~/a",
        "a/*",
        "data/rows.jsonl",
        "data/rows.txt",
        "a/b.jsonl.zst",
    ):
        assert not is_hub_dataset(path)


def test_check_takes_hub_names_without_looking_them_up(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    check(Entry(path="tatsu-lab/alpaca", split="train", name="default", revision="main"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read():
    write("rows.jsonl").chmod(0)
    with pytest.raises(RunError, match="^rows.jsonl: cannot be read: Permission denied$"):
        read("rows.jsonl")


def test_plugin_and_check_do_not_import_polars():
    write("rows.jsonl")
    script = (
        "import sys\n"
        "from dumbo.plugins.polars.plugin import PolarsOptions, PolarsPlugin\n"
        "from dumbo.plugins.polars.paths import check_paths\n"
        "check_paths(PolarsOptions(path=['rows.jsonl', 'memory://rows.jsonl', 'hf://datasets/a/b/c.csv']))\n"
        "heavy = {'polars', 'huggingface_hub', 'torch', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_same_rows_from_every_format():
    rows = [{"a": "1", "b": "x\ny"}, {"a": "2", "b": 'é, "quoted"'}]
    frame = polars.DataFrame(rows)
    frame.write_csv("rows.csv")
    frame.write_parquet("rows.parquet")
    frame.write_ipc("rows.feather")
    frame.write_ndjson("rows.ndjson")
    frame.write_json("rows.json")
    for name in ("rows.csv", "rows.parquet", "rows.feather", "rows.ndjson", "rows.json"):
        assert read_values(name) == rows
