"""Data files nearby, and which data format their first rows fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dumbo.errors import DumboError
from dumbo.local_paths import entries, is_hub_name
from dumbo.plugin_finder import find_plugin, install_hint, missing_packages

READER_PLUGIN, READER = "polars", "huggingface_polars"
PEEKED = 50
"""Rows that are looked at; a file that has fewer is known by its whole length."""
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_NO_DATA = frozenset({"config.json", "package.json", "tsconfig.json", "summary.json", "metrics.jsonl", "samples.jsonl"})
_MOST_FILES = 30
_HELD_OUT_WORDS = frozenset({"test", "eval", "val", "valid", "validation", "dev", "out"})
_INSTRUCTIONS = ("instruction", "question", "prompt", "query", "problem", "user")
_OUTPUTS = ("output", "answer", "response", "completion", "target", "solution", "reply", "assistant")
_INPUTS = ("input", "context")
_ANSWERERS = frozenset({"assistant", "gpt"})
EXAMPLE_HUB_DATA = "tatsu-lab/alpaca"


@dataclass(frozen=True)
class FoundData:
    """A file of rows, or a data set on the hub."""

    path: str
    """What is written as `path`."""
    data_format: Mapping[str, str] = field(default_factory=dict)
    """The format that fits, with its options; empty where none does."""
    columns: tuple[str, ...] = ()
    text_columns: tuple[str, ...] = ()
    """Columns that are text in every row that was looked at."""
    num_rows: int | None = None
    """How many rows there are, where they are few."""
    problem: str = ""
    """Why no format fits."""

    @property
    def about(self) -> str:
        """A few words for lists."""
        if not self.columns:
            return self.problem or "on the hub, not looked at"
        count = f"{self.num_rows} rows" if self.num_rows is not None else f"over {PEEKED} rows"
        columns = ", ".join(self.columns[:6]) + (", ..." if len(self.columns) > 6 else "")
        fits = f"fits {format_words(self.data_format)}" if self.data_format else self.problem
        return f"{count} with {columns}: {fits}"


def require_reader() -> None:
    """Raise a `DumboError` if data files cannot be read here."""
    missing = missing_packages(find_plugin(READER_PLUGIN, Path()).type)
    if missing:
        hint = install_hint(READER_PLUGIN, missing[0])
        raise DumboError(f"data files are read by the plugin '{READER_PLUGIN}', whose package is missing\n    {hint}")


def nearby_data() -> list[FoundData]:
    """The data files here and in `data/`: those that a format fits first, and of these what looks like training."""
    files = [file for folder in (Path(), Path("data")) for file in entries(folder) if _may_hold_rows(file)]
    found = [peek(str(file)) for file in files[:_MOST_FILES]]
    return sorted((data for data in found if data.columns), key=lambda data: (not data.data_format, _is_apart(data)))


def named_data(path: str) -> FoundData:
    """The rows that somebody means by `path`; its `problem` says what is wrong with them."""
    if is_hub_name(path) and Path(path).suffix not in _SUFFIXES:
        return FoundData(path, {"type": "alpaca", "prompt": "plain"})
    return peek(path)


def peek(path: str) -> FoundData:
    """Read the first rows as a run would, and see what fits them."""
    plugin = find_plugin(READER_PLUGIN, Path())
    reader: Any = plugin.type()
    try:
        rows = [row.values for row in islice(reader.read(reader.readers[READER](path=path)), PEEKED + 1)]
    except DumboError as error:
        return FoundData(path, problem=" ".join(str(error).split("\n")[:1]))
    columns = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    texts = tuple(name for name in columns if all(isinstance(row.get(name), str) for row in rows))
    data_format, problem = fitting_format(rows, columns, texts)
    count = len(rows) if len(rows) <= PEEKED else None
    return FoundData(path, data_format, columns, texts, count, problem)


def fitting_format(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str], texts: Sequence[str]
) -> tuple[dict[str, str], str]:
    """The data format that fits all of `rows`, or an empty one and the reason."""
    for name in sorted(columns, key=lambda column: column != "messages"):
        messages = [message for row in rows if isinstance(row.get(name), list) for message in row[name]]
        if not messages or not all(isinstance(message, Mapping) for message in messages):
            continue
        role, content = ("from", "value") if all("from" in message for message in messages) else ("role", "content")
        if all(
            isinstance(m.get(role), str) and (isinstance(m.get(content), str) or "tool_calls" in m) for m in messages
        ):
            if not any(message[role] in _ANSWERERS for message in messages):
                return {}, f"'{name}' has no message of the role 'assistant', so there is no answer to learn"
            chosen = {"type": "messages"}
            return chosen if name == "messages" else {**chosen, "field_messages": name}, ""
    instruction, output = _first_named(_INSTRUCTIONS, texts), _first_named(_OUTPUTS, texts)
    if output is not None and instruction is None and "input" in texts:
        return {}, "the question is in 'input', which is what an 'instruction' is about; rename it to 'instruction'"
    if instruction is None or output is None:
        few = ", ".join(columns[:6]) + (", ..." if len(columns) > 6 else "")
        return {}, f"no format fits the columns {few}; it takes 'messages', or texts such as 'instruction' and 'output'"
    context = _input_column(rows, columns, instruction)
    if context is None and any(row.get("input") is not None for row in rows):
        return {}, "'input' is not text in every row"
    return alpaca_format(instruction, output, context), ""


def alpaca_format(instruction: str, output: str, context: str | None = None) -> dict[str, str]:
    """The format of rows with a question and an answer in these columns; names that are the default are left out."""
    named = {"field_instruction": instruction, "field_input": context, "field_output": output}
    written = {key: name for key, name in named.items() if name is not None and key != f"field_{name}"}
    return {"type": "alpaca", "prompt": "plain", **written}


def format_words(data_format: Mapping[str, str]) -> str:
    """`alpaca (question, answer)`."""
    fields = [value for key, value in data_format.items() if key.startswith("field_")]
    return data_format["type"] + (f" ({', '.join(fields)})" if fields else "")


def _input_column(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], instruction: str) -> str | None:
    """The column with what an instruction is about. Rows may lack one that has the default's name, and no other."""
    for name in columns:
        fits = name.lower() in _INPUTS and name != instruction
        if fits and all((name == "input" or name in row) and isinstance(row.get(name), str | None) for row in rows):
            return name
    return None


def _first_named(wanted: Sequence[str], columns: Sequence[str]) -> str | None:
    lowered = {column.lower(): column for column in reversed(columns)}
    return next((lowered[name] for name in wanted if name in lowered), None)


def _may_hold_rows(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES and file.name not in _NO_DATA and file.is_file()


def _is_apart(data: FoundData) -> bool:
    """Whether the file's name says that its rows are for evaluation."""
    words = Path(data.path).stem.lower().replace("-", "_").replace(".", "_").split("_")
    return bool(_HELD_OUT_WORDS & set(words))
