"""The reader `huggingface` yields plain rows of whatever Datasets loads, never stale ones, and explains its errors."""

import datetime
import json
import os

import datasets
import pytest

from dumbo.cli.main import main
from dumbo.errors import DumboError
from dumbo.plugins.huggingface.plugin import HuggingfaceOptions, HuggingfacePlugin
from tests import builders
from tests.run.whole_runs import losses_of, run_here, write_and_run

FILES = {"type": "huggingface", "path": "json", "data_files": "rows.jsonl"}
PLUGINS = ["transformers", "transformers_trainer", "huggingface", "jinja_formatter"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files and folders of every kind, and a cache of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    builders.write_rows(tmp_path / "numbers.jsonl", [{"n": n, "list": [{"a": "x"}, {"a": "y"}]} for n in range(10)])
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "train.csv").write_text("n,word\n1,one\n2,two\n")
    (tmp_path / "tables" / "test.csv").write_text("n,word\n3,three\n")
    (tmp_path / "broken.jsonl").write_text('{"n": 1}\n{"n":\n')
    (tmp_path / "words.txt").write_text("one\ntwo\n")
    saved = datasets.Dataset.from_list([{"n": n} for n in range(5)])
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved, "test": saved.select([4])}).save_to_disk(tmp_path / "saved-splits")
    return tmp_path


def read(**options):
    return list(HuggingfacePlugin().read(HuggingfaceOptions(**options)))


def numbers(**options):
    return [row.values["n"] for row in read(**options)]


def test_rows_are_plain_and_numbered(folder):
    first, second, *_ = read(path="json", data_files="numbers.jsonl")
    assert first.values == {"n": 0, "list": [{"a": "x"}, {"a": "y"}]}
    assert (str(first.origin.source), first.origin.row, second.origin.row) == ("numbers.jsonl", 1, 2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"path": "json", "data_files": ["numbers.jsonl"], "split": "train[8:]"}, [8, 9]),
        ({"path": "json", "data_files": "numb*.jsonl", "split": "train[:20%]"}, [0, 1]),
        ({"path": "json", "data_files": "numbers.jsonl", "streaming": True}, [*range(10)]),
        ({"path": "tables"}, [1, 2]),
        ({"path": "tables", "split": "test"}, [3]),
        ({"path": "tables", "split": "train+test"}, [1, 2, 3]),
        ({"path": "tables", "data_files": "test.csv"}, [3]),
        ({"path": "csv", "data_dir": "tables", "data_files": "train.csv"}, [1, 2]),
        ({"path": "tables", "split": "test+train[1:]"}, [3, 2]),
        ({"path": "tables", "split": "[1:]"}, [2]),
        ({"path": "json", "data_files": "numbers.jsonl", "split": "[-3:-1]+[:1]"}, [7, 8, 0]),
        ({"path": "tables", "split": "test+train", "streaming": True}, [3, 1, 2]),
        ({"path": "saved"}, [0, 1, 2, 3, 4]),
        ({"path": "saved", "split": "train[:2]+train[4:]"}, [0, 1, 4]),
        ({"path": "saved-splits", "split": "test"}, [4]),
        ({"path": "saved-splits", "split": "train[20%:60%]"}, [1, 2]),
    ],
)
def test_sources_splits_and_parts(folder, options, expected):
    assert numbers(**options) == expected


def test_rows_of_a_part_are_numbered_as_in_the_split(folder):
    rows = read(path="json", data_files="numbers.jsonl", split="train[8:]+[:1]")
    assert [(row.origin.row, row.values["n"]) for row in rows] == [(9, 8), (10, 9), (1, 0)]
    rows = read(path="tables", split="train[1:]+test")
    assert [(row.origin.source, row.origin.row) for row in rows] == [("tables", 2), ("tables (test)", 1)]


def fingerprint(**options):
    return HuggingfacePlugin().fingerprint(HuggingfaceOptions(**options))


def test_fingerprints_follow_the_rows(folder):
    entries = [
        {"path": "json", "data_files": "numbers.jsonl"},
        {"path": "json", "data_files": "numbers.jsonl", "split": "train[:5]"},
        {"path": "text", "data_files": "numbers.jsonl"},
        {"path": "json", "data_files": "*.jsonl"},
        {"path": "csv", "data_dir": "tables"},
        {"path": "csv", "data_dir": "tables", "data_files": "train.csv"},
        {"path": "tables"},
        {"path": "tables", "split": "test"},
        {"path": "saved"},
        {"path": "saved-splits"},
        {"path": "saved", "split": "train[:2]"},
        {"path": "tables", "data_files": "../numbers.jsonl"},
    ]
    known = [fingerprint(**entry) for entry in entries]
    assert known == [fingerprint(**entry) for entry in entries]
    assert len({*known}) == len(entries)
    numbers_file = folder / "numbers.jsonl"
    numbers_file.write_text(numbers_file.read_text().replace('"n": 9', '"n": 8'))
    (folder / "tables" / "test.csv").write_text("n,word\n4,four\n")
    changed = [known[index] != fingerprint(**entry) for index, entry in enumerate(entries)]
    assert changed == [True, True, True, True, True, False, True, True, False, False, False, True]
    assert fingerprint(path="json", data_files="https://host/rows.jsonl") is None
    for entry in ({"path": "none"}, {"path": "owner/none"}):
        with pytest.raises(DumboError):
            fingerprint(**entry)


def test_text_dates_and_pictures(folder):
    assert [row.values for row in read(path="text", data_files="words.txt")] == [{"text": "one"}, {"text": "two"}]
    day = datetime.datetime(2024, 1, 31)
    features = datasets.Features(
        {
            "day": datasets.Value("timestamp[s]"),
            "label": datasets.ClassLabel(names=["a", "b"]),
            "picture": datasets.Image(),
        }
    )
    row = {"day": day, "label": "b", "picture": {"bytes": b"no picture", "path": None}}
    datasets.Dataset.from_list([row], features=features).save_to_disk(folder / "kinds")
    assert read(path="kinds")[0].values == {"day": day, "label": 1, "picture": row["picture"]}


def test_a_changed_file_is_read_anew_even_with_its_old_time(folder):
    file = folder / "numbers.jsonl"
    before = file.stat()
    assert numbers(path="json", data_files="numbers.jsonl")[:2] == [0, 1]
    file.write_text(file.read_text().replace('"n": 0', '"n": 7'))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert numbers(path="json", data_files="numbers.jsonl")[:2] == [7, 1]
    assert not [path for path in (folder / "cache").iterdir() if path.is_dir()], "nothing is left behind"


def test_nothing_is_printed_and_no_setting_is_left_changed(folder, capfd):
    verbosity = datasets.logging.get_verbosity()
    numbers(path="tables")
    with pytest.raises(DumboError):
        read(path="json", data_files="broken.jsonl")
    assert capfd.readouterr() == ("", "")
    assert datasets.logging.get_verbosity() == verbosity
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"path": "tables", "split": "tset"}, [".split: 'tables' has no split 'tset'", "did you mean 'test'?"]),
        (
            {"path": "tables", "split": "dev", "streaming": True},
            [".split: 'tables' has no split 'dev'", "it has train, test"],
        ),
        ({"path": "saved-splits", "split": "dev"}, [".split: 'saved-splits' has no split 'dev'", "it has train, test"]),
        (
            {"path": "tables", "split": "train[50:60]"},
            [".split: 'train[50:60]' is empty: there are 2 rows in 'tables'"],
        ),
        (
            {"path": "saved-splits", "split": "train+test[-9:-5]"},
            [".split: 'test[-9:-5]' is empty: there is 1 row in 'saved-splits (test)'"],
        ),
        (
            {"path": "tables", "split": "train["},
            [".split: 'train[' cannot be read: ", "write for example train, train"],
        ),
        ({"path": "tables", "split": "a-b"}, [".split: 'a-b' cannot be read: ", "write a split, or a part of it"]),
        ({"path": "tables", "name": "no"}, [".name: 'tables' has no subset 'no'", "it has default"]),
        ({"path": "tables", "data_dir": "no"}, [".data_dir: 'tables' has no data files that can be read in 'no'"]),
        ({"path": "tables", "data_files": "no.csv"}, [".data_files: no file matches 'no.csv'"]),
        ({"path": "json", "data_files": "no*.x"}, [".data_files: no file matches 'no*.x'"]),
        ({"path": "json", "data_files": "broken.jsonl"}, ["broken.jsonl: the rows do not make a table: "]),
        (
            {"path": "json", "data_files": "http://ada:pw@127.0.0.1:1/n.jsonl?X-Amz-Signature=0f1e&a=b"},
            [
                ".data_files: no file matches or can be reached at "
                "'http://ada:<redacted>@127.0.0.1:1/n.jsonl?X-Amz-Signature=<redacted>&a=b'"
            ],
        ),
        ({"path": "owner/none"}, ["dataset 'owner/none' is not (wholly) in the cache ", "unset HF_HUB_OFFLINE, "]),
    ],
)
def test_errors_while_reading_are_lines(folder, options, lines):
    with pytest.raises(DumboError) as caught:
        read(**options)
    shown = str(caught.value).splitlines()
    assert len(shown) <= 3
    for start, line in zip(lines, shown, strict=False):
        assert line.strip().startswith(start)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"path": "numbers.jsonl"},
            "datasets.0.path: 'numbers.jsonl' is a file, not a dataset\n    write path: json, and",
        ),
        (
            {"path": "pandas", "data_files": "x.pkl"},
            "datasets.0.path: there is no folder 'pandas'\n    datasets on the hub",
        ),
        ({"path": "table"}, "datasets.0.path: there is no folder 'table'\n    did you mean 'tables'?"),
        ({"path": "json"}, "datasets.0.path: 'json' says how files are written, but not which"),
        (
            {"path": "json", "data_files": "number.jsonl"},
            "datasets.0.data_files: there is no file 'number.jsonl'\n    did you",
        ),
        ({"path": "json", "data_dir": "no"}, "datasets.0.data_dir: there is no folder 'no'"),
        ({"path": "json", "data_files": []}, "datasets.0.data_files"),
        ({"path": "tables", "revision": "v1"}, "datasets.0.revision: has no effect: 'tables' is a local folder"),
        ({"path": "saved", "streaming": True}, "datasets.0.streaming: has no effect: 'saved' is a folder written by"),
        ({"path": "tables", "streaming": True, "split": "train[:2]"}, "datasets.0.split: a part of a split cannot be"),
        (
            {"path": "tables", "split": "train[:2"},
            "datasets.0.split: 'train[:2' cannot be read: ']' is missing at char",
        ),
        (
            {"path": "tables", "split": ["5:7"]},
            "datasets.0.split: expected a text, got a list: write it in quotes, '[5:7]'",
        ),
        ({"path": "owner/name", "split": "train[5:2]"}, "datasets.0.split: 'train[5:2]' at character 1 is empty what"),
        ({"path": "owner/name", "trust_remote_code": True}, "datasets.0.trust_remote_code: unknown option"),
    ],
)
def test_mistakes_are_found_by_check(folder, model_folder, capsys, entry, message):
    file = builders.write_config(folder / "run", model_folder, "rows.jsonl", {"plugins": PLUGINS})
    config = builders.run_config(model_folder, "rows.jsonl", {"plugins": PLUGINS})
    formats = {key: config["datasets"][0][key] for key in ("data_format", "train_format")}
    file.write_text(json.dumps(config | {"datasets": [{"type": "huggingface", **entry, **formats}]}))
    assert main(["check", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_that_of_the_same_rows_read_otherwise(folder, model_folder, capfd):
    rows = builders.write_rows(folder / "rows.jsonl")
    ours = write_and_run(
        folder / "ours",
        model_folder,
        rows,
        {
            "plugins": PLUGINS,
            "datasets.0.type": "huggingface",
            "datasets.0.path": "json",
            "datasets.0.data_files": str(rows),
        },
    )
    assert "examples/s" not in capfd.readouterr().err
    theirs = run_here(builders.write_config(folder / "theirs", model_folder, rows))
    assert losses_of(ours) == losses_of(theirs)
    assert len(losses_of(ours)) == 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("named", ["../numbers.jsonl", "{here}/numbers.jsonl", "tables/../../numbers.jsonl"])
def test_the_card_of_a_dataset_reads_nothing_outside_of_it(folder, named, streaming):
    named = named.format(here=folder)
    (folder / "tables" / "tables").mkdir()
    (folder / "tables" / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {named}\n---\n")
    with pytest.raises(DumboError, match=r"names a file that lies outside of it: .*numbers.jsonl"):
        read(path="tables", streaming=streaming)
    assert numbers(path="tables", data_files=str(folder / "numbers.jsonl"), split="train[:1]") == [0], "the user may"


def test_a_saved_dataset_reads_nothing_outside_of_it(folder):
    state = folder / "saved" / "state.json"
    facts = json.loads(state.read_text())
    table = facts["_data_files"][0]["filename"]
    (folder / "saved" / table).rename(folder / table)
    facts["_data_files"][0]["filename"] = f"../{table}"
    state.write_text(json.dumps(facts))
    with pytest.raises(DumboError, match=r"names a file that lies outside of it: \.\./data"):
        read(path="saved")


def test_links_in_a_folder_of_the_user_are_followed(folder):
    (folder / "linked").mkdir()
    (folder / "linked" / "train.csv").symlink_to(folder / "tables" / "train.csv")
    assert numbers(path="linked") == [1, 2]
