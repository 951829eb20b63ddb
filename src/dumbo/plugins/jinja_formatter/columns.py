"""Conversations from columns that are put together by formats of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumbo.data.records import Conversation, Row
from dumbo.data.row_values import kind_of, missing_column, near_name_hints, read_column
from dumbo.plugins.jinja_formatter.data_options import DEFAULT_FORMAT, DEFAULT_NO_INPUT_FORMAT
from dumbo.plugins.jinja_formatter.patterns import Pattern, parse_pattern

if TYPE_CHECKING:
    from dumbo.plugins.jinja_formatter.data_options import ColumnsOptions


class Columns:
    """Makes a conversation from the columns of a row: a system message where there is one, a question, its answer."""

    def __init__(self, options: ColumnsOptions) -> None:
        self.fields = {"instruction": options.field_instruction, "input": options.field_input}
        self.output = options.field_output
        self.system = options.field_system
        self.system_prompt = options.system_prompt or ""
        self.input_is_named = "field_input" in options.model_fields_set
        self.system_format = parse_pattern(options.system_format)
        self.format = parse_pattern(options.format or DEFAULT_FORMAT)
        self.no_input_format = _without_input(options)

    def __call__(self, row: Row) -> Conversation:
        """Return the conversation. Raises `DataError` where a column is missing or not text, or the output empty."""
        output = _written(row, self.output)
        if not output.strip():
            raise row.origin.error(f"'{self.output}' is empty", "there is no answer to train on")
        system, question = self._system(row), self._format(row)
        system = self._fill(self.system_format, row, system) if system else ""
        turns = [("user", self._fill(question, row, system)), ("assistant", output)]
        if system and "system" not in question.names:
            turns.insert(0, ("system", system))
        return Conversation(tuple({"role": role, "content": content} for role, content in turns), row.origin)

    def _system(self, row: Row) -> str:
        if self.system is None or read_column(row, self.system) in (None, ""):
            return self.system_prompt
        return _written(row, self.system)

    def _format(self, row: Row) -> Pattern:
        """The format for this row: whether it has an input decides."""
        if "input" not in self.format.names or self._has_input(row):
            return self.format
        if self.no_input_format is None:
            hint = f"write no_input_format: what the user says in rows where '{self.fields['input']}' is empty"
            raise row.origin.error("no input, which 'format' needs", hint)
        return self.no_input_format

    def _has_input(self, row: Row) -> bool:
        name = self.fields["input"]
        value = read_column(row, name) if self.input_is_named else row.values.get(name)
        return value not in (None, "")

    def _fill(self, pattern: Pattern, row: Row, system: str) -> str:
        def value_of(name: str) -> str:
            if name == "system":
                return system
            column = self.fields.get(name, name)
            if column not in row.values:
                hints = near_name_hints(column, row.values) or ["write a brace twice for a brace itself"]
                raise missing_column(row, column, hints)
            return _written(row, column)

        return pattern.write(value_of)


def _without_input(options: ColumnsOptions) -> Pattern | None:
    """The format for rows without input; None where the user wrote one for the others and none for these."""
    if options.no_input_format is not None:
        return parse_pattern(options.no_input_format)
    return parse_pattern(DEFAULT_NO_INPUT_FORMAT) if options.format is None else None


def _written(row: Row, name: str) -> str:
    """The value of a column as text: whole numbers too, which tables have in columns that hold nothing else."""
    value = read_column(row, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise row.origin.error(f"'{name}' is {kind_of(value)}", "it must be text or a whole number")
    return value
