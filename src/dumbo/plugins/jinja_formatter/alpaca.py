"""Conversations from rows with an instruction, perhaps an input, and an output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from dumbo.data.records import Conversation, Row
from dumbo.data.row_values import read_optional_text, read_text

if TYPE_CHECKING:
    from dumbo.plugins.jinja_formatter.data_options import AlpacaOptions

TASK_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
"""What the prompts of https://github.com/tatsu-lab/stanford_alpaca begin with."""

TASK = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How an instruction is written: `{instruction}`, `{input}` and `{system}` are filled in."""

    with_input: str
    without_input: str
    system: str = "{system}"
    has_task: bool = False
    """Whether Alpaca's description of the task comes first, where there is no system message in its stead."""


PROMPT_STYLES: Mapping[str, PromptStyle] = MappingProxyType(
    {
        "alpaca": PromptStyle(
            "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
            "### Instruction:\n{instruction}\n\n### Response:\n",
            "### System:\n{system}\n\n",
            has_task=True,
        ),
        "plain": PromptStyle("{instruction}\n\n{input}", "{instruction}"),
        "chat": PromptStyle(
            "USER: {instruction}\n{input}\nASSISTANT:",
            "USER: {instruction}\nASSISTANT:",
            "SYSTEM: {system}\n",
            has_task=True,
        ),
        # The format of https://huggingface.co/microsoft/Phi-3-mini-4k-instruct.
        "phi": PromptStyle(
            "<|user|>\n{instruction}\n{input}<|end|>\n<|assistant|>\n",
            "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
            "<|system|>\n{system}<|end|>\n",
        ),
    }
)


class Alpaca:
    """Makes a conversation from a row with instruction, input and output, and perhaps a system message."""

    def __init__(self, options: AlpacaOptions) -> None:
        self.instruction = options.field_instruction
        self.input = options.field_input
        self.output = options.field_output
        self.system = options.field_system
        self.input_is_named = "field_input" in options.model_fields_set
        self.style = PROMPT_STYLES[options.prompt]

    def __call__(self, row: Row) -> Conversation:
        """Return the conversation. Raises `DataError` where a column is missing or not text, or the output empty."""
        instruction = read_text(row, self.instruction)
        context = read_optional_text(row, self.input, required=self.input_is_named)
        output = read_text(row, self.output)
        if not output.strip():
            raise row.origin.error(f"'{self.output}' is empty", "there is no answer to train on")
        system = read_optional_text(row, self.system, required=True) if self.system else ""
        turns = [("user", self._question(instruction, context, has_system=bool(system))), ("assistant", output)]
        if system:
            turns.insert(0, ("system", self.style.system.format(system=system)))
        return Conversation(tuple({"role": role, "content": content} for role, content in turns), row.origin)

    def _question(self, instruction: str, context: str, *, has_system: bool) -> str:
        turn = self.style.with_input if context else self.style.without_input
        task = TASK_WITH_INPUT if context else TASK
        text = turn.format(instruction=instruction, input=context)
        return task + text if self.style.has_task and not has_system else text
