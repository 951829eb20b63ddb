"""The reader `huggingface_polars` on text files: rows of files, lines, paragraphs; all text formats compressed."""

import gzip
import sys
import tracemalloc
from pathlib import Path

import pytest
from backports import zstd

from dumbo.errors import DataError, RunError
from dumbo.plugins.polars.plugin import PolarsPlugin
from tests.plugins.polars_dataset import Entry, read, read_values

POEM = "\ufeffRoses are red,\r\n  violets blue. \n\n \t\nSugar: \u00e9\u2028\U0001f600\n\n\nend"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str | bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def numbered(path: str, **options: str) -> list[tuple[int, str]]:
    rows = read(path, **options)
    assert all(list(row.values) == ["text"] for row in rows)
    return [(row.origin.row, row.values["text"]) for row in rows]


@pytest.mark.parametrize("rows", ["file", None])
def test_a_file_is_a_row_as_it_is(rows):
    options = {"rows": rows} if rows else {}
    assert numbered(write("poem.txt", POEM), **options) == [(1, POEM.removeprefix("\ufeff"))]


def test_lines_and_paragraphs_are_numbered_where_they_begin():
    path = write("poem.md", POEM)
    lines = [(1, "Roses are red,"), (2, "  violets blue. "), (5, "Sugar: \u00e9\u2028\U0001f600"), (8, "end")]
    assert numbered(path, rows="line") == lines
    paragraphs = [(1, "Roses are red,\r\n  violets blue. "), (5, "Sugar: \u00e9\u2028\U0001f600"), (8, "end")]
    assert numbered(path, rows="paragraph") == paragraphs


def test_a_folder_of_texts_is_read_where_it_is_asked_for():
    write("d/b.txt", "two")
    write("d/a.md", "one")
    write("d/empty.txt", "")
    write("d/blank.txt", " \n\n")
    with pytest.raises(RunError) as caught:
        read("d")
    assert str(caught.value).splitlines()[:2] == [
        "folder 'd' has no data files",
        "    to read its texts, write `format: text`",
    ]
    assert [row["text"] for row in read_values("d", format="text")] == ["one", "two"]
    write("d/rows.jsonl", '{"a": 1}\n')
    assert read_values("d") == [{"a": 1}]


def test_texts_without_rows_and_other_content_are_errors():
    for name, content, message in [
        ("blank.txt", " \n", "blank.txt: the file has no rows"),
        ("empty.txt", "", "empty.txt: the file has no rows"),
        ("binary.txt", b"a\x00b", "binary.txt: binary data, not text"),
        ("latin.txt", "ok\n\u00e9".encode("latin-1"), "latin.txt:2:1: not text in UTF-8: byte 0xe9"),
    ]:
        with pytest.raises(DataError) as caught:
            read(write(name, content))
        assert str(caught.value).splitlines()[0] == message


TEXTS = {
    "rows.jsonl": '{"a": "1"}\n{"a": "2"}\n',
    "rows.json": '[{"a": "1"}, {"a": "2"}]',
    "rows.csv": "a\n1\n2\n",
    "rows.tsv": "a\n1\n2\n",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress], ids=["gz", "zst"])
def test_text_formats_may_be_compressed(name, pack):
    suffix = ".gz" if pack is gzip.compress else ".zst"
    raw = ("\ufeff" + TEXTS[name]).encode()
    assert read_values(write(name + suffix, pack(raw))) == [{"a": "1"}, {"a": "2"}]
    half = len(raw) // 2
    assert read_values(write(name + suffix, pack(raw[:half]) + pack(raw[half:]))) == [{"a": "1"}, {"a": "2"}]


def test_a_compressed_text_is_told_by_its_bytes():
    assert read_values(write("poem.txt", zstd.compress(b"one"))) == [{"text": "one"}]
    assert read_values(write("poem.txt.zst", zstd.compress(b"one\ntwo")), rows="line") == [
        {"text": "one"},
        {"text": "two"},
    ]


def test_the_package_that_reads_zstd_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "backports", None)
    with pytest.raises(RunError) as caught:
        read(write("poem.txt.zst", zstd.compress(b"one")))
    assert str(caught.value).splitlines() == [
        "poem.txt.zst: reading zstd needs the package backports.zstd",
        "    pip install backports.zstd",
    ]


def test_memory_stays_flat():
    lines = "".join(f"{n} {'x' * 1000}\n" for n in range(20_000)).encode()
    path = write("lines.txt.zst", zstd.compress(lines))
    tracemalloc.start()
    count = sum(1 for _ in PolarsPlugin().read(Entry(path=path, rows="line", split="[-15_000:]")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 15_000
    assert peak < 2_000_000


def test_damaged_zstd_is_named():
    packed = zstd.compress("".join(f'{{"a": {n}}}\n' for n in range(5000)).encode())
    with pytest.raises(DataError, match="^cut.jsonl.zst: broken zstd file: ") as caught:
        read(write("cut.jsonl.zst", packed[:-30]))
    assert "was the download or copy interrupted?" in str(caught.value)
    with pytest.raises(DataError, match="^bad.jsonl.zst: broken zstd file: "):
        read(write("bad.jsonl.zst", packed[:20] + b"\xff" * 40 + packed[60:]))
