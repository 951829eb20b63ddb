"""Rows of JSON and JSONL files, with the values exactly as they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dumbo.data.records import Origin, Row
from dumbo.errors import DataError
from dumbo.plugins.polars.data_files import DataFile
from dumbo.plugins.polars.json_scanner import JsonScanner
from dumbo.plugins.polars.json_values import InexactJson, decode_json, kind_of, said
from dumbo.plugins.polars.text_files import decode_line, file_error, no_rows, open_text, place_error, row_origin

# JSON's own white space; Python's `strip` would take more.
_SPACE = " \t\r\n"
_SPACE_BYTES = _SPACE.encode()
# Who says a message, in the layout of chat templates and in ShareGPT's.
_SPEAKERS = frozenset({"role", "from"})


def read_jsonl(file: DataFile, skip: int = 0) -> Iterator[Row]:
    """Yield one row per line behind the first `skip` rows; blank lines are none.

    Raises `DataError` at the first line that is not an object. Those that are skipped are not looked at.
    """
    source, count = file.source, 0
    with open_text(file) as stream:
        for number, raw in enumerate(stream, 1):
            if count < skip:
                count += bool(raw.strip(_SPACE_BYTES))
                continue
            line = decode_line(raw, file, number).rstrip(_SPACE)
            if line:
                count += 1
                yield Row(_parse_line(line, file, number), Origin(source, number))
    if not count:
        raise no_rows(file)


def count_lines(file: DataFile) -> int:
    """How many rows a JSONL file has."""
    with open_text(file) as stream:
        return sum(1 for raw in stream if raw.strip(_SPACE_BYTES))


def read_json(file: DataFile, field: str | None) -> Iterator[Row]:
    """Yield the objects of an array, of the array under the key `field`, or one per line where the file has lines.

    A row's number is the line where it begins, or its position where several rows share a line.
    """
    if field is None and _is_one_object_per_line(file):
        yield from _refuse_list_in_object(read_jsonl(file), file)
        return
    with open_text(file) as stream:
        scanner = JsonScanner(stream, file)
        if field is not None:
            _enter_field(scanner, field)
        elif scanner.peek() == "":
            raise no_rows(file)
        elif scanner.peek() == "{":
            raise file_error(
                file,
                "the file is a single object, not rows",
                "expected an array of objects, or one object per line",
                "if the rows are a list under one of its keys, name the key: `field: KEY`",
            )
        yield from _read_array(scanner)
        if field is None and scanner.peek():
            raise place_error(file, scanner.line, 0, "not valid JSON: more text after the end of the array")


def _parse_line(line: str, file: DataFile, number: int) -> dict[str, Any]:
    start = 0 if line[0] == "{" else len(line) - len(line.lstrip(_SPACE))
    try:
        value, end = decode_json(line, start)
    except json.JSONDecodeError as error:
        raise place_error(file, number, error.pos + 1, said(error), *_array_hint(line, number)) from error
    except InexactJson as error:
        raise row_origin(file, number).error(str(error)) from error
    if not isinstance(value, dict):
        raise row_origin(file, number).error(f"expected an object, got {kind_of(value)}", *_array_hint(line, number))
    if end < len(line):
        raise place_error(file, number, end + 1, "not valid JSON: more text after the object; one object per line")
    return value


def _array_hint(line: str, number: int) -> list[str]:
    return ["if the file is an array of objects, write `format: json`"] if number == 1 and line.startswith("[") else []


def _is_one_object_per_line(file: DataFile) -> bool:
    """Whether the first line with text is an object, or meant to be one; what is written over several lines is not."""
    with open_text(file) as stream:
        if JsonScanner(stream, file).peek() != "{":  # an array may be one line of any length: its line is not read
            return False
    with open_text(file) as stream:
        lines = (decode_line(raw, file, number).strip(_SPACE) for number, raw in enumerate(stream, 1))
        return not _goes_on(next(filter(None, lines)))


def _refuse_list_in_object(rows: Iterator[Row], file: DataFile) -> Iterator[Row]:
    """Yield `rows`. Raises `DataError` for one that is alone and is no row, but an object around the list of rows."""
    first = next(rows)
    second = next(rows, None)
    key = _key_of_rows(first.values) if second is None else None
    if key is not None:
        raise file_error(
            file,
            f"the file is a single object, whose key '{key}' holds a list; write `field: {key}` to read the list",
            "if the object is a row, the only one, write `format: jsonl`",
        )
    yield first
    if second is not None:
        yield second
    yield from rows


def _key_of_rows(values: Mapping[str, Any]) -> str | None:
    """The only key of an object, if it holds a list of objects which are no messages, as those of a chat are."""
    if len(values) != 1:
        return None
    key, listed = next(iter(values.items()))
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        return None
    return None if listed[0].keys() & _SPEAKERS else key


def _goes_on(line: str) -> bool:
    try:
        decode_json(line)
    except json.JSONDecodeError as error:
        return error.pos >= len(line)
    except InexactJson:
        pass
    return False


def _enter_field(scanner: JsonScanner, field: str) -> None:
    """Move to the list under the key `field` of the object that the file is."""
    if scanner.peek() != "{":
        raise file_error(scanner.file, f"the file is not an object with a key '{field}'", "leave `field` out")
    scanner.take("{", "an object")
    keys = []
    while scanner.peek() == '"':
        keys.append(scanner.decode())
        scanner.take(":", "':'")
        if keys[-1] == field:
            return
        scanner.decode()
        if scanner.take(",}", "',' or '}'") == "}":
            break
    raise file_error(scanner.file, f"the file has no key '{field}'", f"its keys: {', '.join(keys[:10]) or 'none'}")


def _read_array(scanner: JsonScanner) -> Iterator[Row]:
    if scanner.peek() != "[":
        raise _not_an_array(scanner)
    scanner.take("[", "an array")
    if scanner.peek() == "]":
        raise no_rows(scanner.file)
    position, more, in_lines = 0, True, None
    while more:
        position, line = position + 1, scanner.line
        values = scanner.decode_object()
        more = scanner.take(",]", "',' or ']' after a row") == ","
        scanner.peek()
        if in_lines is None:
            in_lines = scanner.line > line
        yield Row(values, row_origin(scanner.file, line if in_lines else position))


def _not_an_array(scanner: JsonScanner) -> DataError:
    line = scanner.line
    return place_error(scanner.file, line, 0, f"expected an array of objects, got {kind_of(scanner.decode())}")
