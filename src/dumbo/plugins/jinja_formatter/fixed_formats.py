"""Conversations from rows of well-known data sets, each with the columns and the text that are usual for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dumbo.data.records import Conversation, Row
from dumbo.data.row_values import kind_of, missing_column, read_column
from dumbo.plugins.jinja_formatter.alpaca import TASK, TASK_WITH_INPUT
from dumbo.plugins.jinja_formatter.patterns import parse_pattern


@dataclass(frozen=True, slots=True)
class FixedFormat:
    """The texts of one kind of rows; a name in braces is a column, or one of several: `{solution|explanation}`."""

    user: str
    assistant: str
    without_input: str = ""
    """What the user says where the column `input` is empty or absent; empty where there is no such column."""
    system: str = ""


_HEADINGS = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
_HEADINGS_WITHOUT = "### Instruction:\n{instruction}\n\n### Response:\n"
_CHOICES = "USER: {question}\n{choices}\nASSISTANT:"
_REFLECT = (
    "Below is {what}. First write a draft of the response in the manner of a technical paper, with the method that you "
    "follow. Then reflect on it as an expert of the field would, at length, and look for wrong facts, gaps and faulty "
    "steps. End with the response as it should be after that.\n\n"
)
_CRITERIA = (
    "refusal: 10 where the answer takes the question on, 0 where it declines to\n"
    "prescriptive_bias: 10 where the answer leaves decisions to the reader, 0 where it tells them what to do\n"
    "creativity: 10 where the answer has ideas of its own, 0 where it has none\n"
    "comprehensiveness: 10 where the answer is deep and complete, 0 where it misses much\n"
)
_CRITIQUE = (
    "Judge the answer to the question below by these criteria:\n" + _CRITERIA + "For each criterion say what is good, "
    "what is missing, and how to improve it. Write YAML: 'scores' with a number for each criterion, then 'critiques' "
    "with 'explanation' and 'improvements' for each.\n\nQuestion: {instruction}\nAnswer: {answer}\n"
)
_REVISE = (
    "An answer was judged by these criteria:\n" + _CRITERIA + "Improve it as the evaluation asks, and write the new "
    "answer alone.\n\nQuestion: {instruction}\nAnswer: {answer}\nEvaluation:\n{scores}{critiques}"
)
_CONTEXT = "Answer the question briefly, from the text before it.\nUSER: {article}\n===\n"

FIXED_FORMATS: Mapping[str, FixedFormat] = MappingProxyType(
    {
        "alpaca_qa": FixedFormat(TASK + "USER: {question}\nASSISTANT:", "{answer}"),
        "camel_ai": FixedFormat(TASK + "USER: {message_1}\nASSISTANT:", "{message_2}"),
        "concise_choice": FixedFormat(
            "Choose the best of the answers. Say it in a few words.\n\n" + _CHOICES + "\n", "{solution|explanation}"
        ),
        "context_qa": FixedFormat(_CONTEXT + "{question}\nASSISTANT:", "{answer}"),
        "context_qa_404": FixedFormat(
            _CONTEXT + "{unanswerable_question}\nASSISTANT:",
            "The text does not say anything about that, so I cannot answer the question from it.",
        ),
        "context_qa_v2": FixedFormat("Context: {context}\nQuestion: {question}\n", "Answer: {answer}"),
        "creative_answer": FixedFormat(
            "Answer the question in depth, with ideas of your own, to the point and without ambiguity.\n"
            "USER: {instruction}\nASSISTANT:",
            "{revision}",
        ),
        "creative_critique": FixedFormat(f"USER: {_CRITIQUE}\nASSISTANT:", "{scores}{critiques}"),
        "creative_revise": FixedFormat(f"USER: {_REVISE}\nASSISTANT:", "{revision}"),
        "explain_choice": FixedFormat(
            "Choose the best of the answers. Explain why.\n\n" + _CHOICES, "{solution|explanation}"
        ),
        "gpt4all": FixedFormat(
            TASK + "### Instruction:\n{prompt}\n\n### Response:\n",
            "{response}",
        ),
        "gpteacher": FixedFormat(TASK_WITH_INPUT + _HEADINGS, "{response}", without_input=TASK + _HEADINGS_WITHOUT),
        "jeopardy": FixedFormat(
            "Below is a clue of the quiz Jeopardy, with its category. Write a short response that fits both.\n\n"
            "### Instruction:\n{question}\n\n### Input:\n{category}\n\n### Response:\n",
            "what is {answer}",
        ),
        "metharme": FixedFormat("{prompt}", "{generation}"),
        "oasst": FixedFormat(
            TASK + "### Instruction:\n{INSTRUCTION}\n\n### Response:\n",
            "{RESPONSE}",
        ),
        "open_orca": FixedFormat(
            "### Human:\n{question}\n### Assistant:\n", "{response}", system="### System:\n{system_prompt}\n"
        ),
        "orca_mini": FixedFormat(
            "### User:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            "{output}",
            without_input="### User:\n{instruction}\n\n### Response:\n",
            system="### System:\n{system}\n\n",
        ),
        "reflection": FixedFormat(
            _REFLECT.replace("{what}", "an instruction with an input that belongs to it") + _HEADINGS,
            "### Thought:\n{output}\n\n### Agent Reflection:\n{reflection}\n\n### Final Response:\n{corrected}",
            without_input=_REFLECT.replace("{what}", "an instruction") + _HEADINGS_WITHOUT,
        ),
        "summarize_tldr": FixedFormat(
            "USER: Summarize the article below as a TL;DR.\n{article}\nASSISTANT:", "{summary}"
        ),
    }
)
"""Type name -> its texts. Columns, headings and answers are those of Axolotl's formats of the same kind."""


class Fixed:
    """Makes a conversation from the columns of one of `FIXED_FORMATS`."""

    def __init__(self, name: str) -> None:
        fixed = FIXED_FORMATS[name]
        self.user = parse_pattern(fixed.user)
        self.without_input = parse_pattern(fixed.without_input) if fixed.without_input else None
        self.assistant = parse_pattern(fixed.assistant)
        self.system = parse_pattern(fixed.system) if fixed.system else None

    def __call__(self, row: Row) -> Conversation:
        """Return the conversation. Raises `DataError` where a column is missing or empty."""

        def value_of(names: str) -> str:
            return _written(row, names.split("|"))

        lacks_input = self.without_input is not None and row.values.get("input") in (None, "")
        question = self.without_input if self.without_input and lacks_input else self.user
        turns = [("user", question.write(value_of)), ("assistant", self.assistant.write(value_of))]
        if self.system and not all(read_column(row, name) in (None, "") for name in self.system.names):
            turns.insert(0, ("system", self.system.write(value_of)))
        return Conversation(tuple({"role": role, "content": content} for role, content in turns), row.origin)


def _written(row: Row, names: list[str]) -> str:
    """The value of the first of these columns that the row has, as text."""
    name = next((name for name in names if row.values.get(name) is not None), names[0])
    if name not in row.values:
        raise missing_column(row, " or ".join(names))
    value = row.values[name]
    if name in ("scores", "critiques") and isinstance(value, Mapping):
        return _yaml({name: value})
    if name == "choices" and isinstance(value, list | tuple) and all(isinstance(choice, str) for choice in value):
        value = "\n".join(f'- "{choice}"' for choice in value)
    if not isinstance(value, str):
        raise row.origin.error(f"'{name}' is {kind_of(value)}", f"it must be {_expected(name)}")
    if not value.strip():
        raise row.origin.error(f"'{name}' is empty", "the text of this format needs it")
    return value


def _expected(name: str) -> str:
    return {"choices": "a list of texts", "scores": "a mapping", "critiques": "a mapping"}.get(name, "text")


def _yaml(value: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
