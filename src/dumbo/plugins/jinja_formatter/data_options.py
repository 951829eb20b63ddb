"""The options of the data formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dumbo.config.schema import FormatOptions, Words
from dumbo.data.row_values import list_names
from dumbo.plugins.jinja_formatter.fixed_formats import FIXED_FORMATS
from dumbo.plugins.jinja_formatter.patterns import parse_pattern


class AlpacaOptions(FormatOptions):
    """Rows with an instruction, perhaps an input, and an output: a question of the user and its answer."""

    field_instruction: str = "instruction"
    """Column with the instruction."""
    field_input: str = "input"
    """Column with what the instruction is about; it may be empty, null, or (unless this option is written) absent."""
    field_output: str = "output"
    """Column with the answer; a row where it is empty cannot be used."""
    field_system: str | None = None
    """Column with a system message, which takes the place of the prompt's first sentences; it may be empty or null."""
    prompt: Literal["alpaca", "plain", "chat", "phi"] = "alpaca"
    """What the user says: Alpaca's text with its headings; instruction and input alone, as chat models like it;
    Alpaca's text with `USER:` and `ASSISTANT:`; or Phi-3's tokens around both."""


MESSAGE_KEYS = (
    *("role", "content", "name", "tool_call_id", "tool_calls", "function_call"),
    *("reasoning_content", "reasoning", "thinking", "reasoning_train_detail"),
    *("train", "training", "weight", "train_detail"),
)
"""The keys of messages that are read here or that templates usually read; others may be a template's own."""

DEFAULT_FORMAT, DEFAULT_NO_INPUT_FORMAT = "{instruction}\n{input}", "{instruction}"


class ColumnsOptions(FormatOptions):
    """Rows whose columns are put together by formats of your own: what the user says, and the answer."""

    field_instruction: str = "instruction"
    """Column that `{instruction}` stands for."""
    field_input: str = "input"
    """Column that `{input}` stands for; it may be empty, null, or (unless this option is written) absent."""
    field_output: str = "output"
    """Column with the answer; a row where it is empty cannot be used."""
    field_system: str | None = None
    """Column that `{system}` stands for; where it is empty or null, `system_prompt` does."""
    system_prompt: str | None = None
    """The same system message for every row that has none in `field_system`."""
    system_format: str = "{system}"
    """How the system message is written."""
    format: str | None = None
    """What the user says; by default instruction and input, a line each. `{instruction}`, `{input}`, `{system}` and any
    column's name in braces are filled in; a brace itself is written twice. With `{system}` there is no message of its
    own for it."""
    no_input_format: str | None = None
    """What the user says in rows without input; by default `{instruction}`. A `format` of your own that has `{input}`
    comes with one of these, unless every row has an input."""

    @field_validator("format", "no_input_format", "system_format")
    @classmethod
    def _check_braces(cls, text: str | None) -> str | None:
        """Report braces that do not fit together."""
        if text is not None:
            parse_pattern(text)
        return text

    @model_validator(mode="after")
    def _check_together(self) -> ColumnsOptions:
        """Report formats that contradict each other, and options that would do nothing."""
        written, names = self.model_fields_set, parse_pattern(self.format or DEFAULT_FORMAT).names
        without = parse_pattern(self.no_input_format or "").names
        answer = {self.field_output} & (names | without | parse_pattern(self.system_format).names)
        has_system = bool(self.field_system or self.system_prompt)
        uses_system = "system" in names | without
        problems = {
            "no_input_format is for rows without input, and has {input}": "input" in without,
            "no_input_format does nothing: format has no {input}": bool(self.no_input_format) and "input" not in names,
            "field_input does nothing: format has no {input}": "field_input" in written and "input" not in names,
            f"the answer would be in the question: {{{self.field_output}}} is field_output": bool(answer),
            "system_format has no {system}": "system" not in parse_pattern(self.system_format).names,
            "system_format does nothing: write field_system or system_prompt": (
                "system_format" in written and not has_system
            ),
            "{system} is in a format: write field_system or system_prompt": uses_system and not has_system,
        }
        for message, is_wrong in problems.items():
            if is_wrong:
                raise ValueError(message)
        return self


class FixedOptions(FormatOptions):
    """Rows with the columns of a well-known data set, in a text that is fixed."""


class MessagesOptions(FormatOptions):
    """Rows with a list of messages, each with `role` and `content`, or in ShareGPT's shape with `from` and `value`."""

    field_messages: str = "messages"
    """Column with the messages, as a list or as the text of a JSON list; where there is none and this option is not
    written, `conversations`. Other keys of a message go to the template too; those that are null are left out."""
    field_tools: str = "tools"
    """Column with the tools' schemas; it may be empty, null, or (unless this option is written) absent."""
    field_system: str | None = "system"
    """Column with a system message for rows whose messages have none; it may be empty, null, or (unless this option is
    written) absent. Null reads no such column."""
    message_property_mappings: dict[str, str] = Field(default_factory=dict)
    """Keys of a message that have other names in the rows, e.g. `{role: speaker, content: text, train: keep}`. Names
    that are not written here stay what they are."""
    roles: dict[str, Words] = Field(default_factory=dict)
    """More names of roles, e.g. `{assistant: [bot], tool: [function]}`; they are added to those that are known. A role
    that stands here as a name only (`{critic: [critic]}`) is left as it is."""
    split_thinking: bool = False
    """Make `reasoning_content` of the thoughts that an answer begins with: `<think>` to `</think>`, `<reasoning>` to
    `</reasoning>`, or `<|begin_of_thought|>` to `<|end_of_thought|>`."""
    drop_system_message: bool = False
    """Leave out messages of the role `system`, and read no column with one."""

    @field_validator("message_property_mappings")
    @classmethod
    def _check_sources(cls, mappings: dict[str, str]) -> dict[str, str]:
        """Refuse one key of the rows under two names, and a name that is a known one misspelled."""
        for target in mappings:
            near = get_close_matches(target, MESSAGE_KEYS, n=1, cutoff=0.8)
            if target not in MESSAGE_KEYS and near:
                raise ValueError(f"'{target}' is no key of messages: did you mean '{near[0]}'?")
        twice = [source for source, count in Counter(mappings.values()).items() if count > 1]
        if twice:
            targets = list_names(target for target, source in mappings.items() if source == twice[0])
            raise ValueError(f"'{twice[0]}' is mapped to {targets}; it can be one of them")
        return mappings

    @field_validator("roles", mode="before")
    @classmethod
    def _take_single_names(cls, roles: Any) -> Any:
        """Take `{user: visitor}` for `{user: [visitor]}`, and refuse what is no name."""
        if not isinstance(roles, dict):
            return roles
        taken = {role: (names,) if isinstance(names, str) else names for role, names in roles.items()}
        for role, names in taken.items():
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"'{role}' takes a name or a list of names: {{{role}: [its_name]}}")
        return taken

    @field_validator("roles")
    @classmethod
    def _check_roles(cls, roles: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """Refuse one role of the rows under two names."""
        counts = Counter(source for names in roles.values() for source in set(names))
        twice = [source for source, count in counts.items() if count > 1]
        if twice:
            targets = list_names(target for target, names in roles.items() if twice[0] in names)
            raise ValueError(f"the role '{twice[0]}' is under {targets}; it can be one of them")
        return roles

    @model_validator(mode="after")
    def _check_system(self) -> MessagesOptions:
        """Refuse a column to read and to drop."""
        if self.drop_system_message and self.field_system and "field_system" in self.model_fields_set:
            raise ValueError("field_system adds system messages, and drop_system_message leaves them out; write one")
        return self


DATA_FORMATS: Mapping[str, type[FormatOptions]] = MappingProxyType(
    {
        "alpaca": AlpacaOptions,
        "messages": MessagesOptions,
        "columns": ColumnsOptions,
        **dict.fromkeys(FIXED_FORMATS, FixedOptions),
    }
)
"""Type name -> its options."""
