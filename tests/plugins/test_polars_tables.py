"""The reader `huggingface_polars` on CSV, Parquet and Arrow files."""

import datetime
from pathlib import Path

import polars
import pytest

from dumbo.errors import DataError
from dumbo.plugins.polars.plugin import PolarsPlugin
from tests.plugins.polars_dataset import Entry, read, read_values

NESTED = [
    {"n": 1, "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}], "x": 0.1},
    {"n": None, "messages": [], "x": None},
    {"n": 2**63 - 1, "messages": None, "x": -0.0},
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str | bytes) -> str:
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def fails_with(path: str, *expected: str) -> None:
    """Reading `path` ends with an error whose lines are `expected`."""
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).splitlines() == list(expected)


def test_csv_values_are_the_texts_of_the_file():
    path = write("zip.csv", "zip,answer,note\r\n01234,true,\r\n1e5,NA,null\r\n")
    assert read_values(path) == [
        {"zip": "01234", "answer": "true", "note": ""},
        {"zip": "1e5", "answer": "NA", "note": "null"},
    ]


def test_csv_rows_are_numbered_by_the_line_where_they_begin():
    path = write("rows.csv", '\ufefftext,n\n"two\nlines, ""quoted""",1\n\n# no comment,2\n"",3\n')
    assert [(row.origin.row, dict(row.values)) for row in read(path)] == [
        (2, {"text": 'two\nlines, "quoted"', "n": "1"}),
        (5, {"text": "# no comment", "n": "2"}),
        (6, {"text": "", "n": "3"}),
    ]


def test_csv_with_a_long_text():
    text = "x" * 1_000_000
    assert read_values(write("long.csv", f'a,b\n"{text}",1\n')) == [{"a": text, "b": "1"}]


def test_csv_record_of_another_length_is_named():
    header = "    the header: a, b"
    fails_with(write("r.csv", "a,b\n1,2\n1,2,3\n"), "r.csv:3: expected 2 values as in the header, got 3", header)
    fails_with(write("r.csv", "a,b\n1,2\n1\n3,4\n"), "r.csv:3: expected 2 values as in the header, got 1", header)


def test_csv_quotes_out_of_place_are_named():
    hint = "    a value that holds quotes, separators or line breaks is quoted, and quotes in it are doubled"
    fails_with(write("q.csv", 'a,b\n1,2\n"x"y,2\n'), "q.csv:3: not valid CSV: ',' expected after '\"'", hint)
    fails_with(
        write("q.csv", 'a,b\n1,2\n"x,2\n3,4\n'),
        "q.csv:3: not valid CSV: unexpected end of data (read up to line 4)",
        hint,
    )


def test_csv_header_is_checked():
    fails_with(
        write("h.csv", "a,b,a\n1,2,3\n"),
        "h.csv:1: the header has the column 'a' twice",
        "    the first line names the columns",
    )
    fails_with(write("h.csv", "a,b\n"), "h.csv: the file has a header and no rows")
    fails_with(write("h.csv", "\n\n"), "h.csv: the file has no rows")
    fails_with(write("h.csv", ""), "h.csv: the file is empty")
    fails_with(write("h.csv", b"\x00\x01\x02"), "h.csv: binary data, not csv")


@pytest.mark.parametrize(
    ("file", "sign", "name", "hint"),
    [
        ("s.csv", ";", "';'", "save it with commas, or as JSONL"),
        ("s.csv", "\t", "a tab", "write `format: tsv`"),
        ("s.tsv", ";", "';'", "save it with commas, or as JSONL"),
        ("s.tsv", ",", "','", "write `format: csv`"),
    ],
)
def test_other_signs_between_values_are_named_at_the_header(file, sign, name, hint):
    own, other = ("commas", ",") if file == "s.csv" else ("tabs", "\t")
    expected = f"{file}:2: the file seems to use {name} between values; of {file[2:]} only {own} are read"
    for header in (["a", "b"], ['"a"', f'"b{other} c"'], ["a", f'"b{other} ""c"""', "d"]):
        path = write(file, "\n" + sign.join(header) + "\r\n" + sign.join(header) + "\n")
        fails_with(path, expected, f"    {hint}")


def test_tsv_values_are_the_texts_of_the_file():
    path = write("rows.tsv", 'zip\tnote\n01234\ta, b; c\n7\t"two\nlines\there"\n')
    assert [(row.origin.row, dict(row.values)) for row in read(path)] == [
        (2, {"zip": "01234", "note": "a, b; c"}),
        (3, {"zip": "7", "note": "two\nlines\there"}),
    ]
    fails_with(
        write("bad.tsv", "a\tb\n1\n"), "bad.tsv:2: expected 2 values as in the header, got 1", "    the header: a, b"
    )


def test_csv_of_one_column_may_hold_semicolons():
    assert read_values(write("one.csv", 'text\n1; 2\n"3; 4, 5"\n')) == [{"text": "1; 2"}, {"text": "3; 4, 5"}]
    assert read_values(write("one.csv", '"a;b"\n1\n')) == [{"a;b": "1"}]
    assert read_values(write("one.csv", '"a;\nb"\n1\n')) == [{"a;\nb": "1"}]
    assert read_values(write("two.csv", "a,b;c\n1,2;3\n")) == [{"a": "1", "b;c": "2;3"}]


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "stream.arrow"])
def test_nested_columns_come_back_as_python_values(name):
    frame = polars.DataFrame(NESTED)
    if name == "t.parquet":
        frame.write_parquet(name)
    elif name == "t.arrow":
        frame.write_ipc(name)
    else:
        frame.write_ipc_stream(name)
    rows = read(name)
    assert repr([dict(row.values) for row in rows]) == repr(NESTED)
    assert [(row.origin.source, row.origin.row) for row in rows] == [(name, 1), (name, 2), (name, 3)]


def test_parquet_types_come_back_as_python_values():
    values = {
        "day": datetime.date(2024, 2, 29),
        "time": datetime.datetime(2024, 2, 29, 12, 30, 0, 123456),
        "raw": b"\xff\x00",
        "big": 2**64 - 1,
        "flag": False,
        "text": "\U0001f600",
    }
    frame = polars.DataFrame({name: [value] for name, value in values.items()}, schema_overrides={"big": polars.UInt64})
    frame.write_parquet("types.parquet")
    assert read_values("types.parquet") == [values]


def test_parquet_of_many_row_groups_is_read_in_order():
    polars.DataFrame({"n": range(10_000)}).write_parquet("many.parquet", row_group_size=700)
    assert [(row.origin.row, row.values["n"]) for row in read("many.parquet")] == [(n + 1, n) for n in range(10_000)]


def test_reading_may_stop_early():
    polars.DataFrame({"n": range(10_000)}).write_parquet("many.parquet", row_group_size=100)
    rows = PolarsPlugin().read(Entry(path="many.parquet"))
    assert next(rows).values == {"n": 0}
    rows.close()


def test_broken_parquet_is_named():
    polars.DataFrame({"text": [str(n) * 50 for n in range(5000)]}).write_parquet("ok.parquet", row_group_size=1000)
    raw = Path("ok.parquet").read_bytes()
    hint = "    was the download or copy interrupted? for another kind of file say its `format`"
    ending = "parquet: File out of specification: The file must end with PAR1 or PARE"
    fails_with(write("cut.parquet", raw[: len(raw) // 2]), f"cut.parquet: not a readable Parquet file: {ending}", hint)
    fails_with(write("text.parquet", "hello\n" * 9), f"text.parquet: not a readable Parquet file: {ending}", hint)
    fails_with(write("empty.parquet", ""), "empty.parquet: the file is empty")
    fails_with(
        write("pointer.parquet", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "pointer.parquet: a Git LFS pointer, not the data itself",
        "    fetch the data with `git lfs pull`",
    )
    damaged = bytearray(raw)
    damaged[len(raw) // 2 : len(raw) // 2 + 64] = b"\xff" * 64
    with pytest.raises(DataError, match="^damaged.parquet: not a readable Parquet file"):
        read(write("damaged.parquet", bytes(damaged)))


def test_broken_arrow_is_named():
    with pytest.raises(DataError, match="^text.arrow: not a readable Arrow file"):
        read(write("text.arrow", "hello\n" * 9))


def test_parquet_without_rows_is_an_error_unless_other_files_have_some():
    Path("shards").mkdir()
    polars.DataFrame({"n": []}, schema={"n": polars.Int64}).write_parquet("shards/0.parquet")
    fails_with("shards", "shards/0.parquet: the file has no rows")
    polars.DataFrame({"n": [7]}).write_parquet("shards/1.parquet")
    assert read_values("shards") == [{"n": 7}]
