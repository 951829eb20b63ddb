"""The reader `huggingface_polars` on JSON and JSONL: exact values, exact places, nothing quietly repaired."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from dumbo.errors import DataError
from dumbo.plugins.polars.plugin import PolarsPlugin
from tests.plugins.polars_dataset import Entry, read, read_values

MIXED = [
    {"a": 1},
    {"a": "x"},
    {"a": 2.5, "b": None},
    {"a": True},
    {"a": {}},
    {"a": []},
    {"a": [1, "x", None, 1.0]},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "tool", "tool_call_id": "7"}]},
    {"a": 123456789012345678901234567890, "b": 9007199254740993},
    {"text": "line\u2028separator \x7f \U0001f600 \u00e9"},
]
"""Rows that a table cannot hold as they are: Polars makes texts of numbers, and adds nulls for missing keys."""


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str | bytes) -> str:
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def lines(rows: list[dict], **options: bool) -> str:
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


def fails_with(path: str, *expected: str, **options: str) -> None:
    """Reading `path` ends with an error whose lines are `expected`."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert str(caught.value).splitlines() == list(expected)


@pytest.mark.parametrize("ascii_only", [True, False])
def test_jsonl_values_are_exactly_those_of_the_file(ascii_only):
    path = write("mixed.jsonl", lines(MIXED, ensure_ascii=ascii_only))
    values = read_values(path)
    assert repr(values) == repr(MIXED)  # 1, 1.0 and True are equal; their texts are not


@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_values_are_exactly_those_of_the_file(indent):
    path = write("mixed.json", json.dumps(MIXED, indent=indent))
    assert repr(read_values(path)) == repr(MIXED)


def test_jsonl_rows_are_numbered_by_line_and_blank_lines_are_skipped():
    path = write("rows.jsonl", '\n{"a": 1}\r\n   \n  {"a": 2}  \n\n{"a": 3}')
    assert [(row.origin.source, row.origin.row, row.values["a"]) for row in read(path)] == [
        ("rows.jsonl", 2, 1),
        ("rows.jsonl", 4, 2),
        ("rows.jsonl", 6, 3),
    ]


def test_json_with_one_object_per_line_is_recognised():
    path = write("rows.json", '\n{"a": 1}\n{"a": [2]}\n')
    assert [(row.origin.row, row.values) for row in read(path)] == [(2, {"a": 1}), (3, {"a": [2]})]


def test_json_array_rows_are_numbered_by_the_line_where_they_begin():
    path = write("rows.json", json.dumps([{"a": 1}, {"a": 2}, {"b": {"c": 3}}], indent=2))
    assert [row.origin.row for row in read(path)] == [2, 5, 8]


def test_json_array_on_one_line_is_numbered_by_position():
    path = write("rows.json", json.dumps([{"a": 1}, {"a": 2}, {"a": 3}]))
    assert [row.origin.row for row in read(path)] == [1, 2, 3]


def test_json_array_larger_than_what_is_read_at_once():
    rows = [{"id": n, "text": '\u00e9\U0001f600\\"' * (n % 2000), "score": n / 7} for n in range(300)]
    for indent, ascii_only in ((None, True), (None, False), (1, False)):
        path = write("large.json", json.dumps(rows, indent=indent, ensure_ascii=ascii_only))
        assert read_values(path) == rows


@pytest.mark.parametrize("padding", range(65536 - 40, 65536 + 4))
def test_json_cut_anywhere_between_two_reads(padding):
    rows = [
        {"pad": ""},
        {
            "a": -1.25e-3,
            "b": [True, None, 12345678],
            "c": "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        },
    ]
    rows[0]["pad"] = "x" * (padding - len('[{"pad": ""}, '))
    path = write("cut.json", json.dumps(rows))
    assert read_values(path) == rows


def test_field_names_the_list_in_an_object():
    text = json.dumps({"version": 1.5, "about": {"data": [0]}, "data": [{"a": 1}, {"a": 2}], "more": []}, indent=1)
    rows = read(write("squad.json", text), field="data")
    assert [row.values for row in rows] == [{"a": 1}, {"a": 2}]
    assert [text.splitlines()[row.origin.row - 1].strip() for row in rows] == ["{", "{"]


def test_byte_order_mark_and_gzip_are_understood():
    write("marked.jsonl", b'\xef\xbb\xbf{"a": 1}\n')
    write("packed.jsonl.gz", gzip.compress(b'\xef\xbb\xbf{"a": 1}\n'))
    write("packed.json.gz", gzip.compress(b'[{"a": 1}]'))
    for name in ("marked.jsonl", "packed.jsonl.gz", "packed.json.gz"):
        assert read_values(name) == [{"a": 1}]


def test_rows_come_before_the_file_is_read_to_its_end():
    path = write("rows.jsonl", '{"a": 1}\n{"a": \n')
    rows = PolarsPlugin().read(Entry(path=path))
    assert next(rows).values == {"a": 1}
    with pytest.raises(DataError):
        next(rows)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_memory_stays_flat(name):
    row = {"text": "x" * 1000}
    rows = [row] * 20_000
    path = write(name, json.dumps(rows) if name.endswith("json") else lines(rows))
    assert Path(path).stat().st_size > 20_000_000
    tracemalloc.start()
    count = sum(1 for _ in PolarsPlugin().read(Entry(path=path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 2_000_000


BAD_LINES = {
    '{"a": 1,, "b": 2}': "rows.jsonl:2:9: not valid JSON: expecting property name enclosed in double quotes",
    '{"a": "never closed}': "rows.jsonl:2:7: not valid JSON: unterminated string starting at",
    '{"a": 1} {"b": 2}': "rows.jsonl:2:9: not valid JSON: more text after the object; one object per line",
    "{'a': 1}": "rows.jsonl:2:2: not valid JSON: expecting property name enclosed in double quotes",
    "hello": "rows.jsonl:2:1: not valid JSON: expecting value",
    "[1, 2]": "rows.jsonl:2: expected an object, got a list",
    '"text"': "rows.jsonl:2: expected an object, got a text",
    "17": "rows.jsonl:2: expected an object, got a number",
    "true": "rows.jsonl:2: expected an object, got a boolean",
    "null": "rows.jsonl:2: expected an object, got null",
    '{"a": 1, "b": {"c": 1, "c": 2}}': "rows.jsonl:2: the key 'c' appears twice in one object",
    '{"a": NaN}': "rows.jsonl:2: NaN is not a JSON value; write null",
    '{"a": -Infinity}': "rows.jsonl:2: -Infinity is not a JSON value; write null",
    '{"a": 1e999}': "rows.jsonl:2: the number 1e999 is too large for a float",
    '{"a": %s}' % ("9" * 5000): "rows.jsonl:2: a number has too many digits",
    '{"a": %s}' % ("[" * 100_000): "rows.jsonl:2: nested too deeply",
    '{"a": ["ok \\ud83d\\ude00", "half \\ud83d"]}': "rows.jsonl:2: a text holds \\ud83d, half of a character",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20])
def test_bad_line_in_the_middle_is_named(line):
    fails_with(write("rows.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 3}}\n'), BAD_LINES[line])


def test_bad_element_of_an_array_is_named():
    fails_with(write("a.json", '[\n{"a": 1},\n[2],\n{"a": 3}\n]'), "a.json:3:1: expected an object, got a list")
    fails_with(
        write("a.json", '[\n{"a": 1},\n {"a" 2},\n{"a": 3}\n]'), "a.json:3:7: not valid JSON: expecting ':' delimiter"
    )
    fails_with(write("a.json", '[{"a": 1}, {"a": 1, "a": 2}]'), "a.json:1:12: the key 'a' appears twice in one object")
    fails_with(write("a.json", '[{"a": 1}\n {"a": 2}]'), "a.json:2:2: not valid JSON: expected ',' or ']' after a row")
    fails_with(write("a.json", '[{"a": 1}] []'), "a.json:1: not valid JSON: more text after the end of the array")


def test_error_far_into_a_large_array_is_named():
    rows = [json.dumps({"text": "x" * 500}) for _ in range(1000)]
    rows[700] = '{"text": "x" "y"}'
    fails_with(
        write("a.json", "[\n" + ",\n".join(rows) + "\n]"), "a.json:702:14: not valid JSON: expecting ',' delimiter"
    )


def test_array_that_was_cut_off_is_explained():
    hint = "    the file ends here: was it cut off?"
    fails_with(write("a.json", '[\n{"a": 1},\n{"a": '), "a.json:3:7: not valid JSON: expecting value", hint)
    fails_with(
        write("a.json", '[\n{"a": 1}\n'),
        "a.json:3:1: not valid JSON: the file ends where ',' or ']' after a row should be",
        "    was it cut off?",
    )


def test_single_object_is_explained():
    for text in ('{"data": [{"a": 1}],\n "b": 2}', '{\n  "a": 1\n}\n'):
        fails_with(
            write("one.json", text),
            "one.json: the file is a single object, not rows",
            "    expected an array of objects, or one object per line",
            "    if the rows are a list under one of its keys, name the key: `field: KEY`",
        )


def test_list_of_rows_in_an_object_on_one_line_is_explained():
    text = '{"data": [{"a": 1}, {"a": 2}]}'
    fails_with(
        write("one.json", f"\n{text}\n"),
        "one.json: the file is a single object, whose key 'data' holds a list; write `field: data` to read the list",
        "    if the object is a row, the only one, write `format: jsonl`",
    )
    assert read_values("one.json", field="data") == [{"a": 1}, {"a": 2}]
    assert read_values("one.json", format="jsonl") == [json.loads(text)]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "hi"}]},
        {"conversations": [{"from": "human", "value": "hi"}]},
        {"texts": ["a", "b"]},
        {"data": []},
        {"prompt": "a", "tools": [{"name": "add"}]},
    ],
)
def test_object_that_is_the_only_row_is_read(row):
    assert read_values(write("one.json", json.dumps(row))) == [row]


def test_lists_in_the_objects_of_several_rows_are_read():
    rows = [{"steps": [{"a": number}]} for number in range(3)]
    assert read_values(write("rows.json", "\n".join(map(json.dumps, rows)))) == rows


def test_documents_of_other_kinds_are_explained():
    fails_with(write("a.json", '"text"'), "a.json:1: expected an array of objects, got a text")
    fails_with(write("a.json", "hello"), "a.json:1:1: not valid JSON: expecting value")
    fails_with(
        write("a.jsonl", "[\n{}]"),
        "a.jsonl:1:2: not valid JSON: expecting value",
        "    if the file is an array of objects, write `format: json`",
    )


def test_field_that_is_not_there_is_explained():
    path = write("one.json", '{"rows": [{"a": 1}], "b": 2}')
    fails_with(path, "one.json: the file has no key 'data'", "    its keys: rows, b", field="data")
    fails_with(path, "one.json:1: expected an array of objects, got a number", field="b")
    array = write("array.json", '[{"a": 1}]')
    fails_with(array, "array.json: the file is not an object with a key 'data'", "    leave `field` out", field="data")


@pytest.mark.parametrize("name", ["e.json", "e.jsonl"])
def test_files_without_rows_are_errors(name):
    fails_with(write(name, ""), f"{name}: the file is empty")
    fails_with(write(name, " \n\n"), f"{name}: the file has no rows")
    if name == "e.json":
        fails_with(write(name, "[ ]"), "e.json: the file has no rows")


@pytest.mark.parametrize("name", ["b.json", "b.jsonl"])
def test_files_that_are_not_text_are_errors(name):
    format = name.removeprefix("b.")
    fails_with(write(name, b'{"a": "\x00\x01\x02"}\n'), f"{name}: binary data, not {format}")
    fails_with(
        write(name, b"PAR1\x15\x04"), f"{name}: this is a Parquet file, not {format}", "    write `format: parquet`"
    )
    fails_with(
        write(name, '{"a": 1}\n'.encode("utf-16")),
        f"{name}: the text is encoded in UTF-16",
        "    save it as UTF-8",
    )
    fails_with(
        write(name, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        f"{name}: a Git LFS pointer, not the data itself",
        "    fetch the data with `git lfs pull`",
    )


def test_text_in_another_encoding_is_named_by_line():
    hint = "    save the file as UTF-8"
    latin = '{"a": "é"}\n'.encode() + '{"a": "é"}\n'.encode("latin-1")
    fails_with(write("l.jsonl", latin), "l.jsonl:2:8: not text in UTF-8: byte 0xe9", hint)
    latin = b'[\n{"a": 1},\n' + '{"a": "é"}]'.encode("latin-1")
    fails_with(write("l.json", latin), "l.json:3: not text in UTF-8: byte 0xe9", hint)


def test_broken_gzip_is_named():
    packed = gzip.compress(lines([{"a": n} for n in range(1000)]).encode())
    with pytest.raises(DataError, match="^cut.jsonl.gz: broken gzip file: "):
        read(write("cut.jsonl.gz", packed[:-30]))
